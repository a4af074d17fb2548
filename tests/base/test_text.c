/* tests/base/test_text.c - UTF-8, the log, random numbers, hashes: everything with known answers. */
#include "base/hash.h"
#include "base/log.h"
#include "base/random.h"
#include "base/utf8.h"
#include "tests/test_main.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef struct utf8_case {
    const char *text;
    utf8_status status;
    unsigned bytes;
} utf8_case;

START_TEST(utf8_follows_table_3_7)
{
    static const utf8_case cases[] = {
        {"a", UTF8_COMPLETE, 1},
        {"\x7f", UTF8_COMPLETE, 1},
        {"\xc2\x80", UTF8_COMPLETE, 2},
        {"\xdf\xbf", UTF8_COMPLETE, 2},
        {"\xe0\xa0\x80", UTF8_COMPLETE, 3},
        {"\xed\x9f\xbf", UTF8_COMPLETE, 3},
        {"\xef\xbf\xbf", UTF8_COMPLETE, 3},
        {"\xf0\x90\x80\x80", UTF8_COMPLETE, 4},
        {"\xf4\x8f\xbf\xbf", UTF8_COMPLETE, 4},
        {"\x80", UTF8_INVALID, 1},
        {"\xc0\x80", UTF8_INVALID, 1},         /* overlong */
        {"\xc1\xbf", UTF8_INVALID, 1},         /* overlong */
        {"\xe0\x9f\xbf", UTF8_INVALID, 1},     /* overlong */
        {"\xed\xa0\x80", UTF8_INVALID, 1},     /* surrogate */
        {"\xf0\x8f\xbf\xbf", UTF8_INVALID, 1}, /* overlong */
        {"\xf4\x90\x80\x80", UTF8_INVALID, 1}, /* above U+10FFFF */
        {"\xf5\x80", UTF8_INVALID, 1},
        {"\xff", UTF8_INVALID, 1},
        {"\xc2\x41", UTF8_INVALID, 1},
        {"\xe1\x80\x41", UTF8_INVALID, 2},
        {"\xf1\x80\x80\x41", UTF8_INVALID, 3},
        {"\xc2", UTF8_INCOMPLETE, 1},
        {"\xe1\x80", UTF8_INCOMPLETE, 2},
        {"\xf0\x9f\x98", UTF8_INCOMPLETE, 3},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const utf8_step step = utf8_next(cases[i].text, strlen(cases[i].text));
        ck_assert_msg(step.status == cases[i].status && step.bytes == cases[i].bytes,
                      "case %zu: status %d, %u bytes", i, step.status, step.bytes);
    }
}
END_TEST

/* The example of Unicode 15, section 3.9, table 3-8. */
START_TEST(invalid_runs_become_one_replacement_each)
{
    static const char text[] = "a\xf1\x80\x80\xe1\x80\xc2"
                               "b\x80"
                               "c\x80\xbf"
                               "d";
    static const char want[] = "a\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"
                               "b\xef\xbf\xbd"
                               "c\xef\xbf\xbd\xef\xbf\xbd"
                               "d";
    char out[3 * sizeof text];
    const size_t n = utf8_repair_into(text, sizeof text - 1, out);
    ck_assert_uint_eq(n, sizeof want - 1);
    ck_assert_mem_eq(out, want, n);
    ck_assert(!utf8_valid(text, sizeof text - 1));
    ck_assert(utf8_valid(want, sizeof want - 1));
    ck_assert_uint_eq(utf8_count(text, sizeof text - 1), 10);
    ck_assert_uint_eq(utf8_repair_into("\xf0\x9f", 2, out), 3);
}
END_TEST

/* What one call of the log writes, without its time. Free it. */
static char *logged(log_format format, const char *value)
{
    char *text = NULL;
    size_t bytes = 0;
    FILE *stream = open_memstream(&text, &bytes);
    ck_assert_ptr_nonnull(stream);
    log_init(&(log_config){.stream = stream, .level = LOG_INFO, .format = format});
    log_info("engine", "step value=%s", value);
    log_debug("engine", "not written");
    log_init(&(log_config){.stream = NULL});
    fclose(stream);
    return text;
}

START_TEST(a_log_line_is_text_or_json)
{
    char *line = logged(LOG_TEXT, "7");
    ck_assert_uint_eq(strlen("2026-11-21T10:11:12.345Z"), 24);
    ck_assert_str_eq(line + 24, " info  engine: step value=7\n");
    ck_assert_int_eq(line[10], 'T');
    ck_assert_int_eq(line[23], 'Z');
    free(line);
    line = logged(LOG_JSON, "7");
    ck_assert_int_eq(strncmp(line, "{\"time\":\"2", 10), 0);
    ck_assert_str_eq(line + 9 + 24, "\",\"level\":\"info\",\"module\":\"engine\","
                                    "\"message\":\"step value=7\"}\n");
    free(line);
}
END_TEST

START_TEST(control_characters_never_reach_the_log)
{
    char *line = logged(LOG_TEXT, "a\nb\x1b[2J\x7f\xc2\x9b\xff\"\\");
    ck_assert_str_eq(strstr(line, "value="), "value=a\\nb\\x1b[2J\\x7f\\x9b\xef\xbf\xbd\"\\\n");
    free(line);
    line = logged(LOG_JSON, "a\nb\x1b\xc2\x9b\"\\");
    ck_assert_str_eq(strstr(line, "value="), "value=a\\nb\\u001b\\u009b\\\"\\\\\"}\n");
    free(line);
}
END_TEST

START_TEST(a_huge_log_value_is_cut_but_the_line_ends)
{
    static char huge[20000];
    memset(huge, '\x01', sizeof huge - 1);
    for (int format = LOG_TEXT; format <= LOG_JSON; format++) {
        char *line = logged((log_format)format, huge);
        const char *end = format == LOG_JSON ? "...\"}\n" : "\n";
        ck_assert_str_eq(line + strlen(line) - strlen(end), end);
        ck_assert_ptr_eq(strchr(line, '\n'), line + strlen(line) - 1);
        ck_assert_ptr_null(strchr(line, '\x01'));
        free(line);
    }
}
END_TEST

/* Random123's kat_vectors for philox4x32-10. */
START_TEST(philox_gives_the_published_numbers)
{
    const random_block zero = random_at(0, 0, 0);
    const random_block ones = random_at(UINT64_MAX, UINT64_MAX, UINT64_MAX);
    const random_block pi = random_at(UINT64_C(0x299f31d0a4093822), UINT64_C(0x0370734413198a2e),
                                      UINT64_C(0x85a308d3243f6a88));
    static const uint32_t want[3][4] = {{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8},
                                        {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd},
                                        {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}};
    ck_assert_mem_eq(zero.word, want[0], sizeof want[0]);
    ck_assert_mem_eq(ones.word, want[1], sizeof want[1]);
    ck_assert_mem_eq(pi.word, want[2], sizeof want[2]);
}
END_TEST

START_TEST(uniform_numbers_are_below_one_and_even)
{
    double sum = 0;
    for (uint64_t i = 0; i < 100000; i++) {
        const float x = random_uniform(5, 6, i);
        ck_assert(x >= 0);
        ck_assert(x < 1);
        sum += (double)x;
    }
    ck_assert_double_eq_tol(sum / 100000, 0.5, 0.005);
}
END_TEST

/* SipHash-2-4-128 of 0, 1, ..., 14 under the key 0, 1, ..., 15 (the authors' vectors). */
START_TEST(siphash_gives_the_published_value)
{
    hash_key key;
    uint8_t data[15];
    for (uint8_t i = 0; i < 16; i++)
        key.bytes[i] = i;
    for (uint8_t i = 0; i < 15; i++)
        data[i] = i;
    ck_assert_int_eq(hash_init(), ERR_OK);
    static const uint8_t want[16] = {0x54, 0x93, 0xe9, 0x99, 0x33, 0xb0, 0xa8, 0x11,
                                     0x7e, 0x08, 0xec, 0x0f, 0x97, 0xcf, 0xc3, 0xd9};
    const hash128 got = hash_bytes(&key, data, sizeof data);
    for (unsigned i = 0; i < 8; i++) {
        ck_assert_uint_eq(got.lo >> 8 * i & 0xff, want[i]);
        ck_assert_uint_eq(got.hi >> 8 * i & 0xff, want[8 + i]);
    }
    ck_assert(hash128_equal(got, hash_bytes(&key, data, sizeof data)));
    ck_assert(!hash128_equal(got, hash_bytes(&key, data, 14)));
}
END_TEST

START_TEST(secrets_are_compared_by_their_sha256)
{
    uint8_t a[HASH_SECRET_BYTES], b[HASH_SECRET_BYTES];
    static const uint8_t abc[4] = {0xba, 0x78, 0x16, 0xbf}; /* FIPS 180: SHA-256("abc") */
    ck_assert_int_eq(hash_init(), ERR_OK);
    hash_secret("abc", 3, a);
    hash_secret("abd", 3, b);
    ck_assert_mem_eq(a, abc, sizeof abc);
    ck_assert(hash_secret_equal(a, a));
    ck_assert(!hash_secret_equal(a, b));
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE(utf8_follows_table_3_7),
    TEST_CASE(invalid_runs_become_one_replacement_each),
    TEST_CASE(a_log_line_is_text_or_json),
    TEST_CASE(control_characters_never_reach_the_log),
    TEST_CASE(a_huge_log_value_is_cut_but_the_line_ends),
    TEST_CASE(philox_gives_the_published_numbers),
    TEST_CASE(uniform_numbers_are_below_one_and_even),
    TEST_CASE(siphash_gives_the_published_value),
    TEST_CASE(secrets_are_compared_by_their_sha256),
    TEST_CASES_END,
};
