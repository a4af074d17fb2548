#include "tests/kernels/fixture.h"

#include "base/clock.h"
#include "base/random.h"

#include <math.h>
#include <stdlib.h>

const dtype all_dtypes[3] = {DTYPE_F32, DTYPE_BF16, DTYPE_F16};

test_random random_fresh(void)
{
    const char *text = getenv("PIKV_TEST_SEED");
    const uint64_t seed = text != NULL ? strtoull(text, NULL, 10) : clock_mono_ns();
    return (test_random){.seed = seed};
}

float random_signed(test_random *r)
{
    return 2 * random_uniform(r->seed, 0, r->index++) - 1;
}

uint32_t random_below(test_random *r, uint32_t limit)
{
    return random_at(r->seed, 0, r->index++).word[0] % limit;
}

void *test_alloc(size_t bytes)
{
    void *data = malloc(bytes > 0 ? bytes : 1);
    ck_assert_ptr_nonnull(data);
    return data;
}

float *random_floats(test_random *r, size_t n)
{
    float *x = test_alloc(n * sizeof *x);
    for (size_t i = 0; i < n; i++)
        x[i] = random_signed(r);
    return x;
}

float *poisoned_floats(size_t n)
{
    float *x = test_alloc(n * sizeof *x);
    for (size_t i = 0; i < n; i++)
        x[i] = NAN;
    return x;
}

enum { MISALIGN_BYTES = 2 };

matrix random_matrix(test_random *r, dtype type, uint32_t rows, uint32_t cols)
{
    const size_t n = (size_t)rows * cols;
    char *data = (char *)test_alloc(n * dtype_bytes(type) + MISALIGN_BYTES) + MISALIGN_BYTES;
    for (size_t i = 0; i < n; i++) {
        const float x = random_signed(r);
        const uint16_t half = type == DTYPE_BF16 ? bf16_from_f32(x) : f16_from_f32(x);
        if (type == DTYPE_F32) {
            memcpy(data + 4 * i, &x, sizeof x);
        } else {
            memcpy(data + 2 * i, &half, sizeof half);
        }
    }
    return (matrix){.data = data, .type = type, .rows = rows, .cols = cols};
}

const matrix scaled_shapes[SCALED_SHAPES] = {
    {.type = DTYPE_FP8, .rows = 1, .cols = 1, .block_rows = 128, .block_cols = 128},
    {.type = DTYPE_FP8, .rows = 31, .cols = 31, .block_rows = 128, .block_cols = 128},
    {.type = DTYPE_FP8, .rows = 130, .cols = 160, .block_rows = 128, .block_cols = 128},
    {.type = DTYPE_FP8, .rows = 70, .cols = 1037, .block_rows = 64, .block_cols = 192},
    {.type = DTYPE_FP8, .rows = 65, .cols = 520, .block_rows = 128, .block_cols = 576},
    {.type = DTYPE_FP8, .rows = 7, .cols = 2048, .block_rows = 64, .block_cols = 64},
    {.type = DTYPE_FP8, .rows = 9, .cols = 200, .row_step = 3, .block_rows = 64, .block_cols = 128},
    {.type = DTYPE_MXFP4, .rows = 1, .cols = 32},
    {.type = DTYPE_MXFP4, .rows = 31, .cols = 96},
    {.type = DTYPE_MXFP4, .rows = 65, .cols = 1056},
    {.type = DTYPE_MXFP4, .rows = 37, .cols = 160, .row_step = 2},
    {.type = DTYPE_MXFP4, .rows = 8, .cols = 2880},
};

static uint8_t random_code(test_random *r, dtype type)
{
    const uint8_t code = (uint8_t)random_below(r, 256);
    if (type == DTYPE_MXFP4) return code;
    if (random_below(r, 16) == 0) return code & 0x87; /* zeros and subnormals */
    return (code & 0x7f) == 0x7f ? 0x3f : code;       /* no NaN */
}

/* Scales that bring the values of a block to the order of 1. */
static void *random_scales(test_random *r, const matrix *w)
{
    const size_t rows = w->type == DTYPE_MXFP4 ? ((size_t)w->rows - 1) * matrix_row_step(w) + 1
                                               : (w->rows + w->block_rows - 1) / w->block_rows;
    const size_t n = rows * matrix_scale_cols(w);
    uint8_t *const powers = test_alloc(n * (w->type == DTYPE_MXFP4 ? 1 : sizeof(float)));
    float *const factors = (float *)(void *)powers;
    for (size_t i = 0; i < n; i++) {
        if (w->type == DTYPE_MXFP4)
            powers[i] = (uint8_t)(120 + random_below(r, 6));
        else
            factors[i] = (1.5f + random_signed(r)) / 448;
    }
    return powers;
}

matrix random_scaled_matrix(test_random *r, matrix shape)
{
    matrix w = shape;
    const size_t n_rows = ((size_t)w.rows - 1) * matrix_row_step(&w) + 1;
    const size_t n = n_rows * matrix_row_bytes(&w);
    uint8_t *const data = (uint8_t *)test_alloc(n + MISALIGN_BYTES) + MISALIGN_BYTES;
    for (size_t i = 0; i < n; i++)
        data[i] = random_code(r, w.type);
    w.data = data;
    w.scale = random_scales(r, &w);
    return w;
}

matrix matrix_expanded(const matrix *w)
{
    const size_t bytes = (size_t)w->rows * w->cols * sizeof(float);
    char *data = (char *)test_alloc(bytes + MISALIGN_BYTES) + MISALIGN_BYTES;
    for (size_t i = 0; i < (size_t)w->rows * w->cols; i++) {
        const float x = matrix_element(w, i / w->cols, i % w->cols);
        memcpy(data + i * sizeof x, &x, sizeof x);
    }
    return (matrix){.data = data, .type = DTYPE_F32, .rows = w->rows, .cols = w->cols};
}

void matrix_free(matrix *w)
{
    free((void *)(uintptr_t)w->scale);
    free((void *)((uintptr_t)w->data - MISALIGN_BYTES));
    *w = (matrix){0};
}

dev *open_table(const char *isa, uint32_t n_threads)
{
    const dev_config config = {.isa = isa, .n_threads = n_threads};
    err_info info = {0};
    dev *d;
    ck_assert_msg(dev_open_cpu(&config, &d, &info) == ERR_OK, "%s", info.message);
    return d;
}

void assert_near(const float *got, const float *want, size_t n, tolerance t, uint64_t seed)
{
    for (size_t i = 0; i < n; i++) {
        const double g = (double)got[i], w = (double)want[i];
        const double limit = t.absolute + t.relative * fabs(w);
        ck_assert_msg(fabs(g - w) <= limit, "element %zu of %zu: %.9g is not %.9g (seed %llu)", i,
                      n, g, w, (unsigned long long)seed);
    }
}

void assert_same_bits(const float *got, const float *want, size_t n, uint64_t seed)
{
    for (size_t i = 0; i < n; i++) {
        ck_assert_msg(f32_bits(got[i]) == f32_bits(want[i]),
                      "element %zu of %zu: %.9g and %.9g differ in bits (seed %llu)", i, n,
                      (double)got[i], (double)want[i], (unsigned long long)seed);
    }
}
