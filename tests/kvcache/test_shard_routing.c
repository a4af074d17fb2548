/* tests/kvcache/test_shard_routing.c - methods that choose shards, against their formulas. */
#include "kvcache/routing/ranking.h"
#include "tests/test_main.h"

#include <string.h>

enum { N_PAGES = 8, N_SHARDS = 4 };

/* Four shards; shard 3 has nothing. Of two query heads the larger bound counts. */
static const uint16_t SHARD[N_PAGES] = {0, 1, 0, 2, 0, 1, 0, 2};
static const uint16_t N_LIVE[N_PAGES] = {32, 32, 32, 8, 32, 16, 32, 8};
static const float BOUND[2 * N_PAGES] = {1.0f, 2.0f, 3.0f, 0.5f, 5.0f, 1.0f, 0.0f, 4.2f,
                                         1.5f, 4.5f, 0.0f, 0.0f, 1.0f, 1.0f, 1.0f, 1.0f};

static uint32_t choose(const char *name, double k, const float *misses, uint32_t *chosen)
{
    static float priority[N_PAGES];
    static uint32_t order[N_PAGES], shard_order[N_SHARDS];
    static double rest[2 * (N_PAGES + 1)], scale[2];
    static bool is_chosen[N_PAGES];
    static kv_route_shard shards[N_SHARDS];
    const kv_route_settings settings = {.k = k};
    const kv_route_args args = {
        .settings = &settings,
        .n_pages = N_PAGES,
        .n_open = N_PAGES,
        .group = 2,
        .n_shards = N_SHARDS,
        .n_ranks = 1,
        .is_scattered = true,
        .shard = SHARD,
        .misses = misses,
        .n_live = N_LIVE,
        .bound = BOUND,
        .work = {priority, order, rest, scale, is_chosen, shards, shard_order}};
    return kv_routing_find(name)->select(&args, chosen);
}

static void check_shard(const char *name, double k, const float *misses, uint32_t shard)
{
    uint32_t chosen[N_PAGES], n_expected = 0;
    const uint32_t n = choose(name, k, misses, chosen);
    for (uint32_t i = 0; i < N_PAGES; i++) {
        if (SHARD[i] != shard) continue;
        ck_assert_uint_lt(n_expected, n);
        ck_assert_uint_eq(chosen[n_expected++], i);
    }
    ck_assert_uint_eq(n, n_expected);
}

/* Bounds are 5, 4.5 and 4.2; 0.3 of three shards is one. */
START_TEST(without_misses_pikv_reads_the_shards_with_the_largest_bounds)
{
    uint32_t chosen[N_PAGES];
    check_shard("pikv", 0.3, NULL, 0);
    check_shard("pikv", 0.3, (const float[]){0, 0, 0, 0}, 0);
    ck_assert_uint_eq(choose("pikv", 2, NULL, chosen), 6);
    ck_assert_uint_eq(choose("pikv", 3, NULL, chosen), N_PAGES);
    ck_assert_uint_eq(choose("pikv", 1000, NULL, chosen), N_PAGES);
}
END_TEST

/* 5 - 0.5 ln(1 + m) falls below 4.5 at m = e - 1, and below 4.2 at m = e^1.6 - 1 = 3.953. */
START_TEST(misses_take_half_their_logarithm_from_a_shard)
{
    check_shard("pikv", 0.3, (const float[]){1.7f, 0, 0, 0}, 0);
    check_shard("pikv", 0.3, (const float[]){1.8f, 0, 0, 0}, 1);
    check_shard("pikv", 0.3, (const float[]){3.9f, 10, 0, 0}, 0);
    check_shard("pikv", 0.3, (const float[]){4.0f, 10, 0, 0}, 2);
}
END_TEST

/* Loads 128, 48 and 16, mean 64: 5 - 1, 4.5 + 0.25 and 4.2 + 0.75. */
START_TEST(topk_balanced_takes_the_load_above_the_mean_from_a_bound)
{
    uint32_t chosen[N_PAGES];
    check_shard("topk_balanced", 0.3, NULL, 2);
    ck_assert_uint_eq(choose("topk_balanced", 2, NULL, chosen), 4);
    ck_assert_mem_eq(chosen, ((const uint32_t[]){1, 3, 5, 7}), 4 * sizeof *chosen);
    ck_assert_uint_eq(choose("topk_balanced", 3, NULL, chosen), N_PAGES);
}
END_TEST

/* Two pages: shard 0 alone has four, twice the budget; page 7 and its 4.2 are not looked at. */
START_TEST(hierarchical_takes_pages_from_the_best_shards)
{
    uint32_t chosen[N_PAGES];
    ck_assert_uint_eq(choose("hierarchical", 2, NULL, chosen), 2);
    ck_assert_mem_eq(chosen, ((const uint32_t[]){2, 4}), 2 * sizeof *chosen);
    ck_assert_uint_eq(choose("hierarchical", 3, NULL, chosen), 3); /* and of shard 1 */
    ck_assert_mem_eq(chosen, ((const uint32_t[]){1, 2, 4}), 3 * sizeof *chosen);
    ck_assert_uint_eq(choose("hierarchical", 8, NULL, chosen), N_PAGES);
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE(without_misses_pikv_reads_the_shards_with_the_largest_bounds),
    TEST_CASE(misses_take_half_their_logarithm_from_a_shard),
    TEST_CASE(topk_balanced_takes_the_load_above_the_mean_from_a_bound),
    TEST_CASE(hierarchical_takes_pages_from_the_best_shards),
    TEST_CASES_END,
};
