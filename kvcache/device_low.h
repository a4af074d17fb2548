/* kvcache/device_low.h - pages of coefficients as a device reads them (ATTN_LOW).
 *
 * It needs what projects back, up of keys and of values. Bases of a model go up once, those of a head together, in f32.
 * Bases of a sequence's own are pages of the pool, and go up as pages do.
 *
 * Threads: the cache's owner. */
#ifndef KVCACHE_DEVICE_LOW_H
#define KVCACHE_DEVICE_LOW_H

#include "kernels/attention_pages.h"
#include "kvcache/encode.h"

/* Of all bases of a model that the cache may use; 0: none. */
size_t kv_view_bases_bytes(const kv_cache *cache);
void kv_view_send_bases(kv_cache *cache);

/* Completes the layout of a class of coefficients: where bases lie. */
void kv_view_aim_layout(const kv_cache *cache, uint32_t page_class, attn_layout *layout);

/* Where the device has the basis of a page; NULL: it needs none. */
const uint8_t *kv_view_basis(const kv_cache *cache, const kv_page_place *at);

/* Does a class have coefficients? */
bool kv_view_has_low(const kv_cache *cache);

#endif
