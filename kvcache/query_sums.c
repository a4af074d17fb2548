/* kvcache/query_sums.c - see query_sums.h. */
#include "kvcache/query_sums.h"

#include <string.h>

void kv_query_add(const float *q, uint32_t k_dim, double *sums)
{
    double *products = sums + k_dim;
    for (uint32_t r = 0; r < k_dim; r++) {
        sums[r] += (double)q[r];
        for (uint32_t c = 0; c <= r; c++)
            products[c] += (double)q[r] * (double)q[c];
        products += r + 1;
    }
}

/* Of query r, and of queries r and c; `each` is 1 over their number. */
static float mean_of(const double *sums, double each, uint32_t r)
{
    return (float)(sums[r] * each);
}

static float cov_of(const double *sums, double product, double each, uint32_t r, uint32_t c)
{
    return (float)(product * each - sums[r] * each * (sums[c] * each));
}

void kv_query_pack(const double *sums, uint32_t n, uint32_t k_dim, float *packed)
{
    const double *products = sums + k_dim;
    const double each = n > 0 ? 1.0 / n : 0;
    float *cov = packed + k_dim;
    for (uint32_t r = 0; r < k_dim; r++) {
        packed[r] = mean_of(sums, each, r);
        for (uint32_t c = 0; c <= r; c++)
            *cov++ = cov_of(sums, *products++, each, r, c);
    }
}

void kv_query_unpack(const float *packed, uint32_t k_dim, float *mean, float *cov)
{
    const float *from = packed + k_dim;
    memcpy(mean, packed, k_dim * sizeof *mean);
    for (uint32_t r = 0; r < k_dim; r++) {
        for (uint32_t c = 0; c <= r; c++)
            cov[(size_t)r * k_dim + c] = cov[(size_t)c * k_dim + r] = *from++;
    }
}

void kv_query_stats_of(const double *sums, uint32_t n, uint32_t k_dim, float *mean, float *cov)
{
    const double *products = sums + k_dim;
    const double each = n > 0 ? 1.0 / n : 0;
    for (uint32_t r = 0; r < k_dim; r++) {
        mean[r] = mean_of(sums, each, r);
        for (uint32_t c = 0; c <= r; c++)
            cov[(size_t)r * k_dim + c] = cov[(size_t)c * k_dim + r] =
                cov_of(sums, *products++, each, r, c);
    }
}
