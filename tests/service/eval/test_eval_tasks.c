/* Promises of eval_tasks.h about what is said and asked. How it is put together: test_eval_passage.c. */
#include "service/eval/task_words.h"
#include "tests/service/eval/task_rig.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

START_TEST(the_passage_holds_one_answer_and_it_is_the_samples)
{
    static const uint32_t contexts[] = {128, 192, 320, 512, 1024, 0};
    for_each_sample(contexts, 60, check_answer);
}
END_TEST

START_TEST(the_passage_holds_one_answer_in_long_contexts_too)
{
    static const uint32_t contexts[] = {2048, 4096, 8192, 0};
    for_each_sample(contexts, 5, check_answer);
}
END_TEST

/* Every other fact that shares a word with the asked one is told from it by another. */
static void look_at_distractors(const tokenizer *t, const eval_sample_spec *spec,
                                const eval_sample *s)
{
    (void)t;
    const char *const task = eval_task_name(spec->task);
    reading *r = read_prompt(s->prompt);
    const question q = read_question(r->stem);
    const uint32_t n_of_person = n_facts_of(r, (key){NUMBER, q.person, NULL});
    const uint32_t n_of_thing = n_facts_of(r, (key){NUMBER, NULL, q.what});
    if (strcmp(task, "lookup") == 0) {
        ck_assert_uint_eq(n_of_person, 1);
        ck_assert_uint_eq(n_of_thing, 1);
        ck_assert_uint_ge(n_facts_of(r, (key){NUMBER, NULL, NULL}), 2);
    } else if (strcmp(task, "multi") == 0) {
        ck_assert_uint_ge(n_of_person, 2);
        ck_assert_uint_ge(n_of_thing, 2);
    } else if (strcmp(task, "overwrite") == 0) {
        ck_assert_uint_le(n_facts_of(r, (key){NUMBER_NOW, q.person, q.what}), 3);
        ck_assert_uint_ge(n_facts_of(r, (key){NUMBER, NULL, NULL}), 2); /* keys */
    } else if (strcmp(task, "chain") == 0) {
        ck_assert_uint_ge(n_facts_of(r, (key){FRIEND, NULL, NULL}), 2);
        ck_assert_uint_eq(n_facts_of(r, (key){OWN_NUMBER, q.person, NULL}), 0);
    } else {
        const uint32_t n = n_facts_of(r, (key){SAW, q.person, q.what});
        ck_assert_uint_ge(n, 1);
        ck_assert_uint_le(n, TASK_COUNT_MAX);
        ck_assert_uint_gt(n_facts_of(r, (key){SAW, q.person, NULL}), n);
        ck_assert_uint_gt(n_facts_of(r, (key){SAW, NULL, q.what}), n);
    }
    free(r);
}

START_TEST(the_asked_fact_has_the_tasks_distractors)
{
    static const uint32_t contexts[] = {128, 256, 2048, 0};
    for_each_sample(contexts, 20, look_at_distractors);
}
END_TEST

static void look_at_numbers(const tokenizer *t, const eval_sample_spec *spec, const eval_sample *s)
{
    (void)t;
    (void)spec;
    bool is_said[10000] = {false};
    reading *r = read_prompt(s->prompt);
    for (size_t i = 0; i < r->n_facts; i++) {
        const fact *f = &r->facts[i];
        if (f->kind != NUMBER && f->kind != NUMBER_NOW && f->kind != OWN_NUMBER) continue;
        ck_assert_uint_eq(strlen(f->value), TASK_DIGITS);
        bool *is = &is_said[strtoul(f->value, NULL, 10)];
        ck_assert_msg(!*is, "%s is said twice", f->value);
        *is = true;
    }
    free(r);
}

START_TEST(no_number_is_said_twice)
{
    static const uint32_t contexts[] = {4096, 0};
    for_each_sample(contexts, 12, look_at_numbers);
}
END_TEST

START_TEST(a_longer_context_holds_more_facts)
{
    tokenizer *t = open_tokenizer();
    for (size_t k = 0; eval_tasks[k] != NULL; k++) {
        size_t n_before = 0;
        for (uint32_t n_context = 512; n_context <= 2048; n_context *= 2) {
            eval_sample s = sample_of(t, eval_task_name(eval_tasks[k]), n_context, 0);
            reading *r = read_prompt(s.prompt);
            const size_t n = r->n_facts - n_facts_of(r, (key){FILLER, NULL, NULL});
            ck_assert_uint_ge(n, n_before + 1);
            ck_assert_uint_le(n, n_context / 64 + 6);
            n_before = n;
            free(r);
            eval_sample_close(&s);
        }
    }
    tokenizer_close(t);
}
END_TEST

static bool is_same(const eval_sample *a, const eval_sample *b)
{
    return a->n_ids == b->n_ids && a->n_answer_ids == b->n_answer_ids &&
           a->n_distance_tokens == b->n_distance_tokens && strcmp(a->prompt, b->prompt) == 0 &&
           strcmp(a->answer, b->answer) == 0 &&
           memcmp(a->ids, b->ids, (a->n_ids + a->n_answer_ids) * sizeof *a->ids) == 0;
}

START_TEST(a_sample_depends_on_its_spec_alone)
{
    tokenizer *t = open_tokenizer();
    for (size_t k = 0; eval_tasks[k] != NULL; k++) {
        const char *const name = eval_task_name(eval_tasks[k]);
        eval_sample first = sample_of(t, name, 512, 7);
        eval_sample between = sample_of(t, name, 300, 2);
        eval_sample again = sample_of(t, name, 512, 7);
        ck_assert(is_same(&first, &again));
        eval_sample_close(&first);
        eval_sample_close(&between);
        eval_sample_close(&again);
    }
    tokenizer_close(t);
}
END_TEST

START_TEST(seed_index_context_and_task_each_change_the_text)
{
    tokenizer *t = open_tokenizer();
    const eval_sample_spec spec = {.task = eval_tasks[0], .n_context_tokens = 512, .seed = 1};
    eval_sample_spec others[] = {spec, spec, spec, spec, spec};
    others[0].seed = 2;
    others[1].index = 1;
    others[2].index = UINT64_MAX;
    others[3].n_context_tokens = 513;
    others[4].task = eval_tasks[1];
    eval_sample s = open_sample(t, &spec);
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        eval_sample other = open_sample(t, &others[i]);
        ck_assert_int_ne(strncmp(s.prompt, other.prompt, 80), 0);
        ck_assert_str_ne(s.answer, other.answer);
        eval_sample_close(&other);
    }
    eval_sample_close(&s);
    tokenizer_close(t);
}
END_TEST

START_TEST(all_counts_are_asked_for_equally_often)
{
    tokenizer *t = open_tokenizer();
    uint32_t n_of[TASK_COUNT_MAX + 1] = {0};
    for (uint64_t i = 0; i < 300; i++) {
        eval_sample s = sample_of(t, "count", 128, i);
        n_of[strtoul(s.answer, NULL, 10)]++;
        eval_sample_close(&s);
    }
    ck_assert_uint_eq(n_of[0], 0);
    for (size_t n = 1; n <= TASK_COUNT_MAX; n++)
        ck_assert_uint_ge(n_of[n], 25); /* of 50 */
    tokenizer_close(t);
}
END_TEST

START_TEST(a_task_is_found_by_its_whole_name_only)
{
    static const char *const names[] = {"lookup", "multi", "chain", "overwrite", "count"};
    for (size_t k = 0; k < 5; k++) {
        ck_assert_ptr_eq(task_of(names[k]), eval_tasks[k]);
        ck_assert_str_eq(eval_task_name(eval_tasks[k]), names[k]);
        ck_assert_uint_gt(strlen(eval_task_help(eval_tasks[k])), 8);
        ck_assert_ptr_null(strchr(eval_task_help(eval_tasks[k]), '\n'));
        ck_assert_int_eq(eval_task_takes_distance(eval_tasks[k]), k < 2);
    }
    ck_assert_ptr_null(eval_tasks[5]);
    ck_assert_ptr_eq(eval_task_find("chain,count", 5), eval_tasks[2]);
    ck_assert_ptr_null(eval_task_find("look", 4));
    ck_assert_ptr_null(eval_task_find("lookups", 7));
    ck_assert_ptr_null(eval_task_find("", 0));
}
END_TEST

START_TEST(a_context_or_distance_that_cannot_be_met_names_its_limits)
{
    tokenizer *t = open_tokenizer();
    eval_sample_spec spec = {.task = task_of("lookup"), .n_context_tokens = 127};
    check_refused(t, &spec, "context: 127 is outside [128, 1048576]");
    spec.n_context_tokens = 0;
    check_refused(t, &spec, "context: 0 is outside");
    spec.n_context_tokens = UINT32_MAX;
    check_refused(t, &spec, "context: 4294967295 is outside");
    spec.n_context_tokens = 512;
    spec.n_distance_tokens = 31;
    check_refused(t, &spec, "distance: 31 is outside [32, 448] in a context of 512");
    spec.n_distance_tokens = 449;
    check_refused(t, &spec, "distance: 449 is outside");
    spec.task = task_of("chain");
    spec.n_distance_tokens = 64;
    check_refused(t, &spec, "distance: the task chain takes none");
    tokenizer_close(t);
}
END_TEST

static bool is_answered_by(const tokenizer *t, const eval_sample *s, const char *text)
{
    /* The question's last word stands before the text, so that it is cut as it would be drawn. */
    char behind[SENTENCE_BYTES];
    snprintf(behind, sizeof behind, "is%s", text);
    const size_t n_before = n_ids_of(t, "is", false);
    uint32_t *ids;
    size_t n;
    const tok_text whole = {.bytes = behind, .n_bytes = strlen(behind)};
    ck_assert_int_eq(tokenizer_encode(t, &whole, &ids, &n), ERR_OK);
    const bool is = eval_sample_is_answered(t, s, ids + n_before, (uint32_t)(n - n_before));
    free(ids);
    return is;
}

START_TEST(an_answer_is_right_up_to_its_full_stop)
{
    tokenizer *t = open_tokenizer();
    eval_sample s = sample_of(t, "lookup", 128, 0);
    strcpy(s.answer, " 4821.");
    ck_assert(is_answered_by(t, &s, " 4821."));
    ck_assert(is_answered_by(t, &s, " 4821. Anna saw a bird."));
    ck_assert(is_answered_by(t, &s, " 4821.\nThe friend"));
    ck_assert(!is_answered_by(t, &s, " 4821"));
    ck_assert(!is_answered_by(t, &s, " 4821 and"));
    ck_assert(!is_answered_by(t, &s, " 48211."));
    ck_assert(!is_answered_by(t, &s, " 4822."));
    ck_assert(!is_answered_by(t, &s, " now 4821."));
    ck_assert(!is_answered_by(t, &s, ""));
    eval_sample_close(&s);
    tokenizer_close(t);
}
END_TEST

START_TEST(the_samples_own_ids_answer_it_and_nothing_counts_behind_an_end)
{
    tokenizer *t = open_tokenizer();
    eval_sample s = sample_of(t, "chain", 256, 0);
    uint32_t drawn[64];
    ck_assert_uint_lt(s.n_answer_ids, 63);
    memcpy(drawn, s.ids + s.n_ids, s.n_answer_ids * sizeof *drawn);
    ck_assert(eval_sample_is_answered(t, &s, drawn, s.n_answer_ids));
    ck_assert(!eval_sample_is_answered(t, &s, drawn, s.n_answer_ids - 1));
    memmove(drawn + 4, drawn + 3, (s.n_answer_ids - 3) * sizeof *drawn);
    drawn[3] = (uint32_t)tokenizer_eos(t);
    ck_assert(!eval_sample_is_answered(t, &s, drawn, s.n_answer_ids + 1));
    eval_sample_close(&s);
    tokenizer_close(t);
}
END_TEST

/* ---- words --------------------------------------------------------------------------------------- */

/* Each word of the sentence, without punctuation, is one token behind a space. */
static void check_words(const tokenizer *t, const char *text)
{
    for (const char *word = text + strspn(text, " .,:"); *word != '\0';) {
        const size_t n_bytes = strcspn(word, " .,:");
        if (word[0] != '%') {
            uint32_t *ids;
            size_t n;
            const tok_text alone = {.bytes = word, .n_bytes = n_bytes};
            ck_assert_int_eq(tokenizer_encode(t, &alone, &ids, &n), ERR_OK);
            ck_assert_msg(n == 1, "%.*s has %zu tokens", (int)n_bytes, word, n);
            const tok_piece piece = tokenizer_piece(t, ids[0], false);
            ck_assert_uint_eq(piece.n_bytes, n_bytes + 1);
            ck_assert_int_eq(piece.bytes[0], ' ');
            free(ids);
        }
        word += n_bytes + strspn(word + n_bytes, " .,:");
    }
}

START_TEST(every_word_is_one_token_of_the_default_model)
{
    static const char *const texts[] = {
#define X(word) word,
        TASK_PEOPLE(X) TASK_THINGS(X) TASK_ANIMALS(X) TASK_WALKERS(X) TASK_PLACES(X)
            TASK_QUALITIES(X) TASK_FILLERS(X) TASK_NUMBER,
#undef X
        TASK_NUMBER_NOW,
        TASK_FRIEND,
        TASK_OWN_NUMBER,
        TASK_SAW,
        TASK_COUNT};
    tokenizer *t = open_tokenizer();
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        check_words(t, texts[i]);
    tokenizer_close(t);
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE(the_passage_holds_one_answer_and_it_is_the_samples),
    TEST_CASE(the_passage_holds_one_answer_in_long_contexts_too),
    TEST_CASE(the_asked_fact_has_the_tasks_distractors),
    TEST_CASE(no_number_is_said_twice),
    TEST_CASE(a_longer_context_holds_more_facts),
    TEST_CASE(a_sample_depends_on_its_spec_alone),
    TEST_CASE(seed_index_context_and_task_each_change_the_text),
    TEST_CASE(all_counts_are_asked_for_equally_often),
    TEST_CASE(a_task_is_found_by_its_whole_name_only),
    TEST_CASE(a_context_or_distance_that_cannot_be_met_names_its_limits),
    TEST_CASE(an_answer_is_right_up_to_its_full_stop),
    TEST_CASE(the_samples_own_ids_answer_it_and_nothing_counts_behind_an_end),
    TEST_CASE(every_word_is_one_token_of_the_default_model),
    TEST_CASES_END};
