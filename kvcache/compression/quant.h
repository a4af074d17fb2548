/* kvcache/compression/quant.h - what the codecs of codes share: pages of them, made by kernels/encode_pages.h.
 *
 * Grids are those of kernels/code_grid.h.
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

#include "kernels/code_grid.h"
#include "kvcache/compression/codec.h"

enum { KV_QUANT_GROUP_MAX = 64 };

/* The layout of an encoded page; v_group at most KV_QUANT_GROUP_MAX, of integers whose values are not in their
 * keys. fp8 has one scale each of keys and values. */
err_t kv_quant_layout(attn_coding coding, uint32_t v_group, const kv_head_shape *shape,
                      uint32_t page_tokens, kv_page_layout *out) MUST_CHECK;

/* seal of all of them, load of the integers. */
void kv_quant_seal(const kv_seal_args *args);
attn_span kv_quant_load(const kv_load_args *args);

/* ---- rows of the cache type ---- */

/* Elements [first, first + n) of a stored row, and back. */
void kv_row_get(const void *row, dtype type, uint32_t first, uint32_t n, float *out);
void kv_row_put(const float *x, dtype type, uint32_t first, uint32_t n, void *row);

#endif
