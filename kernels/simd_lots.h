/* kernels/simd_lots.h - codes of a lot (attention_coding.h) as vectors of numbers; part of simd.h.
 *
 * Codes are masked where they lie, not shifted, so two instructions make a vector of numbers. They come
 * out 2^bit times too large, an exact factor, and whoever sums them takes lot_unit into the sum. Only the
 * last ones are shifted, since they use the sign bit.
 *
 *   lot_codes(lot, bits, c)   codes c .. c + LANES - 1 of a lot, over their unit; c is a multiple of LANES
 *   lot_unit(bits, c)         their unit
 *
 * bits and c are constants after inlining. */
#ifndef KERNELS_SIMD_LOTS_H
#define KERNELS_SIMD_LOTS_H

#include "kernels/attention_coding.h"

/* Of eight codes at bit `at` of their words: their mask, and the factor that they lack. */
static ALWAYS_INLINE uint32_t code_mask(const uint32_t bits, const uint32_t at)
{
    return ((1u << bits) - 1) << at;
}

static ALWAYS_INLINE float code_unit(const uint32_t bits, const uint32_t at)
{
    return at + bits == 32 ? 1.0f : 1.0f / (float)(1u << at);
}

#if defined(SIMD_AVX512)

static ALWAYS_INLINE __m512i two_halves(uint32_t lower, uint32_t upper)
{
    return _mm512_inserti64x4(_mm512_set1_epi32((int)lower), _mm256_set1_epi32((int)upper), 1);
}

/* Two times eight codes; the upper ones are the next part of the same words. */
static ALWAYS_INLINE vf lot_codes(const void *lot, const uint32_t bits, const uint32_t c)
{
    const __m512i words = _mm512_broadcast_i64x4(_mm256_loadu_si256(lot));
    const uint32_t at = c / ATTN_LOT_WORDS * bits;
    if (at + 2 * bits == 32) {
        const __m512i each = _mm512_srlv_epi32(words, two_halves(at, at + bits));
        return _mm512_cvtepi32_ps(
            _mm512_and_si512(each, _mm512_set1_epi32((int)code_mask(bits, 0))));
    }
    const __m512i mask = two_halves(code_mask(bits, at), code_mask(bits, at + bits));
    return _mm512_cvtepi32_ps(_mm512_and_si512(words, mask));
}

static ALWAYS_INLINE vf lot_unit(const uint32_t bits, const uint32_t c)
{
    const uint32_t at = c / ATTN_LOT_WORDS * bits;
    if (at + 2 * bits == 32) return vf_set1(1);
    const __m512 lower = _mm512_set1_ps(code_unit(bits, at));
    return _mm512_insertf32x8(lower, _mm256_set1_ps(code_unit(bits, at + bits)), 1);
}

#else /* AVX2, one register or two */

/* Codes 8 part .. 8 part + 7 of a lot. */
static ALWAYS_INLINE __m256 eight_of_lot(const void *lot, const uint32_t bits, const uint32_t part)
{
    const __m256i words = _mm256_loadu_si256(lot);
    const uint32_t at = part * bits;
    if (at + bits == 32) return _mm256_cvtepi32_ps(_mm256_srli_epi32(words, (int)at));
    return _mm256_cvtepi32_ps(_mm256_and_si256(words, _mm256_set1_epi32((int)code_mask(bits, at))));
}

static ALWAYS_INLINE vf lot_codes(const void *lot, const uint32_t bits, const uint32_t c)
{
    const uint32_t part = c / ATTN_LOT_WORDS;
#if defined(SIMD_AVX2_WIDE)
    return (vf){eight_of_lot(lot, bits, part), eight_of_lot(lot, bits, part + 1)};
#else
    return eight_of_lot(lot, bits, part);
#endif
}

static ALWAYS_INLINE vf lot_unit(const uint32_t bits, const uint32_t c)
{
    const uint32_t at = c / ATTN_LOT_WORDS * bits;
#if defined(SIMD_AVX2_WIDE)
    return (vf){_mm256_set1_ps(code_unit(bits, at)), _mm256_set1_ps(code_unit(bits, at + bits))};
#else
    return _mm256_set1_ps(code_unit(bits, at));
#endif
}

#endif

#endif
