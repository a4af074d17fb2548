/* generation_config.json: what is taken, what is refused, and what is named as ignored. */
#include "model/generation_config.h"
#include "tests/model/temp_dir.h"
#include "tests/test_main.h"

#include <string.h>

static err_t read_text(const char *text, generation_config *out, err_info *info)
{
    temp_dir dir;
    *info = (err_info){0};
    temp_dir_open(&dir);
    if (text != NULL) temp_write_text(&dir, "generation_config.json", text);
    const err_t err = generation_config_read(dir.path, out, info);
    temp_dir_close(&dir);
    return err;
}

static generation_config accept(const char *text)
{
    generation_config config;
    err_info info;
    if (read_text(text, &config, &info) != ERR_OK) ck_abort_msg("%s: %s", text, info.message);
    return config;
}

START_TEST(without_a_file_nothing_changes)
{
    for (int i = 0; i < 2; i++) {
        const generation_config c = accept(i == 0 ? NULL : "{\"eos_token_id\":[1,2]}");
        ck_assert(!c.has_any);
        ck_assert(c.temperature == 1 && c.top_p == 1 && c.min_p == 0 && c.repetition_penalty == 1);
        ck_assert_uint_eq(c.top_k, 0);
        ck_assert_uint_eq(c.n_output_max, UINT32_MAX);
        ck_assert_str_eq(c.ignored, "");
    }
}
END_TEST

START_TEST(the_keys_of_sampling_are_taken)
{
    const generation_config c = accept(
        "{\"do_sample\":true,\"temperature\":0.7,\"top_p\":0.9,\"top_k\":20,\"min_p\":0.05,"
        "\"repetition_penalty\":1.05,\"max_new_tokens\":100,\"transformers_version\":\"4\"}");
    ck_assert(c.has_any);
    ck_assert(c.temperature == 0.7f && c.top_p == 0.9f && c.min_p == 0.05f);
    ck_assert(c.repetition_penalty == 1.05f);
    ck_assert_uint_eq(c.top_k, 20);
    ck_assert_uint_eq(c.n_output_max, 100);
    ck_assert_str_eq(c.ignored, "");
    ck_assert_uint_eq(accept("{\"top_k\":-1}").top_k, 0);
    ck_assert(accept("{\"top_p\":null}").top_p == 1);
}
END_TEST

START_TEST(keys_that_are_not_applied_are_named)
{
    ck_assert_str_eq(accept("{\"num_beams\":1,\"length_penalty\":1.0,\"bad_words_ids\":[],"
                            "\"suppress_tokens\":null,\"no_repeat_ngram_size\":0}")
                         .ignored,
                     "");
    ck_assert_str_eq(
        accept("{\"num_beams\":4,\"suppress_tokens\":[5],\"forced_eos_token_id\":2}").ignored,
        "num_beams, forced_eos_token_id, suppress_tokens");
    ck_assert_str_eq(accept("{\"do_sample\":false}").ignored, "do_sample=false");
    ck_assert_str_eq(accept("{\"do_sample\":false,\"temperature\":0}").ignored, "");
}
END_TEST

START_TEST(values_that_no_request_may_say_are_refused)
{
    static const char *const texts[] = {"{\"temperature\":3}",
                                        "{\"temperature\":\"hot\"}",
                                        "{\"top_p\":1.5}",
                                        "{\"top_k\":1.5}",
                                        "{\"top_k\":-2}",
                                        "{\"min_p\":-1}",
                                        "{\"repetition_penalty\":0}",
                                        "{\"max_new_tokens\":0}",
                                        "{\"temperature\":",
                                        "{\"temperature\":1,\"temperature\":1}"};
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        generation_config c;
        err_info info;
        ck_assert_msg(read_text(texts[i], &c, &info) == ERR_BAD_MODEL, "%s", texts[i]);
        ck_assert_msg(strstr(info.message, "generation_config.json") != NULL, "%s", info.message);
    }
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE(without_a_file_nothing_changes),
    TEST_CASE(the_keys_of_sampling_are_taken),
    TEST_CASE(keys_that_are_not_applied_are_named),
    TEST_CASE(values_that_no_request_may_say_are_refused),
    TEST_CASES_END,
};
