/* kvcache/query_sums.h - means and covariances of the queries of one query head.
 *
 * Sums are [k_dim] of the queries, then of their products c <= r at r (r + 1) / 2 + c: doubles, so that
 * a mean over a long prompt keeps its digits. Packed statistics have the same order, in f32. */
#ifndef KVCACHE_QUERY_SUMS_H
#define KVCACHE_QUERY_SUMS_H

#include <stddef.h>
#include <stdint.h>

/* Numbers of one query head, sums or packed. */
static inline size_t kv_query_n_sums(uint32_t k_dim)
{
    return k_dim + (size_t)k_dim * (k_dim + 1) / 2;
}

/* One more query q [k_dim]. */
void kv_query_add(const float *q, uint32_t k_dim, double *sums);

/* The statistics of n queries, packed; zeros of none. */
void kv_query_pack(const double *sums, uint32_t n, uint32_t k_dim, float *packed);

/* mean [k_dim] and cov [k_dim][k_dim], from packed ones or, to the same bits, from sums of n queries. */
void kv_query_unpack(const float *packed, uint32_t k_dim, float *mean, float *cov);
void kv_query_stats_of(const double *sums, uint32_t n, uint32_t k_dim, float *mean, float *cov);

#endif
