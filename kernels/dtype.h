/* kernels/dtype.h - number formats of stored values, and their scalar conversions. */
#ifndef KERNELS_DTYPE_H
#define KERNELS_DTYPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef enum dtype {
    DTYPE_F32,
    DTYPE_BF16,
    DTYPE_F16, /* IEEE half; weights only, never the KV cache */
    /* Of weight matrices with scales (kernels/matmul.h), and nothing else: */
    DTYPE_FP8,   /* E4M3, one scale for a block of rows and columns */
    DTYPE_MXFP4, /* E2M1, two in a byte; one scale, a power of two, for MX_BLOCK columns of a row */
    DTYPE_COUNT
} dtype;

enum { MX_BLOCK = 32 };

/* Not of MXFP4, two of which share a byte. */
static inline uint32_t dtype_bytes(dtype type)
{
    return type == DTYPE_F32 ? 4 : type == DTYPE_FP8 ? 1 : 2;
}

/* Of a row of `n` values; of MXFP4 n is even. */
static inline size_t dtype_row_bytes(dtype type, size_t n)
{
    return type == DTYPE_MXFP4 ? n / 2 : n * dtype_bytes(type);
}

/* Whether values are codes that mean nothing without scales. */
static inline bool dtype_has_scales(dtype type)
{
    return type == DTYPE_FP8 || type == DTYPE_MXFP4;
}

#ifdef __cplusplus
extern "C" {
#endif

const char *dtype_name(dtype type); /* "f32", "bf16", "f16", "fp8", "mxfp4" */

static inline float f32_from_bits(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static inline uint32_t f32_bits(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static inline float f32_from_bf16(uint16_t half)
{
    return f32_from_bits((uint32_t)half << 16);
}

/* Round to nearest even; NaN stays a (quiet) NaN. */
static inline uint16_t bf16_from_f32(float x)
{
    const uint32_t bits = f32_bits(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((bits >> 16) | 0x0040u);
    return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

float f32_from_f16(uint16_t half);
uint16_t f16_from_f32(float x);

/* fp8 is E4M3 without infinities: 448 is the largest, 2^-9 the smallest, 0x7f and 0xff are NaN. To
 * nearest even; what is too large becomes 448. */
float f32_from_fp8(uint8_t code);
uint8_t fp8_from_f32(float x);

/* 2^(code - 127), the scale of MXFP4 (E8M0); 255 is NaN. */
static inline float f32_from_e8m0(uint8_t code)
{
    if (code == 0) return f32_from_bits(0x00400000u);
    return f32_from_bits(code == 255 ? 0x7fc00000u : (uint32_t)code << 23);
}

/* E2M1 of the low four bits: 0, 0.5, 1, 1.5, 2, 3, 4 and 6, and behind them the same with a sign. */
static inline float f32_from_fp4(uint8_t code)
{
    static const float values[8] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
    return (code & 8) != 0 ? -values[code & 7] : values[code & 7];
}

#ifdef __cplusplus
}
#endif

#endif
