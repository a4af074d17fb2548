/* tests/kvcache/test_kv_cache_golden.c - methods that take a cache to run, against what the published programs
 * returned on the golden layer: what observers keep for scorers, and what is chosen again and again. */
#include "tests/kvcache/golden_cache.h"
#include "tests/kvcache/score_problem.h"
#include "tests/test_main.h"

#include "kvcache/evict.h"
#include "kvcache/local_mass.h"
#include "kvcache/observed.h"
#include "kvcache/scoring/allocator.h"

#include <math.h>

enum { T = GOLDEN_TOKENS, HALF = T / 2, N_HEADS = GOLDEN_KV_HEADS };

/* Pages of `page_tokens`, with neither ring nor sinks: all that is in whole pages may go. */
static fake_options bare_options(const char *scheduling, double budget, uint32_t page_tokens)
{
    fake_options options = {.config = fake_defaults(), .no_prefix_caching = true, .isa = "auto"};
    options.config.scheduling = (char *)(uintptr_t)scheduling;
    options.config.budget = budget;
    options.config.page_tokens = page_tokens;
    options.config.window_tokens = 0;
    options.config.sink_tokens = 0;
    return options;
}

static void check_held(const fake *f, const kv_seq *seq, const uint64_t want[N_HEADS])
{
    for (uint32_t head = 0; head < N_HEADS; head++) {
        const uint64_t held = golden_held(f, seq, head);
        ck_assert_msg(held == want[head], "head %u: %012lx", head, (unsigned long)held);
    }
}

/* The first 24 entries, then rounds of 8 more. */
START_TEST(rounds_of_keydiff_keep_the_golden_sets)
{
    fake *f = golden_open(bare_options("keydiff", HALF, 8));
    kv_seq *seq = golden_seq(f, HALF);
    golden_feed(f, seq, (golden_tokens){.first = 0, .n = HALF});
    for (uint32_t t = HALF; t < T; t++)
        golden_feed(f, seq, (golden_tokens){.first = t, .n = 1});
    ck_assert_int_eq(kv_seq_settle(seq), ERR_OK);
    check_held(f, seq, (uint64_t[]){0xbb232f33a892, 0x936696598ad9});
    kv_seq_close(seq, NULL);
    fake_close(f);
}
END_TEST

/* ---- without causality --------------------------------------------------------------------------- */

/* z-scores of all entries of both heads, as published, from scores of the table's scorer. */
static void standardise(float score[N_HEADS][T])
{
    enum { N = N_HEADS * T };
    double mean = 0, square = 0;
    for (uint32_t i = 0; i < N; i++)
        mean += (double)score[i / T][i % T] / N;
    for (uint32_t i = 0; i < N; i++)
        square += pow((double)score[i / T][i % T] - mean, 2) / (N - 1);
    for (uint32_t i = 0; i < N; i++)
        score[i / T][i % T] = (float)(((double)score[i / T][i % T] - mean) / sqrt(square));
}

/* Parts of 16, in steps of 48, of 5 or of 1 token. */
START_TEST(attention_without_causality_is_the_golden_one)
{
    static const uint32_t steps[] = {T, 5, 1};
    for (uint32_t i = 0; i < sizeof steps / sizeof *steps; i++) {
        fake *f = golden_open(bare_options("non_causal", 0.5, 4));
        float score[N_HEADS][T];
        f->cache->local_tokens = 16;
        kv_seq *seq = golden_seq(f, T);
        for (uint32_t t = 0; t < T; t += steps[i]) {
            const uint32_t n = T - t < steps[i] ? T - t : steps[i];
            golden_feed(f, seq, (golden_tokens){.first = t, .n = n});
        }
        kv_local_finish(seq, 0);
        for (uint32_t head = 0; head < N_HEADS; head++) {
            score_problem p;
            score_problem_golden(&p, head, 1);
            memcpy(p.local, kv_observed_local(seq, 0, head), T * sizeof *p.local);
            score_problem_run(&p, kv_scorer_find("non_causal"), NAN, score[head]);
            score_problem_deinit(&p);
        }
        standardise(score);
        ck_assert_double_eq_tol((double)score[0][10], 2.9209104, 5e-6);
        ck_assert_double_eq_tol((double)score[1][20], -0.3898527, 5e-6);
        ck_assert_int_eq(kv_seq_settle(seq), ERR_OK);
        check_held(f, seq, (uint64_t[]){0x20e73fc38f03, 0x47f438a0fe1c});
        kv_seq_close(seq, NULL);
        fake_close(f);
    }
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE(rounds_of_keydiff_keep_the_golden_sets),
    TEST_CASE(attention_without_causality_is_the_golden_one),
    TEST_CASES_END,
};
