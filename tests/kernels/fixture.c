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

void matrix_free(matrix *w)
{
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
