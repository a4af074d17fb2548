/* The reader of POST /v1/completions: what it takes, and how exactly it refuses everything else. */
#include "base/hash.h"
#include "service/api_request.h"
#include "tests/test_main.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const names[] = {"story", "teller"};
static const kv_config kv = {.routing = (char *)(uintptr_t) "full",
                             .scheduling = (char *)(uintptr_t) "none",
                             .compression = (char *)(uintptr_t) "none",
                             .rewrite = (char *)(uintptr_t) "none"};
static const api_limits limits = {.n_vocab = 100,
                                  .n_logprobs_max = 5,
                                  .n_choices_max = 200,
                                  .model_names = names,
                                  .n_model_names = 2,
                                  .kv = &kv};

/* Parses from a heap copy of exact size, so that a sanitizer sees one byte of over-read. */
static bool parse_bytes(const char *body, size_t n, completion_request *out, api_error *error)
{
    char *copy = malloc(n > 0 ? n : 1);
    ck_assert_ptr_nonnull(copy);
    memcpy(copy, body, n);
    ck_assert_int_eq(hash_init(), ERR_OK);
    const bool is_ok = api_completion_parse(&limits, copy, n, out, error);
    free(copy);
    return is_ok;
}

static bool parse(const char *body, completion_request *out, api_error *error)
{
    *error = (api_error){0};
    return parse_bytes(body, strlen(body), out, error);
}

/* Parses {"prompt":"a", FIELDS}, which must be fine. */
static completion_request accept(const char *fields)
{
    char body[4096];
    completion_request request;
    api_error error;
    snprintf(body, sizeof body, "{\"prompt\":\"a\"%s%s}", *fields != '\0' ? "," : "", fields);
    if (!parse(body, &request, &error)) ck_abort_msg("%s: %s", fields, error.message);
    return request;
}

START_TEST(a_prompt_alone_gets_the_defaults_of_openai)
{
    completion_request r = accept("");
    ck_assert_uint_eq(r.n_prompts, 1);
    ck_assert_str_eq(r.prompts[0].text, "a");
    ck_assert_ptr_null(r.prompts[0].ids);
    ck_assert_uint_eq(r.n, 1);
    ck_assert_uint_eq(r.max_tokens, 16);
    ck_assert(!r.has_max_tokens && !r.echo && !r.stream && !r.has_seed && !r.ignore_eos);
    ck_assert(r.skip_special && r.add_special);
    ck_assert(r.sampling.temperature == 1.0f && r.sampling.top_p == 1.0f);
    ck_assert(r.sampling.repetition_penalty == 1.0f && r.sampling.min_p == 0.0f);
    ck_assert_uint_eq(r.sampling.top_k, 0);
    ck_assert_int_eq(r.sampling.n_logprobs, -1);
    api_completion_deinit(&r);
}
END_TEST

START_TEST(null_means_default_in_every_field)
{
    completion_request r = accept(
        "\"model\":null,\"max_tokens\":null,\"n\":null,\"best_of\":null,\"echo\":null,\"logprobs\":"
        "null,\"logit_bias\":null,\"presence_penalty\":null,\"frequency_penalty\":null,"
        "\"temperature\":null,\"top_p\":null,\"seed\":null,\"stop\":null,\"stream\":null,"
        "\"stream_options\":null,\"suffix\":null,\"user\":null,\"top_k\":null,\"min_p\":null,"
        "\"repetition_penalty\":null,\"stop_token_ids\":null,\"ignore_eos\":null,\"min_tokens\":"
        "null,"
        "\"cache_salt\":null,\"request_id\":null,\"response_format\":null,\"prompt_logprobs\":null,"
        "\"truncate_prompt_tokens\":null");
    ck_assert_uint_eq(r.max_tokens, 16);
    ck_assert(!r.has_max_tokens && !r.truncates);
    api_completion_deinit(&r);
}
END_TEST

START_TEST(every_field_is_read)
{
    completion_request r = accept(
        "\"model\":\"teller\",\"max_tokens\":7,\"min_tokens\":2,\"n\":3,\"best_of\":3,\"echo\":"
        "true,"
        "\"logprobs\":5,\"logit_bias\":{\"5\":-100,\"99\":1.5},\"presence_penalty\":-2,"
        "\"frequency_penalty\":2,\"temperature\":0.5,\"top_p\":0.25,\"seed\":-7,"
        "\"stop\":[\"x\",\"yz\"],\"stream\":true,\"stream_options\":{\"include_usage\":true,"
        "\"include_obfuscation\":false},\"suffix\":null,\"user\":\"u\",\"top_k\":16.0,\"min_p\":0."
        "5,"
        "\"repetition_penalty\":1.25,\"stop_token_ids\":[1,2],\"include_stop_str_in_output\":true,"
        "\"ignore_eos\":true,\"skip_special_tokens\":false,\"add_special_tokens\":false,"
        "\"return_token_ids\":true,\"return_tokens_as_token_ids\":true,"
        "\"truncate_prompt_tokens\":9,\"cache_salt\":\"s\",\"request_id\":\"req-1\",\"what\":[{}]");
    ck_assert(r.max_tokens == 7 && r.min_tokens == 2 && r.n == 3 && r.echo && r.has_max_tokens);
    ck_assert_int_eq(r.sampling.n_logprobs, 5);
    ck_assert_uint_eq(r.sampling.n_bias, 2);
    ck_assert(r.sampling.bias[0].token == 5 && r.sampling.bias[0].bias == -100.0f);
    ck_assert(r.sampling.bias[1].token == 99 && r.sampling.bias[1].bias == 1.5f);
    ck_assert(r.sampling.presence_penalty == -2.0f && r.sampling.frequency_penalty == 2.0f);
    ck_assert(r.sampling.temperature == 0.5f && r.sampling.top_p == 0.25f);
    ck_assert(r.has_seed && r.sampling.seed == (uint64_t)-7);
    ck_assert_uint_eq(r.n_stops, 2);
    ck_assert_str_eq(r.stops[1], "yz");
    ck_assert_uint_eq(r.stop_bytes[1], 2);
    ck_assert(r.stream && r.include_usage);
    ck_assert(r.sampling.top_k == 16 && r.sampling.min_p == 0.5f);
    ck_assert(r.sampling.repetition_penalty == 1.25f);
    ck_assert(r.n_stop_ids == 2 && r.stop_ids[1] == 2);
    ck_assert(r.include_stop && r.ignore_eos && !r.skip_special && !r.add_special);
    ck_assert(r.return_ids && r.tokens_as_ids);
    ck_assert(r.truncates && r.n_truncated == 9);
    ck_assert_str_eq(r.salt, "s");
    ck_assert_str_eq(r.request_id, "req-1");
    api_completion_deinit(&r);
}
END_TEST

START_TEST(a_prompt_has_four_forms)
{
    completion_request r;
    api_error error;
    ck_assert(parse("{\"prompt\":[\"a\",\"\",\"a\\u0000b\"]}", &r, &error));
    ck_assert_uint_eq(r.n_prompts, 3);
    ck_assert_uint_eq(r.prompts[1].text_bytes, 0);
    ck_assert_uint_eq(r.prompts[2].text_bytes, 3);
    ck_assert_mem_eq(r.prompts[2].text, "a\0b", 3);
    api_completion_deinit(&r);
    ck_assert(parse("{\"prompt\":[1,2.0,99]}", &r, &error));
    ck_assert_uint_eq(r.n_prompts, 1);
    ck_assert_uint_eq(r.prompts[0].n_ids, 3);
    ck_assert_uint_eq(r.prompts[0].ids[1], 2);
    ck_assert_ptr_null(r.prompts[0].text);
    api_completion_deinit(&r);
    ck_assert(parse("{\"prompt\":[[1],[2,3]]}", &r, &error));
    ck_assert_uint_eq(r.n_prompts, 2);
    ck_assert_uint_eq(r.prompts[1].n_ids, 2);
    ck_assert_uint_eq(r.prompts[1].ids[1], 3);
    api_completion_deinit(&r);
}
END_TEST

START_TEST(a_top_p_of_0_takes_the_likeliest_token)
{
    completion_request r = accept("\"top_p\":0");
    ck_assert(r.sampling.top_p == 1.0f && r.sampling.top_k == 1);
    api_completion_deinit(&r);
    r = accept("\"top_k\":-1");
    ck_assert_uint_eq(r.sampling.top_k, 0);
    api_completion_deinit(&r);
}
END_TEST

START_TEST(a_missing_seed_is_drawn_anew_each_time)
{
    completion_request a = accept(""), b = accept("\"seed\":-1"), c = accept("\"seed\":5");
    ck_assert(!a.has_seed && !b.has_seed && c.has_seed);
    ck_assert_uint_ne(a.sampling.seed, b.sampling.seed);
    ck_assert_uint_eq(c.sampling.seed, 5);
    api_completion_deinit(&a);
    api_completion_deinit(&b);
    api_completion_deinit(&c);
}
END_TEST

START_TEST(an_id_that_is_unsafe_in_a_header_is_dropped)
{
    completion_request r = accept("\"request_id\":\"a\\r\\nSet-Cookie: b\"");
    ck_assert_str_eq(r.request_id, "");
    api_completion_deinit(&r);
    r = accept("\"request_id\":17");
    ck_assert_str_eq(r.request_id, "");
    api_completion_deinit(&r);
}
END_TEST

typedef struct bad_case {
    const char *body;
    unsigned status;
    const char *param; /* NULL: null */
    const char *code;
    const char *message; /* the beginning of it */
} bad_case;

/* A body of {"prompt":"a", ...} with one bad field. */
#define FIELD(json, param, message)                              \
    {                                                            \
        "{\"prompt\":\"a\"," json "}", 400, param, NULL, message \
    }
#define LACKS(json, param)                                                        \
    {                                                                             \
        "{\"prompt\":\"a\"," json "}", 400, param, "unsupported_parameter", param \
    }

static const bad_case bad_cases[] = {
    {"", 400, NULL, NULL, "the body is not valid JSON: line 1 column 0: "},
    {"{", 400, NULL, NULL, "the body is not valid JSON"},
    {"[]", 400, NULL, NULL, "the body is not a JSON object"},
    {"{\"prompt\":\"a\"} x", 400, NULL, NULL, "the body is not valid JSON"},
    {"{\"prompt\":\"a\",\"prompt\":\"b\"}", 400, NULL, NULL, "the body is not valid JSON"},
    {"{\"prompt\":\"\xff\"}", 400, NULL, NULL, "the body is not valid JSON"},
    {"{\"prompt\":\"a\",\"n\":NaN}", 400, NULL, NULL, "the body is not valid JSON"},
    {"{\"prompt\":\"a\",\"seed\":9223372036854775808}", 400, NULL, NULL, "the body is not valid"},
    {"{}", 400, "prompt", NULL, "prompt: the field is required"},
    {"{\"prompt\":null}", 400, "prompt", NULL, "prompt: the field is required"},
    {"{\"prompt\":5}", 400, "prompt", NULL, "prompt: 5 is neither a string nor a list"},
    {"{\"prompt\":{}}", 400, "prompt", NULL, "prompt: {} is neither a string nor a list"},
    {"{\"prompt\":[]}", 400, "prompt", NULL, "prompt: the list is empty"},
    {"{\"prompt\":[[]]}", 400, "prompt", NULL, "prompt: a list of token ids is empty"},
    {"{\"prompt\":[\"a\",1]}", 400, "prompt", NULL, "prompt: 1 is not a string, as the first"},
    {"{\"prompt\":[[1],\"a\"]}", 400, "prompt", NULL, "prompt: \"a\" is not a list of token ids"},
    {"{\"prompt\":[1,\"a\"]}", 400, "prompt", NULL, "prompt: \"a\" is not an integer"},
    {"{\"prompt\":[100]}", 400, "prompt", NULL, "prompt: 100 is outside [0, 99]"},
    {"{\"prompt\":[-1]}", 400, "prompt", NULL, "prompt: -1 is outside [0, 99]"},
    {"{\"prompt\":[4294967297]}", 400, "prompt", NULL, "prompt: 4294967297 is outside [0, 99]"},
    {"{\"prompt\":[1.5]}", 400, "prompt", NULL, "prompt: 1.5 is not an integer"},
    {"{\"prompt\":[true]}", 400, "prompt", NULL, "prompt: true is not an integer"},
    {"{\"prompt\":\"a\",\"model\":\"gpt\"}", 404, "model", "model_not_found",
     "The model `gpt` does"},
    FIELD("\"model\":1", "model", "model: 1 is not a string"),
    FIELD("\"max_tokens\":-1", "max_tokens", "max_tokens: -1 is outside [0, 2147483647]"),
    FIELD("\"max_tokens\":\"5\"", "max_tokens", "max_tokens: \"5\" is not an integer"),
    FIELD("\"max_tokens\":1.5", "max_tokens", "max_tokens: 1.5 is not an integer"),
    FIELD("\"max_tokens\":1e300", "max_tokens", "max_tokens: 1e300 is not an integer"),
    FIELD("\"max_tokens\":1e12", "max_tokens", "max_tokens: 1e12 is outside"),
    FIELD("\"max_tokens\":5,\"min_tokens\":6", "min_tokens",
          "min_tokens: 6 is more than max_tokens"),
    FIELD("\"n\":0", "n", "n: 0 is outside [1, 128]"),
    FIELD("\"n\":129", "n", "n: 129 is outside [1, 128]"),
    FIELD("\"n\":1000000000", "n", "n: 1000000000 is outside [1, 128]"),
    FIELD("\"n\":true", "n", "n: true is not an integer"),
    FIELD("\"best_of\":2", "best_of", "best_of: 2 is neither 1 nor n (1)"),
    FIELD("\"best_of\":[]", "best_of", "best_of: [] is not an integer"),
    FIELD("\"echo\":1", "echo", "echo: 1 is not a boolean"),
    FIELD("\"logprobs\":6", "logprobs", "logprobs: 6 is outside [0, 5]"),
    FIELD("\"logprobs\":-1", "logprobs", "logprobs: -1 is outside [0, 5]"),
    FIELD("\"logprobs\":true", "logprobs", "logprobs: true is not an integer"),
    FIELD("\"logit_bias\":[]", "logit_bias", "logit_bias: [] is not an object"),
    FIELD("\"logit_bias\":{\"100\":1}", "logit_bias",
          "logit_bias: \"100\" is not a token id below"),
    FIELD("\"logit_bias\":{\"-1\":1}", "logit_bias", "logit_bias: \"-1\" is not a token id"),
    FIELD("\"logit_bias\":{\"01\":1}", "logit_bias", "logit_bias: \"01\" is not a token id"),
    FIELD("\"logit_bias\":{\"\":1}", "logit_bias", "logit_bias: \"\" is not a token id"),
    FIELD("\"logit_bias\":{\"99999999999999999999\":1}", "logit_bias", "logit_bias: \"9999"),
    FIELD("\"logit_bias\":{\"1\":101}", "logit_bias", "logit_bias: 101 is outside [-100, 100]"),
    FIELD("\"logit_bias\":{\"1\":\"x\"}", "logit_bias", "logit_bias: \"x\" is not a number"),
    FIELD("\"presence_penalty\":2.1", "presence_penalty",
          "presence_penalty: 2.1 is outside [-2, 2]"),
    FIELD("\"frequency_penalty\":-3", "frequency_penalty", "frequency_penalty: -3 is outside"),
    FIELD("\"repetition_penalty\":0", "repetition_penalty", "repetition_penalty: 0 is outside (0"),
    FIELD("\"repetition_penalty\":1e-60", "repetition_penalty", "repetition_penalty: 1e-60 is"),
    FIELD("\"temperature\":2.01", "temperature", "temperature: 2.01 is outside [0, 2]"),
    FIELD("\"temperature\":-0.1", "temperature", "temperature: -0.1 is outside [0, 2]"),
    FIELD("\"temperature\":\"hot\"", "temperature", "temperature: \"hot\" is not a number"),
    FIELD("\"top_p\":1.01", "top_p", "top_p: 1.01 is outside [0, 1]"),
    FIELD("\"min_p\":-1", "min_p", "min_p: -1 is outside [0, 1]"),
    FIELD("\"top_k\":1.5", "top_k", "top_k: 1.5 is not an integer"),
    FIELD("\"top_k\":-2", "top_k", "top_k: -2 is outside [-1, 2147483647]"),
    FIELD("\"seed\":\"x\"", "seed", "seed: \"x\" is not an integer"),
    FIELD("\"seed\":1.5", "seed", "seed: 1.5 is not an integer"),
    FIELD("\"stop\":\"\"", "stop", "stop: a stop string is empty"),
    FIELD("\"stop\":[\"\"]", "stop", "stop: a stop string is empty"),
    FIELD("\"stop\":5", "stop", "stop: 5 is neither a string nor a list of strings"),
    FIELD("\"stop\":[1]", "stop", "stop: 1 is not a string"),
    FIELD("\"stop_token_ids\":1", "stop_token_ids", "stop_token_ids: 1 is not a list"),
    FIELD("\"stop_token_ids\":[100]", "stop_token_ids", "stop_token_ids: 100 is outside [0, 99]"),
    FIELD("\"stream\":\"yes\"", "stream", "stream: \"yes\" is not a boolean"),
    FIELD("\"stream_options\":{}", "stream_options", "stream_options is only allowed when stream"),
    FIELD("\"stream\":true,\"stream_options\":1", "stream_options", "stream_options: 1 is not an"),
    FIELD("\"stream\":true,\"stream_options\":{\"include_usage\":1}", "stream_options",
          "stream_options: 1 (include_usage) is not a boolean"),
    FIELD("\"truncate_prompt_tokens\":0", "truncate_prompt_tokens",
          "truncate_prompt_tokens: 0 is neither -1 nor positive"),
    FIELD("\"truncate_prompt_tokens\":-2", "truncate_prompt_tokens",
          "truncate_prompt_tokens: -2 is outside [-1, 2147483647]"),
    FIELD("\"cache_salt\":\"\"", "cache_salt", "cache_salt: the text is empty"),
    FIELD("\"cache_salt\":1", "cache_salt", "cache_salt: 1 is not a string"),
    FIELD("\"ignore_eos\":0", "ignore_eos", "ignore_eos: 0 is not a boolean"),
    LACKS("\"suffix\":\"b\"", "suffix"),
    LACKS("\"suffix\":\"\"", "suffix"),
    LACKS("\"prompt_logprobs\":0", "prompt_logprobs"),
    LACKS("\"use_beam_search\":true", "use_beam_search"),
    LACKS("\"allowed_token_ids\":[1]", "allowed_token_ids"),
    LACKS("\"guided_regex\":\"a*\"", "guided_regex"),
    LACKS("\"response_format\":{\"type\":\"json_object\"}", "response_format"),
    LACKS("\"response_format\":5", "response_format"),
};

START_TEST(a_bad_value_is_refused_by_name_value_and_limit)
{
    for (size_t i = 0; i < sizeof bad_cases / sizeof bad_cases[0]; i++) {
        const bad_case *c = &bad_cases[i];
        completion_request r;
        api_error error;
        if (parse(c->body, &r, &error)) ck_abort_msg("accepted: %s", c->body);
        if (strncmp(error.message, c->message, strlen(c->message)) != 0) {
            ck_abort_msg("%s: \"%s\" does not begin with \"%s\"", c->body, error.message,
                         c->message);
        }
        ck_assert_msg(error.status == c->status, "%s: status %u", c->body, error.status);
        ck_assert_str_eq(error.type, "invalid_request_error");
        ck_assert_pstr_eq(error.param, c->param);
        ck_assert_pstr_eq(error.code, c->code);
        ck_assert_ptr_null(r.prompts);
    }
}
END_TEST

START_TEST(empty_forms_of_unsupported_options_are_accepted)
{
    completion_request r =
        accept("\"bad_words\":[],\"use_beam_search\":false,\"structured_outputs\":"
               "{},\"response_format\":{\"type\":\"text\"}");
    api_completion_deinit(&r);
}
END_TEST

/* Appends `n` copies of `piece` between `head` and `tail`. */
static char *repeat(const char *head, const char *piece, size_t n, const char *tail)
{
    const size_t bytes = strlen(head) + n * strlen(piece) + strlen(tail) + 1;
    char *text = malloc(bytes);
    ck_assert_ptr_nonnull(text);
    char *end = stpcpy(text, head);
    for (size_t i = 0; i < n; i++)
        end = stpcpy(end, piece);
    stpcpy(end, tail);
    return text;
}

START_TEST(lists_have_caps)
{
    static const struct {
        const char *head, *piece, *tail, *message;
        size_t n;
    } cases[] = {
        {"{\"prompt\":[", "\"a\",", "\"a\"]}", "prompt: 201 prompts are more than 200", 200},
        {"{\"prompt\":[[1]", ",[1]", "]}", "prompt: 201 prompts are more than 200", 200},
        {"{\"n\":2,\"prompt\":[\"a\"", ",\"a\"", "]}", "n (2) times the number of prompts (101)",
         100},
        {"{\"prompt\":\"a\",\"stop\":[\"a\"", ",\"a\"", "]}", "stop: 17 strings are more than 16",
         16},
        {"{\"prompt\":\"a\",\"stop\":[\"a\"", ",\"a\"", "]}", "stop: 100001 strings", 100000},
        {"{\"prompt\":\"a\",\"stop\":\"", "a", "\"}", "stop: \"aaaa", 1025},
        {"{\"prompt\":\"a\",\"stop_token_ids\":[1", ",1", "]}", "stop_token_ids: 65 ids are", 64},
        {"{\"prompt\":\"a\",\"cache_salt\":\"", "a", "\"}", "cache_salt: \"aaaa", 4097},
        {"{\"prompt\":", "[", "", "the body is not valid JSON", 3000},
        {"{\"prompt\":[", "[],", "[]]}", "the body holds more than", 20000},
        {"{\"prompt\":[", "1,", "1]}", "the body holds more than", 2200000},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        completion_request r;
        api_error error;
        char *body = repeat(cases[i].head, cases[i].piece, cases[i].n, cases[i].tail);
        ck_assert(!parse(body, &r, &error));
        ck_assert_uint_eq(error.status, 400);
        if (strncmp(error.message, cases[i].message, strlen(cases[i].message)) != 0) {
            ck_abort_msg("\"%s\" is not \"%s\"", error.message, cases[i].message);
        }
        free(body);
    }
}
END_TEST

START_TEST(too_many_biases_are_refused)
{
    char *body = malloc(64 * 1024);
    ck_assert_ptr_nonnull(body);
    char *end = stpcpy(body, "{\"prompt\":\"a\",\"logit_bias\":{\"0\":1");
    for (int i = 1; i < 1025; i++)
        end += sprintf(end, ",\"%d\":1", i);
    stpcpy(end, "}}");
    completion_request r;
    api_error error;
    ck_assert(!parse(body, &r, &error));
    ck_assert_str_eq(error.message, "logit_bias: 1025 entries are more than 1024");
    free(body);
}
END_TEST

/* Whatever was sent, an error stays small and is itself valid. */
START_TEST(an_error_never_grows_with_its_input)
{
    static const char *const pieces[] = {"x",    "\\u0001", "\xc3\xa4", "\xf0\x9f\x98\x80",
                                         "\\\\", "\\\""};
    for (size_t i = 0; i < sizeof pieces / sizeof pieces[0]; i++) {
        char body_out[API_ERROR_BODY_BYTES];
        completion_request r;
        api_error error;
        char *body = repeat("{\"prompt\":\"a\",\"n\":\"", pieces[i], 100000, "\"}");
        ck_assert(!parse(body, &r, &error));
        ck_assert_uint_le(strlen(error.message), API_MESSAGE_BYTES);
        const size_t n = api_error_write(&error, body_out);
        ck_assert_uint_lt(n, API_ERROR_BODY_BYTES);
        ck_assert_uint_eq(n, strlen(body_out));
        ck_assert_ptr_nonnull(strstr(body_out, "... is not an integer"));
        free(body);
        body = repeat("{\"prompt\":\"a\",\"model\":\"", pieces[i], 500, "\"}");
        ck_assert(!parse(body, &r, &error));
        ck_assert_uint_lt(api_error_write(&error, body_out), API_ERROR_BODY_BYTES);
        ck_assert_ptr_null(strstr(body_out, "out_of_memory"));
        free(body);
    }
}
END_TEST

START_TEST(an_error_has_its_four_keys)
{
    char body[API_ERROR_BODY_BYTES];
    api_error error = {0};
    ck_assert(!api_refuse(&error, API_FAULT_REQUEST, "n", "n: \"%s\"", "\x01q"));
    ck_assert(!api_refuse(&error, API_FAULT_ENGINE, NULL, "later failures do not count"));
    api_error_write(&error, body);
    ck_assert_str_eq(body,
                     "{\"error\":{\"message\":\"n: \\\"?q\\\"\",\"type\":\"invalid_request_error\","
                     "\"param\":\"n\",\"code\":null}}");
}
END_TEST

const test_case test_cases[] = {TEST_CASE(a_prompt_alone_gets_the_defaults_of_openai),
                                TEST_CASE(null_means_default_in_every_field),
                                TEST_CASE(every_field_is_read),
                                TEST_CASE(a_prompt_has_four_forms),
                                TEST_CASE(a_top_p_of_0_takes_the_likeliest_token),
                                TEST_CASE(a_missing_seed_is_drawn_anew_each_time),
                                TEST_CASE(an_id_that_is_unsafe_in_a_header_is_dropped),
                                TEST_CASE(a_bad_value_is_refused_by_name_value_and_limit),
                                TEST_CASE(empty_forms_of_unsupported_options_are_accepted),
                                TEST_CASE(lists_have_caps),
                                TEST_CASE(too_many_biases_are_refused),
                                TEST_CASE(an_error_never_grows_with_its_input),
                                TEST_CASE(an_error_has_its_four_keys),
                                TEST_CASES_END};
