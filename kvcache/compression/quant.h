/* kvcache/compression/quant.h - what the codecs of codes share: pages of them, made by kernels/encode_pages.h.
 *
 * Grids are those of kernels/code_grid.h.
 *
 * Layout as in KIVI (Liu et al. 2024): keys share a grid per channel over the slots of a page, since
 * their outliers are channels; values per token, in groups of channels. Unlike KIVI's, rows of both are
 * packed along channels, since attention reads slot by slot, in the order of attention_coding.h, and the
 * last page of a sequence is not counted out: what is not encoded is the ring. */
#ifndef KVCACHE_COMPRESSION_QUANT_H
#define KVCACHE_COMPRESSION_QUANT_H

#include "kernels/code_grid.h"
#include "kvcache/compression/codec.h"

enum { KV_QUANT_GROUP_MAX = 64 };

/* The layout of an encoded page; v_group at most KV_QUANT_GROUP_MAX (integers), or 0 for one scale each
 * of keys and values (fp8). */
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
