/* tests/kvcache/test_kv_allocators.c - budgets of layers and heads, by number. */
#include "kvcache/scoring/allocator.h"
#include "kvcache/scoring/pyramid.h"
#include "tests/test_main.h"

#include "base/random.h"

#include <math.h>
#include <stdlib.h>

/* ---- pyramid ----------------------------------------------------------------------------------------- */

static uint32_t layer_keeps(kv_layer_share_args args, uint32_t layer)
{
    args.layer = layer;
    return kv_allocator_find("pyramid")->layer_share(&args);
}

/* Budgets of the first, the second, the middle and the last layer, and their sum. */
typedef struct pyramid_row {
    uint32_t n, n_window, n_layers, n_keep;
    uint32_t share[4], sum;
} pyramid_row;

START_TEST(pyramid_has_the_golden_budgets)
{
    static const pyramid_row rows[] = {
        {48, 4, 4, 24, {44, 31, 17, 4}, 96},
        {4096, 64, 32, 2048, {3994, 3868, 1985, 102}, 65536},
        {4096, 64, 32, 3072, {4032, 3970, 3041, 2112}, 98304},
        {4096, 64, 32, 1024, {1024, 1024, 1024, 1024}, 32768},
        {4096, 64, 32, 409, {409, 409, 409, 409}, 32 * 409},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        const pyramid_row *r = &rows[i];
        const kv_layer_share_args args = {
            .n_layers = r->n_layers, .n = r->n, .n_window = r->n_window, .n_keep = r->n_keep};
        const uint32_t layers[4] = {0, 1, r->n_layers / 2, r->n_layers - 1};
        uint32_t sum = 0;
        for (uint32_t k = 0; k < 4; k++)
            ck_assert_uint_eq(layer_keeps(args, layers[k]), r->share[k]);
        for (uint32_t l = 0; l < r->n_layers; l++)
            sum += layer_keeps(args, l);
        ck_assert_uint_eq(sum, r->sum);
    }
}
END_TEST

/* There the average is no whole number, which the cache does not ask for. */
START_TEST(pyramid_has_the_golden_budgets_of_a_broken_average)
{
    static const struct {
        uint32_t n, share[4], sum;
    } rows[] = {{131072, {25559, 24756, 12706, 655}, 419430},
                {4096, {410, 410, 410, 410}, 32 * 410}};
    static const uint32_t layers[] = {0, 1, 16, 31};
    for (uint32_t i = 0; i < 2; i++) {
        const kv_pyramid p = {
            .n = rows[i].n, .n_window = 64, .n_layers = 32, .n_keep = rows[i].n * (1 - 0.9)};
        double sum = 0;
        for (uint32_t k = 0; k < 4; k++)
            ck_assert_double_eq(nearbyint(kv_pyramid_share(&p, layers[k])), rows[i].share[k]);
        for (uint32_t l = 0; l < 32; l++)
            sum += nearbyint(kv_pyramid_share(&p, l));
        ck_assert_double_eq(sum, rows[i].sum);
    }
}
END_TEST

static void check_deep(kv_layer_share_args args, const uint32_t *want)
{
    for (args.layer = 0; args.layer < args.n_layers; args.layer++)
        ck_assert_uint_eq(kv_allocator_find("deep")->layer_share(&args), want[args.layer]);
}

START_TEST(deep_leaves_the_first_two_layers_whole)
{
    kv_layer_share_args args = {.n_layers = 5, .n = 100, .n_window = 10, .n_keep = 80};
    check_deep(args, (uint32_t[]){100, 100, 67, 67, 66});
    args.n_keep = 46; /* the later ones have their window, and no more */
    check_deep(args, (uint32_t[]){100, 100, 10, 10, 10});
    args.n_keep = 45;
    check_deep(args, (uint32_t[]){45, 45, 45, 45, 45});
    args.n_keep = 100;
    check_deep(args, (uint32_t[]){100, 100, 100, 100, 100});
    args.n_keep = 75;
    args.n_layers = 2; /* the second is a later one here */
    check_deep(args, (uint32_t[]){100, 50});
    args.n_layers = 1;
    check_deep(args, (uint32_t[]){75});
}
END_TEST

static void check_simlayer(kv_layer_share_args args, const uint32_t *want)
{
    for (args.layer = 0; args.layer < args.n_layers; args.layer++)
        ck_assert_uint_eq(kv_allocator_find("simlayer")->layer_share(&args), want[args.layer]);
}

START_TEST(simlayer_fills_layers_in_the_order_of_laziness)
{
    static const double lazy[] = {0.7, 0.2, 0.95, 0.7, 0.3};
    kv_layer_share_args args = {.n_layers = 5,
                                .n = 100,
                                .n_window = 8,
                                .n_sinks = 2,
                                .n_keep = 50,
                                .lazy = lazy,
                                .lazy_threshold = 1};
    check_simlayer(args, (uint32_t[]){30, 100, 10, 10, 100});
    args.n_keep = 80; /* of equal ones the first comes first */
    check_simlayer(args, (uint32_t[]){100, 100, 10, 90, 100});
    args.n_keep = 90;
    check_simlayer(args, (uint32_t[]){100, 100, 50, 100, 100});
    args.lazy_threshold = 0.9; /* is lazy whatever the budget leaves */
    check_simlayer(args, (uint32_t[]){100, 100, 10, 100, 100});
    args.lazy_threshold = 0.7; /* which 0.7 is not above */
    check_simlayer(args, (uint32_t[]){100, 100, 10, 100, 100});
    args.lazy_threshold = 0.25;
    check_simlayer(args, (uint32_t[]){10, 100, 10, 10, 10});
    args.n_keep = 100; /* nothing has to go */
    check_simlayer(args, (uint32_t[]){100, 100, 100, 100, 100});
    args.n_keep = 10; /* windows and sinks, and no more */
    check_simlayer(args, (uint32_t[]){10, 10, 10, 10, 10});
    args.n_keep = 3;
    check_simlayer(args, (uint32_t[]){3, 3, 3, 3, 3});
}
END_TEST

/* ---- heads -------------------------------------------------------------------------------------------- */

enum { HEADS_MAX = 8, N_MAX = 64 };

typedef struct heads {
    uint32_t n_heads, n_keep;
    uint32_t n[HEADS_MAX];
    float score[HEADS_MAX][N_MAX];
    const float *retrieval;
} heads;

static void split(const char *name, const heads *s, uint32_t *n_keep)
{
    const float *score[HEADS_MAX];
    float work[HEADS_MAX];
    for (uint32_t h = 0; h < s->n_heads; h++)
        score[h] = s->score[h];
    kv_allocator_find(name)->split(&(kv_split_args){.n_layers = 1,
                                                    .n_heads = s->n_heads,
                                                    .length = N_MAX,
                                                    .n = s->n,
                                                    .score = score,
                                                    .n_keep = s->n_keep,
                                                    .retrieval = s->retrieval,
                                                    .work = work},
                                   n_keep);
}

static void check_split(const char *name, const heads *s, const uint32_t *want)
{
    uint32_t n_keep[HEADS_MAX];
    split(name, s, n_keep);
    for (uint32_t h = 0; h < s->n_heads; h++)
        ck_assert_msg(n_keep[h] == want[h], "%s: head %u keeps %u, not %u", name, h, n_keep[h],
                      want[h]);
}

START_TEST(uniform_gives_what_short_heads_leave_to_the_others)
{
    check_split("uniform", &(heads){4, 10, {20, 20, 20, 20}, {{0}}, NULL},
                (uint32_t[]){10, 10, 10, 10});
    check_split("uniform", &(heads){4, 10, {3, 20, 0, 20}, {{0}}, NULL},
                (uint32_t[]){3, 19, 0, 18});
    check_split("uniform", &(heads){4, 10, {3, 12, 0, 60}, {{0}}, NULL},
                (uint32_t[]){3, 12, 0, 25});
    check_split("uniform", &(heads){3, 10, {3, 2, 4}, {{0}}, NULL}, (uint32_t[]){3, 2, 4});
}
END_TEST

/* Head 0 has all the large scores. */
START_TEST(adakv_leaves_every_head_its_floor)
{
    heads s = {.n_heads = 2, .n_keep = 10, .n = {40, 40}};
    for (uint32_t i = 0; i < 40; i++) {
        s.score[0][i] = 100 + (float)i;
        s.score[1][i] = (float)i;
    }
    check_split("adakv", &s, (uint32_t[]){18, 2});
    s.n_keep = 0;
    check_split("adakv", &s, (uint32_t[]){0, 0});
    s.n_keep = 40;
    check_split("adakv", &s, (uint32_t[]){40, 40});
    s.n[0] = 5; /* its part goes to the other */
    s.n_keep = 10;
    check_split("adakv", &s, (uint32_t[]){5, 15});
}
END_TEST

START_TEST(adakv_deals_equal_scores_evenly)
{
    const heads s = {.n_heads = 3, .n_keep = 7, .n = {40, 40, 40}};
    check_split("adakv", &s, (uint32_t[]){7, 7, 7});
}
END_TEST

START_TEST(duo_attention_fills_heads_in_the_order_of_the_pattern)
{
    static const float retrieval[] = {0.1f, 0.9f, 0.5f, 0.9f};
    heads s = {.n_heads = 4, .n_keep = 15, .n = {25, 25, 25, 25}, .retrieval = retrieval};
    check_split("duo_attention", &s, (uint32_t[]){0, 25, 10, 25});
    s.n[1] = 7;
    check_split("duo_attention", &s, (uint32_t[]){3, 7, 25, 25});
}
END_TEST

START_TEST(duo_attention_without_a_pattern_fills_heads_that_look_far_back)
{
    heads s = {.n_heads = 3, .n_keep = 10, .n = {20, 20, 20}};
    for (uint32_t i = 0; i < 20; i++) {
        s.score[0][i] = -1 + (float)i / 20; /* recent, and negative */
        s.score[1][i] = i == 3 ? 9 : 0;     /* old */
        s.score[2][i] = 1;                  /* both */
    }
    check_split("duo_attention", &s, (uint32_t[]){0, 20, 10});
}
END_TEST

/* ---- the best ------------------------------------------------------------------------------------------ */

START_TEST(of_equal_scores_the_earlier_are_kept)
{
    static const float score[] = {1, 3, 0.0f, 3, -0.0f, 3, -5, 0.0f};
    uint32_t index[9] = {0};
    index[8] = 777;
    kv_keep_best(score, 8, 2, index);
    ck_assert_mem_eq(index, ((uint32_t[]){1, 3}), 2 * sizeof *index);
    kv_keep_best(score, 8, 6, index);
    ck_assert_mem_eq(index, ((uint32_t[]){0, 1, 2, 3, 4, 5}), 6 * sizeof *index);
    kv_keep_best(score, 8, 8, index);
    for (uint32_t i = 0; i < 8; i++)
        ck_assert_uint_eq(index[i], i);
    ck_assert_uint_eq(index[8], 777);
    kv_keep_best(score, 8, 0, NULL);
    kv_keep_best(NULL, 0, 0, NULL);
}
END_TEST

static bool is_better(const float *score, uint32_t a, uint32_t b)
{
    return score[a] > score[b] || (score[a] == score[b] && a < b);
}

START_TEST(the_best_are_those_that_counting_finds)
{
    enum { N = 300 };
    for (uint64_t seed = 0; seed < 40; seed++) {
        float score[N];
        uint32_t index[N], n_found = 0;
        const uint32_t n_keep = random_at(seed, 1, 0).word[0] % (N + 1);
        for (uint32_t i = 0; i < N; i++) {
            const float x = random_uniform(seed, 2, i) - 0.5f;
            score[i] = seed % 2 == 0 ? nearbyintf(20 * x) : x * powf(10, (float)(seed % 70) - 35);
        }
        kv_keep_best(score, N, n_keep, index);
        for (uint32_t i = 0; i < N; i++) {
            uint32_t n_better = 0;
            for (uint32_t j = 0; j < N; j++)
                n_better += is_better(score, j, i);
            if (n_better >= n_keep) continue;
            ck_assert_uint_lt(n_found, n_keep);
            ck_assert_uint_eq(index[n_found++], i);
        }
        ck_assert_uint_eq(n_found, n_keep);
    }
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE(pyramid_has_the_golden_budgets),
    TEST_CASE(pyramid_has_the_golden_budgets_of_a_broken_average),
    TEST_CASE(deep_leaves_the_first_two_layers_whole),
    TEST_CASE(simlayer_fills_layers_in_the_order_of_laziness),
    TEST_CASE(uniform_gives_what_short_heads_leave_to_the_others),
    TEST_CASE(adakv_leaves_every_head_its_floor),
    TEST_CASE(adakv_deals_equal_scores_evenly),
    TEST_CASE(duo_attention_fills_heads_in_the_order_of_the_pattern),
    TEST_CASE(duo_attention_without_a_pattern_fills_heads_that_look_far_back),
    TEST_CASE(of_equal_scores_the_earlier_are_kept),
    TEST_CASE(the_best_are_those_that_counting_finds),
    TEST_CASES_END,
};
