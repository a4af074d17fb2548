/* service/eval/eval_run.h - sequences through the model under one setting of the KV cache, and what they
 * cost.
 *
 * Quality is measured where a cache method loses it: in decode steps, one token a sequence a step. A job is
 * a token sequence with a prompt, which is processed in chunks, and a tail:
 *
 *   forced   the tail is fed token by token, each scored by the logits of the step before     (text)
 *   greedy   the likeliest token is fed back, `n_new` times or up to an end of sequence         (tasks)
 *
 * Jobs run in groups of n_seqs_max, in lockstep; results do not depend on the grouping under exact settings
 * (every op is batch-invariant). Prompts that the setting wants to see again (kvcache/kv_replay.h) are fed
 * a second time; that costs prompt_seconds and adds no tokens. Prefix caching is off: bytes would be shared
 * between sequences and counted once.
 *
 * Threads: one caller. Ownership: an eval_run borrows dev and model and owns its cache and buffers. */
#ifndef SERVICE_EVAL_EVAL_RUN_H
#define SERVICE_EVAL_EVAL_RUN_H

#include "base/error.h"
#include "kernels/dev.h"
#include "kvcache/kv_cache.h"
#include "model/model.h"
#include "service/replay_text.h"

#include <stdbool.h>

typedef struct eval_job {
    /* in */
    const uint32_t *tokens; /* [n_tokens]; borrowed */
    uint32_t n_tokens;      /* >= n_prompt; n_prompt itself when greedy */
    uint32_t n_prompt;      /* >= 1 */
    uint32_t n_new;         /* greedy: tokens to draw at most; forced: 0 */
    /* out */
    uint32_t *drawn; /* [n_new]; the caller's; greedy only; an end of sequence included */
    uint32_t n_drawn;
    double nll;        /* forced: -sum of log p(tokens[i]) for i in (n_prompt, n_tokens), in nats */
    uint32_t n_scored; /* forced: n_tokens - n_prompt - 1, targets that a decode step predicted */
    bool is_done;      /* false for jobs that a stop has cut off */
} eval_job;

/* Forced: tokens[n_prompt] is the first token that is fed in a decode step, and tokens[n_prompt + 1] the
 * first that is scored; tokens[n_tokens - 1] is scored and never fed. */

/* What the jobs have cost; sums over calls of eval_run_jobs since eval_run_open. */
typedef struct eval_cost {
    uint64_t n_decode_tokens; /* sequence-steps of decode */
    uint64_t n_decode_steps;  /* steps of all sequences of a group together */
    double decode_seconds;
    uint64_t n_prompt_tokens;
    double prompt_seconds;
    uint64_t read_bytes; /* by attention in decode, counted in the reader (kv_stats.bytes_read) */
    /* In decode, counted there as well: pages that could be read and those that were; certificates (kv_stats.h). */
    uint64_t pages_open, pages_read;
    uint64_t n_certificates;
    double certificate_sum;
    /* At the end of each group, before its sequences close, summed over groups: slabs, page tables,
     * rings and staging as the allocator holds them; and the tokens that the sequences held. */
    uint64_t resident_bytes, resident_tokens;
} eval_cost;

static inline double eval_cost_resident_bytes_per_token(const eval_cost *c)
{
    return c->resident_tokens > 0 ? (double)c->resident_bytes / (double)c->resident_tokens : 0;
}
/* Of one sequence in one decode step. */
static inline double eval_cost_read_bytes_per_step(const eval_cost *c)
{
    return c->n_decode_tokens > 0 ? (double)c->read_bytes / (double)c->n_decode_tokens : 0;
}
/* Of the pages behind the recent window; 0 if there was none. */
static inline double eval_cost_share_of_pages_read(const eval_cost *c)
{
    return c->pages_open > 0 ? (double)c->pages_read / (double)c->pages_open : 0;
}
/* Mean bound of the share of attention that a decode query's head has not read. */
static inline double eval_cost_certificate_mean(const eval_cost *c)
{
    return c->n_certificates > 0 ? c->certificate_sum / (double)c->n_certificates : 0;
}
static inline double eval_cost_tokens_per_second(const eval_cost *c)
{
    return c->decode_seconds > 0 ? (double)c->n_decode_tokens / c->decode_seconds : 0;
}

/* Adds every field of `from`. */
void eval_cost_add(const eval_cost *from, eval_cost *to);

typedef struct eval_options {
    dev *d;              /* borrowed, as is the model */
    model *m;            /* opened for at least n_step_tokens_max tokens a step */
    const kv_config *kv; /* borrowed during eval_run_open; prefix_caching is taken as false */
    uint32_t n_seqs_max; /* jobs of a group; at most n_step_tokens_max are taken */
    uint32_t n_step_tokens_max;
    uint32_t n_seq_tokens_max; /* tokens of the longest job, drawn ones included */
    const replay_text *replay; /* borrowed; of prompts that are read again. NULL: no instruction */
    /* May be NULL. Called between steps: work done so far of the present eval_run_jobs call, from 0 to 1
     * (by tokens); true stops it: unfinished jobs keep is_done false. */
    bool (*on_progress)(void *ctx, double done);
    void *on_progress_ctx;
} eval_options;

typedef struct eval_run eval_run;

/* ERR_BAD_CONFIG as kv_cache_open has it, or if the longest job needs more positions than the model has;
 * ERR_NO_MEMORY. The pool is sized by the settings, or for the group. */
err_t eval_run_open(const eval_options *options, eval_run **out, err_info *info) MUST_CHECK;
void eval_run_close(eval_run *r); /* NULL is fine */

/* Runs all jobs, in order. A group that does not fit in the pool is halved and run again, and the first
 * one says so in the log; ERR_KV_FULL if one sequence does not fit. ERR_BAD_MODEL for logits that are
 * not finite. ERR_BAD_ARGUMENT names a job that is longer than n_seq_tokens_max, ERR_BAD_REQUEST a
 * prompt that the model's positions do not hold twice, if it is to be read again. A stopped call returns
 * ERR_OK. */
err_t eval_run_jobs(eval_run *r, eval_job *jobs, size_t n_jobs, err_info *info) MUST_CHECK;

const eval_cost *eval_run_cost(const eval_run *r);

#endif
