/* Replies of POST /v1/chat/completions byte for byte. */
#include "service/api_reply.h"
#include "tests/test_main.h"

#include <stdlib.h>
#include <string.h>

static const api_envelope envelope = {.id = "chatcmpl-1",
                                      .created = 7,
                                      .model = "m",
                                      .fingerprint = "fp_0",
                                      .role = "assistant",
                                      .shape = &api_shape_chat};

#define HEAD(object)                                                                  \
    "{\"id\":\"chatcmpl-1\",\"object\":\"" object "\",\"created\":7,\"model\":\"m\"," \
    "\"system_fingerprint\":\"fp_0\",\"choices\":["
#define CHUNK  HEAD("chat.completion.chunk")
#define NO_END "\"logprobs\":null,\"finish_reason\":null,\"stop_reason\":null"

static void check_text(char *text, size_t n_bytes, const char *expected)
{
    ck_assert_ptr_nonnull(text);
    ck_assert_str_eq(text, expected);
    ck_assert_uint_eq(n_bytes, strlen(expected));
    free(text);
}

START_TEST(calls_have_their_place_in_replies)
{
    const api_usage usage = {.n_prompt = 3, .n_output = 5};
    const api_call_delta calls[] = {{.id = "call_1",
                                     .name = "f\"",
                                     .name_bytes = 2,
                                     .arguments = "{\"a\"",
                                     .arguments_bytes = 4},
                                    {.index = 1, .arguments = "}", .arguments_bytes = 1}};
    const api_piece pieces[] = {{.is_first = true,
                                 .text = "",
                                 .calls = calls,
                                 .n_calls = 1,
                                 .finish = "tool_calls",
                                 .stop_token = -1},
                                {.is_first = true,
                                 .text = "hm",
                                 .text_bytes = 2,
                                 .calls = calls,
                                 .n_calls = 2,
                                 .finish = "tool_calls",
                                 .stop_token = -1}};
#define CALL   "\"id\":\"call_1\",\"type\":\"function\",\"function\":{\"name\":\"f\\\"\","
#define CALLED "\"logprobs\":null,\"finish_reason\":\"tool_calls\",\"stop_reason\":null"
    size_t n_bytes;
    char *text = api_reply_document(&envelope, pieces, 1, &usage, &n_bytes);
    check_text(text, n_bytes,
               HEAD("chat.completion") //
               "{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":null,\"refusal\":null,"
               "\"tool_calls\":[{" CALL "\"arguments\":\"{\\\"a\\\"\"}}]}," CALLED
               "}],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":5,\"total_tokens\":8,"
               "\"prompt_tokens_details\":{\"cached_tokens\":0}}}");
    static const char *const chunks[] = {
        CHUNK
        "{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\",\"refusal\":null}," NO_END
        "}]}",
        CHUNK "{\"index\":0,\"delta\":{\"content\":\"hm\"}," NO_END "}]}",
        CHUNK
        "{\"index\":0,\"delta\":{\"tool_calls\":[{\"index\":0," CALL
        "\"arguments\":\"{\\\"a\\\"\"}},{\"index\":1,\"function\":{\"arguments\":\"}\"}}]}," NO_END
        "}]}",
        CHUNK "{\"index\":0,\"delta\":{}," CALLED "}]}"};
    api_piece parts[API_PARTS_MAX];
    ck_assert_uint_eq(api_reply_split(&envelope, &pieces[1], parts), 4);
    for (size_t i = 0; i < 4; i++) {
        text = api_reply_chunk(&envelope, &parts[i], false, &n_bytes);
        check_text(text, n_bytes, chunks[i]);
    }
}
END_TEST

START_TEST(a_document_holds_a_message)
{
    static const uint32_t ids[] = {1, 2};
    const api_usage usage = {.n_prompt = 3, .n_output = 5, .n_cached = 2};
    const api_piece pieces[] = {{.is_first = true,
                                 .text = " b\"",
                                 .text_bytes = 3,
                                 .finish = "length",
                                 .stop_token = -1,
                                 .shows_ids = true,
                                 .prompt_ids = ids,
                                 .n_prompt_ids = 2,
                                 .token_ids = ids,
                                 .n_token_ids = 1},
                                {.index = 1,
                                 .is_first = true,
                                 .echo = "pre",
                                 .echo_bytes = 3,
                                 .text = "x",
                                 .text_bytes = 1,
                                 .finish = "stop",
                                 .stop_token = 9}};
    size_t n_bytes;
    char *text = api_reply_document(&envelope, pieces, 2, &usage, &n_bytes);
    check_text(text, n_bytes,
               HEAD("chat.completion") //
               "{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\" b\\\"\",\"refusal\""
               ":null},\"logprobs\":null,\"finish_reason\":\"length\",\"stop_reason\":null,"
               "\"token_ids\":[1]},"
               "{\"index\":1,\"message\":{\"role\":\"assistant\",\"content\":\"prex\",\"refusal\":"
               "null},\"logprobs\":null,\"finish_reason\":\"stop\",\"stop_reason\":9}],"
               "\"prompt_token_ids\":[1,2],"
               "\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":5,\"total_tokens\":8,"
               "\"prompt_tokens_details\":{\"cached_tokens\":2}}}");
}
END_TEST

static void check_parts(const api_piece *piece, size_t n_expected, const char *const *expected)
{
    api_piece parts[API_PARTS_MAX];
    const size_t n_parts = api_reply_split(&envelope, piece, parts);
    ck_assert_uint_eq(n_parts, n_expected);
    for (size_t i = 0; i < n_parts; i++) {
        size_t n_bytes;
        char whole[1024];
        snprintf(whole, sizeof whole, CHUNK "%s]}", expected[i]);
        char *text = api_reply_chunk(&envelope, &parts[i], false, &n_bytes);
        check_text(text, n_bytes, whole);
    }
}

START_TEST(a_stream_has_the_role_first_and_the_end_last)
{
    static const char role[] = "{\"index\":2,\"delta\":{\"role\":\"assistant\",\"content\":\"\","
                               "\"refusal\":null}," NO_END "}";
    static const char said[] = "{\"index\":2,\"delta\":{\"content\":\"a\"}," NO_END "}";
    static const char end[] = "{\"index\":2,\"delta\":{},\"logprobs\":null,\"finish_reason\":"
                              "\"stop\",\"stop_reason\":\"END\"}";
    api_piece piece = {.index = 2,
                       .is_first = true,
                       .text = "a",
                       .text_bytes = 1,
                       .finish = "stop",
                       .stop_text = "END",
                       .stop_text_bytes = 3,
                       .stop_token = -1};
    check_parts(&piece, 3, (const char *const[]){role, said, end});
    piece.finish = NULL;
    piece.stop_text = NULL;
    check_parts(&piece, 2, (const char *const[]){role, said});
    piece.is_first = false;
    check_parts(&piece, 1, (const char *const[]){said});
    piece.text_bytes = 0;
    piece.finish = "stop";
    piece.stop_text = "END";
    check_parts(&piece, 1, (const char *const[]){end});
}
END_TEST

START_TEST(logprobs_are_items_with_bytes)
{
    tokenizer *t;
    err_info info = {0};
    ck_assert(tokenizer_open("tests/golden/tokenizer-bpe", &t, &info) == ERR_OK);
    api_envelope e = envelope;
    e.tokenizer = t;
    static const sampler_entry top[] = {{405, -0.5f}, {243, -1.5f}}; /* e and the byte f0 */
    const api_token_score scores[] = {{.token = 243, .logprob = -1.5f, .top = top, .n_top = 2}};
    const api_piece piece = {.text = "", .scores = scores, .n_scores = 1, .stop_token = -1};
    size_t n_bytes;
    char *text = api_reply_chunk(&e, &piece, false, &n_bytes);
    check_text(text, n_bytes,
               CHUNK "{\"index\":0,\"delta\":{\"content\":\"\"},\"logprobs\":{\"content\":[{"
                     "\"token\":\"\xef\xbf\xbd\",\"logprob\":-1.5,\"bytes\":[240],"
                     "\"top_logprobs\":[{\"token\":\"e\",\"logprob\":-0.5,\"bytes\":[101]},{"
                     "\"token\":\"\xef\xbf\xbd\",\"logprob\":-1.5,\"bytes\":[240]}]}],"
                     "\"refusal\":null},\"finish_reason\":null,\"stop_reason\":null}]}");
    tokenizer_close(t);
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE(calls_have_their_place_in_replies),
    TEST_CASE(a_document_holds_a_message),
    TEST_CASE(a_stream_has_the_role_first_and_the_end_last),
    TEST_CASE(logprobs_are_items_with_bytes),
    TEST_CASES_END,
};
