/* kvcache/page_changes.h - pages that are no longer what somebody has a copy of.
 *
 * Kept only if kv_pool_config asks for it: a page that gets slots (or, without any, the bytes of a basis), other slots or other numbers is noted once,
 * until it is asked for. Whoever writes a page again that has its slots already notes it himself. A copy may also be
 * made where it is, from what is there (device_commit.h): the page is then noted, but its bytes need not be sent.
 *
 * Threads: one owner. */
#ifndef KVCACHE_PAGE_CHANGES_H
#define KVCACHE_PAGE_CHANGES_H

#include "kvcache/page_pool.h"

/* Nothing if changes are not noted. */
void kv_pool_note_change(kv_pool *pool, uint32_t page);

/* Of a page that is noted: the copy has its bytes and its box, until it is noted again. */
void kv_pool_note_made(kv_pool *pool, uint32_t page);
bool kv_pool_is_made(const kv_pool *pool, uint32_t page);

/* Does the copy have the bytes of a page that has slots? */
bool kv_pool_has_copy(const kv_pool *pool, uint32_t page);

typedef struct kv_page_change {
    uint32_t page;
    bool is_made; /* all but its biases is there */
} kv_page_change;

/* Takes one of the pages noted, in the order in which they were; those that nobody holds any more are left
 * out. False once there is none. */
bool kv_pool_take_change(kv_pool *pool, kv_page_change *change);

/* Where a page of the pool, not of its lower tiers, begins in the pool's one mapping, and how large that is. */
uint64_t kv_pool_offset(const kv_pool *pool, uint32_t page);
uint64_t kv_pool_mapped_bytes(const kv_pool *pool);

#endif
