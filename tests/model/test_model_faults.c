/* Allocation N fails, for N = 0, 1, 2 ... until nothing fails: no crash, no leak (the sanitizer presets
 * look), and the error is ERR_NO_MEMORY and says so. */
#include "model/model.h"
#include "model/sampler.h"
#include "model/tokenizer.h"
#include "tests/model/fail_alloc.h"
#include "tests/test_main.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

enum { N_MAX = 100000 };

/* Runs `attempt` under ever later failures. It returns ERR_OK or the error, and cleans up. */
static void fail_each(err_t (*attempt)(err_info *info))
{
    fail_alloc_hook_json();
    for (long n = 0; n < N_MAX; n++) {
        err_info info = {0};
        fail_alloc_start(n);
        const err_t err = attempt(&info);
        const bool has_failed = fail_alloc_stop();
        if (!has_failed) {
            ck_assert_msg(err == ERR_OK, "%s", info.message);
            ck_assert_int_gt(n, 1);
            return;
        }
        ck_assert_msg(err == ERR_NO_MEMORY, "allocation %ld: %s %s", n, err_name(err),
                      info.message);
        ck_assert(info.code == ERR_OK || info.code == ERR_NO_MEMORY);
    }
    ck_abort_msg("it never succeeded");
}

static dev *shared_dev;

static err_t try_model(const char *dir, model_load load, err_info *info)
{
    model *m;
    const model_options options = {.load = load, .n_step_tokens_max = 16, .check_values = true};
    const err_t err = model_open(shared_dev, dir, &options, &m, info);
    assert((m == NULL) == (err != ERR_OK)); /* ck_assert would allocate */
    model_close(m);
    return err;
}

static err_t try_single(err_info *info)
{
    return try_model("tests/golden/mixtral-base-f32", MODEL_LOAD_AUTO, info);
}

static err_t try_shards(err_info *info)
{
    return try_model("tests/golden/mixtral-sharded-f16", MODEL_LOAD_SAFETENSORS, info);
}

static err_t try_dummy(err_info *info)
{
    return try_model("tests/golden/mixtral-gqa-bf16", MODEL_LOAD_DUMMY, info);
}

START_TEST(a_model_opens_or_reports_no_memory)
{
    err_info info = {0};
    ck_assert(dev_open_cpu(&(dev_config){.isa = "auto", .n_threads = 2}, &shared_dev, &info) ==
              ERR_OK);
    fail_each(try_single);
    fail_each(try_shards);
    fail_each(try_dummy);
    dev_close(shared_dev);
}
END_TEST

static err_t try_tokenizer(err_info *info)
{
    tokenizer *t;
    const err_t err = tokenizer_open("tests/golden/tokenizer-bpe", &t, info);
    assert((t == NULL) == (err != ERR_OK));
    tokenizer_close(t);
    return err;
}

static tokenizer *shared_tokenizer;

static err_t try_text(err_info *info)
{
    static const char text[] = "The server keeps the attention weights in memory. \xf0\x9f\x98\x80";
    uint32_t *ids;
    size_t n_ids, n_bytes;
    char *back;
    (void)info;
    const tok_text source = {.bytes = text, .n_bytes = sizeof text - 1, .add_bos = true};
    TRY(tokenizer_encode(shared_tokenizer, &source, &ids, &n_ids));
    const err_t err = tokenizer_decode(shared_tokenizer, ids, n_ids, false, &back, &n_bytes);
    free(ids);
    TRY(err);
    assert(strcmp(back, text) == 0);
    free(back);
    return ERR_OK;
}

static err_t try_special_text(err_info *info)
{
    static const char text[] = "<s>The server</s>keeps the attention<s>weights in memory.</s>";
    uint32_t *ids;
    size_t n_ids;
    (void)info;
    const tok_text source = {.bytes = text, .n_bytes = sizeof text - 1, .parse_special = true};
    TRY(tokenizer_encode(shared_tokenizer, &source, &ids, &n_ids));
    assert(ids[n_ids - 1] == (uint32_t)tokenizer_eos(shared_tokenizer));
    free(ids);
    return ERR_OK;
}

/* C++ is spared: protobuf crashes when it destroys a half-built message, which is why the shim asks
 * for the memory beforehand. That question is counted, and can fail. */
START_TEST(a_tokenizer_opens_or_reports_no_memory)
{
    err_info info = {0};
    fail_alloc_spare_new(true);
    fail_each(try_tokenizer);
    ck_assert(tokenizer_open("tests/golden/tokenizer-bpe", &shared_tokenizer, &info) == ERR_OK);
    fail_each(try_text);
    fail_each(try_special_text);
    tokenizer_close(shared_tokenizer);
}
END_TEST

static const char *json_folder;

static err_t try_json(err_info *info)
{
    tokenizer *t;
    const err_t err = tokenizer_open(json_folder, &t, info);
    assert((t == NULL) == (err != ERR_OK));
    tokenizer_close(t);
    return err;
}

static err_t try_json_text(err_info *info)
{
    static const char text[] =
        " Gr\u00f6\u00dfe 42 a\u0301\u0316\u0301\u0316\u0301\u0316\u0301\u0316\u0301"
        "\u0316\u0301\u0316\u0301\u0316\u0301\u0316\u0301\u0316\u0301\u0316 ~~ qq<one> "
        "word \xf0\x9f\x98\x80";
    uint32_t *ids;
    size_t n_ids, n_bytes;
    char *back;
    (void)info;
    const tok_text source = {.bytes = text, .n_bytes = sizeof text - 1, .parse_special = true};
    TRY(tokenizer_encode(shared_tokenizer, &source, &ids, &n_ids));
    const err_t err = tokenizer_decode(shared_tokenizer, ids, n_ids, false, &back, &n_bytes);
    free(ids);
    TRY(err);
    free(back);
    return ERR_OK;
}

START_TEST(a_tokenizer_json_opens_or_reports_no_memory)
{
    static const char *const folders[] = {"tests/golden/tokenizer-json-odd",
                                          "tests/golden/tokenizer-json-lower"};
    for (int i = 0; i < 2; i++) {
        err_info info = {0};
        json_folder = folders[i];
        fail_each(try_json);
        ck_assert(tokenizer_open(json_folder, &shared_tokenizer, &info) == ERR_OK);
        fail_each(try_json_text);
        tokenizer_close(shared_tokenizer);
    }
}
END_TEST

START_TEST(a_sampler_state_opens_or_reports_no_memory)
{
    const sampler_params params = {.repetition_penalty = 1.1f};
    sampler_state *s;
    fail_alloc_start(0);
    const err_t err = sampler_state_open(&params, 100, &s);
    (void)fail_alloc_stop();
    ck_assert(err == ERR_NO_MEMORY);
    ck_assert_ptr_null(s);
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE_SECONDS(a_model_opens_or_reports_no_memory, 250),
    TEST_CASE_SECONDS(a_tokenizer_opens_or_reports_no_memory, 250),
    TEST_CASE_SECONDS(a_tokenizer_json_opens_or_reports_no_memory, 250),
    TEST_CASE(a_sampler_state_opens_or_reports_no_memory),
    TEST_CASES_END,
};
