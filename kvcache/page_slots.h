/* kvcache/page_slots.h - the slots of a page, and who owns them.
 *
 * Slots are written in order and positions rise with them. A page gets them all at once (fill), or is
 * open and gets one after the other (append). It has an owner from its first slot on: the shard that
 * its bytes are charged to, for as long as anybody holds it.
 *
 * Threads: as page_pool.h. */
#ifndef KVCACHE_PAGE_SLOTS_H
#define KVCACHE_PAGE_SLOTS_H

#include "kvcache/page_pool.h"

/* Written once, before the page has slots. */
void kv_pool_own(kv_pool *pool, uint32_t page, uint32_t owner);

/* The page gets an owner, and slots 0 .. n_slots at first_position and up. */
void kv_pool_fill(kv_pool *pool, uint32_t page, uint32_t first_position, uint32_t n_slots,
                  uint32_t owner);
/* One more slot of an owned page, at a position above those before; returns its index. */
uint32_t kv_pool_append(kv_pool *pool, uint32_t page, uint32_t position);
/* Only the first n_slots of an owned page stay. */
void kv_pool_shrink(kv_pool *pool, uint32_t page, uint32_t n_slots);

/* Slots of the page at positions below `position`. */
uint32_t kv_pool_slots_below(const kv_pool *pool, uint32_t page, uint32_t position);

/* Slots 0 .. n_slots of the page now hold these positions (rising), whatever they held before, and have no
 * biases. It gets an owner if it has none. */
void kv_pool_rewrite(kv_pool *pool, uint32_t page, const uint32_t *positions, uint32_t n_slots,
                     uint32_t owner);

#endif
