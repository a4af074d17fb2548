/* kernels/simd_codes.h - codes in order, of encoded pages (attn_coding) and of weights with scales, as
 * vectors of numbers; for those in lots see simd_lots.h. Part of simd.h.
 *
 * LANES codes from `p`, unaligned: as many bytes as they fill are read, no more. fp8 is as
 * f32_from_fp8, but for NaN: its bits, moved, are an f32 whose exponent is 120 too low ("tiny"); the sign
 * comes along by sign extension. */
#ifndef KERNELS_SIMD_CODES_H
#define KERNELS_SIMD_CODES_H

#include "kernels/attention.h"

#define FP8_TINY_BITS 0x87f00000u
#define FP8_TINY_UNIT 0x1p120f

#if defined(SIMD_AVX512)

static inline vf vf_load_u8(const void *p)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(p)));
}

static inline vf vf_load_u4(const void *p)
{
    const __m512i bytes = _mm512_cvtepu8_epi64(_mm_loadl_epi64(p)); /* two codes in every eight */
    const __m512i two = _mm512_or_si512(bytes, _mm512_slli_epi64(bytes, 28));
    return _mm512_cvtepi32_ps(_mm512_and_si512(two, _mm512_set1_epi32(15)));
}

static inline vf vf_load_u2(const void *p)
{
    uint32_t codes;
    memcpy(&codes, p, sizeof codes);
    const __m512i shift =
        _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i each = _mm512_srlv_epi32(_mm512_set1_epi32((int)codes), shift);
    return _mm512_cvtepi32_ps(_mm512_and_si512(each, _mm512_set1_epi32(3)));
}

static inline vf vf_load_fp8_tiny(const void *p)
{
    const __m512i codes = _mm512_slli_epi32(_mm512_cvtepi8_epi32(_mm_loadu_si128(p)), 20);
    return _mm512_castsi512_ps(_mm512_and_si512(codes, _mm512_set1_epi32((int)FP8_TINY_BITS)));
}

#else /* AVX2, one register or two */

static inline __m256 eight_u8(const void *p)
{
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(p)));
}

static inline __m256 eight_u4(const void *p)
{
    uint32_t codes;
    memcpy(&codes, p, sizeof codes);
    const __m256i shift = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);
    const __m256i each = _mm256_srlv_epi32(_mm256_set1_epi32((int)codes), shift);
    return _mm256_cvtepi32_ps(_mm256_and_si256(each, _mm256_set1_epi32(15)));
}

static inline __m256 eight_u2(const void *p)
{
    uint16_t codes;
    memcpy(&codes, p, sizeof codes);
    const __m256i shift = _mm256_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14);
    const __m256i each = _mm256_srlv_epi32(_mm256_set1_epi32(codes), shift);
    return _mm256_cvtepi32_ps(_mm256_and_si256(each, _mm256_set1_epi32(3)));
}

static inline __m256 eight_fp8_tiny(const void *p)
{
    const __m256i codes = _mm256_slli_epi32(_mm256_cvtepi8_epi32(_mm_loadl_epi64(p)), 20);
    return _mm256_castsi256_ps(_mm256_and_si256(codes, _mm256_set1_epi32((int)FP8_TINY_BITS)));
}

#if defined(SIMD_AVX2_WIDE)
#define VECTOR_OF(eight, p, bytes) ((vf){eight(p), eight((const char *)(p) + (bytes))})
#else
#define VECTOR_OF(eight, p, bytes) (eight(p))
#endif

static inline vf vf_load_u8(const void *p)
{
    return VECTOR_OF(eight_u8, p, 8);
}

static inline vf vf_load_u4(const void *p)
{
    return VECTOR_OF(eight_u4, p, 4);
}

static inline vf vf_load_u2(const void *p)
{
    return VECTOR_OF(eight_u2, p, 2);
}

static inline vf vf_load_fp8_tiny(const void *p)
{
    return VECTOR_OF(eight_fp8_tiny, p, 8);
}

#undef VECTOR_OF

#endif

static inline vf vf_load_fp8(const void *p)
{
    return vf_mul(vf_load_fp8_tiny(p), vf_set1(FP8_TINY_UNIT));
}

/* Codes in order: c .. c + LANES - 1 of a row, behind its lots. n > 0: only n of them, zeros behind, and
 * nothing after their bytes is read. `coding` is a constant after inlining. */
static ALWAYS_INLINE vf load_codes(const char *row, uint32_t c, uint32_t n,
                                   const attn_coding coding)
{
    const uint32_t bits = attn_code_bits(coding);
    const char *at = row + (size_t)c * bits / 8;
    char part[LANES] = {0};
    if (n > 0) at = memcpy(part, at, ((size_t)n * bits + 7) / 8);
    switch (coding) {
    case ATTN_FP8: return vf_load_fp8(at);
    case ATTN_INT8: return vf_load_u8(at);
    case ATTN_INT4: return vf_load_u4(at);
    default: return vf_load_u2(at);
    }
}

#endif
