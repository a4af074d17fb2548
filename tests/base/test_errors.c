/* tests/base/test_errors.c - errors, checked arithmetic, the arena. */
#include "base/arena.h"
#include "base/check.h"
#include "tests/test_main.h"

#include <string.h>

START_TEST(every_code_has_a_name_and_a_sentence)
{
    for (int code = 0; code < ERR_COUNT; code++) {
        ck_assert_int_gt((int)strlen(err_sentence((err_t)code)), 0);
        ck_assert_int_eq(strncmp(err_name((err_t)code), "ERR_", 4), 0);
    }
    ck_assert_str_eq(err_name(ERR_IO), "ERR_IO");
    ck_assert_str_eq(err_sentence((err_t)9999), "unknown error");
}
END_TEST

START_TEST(the_first_failure_wins)
{
    err_info info = {0};
    ck_assert_int_eq(err_set(&info, ERR_IO, "first %d", 1), ERR_IO);
    ck_assert_int_eq(err_set(&info, ERR_TIMEOUT, "second"), ERR_TIMEOUT);
    ck_assert_int_eq(info.code, ERR_IO);
    ck_assert_str_eq(info.message, "first 1");
    ck_assert_int_eq(err_set(NULL, ERR_IO, "nobody asked"), ERR_IO);
}
END_TEST

START_TEST(a_message_is_one_clean_line_of_valid_text)
{
    err_info info = {0};
    (void)err_set(&info, ERR_IO, "a\nb\x1b[31m \xff \xc2\x85 \xc3\xa9%s", "");
    ck_assert_str_eq(info.message, "a?b?[31m ? ?? \xc3\xa9");
}
END_TEST

START_TEST(a_long_message_is_cut_between_characters)
{
    err_info info = {0};
    char text[400];
    memset(text, 'x', sizeof text);
    memcpy(text + ERR_MESSAGE_BYTES - 2, "\xe2\x82\xac", 4); /* would be cut in its middle */
    (void)err_set(&info, ERR_IO, "%s", text);
    ck_assert_uint_eq(strlen(info.message), ERR_MESSAGE_BYTES - 2);
}
END_TEST

START_TEST(arithmetic_that_overflows_is_reported)
{
    size_t out = 7;
    ck_assert_int_eq(size_mul(SIZE_MAX / 2, 3, &out), ERR_OVERFLOW);
    ck_assert_int_eq(size_add(SIZE_MAX, 1, &out), ERR_OVERFLOW);
    ck_assert_uint_eq(out, 7);
    ck_assert_int_eq(size_mul(6, 7, &out), ERR_OK);
    ck_assert_uint_eq(out, 42);
    ck_assert_uint_eq(round_up(65, 64), 128);
}
END_TEST

typedef struct pieces {
    uint8_t *a, *b;
    uint64_t *c;
} pieces;

static pieces place(arena *a)
{
    pieces p;
    p.a = arena_take(a, 3, 1);
    p.b = arena_take(a, 0, 8);
    p.c = arena_take(a, 100, sizeof *p.c);
    return p;
}

START_TEST(a_measured_arena_fits_exactly)
{
    arena measure, a;
    arena_init_measure(&measure);
    (void)place(&measure);
    ck_assert_int_eq(measure.err, ERR_OK);
    ck_assert_int_eq(arena_init(&a, measure.used_bytes), ERR_OK);
    const pieces p = place(&a);
    ck_assert_int_eq(a.err, ERR_OK);
    ck_assert_uint_eq(a.used_bytes, measure.used_bytes);
    ck_assert_uint_eq((uintptr_t)p.a % ARENA_ALIGN, 0);
    ck_assert_uint_eq((uintptr_t)p.c % ARENA_ALIGN, 0);
    for (size_t i = 0; i < 100; i++) {
        ck_assert_uint_eq(p.c[i], 0);
        p.c[i] = i;
    }
    ck_assert_ptr_null(arena_take(&a, 1, 1));
    ck_assert_int_eq(a.err, ERR_NO_MEMORY);
    arena_reset(&a);
    ck_assert_int_eq(a.err, ERR_OK);
    ck_assert_ptr_eq(place(&a).c, p.c);
    arena_deinit(&a);
    arena_deinit(&a);
}
END_TEST

START_TEST(an_arena_remembers_its_first_failure)
{
    arena a;
    arena_init_measure(&a);
    ck_assert_ptr_null(arena_take(&a, SIZE_MAX, 2));
    ck_assert_int_eq(a.err, ERR_OVERFLOW);
    ck_assert_ptr_null(arena_take(&a, 1, 1));
    ck_assert_int_eq(a.err, ERR_OVERFLOW);
    arena_init_measure(&a);
    (void)arena_take(&a, SIZE_MAX - 200, 1);
    (void)arena_take(&a, 300, 1);
    ck_assert_int_eq(a.err, ERR_OVERFLOW);
    ck_assert_int_eq(arena_init(&a, SIZE_MAX), ERR_OVERFLOW);
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE(every_code_has_a_name_and_a_sentence),
    TEST_CASE(the_first_failure_wins),
    TEST_CASE(a_message_is_one_clean_line_of_valid_text),
    TEST_CASE(a_long_message_is_cut_between_characters),
    TEST_CASE(arithmetic_that_overflows_is_reported),
    TEST_CASE(a_measured_arena_fits_exactly),
    TEST_CASE(an_arena_remembers_its_first_failure),
    TEST_CASES_END,
};
