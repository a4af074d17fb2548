/* tests/service/eval/eval_rig.h - a fixture's model, and evaluations of it. Helpers fail the running test themselves. */
#ifndef TESTS_SERVICE_EVAL_EVAL_RIG_H
#define TESTS_SERVICE_EVAL_EVAL_RIG_H

#include "service/eval/eval_run.h"

enum { RIG_STEP_TOKENS_MAX = 512 };

typedef struct eval_rig {
    dev *d;
    model *m;
    kv_config kv; /* small pages: window 8, sinks 2, pages of 4 */
    uint32_t n_vocab;
    eval_options options; /* of `kv`; 4 sequences, 64 tokens a step, 400 tokens a sequence */
} eval_rig;

void eval_rig_open(const char *dir, eval_rig *out);
void eval_rig_close(eval_rig *rig);

eval_run *eval_rig_run_open(const eval_rig *rig); /* with the rig's options */
void must_run(eval_run *r, eval_job *jobs, size_t n_jobs);

/* n fixed pseudo-random tokens, the same for the same `kind` as far as both go. */
void fill_tokens(const eval_rig *rig, uint32_t kind, uint32_t n, uint32_t *tokens);

#endif
