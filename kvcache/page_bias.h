/* kvcache/page_bias.h - what attention adds to the scores of a page's slots.
 *
 * An entry that stands for others has a bias (compression/matching.h), f32 and beside the page with what else
 * the pool knows of it: so the page may be encoded, gathered or moved, and the numbers go with the slots.
 * Most pages have none, and then nothing is added. A box bounds q . k alone, so what is said of a page's
 * scores must add the largest of its biases.
 *
 * Threads: as page_pool.h; biases of different pages may be written by several. */
#ifndef KVCACHE_PAGE_BIAS_H
#define KVCACHE_PAGE_BIAS_H

#include "kvcache/page_pool.h"

/* [n_slots], borrowed until the page is written or freed; NULL: the page has none. */
const float *kv_pool_biases(const kv_pool *pool, uint32_t page);

/* No slot's bias is above it; 0 if the page has none. */
float kv_pool_bias_most(const kv_pool *pool, uint32_t page);

/* Of every page by its number; -inf: it has none. NULL: no page can have any. */
const float *kv_pool_most_biases(const kv_pool *pool);

/* Copies biases[n_slots], finite, of the slots that the page has now; NULL: none. Others than NULL only if
 * the pool was opened with has_biases. */
void kv_pool_set_biases(kv_pool *pool, uint32_t page, const float *biases);

/* One of them; the others stay as they are, 0 at first. */
void kv_pool_set_bias(kv_pool *pool, uint32_t page, uint32_t slot, float bias);

#endif
