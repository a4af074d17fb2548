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

#include "kvcache/encode.h"

/* Entries [position, + n_slots) of one block that are not in a page: up to two spans in `out`. */
uint32_t kv_recent_spans(const kv_seq *seq, const kv_ring_place *at, uint32_t n_slots,
                         attn_span out[2]);

/* Adds to cache->need the pages that the sequence lacks for its goal. */
void kv_add_need(const kv_seq *seq, const kv_goal *goal);

/* Demotes pages to lower tiers, then gives up cached objects, until cache->need fits; false if that is not enough. */
bool kv_make_room(kv_cache *cache);

/* Allocates pages for the goal's new blocks; those for raw ones to be encoded wait for the commit. */
void kv_reserve(kv_seq *seq, const kv_goal *goal);

/* Writes reserved blocks to their pages and what is staged to the rings; lengths grow; what the goal
 * wants encoded is. */
void kv_commit(kv_cache *cache, const kv_row *rows, uint32_t n_rows);

#endif
