/* The reader of POST /v1/chat/completions. */
#include "base/hash.h"
#include "service/api_request.h"
#include "tests/test_main.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const names[] = {"teller"};
static const kv_config kv = {.routing = (char *)(uintptr_t) "full",
                             .scheduling = (char *)(uintptr_t) "none",
                             .compression = (char *)(uintptr_t) "none",
                             .rewrite = (char *)(uintptr_t) "none"};
static const api_limits limits = {.n_vocab = 100,
                                  .n_logprobs_max = 5,
                                  .n_choices_max = 20,
                                  .model_names = names,
                                  .n_model_names = 1,
                                  .kv = &kv};

/* From a heap copy of exact size, so that a sanitizer sees one byte of over-read. */
static bool parse(const api_limits *by, const char *body, completion_request *out, api_error *error)
{
    const size_t n = strlen(body);
    char *copy = malloc(n);
    ck_assert_ptr_nonnull(copy);
    memcpy(copy, body, n);
    *error = (api_error){0};
    ck_assert_int_eq(hash_init(), ERR_OK);
    const bool is_ok = api_chat_parse(by, copy, n, out, error);
    free(copy);
    return is_ok;
}

static completion_request accept_body(const char *body)
{
    completion_request request;
    api_error error;
    if (!parse(&limits, body, &request, &error)) ck_abort_msg("%s: %s", body, error.message);
    return request;
}

#define USER "{\"role\":\"user\",\"content\":\"hi\"}"

/* {"messages":[a user's], FIELDS}, which must be fine. */
static completion_request accept(const char *fields)
{
    char body[4096];
    snprintf(body, sizeof body, "{\"messages\":[" USER "]%s%s}", *fields != '\0' ? "," : "",
             fields);
    return accept_body(body);
}

/* What a template would see. */
static void check_variables(const char *body, const char *expected)
{
    completion_request r = accept_body(body);
    char *text = json_dumps(r.chat.variables, JSON_COMPACT);
    ck_assert_str_eq(text, expected);
    free(text);
    api_completion_deinit(&r);
}

START_TEST(messages_alone_get_the_defaults_of_a_chat)
{
    completion_request r = accept("");
    ck_assert_uint_eq(r.n_prompts, 1);
    ck_assert_ptr_null(r.prompts[0].text);
    ck_assert_uint_eq(r.max_tokens, API_TOKENS_MAX);
    ck_assert(!r.has_max_tokens && !r.echo && !r.add_special && r.skip_special);
    ck_assert(!r.chat.echo && !r.chat.continues);
    ck_assert_str_eq(r.chat.role, "assistant");
    ck_assert_int_eq(r.sampling.n_logprobs, -1);
    ck_assert(r.sampling.temperature == 1 && r.sampling.top_p == 1);
    api_completion_deinit(&r);
}
END_TEST

START_TEST(the_newer_name_of_max_tokens_wins)
{
    completion_request r = accept("\"max_tokens\":9,\"max_completion_tokens\":4");
    ck_assert_uint_eq(r.max_tokens, 4);
    ck_assert(r.has_max_tokens);
    api_completion_deinit(&r);
    r = accept("\"max_tokens\":9,\"max_completion_tokens\":null");
    ck_assert_uint_eq(r.max_tokens, 9);
    api_completion_deinit(&r);
}
END_TEST

START_TEST(logprobs_are_two_fields)
{
    completion_request r = accept("\"logprobs\":true");
    ck_assert_int_eq(r.sampling.n_logprobs, 0);
    api_completion_deinit(&r);
    r = accept("\"logprobs\":true,\"top_logprobs\":5");
    ck_assert_int_eq(r.sampling.n_logprobs, 5);
    api_completion_deinit(&r);
    r = accept("\"logprobs\":false,\"top_logprobs\":0");
    ck_assert_int_eq(r.sampling.n_logprobs, -1);
    api_completion_deinit(&r);
}
END_TEST

START_TEST(fields_of_completions_are_the_same_here)
{
    completion_request r = accept(
        "\"model\":\"teller\",\"n\":3,\"temperature\":0.5,\"top_k\":7,\"seed\":1,\"stop\":[\"a\"],"
        "\"stream\":true,\"stream_options\":{\"include_usage\":true},\"logit_bias\":{\"3\":1},"
        "\"kv\":{},\"cache_salt\":\"s\",\"ignore_eos\":true,\"return_token_ids\":true,"
        "\"min_tokens\":2,\"user\":\"me\",\"response_format\":{\"type\":\"text\"},"
        "\"modalities\":[\"text\"]");
    ck_assert_uint_eq(r.n, 3);
    ck_assert(r.sampling.temperature == 0.5f && r.sampling.top_k == 7 && r.has_seed);
    ck_assert(r.n_stops == 1 && r.stream && r.include_usage && r.sampling.n_bias == 1);
    ck_assert(r.has_kv && r.salt_bytes == 1 && r.ignore_eos && r.return_ids && r.min_tokens == 2);
    api_completion_deinit(&r);
}
END_TEST

START_TEST(a_template_sees_what_was_understood)
{
    check_variables("{\"messages\":[{\"role\":\"system\",\"content\":\"be\",\"evil\":1}," USER "]}",
                    "{\"tools\":null,\"documents\":null,\"messages\":[{\"role\":\"system\","
                    "\"content\":\"be\"}," USER "],\"add_generation_prompt\":true}");
    check_variables(
        "{\"messages\":[{\"role\":\"user\",\"name\":\"Al\",\"content\":[{\"type\":\"text\","
        "\"text\":"
        "\"a\"},{\"type\":\"text\",\"text\":\"b\"}]}],\"chat_template_kwargs\":{\"think\":false},"
        "\"reasoning_effort\":\"low\",\"documents\":[{\"text\":\"d\"}],"
        "\"add_generation_prompt\":false}",
        "{\"tools\":null,\"documents\":[{\"text\":\"d\"}],\"messages\":[{\"role\":\"user\","
        "\"content\":\"a\\nb\",\"name\":\"Al\"}],\"add_generation_prompt\":false,"
        "\"reasoning_effort\":\"low\",\"think\":false}");
}
END_TEST

START_TEST(contents_have_the_form_that_the_template_wants)
{
#define PART(text) "{\"type\":\"text\",\"text\":\"" text "\"}"
    static const struct {
        const char *sent, *seen[3]; /* by chat_content */
    } cases[] = {
        {"\"a\"", {"\"a\"", "\"a\"", "[" PART("a") "]"}},
        {"[{\"type\":\"text\",\"text\":\"a\",\"cache_control\":1}," PART("b") "]",
         {"\"a\\nb\"", "[" PART("a") "," PART("b") "]", "[" PART("a") "," PART("b") "]"}},
        {"[]", {"\"\"", "[]", "[]"}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        for (int form = 0; form < 3; form++) {
            char body[256];
            completion_request r;
            api_error error;
            api_limits by = limits;
            by.content = (chat_content)form;
            snprintf(body, sizeof body, "{\"messages\":[{\"role\":\"user\",\"content\":%s}]}",
                     cases[i].sent);
            ck_assert_msg(parse(&by, body, &r, &error), "%s", error.message);
            const json_t *content = json_object_get(
                json_array_get(json_object_get(r.chat.variables, "messages"), 0), "content");
            char *text = json_dumps(content, JSON_COMPACT | JSON_ENCODE_ANY);
            ck_assert_str_eq(text, cases[i].seen[form]);
            free(text);
            api_completion_deinit(&r);
        }
    }
}
END_TEST

/* What is echoed is the whole content, what the prompt ends behind its last part. */
START_TEST(a_message_of_parts_can_be_continued)
{
    for (int form = 0; form < 3; form++) {
        completion_request r;
        api_error error;
        api_limits by = limits;
        by.content = (chat_content)form;
        ck_assert(parse(&by,
                        "{\"messages\":[{\"role\":\"assistant\",\"content\":[" PART("one") "," PART(
                            "two!") "]}],\"continue_final_message\":true}",
                        &r, &error));
        ck_assert_str_eq(r.chat.last, "one\ntwo!");
        ck_assert_uint_eq(r.chat.last_bytes, 8);
        ck_assert_uint_eq(r.chat.tail_bytes, form == CHAT_CONTENT_TEXTS ? 8 : 4);
        api_completion_deinit(&r);
    }
}
END_TEST

START_TEST(tools_are_for_the_template_and_for_a_parser)
{
#define TOOL "{\"type\":\"function\",\"function\":{\"name\":\"f\",\"x\":[1]}}"
    static const struct {
        const char *fields;
        bool has_tools, one_call;
    } cases[] = {
        {"\"tools\":[" TOOL "]", true, false},
        {"\"tools\":[" TOOL "],\"tool_choice\":\"auto\",\"parallel_tool_calls\":false", true, true},
        {"\"tools\":[" TOOL "],\"tool_choice\":\"none\"", false, false},
        {"\"tools\":[],\"parallel_tool_calls\":true", false, false}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char body[512];
        completion_request r;
        api_error error;
        api_limits by = limits;
        by.tools = tool_find_parser("mistral"); /* whose marks are special tokens */
        snprintf(body, sizeof body, "{\"messages\":[" USER "],%s}", cases[i].fields);
        ck_assert_msg(parse(&by, body, &r, &error), "%s", error.message);
        char *text =
            json_dumps(json_object_get(r.chat.variables, "tools"), JSON_COMPACT | JSON_ENCODE_ANY);
        ck_assert_str_eq(text, cases[i].has_tools ? "[" TOOL "]" : "null");
        ck_assert((r.chat.tools != NULL) == cases[i].has_tools);
        ck_assert(r.chat.one_call == cases[i].one_call);
        ck_assert(r.hide_eos == cases[i].has_tools && r.skip_special == !cases[i].has_tools);
        free(text);
        api_completion_deinit(&r);
    }
}
END_TEST

/* Expected: transformers' _alias_reasoning_fields, but for the order of keys. */
START_TEST(reasoning_has_the_names_that_templates_read)
{
    static const struct {
        const char *sent, *seen;
    } cases[] = {
        {"\"reasoning\":\"r\"",
         "\"reasoning\":\"r\",\"reasoning_content\":\"r\",\"thinking\":\"r\""},
        {"\"thinking\":\"t\"", "\"thinking\":\"t\",\"reasoning_content\":\"t\""},
        {"\"thinking\":\"t\",\"reasoning_content\":\"c\"",
         "\"reasoning_content\":\"c\",\"thinking\":\"t\""},
        {"\"reasoning\":null", NULL},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char body[256], expected[512];
        (void)snprintf(body, sizeof body,
                       "{\"messages\":[{\"role\":\"assistant\",\"content\":\"c\",%s}]}",
                       cases[i].sent);
        (void)snprintf(expected, sizeof expected,
                       "{\"tools\":null,\"documents\":null,\"messages\":[{\"role\":\"assistant\","
                       "\"content\":\"c\"%s%s}],\"add_generation_prompt\":true}",
                       cases[i].seen != NULL ? "," : "",
                       cases[i].seen != NULL ? cases[i].seen : "");
        check_variables(body, expected);
    }
}
END_TEST

START_TEST(calls_of_earlier_turns_have_their_arguments_parsed)
{
    check_variables(
        "{\"messages\":[" USER ",{\"role\":\"assistant\",\"content\":null,\"tool_calls\":[{\"id\":"
        "\"c1\",\"type\":\"function\",\"function\":{\"name\":\"f\",\"arguments\":\"{\\\"x\\\":1}\"}"
        "}]},{\"role\":\"tool\",\"tool_call_id\":\"c1\",\"content\":\"2\"}],\"tools\":[{}],"
        "\"tool_choice\":\"none\"}",
        "{\"tools\":null,\"documents\":null,\"messages\":[" USER ",{\"role\":\"assistant\","
        "\"content\":\"\",\"tool_calls\":[{\"type\":\"function\",\"function\":{\"name\":\"f\","
        "\"arguments\":{\"x\":1}},\"id\":\"c1\"}]},{\"role\":\"tool\",\"content\":\"2\","
        "\"tool_call_id\":\"c1\"}],\"add_generation_prompt\":true}");
}
END_TEST

START_TEST(a_message_can_be_continued_or_echoed)
{
    completion_request r =
        accept_body("{\"messages\":[" USER ",{\"role\":\"assistant\",\"content\":\"yes \"}],"
                    "\"continue_final_message\":true,\"echo\":true}");
    ck_assert(r.chat.continues && r.chat.echo && !r.echo);
    ck_assert_str_eq(r.chat.role, "assistant");
    ck_assert_str_eq(r.chat.last, "yes ");
    api_completion_deinit(&r);
    r = accept("\"echo\":true"); /* the last message is another's */
    ck_assert(!r.chat.echo);
    ck_assert_ptr_null(r.chat.last);
    api_completion_deinit(&r);
    r = accept("\"echo\":true,\"add_generation_prompt\":false");
    ck_assert(r.chat.echo);
    ck_assert_str_eq(r.chat.role, "user");
    api_completion_deinit(&r);
}
END_TEST

START_TEST(a_models_generation_config_has_the_defaults)
{
    const generation_config generation = {.temperature = 0.5f,
                                          .top_p = 0.25f,
                                          .min_p = 0.125f,
                                          .repetition_penalty = 2,
                                          .top_k = 9,
                                          .n_output_max = 50};
    api_limits by = limits;
    by.generation = &generation;
    completion_request r;
    api_error error;
    ck_assert(parse(&by, "{\"messages\":[" USER "]}", &r, &error));
    ck_assert(r.sampling.temperature == 0.5f && r.sampling.top_p == 0.25f);
    ck_assert(r.sampling.min_p == 0.125f && r.sampling.repetition_penalty == 2);
    ck_assert(r.sampling.top_k == 9 && r.max_tokens == 50 && !r.has_max_tokens);
    api_completion_deinit(&r);
    ck_assert(parse(&by,
                    "{\"messages\":[" USER "],\"temperature\":1,\"top_p\":1,\"top_k\":-1,"
                    "\"min_p\":0,\"repetition_penalty\":1,\"max_tokens\":60}",
                    &r, &error));
    ck_assert(r.sampling.temperature == 1 && r.sampling.top_p == 1 && r.sampling.min_p == 0);
    ck_assert(r.sampling.repetition_penalty == 1 && r.sampling.top_k == 0);
    ck_assert_uint_eq(r.max_tokens, 50); /* a bound, not a default */
    api_completion_deinit(&r);
    ck_assert(api_completion_parse(&by, "{\"prompt\":\"a\"}", 14, &r, &error));
    ck_assert(r.sampling.top_k == 9 && r.max_tokens == 16);
    api_completion_deinit(&r);
}
END_TEST

typedef struct bad_case {
    const char *body, *param, *code, *message;
} bad_case;

#define FIELD(fields, param, message)                                \
    {                                                                \
        "{\"messages\":[" USER "]," fields "}", param, NULL, message \
    }
#define LACKS(fields, param)                                                          \
    {                                                                                 \
        "{\"messages\":[" USER "]," fields "}", param, "unsupported_parameter", param \
    }
#define SAYS(messages, param, message)                      \
    {                                                       \
        "{\"messages\":" messages "}", param, NULL, message \
    }

static const bad_case bad_cases[] = {
    {"{}", "messages", NULL, "messages: the field is required"},
    SAYS("{}", "messages", "messages: {} is not a list"),
    SAYS("[]", "messages", "messages: the list is empty"),
    SAYS("[1]", "messages[0]", "messages[0]: 1 is not an object"),
    SAYS("[{}]", "messages[0].role", "messages[0].role: the field is required"),
    SAYS("[" USER ",{\"role\":\"bot\"}]", "messages[1].role",
         "messages[1].role: \"bot\" is none of"),
    SAYS("[{\"role\":1}]", "messages[0].role", "messages[0].role: 1 is none of"),
    SAYS("[{\"role\":\"user\"}]", "messages[0].content",
         "messages[0].content: the field is required"),
    SAYS("[" USER ",{\"role\":\"assistant\",\"content\":null}]", "messages[1].content",
         "messages[1].content: the field is required"),
    SAYS("[{\"role\":\"user\",\"content\":1}]", "messages[0].content",
         "messages[0].content: 1 is neither"),
    SAYS("[{\"role\":\"user\",\"content\":[1]}]", "messages[0].content[0]",
         "messages[0].content[0]: 1 is not a part"),
    SAYS("[{\"role\":\"user\",\"content\":[{\"type\":\"text\"}]}]", "messages[0].content[0]",
         "messages[0].content[0]: {\"type\":\"text\"} has no text"),
    {"{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"a\"},{\"type\":"
     "\"image_url\"}]}]}",
     "messages[0].content[1]", "unsupported_parameter",
     "messages[0].content[1]: parts of type \"image_url\" are not supported"},
    SAYS("[{\"role\":\"user\",\"content\":\"a\",\"name\":5}]", "messages[0].name",
         "messages[0].name: 5 is not a string"),
    SAYS("[{\"role\":\"tool\",\"content\":\"a\",\"tool_call_id\":5}]", "messages[0].tool_call_id",
         "messages[0].tool_call_id: 5 is not a string"),
    SAYS("[{\"role\":\"assistant\",\"content\":\"a\",\"tool_calls\":5}]", "messages[0].tool_calls",
         "messages[0].tool_calls: 5 is not a list"),
    SAYS("[{\"role\":\"assistant\",\"tool_calls\":[{}]}]", "messages[0].tool_calls[0]",
         "messages[0].tool_calls[0]: {} has no function"),
    SAYS("[{\"role\":\"assistant\",\"tool_calls\":[{\"function\":{\"name\":\"f\",\"arguments\":"
         "\"{\"}}]}]",
         "messages[0].tool_calls[0]", "messages[0].tool_calls[0]: \"{\" (arguments) is not"),
    FIELD("\"logprobs\":1", "logprobs", "logprobs: 1 is not a boolean"),
    FIELD("\"top_logprobs\":2", "top_logprobs", "top_logprobs needs logprobs to be true"),
    FIELD("\"logprobs\":true,\"top_logprobs\":6", "top_logprobs",
          "top_logprobs: 6 is outside [0, 5]"),
    FIELD("\"max_completion_tokens\":-1", "max_completion_tokens",
          "max_completion_tokens: -1 is outside"),
    FIELD("\"max_completion_tokens\":1,\"min_tokens\":2", "min_tokens",
          "min_tokens: 2 is more than max_completion_tokens (1)"),
    FIELD("\"n\":21", "n", "n (21) times"),
    FIELD("\"temperature\":3", "temperature", "temperature: 3 is outside"),
    FIELD("\"add_generation_prompt\":true,\"continue_final_message\":true", "add_generation_prompt",
          "add_generation_prompt and continue_final_message cannot both"),
    FIELD("\"chat_template_kwargs\":[]", "chat_template_kwargs",
          "chat_template_kwargs: [] is not an object"),
    FIELD("\"chat_template_kwargs\":{\"messages\":[]}", "chat_template_kwargs",
          "chat_template_kwargs: messages cannot be set here"),
    FIELD("\"documents\":[1]", "documents", "documents: 1 is not an object"),
    FIELD("\"tools\":1", "tools", "tools: 1 is not a list"),
    FIELD("\"functions\":1", "functions", "functions: 1 is not a list"),
    FIELD("\"tool_choice\":1", "tool_choice", "tool_choice: 1 is neither \"none\" nor \"auto\""),
    FIELD("\"parallel_tool_calls\":1", "parallel_tool_calls",
          "parallel_tool_calls: 1 is not a boolean"),
    LACKS("\"tool_choice\":{\"type\":\"function\",\"function\":{\"name\":\"f\"}}", "tool_choice"),
    LACKS("\"function_call\":{\"name\":\"f\"}", "function_call"),
    LACKS("\"tools\":[{}]", "tools"),
    LACKS("\"tools\":[{}],\"tool_choice\":\"auto\"", "tools"),
    LACKS("\"tool_choice\":\"required\"", "tool_choice"),
    LACKS("\"functions\":[{}]", "functions"),
    LACKS("\"chat_template\":\"{{ 1 }}\"", "chat_template"),
    LACKS("\"audio\":{}", "audio"),
    LACKS("\"modalities\":[\"audio\"]", "modalities"),
    LACKS("\"response_format\":{\"type\":\"json_object\"}", "response_format"),
    LACKS("\"prompt_logprobs\":1", "prompt_logprobs"),
};

START_TEST(a_bad_value_is_refused_with_its_place)
{
    for (size_t i = 0; i < sizeof bad_cases / sizeof bad_cases[0]; i++) {
        const bad_case *c = &bad_cases[i];
        completion_request r;
        api_error error;
        if (parse(&limits, c->body, &r, &error)) ck_abort_msg("accepted: %s", c->body);
        if (strncmp(error.message, c->message, strlen(c->message)) != 0) {
            ck_abort_msg("%s: \"%s\" does not begin with \"%s\"", c->body, error.message,
                         c->message);
        }
        ck_assert_uint_eq(error.status, 400);
        ck_assert_pstr_eq(error.param, c->param);
        ck_assert_pstr_eq(error.code, c->code);
        ck_assert(r.prompts == NULL && r.chat.variables == NULL);
    }
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE(messages_alone_get_the_defaults_of_a_chat),
    TEST_CASE(the_newer_name_of_max_tokens_wins),
    TEST_CASE(logprobs_are_two_fields),
    TEST_CASE(fields_of_completions_are_the_same_here),
    TEST_CASE(a_template_sees_what_was_understood),
    TEST_CASE(contents_have_the_form_that_the_template_wants),
    TEST_CASE(a_message_of_parts_can_be_continued),
    TEST_CASE(tools_are_for_the_template_and_for_a_parser),
    TEST_CASE(reasoning_has_the_names_that_templates_read),
    TEST_CASE(calls_of_earlier_turns_have_their_arguments_parsed),
    TEST_CASE(a_message_can_be_continued_or_echoed),
    TEST_CASE(a_models_generation_config_has_the_defaults),
    TEST_CASE(a_bad_value_is_refused_with_its_place),
    TEST_CASES_END,
};
