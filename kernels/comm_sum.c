/* kernels/comm_sum.c - the one sum of all host transports.
 *
 * In tiles that stay in the first-level cache, so that a running f32 sum is kept per element whatever
 * the type of the parts: bf16 is rounded once, when the tile is done. An element's additions are in
 * order of ranks, so neither tiles nor the cut of a call into slices changes a bit. */
#include "kernels/comm_impl.h"

#include "base/check.h"

enum { TILE = 1024 }; /* elements; 4 KiB of sums */

static void add_f32(float *restrict sum, const float *part, size_t n, bool is_first)
{
    if (is_first) { /* not added to zero: -0 would become +0 */
        memcpy(sum, part, n * sizeof *sum);
        return;
    }
    for (size_t i = 0; i < n; i++)
        sum[i] += part[i];
}

static void add_bf16(float *restrict sum, const uint16_t *part, size_t n, bool is_first)
{
    if (is_first) {
        for (size_t i = 0; i < n; i++)
            sum[i] = f32_from_bf16(part[i]);
        return;
    }
    for (size_t i = 0; i < n; i++)
        sum[i] += f32_from_bf16(part[i]);
}

static void round_bf16(uint16_t *restrict out, const float *sum, size_t n)
{
    for (size_t i = 0; i < n; i++)
        out[i] = bf16_from_f32(sum[i]);
}

void comm_sum(const void *const *parts, uint32_t n_parts, size_t n, dtype type, void *out)
{
    assert(type == DTYPE_F32 || type == DTYPE_BF16);
    float sum[TILE];
    for (size_t begin = 0; begin < n; begin += TILE) {
        const size_t n_tile = min_size(TILE, n - begin);
        for (uint32_t r = 0; r < n_parts; r++) {
            if (type == DTYPE_F32) {
                add_f32(sum, (const float *)parts[r] + begin, n_tile, r == 0);
            } else {
                add_bf16(sum, (const uint16_t *)parts[r] + begin, n_tile, r == 0);
            }
        }
        if (type == DTYPE_F32) {
            memcpy((float *)out + begin, sum, n_tile * sizeof *sum);
        } else {
            round_bf16((uint16_t *)out + begin, sum, n_tile);
        }
    }
}
