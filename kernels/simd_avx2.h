/* kernels/simd_avx2.h - the vector type of simd.h as one AVX2 register: 8 lanes. */
#ifndef KERNELS_SIMD_AVX2_H
#define KERNELS_SIMD_AVX2_H

#include <immintrin.h>
#include <stdint.h>

enum {
    LANES = 8,
    TILE_ROWS = 3 /* 3 x 4 accumulators, 3 weights and 1 input fill the 16 registers */
};

typedef __m256 vf;

static inline vf vf_set1(float x)
{
    return _mm256_set1_ps(x);
}

static inline vf vf_load(const void *p)
{
    return _mm256_loadu_ps(p);
}

/* bf16 is the upper half of an f32: widen and shift. Exact. */
static inline vf vf_load_bf16(const void *p)
{
    const __m128i half = _mm_loadu_si128(p);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

static inline vf vf_load_f16(const void *p)
{
    return _mm256_cvtph_ps(_mm_loadu_si128(p));
}

static inline void vf_store(float *p, vf x)
{
    _mm256_storeu_ps(p, x);
}

/* Round to nearest even; a NaN keeps its upper bits and becomes quiet, as in bf16_from_f32. */
static inline void vf_store_bf16(void *p, vf x)
{
    const __m256i bits = _mm256_castps_si256(x);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded =
        _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    const __m256i half = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, is_nan), 16);
    const __m256i packed = _mm256_packus_epi32(half, half); /* within each 128-bit half */
    _mm_storeu_si128(p, _mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08)));
}

static inline vf vf_add(vf a, vf b)
{
    return _mm256_add_ps(a, b);
}

static inline vf vf_sub(vf a, vf b)
{
    return _mm256_sub_ps(a, b);
}

static inline vf vf_mul(vf a, vf b)
{
    return _mm256_mul_ps(a, b);
}

static inline vf vf_div(vf a, vf b)
{
    return _mm256_div_ps(a, b);
}

static inline vf vf_max(vf a, vf b)
{
    return _mm256_max_ps(a, b);
}

/* a * b + c, rounded once. */
static inline vf vf_fma(vf a, vf b, vf c)
{
    return _mm256_fmadd_ps(a, b, c);
}

/* A NaN in x comes through: these instructions return their second operand then. */
static inline vf vf_clamp(float lo, vf x, float hi)
{
    return _mm256_min_ps(vf_set1(hi), _mm256_max_ps(vf_set1(lo), x));
}

static inline vf vf_round(vf x)
{
    return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

/* 2^n for whole n in [-126, 127]. */
static inline vf vf_pow2(vf n)
{
    const __m256i biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23));
}

/* y, but 0 in the lanes where x < limit. */
static inline vf vf_zero_below(vf x, float limit, vf y)
{
    return _mm256_and_ps(_mm256_cmp_ps(x, vf_set1(limit), _CMP_NLT_UQ), y);
}

/* Always ((0+4) + (2+6)) + ((1+5) + (3+7)). */
static inline float vf_sum(vf x)
{
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

static inline __m128 lower_plus_upper(__m256 x)
{
    return _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
}

/* out[i] = vf_sum(x[i]), bit for bit: the same pairs are added, four sums side by side. */
static inline void vf_sum4(const vf x[4], float out[4])
{
    const __m128 a = lower_plus_upper(x[0]), b = lower_plus_upper(x[1]);
    const __m128 c = lower_plus_upper(x[2]), d = lower_plus_upper(x[3]);
    const __m128 ab = _mm_add_ps(_mm_unpacklo_ps(a, b), _mm_unpackhi_ps(a, b));
    const __m128 cd = _mm_add_ps(_mm_unpacklo_ps(c, d), _mm_unpackhi_ps(c, d));
    _mm_storeu_ps(out, _mm_add_ps(_mm_movelh_ps(ab, cd), _mm_movehl_ps(cd, ab)));
}

#endif
