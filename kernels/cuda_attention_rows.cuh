/* kernels/cuda_attention_rows.cuh - rows of keys and values of every coding, eight channels at a time.
 *
 * A unit is eight channels that follow each other. Of plain bf16 it is one load of 16 bytes, of f32 two, where the
 * address allows it; rows of odd sizes go element by element. Of integers it is the eight words of a lot, at
 * one shift: units of one lot read the same 32 bytes, which is what a cache line is good for. What is behind
 * the end of a row is never read, and is 0. Contract: attention_coding.h. */
#ifndef KERNELS_CUDA_ATTENTION_ROWS_CUH
#define KERNELS_CUDA_ATTENTION_ROWS_CUH

#include "kernels/attention_pages.h"
#include "kernels/cuda_device.cuh"

enum { UNIT = 8 };

static __device__ __forceinline__ bool is_multiple(const void *at, uintptr_t n)
{
    return (reinterpret_cast<uintptr_t>(at) & (n - 1)) == 0;
}

static __device__ __forceinline__ void words_of(uint4 low, uint4 high, uint32_t out[UNIT])
{
    out[0] = low.x, out[1] = low.y, out[2] = low.z, out[3] = low.w;
    out[4] = high.x, out[5] = high.y, out[6] = high.z, out[7] = high.w;
}

/* Elements first .. first + 7 of a row of n. */
static __device__ __forceinline__ void load_plain8(const uint8_t *row, dtype type, uint32_t first,
                                                   uint32_t n, float out[UNIT])
{
    const uint8_t *from = row + static_cast<size_t>(first) * (type == DTYPE_F32 ? 4 : 2);
    if (first + UNIT > n || !is_multiple(from, 16)) {
        for (uint32_t e = 0; e < UNIT; e++)
            out[e] = first + e < n ? cuda_load(row, type, first + e) : 0;
        return;
    }
    const uint4 low = cuda_load16(from);
    if (type == DTYPE_F32) {
        uint32_t words[UNIT];
        words_of(low, cuda_load16(from + 16), words);
        for (uint32_t e = 0; e < UNIT; e++)
            out[e] = __uint_as_float(words[e]);
        return;
    }
    const uint32_t pairs[UNIT / 2] = {low.x, low.y, low.z, low.w};
    for (uint32_t e = 0; e < UNIT; e++)
        out[e] = __uint_as_float(e % 2 == 0 ? pairs[e / 2] << 16 : pairs[e / 2] & 0xffff0000u);
}

/* The first n of eight bytes, zeros behind them. */
static __device__ __forceinline__ uint2 load_bytes8(const uint8_t *from, uint32_t n)
{
    if (n == UNIT && is_multiple(from, 8)) return *reinterpret_cast<const uint2 *>(from);
    uint2 out = {0, 0};
    for (uint32_t i = 0; i < UNIT; i++) {
        const uint32_t byte = i < n ? from[i] : 0;
        (i < 4 ? out.x : out.y) |= byte << 8 * (i % 4);
    }
    return out;
}

static __device__ __forceinline__ uint32_t code_bits(attn_coding coding)
{
    return coding == ATTN_INT4 ? 4 : coding == ATTN_INT2 ? 2 : 8;
}

/* The codes of a unit in a whole lot. */
static __device__ __forceinline__ void load_lot8(const uint8_t *lot, uint32_t shift, uint32_t mask,
                                                 float out[UNIT])
{
    uint32_t words[ATTN_LOT_WORDS];
    if (is_multiple(lot, 16)) {
        words_of(cuda_load16(lot), cuda_load16(lot + 16), words);
    } else {
        for (uint32_t w = 0; w < ATTN_LOT_WORDS; w += 2) {
            const uint2 two = load_bytes8(lot + 4 * w, 8);
            words[w] = two.x, words[w + 1] = two.y;
        }
    }
    for (uint32_t e = 0; e < UNIT; e++)
        out[e] = static_cast<float>(words[e] >> shift & mask);
}

/* The codes of unit `unit` of a row of `dim`; fp8 as the numbers that they mean. */
static __device__ __forceinline__ void load_codes8(const uint8_t *row, attn_coding coding,
                                                   uint32_t dim, uint32_t unit, float out[UNIT])
{
    const uint32_t bits = code_bits(coding), mask = (1u << bits) - 1, first = UNIT * unit;
    const uint32_t lot_channels = 8 * ATTN_LOT_BYTES / bits;
    if (coding != ATTN_FP8 && first < dim - dim % lot_channels) {
        const uint8_t *lot = row + static_cast<size_t>(first / lot_channels) * ATTN_LOT_BYTES;
        load_lot8(lot, first % lot_channels / ATTN_LOT_WORDS * bits, mask, out);
        return;
    }
    const uint32_t n_bytes = ((dim - first < UNIT ? dim - first : uint32_t{UNIT}) * bits + 7) / 8;
    const uint2 bytes = load_bytes8(row + static_cast<size_t>(unit) * bits, n_bytes);
    for (uint32_t e = 0; e < UNIT; e++) {
        const uint32_t at = e * bits;
        const uint32_t code = (at < 32 ? bytes.x : bytes.y) >> at % 32 & mask;
        out[e] = coding == ATTN_FP8 ? cuda_f32_from_fp8(code) : static_cast<float>(code);
    }
}

/* Channels below `end` that a span of ATTN_KEPT holds. */
static __device__ __forceinline__ uint32_t n_kept_below(const void *grid, uint32_t end)
{
    const uint8_t *bits = static_cast<const uint8_t *>(grid);
    uint32_t n = 0;
    for (uint32_t i = 0; i < end / 8; i++)
        n += static_cast<uint32_t>(__popc(bits[i]));
    if (end % 8 > 0) n += static_cast<uint32_t>(__popc(bits[end / 8] & ((1u << end % 8) - 1)));
    return n;
}

static __device__ __forceinline__ float grid_at(const void *grid, size_t i)
{
    return cuda_f32_from_bf16(static_cast<const uint16_t *>(grid)[i]);
}

#endif
