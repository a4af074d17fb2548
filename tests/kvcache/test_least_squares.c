/* tests/kvcache/test_least_squares.c - what is solved, by its definition. */
#include "kvcache/compression/least_squares.h"
#include "tests/test_main.h"

#include "base/random.h"

#include <math.h>

enum { N_MAX = 40 };

static double number(uint32_t stream, uint64_t i)
{
    return (double)random_uniform(11, stream, i) * 2 - 1;
}

typedef struct problem {
    uint32_t n, n_columns;
    double columns[N_MAX][N_MAX]; /* rows of A^T, [n_columns][n] packed */
    double b[N_MAX];
    double x[N_MAX];
} problem;

static double *column(problem *p, uint32_t c)
{
    return &p->columns[0][0] + (size_t)c * p->n;
}

static void make(problem *p, uint32_t n, uint32_t n_columns)
{
    *p = (problem){.n = n, .n_columns = n_columns};
    for (uint32_t i = 0; i < n * n_columns; i++)
        column(p, 0)[i] = number(1, i);
    for (uint32_t i = 0; i < n; i++)
        p->b[i] = number(2, i);
}

/* x by the tested functions, columns added in two parts. */
static void solve(problem *p, double lambda)
{
    arena a;
    kv_ridge ridge;
    double z[N_MAX];
    ck_assert_int_eq(arena_init(&a, 1 << 20), ERR_OK);
    kv_ridge_place(&a, p->n, &ridge);
    ck_assert_int_eq(a.err, ERR_OK);
    kv_ridge_clear(&ridge);
    kv_ridge_add(&ridge, column(p, 0), p->n_columns / 2);
    kv_ridge_add(&ridge, column(p, p->n_columns / 2), p->n_columns - p->n_columns / 2);
    kv_ridge_factor(&ridge, lambda * 3);
    kv_ridge_factor(&ridge, lambda); /* the first one is forgotten */
    for (uint32_t i = 0; i < p->n; i++)
        z[i] = p->b[i];
    kv_ridge_solve(&ridge, z, 1);
    for (uint32_t c = 0; c < p->n_columns; c++) {
        p->x[c] = 0;
        for (uint32_t i = 0; i < p->n; i++)
            p->x[c] += column(p, c)[i] * z[i];
    }
    arena_deinit(&a);
}

/* Largest element of the gradient, A^T (A x - b) + lambda x. */
static double slope(problem *p, double lambda)
{
    double error[N_MAX], most = 0;
    for (uint32_t i = 0; i < p->n; i++) {
        error[i] = -p->b[i];
        for (uint32_t c = 0; c < p->n_columns; c++)
            error[i] += column(p, c)[i] * p->x[c];
    }
    for (uint32_t c = 0; c < p->n_columns; c++) {
        double sum = lambda * p->x[c];
        for (uint32_t i = 0; i < p->n; i++)
            sum += column(p, c)[i] * error[i];
        most = fmax(most, fabs(sum));
    }
    return most;
}

START_TEST(the_gradient_is_zero_whichever_side_is_longer)
{
    static problem p;
    const uint32_t shapes[][2] = {{1, 1}, {1, 9},   {9, 1},   {5, 3},
                                  {3, 5}, {40, 12}, {12, 40}, {40, 40}};
    const double lambdas[] = {1e-6, 1e-3, 1, 1e3};
    for (uint32_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
        for (uint32_t l = 0; l < sizeof lambdas / sizeof *lambdas; l++) {
            make(&p, shapes[s][0], shapes[s][1]);
            solve(&p, lambdas[l]);
            ck_assert_double_lt(slope(&p, lambdas[l]), 1e-7);
        }
    }
}
END_TEST

START_TEST(equal_and_empty_columns_do_no_harm)
{
    static problem p;
    make(&p, 6, 10);
    for (uint32_t c = 0; c < p.n_columns; c++) {
        for (uint32_t i = 0; i < p.n; i++)
            column(&p, c)[i] = c < 5 ? column(&p, 0)[i] : 0;
    }
    solve(&p, 1e-9);
    ck_assert_double_lt(slope(&p, 1e-9), 1e-5);
    for (uint32_t c = 1; c < p.n_columns; c++)
        ck_assert_double_eq_tol(p.x[c], c < 5 ? p.x[0] : 0, 1e-12);
}
END_TEST

START_TEST(many_right_hand_sides_are_solved_as_each_alone)
{
    enum { N = 7, M = 3 };
    static problem p;
    arena a;
    kv_ridge ridge;
    double b[N][M], one[N];
    make(&p, N, 4);
    ck_assert_int_eq(arena_init(&a, 1 << 16), ERR_OK);
    kv_ridge_place(&a, N, &ridge);
    kv_ridge_clear(&ridge);
    kv_ridge_add(&ridge, column(&p, 0), p.n_columns);
    kv_ridge_factor(&ridge, 0.5);
    for (uint32_t i = 0; i < N * M; i++)
        b[i / M][i % M] = number(3, i);
    kv_ridge_solve(&ridge, &b[0][0], M);
    for (uint32_t m = 0; m < M; m++) {
        for (uint32_t i = 0; i < N; i++)
            one[i] = number(3, i * M + m);
        kv_ridge_solve(&ridge, one, 1);
        for (uint32_t i = 0; i < N; i++)
            ck_assert_double_eq(one[i], b[i][m]);
    }
    arena_deinit(&a);
}
END_TEST

START_TEST(trace_norm_and_scaled_rows_are_those_of_the_matrix)
{
    const double columns[3][3] = {{3, 0, 0}, {0, 2, 0}, {0, 0, 0}}, scale[] = {1, 5, 2};
    double work[6];
    arena a;
    kv_ridge ridge;
    ck_assert_int_eq(arena_init(&a, 1 << 16), ERR_OK);
    kv_ridge_place(&a, 3, &ridge);
    kv_ridge_clear(&ridge);
    ck_assert_double_eq(kv_ridge_norm(&ridge, work), 0);
    kv_ridge_add(&ridge, &columns[0][0], 3);
    ck_assert_double_eq(kv_ridge_trace(&ridge), 13);
    ck_assert_double_le(kv_ridge_norm(&ridge, work), 9 + 1e-12);
    ck_assert_double_ge(kv_ridge_norm(&ridge, work), 9 * 0.98);
    kv_ridge_factor(&ridge, 1); /* leaves the matrix as it is */
    ck_assert_double_eq(kv_ridge_trace(&ridge), 13);
    kv_ridge_scale_rows(&ridge, scale);
    ck_assert_double_eq(kv_ridge_trace(&ridge), 9 + 4 * 25);
    arena_deinit(&a);
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE(the_gradient_is_zero_whichever_side_is_longer),
    TEST_CASE(equal_and_empty_columns_do_no_harm),
    TEST_CASE(many_right_hand_sides_are_solved_as_each_alone),
    TEST_CASE(trace_norm_and_scaled_rows_are_those_of_the_matrix),
    TEST_CASES_END,
};
