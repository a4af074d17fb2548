/* tests/kvcache/test_kv_replay_golden.c - scores of `kvzip` and `kvzip_plus` against those that others computed: the golden
 * layer, whose hidden states are replayed at the positions behind them. */
#include "tests/kvcache/golden_cache.h"
#include "tests/kvcache/score_problem.h"
#include "tests/test_main.h"

#include "kvcache/kv_replay.h"
#include "kvcache/scoring/methods.h"

#include <math.h>

static void score_all(const kv_score_args *args, float *out)
{
    kv_kvzip_plus_score(args, 0, out);
}

START_TEST(a_replay_of_the_golden_layer_has_the_golden_scores)
{
    for (uint32_t i = 0; i < 2; i++) {
        fake_options options = {.config = fake_defaults(), .isa = i == 0 ? "ref" : "auto"};
        options.config.scheduling = (char *)(uintptr_t) "kvzip";
        options.config.budget = 0.5;
        fake *f = golden_open(options);
        kv_seq *seq = golden_seq(f, GOLDEN_TOKENS);
        double sum = 0;
        golden_feed(f, seq, (golden_tokens){.n = GOLDEN_TOKENS});
        golden_feed(f, seq, (golden_tokens){.n = GOLDEN_TOKENS, .is_replay = true});
        const float *head_0 = kv_replay_scores(seq, 0, 0), *head_1 = kv_replay_scores(seq, 0, 1);
        for (uint32_t t = 0; t < GOLDEN_TOKENS; t++)
            sum += exp((double)head_0[t]) + exp((double)head_1[t]);
        ck_assert_double_eq_tol(exp((double)head_0[10]), 0.8997231, 2e-6);
        ck_assert_double_eq_tol(exp((double)head_1[20]), 0.1510233, 2e-6);
        ck_assert_double_eq_tol(sum, 17.974915, 2e-5);
        ck_assert_uint_eq(kv_seq_end_replay(seq), GOLDEN_TOKENS);
        kv_seq_close(seq, NULL);
        fake_close(f);
    }
}
END_TEST

/* The sums have no first positions: those of a whole prompt's replay are scored like all others. */
START_TEST(a_replay_weighted_by_outputs_has_the_golden_scores)
{
    enum { T = GOLDEN_TOKENS, GROUP = GOLDEN_HEADS / GOLDEN_KV_HEADS };
    for (uint32_t i = 0; i < 2; i++) {
        fake_options options = {.config = fake_defaults(), .isa = i == 0 ? "ref" : "auto"};
        options.config.scheduling = (char *)(uintptr_t) "kvzip_plus";
        options.config.budget = 0.5;
        fake *f = golden_open(options);
        kv_seq *seq = golden_seq(f, T);
        float score[GOLDEN_KV_HEADS][T];
        double sum = 0;
        golden_feed(f, seq, (golden_tokens){.n = T});
        golden_feed(f, seq, (golden_tokens){.n = T / 2, .is_replay = true}); /* in two steps */
        golden_feed(f, seq, (golden_tokens){.first = T / 2, .n = T / 2, .is_replay = true});
        for (uint32_t head = 0; head < GOLDEN_KV_HEADS; head++) {
            score_problem p;
            score_problem_golden(&p, head, 1);
            for (uint32_t k = 0; k < GROUP * T; k++)
                p.replay[k] = expf(kv_replay_scores(seq, 0, head)[k]);
            const kv_scorer unprotected = {.name = "kvzip_plus",
                                           .needs = UINT32_MAX,
                                           .work_floats = kv_scorer_find("kvzip_plus")->work_floats,
                                           .score = score_all};
            score_problem_run(&p, &unprotected, NAN, score[head]);
            for (uint32_t t = 0; t < T; t++)
                sum += (double)score[head][t];
            score_problem_deinit(&p);
        }
        ck_assert_double_eq_tol((double)score[0][10], 1.6425746, 4e-6);
        ck_assert_double_eq_tol((double)score[1][20], 0.1200482, 1e-6);
        ck_assert_double_eq_tol(sum, 24.301029, 4e-5);
        ck_assert_uint_eq(kv_seq_end_replay(seq), T);
        kv_seq_close(seq, NULL);
        fake_close(f);
    }
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE(a_replay_of_the_golden_layer_has_the_golden_scores),
    TEST_CASE(a_replay_weighted_by_outputs_has_the_golden_scores),
    TEST_CASES_END,
};
