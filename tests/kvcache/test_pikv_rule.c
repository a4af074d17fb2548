/* tests/kvcache/test_pikv_rule.c - which codec a page gets by its importance. */
#include "tests/test_main.h"

#include "base/random.h"
#include "kvcache/compression/codec.h"
#include "kvcache/compression/pikv_rule.h"

#include <math.h>
#include <string.h>

enum { PAGES_MAX = 300 };

static void assign(const float *importance, uint32_t n, uint8_t *heat)
{
    float copy[PAGES_MAX];
    uint32_t order[PAGES_MAX];
    for (uint32_t p = 0; p < n; p++)
        copy[p] = importance[p];
    const kv_heat_args args = {.importance = copy, .n_pages = n, .order = order};
    memset(heat, KV_HEAT_HOT, n);
    heat[n] = 77;
    kv_heat_assign(&args, heat);
    ck_assert_uint_eq(heat[n], 77);
}

static void check(uint32_t n, const float *importance, const uint8_t *want)
{
    uint8_t heat[PAGES_MAX + 1];
    assign(importance, n, heat);
    for (uint32_t p = 0; p < n; p++)
        ck_assert_msg(heat[p] == want[p], "page %u of %u: %u, not %u", p, n, heat[p], want[p]);
}

START_TEST(the_better_half_is_hot_and_the_last_quarter_coldest)
{
    check(8, (float[]){3, 8, 1, 6, 2, 7, 5, 4}, (uint8_t[]){1, 0, 2, 0, 2, 0, 0, 1});
    check(4, (float[]){-1, 1e30f, 0, 1}, (uint8_t[]){2, 0, 1, 0});
    check(3, (float[]){1, 3, 2}, (uint8_t[]){1, 0, 0});
    check(1, (float[]){0}, (uint8_t[]){0});
}
END_TEST

START_TEST(of_equal_pages_the_earlier_are_hotter)
{
    check(8, (float[]){5, 5, 5, 5, 5, 5, 5, 5}, (uint8_t[]){0, 0, 0, 0, 1, 1, 2, 2});
}
END_TEST

START_TEST(what_is_not_a_number_is_hot)
{
    check(4, (float[]){NAN, -INFINITY, 1, 2}, (uint8_t[]){0, 2, 1, 0});
}
END_TEST

START_TEST(the_shares_hold_for_every_number_of_pages_and_no_page_is_hotter_than_a_better_one)
{
    for (uint32_t n = 0; n < PAGES_MAX; n++) {
        float importance[PAGES_MAX];
        uint8_t heat[PAGES_MAX + 1];
        uint32_t count[KV_HEAT_COUNT] = {0};
        for (uint32_t p = 0; p < n; p++)
            importance[p] = floorf(random_uniform(n, 1, p) * 50); /* some are equal */
        assign(importance, n, heat);
        float least[KV_HEAT_COUNT] = {INFINITY, INFINITY, INFINITY},
              most[KV_HEAT_COUNT] = {-1, -1, -1};
        for (uint32_t p = 0; p < n; p++) {
            count[heat[p]]++;
            least[heat[p]] = fminf(least[heat[p]], importance[p]);
            most[heat[p]] = fmaxf(most[heat[p]], importance[p]);
        }
        ck_assert(least[KV_HEAT_HOT] >= most[KV_HEAT_COLD]);
        ck_assert(fminf(least[KV_HEAT_HOT], least[KV_HEAT_COLD]) >= most[KV_HEAT_COLDEST]);
        ck_assert_uint_eq(count[KV_HEAT_HOT], n - n / 2);
        ck_assert_uint_eq(count[KV_HEAT_COLDEST], n / 4);
    }
}
END_TEST

START_TEST(its_codecs_are_listed)
{
    for (int i = 0; i < KV_HEAT_COUNT; i++)
        ck_assert_ptr_nonnull(kv_codec_find(kv_heat_codecs[i]));
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE(the_better_half_is_hot_and_the_last_quarter_coldest),
    TEST_CASE(of_equal_pages_the_earlier_are_hotter),
    TEST_CASE(what_is_not_a_number_is_hot),
    TEST_CASE(the_shares_hold_for_every_number_of_pages_and_no_page_is_hotter_than_a_better_one),
    TEST_CASE(its_codecs_are_listed),
    TEST_CASES_END,
};
