/* kvcache/commit.h - entries on their way from staging over the ring to pages.
 *
 * What a step will commit follows from lengths alone. So the pages are counted, made room for and
 * reserved before its first token, and its end cannot fail:
 *
 *   kv_add_need (every row), kv_make_room, kv_reserve (every row) | the step | kv_commit
 *
 * A sequence that closes goes the same way with what its ring still holds. */
#ifndef KVCACHE_COMMIT_H
#define KVCACHE_COMMIT_H

#include "kvcache/cache_state.h"

/* Entries [position, + n_slots) of one block that are not in a page: up to two spans in `out`. */
uint32_t kv_recent_spans(const kv_seq *seq, const kv_ring_place *at, uint32_t n_slots,
                         attn_span out[2]);

/* Adds to cache->need the pages of blocks [n_blocks, end) at `length`. */
void kv_add_need(const kv_cache *cache, const kv_seq *seq, uint32_t end, uint32_t length);

/* Gives up cached objects until cache->need fits; false if that is not enough. */
bool kv_make_room(kv_cache *cache);

/* Allocates what kv_add_need counted. */
void kv_reserve(kv_seq *seq, uint32_t end, uint32_t length);

/* Writes reserved blocks to their pages and what is staged to the rings; lengths grow. */
void kv_commit(kv_cache *cache, const kv_row *rows, uint32_t n_rows);

#endif
