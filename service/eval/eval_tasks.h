/* service/eval/eval_tasks.h - synthetic questions about facts that lie far back in the context.
 *
 * In the spirit of RULER (Hsieh et al., arXiv 2404.06654): facts scattered in filler, one question at the end, answered
 * greedily, exact match. The text family is that of the default model's training (tools/lookup_text.py), both made from
 * service/eval/task_words.h; seeds are fresh.
 *
 *   lookup     one number asked among facts that share neither person nor thing          (RULER: single)
 *   multi      facts on a grid: each person and each thing occurs in several              (multi-key)
 *   chain      the friend of a person, and then the friend's number                       (variable tracking)
 *   overwrite  a number said anew up to three times; the last one counts, others of the
 *              same key are distractors                                                   (multi-value)
 *   count      how often somebody saw an animal, 1 to TASK_COUNT_MAX                      (aggregation)
 *
 * A sample is a pure function of (seed, task, context, index), whatever else is generated. Adding a task: one function
 * and one row of the table in eval_tasks.c, and the same text in tools/lookup_text.py. */
#ifndef SERVICE_EVAL_EVAL_TASKS_H
#define SERVICE_EVAL_EVAL_TASKS_H

#include "base/error.h"
#include "model/tokenizer.h"

#include <stddef.h>
#include <stdint.h>

typedef struct eval_task eval_task; /* a row of the registry */

extern const eval_task *const eval_tasks[]; /* NULL-terminated, in the order above */
const eval_task *eval_task_find(const char *name, size_t n_name_bytes); /* NULL if unknown */
const char *eval_task_name(const eval_task *task);
const char *eval_task_help(const eval_task *task); /* one line */
/* True for tasks whose question hangs on one fact, which a distance can be given for. */
bool eval_task_takes_distance(const eval_task *task);

typedef struct eval_sample_spec {
    const eval_task *task;
    uint32_t n_context_tokens; /* BOS, passage, question and answer together: at most this many, and at most one filler
                                * sentence fewer */
    uint32_t n_distance_tokens; /* 0: the asked fact lies anywhere; else at least this many tokens lie between its end and
                                 * the end of the question, and at most one sentence more */
    uint64_t seed, index;
} eval_sample_spec;

typedef struct eval_sample {
    char *prompt;          /* owned; ends where the answer begins, without a space behind */
    char *answer;          /* owned; begins with a space and ends with the full stop */
    uint32_t *ids;         /* owned; the prompt's tokens, BOS included where the tokenizer adds one */
    uint32_t n_ids;
    uint32_t n_answer_ids; /* tokens of the answer behind the prompt */
    uint32_t n_distance_tokens; /* of the asked fact: from its last token to the last of the question; 0 for tasks without one */
} eval_sample;

/* Smallest context that holds the question and two facts of any task. */
enum { EVAL_CONTEXT_MIN = 128 };

/* ERR_BAD_CONFIG if the context or the distance cannot be met, ERR_NO_MEMORY. */
err_t eval_sample_open(const tokenizer *t, const eval_sample_spec *spec, eval_sample *out,
                       err_info *info) MUST_CHECK;
void eval_sample_close(eval_sample *s); /* also zeroed */

/* True if the drawn tokens, as text behind the prompt, begin with the answer. */
bool eval_sample_is_answered(const tokenizer *t, const eval_sample *s, const uint32_t *drawn,
                             uint32_t n_drawn);

#endif
