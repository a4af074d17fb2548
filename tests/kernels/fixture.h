/* tests/kernels/fixture.h - what the kernel tests share: devices, random data, comparisons.
 *
 * Every test of a twin runs over all tables that this processor has. Seeds are fresh in every run
 * and named in every failure; PIKV_TEST_SEED repeats one. */
#ifndef TESTS_KERNELS_FIXTURE_H
#define TESTS_KERNELS_FIXTURE_H

#include "kernels/dev.h"
#include "tests/test_main.h"

/* A stream of random numbers of one test. */
typedef struct test_random {
    uint64_t seed, index;
} test_random;

test_random random_fresh(void);
float random_signed(test_random *r);                   /* uniform in [-1, 1) */
uint32_t random_below(test_random *r, uint32_t limit); /* 0 .. limit - 1 */

void *test_alloc(size_t bytes); /* never NULL; exact, so that a sanitizer sees any over-read */

float *random_floats(test_random *r, size_t n);
float *poisoned_floats(size_t n); /* all NaN: an element that is not written is found */

/* rows x cols in [-1, 1), at an address that is only 2-byte aligned. Free with matrix_free. */
matrix random_matrix(test_random *r, dtype type, uint32_t rows, uint32_t cols);

/* The same of fp8 or mxfp4, by `shape`'s type, rows, cols, row_step and blocks; about one code in 16 is one that
 * means 0 or is subnormal. Scales lie at their own exact allocation. */
matrix random_scaled_matrix(test_random *r, matrix shape);
matrix matrix_expanded(const matrix *w); /* its values in f32, contiguous */
void matrix_free(matrix *w);

enum { SCALED_SHAPES = 12 };
extern const matrix scaled_shapes[SCALED_SHAPES]; /* edges of blocks, tiles, panels and vectors */

/* A device with the table `isa`, of n_threads. */
dev *open_table(const char *isa, uint32_t n_threads);

/* |got - want| <= absolute + relative |want| for all n. */
typedef struct tolerance {
    double absolute, relative;
} tolerance;
void assert_near(const float *got, const float *want, size_t n, tolerance t, uint64_t seed);
void assert_same_bits(const float *got, const float *want, size_t n, uint64_t seed);

extern const dtype all_dtypes[3];

#endif
