/* kvcache/compression/quant.h - what the integer codecs share: a grid, its codes, and pages of them.
 *
 * A grid of b bits over numbers x is min + scale * {0 .. 2^b - 1} with
 *     min = min x,  scale = (max x - min) / (2^b - 1),  code(x) = rne(clamp((x - min) / scale))
 * where rne rounds half to even, and scale is 1 where all x are equal. So |x - x^| <= scale / 2.
 * Pages store scale and min in bf16, which has the range of every cache type. Rounded to the nearest
 * they would leave the ends outside, by up to several steps where a channel lies far from 0; so min is
 * rounded down and scale up, the codes are chosen on the stored grid, and the bound holds with the
 * stored scale. That costs at most |min| 2^-7 of range and 1/128 of scale.
 *
 * Layout as in KIVI (Liu et al. 2024): keys share a grid per channel over the slots of a page, since
 * their outliers are channels; values per token, in groups of channels. Unlike KIVI's, rows of both are
 * packed along channels, since attention reads slot by slot, in the order of attention_coding.h, and the
 * last page of a sequence is not counted out: what is not encoded is the ring.
 *
 * A latent (MLA) is one row that is read as a key and, its first channels, as a value; KIVI says nothing of it.
 * Its channels have the keys' grids for both: of 32 slots they lose no more than groups of as many channels of a
 * token would, and a score stays one sum. Logits of four small models of the golden tests, latents coded by int8
 * all along the prompt, relative: 0.0088, 0.0091, 0.0149, 0.0050, where grids of tokens have 0.0095, 0.0114,
 * 0.0149, 0.1299 (there another expert was chosen). At int4 0.147, 0.155, 0.207, 0.163 for 0.146, 0.178, 0.232,
 * 0.140. Of a raw page of 32 slots, 576 channels and bf16 (36864 bytes): int8 20736, int4 11520, int2 6912. */
#ifndef KVCACHE_COMPRESSION_QUANT_H
#define KVCACHE_COMPRESSION_QUANT_H

#include "kvcache/compression/codec.h"

enum { KV_QUANT_GROUP_MAX = 64 };

typedef struct kv_grid {
    float scale, min;
} kv_grid;

/* x[0], x[stride] ... x[(n - 1) * stride]: the grid in f32, and as a page stores it. What is not a
 * number or beyond +-1e37 counts as one of these ends. */
kv_grid kv_grid_fit(const float *x, uint32_t n, uint32_t stride, uint32_t bits);
kv_grid kv_grid_fit_stored(const float *x, uint32_t n, uint32_t stride, uint32_t bits);

uint32_t kv_grid_code(kv_grid grid, float x, uint32_t bits);

/* The code at a place of a row (attn_code_place), of bits that divide 8; it is zero there before. */
static inline void kv_code_put(uint8_t *row, uint32_t bits, uint32_t place, uint32_t code)
{
    row[place * bits / 8] |= (uint8_t)(code << place * bits % 8);
}

static inline uint32_t kv_code_get(const uint8_t *row, uint32_t bits, uint32_t place)
{
    return (uint32_t)row[place * bits / 8] >> place * bits % 8 & ((1u << bits) - 1);
}

/* The layout of an encoded page; v_group at most KV_QUANT_GROUP_MAX, of integers whose values are not in their
 * keys. fp8 has one scale each of keys and values. */
err_t kv_quant_layout(attn_coding coding, uint32_t v_group, const kv_head_shape *shape,
                      uint32_t page_tokens, kv_page_layout *out) MUST_CHECK;

/* seal and load of the integer codecs. */
void kv_quant_seal(const kv_seal_args *args);
attn_span kv_quant_load(const kv_load_args *args);

/* ---- rows of the cache type ---- */

/* Elements [first, first + n) of a stored row, and back. */
void kv_row_get(const void *row, dtype type, uint32_t first, uint32_t n, float *out);
void kv_row_put(const float *x, dtype type, uint32_t first, uint32_t n, void *row);

#endif
