/* Calls in what models write: what is found, that the pieces in which a text comes do not matter, and that
 * nothing of it is lost. */
#include "base/hash.h"
#include "base/random.h"
#include "service/tools/tool_reader.h"
#include "tests/model/fail_alloc.h"
#include "tests/test_main.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DS(what) "<\xef\xbd\x9ctool\xe2\x96\x81" what "\xef\xbd\x9c>"
#define DS_CALLS           \
    DS("calls\xe2\x96\x81" \
       "begin")
#define DS_CALLS_END       \
    DS("calls\xe2\x96\x81" \
       "end")
#define DS_CALL           \
    DS("call\xe2\x96\x81" \
       "begin")           \
    "function" DS("sep")
#define DS_END            \
    DS("call\xe2\x96\x81" \
       "end")

enum { N_TEXTS = 5000, TEXT_BYTES = 4096 };

/* "content" + "\n=> name(arguments)" for each call, in a heap string. */
static char *describe(const tool_reader *r, const char *text)
{
    char *out = NULL;
    size_t n_bytes;
    FILE *file = open_memstream(&out, &n_bytes);
    ck_assert_ptr_nonnull(file);
    if (r->content.n_bytes > 0) fwrite(r->content.bytes, 1, r->content.n_bytes, file);
    for (size_t i = 0; i < r->n_calls; i++) {
        const text_view arguments = tool_arguments(&r->calls[i], text);
        fprintf(file, "\n=> %.*s(%.*s)", (int)r->calls[i].name_bytes, r->calls[i].name,
                (int)arguments.n_bytes, arguments.bytes);
    }
    fclose(file);
    return out;
}

/* The text in `n_cuts` + 1 pieces, each from a heap copy of exact size, so that a sanitizer sees what is read too far. */
static char *read_cut(const tool_parser *parser, const char *text, const size_t *cuts,
                      size_t n_cuts)
{
    const size_t n = strlen(text);
    tool_reader r;
    tool_reader_init(&r, parser);
    for (size_t i = 0; i <= n_cuts; i++) {
        const size_t to = i < n_cuts ? cuts[i] : n;
        char *copy = malloc(to + 1);
        ck_assert_ptr_nonnull(copy);
        memcpy(copy, text, to);
        char *exact = realloc(copy, to > 0 ? to : 1);
        ck_assert_int_eq(tool_reader_read(&r, exact, to, i == n_cuts), ERR_OK);
        free(exact);
    }
    char *said = describe(&r, text);
    tool_reader_deinit(&r);
    return said;
}

static char *read_bytewise(const tool_parser *parser, const char *text)
{
    size_t cuts[TEXT_BYTES], n = strlen(text);
    for (size_t i = 0; i < n; i++)
        cuts[i] = i;
    return read_cut(parser, text, cuts, n);
}

/* ---- what is found */

typedef struct found {
    const char *parser, *text, *said;
} found;

static const found calls[] = {
    {"hermes", "plain <b> text\n", "plain <b> text\n"},
    {"hermes", "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_call>",
     "\n=> f({\"a\": 1})"},
    {"hermes", "I look.\n\n<tool_call>{\"name\":\"f\",\"arguments\":{}}</tool_call>\n",
     "I look.\n=> f({})"},
    {"hermes",
     "<tool_call>{\"name\":\"f\",\"arguments\":{\"s\":\"}</tool_call>{\\\"\"}}</tool_call>\n"
     "<tool_call>{\"name\":\"g\",\"arguments\":{\"x\":[1,{\"y\":null}]}}</tool_call> done",
     " done\n=> f({\"s\":\"}</tool_call>{\\\"\"})\n=> g({\"x\":[1,{\"y\":null}]})"},
    {"hermes", "<tool_call>{\"arguments\": {\"a\": 1}, \"name\": \"f\"}</tool_call>",
     "\n=> f({\"a\": 1})"},
    {"hermes",
     "<tool_call>{\"id\": 7, \"name\": \"f\", \"parameters\": {}, \"x\": [\"y\"]}</tool_call>",
     "\n=> f({})"},
    {"hermes", "<tool_call>{\"name\": \"f\"}</tool_call>", "\n=> f({})"},
    {"hermes", "<tool_call>{\"name\": \"f\", \"arguments\": null}</tool_call>", "\n=> f({})"},
    {"hermes",
     "<tool_call>{\"name\": \"f\", \"arguments\": \"{\\\"a\\\": \\\"\\u00e9\\\"}\"}</tool_call>",
     "\n=> f({\"a\": \"\xc3\xa9\"})"},
    {"hermes", "<tool_call>{\"name\": \"\\u0066\", \"arguments\": {}}",
     "\n=> f({})"}, /* no end mark */
    {"hermes", "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": \"cut of",
     "\n=> f({\"a\": \"cut of)"},
    /* broken behind the beginning of the arguments */
    {"hermes", "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": <b>}}</tool_call>",
     "<b>}}</tool_call>\n=> f({\"a\": )"},
    {"hermes", "<tool_call>{\"name\": \"f\", \"arguments\": {}} and more", " and more\n=> f({})"},
    {"mistral", "[TOOL_CALLS] [{\"name\": \"f\", \"arguments\": {\"a\": [1]}}]",
     "\n=> f({\"a\": [1]})"},
    {"mistral",
     "So:[TOOL_CALLS][{\"name\":\"f\",\"arguments\":{}}, {\"arguments\":{},\"name\":\"g\"}]\n",
     "So:\n=> f({})\n=> g({})"},
    {"mistral", "[TOOL_CALLS]f{\"a\": 1}[TOOL_CALLS]g-2.x_{}", "\n=> f({\"a\": 1})\n=> g-2.x_({})"},
    {"mistral", "[TOOL_CALLS]f[CALL_ID]abc123DEF[ARGS]{\"a\": 1}", "\n=> f({\"a\": 1})"},
    {"mistral", "[TOOL_CALLS]f[ARGS]{\"a\": 1}", "\n=> f({\"a\": 1})"},
    {"mistral", "[TOOL_CALLS] [{\"name\": \"f\", \"arguments\": {}}, {\"name\": 1}]",
     ", {\"name\": 1}]\n=> f({})"},
    {"mistral", "[TOOL_CALLS] [{\"name\": \"f\", \"arguments\": {}}", "\n=> f({})"},
    {"granite", "<|tool_call|>[{\"name\": \"f\", \"arguments\": {\"a\": 1}}]",
     "\n=> f({\"a\": 1})"},
    {"granite", "<tool_call>[{\"arguments\": {}, \"name\": \"f\"},{\"name\":\"g\"}]",
     "\n=> f({})\n=> g({})"},
    {"deepseek_v3", "Well. " DS_CALLS DS_CALL "f\n```json\n{\"a\": 1}\n```" DS_END DS_CALLS_END,
     "Well.\n=> f({\"a\": 1})"},
    {"deepseek_v3",
     DS_CALLS DS_CALL "f\n```json\n{}\n```" DS_END "\n" DS_CALL
                      "g\n```json\n{\"b\": \"```\"}\n```" DS_END DS_CALLS_END,
     "\n=> f({})\n=> g({\"b\": \"```\"})"},
    {"deepseek_v3", DS_CALLS DS_CALL "f\n```json\n{\"a\": 1}", "\n=> f({\"a\": 1})"},
};

START_TEST(calls_are_found)
{
    ck_assert_int_eq(hash_init(), ERR_OK);
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
        const tool_parser *parser = tool_find_parser(calls[i].parser);
        char *whole = read_cut(parser, calls[i].text, NULL, 0);
        char *bytewise = read_bytewise(parser, calls[i].text);
        ck_assert_str_eq(whole, calls[i].said);
        ck_assert_str_eq(bytewise, calls[i].said);
        free(whole);
        free(bytewise);
    }
}
END_TEST

/* Where no call has begun the text is the content, to the byte. */
START_TEST(what_is_no_call_stays_as_it_is)
{
    static const char *const texts[] = {
        "",
        "  ",
        "<tool_call",
        "a <tool_call> b",
        "<tool_call></tool_call>",
        " <tool_call>\n{}\n</tool_call> ",
        "<tool_call>{\"name\": \"\", \"arguments\": {}}</tool_call>",
        "<tool_call>{\"name\": 1, \"arguments\": {}}</tool_call>",
        "<tool_call>{\"name\": \"f\", \"name\": \"g\"}</tool_call>",
        "<tool_call>{\"name\": \"f\", \"arguments\": [1]}</tool_call>",
        "<tool_call>{\"name\": \"f\", }</tool_call>",
        "<tool_call>{\"name\": \"f\" \"arguments\": {}}</tool_call>",
        "<tool_call>{'name': 'f'}</tool_call>",
        "<tool_call>{\"name\": \"\\x\"}</tool_call>",
        "<tool_call>{\"name\": \"f",
        "<tool_call>\n<function=f>\n<parameter=x>\n1\n</parameter>\n</function>\n</tool_call>",
        "<tool_call>{\"arguments\": {\"a\": 1]}, \"name\": \"f\"}</tool_call>",
        "<|tool_call|>[]",
        "<|tool_call|>{\"name\": \"f\"}",
        "[TOOL_CALLS]",
        "[TOOL_CALLS] []",
        "[TOOL_CALLS]f",
        "[TOOL_CALLS]f[ARG]{}",
        "[TOOL_CALLS]f g{}",
        "[TOOL_CALLS]{}",
        DS_CALLS,
        DS_CALLS DS_CALLS_END,
        DS_CALLS DS_CALL "\n```json\n{}",
        DS_CALLS DS_CALL "f\n```yaml\n{}",
        DS_CALLS "x",
    };
    ck_assert_int_eq(hash_init(), ERR_OK);
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        for (size_t p = 0; tool_parsers[p] != NULL; p++) {
            char *whole = read_cut(tool_parsers[p], texts[i], NULL, 0);
            char *bytewise = read_bytewise(tool_parsers[p], texts[i]);
            ck_assert_str_eq(whole, texts[i]);
            ck_assert_str_eq(bytewise, texts[i]);
            free(whole);
            free(bytewise);
        }
    }
}
END_TEST

/* A marker behind which nothing becomes a call holds back so much and no more. */
START_TEST(a_text_without_a_call_is_not_held_for_ever)
{
    enum { N = 70000 };
    char *text = malloc(N + 1);
    ck_assert_ptr_nonnull(text);
    memset(text, 'x', N);
    text[N] = '\0';
    memcpy(text, "<tool_call>{\"x\": \"", 18);
    tool_reader r;
    tool_reader_init(&r, tool_find_parser("hermes"));
    ck_assert_int_eq(tool_reader_read(&r, text, 1000, false), ERR_OK);
    ck_assert_uint_eq(r.content.n_bytes, 0);
    ck_assert_int_eq(tool_reader_read(&r, text, N, false), ERR_OK);
    ck_assert_uint_eq(r.content.n_bytes, N);
    ck_assert(memcmp(r.content.bytes, text, N) == 0);
    tool_reader_deinit(&r);
    free(text);
}
END_TEST

START_TEST(arguments_come_while_they_are_written)
{
    static const char text[] = "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": \"long";
    tool_reader r;
    ck_assert_int_eq(hash_init(), ERR_OK);
    tool_reader_init(&r, tool_find_parser("hermes"));
    const size_t begin = (size_t)(strstr(text, "{\"a") - text);
    ck_assert_int_eq(tool_reader_read(&r, text, begin, false), ERR_OK);
    ck_assert_uint_eq(r.n_calls, 0);
    for (size_t n = begin + 1; n < sizeof text; n++) {
        ck_assert_int_eq(tool_reader_read(&r, text, n, false), ERR_OK);
        ck_assert_uint_eq(r.n_calls, 1);
        ck_assert_uint_eq(tool_arguments(&r.calls[0], text).n_bytes, n - begin);
    }
    tool_reader_deinit(&r);
}
END_TEST

START_TEST(ids_have_the_form_that_templates_take)
{
    static const char text[] = "[TOOL_CALLS]f{}[TOOL_CALLS]f{}";
    tool_reader r;
    ck_assert_int_eq(hash_init(), ERR_OK);
    tool_reader_init(&r, tool_find_parser("mistral"));
    ck_assert_int_eq(tool_reader_read(&r, text, sizeof text - 1, true), ERR_OK);
    ck_assert_uint_eq(strlen(r.calls[0].id), 9);
    ck_assert_uint_eq(strspn(r.calls[1].id, "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
                                            "abcdefghijklmnopqrstuvwxyz"),
                      9);
    ck_assert_str_ne(r.calls[0].id, r.calls[1].id);
    tool_reader_deinit(&r);
    ck_assert_ptr_null(tool_find_parser("none"));
}
END_TEST

/* ---- any text */

static const char *const fragments[] = {"<tool_call>",
                                        "</tool_call>",
                                        "<|tool_call|>",
                                        "[TOOL_CALLS]",
                                        "[ARGS]",
                                        "[CALL_ID]",
                                        DS_CALLS,
                                        DS_CALLS_END,
                                        DS_CALL,
                                        DS_END,
                                        "{\"name\": \"f\", \"arguments\": {\"a\": 1}}",
                                        "{\"name\":\"g\"",
                                        "\"arguments\": {",
                                        "\"arguments\":\"{}\"",
                                        "\"x\": [1, 2]",
                                        "f",
                                        "f\n",
                                        "```json\n",
                                        "```",
                                        "{",
                                        "}",
                                        "[",
                                        "]",
                                        ",",
                                        ":",
                                        "\"",
                                        "\\",
                                        " ",
                                        "\n",
                                        "a",
                                        "1",
                                        "{}",
                                        "null",
                                        "{\"a\": \"b\"}",
                                        "[{",
                                        "}]",
                                        "<",
                                        "text "};

static uint64_t n_drawn; /* numbers of one stream, in each test's own process */

static uint32_t below(uint32_t n)
{
    return random_at(7, 0, n_drawn++).word[0] % n;
}

/* One of the texts above, or a few fragments. */
static void make_text(const tool_parser *parser, char *out)
{
    const found *one = &calls[below(sizeof calls / sizeof *calls)];
    size_t n = 0;
    if (strcmp(one->parser, parser->name) == 0) n = (size_t)sprintf(out, "%s", one->text);
    for (uint32_t n_parts = n > 0 ? 0 : 1 + below(14); n_parts > 0; n_parts--)
        n += (size_t)sprintf(out + n, "%s", fragments[below(sizeof fragments / sizeof *fragments)]);
}

/* Some fragments put into it, or characters taken out. */
static void spoil(char *text)
{
    for (uint32_t n_changes = below(4); n_changes > 0; n_changes--) {
        const size_t n = strlen(text), at = below((uint32_t)n + 1);
        const char *part = fragments[below(sizeof fragments / sizeof *fragments)];
        const size_t n_part = strlen(part);
        if (below(2) == 0 && at < n) {
            memmove(text + at, text + at + 1, n - at);
            continue;
        }
        memmove(text + at + n_part, text + at, n - at + 1);
        memcpy(text + at, part, n_part);
    }
}

START_TEST(the_pieces_of_a_text_do_not_matter)
{
    size_t n_called = 0;
    ck_assert_int_eq(hash_init(), ERR_OK);
    for (size_t p = 0; tool_parsers[p] != NULL; p++) {
        for (int i = 0; i < N_TEXTS; i++) {
            char text[TEXT_BYTES];
            size_t cuts[8], n_cuts = 0;
            make_text(tool_parsers[p], text);
            spoil(text);
            for (size_t at = 0; n_cuts < 8;) {
                at += below(24);
                if (at > strlen(text)) break;
                cuts[n_cuts++] = at;
            }
            char *whole = read_cut(tool_parsers[p], text, NULL, 0);
            char *cut = read_cut(tool_parsers[p], text, cuts, n_cuts);
            char *bytewise = read_bytewise(tool_parsers[p], text);
            ck_assert_msg(strcmp(whole, cut) == 0, "%s: %s:\n%s\n%s", tool_parsers[p]->name, text,
                          whole, cut);
            ck_assert_msg(strcmp(whole, bytewise) == 0, "%s: %s:\n%s\n%s", tool_parsers[p]->name,
                          text, whole, bytewise);
            const bool is_called = strstr(whole, "\n=> ") != NULL;
            n_called += is_called;
            if (!is_called) ck_assert_str_eq(whole, text);
            free(whole);
            free(cut);
            free(bytewise);
        }
    }
    ck_assert_uint_gt(n_called, 500);
}
END_TEST

/* ---- memory */

START_TEST(every_failed_allocation_is_an_error_and_no_leak)
{
    fail_alloc_hook_jansson();
    ck_assert_int_eq(hash_init(), ERR_OK);
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
        const char *text = calls[i].text;
        bool has_failed = true;
        for (long n = 0; has_failed; n++) {
            tool_reader r;
            tool_reader_init(&r, tool_find_parser(calls[i].parser));
            fail_alloc_start(n);
            err_t err = tool_reader_read(&r, text, strlen(text) / 2, false);
            if (err == ERR_OK) err = tool_reader_read(&r, text, strlen(text), true);
            has_failed = fail_alloc_stop();
            ck_assert(err == (has_failed ? ERR_NO_MEMORY : ERR_OK));
            tool_reader_deinit(&r);
        }
    }
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE(calls_are_found),
    TEST_CASE(what_is_no_call_stays_as_it_is),
    TEST_CASE(a_text_without_a_call_is_not_held_for_ever),
    TEST_CASE(arguments_come_while_they_are_written),
    TEST_CASE(ids_have_the_form_that_templates_take),
    TEST_CASE(the_pieces_of_a_text_do_not_matter),
    TEST_CASE(every_failed_allocation_is_an_error_and_no_leak),
    TEST_CASES_END,
};
