/* tests/kernels/test_cuda_matmul.c - products of CUDA against the reference, and against themselves in batches. */
#include "tests/kernels/cuda_fixture.h"

#include "base/check.h"

#include <math.h>
#include <stdlib.h>

#define N_OF(array) (sizeof(array) / sizeof(array)[0])

typedef struct problem {
    uint32_t n_tokens, cols;
    uint32_t rows[MATMUL_PARTS_MAX]; /* 0: no such part */
} problem;

/* Edges of the tiles: 16 and 64 rows, 8 and 64 items, chunks of 64 and strands of 512 columns. */
static const problem problems[] = {
    {1, 1, {1}},           {1, 2048, {17}},    {2, 31, {31, 1, 5}}, {8, 520, {16}},
    {9, 64, {33, 16}},     {31, 200, {64, 2}}, {33, 72, {65}},      {64, 576, {64}},
    {70, 40, {129, 3, 7}}, {3, 1032, {15}},
};

typedef struct operands {
    problem p;
    uint32_t n_parts;
    matrix w[MATMUL_PARTS_MAX];
    float *x, *bias[MATMUL_PARTS_MAX]; /* what is added to */
} operands;

static operands operands_open(gpu *g, const problem *p, const dtype types[MATMUL_PARTS_MAX])
{
    operands o = {.p = *p};
    o.x = random_floats(&g->random, (size_t)p->n_tokens * p->cols);
    while (o.n_parts < MATMUL_PARTS_MAX && p->rows[o.n_parts] != 0) {
        const uint32_t i = o.n_parts++;
        o.w[i] = random_matrix(&g->random, types[i], p->rows[i], p->cols);
        o.bias[i] = random_floats(&g->random, (size_t)p->n_tokens * p->rows[i]);
    }
    return o;
}

/* One part with scales. */
static operands operands_scaled(gpu *g, const matrix *shape, uint32_t n_tokens)
{
    operands o = {.p = {n_tokens, shape->cols, {shape->rows}}, .n_parts = 1};
    o.x = random_floats(&g->random, (size_t)n_tokens * shape->cols);
    o.w[0] = random_scaled_matrix(&g->random, *shape);
    o.bias[0] = random_floats(&g->random, (size_t)n_tokens * shape->rows);
    return o;
}

static void operands_close(operands *o)
{
    for (uint32_t i = 0; i < o->n_parts; i++) {
        matrix_free(&o->w[i]);
        free(o->bias[i]);
    }
    free(o->x);
}

/* Tokens [first, first + n) on the GPU; outputs of all parts, of which the caller frees each. */
static void run(gpu *g, const operands *o, uint32_t first, uint32_t n, bool accumulate,
                bool is_aligned, float *out[MATMUL_PARTS_MAX])
{
    const problem *p = &o->p;
    const float *x = o->x + (size_t)first * p->cols;
    matmul_args args = {.x = gpu_put(g, x, (size_t)n * p->cols * sizeof *x),
                        .x_stride = p->cols,
                        .n_tokens = n,
                        .n_parts = o->n_parts,
                        .accumulate = accumulate};
    for (uint32_t i = 0; i < o->n_parts; i++) {
        const size_t n_out = (size_t)n * p->rows[i];
        const float *bias = o->bias[i] + (size_t)first * p->rows[i];
        args.part[i].w =
            is_aligned ? gpu_put_matrix(g, &o->w[i]) : gpu_put_matrix_unaligned(g, &o->w[i]);
        args.part[i].out_stride = p->rows[i];
        args.part[i].out =
            accumulate ? gpu_put(g, bias, n_out * sizeof *bias) : gpu_poisoned(g, n_out);
    }
    g->ops->matmul(g->d, &args);
    for (uint32_t i = 0; i < o->n_parts; i++)
        out[i] = gpu_get_floats(g, args.part[i].out, (size_t)n * p->rows[i]);
}

static void check(gpu *g, const operands *o, bool accumulate)
{
    const problem *p = &o->p;
    matmul_args args = {.x = o->x,
                        .x_stride = p->cols,
                        .n_tokens = p->n_tokens,
                        .n_parts = o->n_parts,
                        .accumulate = accumulate};
    float *got[MATMUL_PARTS_MAX];
    run(g, o, 0, p->n_tokens, accumulate, true, got);
    for (uint32_t i = 0; i < o->n_parts; i++) {
        const size_t n_out = (size_t)p->n_tokens * p->rows[i];
        float *want = test_alloc(n_out * sizeof *want);
        memcpy(want, o->bias[i], n_out * sizeof *want);
        args.part[i].w = o->w[i];
        args.part[i].out = want;
        args.part[i].out_stride = p->rows[i];
    }
    g->cpu->ops->matmul(g->cpu, &args);
    /* Sums of `cols` products below 1 (with scales: 4), in f32; halves of x lose 2^-17 of it on tensor cores. */
    const tolerance t = {2e-6 * sqrt(p->cols) + 1e-6 * sqrt(p->cols), 1e-5};
    for (uint32_t i = 0; i < o->n_parts; i++) {
        const size_t n_out = (size_t)p->n_tokens * p->rows[i];
        const dtype type = o->w[i].type;
        const double part = dtype_has_scales(type) ? 8e-5 : 2e-5;
        const tolerance halves = {part * sqrt(p->cols), 2e-5};
        const bool is_exact = type == DTYPE_F32 || type == DTYPE_F16;
        assert_near(got[i], args.part[i].out, n_out, is_exact ? t : halves, g->random.seed);
        free(args.part[i].out);
        free(got[i]);
    }
}

START_TEST(products_are_those_of_the_reference)
{
    for (size_t i = 0; i < N_OF(problems); i++) {
        for (size_t type = 0; type < N_OF(all_dtypes); type++) {
            const dtype types[] = {all_dtypes[type], all_dtypes[type], all_dtypes[type]};
            gpu g = gpu_open(0);
            operands o = operands_open(&g, &problems[i], types);
            check(&g, &o, false);
            check(&g, &o, true);
            operands_close(&o);
            gpu_close(&g);
        }
    }
}

START_TEST(parts_may_differ_in_type)
{
    static const dtype types[] = {DTYPE_BF16, DTYPE_F32, DTYPE_BF16};
    gpu g = gpu_open(0);
    const problem p = {5, 136, {20, 18, 1}};
    operands o = operands_open(&g, &p, types);
    check(&g, &o, false);
    operands_close(&o);
    gpu_close(&g);
}

/* Token by token, in both halves of a batch, and whole, through every kernel; and without 16-byte loads. */
static void check_batches(gpu *g, const operands *o)
{
    const problem *p = &o->p;
    float *whole[MATMUL_PARTS_MAX], *some[MATMUL_PARTS_MAX];
    run(g, o, 0, p->n_tokens, false, true, whole);
    const uint32_t firsts[] = {0, 0, p->n_tokens / 2, p->n_tokens - 1, 0};
    const uint32_t ns[] = {1, p->n_tokens / 2, p->n_tokens - p->n_tokens / 2, 1, p->n_tokens};
    for (uint32_t k = 0; k < N_OF(firsts); k++) {
        if (ns[k] == 0) continue;
        run(g, o, firsts[k], ns[k], false, k < 4, some);
        for (uint32_t i = 0; i < o->n_parts; i++) {
            const size_t at = (size_t)firsts[k] * p->rows[i];
            assert_same_bits(some[i], whole[i] + at, (size_t)ns[k] * p->rows[i], g->random.seed);
            free(some[i]);
        }
    }
    for (uint32_t i = 0; i < o->n_parts; i++)
        free(whole[i]);
}

START_TEST(a_row_has_the_same_bits_in_every_batch)
{
    for (size_t i = 0; i < N_OF(problems); i++) {
        for (size_t type = 0; type < 2; type++) {
            const dtype types[] = {all_dtypes[type], all_dtypes[type], all_dtypes[type]};
            gpu g = gpu_open(0);
            operands o = operands_open(&g, &problems[i], types);
            check_batches(&g, &o);
            operands_close(&o);
            gpu_close(&g);
        }
    }
}

/* Small batches, edges of small tiles, and prompts. */
static const uint32_t scaled_tokens[] = {1, 9, 33, 70};

START_TEST(weights_with_scales_are_those_of_the_reference)
{
    for (size_t i = 0; i < SCALED_SHAPES * N_OF(scaled_tokens); i++) {
        gpu g = gpu_open(0);
        const matrix *shape = &scaled_shapes[i / N_OF(scaled_tokens)];
        operands o = operands_scaled(&g, shape, scaled_tokens[i % N_OF(scaled_tokens)]);
        check(&g, &o, i % 2 != 0);
        check_batches(&g, &o);
        operands_close(&o);
        gpu_close(&g);
    }
}

START_TEST(parts_with_scales_stand_beside_others)
{
    gpu g = gpu_open(0);
    const problem p = {5, 160, {20, 18, 33}};
    operands o = operands_open(&g, &p, (const dtype[]){DTYPE_BF16, DTYPE_F16, DTYPE_BF16});
    for (uint32_t i = 0; i < 2; i++) {
        matrix shape = {.type = i == 0 ? DTYPE_FP8 : DTYPE_MXFP4,
                        .rows = p.rows[i],
                        .cols = p.cols,
                        .block_rows = 128,
                        .block_cols = 128};
        matrix_free(&o.w[i]);
        o.w[i] = random_scaled_matrix(&g.random, shape);
    }
    check(&g, &o, false);
    operands_close(&o);
    gpu_close(&g);
}

/* Against the products of one head after the other, which have the same bits. */
static void check_heads(gpu *g, uint32_t rows, uint32_t cols, uint32_t n_tokens, dtype type)
{
    enum { N_HEADS = 3 };
    const bool is_fp8 = type == DTYPE_FP8;
    const uint32_t head_rows = is_fp8 ? (uint32_t)round_up(rows, SCALE_BLOCK) : rows + 8;
    const size_t x_stride = (size_t)N_HEADS * cols, out_stride = (size_t)N_HEADS * (rows + 3);
    const matrix fp8 = {.type = type,
                        .rows = N_HEADS * head_rows,
                        .cols = cols,
                        .block_rows = 128, /* a head may end within one */
                        .block_cols = 128};
    matrix all = is_fp8 ? random_scaled_matrix(&g->random, fp8)
                        : random_matrix(&g->random, type, N_HEADS * head_rows, cols);
    float *x = random_floats(&g->random, n_tokens * x_stride);
    matmul_heads_args args = {.x = gpu_put(g, x, n_tokens * x_stride * sizeof *x),
                              .x_stride = x_stride,
                              .x_head_stride = cols,
                              .n_tokens = n_tokens,
                              .n_heads = N_HEADS,
                              .w = gpu_put_matrix(g, &all),
                              .w_head_rows = head_rows,
                              .out = gpu_poisoned(g, n_tokens * out_stride),
                              .out_stride = out_stride,
                              .out_head_stride = rows + 3};
    args.w.rows = rows;
    float *one_by_one = gpu_poisoned(g, n_tokens * out_stride);
    g->ops->matmul_heads(g->d, &args);
    for (uint32_t h = 0; h < N_HEADS; h++) {
        const matrix w = matmul_head(&args, h),
                     host = matrix_rows(&all, (size_t)h * head_rows, rows);
        ck_assert_uint_eq(w.first_row, host.first_row);
        const matmul_args alone = {
            .x = args.x + h * args.x_head_stride,
            .x_stride = x_stride,
            .n_tokens = n_tokens,
            .n_parts = 1,
            .part = {{w, one_by_one + h * args.out_head_stride, out_stride}}};
        g->ops->matmul(g->d, &alone);
    }
    float *got = gpu_get_floats(g, args.out, n_tokens * out_stride);
    float *want = gpu_get_floats(g, one_by_one, n_tokens * out_stride);
    assert_same_bits(got, want, n_tokens * out_stride, g->random.seed);
    free(x);
    free(got);
    free(want);
    matrix_free(&all);
}

START_TEST(a_matrix_for_every_head_is_as_many_products)
{
    for (size_t type = 0; type < N_OF(all_dtypes); type++) {
        gpu g = gpu_open(0);
        check_heads(&g, 1, 5, 1, all_dtypes[type]);
        check_heads(&g, 33, 72, 9, all_dtypes[type]);
        check_heads(&g, 70, 40, 65, all_dtypes[type]);
        if (type == 0) {
            check_heads(&g, 64, 136, 3, DTYPE_FP8);
            check_heads(&g, 70, 130, 66, DTYPE_FP8);
        }
        const matmul_heads_args nothing = {.n_heads = 2, .w = {.type = DTYPE_F32}};
        g.ops->matmul_heads(g.d, &nothing);
        gpu_close(&g);
    }
}

const test_case test_cases[] = {
    TEST_CASE(products_are_those_of_the_reference),
    TEST_CASE(parts_may_differ_in_type),
    TEST_CASE(a_row_has_the_same_bits_in_every_batch),
    TEST_CASE(weights_with_scales_are_those_of_the_reference),
    TEST_CASE(parts_with_scales_stand_beside_others),
    TEST_CASE(a_matrix_for_every_head_is_as_many_products),
    TEST_CASES_END,
};
