/* kernels/key_bounds_simd.c - bounds of scores, fast: one box after the other, which the group shares
 * while it is in the first cache; lanes along the channels, two sums a head. */
#ifndef KERNELS_KEY_BOUNDS_SIMD_H
#define KERNELS_KEY_BOUNDS_SIMD_H

#include "base/check.h"
#include "kernels/key_bounds.h"
#include "kernels/simd.h"

static ALWAYS_INLINE float bound_typed(const key_bounds_args *args, const float *q,
                                       const uint8_t *lo, const dtype type)
{
    const uint32_t n = args->k_dim, n_rest = n % LANES;
    const uint8_t *hi = lo + (size_t)n * dtype_bytes(type);
    vf sum = vf_set1(0), magnitude = vf_set1(0);
    const vf zero = vf_set1(0);
    uint32_t c = 0;
    for (; c + LANES <= n; c += LANES) {
        const size_t at = (size_t)c * dtype_bytes(type);
        const vf x = vf_load(q + c);
        const vf t =
            vf_max(vf_mul(x, vf_load_as(lo + at, type)), vf_mul(x, vf_load_as(hi + at, type)));
        sum = vf_add(sum, t);
        magnitude = vf_add(magnitude, vf_max(t, vf_sub(zero, t)));
    }
    if (n_rest > 0) {
        const size_t at = (size_t)c * dtype_bytes(type);
        const vf x = vf_load_part(q + c, DTYPE_F32, n_rest);
        const vf t = vf_max(vf_mul(x, vf_load_part(lo + at, type, n_rest)),
                            vf_mul(x, vf_load_part(hi + at, type, n_rest)));
        sum = vf_add(sum, t);
        magnitude = vf_add(magnitude, vf_max(t, vf_sub(zero, t)));
    }
    const float slack = (float)(n + 2) * 0x1p-23f;
    return args->scale * (vf_sum(sum) + slack * vf_sum(magnitude));
}

static ALWAYS_INLINE void key_bounds_typed(const key_bounds_args *args, const dtype type)
{
    for (uint32_t i = 0; i < args->n_boxes; i++) {
        const uint8_t *box = args->boxes + args->index[i] * args->box_stride_bytes;
        for (uint32_t g = 0; g < args->group; g++)
            args->out[g * args->out_stride + i] =
                bound_typed(args, args->q + (size_t)g * args->k_dim, box, type);
    }
}

static void key_bounds_simd(const key_bounds_args *args)
{
    assert(args->type != DTYPE_F16);
    if (args->type == DTYPE_F32) {
        key_bounds_typed(args, DTYPE_F32);
    } else {
        key_bounds_typed(args, DTYPE_BF16);
    }
}

#endif
