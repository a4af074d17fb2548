/* tests/kernels/test_scaled_weights.c - products with weights that have scales: fp8 in blocks, mxfp4. */
#include "tests/kernels/fixture.h"

#include <math.h>
#include <stdlib.h>

START_TEST(codes_of_fp4_are_those_of_the_format)
{
    for (uint8_t code = 0; code < 16;
         code++) { /* sign, two bits of exponent of bias 1, one of digits */
        const int exponent = code >> 1 & 3, digit = code & 1;
        const double magnitude = exponent == 0 ? 0.5 * digit : ldexp(1 + 0.5 * digit, exponent - 1);
        const float value = f32_from_fp4(code);
        ck_assert_double_eq((double)value, code >= 8 ? -magnitude : magnitude);
        ck_assert_int_eq(signbit(value) != 0, code >= 8);
    }
}
END_TEST

START_TEST(scales_of_mxfp4_are_powers_of_two)
{
    for (uint32_t code = 0; code < 255; code++)
        ck_assert_double_eq((double)f32_from_e8m0((uint8_t)code), ldexp(1, (int)code - 127));
    ck_assert(isnan(f32_from_e8m0(255)));
}
END_TEST

/* What is written out here by hand, so that the definition itself is held by something. */
START_TEST(an_element_is_its_code_times_the_scale_of_its_block)
{
    static uint8_t codes[65 * 130];
    static const float scales[2 * 3] = {1, 2, 3, 0.5f, -0.25f, 1000};
    for (size_t i = 0; i < sizeof codes; i++)
        codes[i] = 0x38 + (uint8_t)(i % 4); /* 1, 1.125, 1.25, 1.375 */
    const matrix fp8 = {codes,          DTYPE_FP8, 65, 130, .block_rows = 64, .block_cols = 64,
                        .scale = scales};
    ck_assert_double_eq((double)matrix_element(&fp8, 0, 1), 1.125);
    ck_assert_double_eq((double)matrix_element(&fp8, 63, 64),
                        2 * (1 + 0.125 * ((63 * 130 + 64) % 4)));
    ck_assert_double_eq((double)matrix_element(&fp8, 64, 64),
                        -0.25 * (1 + 0.125 * ((64 * 130 + 64) % 4)));
    ck_assert_double_eq((double)matrix_element(&fp8, 64, 129),
                        1000 * (1 + 0.125 * ((64 * 130 + 129) % 4)));
    static const uint8_t nibbles[3 * 32] = {0x21, 0xf7, [16] = 0x91, [64] = 0x42, [80] = 0x03};
    static const uint8_t powers[3 * 2] = {127, 128, 0, 0, 126, 130};
    const matrix mx = {nibbles, DTYPE_MXFP4, 2, 64, .row_step = 2, .scale = powers};
    static const struct {
        size_t row, column;
        double value;
    } want[] = {{0, 0, 0.5}, {0, 1, 1},   {0, 2, 6}, {0, 3, -6}, {0, 32, 1},
                {0, 33, -1}, {1, 0, 0.5}, {1, 1, 1}, {1, 32, 12}};
    for (size_t i = 0; i < sizeof want / sizeof want[0]; i++)
        ck_assert_double_eq((double)matrix_element(&mx, want[i].row, want[i].column),
                            want[i].value);
}
END_TEST

static void run(const char *isa, const matrix *w, const float *x, uint32_t n_tokens, float *out)
{
    dev *d = open_table(isa, 2);
    const matmul_args args = {.x = x,
                              .x_stride = w->cols,
                              .n_tokens = n_tokens,
                              .n_parts = 1,
                              .part = {{.w = *w, .out = out, .out_stride = w->rows}}};
    d->ops->matmul(d, &args);
    dev_close(d);
}

static void check_expanded(const matrix *w, uint32_t n_tokens, test_random *r)
{
    matrix expanded = matrix_expanded(w);
    float *x = random_floats(r, (size_t)n_tokens * w->cols);
    const size_t n = (size_t)n_tokens * w->rows;
    for (const dev_ops *const *t = dev_cpu_tables(); *t != NULL; t++) {
        float *got = poisoned_floats(n), *want = poisoned_floats(n);
        run((*t)->name, w, x, n_tokens, got);
        run((*t)->name, &expanded, x, n_tokens, want);
        assert_same_bits(got, want, n, r->seed);
        free(got);
        free(want);
    }
    free(x);
    matrix_free(&expanded);
}

/* So all that is promised of f32 - agreement of tables, the same bits in every batch - holds for them. */
START_TEST(a_product_has_the_bits_of_the_expanded_matrix)
{
    static const uint32_t n_tokens[] = {1, 2, 3, 4, 5, 67};
    test_random r = random_fresh();
    for (size_t i = 0; i < SCALED_SHAPES; i++) {
        matrix w = random_scaled_matrix(&r, scaled_shapes[i]);
        for (size_t k = 0; k < sizeof n_tokens / sizeof n_tokens[0]; k++)
            check_expanded(&w, n_tokens[k], &r);
        matrix_free(&w);
    }
}
END_TEST

/* The largest and the smallest scales and codes that a loader lets through. */
START_TEST(the_ends_of_the_scales_are_exact)
{
    uint8_t codes[64], nibbles[32 * 16];
    const float scales[] = {255.99998f, -255.99998f, 0x1p-149f, 0, 1e-30f};
    test_random r = random_fresh();
    for (uint8_t i = 0; i < 64; i++)
        codes[i] = (uint8_t)(i % 2 != 0 ? 0x7e - i / 2 : i / 2);
    for (size_t i = 0; i < sizeof scales / sizeof scales[0]; i++) {
        const matrix w = {
            codes, DTYPE_FP8, 1, 64, .block_rows = 64, .block_cols = 64, .scale = &scales[i]};
        check_expanded(&w, 1, &r);
        check_expanded(&w, 5, &r);
    }
    for (size_t i = 0; i < sizeof nibbles; i++)
        nibbles[i] = (uint8_t)random_below(&r, 256);
    static const uint8_t powers[] = {0, 1, 2, 50, 127, 200};
    for (size_t i = 0; i < sizeof powers; i++) {
        const matrix w = {nibbles, DTYPE_MXFP4, 1, 32, .scale = &powers[i]};
        check_expanded(&w, 1, &r);
        check_expanded(&w, 5, &r);
    }
}
END_TEST

typedef struct layer {
    uint32_t n_tokens, dim, ffn;
    dtype type;
    uint32_t row_step; /* of gate and up */
} layer;

enum { N_EXPERTS = 5, TOP_K = 3 };

static matrix random_part(test_random *r, const layer *l, uint32_t rows, uint32_t cols,
                          uint32_t step)
{
    return random_scaled_matrix(r, (matrix){.type = l->type,
                                            .rows = rows,
                                            .cols = cols,
                                            .row_step = step,
                                            .block_rows = 128,
                                            .block_cols = 128});
}

static float *run_experts(const char *isa, const layer *l, const moe_expert *experts,
                          const float *x)
{
    dev *d = open_table(isa, 2);
    const size_t n = (size_t)l->n_tokens * l->dim;
    const size_t bytes = moe_scratch_bytes(l->n_tokens, l->dim, l->ffn, N_EXPERTS, TOP_K);
    uint32_t *chosen = test_alloc(l->n_tokens * TOP_K * sizeof *chosen);
    float *weight = test_alloc(l->n_tokens * TOP_K * sizeof *weight);
    float *out = test_alloc(n * sizeof *out);
    memset(out, 0, n * sizeof *out);
    for (uint32_t i = 0; i < l->n_tokens * TOP_K; i++) {
        chosen[i] = (i / TOP_K * 2 + i % TOP_K) % N_EXPERTS;
        weight[i] = 1.0f / (float)(1 + i % TOP_K);
    }
    const moe_args args = {.x = x,
                           .n_tokens = l->n_tokens,
                           .dim = l->dim,
                           .ffn = l->ffn,
                           .n_experts = N_EXPERTS,
                           .top_k = TOP_K,
                           .expert = experts,
                           .chosen = chosen,
                           .weight = weight,
                           .out = out,
                           .scratch = aligned_alloc(64, bytes)};
    d->ops->moe(d, &args);
    free(args.scratch);
    free(weight);
    free(chosen);
    dev_close(d);
    return out;
}

static void check_experts(const layer *l)
{
    test_random r = random_fresh();
    moe_expert experts[N_EXPERTS], expanded[N_EXPERTS];
    float *x = random_floats(&r, (size_t)l->n_tokens * l->dim);
    for (size_t e = 0; e < N_EXPERTS; e++) {
        experts[e] = (moe_expert){.gate = random_part(&r, l, l->ffn, l->dim, l->row_step),
                                  .up = random_part(&r, l, l->ffn, l->dim, l->row_step),
                                  .down = random_part(&r, l, l->dim, l->ffn, 1)};
        expanded[e] = (moe_expert){.gate = matrix_expanded(&experts[e].gate),
                                   .up = matrix_expanded(&experts[e].up),
                                   .down = matrix_expanded(&experts[e].down)};
    }
    for (const dev_ops *const *t = dev_cpu_tables(); *t != NULL; t++) {
        float *got = run_experts((*t)->name, l, experts, x);
        float *want = run_experts((*t)->name, l, expanded, x);
        assert_same_bits(got, want, (size_t)l->n_tokens * l->dim, r.seed);
        free(got);
        free(want);
    }
    for (size_t e = 0; e < N_EXPERTS; e++) {
        matrix *const all[] = {&experts[e].gate,  &experts[e].up,  &experts[e].down,
                               &expanded[e].gate, &expanded[e].up, &expanded[e].down};
        for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
            matrix_free(all[i]);
    }
    free(x);
}

START_TEST(experts_have_the_bits_of_the_expanded_ones)
{
    static const layer layers[] = {{1, 160, 130, DTYPE_FP8, 1},
                                   {3, 160, 130, DTYPE_FP8, 1},
                                   {40, 160, 130, DTYPE_FP8, 1},
                                   {1, 96, 64, DTYPE_MXFP4, 2},
                                   {40, 96, 64, DTYPE_MXFP4, 2}};
    for (size_t i = 0; i < sizeof layers / sizeof layers[0]; i++)
        check_experts(&layers[i]);
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE(codes_of_fp4_are_those_of_the_format),
    TEST_CASE(scales_of_mxfp4_are_powers_of_two),
    TEST_CASE(an_element_is_its_code_times_the_scale_of_its_block),
    TEST_CASE(a_product_has_the_bits_of_the_expanded_matrix),
    TEST_CASE(the_ends_of_the_scales_are_exact),
    TEST_CASE(experts_have_the_bits_of_the_expanded_ones),
    TEST_CASES_END,
};
