/* Promises of eval_passage.h, which are seen in the samples that are made with it: budget, distance,
 * ids. The linker wraps the tokenizer's encode, so that it can be other than counted, and the allocator,
 * so that each allocation can fail. */
#include "service/eval/task_words.h"
#include "tests/service/eval/task_rig.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint32_t n_ids_of_longest_filler(const tokenizer *t)
{
    uint32_t n_longest = 0;
#define X(form)                                                              \
    do {                                                                     \
        char text[SENTENCE_BYTES];                                           \
        snprintf(text, sizeof text, form, "Dorothy", "window", "beautiful"); \
        const uint32_t n = (uint32_t)n_ids_of(t, text, false);               \
        n_longest = n > n_longest ? n : n_longest;                           \
    } while (0);
    TASK_FILLERS(X)
#undef X
    return n_longest;
}

static void look_at_budget(const tokenizer *t, const eval_sample_spec *spec, const eval_sample *s)
{
    const uint32_t n = s->n_ids + s->n_answer_ids;
    const uint32_t n_filler = n_ids_of_longest_filler(t);
    ck_assert_uint_le(n, spec->n_context_tokens);
    ck_assert_uint_lt(spec->n_context_tokens - n, n_filler);
}

START_TEST(the_context_is_filled_up_to_one_sentence_and_never_exceeded)
{
    static const uint32_t contexts[] = {128, 129, 200, 256, 500, 1024, 2048, 4096, 0};
    for_each_sample(contexts, 8, look_at_budget);
}
END_TEST

static void look_at_ids(const tokenizer *t, const eval_sample_spec *spec, const eval_sample *s)
{
    (void)spec;
    char *whole;
    ck_assert_int_gt(asprintf(&whole, "%s%s", s->prompt, s->answer), 0);
    const char *const texts[] = {s->prompt, whole};
    const uint32_t wanted[] = {s->n_ids, s->n_ids + s->n_answer_ids};
    for (size_t i = 0; i < 2; i++) {
        const tok_text text = {.bytes = texts[i], .n_bytes = strlen(texts[i]), .add_bos = true};
        uint32_t *ids;
        size_t n;
        ck_assert_int_eq(tokenizer_encode(t, &text, &ids, &n), ERR_OK);
        ck_assert_uint_eq(n, wanted[i]);
        ck_assert_mem_eq(ids, s->ids, n * sizeof *ids);
        free(ids);
    }
    free(whole);
}

START_TEST(the_ids_are_those_of_the_prompt_alone_and_go_on_with_the_answer)
{
    static const uint32_t contexts[] = {128, 1024, 0};
    for_each_sample(contexts, 10, look_at_ids);
}
END_TEST

/* A filler of task_words.h: a walker, a place and a quality in one of the forms. */
static bool is_filler(const char *text)
{
    static const char *const forms[] = {
        "%31[A-Za-z] went to the %31[a-z] and found it %31[a-z]",
        "%31[A-Za-z] sat by the %31[a-z], for it was %31[a-z] there",
        "%31[A-Za-z] came home from the %31[a-z], which was %31[a-z]",
        "%31[A-Za-z] looked at the %31[a-z] and said that it was %31[a-z]",
        "%31[A-Za-z] walked past the %31[a-z] on a %31[a-z] morning",
        "%31[A-Za-z] thought of the %31[a-z] and the %31[a-z] day"};
    static const char walkers[] = " Tom Dorothy Tommy Laurie Dick Andrew Phil Cyril Anthea Daisy ";
    char who[WORD_BYTES], where[WORD_BYTES], how[WORD_BYTES], spaced[WORD_BYTES + 2];
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++) {
        char whole[SENTENCE_BYTES];
        int n_read = 0;
        snprintf(whole, sizeof whole, "%s%%n", forms[i]);
        sscanf(text, whole, who, where, how, &n_read);
        if (n_read == 0 || text[n_read] != '\0') continue;
        snprintf(spaced, sizeof spaced, " %s ", who);
        return strstr(walkers, spaced) != NULL;
    }
    return false;
}

static void look_at_sentences(const tokenizer *t, const eval_sample_spec *spec,
                              const eval_sample *s)
{
    (void)t;
    reading *r = read_prompt(s->prompt);
    size_t n_fillers = 0;
    for (size_t i = 0; i < r->n_facts; i++) {
        if (r->facts[i].kind != FILLER) continue;
        ck_assert_msg(is_filler(r->facts[i].text), "no filler: %s", r->facts[i].text);
        n_fillers++;
    }
    ck_assert_uint_ge(n_fillers, 1);
    ck_assert_uint_ge(r->n_facts - n_fillers, spec->n_context_tokens < 256 ? 2 : 4);
    free(r);
}

START_TEST(every_sentence_is_a_fact_or_a_filler)
{
    static const uint32_t contexts[] = {128, 256, 1024, 0};
    for_each_sample(contexts, 40, look_at_sentences);
}
END_TEST

/* Ids behind the asked fact, found anew in the text. */
static uint32_t distance_in(const tokenizer *t, const eval_sample *s)
{
    const char *const stem = strstr(s->prompt, questions_line) + strlen(questions_line);
    char sentence[SENTENCE_BYTES];
    snprintf(sentence, sizeof sentence, "%s%s", stem, s->answer);
    const char *const asked = strstr(s->prompt, sentence);
    ck_assert_ptr_nonnull(asked);
    char *upto = strndup(s->prompt, (size_t)(asked - s->prompt) + strlen(sentence));
    ck_assert_ptr_nonnull(upto);
    const uint32_t n = s->n_ids - (uint32_t)n_ids_of(t, upto, true);
    free(upto);
    return n;
}

static void check_distance(const tokenizer *t, const eval_task *task, uint32_t n_context,
                           uint32_t n_distance)
{
    for (uint64_t i = 0; i < 20; i++) {
        const eval_sample_spec spec = {.task = task,
                                       .n_context_tokens = n_context,
                                       .n_distance_tokens = n_distance,
                                       .index = i};
        eval_sample s = open_sample(t, &spec);
        const uint32_t n = distance_in(t, &s);
        ck_assert_uint_eq(s.n_distance_tokens, n);
        ck_assert_uint_ge(n, n_distance);
        ck_assert_uint_lt(n, n_distance + 16); /* the longest sentence has 15 tokens */
        look_at_budget(t, &spec, &s);
        eval_sample_close(&s);
    }
}

START_TEST(an_asked_fact_lies_at_the_distance_that_was_asked_for)
{
    tokenizer *t = open_tokenizer();
    static const uint32_t contexts[] = {128, 512, 2048};
    for (size_t k = 0; eval_tasks[k] != NULL; k++) {
        if (!eval_task_takes_distance(eval_tasks[k])) continue;
        for (size_t c = 0; c < 3; c++) {
            check_distance(t, eval_tasks[k], contexts[c], EVAL_DISTANCE_MIN);
            check_distance(t, eval_tasks[k], contexts[c], contexts[c] / 2);
            check_distance(t, eval_tasks[k], contexts[c], contexts[c] - EVAL_DISTANCE_ROOM);
        }
    }
    tokenizer_close(t);
}
END_TEST

/* The passage without the asked fact. */
static void cut_asked(const eval_sample *s, char *out, size_t n_out)
{
    reading *r = read_prompt(s->prompt);
    const question q = read_question(r->stem);
    size_t end = 0;
    for (size_t i = 0; i < r->n_facts; i++) {
        const fact *f = &r->facts[i];
        if (strcmp(f->person, q.person) == 0 && strcmp(f->what, q.what) == 0) continue;
        end += (size_t)snprintf(out + end, n_out - end, "%s. ", f->text);
        ck_assert_uint_lt(end, n_out);
    }
    free(r);
}

START_TEST(a_distance_moves_the_asked_fact_and_nothing_else)
{
    tokenizer *t = open_tokenizer();
    static char near_text[16384], far_text[16384];
    for (uint64_t i = 0; i < 20; i++) {
        eval_sample_spec spec = {.task = task_of("multi"), .n_context_tokens = 1024, .index = i};
        eval_sample anywhere = open_sample(t, &spec);
        spec.n_distance_tokens = 700;
        eval_sample far = open_sample(t, &spec);
        cut_asked(&anywhere, near_text, sizeof near_text);
        cut_asked(&far, far_text, sizeof far_text);
        ck_assert_str_eq(near_text, far_text);
        ck_assert_str_eq(anywhere.answer, far.answer);
        eval_sample_close(&anywhere);
        eval_sample_close(&far);
    }
    tokenizer_close(t);
}
END_TEST

START_TEST(an_asked_fact_lies_anywhere_without_a_distance)
{
    enum { N_SAMPLES = 400, N_PARTS = 4 };
    tokenizer *t = open_tokenizer();
    static const char *const names[] = {"lookup", "multi"};
    for (size_t k = 0; k < 2; k++) {
        uint32_t n_in_part[N_PARTS] = {0};
        for (uint64_t i = 0; i < N_SAMPLES; i++) {
            eval_sample s = sample_of(t, names[k], 512, i);
            const uint32_t n = distance_in(t, &s);
            ck_assert_uint_eq(n, s.n_distance_tokens);
            n_in_part[n * N_PARTS / s.n_ids]++;
            eval_sample_close(&s);
        }
        for (size_t part = 0; part < N_PARTS; part++) { /* 100, standard deviation 9 */
            ck_assert_uint_ge(n_in_part[part], 65);
            ck_assert_uint_le(n_in_part[part], 135);
        }
    }
    tokenizer_close(t);
}
END_TEST

START_TEST(other_tokenizers_keep_the_budget_or_say_what_they_need)
{
    static const char *const dirs[] = {"tests/golden/tokenizer-bpe",
                                       "tests/golden/tokenizer-bpe-symbols",
                                       "tests/golden/tokenizer-unigram"};
    for (size_t d = 0; d < 3; d++) {
        tokenizer *t;
        ck_assert_int_eq(tokenizer_open(dirs[d], &t, NULL), ERR_OK);
        const eval_sample_spec small = {.task = task_of("multi"), .n_context_tokens = 128};
        check_refused(t, &small, "context: 128 tokens do not hold the question and the facts of");
        for (size_t k = 0; eval_tasks[k] != NULL; k++) {
            eval_sample_spec spec = {.task = eval_tasks[k], .n_context_tokens = 2048};
            spec.n_distance_tokens = eval_task_takes_distance(spec.task) ? 1024 : 0;
            for (spec.index = 0; spec.index < 10; spec.index++) {
                eval_sample s = open_sample(t, &spec);
                look_at_ids(t, &spec, &s);
                check_answer(t, &spec, &s);
                look_at_budget(t, &spec, &s);
                if (spec.n_distance_tokens > 0) {
                    ck_assert_uint_eq(s.n_distance_tokens, distance_in(t, &s));
                    ck_assert_uint_ge(s.n_distance_tokens, 1024);
                    ck_assert_uint_lt(s.n_distance_tokens, 1024 + 40);
                }
                eval_sample_close(&s);
            }
        }
        tokenizer_close(t);
    }
}
END_TEST

/* ---- a tokenizer that gives long texts more or fewer ids than their words have -------------------- */

enum { LONG_TEXT_BYTES = 600, EXTRA_FROM_END = 10 };

static size_t n_extra_ids = 0; /* of long texts, inside the question; without text of their own */
static size_t n_lost_ids = 0;  /* of long texts, at the front */

err_t __real_tokenizer_encode(const tokenizer *t, const tok_text *text, uint32_t **ids,
                              size_t *n_ids);
err_t __wrap_tokenizer_encode(const tokenizer *t, const tok_text *text, uint32_t **ids,
                              size_t *n_ids);
err_t __wrap_tokenizer_encode(const tokenizer *t, const tok_text *text, uint32_t **ids,
                              size_t *n_ids)
{
    TRY(__real_tokenizer_encode(t, text, ids, n_ids));
    if (text->n_bytes < LONG_TEXT_BYTES) return ERR_OK;
    *n_ids -= n_lost_ids;
    memmove(*ids, *ids + n_lost_ids, *n_ids * sizeof **ids);
    if (n_extra_ids == 0) return ERR_OK;
    uint32_t *more = realloc(*ids, (*n_ids + n_extra_ids) * sizeof *more);
    ck_assert_ptr_nonnull(more);
    uint32_t *at = more + *n_ids - EXTRA_FROM_END;
    memmove(at + n_extra_ids, at, EXTRA_FROM_END * sizeof *more);
    for (size_t i = 0; i < n_extra_ids; i++)
        at[i] = (uint32_t)tokenizer_bos(t);
    *ids = more;
    *n_ids += n_extra_ids;
    return ERR_OK;
}

START_TEST(a_text_of_fewer_tokens_than_counted_is_made_longer)
{
    tokenizer *t = open_tokenizer();
    eval_sample_spec spec = {.task = task_of("count"), .n_context_tokens = 512};
    n_lost_ids = 30;
    for (spec.index = 0; spec.index < 20; spec.index++) {
        eval_sample s = open_sample(t, &spec);
        look_at_budget(t, &spec, &s);
        eval_sample_close(&s);
    }
    n_lost_ids = 0;
    tokenizer_close(t);
}
END_TEST

START_TEST(a_text_of_more_tokens_than_counted_is_made_shorter)
{
    tokenizer *t = open_tokenizer();
    for (n_extra_ids = 1; n_extra_ids <= 40; n_extra_ids += 13) {
        eval_sample_spec spec = {.task = task_of("lookup"), .n_context_tokens = 512};
        for (spec.index = 0; spec.index < 20; spec.index++) {
            spec.n_distance_tokens = spec.index % 2 == 0 ? 0 : 300;
            eval_sample s = open_sample(t, &spec);
            look_at_budget(t, &spec, &s);
            if (spec.n_distance_tokens > 0) {
                ck_assert_uint_ge(s.n_distance_tokens, 300);
                ck_assert_uint_lt(s.n_distance_tokens, 316);
            }
            eval_sample_close(&s);
        }
    }
    n_extra_ids = 0;
    tokenizer_close(t);
}
END_TEST

/* ---- failing allocations ------------------------------------------------------------------------- */

static int n_until_failure = -1; /* allocations that still succeed; -1: all */

static bool fails_now(void)
{
    if (n_until_failure < 0) return false;
    return n_until_failure-- == 0;
}

void *__real_malloc(size_t bytes);
void *__wrap_malloc(size_t bytes);
void *__wrap_malloc(size_t bytes)
{
    return fails_now() ? NULL : __real_malloc(bytes);
}

void *__real_calloc(size_t n, size_t bytes);
void *__wrap_calloc(size_t n, size_t bytes);
void *__wrap_calloc(size_t n, size_t bytes)
{
    return fails_now() ? NULL : __real_calloc(n, bytes);
}

char *__real_strdup(const char *text);
char *__wrap_strdup(const char *text);
char *__wrap_strdup(const char *text)
{
    return fails_now() ? NULL : __real_strdup(text);
}

START_TEST(every_failed_allocation_is_an_error_and_no_leak)
{
    tokenizer *t = open_tokenizer();
    const eval_sample_spec spec = {.task = task_of("overwrite"), .n_context_tokens = 128};
    eval_sample s;
    int n_failures = 0;
    for (err_t err = ERR_NO_MEMORY; err != ERR_OK; n_failures++) {
        err_info info = {0};
        n_until_failure = n_failures;
        err = eval_sample_open(t, &spec, &s, &info);
        n_until_failure = -1;
        if (err == ERR_OK) break;
        ck_assert_int_eq(err, ERR_NO_MEMORY);
        ck_assert_int_eq(info.code, ERR_NO_MEMORY);
        ck_assert_ptr_null(s.prompt);
        ck_assert_ptr_null(s.answer);
        ck_assert_ptr_null(s.ids);
    }
    ck_assert_int_ge(n_failures, 20);
    eval_sample_close(&s);
    tokenizer_close(t);
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE(the_context_is_filled_up_to_one_sentence_and_never_exceeded),
    TEST_CASE(the_ids_are_those_of_the_prompt_alone_and_go_on_with_the_answer),
    TEST_CASE(every_sentence_is_a_fact_or_a_filler),
    TEST_CASE(an_asked_fact_lies_at_the_distance_that_was_asked_for),
    TEST_CASE(a_distance_moves_the_asked_fact_and_nothing_else),
    TEST_CASE(an_asked_fact_lies_anywhere_without_a_distance),
    TEST_CASE(other_tokenizers_keep_the_budget_or_say_what_they_need),
    TEST_CASE(a_text_of_fewer_tokens_than_counted_is_made_longer),
    TEST_CASE(a_text_of_more_tokens_than_counted_is_made_shorter),
    TEST_CASE(every_failed_allocation_is_an_error_and_no_leak),
    TEST_CASES_END};
