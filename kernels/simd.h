/* kernels/simd.h - the small vector language in which the fast ops are written.
 *
 * A file ops_ISA.c defines one of the SIMD_ macros and includes the *_simd.c: one source of each op,
 * one object per instruction set. Everything here and there is static; a *_simd.c is not compiled by
 * itself. `vf` is a vector of LANES floats; each instruction set gives it the same operations
 * (listed in simd_avx2.h).
 *
 * -ffp-contract=off holds for these files: a product and a sum are fused where it says vf_fma and
 * nowhere else, so bits do not depend on the compiler's taste. */
#ifndef KERNELS_SIMD_H
#define KERNELS_SIMD_H

#include "kernels/dtype.h"

#if defined(SIMD_AVX512)
#include "kernels/simd_avx512.h"
#elif defined(SIMD_AVX2_WIDE)
#include "kernels/simd_avx2_wide.h"
#elif defined(SIMD_AVX2)
#include "kernels/simd_avx2.h"
#else
#error "define SIMD_AVX2, SIMD_AVX2_WIDE or SIMD_AVX512"
#endif

/* Loops over registers must disappear: an array that is indexed at run time lives in memory. */
#if defined(__clang__)
#define UNROLL       _Pragma("clang loop unroll(full)")
#define UNROLL_TWICE _Pragma("clang loop unroll_count(2)")
#else
#define UNROLL       _Pragma("GCC unroll 16")
#define UNROLL_TWICE _Pragma("GCC unroll 2")
#endif
#define ALWAYS_INLINE inline __attribute__((always_inline))

/* LANES stored elements from `p`, unaligned. `type` is a constant after inlining. */
static ALWAYS_INLINE vf vf_load_as(const void *p, const dtype type)
{
    if (type == DTYPE_F32) return vf_load(p);
    return type == DTYPE_BF16 ? vf_load_bf16(p) : vf_load_f16(p);
}

/* The first n < LANES elements, zeros behind them: nothing after them is read. */
static inline vf vf_load_part(const void *p, const dtype type, uint32_t n)
{
    float whole[LANES] = {0};
    memcpy(whole, p, (size_t)n * dtype_bytes(type));
    return vf_load_as(whole, type);
}

static inline void vf_store_part(float *p, vf x, uint32_t n)
{
    float whole[LANES];
    vf_store(whole, x);
    memcpy(p, whole, n * sizeof *p);
}

/* e^x, relative error below 2e-7 in [-87.3, 88]; 0 below, e^88 above, NaN for NaN.
 * x = n ln 2 + r with |r| <= ln 2 / 2, e^x = 2^n e^r; polynomial of the Cephes library (expf). */
static inline vf vf_exp(vf x)
{
    enum { N_COEFFICIENTS = 6 };
    static const float c[N_COEFFICIENTS] = {1.9875691500e-4f, 1.3981999507e-3f, 8.3334519073e-3f,
                                            4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f};
    const float lo = -87.3f, hi = 88.0f;
    const vf y = vf_clamp(lo, x, hi);
    const vf n = vf_round(vf_mul(y, vf_set1(1.44269504088896341f)));
    vf r = vf_fma(n, vf_set1(-0.693359375f), y); /* ln 2 in two parts: n * the first is exact */
    r = vf_fma(n, vf_set1(2.12194440e-4f), r);
    vf p = vf_set1(c[0]);
    UNROLL
    for (int i = 1; i < N_COEFFICIENTS; i++)
        p = vf_fma(p, r, vf_set1(c[i]));
    p = vf_add(vf_fma(p, vf_mul(r, r), r), vf_set1(1));
    return vf_zero_below(x, lo, vf_mul(p, vf_pow2(n)));
}

/* x / (1 + e^-x) */
static inline vf vf_silu(vf x)
{
    const vf one = vf_set1(1);
    return vf_div(x, vf_add(one, vf_exp(vf_sub(vf_set1(0), x))));
}

#endif
