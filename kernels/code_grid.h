/* kernels/code_grid.h - numbers as integer codes on a grid, and codes in rows.
 *
 * A grid of b bits over numbers x is min + scale * {0 .. 2^b - 1} with
 *     min = min x,  scale = (max x - min) / (2^b - 1),  code(x) = rne(clamp((x - min) / scale))
 * where rne rounds half to even, and scale is 1 where all x are equal. So |x - x^| <= scale / 2.
 * Pages store scale and min in bf16, which has the range of every cache type. Rounded to the nearest
 * they would leave the ends outside, by up to several steps where a channel lies far from 0; so min is
 * rounded down and scale up, the codes are chosen on the stored grid, and the bound holds with the
 * stored scale. That costs at most |min| 2^-7 of range and 1/128 of scale. */
#ifndef KERNELS_CODE_GRID_H
#define KERNELS_CODE_GRID_H

#include <stdint.h>

typedef struct code_grid {
    float scale, min;
} code_grid;

/* x[0], x[stride] ... x[(n - 1) * stride]: the grid in f32, and as a page stores it. What is not a
 * number or beyond +-1e37 counts as one of these ends. */
code_grid code_grid_fit(const float *x, uint32_t n, uint32_t stride, uint32_t bits);
code_grid code_grid_fit_stored(const float *x, uint32_t n, uint32_t stride, uint32_t bits);

uint32_t code_grid_find(code_grid grid, float x, uint32_t bits);

/* The code at a place of a row (attn_code_place), of bits that divide 8; it is zero there before. */
static inline void code_put(uint8_t *row, uint32_t bits, uint32_t place, uint32_t code)
{
    row[place * bits / 8] |= (uint8_t)(code << place * bits % 8);
}

static inline uint32_t code_get(const uint8_t *row, uint32_t bits, uint32_t place)
{
    return (uint32_t)row[place * bits / 8] >> place * bits % 8 & ((1u << bits) - 1);
}

#endif
