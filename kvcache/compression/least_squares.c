/* kvcache/compression/least_squares.c - see least_squares.h. Rows are walked so that inner loops
 * have no sum to wait for, save in the factorisation, which is small. */
#include "kvcache/compression/least_squares.h"

#include "base/check.h"

#include <math.h>

void kv_ridge_place(arena *a, uint32_t n, kv_ridge *ridge)
{
    ridge->n = n;
    ridge->gram = arena_take(a, n, (size_t)n * sizeof *ridge->gram);
    ridge->diagonal = arena_take(a, n, sizeof *ridge->diagonal);
}

void kv_ridge_clear(kv_ridge *ridge)
{
    for (size_t i = 0; i < (size_t)ridge->n * ridge->n; i++)
        ridge->gram[i] = 0;
}

void kv_ridge_add(kv_ridge *ridge, const double *columns, uint32_t count)
{
    const uint32_t n = ridge->n;
    for (uint32_t i = 0; i < n; i++) {
        double *row = ridge->gram + (size_t)i * n;
        for (uint32_t c = 0; c < count; c++) {
            const double *column = columns + (size_t)c * n;
            const double x = column[i];
            for (uint32_t j = i; j < n; j++)
                row[j] += x * column[j];
        }
    }
}

void kv_ridge_scale_rows(kv_ridge *ridge, const double *scale)
{
    const uint32_t n = ridge->n;
    for (uint32_t i = 0; i < n; i++) {
        for (uint32_t j = i; j < n; j++)
            ridge->gram[(size_t)i * n + j] *= scale[i] * scale[j];
    }
}

double kv_ridge_trace(const kv_ridge *ridge)
{
    double sum = 0;
    for (uint32_t i = 0; i < ridge->n; i++)
        sum += ridge->gram[(size_t)i * ridge->n + i];
    return sum;
}

/* out = A A^T u, from the upper triangle; returns the length of out. */
static double times_gram(const kv_ridge *ridge, const double *u, double *out)
{
    const uint32_t n = ridge->n;
    double square = 0;
    for (uint32_t i = 0; i < n; i++)
        out[i] = 0;
    for (uint32_t i = 0; i < n; i++) {
        const double *row = ridge->gram + (size_t)i * n;
        out[i] += row[i] * u[i];
        for (uint32_t j = i + 1; j < n; j++) {
            out[i] += row[j] * u[j];
            out[j] += row[j] * u[i];
        }
    }
    for (uint32_t i = 0; i < n; i++)
        square += out[i] * out[i];
    return sqrt(square);
}

double kv_ridge_norm(const kv_ridge *ridge, double *work)
{
    double *u = work, *next = work + ridge->n, norm = 0;
    for (uint32_t i = 0; i < ridge->n; i++)
        u[i] = 1 / sqrt((double)ridge->n);
    for (int round = 0; round < 3; round++) {
        norm = times_gram(ridge, u, next);
        if (!(norm > 0)) return 0;
        for (uint32_t i = 0; i < ridge->n; i++)
            u[i] = next[i] / norm;
    }
    return norm;
}

void kv_ridge_factor(kv_ridge *ridge, double lambda)
{
    const uint32_t n = ridge->n;
    assert(lambda > 0);
    for (uint32_t i = 0; i < n; i++) {
        double *left = ridge->gram + (size_t)i * n;
        for (uint32_t j = i; j < n; j++) {
            double *right = ridge->gram + (size_t)j * n;
            double sum = left[j] + (i == j ? lambda : 0);
            for (uint32_t k = 0; k < i; k++)
                sum -= left[k] * right[k];
            if (i != j)
                right[i] = sum / ridge->diagonal[i];
            else /* in exact numbers no pivot is below lambda; rounding can make one */
                ridge->diagonal[i] = sqrt(sum > lambda ? sum : lambda);
        }
    }
}

void kv_ridge_solve(const kv_ridge *ridge, double *b, uint32_t m)
{
    const uint32_t n = ridge->n;
    for (uint32_t i = 0; i < n; i++) {
        double *row = b + (size_t)i * m;
        for (uint32_t k = 0; k < i; k++) {
            const double factor = ridge->gram[(size_t)i * n + k];
            for (uint32_t c = 0; c < m; c++)
                row[c] -= factor * b[(size_t)k * m + c];
        }
        for (uint32_t c = 0; c < m; c++)
            row[c] /= ridge->diagonal[i];
    }
    for (uint32_t i = n; i-- > 0;) {
        double *row = b + (size_t)i * m;
        for (uint32_t k = i + 1; k < n; k++) {
            const double factor = ridge->gram[(size_t)k * n + i];
            for (uint32_t c = 0; c < m; c++)
                row[c] -= factor * b[(size_t)k * m + c];
        }
        for (uint32_t c = 0; c < m; c++)
            row[c] /= ridge->diagonal[i];
    }
}
