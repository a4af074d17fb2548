/* kvcache/compression/least_squares.h - ridge least squares of few rows and any number of columns.
 *
 * For A [n][n_columns], given column by column and never held,
 *     x = argmin ||A x - b||^2 + lambda ||x||^2 = A^T z,    (A A^T + lambda I) z = b
 * so only the Gram matrix A A^T [n][n] is kept, and x_c = (column c) . z is read off while the
 * columns pass by once more. Both forms of the normal equations have this same x, with more rows
 * than columns as with fewer. The price of not holding A is that of every Gram matrix, its
 * condition is squared: lambda / ||A||^2 below about 1e-10 is lost in rounding.
 *
 * All in double; the same calls give the same bits. Memory is the caller's; nothing can fail. */
#ifndef KVCACHE_COMPRESSION_LEAST_SQUARES_H
#define KVCACHE_COMPRESSION_LEAST_SQUARES_H

#include "base/arena.h"

#include <stdint.h>

typedef struct kv_ridge {
    uint32_t n;
    double *gram; /* [n][n]: A A^T on the diagonal and above; below it, after kv_ridge_factor, L of
                   * A A^T + lambda I = L L^T, so that columns may be added and factored anew */
    double *diagonal; /* [n]: that of L */
} kv_ridge;

void kv_ridge_place(arena *a, uint32_t n, kv_ridge *ridge);

/* Forgets all columns. */
void kv_ridge_clear(kv_ridge *ridge);

/* Adds columns [count][n]. */
void kv_ridge_add(kv_ridge *ridge, const double *columns, uint32_t count);

/* As if row i of A had been multiplied by scale[i]. */
void kv_ridge_scale_rows(kv_ridge *ridge, const double *scale);

/* Sum of the squares of A. */
double kv_ridge_trace(const kv_ridge *ridge);

/* The square of A's largest singular value, from below: three power iterations from the vector of
 * ones, which is never orthogonal to the first singular vector if A has no negative element. work:
 * [2][n]. */
double kv_ridge_norm(const kv_ridge *ridge, double *work);

/* lambda > 0. */
void kv_ridge_factor(kv_ridge *ridge, double lambda);

/* b [n][m] becomes z [n][m], of the factor last computed. */
void kv_ridge_solve(const kv_ridge *ridge, double *b, uint32_t m);

#endif
