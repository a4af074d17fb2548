/* kernels/simd_fp4.h - codes of E2M1 as vectors of numbers, two in a byte; part of simd.h.
 *
 * A permutation finds the values of many codes in a vector of the few that there are. So a scale is multiplied into
 * those, once for its block, and not into the weights. */
#ifndef KERNELS_SIMD_FP4_H
#define KERNELS_SIMD_FP4_H

#include "kernels/simd.h"

#include <string.h>

#if defined(SIMD_AVX512)

/* What the codes of E2M1 mean, times a scale: a permutation finds the values of many. */
static inline vf vf_fp4_values(float scale)
{
    const __m512 values =
        _mm512_setr_ps(0.0f, 0.5f, 1, 1.5f, 2, 3, 4, 6, -0.0f, -0.5f, -1, -1.5f, -2, -3, -4, -6);
    return _mm512_mul_ps(values, _mm512_set1_ps(scale));
}

/* A permutation looks at the lowest four bits of a lane alone. */
static inline vf vf_load_fp4(const void *p, vf values)
{
    const __m512i bytes = _mm512_cvtepu8_epi64(_mm_loadl_epi64(p)); /* two codes in every eight */
    const __m512i two = _mm512_or_si512(bytes, _mm512_slli_epi64(bytes, 28));
    return _mm512_permutexvar_ps(two, values);
}

#else /* AVX2, one register or two */

/* A permutation looks at the lowest three bits of a lane alone; the fourth is the sign. */
static inline __m256 eight_fp4(const void *p, __m256 values)
{
    uint32_t codes;
    memcpy(&codes, p, sizeof codes);
    const __m256i shift = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);
    const __m256i each = _mm256_srlv_epi32(_mm256_set1_epi32((int)codes), shift);
    const __m256i sign =
        _mm256_and_si256(_mm256_slli_epi32(each, 28), _mm256_set1_epi32((int)0x80000000u));
    return _mm256_xor_ps(_mm256_permutevar8x32_ps(values, each), _mm256_castsi256_ps(sign));
}

/* What the codes of E2M1 without sign mean, times a scale: a permutation finds the values of eight. */
static inline vf vf_fp4_values(float scale)
{
    const __m256 values = _mm256_setr_ps(0, 0.5f, 1, 1.5f, 2, 3, 4, 6);
    const __m256 scaled = _mm256_mul_ps(values, _mm256_set1_ps(scale));
#if defined(SIMD_AVX2_WIDE)
    return (vf){scaled, scaled};
#else
    return scaled;
#endif
}

static inline vf vf_load_fp4(const void *p, vf values)
{
#if defined(SIMD_AVX2_WIDE)
    return (vf){eight_fp4(p, values.lo), eight_fp4((const char *)p + 4, values.hi)};
#else
    return eight_fp4(p, values);
#endif
}

#endif

#endif
