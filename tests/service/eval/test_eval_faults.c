/* Allocation N fails, for N = 0, 1, 2 ... until none does: ERR_NO_MEMORY, nothing open, no leak (the
 * sanitizer presets look). C++ is spared, as in tests/model/test_model_faults.c. */
#include "service/eval/eval_against.h"
#include "service/eval/eval_encode.h"
#include "service/eval/eval_text.h"
#include "tests/model/fail_alloc.h"
#include "tests/service/eval/eval_rig.h"
#include "tests/test_main.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

enum { N_MAX = 100000 };

static eval_rig rig; /* each test is a process of its own */
static tokenizer *words;

static void fail_each(err_t (*attempt)(err_info *info), long n_least)
{
    fail_alloc_hook_json();
    fail_alloc_spare_new(true);
    for (long n = 0; n < N_MAX; n++) {
        err_info info = {0};
        fail_alloc_start(n);
        const err_t err = attempt(&info);
        if (!fail_alloc_stop()) {
            ck_assert_msg(err == ERR_OK, "%s", info.message);
            ck_assert_int_ge(n, n_least);
            return;
        }
        ck_assert_msg(err == ERR_NO_MEMORY, "allocation %ld: %s %s", n, err_name(err),
                      info.message);
        ck_assert_int_eq(info.code, ERR_NO_MEMORY);
    }
    ck_abort_msg("it never succeeded");
}

/* Closing the cache asserts that no sequence is left open. */
static err_t try_run(err_info *info)
{
    uint32_t tokens[40], drawn[5];
    fill_tokens(&rig, 0, 40, tokens);
    eval_job jobs[] = {{.tokens = tokens, .n_tokens = 40, .n_prompt = 20},
                       {.tokens = tokens, .n_tokens = 9, .n_prompt = 9, .n_new = 5, .drawn = drawn},
                       {.tokens = tokens, .n_tokens = 30, .n_prompt = 3}};
    eval_run *r;
    const err_t opened = eval_run_open(&rig.options, &r, info);
    assert((r == NULL) == (opened != ERR_OK)); /* ck_assert would allocate */
    TRY(opened);
    const err_t err = eval_run_jobs(r, jobs, 3, info);
    assert(err != ERR_OK || jobs[2].is_done);
    eval_run_close(r);
    return err;
}

START_TEST(jobs_run_or_report_no_memory)
{
    eval_rig_open("tests/golden/mixtral-base-f32", &rig);
    rig.options.n_seqs_max = 2;
    fail_each(try_run, 10);
    eval_rig_close(&rig);
}
END_TEST

static err_t try_windows(err_info *info)
{
    static const char text[] = "The old house was dark.\nAnna went home and found it so.\n";
    eval_windows w;
    const eval_text_options options = {.text = text, .n_bytes = sizeof text - 1, .window = 8};
    const err_t err = eval_windows_open(words, &options, &w, info);
    assert((w.jobs == NULL) == (err != ERR_OK));
    eval_windows_close(&w);
    return err;
}

static err_t try_pieces(err_info *info)
{
    static const char text[] = "The old house was dark.\nAnna went home and found it so.\n";
    uint32_t *ids;
    size_t n_ids;
    const eval_encode_options options = {
        .text = text, .n_bytes = sizeof text - 1, .piece_bytes = 1};
    const err_t err = eval_encode(words, &options, &ids, &n_ids);
    assert((ids == NULL) == (err != ERR_OK));
    free(ids);
    return err == ERR_OK ? ERR_OK : err_set(info, err, "%s", err_sentence(err));
}

START_TEST(a_text_is_cut_or_reports_no_memory)
{
    ck_assert_int_eq(tokenizer_open("models/storyteller", &words, NULL), ERR_OK);
    fail_each(try_windows, 4);
    fail_each(try_pieces, 6);
    tokenizer_close(words);
}
END_TEST

static err_t try_against(err_info *info)
{
    eval_against_result result;
    const err_t err = eval_against(
        &rig.options, "tests/golden/mixtral-base-f32/reference.safetensors", &result, info);
    assert((result.n_rows > 0) == (err == ERR_OK));
    return err;
}

START_TEST(a_reference_is_compared_or_reports_no_memory)
{
    eval_rig_open("tests/golden/mixtral-base-f32", &rig);
    fail_each(try_against, 20);
    eval_rig_close(&rig);
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE_SECONDS(jobs_run_or_report_no_memory, 250),
    TEST_CASE_SECONDS(a_text_is_cut_or_reports_no_memory, 250),
    TEST_CASE_SECONDS(a_reference_is_compared_or_reports_no_memory, 250),
    TEST_CASES_END,
};
