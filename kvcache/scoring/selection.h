/* kvcache/scoring/selection.h - the k largest of many floats without memory and without an order.
 *
 * A radix search: four passes over the numbers, each fixing eight bits of the smallest one that is in.
 * O(n) whatever the numbers are, so neither sorted nor equal scores make it slow. */
#ifndef KVCACHE_SCORING_SELECTION_H
#define KVCACHE_SCORING_SELECTION_H

#include "kernels/dtype.h"

#include <stddef.h>
#include <stdint.h>

/* Rises with x, the same for both zeros. Not for NaN. */
static inline uint32_t kv_rank_key(float x)
{
    const uint32_t bits = f32_bits(x + 0.0f);
    return bits >> 31 != 0 ? ~bits : bits | 0x80000000u;
}

/* In are the numbers whose key is above `key`, and n_equal of those that have it. */
typedef struct kv_cut {
    uint32_t key;
    uint64_t n_equal;
} kv_cut;

/* Several arrays, as if they were one. */
typedef struct kv_cut_source {
    const float *const *x; /* [n_arrays]: x[a][n[a]] */
    const uint32_t *n;     /* [n_arrays] */
    uint32_t n_arrays;
} kv_cut_source;

/* The cut that lets exactly n_in numbers in; 1 <= n_in <= how many there are. */
kv_cut kv_cut_find(const kv_cut_source *source, uint64_t n_in);

#endif
