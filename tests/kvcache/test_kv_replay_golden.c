/* tests/kvcache/test_kv_replay_golden.c - scores of `kvzip` against those that others computed: the golden
 * layer, whose hidden states are replayed at the positions behind them. */
#include "tests/kvcache/golden_cache.h"
#include "tests/test_main.h"

#include "kvcache/kv_replay.h"

#include <math.h>

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

const test_case test_cases[] = {
    TEST_CASE(a_replay_of_the_golden_layer_has_the_golden_scores),
    TEST_CASES_END,
};
