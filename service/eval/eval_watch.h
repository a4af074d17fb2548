/* service/eval/eval_watch.h - eval_run_jobs for a caller who wants to see logits, those of prompts included.
 *
 * A group that did not fit is run again, so a row may be shown more than once; each time it is the same
 * job and position. */
#ifndef SERVICE_EVAL_EVAL_WATCH_H
#define SERVICE_EVAL_EVAL_WATCH_H

#include "service/eval/eval_run.h"

typedef struct eval_watch {
    /* Does anybody want the logits of the token at `position` of jobs[job]? */
    bool (*wants)(void *ctx, size_t job, uint32_t position);
    void (*take)(void *ctx, size_t job, uint32_t position, const float *logits); /* [n_vocab] */
    void *ctx;
} eval_watch;

/* `watch` NULL: eval_run_jobs itself. */
err_t eval_run_watched(eval_run *r, eval_job *jobs, size_t n_jobs, const eval_watch *watch,
                       err_info *info) MUST_CHECK;

#endif
