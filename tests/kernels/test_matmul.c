/* tests/kernels/test_matmul.c - products with weight matrices. */
#include "tests/kernels/fixture.h"

#include "base/check.h"

#include <math.h>
#include <stdlib.h>

typedef struct shape {
    uint32_t rows, cols, n_tokens;
} shape;

static tolerance dot_tolerance(uint32_t cols)
{
    return (tolerance){.absolute = 1e-6 * sqrt((double)cols), .relative = 1e-5};
}

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

static void check_shape(shape s, dtype type)
{
    test_random r = random_fresh();
    matrix w = random_matrix(&r, type, s.rows, s.cols);
    float *x = random_floats(&r, (size_t)s.n_tokens * s.cols);
    const size_t n = (size_t)s.n_tokens * s.rows;
    float *want = poisoned_floats(n);
    run("ref", &w, x, s.n_tokens, want);
    for (const dev_ops *const *t = dev_cpu_tables() + 1; *t != NULL; t++) {
        float *got = poisoned_floats(n);
        run((*t)->name, &w, x, s.n_tokens, got);
        assert_near(got, want, n, dot_tolerance(s.cols), r.seed);
        free(got);
    }
    free(want);
    free(x);
    matrix_free(&w);
}

START_TEST(every_table_agrees_with_the_reference)
{
    static const shape shapes[] = {
        {1, 1, 1},    {1, 31, 1},    {31, 1, 3},     {7, 33, 2},      {8, 64, 1},     {24, 512, 5},
        {25, 513, 6}, {31, 31, 31},  {64, 1000, 65}, {100, 17, 64},   {23, 1537, 70}, {256, 256, 4},
        {9, 4096, 1}, {50, 2047, 9}, {3, 14336, 1},  {48, 1024, 130},
    };
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        for (size_t t = 0; t < 3; t++)
            check_shape(shapes[i], all_dtypes[t]);
    }
}
END_TEST

/* Token t computed alone, and the same token inside batches that take other tiles. */
static void check_invariance(const char *isa, dtype type, uint32_t rows, uint32_t cols)
{
    enum { N_TOKENS = 100 };
    static const uint32_t sizes[] = {2, 3, 4, 5, 16, 33, 64, 65, N_TOKENS};
    test_random r = random_fresh();
    matrix w = random_matrix(&r, type, rows, cols);
    float *x = random_floats(&r, (size_t)N_TOKENS * cols);
    float *alone = poisoned_floats((size_t)N_TOKENS * rows);
    float *batch = poisoned_floats((size_t)N_TOKENS * rows);
    for (uint32_t t = 0; t < N_TOKENS; t++)
        run(isa, &w, x + (size_t)t * cols, 1, alone + (size_t)t * rows);
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        const uint32_t first = random_below(&r, N_TOKENS - sizes[i] + 1);
        run(isa, &w, x + (size_t)first * cols, sizes[i], batch);
        assert_same_bits(batch, alone + (size_t)first * rows, (size_t)sizes[i] * rows, r.seed);
    }
    free(batch);
    free(alone);
    free(x);
    matrix_free(&w);
}

START_TEST(a_token_has_the_same_bits_alone_and_in_any_batch)
{
    for (const dev_ops *const *t = dev_cpu_tables(); *t != NULL; t++) {
        for (size_t i = 0; i < 3; i++) {
            check_invariance((*t)->name, all_dtypes[i], 37, 96);
            check_invariance((*t)->name, all_dtypes[i], 24, 1037);
            check_invariance((*t)->name, all_dtypes[i], 5, 9);
        }
    }
}
END_TEST

START_TEST(the_number_of_threads_changes_no_bit)
{
    test_random r = random_fresh();
    matrix w = random_matrix(&r, DTYPE_BF16, 300, 200);
    float *x = random_floats(&r, 70 * 200);
    for (const dev_ops *const *t = dev_cpu_tables(); *t != NULL; t++) {
        float *outs[2];
        for (uint32_t i = 0; i < 2; i++) {
            outs[i] = poisoned_floats(70 * 300);
            dev *d = open_table((*t)->name, 1 + 2 * i);
            const matmul_args args = {.x = x,
                                      .x_stride = 200,
                                      .n_tokens = 70,
                                      .n_parts = 1,
                                      .part = {{.w = w, .out = outs[i], .out_stride = 300}}};
            d->ops->matmul(d, &args);
            dev_close(d);
        }
        assert_same_bits(outs[1], outs[0], 70 * 300, r.seed);
        free(outs[0]);
        free(outs[1]);
    }
    free(x);
    matrix_free(&w);
}
END_TEST

/* Three parts of different type and height, strided x and outputs, added to what is there. */
static void check_parts(const char *isa, uint32_t n_tokens)
{
    enum { COLS = 50, X_STRIDE = 57 };
    static const uint32_t heights[3] = {40, 9, 1};
    test_random r = random_fresh();
    float *x = random_floats(&r, (size_t)n_tokens * X_STRIDE);
    matrix w[3];
    float *got[3], *want[3];
    matmul_args args = {
        .x = x, .x_stride = X_STRIDE, .n_tokens = n_tokens, .n_parts = 3, .accumulate = true};
    matmul_args ref_args = args;
    for (size_t p = 0; p < 3; p++) {
        const size_t stride = heights[p] + p, n = n_tokens * stride;
        w[p] = random_matrix(&r, all_dtypes[p], heights[p], COLS);
        got[p] = random_floats(&r, n);
        want[p] = test_alloc(n * sizeof(float));
        memcpy(want[p], got[p], n * sizeof(float));
        args.part[p].w = ref_args.part[p].w = w[p];
        args.part[p].out_stride = ref_args.part[p].out_stride = stride;
        args.part[p].out = got[p];
        ref_args.part[p].out = want[p];
    }
    dev *d = open_table(isa, 2), *ref = open_table("ref", 1);
    d->ops->matmul(d, &args);
    ref->ops->matmul(ref, &ref_args);
    for (size_t p = 0; p < 3; p++) {
        assert_near(got[p], want[p], n_tokens * (heights[p] + p), dot_tolerance(COLS), r.seed);
        free(got[p]);
        free(want[p]);
        matrix_free(&w[p]);
    }
    dev_close(d);
    dev_close(ref);
    free(x);
}

START_TEST(parts_share_x_and_add_to_their_outputs)
{
    for (const dev_ops *const *t = dev_cpu_tables(); *t != NULL; t++) {
        check_parts((*t)->name, 1);
        check_parts((*t)->name, 7);
        check_parts((*t)->name, 129);
    }
}
END_TEST

/* Heads of 3 to 5 rows between other rows, as products of their own. x of each head, or one for all. */
static void check_heads(const char *isa, shape s, uint32_t n_heads, bool has_own_x, dtype type)
{
    test_random r = random_fresh();
    const bool is_fp8 = type == DTYPE_FP8;
    const uint32_t head_rows = is_fp8 ? (uint32_t)round_up(s.rows, SCALE_BLOCK) : s.rows + 3;
    const size_t x_head = has_own_x ? s.cols + 1 : 0, x_stride = x_head * n_heads + s.cols + 2;
    const size_t out_head = s.rows + 5, out_stride = out_head * n_heads + 1;
    const matrix fp8 = {.type = type,
                        .rows = head_rows * n_heads,
                        .cols = s.cols,
                        .block_rows = 128, /* a head may end within one */
                        .block_cols = 128};
    matrix all = is_fp8 ? random_scaled_matrix(&r, fp8)
                        : random_matrix(&r, type, head_rows * n_heads, s.cols);
    float *x = random_floats(&r, s.n_tokens * x_stride);
    float *got = poisoned_floats(s.n_tokens * out_stride);
    float *want = poisoned_floats(s.n_tokens * out_stride);
    matmul_heads_args args = {.x = x,
                              .x_stride = x_stride,
                              .x_head_stride = x_head,
                              .n_tokens = s.n_tokens,
                              .n_heads = n_heads,
                              .w = matrix_rows(&all, 0, s.rows),
                              .w_head_rows = head_rows,
                              .out = got,
                              .out_stride = out_stride,
                              .out_head_stride = out_head};
    dev *d = open_table(isa, 2);
    d->ops->matmul_heads(d, &args);
    for (uint32_t h = 0; h < n_heads; h++) {
        const matrix w = matmul_head(&args, h);
        for (uint32_t i = 0; i < s.rows; i += 7)
            ck_assert_float_eq(matrix_element(&w, i, s.cols - 1),
                               matrix_element(&all, (size_t)h * head_rows + i, s.cols - 1));
        d->ops->matmul(d, &(matmul_args){.x = x + h * x_head,
                                         .x_stride = x_stride,
                                         .n_tokens = s.n_tokens,
                                         .n_parts = 1,
                                         .part = {{w, want + h * out_head, out_stride}}});
    }
    assert_same_bits(got, want, s.n_tokens * out_stride, r.seed);
    dev_close(d);
    free(x);
    free(got);
    free(want);
    matrix_free(&all);
}

START_TEST(a_matrix_for_every_head_is_as_many_products)
{
    static const shape shapes[] = {{1, 1, 1},    {7, 33, 2},    {64, 128, 5}, {130, 17, 1},
                                   {31, 31, 70}, {16, 512, 65}, {5, 200, 4}};
    for (const dev_ops *const *t = dev_cpu_tables(); *t != NULL; t++) {
        for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
            check_heads((*t)->name, shapes[i], i % 3 == 0 ? 1 : 5, true, all_dtypes[i % 3]);
            check_heads((*t)->name, shapes[i], 3, false, all_dtypes[(i + 1) % 3]);
            check_heads((*t)->name, shapes[i], 4, i % 2 == 0, DTYPE_FP8);
        }
    }
}
END_TEST

START_TEST(no_tokens_and_no_parts_write_nothing)
{
    for (const dev_ops *const *t = dev_cpu_tables(); *t != NULL; t++) {
        dev *d = open_table((*t)->name, 1);
        const matmul_args none = {.n_tokens = 0, .n_parts = 1, .part = {{.w = {.rows = 3}}}};
        d->ops->matmul(d, &none);
        const matmul_args no_parts = {.n_tokens = 3};
        d->ops->matmul(d, &no_parts);
        d->ops->matmul_heads(d, &(matmul_heads_args){.n_tokens = 0, .n_heads = 3});
        d->ops->matmul_heads(d, &(matmul_heads_args){.n_tokens = 3, .n_heads = 0});
        dev_close(d);
    }
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE(every_table_agrees_with_the_reference),
    TEST_CASE(a_token_has_the_same_bits_alone_and_in_any_batch),
    TEST_CASE(the_number_of_threads_changes_no_bit),
    TEST_CASE(parts_share_x_and_add_to_their_outputs),
    TEST_CASE(a_matrix_for_every_head_is_as_many_products),
    TEST_CASE(no_tokens_and_no_parts_write_nothing),
    TEST_CASES_END,
};
