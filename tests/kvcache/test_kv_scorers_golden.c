/* tests/kvcache/test_kv_scorers_golden.c - scorers against what the published programs returned on the
 * golden layer, alone and with budgets of heads. */
#include "tests/kernels/golden_layer.h"
#include "tests/kvcache/score_problem.h"
#include "tests/test_main.h"

#include "kvcache/scoring/allocator.h"
#include "kvcache/scoring/methods.h"
#include "kvcache/scoring/whole_pages.h"

#include <math.h>
#include <stdlib.h>

enum { T = GOLDEN_TOKENS, HALF = T / 2, N_HEADS = 2 };

/* ---- inputs ---------------------------------------------------------------------------------------- */

START_TEST(the_streams_begin_as_published)
{
    static const struct {
        uint64_t seed;
        double scale, first;
    } weights[] = {
        {2, .75, 0.13678460}, {3, .75, -0.57982449}, {4, .5, -0.06854418}, {5, .5, -0.11323195}};
    static const double x[] = {0.13312315, 0.49156351, 0.94200551};
    for (uint32_t i = 0; i < 3; i++)
        ck_assert_double_eq_tol(golden_uniform(1, i, 1), x[i], 5e-9);
    for (size_t i = 0; i < sizeof weights / sizeof weights[0]; i++)
        ck_assert_double_eq_tol(golden_uniform(weights[i].seed, 0, weights[i].scale),
                                weights[i].first, 5e-9);
}
END_TEST

/* ---- scores ---------------------------------------------------------------------------------------- */

/* Methods under the numbers that the golden ones were made with, as if they were in the table. */
static void expected_plain(const kv_score_args *args, float *out)
{
    kv_expected_score(args, &(kv_expected_settings){.n_future = 16, .eps = 0}, out);
}

static void expected_eps_01(const kv_score_args *args, float *out)
{
    kv_expected_score(args, &(kv_expected_settings){.n_future = 16, .eps = 0.01f}, out);
}

static void expected_eps_02(const kv_score_args *args, float *out)
{
    kv_expected_score(args, &(kv_expected_settings){.n_future = 16, .eps = 0.02f}, out);
}

static void cap_16(const kv_score_args *args, float *out)
{
    kv_cap_score(args, &(kv_cap_settings){.n_future = 16, .tau = 5}, out);
}

static void lagkv_16(const kv_score_args *args, float *out)
{
    kv_lagkv_score(args, 16, out);
}

static void snapkv_unpooled(const kv_score_args *args, float *out)
{
    kv_snapkv_score(args, 1, out);
}

typedef void score_fn(const kv_score_args *args, float *out);

/* The scores of one KV head of the golden layer under a window of n_queries. */
static void golden_scores(const char *name, score_fn *score, uint32_t n_queries, uint32_t head,
                          float out[T])
{
    score_problem p;
    kv_scorer scorer = *kv_scorer_find(name);
    if (score != NULL) scorer.score = score;
    score_problem_golden(&p, head, n_queries);
    score_problem_run(&p, &scorer, NAN, out);
    score_problem_deinit(&p);
}

static uint64_t kept_mask(const float score[T], uint32_t n_keep)
{
    uint32_t index[T];
    uint64_t mask = 0;
    kv_keep_best(score, T, n_keep, index);
    for (uint32_t i = 0; i < n_keep; i++)
        mask |= UINT64_C(1) << index[i];
    return mask;
}

static void check_score(const char *name, float got, double want)
{
    if (isnan(want)) return;
    ck_assert_msg(fabs((double)got - want) <= 2e-8 + 3e-6 * fabs(want), "%s: %.9g is not %.9g",
                  name, (double)got, want);
}

/* Kept at one half, score of entry 10 in head 0 and of entry 20 in head 1. */
typedef struct golden_row {
    const char *name;
    score_fn *score; /* NULL: the table's */
    uint32_t n_queries;
    uint64_t mask[N_HEADS];    /* 0: sets are not comparable */
    double score_10, score_20; /* NAN: not published */
    double margin
        [N_HEADS]; /* by which the worst that is kept beats the best that is not; 0: likewise */
} golden_row;

static const golden_row GOLDEN[] = {
    {"knorm", NULL, 1, {0x9f0cfa2a394a, 0x0c15aee5db31}, -7.6953106, -4.9408894, {.039, .097}},
    {"keydiff", NULL, 1, {0xdb0f2639a2c5, 0xc8a6aed888db}, -0.2695686, -0.1158824, {.0081, .014}},
    {"snapkv", NULL, 16, {0xffff00001f64, 0xffff05c8d000}, 0.03722924, 0.02688440, {9e-4, 1e-4}},
    {"observed_attention",
     NULL,
     1,
     {0x004235c5b7ff, 0x02ca1963e4ff},
     0.16279653,
     0.02727253,
     {2.6e-4, 1.6e-3}},
    {"expected_attention",
     expected_plain,
     1,
     {0x62e200c7b73f, 0xf7e25071244f},
     1.16552639,
     0.04742035,
     {5e-4, 2e-4}},
    {"expected_attention",
     expected_eps_02,
     1,
     {0xe2e20097979f, 0xf7e210a5264f},
     1.22262466,
     0.08224937,
     {7e-4, 8e-4}},
    {"cur", NULL, 1, {0xc2e265d3149f, 0xb3e2552624cf}, 0.06032436, 0.01622982, {1e-4, 1.5e-3}},
    {"criticalkv",
     NULL,
     16,
     {0xffff00001fd0, 0xffff04a43140},
     0.87034148,
     0.34730184,
     {.066, .006}},
    {"cap", cap_16, 1, {0x42d0d0d23f3f, 0x5c66a8e544af}, 0.15320410, 0.00935566, {.0044, .0127}},
    {"finch", NULL, 16, {0xffff040504b1, 0xffff114a20c0}, (double)NAN, (double)NAN, {0, 0}},
    {"lagkv", lagkv_16, 1, {0, 0}, 0.9375, 1.0, {0, 0}},
    {"dropkv", NULL, 16, {0, 0}, 16.801177, 0.12313688, {0, 0}},
};

/* To the digits that were published: one, two or three. */
static void check_margin(const golden_row *row, uint32_t head, const float score[T])
{
    const uint64_t mask = row->mask[head];
    const double want = row->margin[head];
    float least = INFINITY, most = -INFINITY;
    for (uint32_t i = 0; i < T; i++) {
        if ((mask >> i & 1) != 0) least = fminf(least, score[i]);
        if ((mask >> i & 1) == 0) most = fmaxf(most, score[i]);
    }
    const double digit = pow(10, floor(log10(want)));
    ck_assert_msg(want == 0 || fabs((double)(least - most) - want) <= digit / 2,
                  "%s, head %u: %g is not %g", row->name, head, (double)(least - most), want);
}

START_TEST(scores_and_kept_sets_are_the_golden_ones)
{
    for (size_t i = 0; i < sizeof GOLDEN / sizeof GOLDEN[0]; i++) {
        const golden_row *row = &GOLDEN[i];
        for (uint32_t head = 0; head < N_HEADS; head++) {
            float score[T];
            golden_scores(row->name, row->score, row->n_queries, head, score);
            check_score(row->name, score[head == 0 ? 10 : 20],
                        head == 0 ? row->score_10 : row->score_20);
            if (row->mask[head] == 0) continue;
            ck_assert_msg(kept_mask(score, HALF) == row->mask[head], "%s, head %u: %012lx",
                          row->name, head, (unsigned long)kept_mask(score, HALF));
            check_margin(row, head, score);
        }
    }
}
END_TEST

START_TEST(tova_keeps_the_golden_set_in_all_heads)
{
    float score[N_HEADS][T], mean[T];
    for (uint32_t head = 0; head < N_HEADS; head++)
        golden_scores("tova", NULL, 1, head, score[head]);
    for (uint32_t i = 0; i < T; i++)
        mean[i] = (score[0][i] + score[1][i]) / 2;
    ck_assert(kv_scorer_find("tova")->over_heads);
    check_score("tova", mean[10], 0.00930490);
    check_score("tova", mean[20], 0.00108427);
    ck_assert_uint_eq(kept_mask(mean, HALF), 0xb3ea5906a665);
}
END_TEST

START_TEST(streaming_llm_keeps_sinks_and_the_newest)
{
    for (uint32_t head = 0; head < N_HEADS; head++) {
        float score[T];
        golden_scores("streaming_llm", NULL, 1, head, score);
        ck_assert_uint_eq(kept_mask(score, HALF), 0xfffff000000f);
    }
}
END_TEST

/* 12 of the newest and the 12 heaviest before them. */
START_TEST(h2o_beside_a_ring_keeps_the_golden_set)
{
    static const uint64_t want[N_HEADS] = {0xfff0050106bf, 0xfff0010064ff};
    for (uint32_t head = 0; head < N_HEADS; head++) {
        float score[T];
        golden_scores("h2o", NULL, 1, head, score);
        for (uint32_t i = T - 12; i < T; i++)
            score[i] = 1e6f; /* the ring */
        ck_assert_uint_eq(kept_mask(score, HALF), want[head]);
    }
}
END_TEST

/* Where the published method drops sinks, since all protected entries tie. */
START_TEST(lagkv_keeps_sinks_before_the_newest)
{
    for (uint32_t head = 0; head < N_HEADS; head++) {
        float score[T];
        golden_scores("lagkv", lagkv_16, 1, head, score);
        ck_assert_uint_eq(kept_mask(score, HALF), 0xfffff000000f);
    }
}
END_TEST

/* Under a window of 16 and chunks of 10: two of five chunks, the last of which is short. */
START_TEST(chunkkv_keeps_the_golden_chunks_in_all_heads)
{
    float score[N_HEADS][T], mean[T];
    uint32_t page[T], index[T], n_open[T], n_kept[T];
    double sums[T];
    const kv_page_sums pages = {page, sums, n_open, n_kept, 5};
    uint64_t mask = 0;
    for (uint32_t head = 0; head < N_HEADS; head++)
        golden_scores("chunkkv", NULL, 16, head, score[head]);
    for (uint32_t i = 0; i < T; i++) {
        mean[i] = (score[0][i] + score[1][i]) / 2;
        page[i] = i / 10;
    }
    ck_assert(kv_scorer_find("chunkkv")->over_heads && kv_scorer_find("chunkkv")->by_page);
    kv_pages_average(&pages, 0, T, mean);
    kv_keep_best(mean, T, HALF, index);
    const uint32_t n = kv_pages_keep_whole(&pages, 0, index, HALF);
    ck_assert_uint_eq(n, 18);
    for (uint32_t i = 0; i < n; i++)
        mask |= UINT64_C(1) << index[i];
    ck_assert_uint_eq(mask, 0xffffc0000000);
}
END_TEST

/* Half of every 20 entries, and of the 8 that are left. */
START_TEST(knorm_keeps_the_golden_set_of_every_chunk)
{
    enum { CHUNK = 20 };
    static const uint64_t want[N_HEADS] = {0x8b0cfaaa794a, 0x8d15aea5db21};
    for (uint32_t head = 0; head < N_HEADS; head++) {
        float score[T];
        uint64_t mask = 0;
        golden_scores("knorm", NULL, 1, head, score);
        for (uint32_t first = 0; first < T; first += CHUNK) {
            const uint32_t n = T - first < CHUNK ? T - first : CHUNK;
            uint32_t index[CHUNK];
            kv_keep_best(score + first, n, n / 2, index);
            for (uint32_t i = 0; i < n / 2; i++)
                mask |= UINT64_C(1) << (first + index[i]);
        }
        ck_assert_uint_eq(mask, want[head]);
    }
}
END_TEST

/* What the authors' program of PyramidKV keeps in the first and the last of 4 layers, window 4, 14 on average:
 * 22 and 7 by its own budgets. */
START_TEST(snapkv_keeps_the_golden_sets_of_a_pyramid)
{
    static const uint32_t n_keep[] = {22, 7};
    static const uint64_t want[2][N_HEADS] = {{0xf1ff8003009f, 0xf7e007c38170},
                                              {0xf00000000007, 0xf38000000000}};
    for (uint32_t i = 0; i < 2; i++) {
        for (uint32_t head = 0; head < N_HEADS; head++) {
            float score[T];
            golden_scores("snapkv", NULL, 4, head, score);
            ck_assert_uint_eq(kept_mask(score, n_keep[i]), want[i][head]);
        }
    }
}
END_TEST

/* 4 first and 16 newest ones before the query's own, which is not counted. */
START_TEST(a_layer_is_as_lazy_as_the_golden_one)
{
    enum { N_INITIAL = 4, N_RECENT = 16, LAST = T - 1 };
    const kv_allocator *simlayer = kv_allocator_find("simlayer");
    double lazy = 0;
    for (uint32_t head = 0; head < N_HEADS; head++) {
        score_problem p;
        score_problem_golden(&p, head, 1);
        const kv_score_shape shape = {
            .n_max = T, .group = p.group, .k_dim = p.k_dim, .v_dim = p.v_dim, .n_queries = 1};
        float *work = malloc(simlayer->laziness_floats(&shape) * sizeof *work);
        ck_assert_ptr_nonnull(work);
        p.args.work = work;
        lazy += simlayer->laziness(&p.args, N_INITIAL, LAST - N_RECENT) / N_HEADS;
        free(work);
        score_problem_deinit(&p);
    }
    ck_assert_double_eq_tol(lazy, 0.5356846, 2e-7);
}
END_TEST

/* ---- with budgets of heads ------------------------------------------------------------------- */

/* What two heads keep of T each at one half. */
static void split_golden(float score[N_HEADS][T], uint32_t n_keep[N_HEADS])
{
    static const uint32_t n[N_HEADS] = {T, T};
    const kv_allocator *adakv = kv_allocator_find("adakv");
    const float *const scores[N_HEADS] = {score[0], score[1]};
    float work[N_HEADS];
    ck_assert_uint_eq(adakv->work_floats(N_HEADS, T), N_HEADS);
    adakv->split(&(kv_split_args){.n_layers = 1,
                                  .n_heads = N_HEADS,
                                  .length = T,
                                  .n = n,
                                  .score = scores,
                                  .n_keep = HALF,
                                  .work = work},
                 n_keep);
}

static void check_adakv(const char *name, score_fn *score, const uint64_t want[N_HEADS])
{
    float scores[N_HEADS][T];
    uint32_t n_keep[N_HEADS];
    for (uint32_t head = 0; head < N_HEADS; head++)
        golden_scores(name, score, 16, head, scores[head]);
    split_golden(scores, n_keep);
    ck_assert_uint_eq(n_keep[0], 25);
    ck_assert_uint_eq(n_keep[1], 23);
    for (uint32_t head = 0; head < N_HEADS; head++)
        ck_assert_uint_eq(kept_mask(scores[head], n_keep[head]), want[head]);
}

START_TEST(adakv_keeps_the_golden_sets)
{
    check_adakv("snapkv", NULL, (uint64_t[]){0xffff00001fe4, 0xffff04c8d000});
    check_adakv("expected_attention", expected_eps_01,
                (uint64_t[]){0xe2e2009797bf, 0xf7e21035244f});
}
END_TEST

/* CriticalAdaKV: heads get their budgets by snapkv's scores and spend them by criticalkv's. */
START_TEST(criticalkv_with_budgets_of_adakv_keeps_the_golden_sets)
{
    static const uint64_t want[N_HEADS] = {0xffff00021fd0, 0xffff04a43040};
    float scores[N_HEADS][T];
    uint32_t n_keep[N_HEADS];
    for (uint32_t head = 0; head < N_HEADS; head++)
        golden_scores("snapkv", NULL, 16, head, scores[head]);
    split_golden(scores, n_keep);
    for (uint32_t head = 0; head < N_HEADS; head++) {
        score_problem p;
        score_problem_golden(&p, head, 16);
        p.args.n_keep = n_keep[head];
        score_problem_run(&p, kv_scorer_find("criticalkv"), NAN, scores[head]);
        ck_assert_uint_eq(kept_mask(scores[head], n_keep[head]), want[head]);
        score_problem_deinit(&p);
    }
}
END_TEST

/* The authors' program: window 16, maximum over 7 neighbours, 28 kept of 48 on average. */
enum { WINDOW = 16, OLD = T - WINDOW, BASE = 28 - WINDOW };

static void pool_scores(uint32_t head, float pooled[OLD])
{
    float score[T];
    golden_scores("snapkv", snapkv_unpooled, WINDOW, head, score);
    for (uint32_t i = 0; i < OLD; i++) {
        pooled[i] = score[i];
        for (uint32_t j = i < 3 ? 0 : i - 3; j < OLD && j <= i + 3; j++)
            pooled[i] = fmaxf(pooled[i], score[j]);
    }
}

/* By the share of its best BASE in all. */
static void normalise(float pooled[OLD])
{
    uint32_t index[BASE];
    double best = 0, all = 0;
    kv_keep_best(pooled, OLD, BASE, index);
    for (uint32_t i = 0; i < BASE; i++)
        best += (double)pooled[index[i]];
    for (uint32_t i = 0; i < OLD; i++)
        all += (double)pooled[i];
    for (uint32_t i = 0; i < OLD; i++)
        pooled[i] = (float)((double)pooled[i] * best / all);
}

static void check_published_split(bool is_normalised, const uint32_t want[N_HEADS])
{
    static const uint32_t n[N_HEADS] = {OLD, OLD};
    float pooled[N_HEADS][OLD], work[N_HEADS];
    const float *const scores[N_HEADS] = {pooled[0], pooled[1]};
    uint32_t n_keep[N_HEADS];
    for (uint32_t head = 0; head < N_HEADS; head++) {
        pool_scores(head, pooled[head]);
        if (is_normalised) normalise(pooled[head]);
    }
    kv_allocator_find("adakv")->split(&(kv_split_args){.n_layers = 1,
                                                       .n_heads = N_HEADS,
                                                       .length = T,
                                                       .n = n,
                                                       .score = scores,
                                                       .n_keep = BASE,
                                                       .work = work},
                                      n_keep);
    for (uint32_t head = 0; head < N_HEADS; head++)
        ck_assert_uint_eq(n_keep[head] + WINDOW, want[head]);
}

/* It rounds 13.2 and 10.0 and keeps 29 and 26, one less than allowed. */
START_TEST(adakv_loses_nothing_where_the_published_program_does)
{
    check_published_split(false, (uint32_t[]){30, 26});
    check_published_split(true, (uint32_t[]){32, 24}); /* where it loses nothing */
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE(the_streams_begin_as_published),
    TEST_CASE(scores_and_kept_sets_are_the_golden_ones),
    TEST_CASE(tova_keeps_the_golden_set_in_all_heads),
    TEST_CASE(streaming_llm_keeps_sinks_and_the_newest),
    TEST_CASE(chunkkv_keeps_the_golden_chunks_in_all_heads),
    TEST_CASE(h2o_beside_a_ring_keeps_the_golden_set),
    TEST_CASE(lagkv_keeps_sinks_before_the_newest),
    TEST_CASE(knorm_keeps_the_golden_set_of_every_chunk),
    TEST_CASE(snapkv_keeps_the_golden_sets_of_a_pyramid),
    TEST_CASE(a_layer_is_as_lazy_as_the_golden_one),
    TEST_CASE(adakv_keeps_the_golden_sets),
    TEST_CASE(criticalkv_with_budgets_of_adakv_keeps_the_golden_sets),
    TEST_CASE(adakv_loses_nothing_where_the_published_program_does),
    TEST_CASES_END,
};
