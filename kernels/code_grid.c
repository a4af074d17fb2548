/* kernels/code_grid.c - see code_grid.h. Plain loops: a page is encoded once and read often. */
#include "kernels/code_grid.h"

#include "kernels/dtype.h"

#include <math.h>

/* bf16 next to x that is not above it. */
static float bf16_below(float x)
{
    const uint32_t bits = f32_bits(x);
    const uint32_t up = x < 0 ? 0xffffu : 0; /* away from 0 if negative */
    return f32_from_bits((bits + up) & 0xffff0000u);
}

static float bf16_above(float x)
{
    return -bf16_below(-x);
}

typedef struct range {
    float min, max;
} range;

static range find_range(const float *x, uint32_t n, uint32_t stride)
{
    const float limit = 1e37f;
    range r = {INFINITY, -INFINITY};
    for (uint32_t i = 0; i < n; i++) {
        float y = x[(size_t)i * stride];
        if (!(y >= -limit)) y = -limit;
        if (y > limit) y = limit;
        if (y < r.min) r.min = y;
        if (y > r.max) r.max = y;
    }
    return r;
}

static float step(float width, uint32_t bits)
{
    const float scale = width / (float)((1u << bits) - 1);
    return scale > 0 ? scale : 1;
}

code_grid code_grid_fit(const float *x, uint32_t n, uint32_t stride, uint32_t bits)
{
    const range r = find_range(x, n, stride);
    return (code_grid){.scale = step(r.max - r.min, bits), .min = r.min};
}

code_grid code_grid_fit_stored(const float *x, uint32_t n, uint32_t stride, uint32_t bits)
{
    const range r = find_range(x, n, stride);
    const float min = bf16_below(r.min);
    return (code_grid){.scale = bf16_above(step(r.max - min, bits)), .min = min};
}

uint32_t code_grid_find(code_grid grid, float x, uint32_t bits)
{
    const float last = (float)((1u << bits) - 1);
    const float at = (x - grid.min) / grid.scale;
    if (!(at > 0)) return 0; /* a NaN, too */
    return (uint32_t)rintf(at < last ? at : last);
}
