/* kvcache/demote.h - which pages leave the pool when it is short, and which come back.
 *
 * Down, until there is room:
 *   1. pages of cached prefixes, least recently used object first, from its end
 *   2. pages of open sequences, least recently used first; of those used at the same time the oldest
 *      positions. A routing that reads everything uses all pages in every step: then it is the oldest
 *      positions of everybody, and those of sequences that do not run, first.
 * Only pages with one holder move, since his table alone has to learn the new id. Sinks and the recent
 * window are in the ring, and pages that are not full yet, or that will be encoded, stay, so none of
 * these ever leaves. Nor do those of sequences that evict: they are scored and packed again and
 * again (compact.h), and become fewer instead.
 *
 * A sequence under `flexgen` also keeps no more pages in the pool than its budget says, room or not: the
 * others leave when a step begins, in the same order, and stay away.
 *
 * Up, while an eighth of the pool is free: what the sequences of a step read, and what a new sequence takes
 * from a cached prefix. The gap between the two rules keeps pages from going round in circles.
 *
 * Everything here happens between steps. */
#ifndef KVCACHE_DEMOTE_H
#define KVCACHE_DEMOTE_H

#include "kvcache/cache_state.h"

enum { KV_VICTIMS_MAX = 256 };

/* A page of an open sequence that may leave. */
typedef struct kv_victim {
    uint64_t age; /* ticks since its last use, then how old its positions are; largest first */
    kv_seq *seq;
    uint32_t list, block;
} kv_victim;

/* ERR_UNSUPPORTED if the methods move pages and there is nowhere to move them to. */
err_t kv_demote_check(const kv_cache *cache, const kv_methods *methods, err_info *info) MUST_CHECK;

/* Are there tiers, with a slab to spare? */
bool kv_may_demote(const kv_cache *cache);

/* Demotes until cache->need fits; false if what may leave has left, or the tiers are full. */
bool kv_demote_until_room(kv_cache *cache);

/* Demotes what the rows' sequences may not keep in the pool, as far as the tiers have room. */
void kv_demote_surplus(kv_cache *cache, const kv_row *rows, uint32_t n_rows);

/* Brings pages of the rows' sequences back; cache->need still fits then. */
void kv_promote_rows(kv_cache *cache, const kv_row *rows, uint32_t n_rows);

/* Brings pages of the first n_blocks blocks of a cached object back. */
void kv_promote_object(kv_cache *cache, uint32_t object, uint32_t n_blocks);

#endif
