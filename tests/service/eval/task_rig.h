/* tests/service/eval/task_rig.h - samples of the look-up tasks, and a reader that answers them.
 *
 * The reader knows the sentences and nothing of how they were chosen: it takes a prompt apart and
 * answers it, so that what it finds is what a reader of the passage can find. Its sentences are written
 * out here once more. */
#ifndef TESTS_SERVICE_EVAL_TASK_RIG_H
#define TESTS_SERVICE_EVAL_TASK_RIG_H

#include "service/eval/eval_tasks.h"
#include "tests/test_main.h"

enum { WORD_BYTES = 32, SENTENCE_BYTES = 128, SENTENCES_MAX = 2048 };

extern const char questions_line[]; /* between passage and question */

tokenizer *open_tokenizer(void); /* of the default model */
const eval_task *task_of(const char *name);
eval_sample open_sample(const tokenizer *t, const eval_sample_spec *spec); /* must succeed */
eval_sample sample_of(const tokenizer *t, const char *task, uint32_t n_context_tokens,
                      uint64_t index);
size_t n_ids_of(const tokenizer *t, const char *text, bool add_bos);

/* Calls back with each of n samples of each task in each context, up to a context of 0. */
typedef void (*look_at)(const tokenizer *t, const eval_sample_spec *spec, const eval_sample *s);
void for_each_sample(const uint32_t *contexts, uint64_t n_samples, look_at look);

/* The open has to fail with ERR_BAD_CONFIG and these words. */
void check_refused(const tokenizer *t, const eval_sample_spec *spec, const char *words);

typedef enum kind { FILLER, NUMBER, NUMBER_NOW, FRIEND, OWN_NUMBER, SAW } kind;

typedef struct fact {
    kind kind;
    char text[SENTENCE_BYTES]; /* without the full stop */
    char person[WORD_BYTES];
    char what[WORD_BYTES];  /* thing or animal */
    char value[WORD_BYTES]; /* digits or friend */
} fact;

typedef struct reading {
    fact facts[SENTENCES_MAX];
    size_t n_facts;   /* fillers included */
    const char *stem; /* of the question; in the prompt */
} reading;

reading *read_prompt(const char *prompt); /* free() it */

/* Facts of the kind about this person and this thing or animal (NULL: any). */
typedef struct key {
    kind kind;
    const char *person, *what;
} key;
uint32_t n_facts_of(const reading *r, key k);
const fact *last_fact_of(const reading *r, key k); /* must be there */

/* What the question is about. */
typedef struct question {
    kind kind;
    char person[WORD_BYTES], what[WORD_BYTES];
} question;
question read_question(const char *stem);

/* The passage has one answer to its question, and it is the sample's. A look_at. */
void check_answer(const tokenizer *t, const eval_sample_spec *spec, const eval_sample *s);

#endif
