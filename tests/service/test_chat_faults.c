/* Chats when memory ends: reading a request, opening the template, and rendering. Allocation N fails, and all after
 * it, for N = 0, 1, 2 ... until all goes well; a sanitizer sees what is lost on the way. */
#include "base/hash.h"
#include "service/api_call.h"
#include "service/api_request.h"
#include "service/chat_template.h"
#include "tests/model/fail_alloc.h"
#include "tests/test_main.h"

#include <stdlib.h>
#include <string.h>

static const char *const names[] = {"teller"};
static const kv_config kv = {.routing = (char *)(uintptr_t) "full",
                             .scheduling = (char *)(uintptr_t) "none",
                             .compression = (char *)(uintptr_t) "none",
                             .rewrite = (char *)(uintptr_t) "none"};
static const char model_dir[] = "tests/golden/tokenizer-chat-new";
enum { N_LEAST = 20, N_MOST = 5000 };

/* Every field that takes memory. */
static const char body[] =
    "{\"model\":\"teller\",\"messages\":["
    "{\"role\":\"system\",\"content\":\"Be brief.\"},"
    "{\"role\":\"user\",\"name\":\"Al\",\"content\":[{\"type\":\"text\",\"text\":\"one\"},"
    "{\"type\":\"text\",\"text\":\"two\"}]},"
    "{\"role\":\"assistant\",\"content\":null,\"reasoning\":\"hm\",\"tool_calls\":[{\"id\":\"c1\","
    "\"type\":\"function\",\"function\":{\"name\":\"f\",\"arguments\":\"{\\\"a\\\":[1]}\"}}]},"
    "{\"role\":\"tool\",\"tool_call_id\":\"c1\",\"content\":\"3\"},"
    "{\"role\":\"assistant\",\"content\":[{\"type\":\"text\",\"text\":\"It is\"}]}],"
    "\"continue_final_message\":true,\"documents\":[{\"text\":\"d\"}],\"reasoning_effort\":\"low\","
    "\"chat_template_kwargs\":{\"think\":[true]},\"stop\":[\"a\",\"b\"],\"logit_bias\":{\"3\":1},"
    "\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"f\"}}],"
    "\"cache_salt\":\"s\",\"logprobs\":true,\"top_logprobs\":2}";

/* In each test, for each is a process of its own. */
static void begin(void)
{
    fail_alloc_hook_jansson();
    ck_assert_int_eq(hash_init(), ERR_OK);
}

static bool parse(chat_content content, completion_request *out, api_error *error)
{
    const api_limits limits = {.n_vocab = 100,
                               .n_logprobs_max = 5,
                               .n_choices_max = 20,
                               .model_names = names,
                               .n_model_names = 1,
                               .content = content,
                               .tools = tool_find_parser("hermes"),
                               .kv = &kv};
    *error = (api_error){0};
    return api_chat_parse(&limits, body, sizeof body - 1, out, error);
}

START_TEST(a_chat_is_read_or_refused_for_memory)
{
    begin();
    for (int form = CHAT_CONTENT_TEXTS; form <= CHAT_CONTENT_PARTS; form++) {
        long n = 0;
        for (bool has_failed = true; has_failed; n++) {
            completion_request r;
            api_error error;
            ck_assert_int_lt(n, N_MOST);
            fail_alloc_start(n);
            const bool is_read = parse((chat_content)form, &r, &error);
            has_failed = fail_alloc_stop();
            ck_assert_msg(is_read == !has_failed, "allocation %ld: %s", n, error.message);
            if (is_read) {
                ck_assert_str_eq(r.chat.last, "It is");
                api_completion_deinit(&r);
                continue;
            }
            ck_assert_msg(error.status == 500, "allocation %ld: %s", n, error.message);
            ck_assert_ptr_null(r.chat.variables);
        }
        ck_assert_int_gt(n, N_LEAST);
    }
}
END_TEST

static tokenizer *open_tokenizer(void)
{
    tokenizer *t;
    err_info info = {0};
    ck_assert_msg(tokenizer_open(model_dir, &t, &info) == ERR_OK, "%s", info.message);
    return t;
}

START_TEST(a_template_opens_or_is_refused_for_memory)
{
    begin();
    tokenizer *t = open_tokenizer();
    long n = 0;
    for (bool has_failed = true; has_failed; n++) {
        chat_template *chat;
        err_info info = {0};
        ck_assert_int_lt(n, N_MOST);
        fail_alloc_start(n);
        const err_t err =
            chat_template_open(model_dir, "tests/http/chat/inst.jinja", t, &chat, &info);
        has_failed = fail_alloc_stop();
        ck_assert_msg(err == (has_failed ? ERR_NO_MEMORY : ERR_OK), "allocation %ld: %s", n,
                      info.message);
        ck_assert((chat != NULL) == (err == ERR_OK));
        if (err == ERR_OK) ck_assert_ptr_null(chat_template_fault(chat));
        chat_template_close(chat);
    }
    ck_assert_int_gt(n, N_LEAST);
    tokenizer_close(t);
}
END_TEST

START_TEST(a_prompt_is_rendered_or_refused_for_memory)
{
    begin();
    tokenizer *t = open_tokenizer();
    chat_template *chat;
    completion_request r;
    api_error error;
    err_info info = {0};
    ck_assert_int_eq(
        chat_template_open(model_dir, "tests/golden/chat/qwen3.jinja", t, &chat, &info), ERR_OK);
    ck_assert_msg(parse(CHAT_CONTENT_TEXTS, &r, &error), "%s", error.message);
    const api_context api = {.chat = chat, .t = t, .text_bytes_max = 1 << 20};
    long n = 0;
    for (bool has_failed = true; has_failed; n++) {
        api_prompt prompt = {0};
        error = (api_error){0};
        ck_assert_int_lt(n, N_MOST);
        fail_alloc_start(n);
        const bool is_rendered = api_chat_render(&api, &r.chat, &prompt, &error);
        has_failed = fail_alloc_stop();
        ck_assert_msg(is_rendered == !has_failed, "allocation %ld: %s", n, error.message);
        if (is_rendered) {
            const size_t n_tail = strlen("It is");
            ck_assert(prompt.text_bytes > n_tail);
            ck_assert_str_eq(prompt.text + prompt.text_bytes - n_tail, "It is");
        } else {
            ck_assert_msg(error.status == 500, "allocation %ld: %s", n, error.message);
        }
        free(prompt.text);
    }
    ck_assert_int_gt(n, N_LEAST);
    api_completion_deinit(&r);
    chat_template_close(chat);
    tokenizer_close(t);
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE(a_chat_is_read_or_refused_for_memory),
    TEST_CASE(a_template_opens_or_is_refused_for_memory),
    TEST_CASE(a_prompt_is_rendered_or_refused_for_memory),
    TEST_CASES_END,
};
