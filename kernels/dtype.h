/* kernels/dtype.h - number formats of stored values, and their scalar conversions. */
#ifndef KERNELS_DTYPE_H
#define KERNELS_DTYPE_H

#include <stdint.h>
#include <string.h>

typedef enum dtype {
    DTYPE_F32,
    DTYPE_BF16,
    DTYPE_F16, /* IEEE half; weights only, never the KV cache */
    DTYPE_COUNT
} dtype;

static inline uint32_t dtype_bytes(dtype type)
{
    return type == DTYPE_F32 ? 4 : 2;
}

#ifdef __cplusplus
extern "C" {
#endif

const char *dtype_name(dtype type); /* "f32", "bf16", "f16" */

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

#ifdef __cplusplus
}
#endif

#endif
