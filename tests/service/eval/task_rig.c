/* tests/service/eval/task_rig.c - see task_rig.h. */
#include "tests/service/eval/task_rig.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char questions_line[] = "\nQuestions:\n";

/* ---- samples ------------------------------------------------------------------------------------- */

tokenizer *open_tokenizer(void)
{
    tokenizer *t;
    ck_assert_int_eq(tokenizer_open("models/storyteller", &t, NULL), ERR_OK);
    return t;
}

const eval_task *task_of(const char *name)
{
    const eval_task *task = eval_task_find(name, strlen(name));
    ck_assert_ptr_nonnull(task);
    return task;
}

eval_sample open_sample(const tokenizer *t, const eval_sample_spec *spec)
{
    eval_sample s;
    err_info info = {0};
    const err_t err = eval_sample_open(t, spec, &s, &info);
    ck_assert_msg(err == ERR_OK, "%s at %u: %s", eval_task_name(spec->task), spec->n_context_tokens,
                  info.message);
    return s;
}

eval_sample sample_of(const tokenizer *t, const char *task, uint32_t n_context_tokens,
                      uint64_t index)
{
    return open_sample(t, &(eval_sample_spec){.task = task_of(task),
                                              .n_context_tokens = n_context_tokens,
                                              .seed = 3,
                                              .index = index});
}

size_t n_ids_of(const tokenizer *t, const char *text, bool add_bos)
{
    uint32_t *ids;
    size_t n;
    const tok_text whole = {.bytes = text, .n_bytes = strlen(text), .add_bos = add_bos};
    ck_assert_int_eq(tokenizer_encode(t, &whole, &ids, &n), ERR_OK);
    free(ids);
    return n;
}

void for_each_sample(const uint32_t *contexts, uint64_t n_samples, look_at look)
{
    tokenizer *t = open_tokenizer();
    for (; *contexts != 0; contexts++) {
        for (size_t k = 0; eval_tasks[k] != NULL; k++) {
            for (uint64_t i = 0; i < n_samples; i++) {
                const eval_sample_spec spec = {
                    .task = eval_tasks[k], .n_context_tokens = *contexts, .seed = 5, .index = i};
                eval_sample s = open_sample(t, &spec);
                look(t, &spec, &s);
                eval_sample_close(&s);
            }
        }
    }
    tokenizer_close(t);
}

void check_refused(const tokenizer *t, const eval_sample_spec *spec, const char *words)
{
    err_info info = {0};
    eval_sample s;
    ck_assert_int_eq(eval_sample_open(t, spec, &s, &info), ERR_BAD_CONFIG);
    ck_assert_msg(strstr(info.message, words) != NULL, "%s", info.message);
    ck_assert_ptr_null(s.prompt);
    ck_assert_ptr_null(s.ids);
    eval_sample_close(&s);
}

/* ---- the reader ---------------------------------------------------------------------------------- */

static void read_fact(fact *f)
{
    char *const who = f->person, *const what = f->what, *const value = f->value;
    int n = -1;
    f->kind = FILLER;
    if (sscanf(f->text, "The number of the %31s of %31s is %4[0-9]%n", what, who, value, &n) == 3)
        f->kind = NUMBER;
    else if (sscanf(f->text, "The number of the %31s of %31s is now %4[0-9]%n", what, who, value,
                    &n) == 3)
        f->kind = NUMBER_NOW;
    else if (sscanf(f->text, "The friend of %31s is %31s%n", who, value, &n) == 2)
        f->kind = FRIEND;
    else if (sscanf(f->text, "The number of %31s is %4[0-9]%n", who, value, &n) == 2)
        f->kind = OWN_NUMBER;
    else if (sscanf(f->text, "%31s saw a %31s%n", who, what, &n) == 2)
        f->kind = SAW;
    if (f->kind != FILLER) ck_assert_int_eq(n, (int)strlen(f->text));
}

reading *read_prompt(const char *prompt)
{
    reading *r = calloc(1, sizeof *r);
    ck_assert_ptr_nonnull(r);
    const char *const end = strstr(prompt, questions_line);
    ck_assert_ptr_nonnull(end);
    r->stem = end + strlen(questions_line);
    ck_assert_ptr_null(strchr(r->stem, '\n'));
    for (const char *text = prompt; text < end;) {
        const char *const stop = strchr(text, '.');
        ck_assert_ptr_nonnull(stop);
        ck_assert_uint_lt(r->n_facts, SENTENCES_MAX);
        fact *f = &r->facts[r->n_facts++];
        snprintf(f->text, sizeof f->text, "%.*s", (int)(stop - text), text);
        read_fact(f);
        text = stop + 1;
        ck_assert(text == end || *text == ' ');
        if (text < end) text++;
    }
    return r;
}

static bool is_word(const char *wanted, const char *word)
{
    return wanted == NULL || strcmp(wanted, word) == 0;
}

static bool is_about(const fact *f, key k)
{
    return f->kind == k.kind && is_word(k.person, f->person) && is_word(k.what, f->what);
}

uint32_t n_facts_of(const reading *r, key k)
{
    uint32_t n = 0;
    for (size_t i = 0; i < r->n_facts; i++)
        n += is_about(&r->facts[i], k);
    return n;
}

const fact *last_fact_of(const reading *r, key k)
{
    const fact *last = NULL;
    for (size_t i = 0; i < r->n_facts; i++) {
        if (is_about(&r->facts[i], k)) last = &r->facts[i];
    }
    ck_assert_ptr_nonnull(last);
    return last;
}

question read_question(const char *stem)
{
    question q = {0};
    int n = -1;
    const size_t n_bytes = strlen(stem);
    if (sscanf(stem, "The number of the %31s of %31s is now%n", q.what, q.person, &n) == 2 && n > 0)
        q.kind = NUMBER_NOW;
    else if (sscanf(stem, "The number of the %31s of %31s is%n", q.what, q.person, &n) == 2)
        q.kind = NUMBER;
    else if (sscanf(stem, "The friend of %31s is%n", q.person, &n) == 1)
        q.kind = FRIEND;
    else if (sscanf(stem, "The times that %31s saw a %31[a-z]:%n", q.person, q.what, &n) == 2)
        q.kind = SAW;
    ck_assert_msg(n == (int)n_bytes, "the question is cut off elsewhere: %s", stem);
    return q;
}

/* The only one; fails if there is none or more than one. */
static const fact *fact_of(const reading *r, key k)
{
    ck_assert_uint_eq(n_facts_of(r, k), 1);
    return last_fact_of(r, k);
}

static void answer_into(const reading *r, char out[SENTENCE_BYTES])
{
    const question q = read_question(r->stem);
    const key asked = {q.kind, q.person, q.what[0] != '\0' ? q.what : NULL};
    if (q.kind == NUMBER) {
        snprintf(out, SENTENCE_BYTES, " %s.", fact_of(r, asked)->value);
    } else if (q.kind == NUMBER_NOW) {
        const fact *last = last_fact_of(r, asked);
        ck_assert(fact_of(r, (key){NUMBER, q.person, q.what}) < last);
        snprintf(out, SENTENCE_BYTES, " %s.", last->value);
    } else if (q.kind == FRIEND) {
        const char *const other = fact_of(r, asked)->value;
        const fact *number = fact_of(r, (key){OWN_NUMBER, other, NULL});
        snprintf(out, SENTENCE_BYTES, " %s. The number of %s is %s.", other, other, number->value);
    } else {
        snprintf(out, SENTENCE_BYTES, " %u.", n_facts_of(r, asked));
    }
}

void check_answer(const tokenizer *t, const eval_sample_spec *spec, const eval_sample *s)
{
    (void)t;
    char answer[SENTENCE_BYTES];
    reading *r = read_prompt(s->prompt);
    answer_into(r, answer);
    ck_assert_msg(strcmp(s->answer, answer) == 0, "%s at %u: '%s', but the text says '%s'",
                  eval_task_name(spec->task), spec->n_context_tokens, s->answer, answer);
    free(r);
}
