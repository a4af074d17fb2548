/* kvcache/compression/pikv.h - what a page is worth, under the mixed codec `pikv`. */
#ifndef KVCACHE_COMPRESSION_PIKV_H
#define KVCACHE_COMPRESSION_PIKV_H

#include "kvcache/compression/codec.h"

/* Importance of a page from its entries before it is encoded, at least one of them, in the cache type:
 * finite, not below 0, higher is hotter. k_dim is at most ATTN_CODED_DIM_MAX. Any worker; the same
 * entries give the same bits. */
float kv_page_importance(const kv_head_shape *shape, const attn_span *span);

#endif
