/* service/eval/eval_compare.h - several settings of the KV cache over the same inputs: one row each.
 *
 * The library behind `pikv eval`, and what later tests ask "does this method at this budget lose less
 * than that?". Inputs are made once (eval_inputs); eval_row_run runs one setting over them. */
#ifndef SERVICE_EVAL_EVAL_COMPARE_H
#define SERVICE_EVAL_EVAL_COMPARE_H

#include "service/eval/eval_tasks.h"
#include "service/eval/eval_text.h"

enum { EVAL_TASKS_MAX = 16, EVAL_CONTEXTS_MAX = 16 };

typedef struct eval_plan {
    const char *text; /* NULL: no text */
    size_t n_text_bytes;
    uint32_t window, n_windows_max;
    const eval_task *tasks[EVAL_TASKS_MAX];
    uint32_t n_tasks;
    uint32_t contexts[EVAL_CONTEXTS_MAX];
    uint32_t n_contexts;
    uint32_t n_samples; /* per task and context */
    uint32_t n_distance_tokens;
    uint64_t seed;
} eval_plan;

/* Windows and samples, made once. */
typedef struct eval_inputs eval_inputs;
/* `t` is borrowed until the close; the text only during the open. */
err_t eval_inputs_open(const tokenizer *t, const eval_plan *plan, eval_inputs **out,
                       err_info *info) MUST_CHECK;
void eval_inputs_close(eval_inputs *in);
uint32_t eval_inputs_n_seq_tokens_max(const eval_inputs *in); /* what model and cache must hold */
uint32_t eval_inputs_n_windows(const eval_inputs *in);        /* of the text; 0 without one */

typedef struct eval_accuracy {
    uint32_t n_right, n_done;   /* samples */
    uint64_t n_distance_tokens; /* summed over finished samples */
} eval_accuracy;

typedef struct eval_row {
    eval_text_score text;       /* n_tokens 0: none */
    double *window_nll;         /* [n_windows] of the inputs; NaN where not finished; owned */
    eval_difference difference; /* to the first row; zero in the first row itself */
    bool has_difference;
    eval_accuracy accuracy[EVAL_TASKS_MAX][EVAL_CONTEXTS_MAX];
    eval_cost text_cost, task_cost; /* apart, since their lengths differ */
    bool is_cut_short;              /* stopped before all inputs were done */
} eval_row;

/* `first`: the row to compare with, or NULL. The progress callback of the options sees the whole row,
 * from 0 to 1; n_seq_tokens_max is taken from the inputs. */
err_t eval_row_run(const eval_options *options, eval_inputs *in, const eval_row *first,
                   eval_row *out, err_info *info) MUST_CHECK;
void eval_row_close(eval_row *row); /* also zeroed */

double
eval_row_accuracy(const eval_row *row,
                  const eval_plan *plan); /* mean over tasks and contexts with samples; NaN: none */
/* Text and tasks together. */
eval_cost eval_row_cost(const eval_row *row);

#endif
