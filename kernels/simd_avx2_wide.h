/* kernels/simd_avx2_wide.h - the vector type of simd.h as two AVX2 registers: 16 lanes.
 *
 * It has the lane count and the tile of AVX-512 and the same order of every sum, so that this logic
 * is tested on machines without AVX-512. It is not meant to be fast. */
#ifndef KERNELS_SIMD_AVX2_WIDE_H
#define KERNELS_SIMD_AVX2_WIDE_H

#define LANES         HALF_LANES
#define TILE_ROWS     HALF_TILE_ROWS
#define vf            half_vf
#define vf_set1       half_set1
#define vf_load       half_load
#define vf_load_bf16  half_load_bf16
#define vf_load_f16   half_load_f16
#define vf_store      half_store
#define vf_store_bf16 half_store_bf16
#define vf_add        half_add
#define vf_sub        half_sub
#define vf_mul        half_mul
#define vf_div        half_div
#define vf_fma        half_fma
#define vf_clamp      half_clamp
#define vf_round      half_round
#define vf_pow2       half_pow2
#define vf_zero_below half_zero_below
#define vf_sum        half_sum
#define vf_sum4       half_sum4
#define vf_max        half_max
#include "kernels/simd_avx2.h"
#undef LANES
#undef TILE_ROWS
#undef vf
#undef vf_set1
#undef vf_load
#undef vf_load_bf16
#undef vf_load_f16
#undef vf_store
#undef vf_store_bf16
#undef vf_add
#undef vf_sub
#undef vf_mul
#undef vf_div
#undef vf_fma
#undef vf_clamp
#undef vf_round
#undef vf_pow2
#undef vf_zero_below
#undef vf_sum
#undef vf_sum4
#undef vf_max

enum { LANES = 2 * HALF_LANES, TILE_ROWS = 6 };

typedef struct vf {
    half_vf lo, hi;
} vf;

static inline vf vf_set1(float x)
{
    return (vf){half_set1(x), half_set1(x)};
}

static inline vf vf_load(const void *p)
{
    return (vf){half_load(p), half_load((const char *)p + 32)};
}

static inline vf vf_load_bf16(const void *p)
{
    return (vf){half_load_bf16(p), half_load_bf16((const char *)p + 16)};
}

static inline vf vf_load_f16(const void *p)
{
    return (vf){half_load_f16(p), half_load_f16((const char *)p + 16)};
}

static inline void vf_store(float *p, vf x)
{
    half_store(p, x.lo);
    half_store(p + HALF_LANES, x.hi);
}

static inline void vf_store_bf16(void *p, vf x)
{
    half_store_bf16(p, x.lo);
    half_store_bf16((char *)p + 16, x.hi);
}

#define BOTH_HALVES(name)                                              \
    static inline vf vf_##name(vf a, vf b)                             \
    {                                                                  \
        return (vf){half_##name(a.lo, b.lo), half_##name(a.hi, b.hi)}; \
    }
BOTH_HALVES(add)
BOTH_HALVES(sub)
BOTH_HALVES(mul)
BOTH_HALVES(div)
BOTH_HALVES(max)
#undef BOTH_HALVES

static inline vf vf_fma(vf a, vf b, vf c)
{
    return (vf){half_fma(a.lo, b.lo, c.lo), half_fma(a.hi, b.hi, c.hi)};
}

static inline vf vf_clamp(float lo, vf x, float hi)
{
    return (vf){half_clamp(lo, x.lo, hi), half_clamp(lo, x.hi, hi)};
}

static inline vf vf_round(vf x)
{
    return (vf){half_round(x.lo), half_round(x.hi)};
}

static inline vf vf_pow2(vf n)
{
    return (vf){half_pow2(n.lo), half_pow2(n.hi)};
}

static inline vf vf_zero_below(vf x, float limit, vf y)
{
    return (vf){half_zero_below(x.lo, limit, y.lo), half_zero_below(x.hi, limit, y.hi)};
}

static inline float vf_sum(vf x)
{
    return half_sum(half_add(x.lo, x.hi));
}

static inline void vf_sum4(const vf x[4], float out[4])
{
    const half_vf both[4] = {half_add(x[0].lo, x[0].hi), half_add(x[1].lo, x[1].hi),
                             half_add(x[2].lo, x[2].hi), half_add(x[3].lo, x[3].hi)};
    half_sum4(both, out);
}

#endif
