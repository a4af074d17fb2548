/* tests/kvcache/test_kv_replay_golden.c - scores of `kvzip` against those that others computed: the golden
 * layer, whose hidden states are replayed at the positions behind them. */
#include "tests/kernels/golden_layer.h"
#include "tests/kvcache/fake_model.h"
#include "tests/test_main.h"

#include "kvcache/kv_replay.h"

#include <math.h>

/* Tokens [0, n) of the golden layer at the end of the sequence. */
static void golden_step(fake *f, kv_seq *seq, bool is_replay)
{
    enum { T = GOLDEN_TOKENS, D = GOLDEN_DIM, HQ = GOLDEN_HEADS, HK = 2 };
    static float q[T][HQ][D], k[T][HK][D], v[T][HK][D], out[T][HQ][D];
    const uint32_t by = kv_seq_length(seq);
    for (uint32_t t = 0; t < T; t++) {
        for (uint32_t h = 0; h < HQ; h++)
            golden_query_at(h, t, by + t, q[t][h]);
        for (uint32_t h = 0; h < HK; h++) {
            golden_key_at(h, t, by + t, k[t][h]);
            golden_value(h, t, v[t][h]);
        }
    }
    const kv_row row = {.seq = seq, .n_tokens = T, .is_replay = is_replay};
    ck_assert_int_eq(kv_step_begin(f->cache, &row, 1), ERR_OK);
    kv_append(f->cache, &(kv_append_args){.layer = 0, .k = **k, .v = **v});
    kv_attend(f->cache, &(kv_attend_args){.layer = 0, .q = **q, .out = **out});
    kv_step_end(f->cache);
}

START_TEST(a_replay_of_the_golden_layer_has_the_golden_scores)
{
    const kv_layer_shape layer = {.n_heads = GOLDEN_HEADS,
                                  .n_kv_heads = 2,
                                  .k_dim = GOLDEN_DIM,
                                  .v_dim = GOLDEN_DIM,
                                  .scale = 1 / sqrtf(GOLDEN_DIM)};
    for (uint32_t i = 0; i < 2; i++) {
        fake_options options = {.layers = &layer, .n_layers = 1, .isa = i == 0 ? "ref" : "auto"};
        options.config = fake_defaults();
        options.config.scheduling = (char *)(uintptr_t) "kvzip";
        options.config.budget = 0.5;
        fake *f = fake_open(&options);
        kv_seq *seq;
        double sum = 0;
        ck_assert_int_eq(
            kv_seq_open(f->cache, &(kv_seq_options){.salt = "", .n_prompt_tokens = GOLDEN_TOKENS},
                        &seq),
            ERR_OK);
        golden_step(f, seq, false);
        golden_step(f, seq, true);
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
