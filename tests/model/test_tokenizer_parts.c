/* The parts of tokenizer.json by themselves: expressions, normal forms, merges. */
#include "model/bpe.h"
#include "model/regex.h"
#include "model/unicode.h"
#include "tests/test_main.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static text_view view(const char *text)
{
    return (text_view){text, strlen(text)};
}

/* ---- expressions --------------------------------------------------------------------------------- */

static regex *open_regex(const char *pattern)
{
    regex *r;
    err_info info = {0};
    const regex_source source = {"test", view(pattern)};
    ck_assert_msg(regex_open(&source, &r, &info) == ERR_OK, "%s", info.message);
    return r;
}

/* "begin-end," of every match. */
static void check_matches(const char *pattern, const char *text, const char *expected)
{
    char found[256] = "";
    regex *const r = open_regex(pattern);
    regex_scratch *s;
    regex_walk walk;
    regex_match m;
    ck_assert(regex_scratch_open(&s) == ERR_OK);
    regex_walk_init(&walk, r, s, view(text));
    while (regex_walk_next(&walk, &m) == ERR_OK)
        (void)snprintf(found + strlen(found), sizeof found - strlen(found), "%zu-%zu,", m.begin,
                       m.end);
    ck_assert_msg(strcmp(found, expected) == 0, "/%s/ in \"%s\": %s, not %s", pattern, text, found,
                  expected);
    regex_scratch_close(s);
    regex_close(r);
}

START_TEST(expressions_mean_what_they_mean_to_oniguruma)
{
    check_matches("\\s+(?!\\S)|\\s+", "a   b", "1-3,3-4,");
    check_matches("\\s", "\u180e\u3000x", "3-6,"); /* U+180E is no space */
    check_matches("[^\\s]", " \u180e", "1-4,");
    check_matches("\\v", "\n\x0b", "1-2,");            /* one character, not a class */
    check_matches("\\p{Han}", "\u3001\u6f22", "3-6,"); /* script, not script extension */
    check_matches("(?i:'s)", "'S '\u017f", "0-2,3-6,");
    check_matches("\\p{N}{1,3}", "12345", "0-3,3-5,");
    check_matches("x*", "axb", "0-0,1-2,3-3,");
    check_matches("\\s+$", "a \nb ", "1-2,4-5,");
    check_matches("^b", "b\nb", "0-1,2-3,");
    check_matches("\\u0041\\x{42}", "AB", "0-2,");
    check_matches("\\p{L}", "\U00010d50", "0-4,"); /* of Unicode 16 */
    check_matches("a.", "a\nab", "2-4,");
}
END_TEST

START_TEST(expressions_that_mean_something_else_are_refused)
{
    static const char *const patterns[] = {
        "\\w",       "\\b",   "\\h",     "(a+)+",  "(?:ab)*",    "(a|b){2}", "[[a]]",
        "[a&&b]",    "\\1",   "(?<n>a)", "(?m:a)", "\\p{Alpha}", "a{1,2}+",  "[\\P{L}]",
        "\\R",       "\\X",   "(?i)a",   "\\xe9",  "[]a]",       "a{,2}",    "\\K",
        "a{1,2}{3}", "[\\D]", "\\Z",     "\\G",    "(?#c)a",     "(*FAIL)",  "\\Qa"};
    for (size_t i = 0; i < sizeof patterns / sizeof patterns[0]; i++) {
        regex *r;
        err_info info = {0};
        const regex_source source = {"test", view(patterns[i])};
        const err_t err = regex_open(&source, &r, &info);
        ck_assert_msg(err == ERR_UNSUPPORTED || err == ERR_BAD_MODEL, "%s: %s", patterns[i],
                      err_name(err));
        ck_assert_ptr_null(r);
        ck_assert(strstr(info.message, "test: ") == info.message);
    }
}
END_TEST

START_TEST(a_match_over_its_limit_is_an_error)
{
    enum { N_BYTES = 1 << 12 }; /* n^4 ways to share them out, all in vain */
    regex *const r = open_regex("a*a*a*a*b\\d");
    regex_scratch *s;
    regex_walk walk;
    regex_match m;
    char *const text = malloc(N_BYTES);
    ck_assert_ptr_nonnull(text);
    memset(text, 'a', N_BYTES);
    text[N_BYTES - 1] = 'b';
    ck_assert(regex_scratch_open(&s) == ERR_OK);
    regex_walk_init(&walk, r, s, (text_view){text, N_BYTES});
    ck_assert(regex_walk_next(&walk, &m) == ERR_BAD_REQUEST);
    regex_scratch_close(s);
    regex_close(r);
    free(text);
}
END_TEST

/* ---- normal forms -------------------------------------------------------------------------------- */

static void check_form(unicode_form form, const char *text, const char *expected)
{
    text_buffer out = {0};
    ck_assert(unicode_normalize(form, view(text), &out) == ERR_OK);
    ck_assert_msg(out.n_bytes == strlen(expected) && memcmp(out.bytes, expected, out.n_bytes) == 0,
                  "\"%s\" becomes \"%.*s\"", text, (int)out.n_bytes, out.bytes);
    free(out.bytes);
}

START_TEST(normal_forms_are_unicodes)
{
    check_form(UNICODE_NFC, "e\u0301 A\u030a", "\u00e9 \u00c5");
    check_form(UNICODE_NFC, "\u212b\u2126", "\u00c5\u03a9");
    check_form(UNICODE_NFD, "\u00e9\u1e69", "e\u0301s\u0323\u0307");
    check_form(UNICODE_NFC, "s\u0307\u0323", "\u1e69"); /* the marks change places */
    check_form(UNICODE_NFKC, "\ufb01\u00bd\uff21", "fi1\u20442A");
    check_form(UNICODE_NFKD, "\ufdfa",
               "\u0635\u0644\u0649 \u0627\u0644\u0644\u0647 \u0639\u0644"
               "\u064a\u0647 \u0648\u0633\u0644\u0645");
    check_form(UNICODE_NFC, "\u1112\u1161\u11ab", "\ud55c");
    check_form(UNICODE_NFC, "a\u1ac1\u1abf", "a\u1ac1\u1abf"); /* newer than the library's tables */
}
END_TEST

/* Many marks are counted, few are inserted: the same order. */
START_TEST(long_runs_of_marks_are_ordered_as_short_ones)
{
    char text[512] = "a", expected[512] = "a";
    for (int i = 0; i < 40; i++)
        strcat(text, i % 2 == 0 ? "\u0301" : "\u0316");
    for (int i = 0; i < 40; i++)
        strcat(expected, i < 20 ? "\u0316" : "\u0301");
    check_form(UNICODE_NFD, text, expected);
}
END_TEST

/* ---- merges -------------------------------------------------------------------------------------- */

static bpe *open_bpe(const bpe_settings *settings)
{
    static const char *const pieces[] = {"a", "b", "c", "ab", "bc", "abc", "<u>", "aa", "whole"};
    const bpe_limits limits = {.n_ids = 9, .n_pieces = 9, .n_merges = 8, .pieces_bytes = 64};
    bpe *b;
    ck_assert(bpe_open(&limits, &b) == ERR_OK);
    for (uint32_t i = 0; i < 9; i++)
        ck_assert(bpe_add_piece(b, i, view(pieces[i])) == ERR_OK);
    ck_assert(bpe_add_piece(b, 8, view("new")) == ERR_BAD_MODEL);
    ck_assert(bpe_add_merge(b, view("b"), view("c")) == ERR_OK);
    ck_assert(bpe_add_merge(b, view("a"), view("b")) == ERR_OK);
    ck_assert(bpe_add_merge(b, view("a"), view("bc")) == ERR_OK);
    ck_assert(bpe_add_merge(b, view("a"), view("a")) == ERR_OK);
    ck_assert(bpe_add_merge(b, view("a"), view("x")) == ERR_BAD_MODEL);
    ck_assert(bpe_add_merge(b, view("c"), view("c")) == ERR_BAD_MODEL);
    bpe_finish(b, settings);
    return b;
}

static void check_word(const bpe_settings *settings, const char *word, const char *expected)
{
    char found[256] = "";
    bpe *const b = open_bpe(settings);
    bpe_scratch scratch = {0};
    id_list ids = {0};
    ck_assert(bpe_encode(b, &scratch, view(word), &ids) == ERR_OK);
    for (size_t i = 0; i < ids.n; i++) {
        const text_view piece = bpe_piece(b, ids.id[i]);
        (void)snprintf(found + strlen(found), sizeof found - strlen(found), "%.*s ",
                       (int)piece.n_bytes, piece.bytes);
    }
    ck_assert_msg(strcmp(found, expected) == 0, "\"%s\": %s", word, found);
    free(ids.id);
    bpe_scratch_deinit(&scratch);
    bpe_close(b);
}

START_TEST(merges_go_by_rank_then_from_the_left)
{
    const bpe_settings plain = {.unk = BPE_NO_ID}, unk = {.unk = 6},
                       fused = {.unk = 6, .fuse_unk = true},
                       ignoring = {.unk = BPE_NO_ID, .ignore_merges = true};
    check_word(&plain, "abc", "abc "); /* b c first, not a b */
    check_word(&plain, "aaa", "aa a ");
    check_word(&plain, "abab", "ab ab ");
    check_word(&plain, "axyb", "ab "); /* without an unknown token nothing stands for x and y */
    check_word(&unk, "axyb", "a <u> <u> b ");
    check_word(&fused, "axyb", "a <u> b ");
    check_word(&plain, "", "");
    check_word(&plain, "whole", "");
    check_word(&ignoring, "whole", "whole ");
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE(expressions_mean_what_they_mean_to_oniguruma),
    TEST_CASE(expressions_that_mean_something_else_are_refused),
    TEST_CASE(a_match_over_its_limit_is_an_error),
    TEST_CASE(normal_forms_are_unicodes),
    TEST_CASE(long_runs_of_marks_are_ordered_as_short_ones),
    TEST_CASE(merges_go_by_rank_then_from_the_left),
    TEST_CASES_END,
};
