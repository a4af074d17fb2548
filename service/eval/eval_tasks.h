/* service/eval/eval_tasks.h - synthetic questions about facts that lie far back in the context.
 *
 * In the spirit of RULER (Hsieh et al., arXiv 2404.06654): facts scattered in filler, one question at the
 * end, answered greedily, exact match. The text family is that of the default model's training
 * (tools/lookup_text.py), both made from service/eval/task_words.h; seeds are fresh.
 *
 *   lookup     one number asked among facts that share neither person nor thing          (RULER: single)
 *   multi      facts on a grid: each person and each thing occurs in several              (multi-key)
 *   chain      the friend of a person, and then the friend's number                       (variable tracking)
 *   overwrite  a number said anew up to three times; the last one counts, others of the
 *              same key are distractors                                                   (multi-value)
 *   count      how often somebody saw an animal, 1 to TASK_COUNT_MAX                      (aggregation)
 *
 * A sample is a pure function of (seed, task, context, index) and the distance, whatever else is generated;
 * the distance moves the asked fact and nothing else. Adding a task: one function and one row at the end of
 * the table in eval_tasks.c, and the same text in tools/lookup_text.py.
 *
 * Threads: everything here is const or the caller's; any thread. */
#ifndef SERVICE_EVAL_EVAL_TASKS_H
#define SERVICE_EVAL_EVAL_TASKS_H

#include "base/error.h"
#include "model/tokenizer.h"

#include <stdbool.h>
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
    uint32_t
        n_context_tokens; /* BOS, passage, question and answer together: at most this many, and at most one filler
                                 * sentence fewer; in [EVAL_CONTEXT_MIN, EVAL_CONTEXT_MAX] */
    uint32_t
        n_distance_tokens; /* 0: the asked fact lies anywhere; else at least this many tokens lie between its end and
                                 * the end of the question, and at most one sentence more; in
                                 * [EVAL_DISTANCE_MIN, n_context_tokens - EVAL_DISTANCE_ROOM], and only
                                 * for tasks that take a distance */
    uint64_t seed, index;
} eval_sample_spec;

typedef struct eval_sample {
    char *prompt; /* owned; ends where the answer begins, without a space behind */
    char *answer; /* owned; begins with a space and ends with the full stop */
    uint32_t *
        ids; /* owned; the prompt's tokens, BOS included where the tokenizer adds one; the answer's lie behind
                    * them, at ids[n_ids .. n_ids + n_answer_ids) */
    uint32_t n_ids;
    uint32_t n_answer_ids; /* tokens of the answer behind the prompt */
    uint32_t
        n_distance_tokens; /* of the asked fact: from its last token to the last of the question; 0 for tasks without one */
} eval_sample;

/* The smallest context holds the question and four facts of any task in the default model's tokens; where a
 * tokenizer needs more, that is an error of its own. At every distance there is room for the asked fact,
 * the answer and the sentence that may lie too far, and the question lies nearer. */
enum {
    EVAL_CONTEXT_MIN = 128,
    EVAL_CONTEXT_MAX = 1 << 20,
    EVAL_DISTANCE_MIN = 32,
    EVAL_DISTANCE_ROOM = 64
};

/* ERR_BAD_CONFIG if the context or the distance cannot be met, ERR_BAD_MODEL for a tokenizer without a
 * token boundary before the answer, ERR_NO_MEMORY. `out` is zero after an error. */
err_t eval_sample_open(const tokenizer *t, const eval_sample_spec *spec, eval_sample *out,
                       err_info *info) MUST_CHECK;
void eval_sample_close(eval_sample *s); /* also zeroed */

/* True if the drawn tokens, as text behind the prompt, begin with the answer. Nothing counts behind an end of sequence. */
bool eval_sample_is_answered(const tokenizer *t, const eval_sample *s, const uint32_t *drawn,
                             uint32_t n_drawn);

#endif
