/* kernels/key_bounds.h - how large the scores of boxed keys can be.
 *
 * A box holds, of a set of keys, the smallest and the largest value of every channel: lo[k_dim], then
 * hi[k_dim]. Whatever keys lie in it, none scores more with a query head q than
 *     scale * (t + slack),  t = sum_c max(q_c lo_c, q_c hi_c),
 *     slack = (k_dim + 2) 2^-23 sum_c |max(q_c lo_c, q_c hi_c)|
 * (Tang et al., Quest, 2024, equation 1; unscaled and without slack there.) The slack is more than
 * float sums in any order can lose, so what every table returns is a bound. Keys are finite. */
#ifndef KERNELS_KEY_BOUNDS_H
#define KERNELS_KEY_BOUNDS_H

#include "kernels/dtype.h"

#include <stddef.h>

typedef struct key_bounds_args {
    const float *q; /* [group][k_dim]: the query heads that share the keys */
    uint32_t group, k_dim;
    float scale;             /* >= 0 */
    dtype type;              /* of the boxes: f32 or bf16 */
    const uint8_t *boxes;    /* box b at boxes + b * box_stride_bytes */
    size_t box_stride_bytes; /* of lo and hi together, or more */
    const uint32_t *index;   /* [n_boxes]: which boxes */
    uint32_t n_boxes;
    float *out; /* bound of head g and box index[i] at out[g * out_stride + i] */
    size_t out_stride;
} key_bounds_args;

#endif
