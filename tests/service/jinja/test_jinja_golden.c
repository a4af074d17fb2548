/* What transformers made of our templates and snippets (tools/make_chat_goldens.py), byte for byte. */
#include "service/jinja/jinja.h"
#include "tests/test_main.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#define FOLDER "tests/golden/chat/"

enum { TEMPLATE_BYTES_MAX = 1 << 16, N_SNIPPETS_MIN = 290, N_TEMPLATES = 9 };

static const char *const TEMPLATES[N_TEMPLATES] = {
    "deepseek-v2", "deepseek-v3", "gpt-oss", "granitemoe", "mixtral",
    "olmoe",       "phimoe",      "qwen2",   "qwen3",
};

static jinja_limits limits(void)
{
    setenv("TZ", "UTC", 1);
    tzset();
    return (jinja_limits){.output_bytes = 1 << 20,
                          .memory_bytes = 16 << 20,
                          .steps = 4000000,
                          .now = 1795342272}; /* 2026-11-22 10:11:12 */
}

static json_t *load(const char *name)
{
    char path[512];
    json_error_t error;
    snprintf(path, sizeof path, FOLDER "%s", name);
    json_t *json = json_load_file(path, JSON_ALLOW_NUL, &error);
    ck_assert_msg(json != NULL, "%s: %s", path, error.text);
    return json;
}

/* Renders and compares with {"text": ..., "raised": ...}. Returns whether it is as expected. */
static bool agrees(const char *source, size_t n_source, const json_t *context,
                   const json_t *expected, char *words, size_t words_bytes)
{
    const json_t *want = json_object_get(expected, "text");
    const char *raised = json_string_value(json_object_get(expected, "raised"));
    const jinja_limits bounds = limits();
    err_info info = {0};
    jinja *template;
    char *text = NULL;
    size_t n_bytes = 0;
    err_t err = jinja_compile(source, n_source, &template, &info);
    if (err == ERR_OK) err = jinja_render(template, context, &bounds, &text, &n_bytes, &info);
    bool is_same;
    if (err == ERR_OK) {
        is_same = json_is_string(want) && json_string_length(want) == n_bytes &&
                  memcmp(json_string_value(want), text, n_bytes) == 0;
        snprintf(words, words_bytes, "%s", text);
    } else {
        /* jinja shortens and repairs a message as err_set does: what it has is what was raised */
        is_same = json_is_null(want) && (raised == NULL || err == ERR_BAD_REQUEST);
        if (is_same && raised != NULL)
            for (size_t i = 0; i < strlen(raised) && i + 1 < ERR_MESSAGE_BYTES && is_same; i++)
                is_same = info.message[i] == raised[i] || info.message[i] == '?';
        snprintf(words, words_bytes, "%s: %s", err_name(err), info.message);
    }
    free(text);
    jinja_free(template);
    return is_same;
}

START_TEST(every_snippet_is_rendered_as_transformers_does)
{
    static char words[TEMPLATE_BYTES_MAX];
    json_t *contexts = load("contexts.json"), *snippets = load("snippets.json");
    const json_t *context = json_object_get(contexts, "snippets");
    size_t n_failed = 0;
    ck_assert_uint_ge(json_array_size(snippets), N_SNIPPETS_MIN);
    for (size_t i = 0; i < json_array_size(snippets); i++) {
        const json_t *snippet = json_array_get(snippets, i);
        const json_t *template = json_object_get(snippet, "template");
        const char *want = json_string_value(json_object_get(snippet, "text"));
        if (agrees(json_string_value(template), json_string_length(template), context, snippet,
                   words, sizeof words))
            continue;
        n_failed++;
        printf("%s\n  want: %s\n  have: %s\n", json_string_value(template),
               want != NULL ? want : "(an error)", words);
    }
    fflush(stdout);
    ck_assert_uint_eq(n_failed, 0);
    json_decref(snippets);
    json_decref(contexts);
}
END_TEST

static void check_template(const char *name, const json_t *conversations)
{
    static char source[TEMPLATE_BYTES_MAX], words[TEMPLATE_BYTES_MAX];
    char path[256];
    snprintf(path, sizeof path, FOLDER "%s.jinja", name);
    FILE *file = fopen(path, "rb");
    ck_assert_ptr_nonnull(file);
    const size_t n_source = fread(source, 1, sizeof source, file);
    fclose(file);
    snprintf(path, sizeof path, "%s.json", name);
    json_t *expected = load(path), *want;
    const char *conversation;
    size_t n_texts = 0;
    json_object_foreach(expected, conversation, want)
    {
        n_texts += json_is_string(json_object_get(want, "text"));
        ck_assert_msg(agrees(source, n_source, json_object_get(conversations, conversation), want,
                             words, sizeof words),
                      "%s, %s: %s", name, conversation, words);
    }
    ck_assert_uint_ge(n_texts, json_object_size(expected) / 3);
    json_decref(expected);
}

START_TEST(every_template_is_rendered_as_transformers_does)
{
    json_t *contexts = load("contexts.json");
    for (size_t i = 0; i < N_TEMPLATES; i++)
        check_template(TEMPLATES[i], json_object_get(contexts, "conversations"));
    json_decref(contexts);
}
END_TEST

const test_case test_cases[] = {TEST_CASE(every_snippet_is_rendered_as_transformers_does),
                                TEST_CASE(every_template_is_rendered_as_transformers_does),
                                TEST_CASES_END};
