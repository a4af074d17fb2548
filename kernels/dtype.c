/* kernels/dtype.c - see dtype.h. */
#include "kernels/dtype.h"

#include "base/check.h"

#include <math.h>

const char *dtype_name(dtype type)
{
    static const char *const names[DTYPE_COUNT] = {[DTYPE_F32] = "f32",
                                                   [DTYPE_BF16] = "bf16",
                                                   [DTYPE_F16] = "f16",
                                                   [DTYPE_FP8] = "fp8",
                                                   [DTYPE_MXFP4] = "mxfp4"};
    assert((unsigned)type < DTYPE_COUNT);
    return names[type];
}

float f32_from_f16(uint16_t half)
{
    const uint32_t sign = (uint32_t)(half & 0x8000u) << 16;
    const uint32_t exponent = half >> 10 & 0x1fu, fraction = half & 0x3ffu;
    if (exponent == 0x1fu) { /* infinity, or a NaN made quiet as the hardware does */
        const uint32_t quiet = fraction != 0 ? 0x400000u : 0;
        return f32_from_bits(sign | 0x7f800000u | quiet | fraction << 13);
    }
    if (exponent == 0) { /* zero and subnormals: fraction * 2^-24, exact */
        const float magnitude = (float)fraction * 0x1p-24f;
        return sign != 0 ? -magnitude : magnitude;
    }
    return f32_from_bits(sign | (exponent + 112) << 23 | fraction << 13);
}

uint16_t f16_from_f32(float x)
{
    const uint32_t bits = f32_bits(x);
    const uint16_t sign = (uint16_t)(bits >> 16 & 0x8000u);
    const uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return (uint16_t)(sign | 0x7e00u | (magnitude >> 13 & 0x3ffu));
    if (magnitude >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u); /* rounds past 65504 */
    if (magnitude < 0x38800000u) {                                   /* subnormal: units of 2^-24 */
        const float units = nearbyintf(f32_from_bits(magnitude) * 0x1p24f);
        return (uint16_t)(sign | (uint16_t)units);
    }
    const uint32_t rounded = magnitude - (112u << 23) + 0xfffu + (magnitude >> 13 & 1u);
    return (uint16_t)(sign | rounded >> 13);
}

float f32_from_fp8(uint8_t code)
{
    const uint32_t magnitude = code & 0x7fu;
    if (magnitude == 0x7fu) return f32_from_bits((uint32_t)(code & 0x80u) << 24 | 0x7fc00000u);
    /* The same digits as a tiny f32, whose exponent is 120 too low; exact for subnormals, too. */
    const float tiny = f32_from_bits((uint32_t)(code & 0x80u) << 24 | magnitude << 20);
    return tiny * 0x1p120f;
}

uint8_t fp8_from_f32(float x)
{
    const uint32_t bits = f32_bits(x);
    const uint8_t sign = (uint8_t)(bits >> 24 & 0x80u);
    const uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return (uint8_t)(sign | 0x7fu);
    if (magnitude >= 0x43e00000u) return (uint8_t)(sign | 0x7eu); /* 448 and more */
    if (magnitude < 0x3c800000u) {                                /* subnormal: units of 2^-9 */
        const float units = nearbyintf(f32_from_bits(magnitude) * 0x1p9f);
        return (uint8_t)(sign | (uint8_t)units);
    }
    const uint32_t rounded = magnitude - (120u << 23) + 0x7ffffu + (magnitude >> 20 & 1u);
    return (uint8_t)(sign | rounded >> 20);
}
