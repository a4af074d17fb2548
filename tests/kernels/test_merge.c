/* tests/kernels/test_merge.c - the merge of parts against numbers computed elsewhere in float64: query
 * 47 of head 0 attends to token ranges [0,16), [16,40) and [40,48). */
#include "tests/kernels/fixture.h"
#include "tests/kernels/golden_layer.h"

enum { N_TOKENS = GOLDEN_TOKENS, DIM = GOLDEN_DIM, N_PARTS = 3 };

typedef struct layer {
    float q[DIM], k[N_TOKENS][DIM], v[N_TOKENS][DIM];
} layer;

static layer make_layer(void)
{
    layer l;
    for (uint32_t t = 0; t < N_TOKENS; t++) {
        golden_key(0, t, l.k[t]);
        golden_value(0, t, l.v[t]);
    }
    golden_query(0, N_TOKENS - 1, l.q);
    ck_assert_double_eq_tol((double)l.k[0][0], -1.46190044, 1e-6);
    ck_assert_double_eq_tol((double)l.k[1][2], 0.51423602, 1e-6);
    return l;
}

static void attend_range(const dev_ops *ops, const layer *l, const uint32_t range[2], float *o,
                         float *lse)
{
    const uint32_t position = N_TOKENS - 1;
    const attn_span span = {.k = l->k[range[0]],
                            .v = l->v[range[0]],
                            .k_stride_bytes = sizeof l->k[0],
                            .v_stride_bytes = sizeof l->v[0],
                            .n_slots = range[1] - range[0],
                            .first_position = range[0],
                            .live = UINT64_MAX};
    const attn_block block = {0, 1};
    const attn_query query = {.q = l->q,
                              .positions = &position,
                              .n_queries = 1,
                              .group = 1,
                              .k_dim = DIM,
                              .v_dim = DIM,
                              .scale = 0.35355339059f,
                              .type = DTYPE_F32};
    float max, sum, acc[DIM];
    attn_state state = {&max, &sum, acc};
    attn_state_reset(&state, 1, DIM);
    ops->attend(&query, &(attn_blocks){&span, &block, 1}, &state);
    attn_finish(&query, &state, &(attn_result){.o = o, .o_stride = DIM, .lse = lse});
}

START_TEST(three_token_ranges_merge_to_the_golden_numbers)
{
    static const uint32_t ranges[N_PARTS + 1][2] = {{0, 16}, {16, 40}, {40, 48}, {0, N_TOKENS}};
    static const double want_lse[N_PARTS] = {6.751950, 6.307479, 4.479743};
    const layer l = make_layer();
    for (const dev_ops *const *t = dev_cpu_tables(); *t != NULL; t++) {
        float o[N_PARTS + 1][DIM], lse[N_PARTS + 1], merged[DIM], merged_lse;
        for (uint32_t r = 0; r <= N_PARTS; r++)
            attend_range(*t, &l, ranges[r], o[r], &lse[r]);
        for (uint32_t r = 0; r < N_PARTS; r++)
            ck_assert_double_eq_tol((double)lse[r], want_lse[r], 2e-6);
        const attn_merge_args args = {.o = o[0],
                                      .part_stride = DIM,
                                      .lse = lse,
                                      .n_parts = N_PARTS,
                                      .v_dim = DIM,
                                      .out = merged,
                                      .out_lse = &merged_lse};
        attn_merge(&args);
        ck_assert_double_eq_tol((double)merged[0], 0.646515466, 2e-6);
        assert_near(merged, o[N_PARTS], DIM, (tolerance){2e-6, 2e-6}, 0);
        assert_near(&merged_lse, &lse[N_PARTS], 1, (tolerance){2e-6, 0}, 0);
    }
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE(three_token_ranges_merge_to_the_golden_numbers),
    TEST_CASES_END,
};
