/* service/eval/eval_against.h - our logits beside stored ones of a reference program.
 *
 * The file is a safetensors file with, for N = 0, 1, 2 ...:
 *   pN.prompt      I32 [n]           token ids, as they are fed (no BOS is added)
 *   pN.logits_pos  I32 [m]           positions whose logits are stored
 *   pN.logits      F32 [m][n_vocab]
 * as tools/make_goldens.py writes them. The first half of each prompt is processed as a prompt, the second
 * half one token a step, as in the text protocol.
 *
 *   relative error of a row   max |ours - stored| / max |stored|
 *   top-1 agreement           share of rows whose largest logit is at the same token (ties: the lower id) */
#ifndef SERVICE_EVAL_EVAL_AGAINST_H
#define SERVICE_EVAL_EVAL_AGAINST_H

#include "service/eval/eval_run.h"

typedef struct eval_against_result {
    double relative_error_max, relative_error_mean; /* over rows */
    double top1_agreement;
    uint64_t n_rows;
    uint32_t n_prompts;
} eval_against_result;

/* Opens a cache of its own with options->kv. ERR_BAD_MODEL names file, tensor and what is wrong with it
 * (shape, type, a position or token out of range); ERR_IO. */
err_t eval_against(const eval_options *options, const char *path, eval_against_result *out,
                   err_info *info) MUST_CHECK;

#endif
