/* kernels/attention_coding.h - how the entries of an attn_span are written.
 *
 * Plain ones are elements of the query's type. Of the others, a row is one code per channel:
 *
 *   fp8    E4M3 codes     k[i][c] = code s_k             v[i][c] = code s_v
 *          k_grid, v_grid: one f32 each, s_k and s_v
 *   intB   unsigned       k[i][c] = code s_c + m_c       v[i][c] = code s_ig + m_ig,  g = c / v_group
 *          k_grid: bf16 [2][k_dim], s and m of every channel
 *          v_grid: bf16 [2][n_groups] at v_grid + i * v_grid_stride_bytes, s and m of slot i; v_group is
 *          a multiple of ATTN_GROUP_MIN
 *          v_group 0, of a latent: a value is the first channels of its key, v[i][c] = k[i][c]. v and v_grid
 *          are the keys' codes and grid, once more: rows and pairs of k_dim channels
 *   kept   elements       of the query's type; rows hold those channels alone that are kept, in order, and
 *          all others are 0. k_grid, v_grid: a bit for each channel, bit c % 8 of byte c / 8
 *
 * Grids are finite, and so are all codes; k_dim and v_dim are at most ATTN_CODED_DIM_MAX.
 *
 * A code of b bits at place i of its row takes bits [b i, b (i + 1)), little-endian. fp8: place c. The
 * integers go in lots of 32 bytes, eight words of 32 bits: channel c of a lot is in word c % 8, at bit
 * b (c / 8). So one mask over 32 bytes gives eight channels that follow each other, already in the lanes
 * of a vector, and no code is moved to another lane. Channels behind the last whole lot are in order. */
#ifndef KERNELS_ATTENTION_CODING_H
#define KERNELS_ATTENTION_CODING_H

#include <stdbool.h>
#include <stdint.h>

enum {
    ATTN_CODED_DIM_MAX = 1024,
    ATTN_GROUP_MIN = 16,
    ATTN_LOT_BYTES = 32,
    ATTN_LOT_WORDS = 8,
};

typedef enum attn_coding {
    ATTN_PLAIN,
    ATTN_FP8,
    ATTN_INT8,
    ATTN_INT4,
    ATTN_INT2,
    ATTN_KEPT,
    ATTN_LOW /* of pages alone: see attn_layout */
} attn_coding;

/* Of the integers and fp8. */
static inline uint32_t attn_code_bits(attn_coding coding)
{
    return coding == ATTN_INT4 ? 4 : coding == ATTN_INT2 ? 2 : 8;
}

/* Channels of a lot of integers. */
static inline uint32_t attn_lot_channels(attn_coding coding)
{
    return coding == ATTN_INT4 ? 64 : coding == ATTN_INT2 ? 128 : 32;
}

/* Those channels of a row of `dim` that are in whole lots: all below the number returned. */
static inline uint32_t attn_lots_end(attn_coding coding, uint32_t dim)
{
    return coding == ATTN_FP8 ? 0 : dim - dim % attn_lot_channels(coding);
}

/* The place of channel c in a row of `dim` codes. */
static inline uint32_t attn_code_place(attn_coding coding, uint32_t dim, uint32_t c)
{
    const uint32_t n = attn_lot_channels(coding), at = c % n;
    if (c >= attn_lots_end(coding, dim)) return c;
    return c - at + at % ATTN_LOT_WORDS * (n / ATTN_LOT_WORDS) + at / ATTN_LOT_WORDS;
}

/* The channels of a row that values lie in: their own, or those of the key that they begin. */
static inline uint32_t attn_value_row_dim(attn_coding coding, uint32_t v_group, uint32_t k_dim,
                                          uint32_t v_dim)
{
    return v_group == 0 && coding >= ATTN_INT8 && coding <= ATTN_INT2 ? k_dim : v_dim;
}

/* Does a span of ATTN_KEPT hold channel c? */
static inline bool attn_is_kept(const void *grid, uint32_t c)
{
    return (((const uint8_t *)grid)[c / 8] >> c % 8 & 1) != 0;
}

#endif
