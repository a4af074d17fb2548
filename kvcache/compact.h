/* kvcache/compact.h - pages with holes become fewer pages.
 *
 * Evicted entries leave holes, and only whole pages are bytes. So what is left is gathered:
 *
 *   raw pages      behind the last encoded one, when their holes together make up a page: all of them
 *                  become full, but for the last. Under a lossy codec whenever there is a hole, since
 *                  they are encoded next.
 *   encoded pages  neighbours that fit in one page: decoded, gathered and encoded once more. That costs
 *                  accuracy again, so encoded pages otherwise keep their holes.
 *
 *   entry    0 ##..   1 #..#   2 NONE   3 ####   4 .#..     holes: 7
 *   after    0 ####   1 ####   2 NONE   3 #      4 NONE
 *
 * Every shard's list by itself: no entry changes its owner. An entry's place in the list is that of one
 * of the pages that went into it, and positions rise as before. A page that nobody shares is written
 * over, front to back, since entries only move forward; of a shared one a new page is made, and for that
 * room is needed. Entry 0 gets no more than leaves room for the sinks in its block. What is done depends
 * on which entries are live alone. */
#ifndef KVCACHE_COMPACT_H
#define KVCACHE_COMPACT_H

#include "kvcache/cache_state.h"

/* Does nobody but this sequence hold the page, and can it be written where it lies? */
bool kv_page_is_own(const kv_cache *cache, uint32_t page);

/* All layers of a thinned sequence. ERR_KV_FULL: those that came before are done, the others are as they
 * were, and calling again goes on. */
err_t kv_compact(kv_seq *seq) MUST_CHECK;

#endif
