/* kvcache/prefix_ranks.h - what ranks agree on when a sequence takes a prefix, or leaves one.
 *
 * Ranks make and use cached objects by the same calls, and give them up under pressure of their own, so that
 * what is left differs: an object may be shorter on one rank, or gone. A prefix is taken from objects of one
 * origin on all ranks, as many tokens as all of them have. Objects that merely have the same tokens would not
 * do: by which experts their entries were placed, and so whose they are, is a matter of when they were
 * computed, and two ranks might both have an entry, or none.
 *
 * That is also why no rank leaves an object alone: if one had older entries for the same tokens and kept those
 * instead, nobody could take either. How much of it each has room for is its own affair.
 *
 * A finished object has its last entries and its sinks in pages, each on one rank alone, where a ring needs
 * them on all: kv_ranks_fill_ring.
 *
 * All of it is collective, between steps, in the order of calls that all ranks make. One rank alone asks
 * nobody. A comm that has failed leaves nothing to take and nothing to leave. */
#ifndef KVCACHE_PREFIX_RANKS_H
#define KVCACHE_PREFIX_RANKS_H

#include "kvcache/cache_state.h"

/* Like kv_prefix_find, of what all ranks have, in a table with room for it. */
uint32_t kv_prefix_find_common(kv_seq *seq, const uint32_t *tokens, uint32_t n_tokens,
                               uint32_t *n_taken);

/* Shall there be a new object? If all ranks may leave one, and they do not all have a covering one of the
 * same origin. */
bool kv_prefix_agree_new(const kv_cache *cache, bool may_leave, uint32_t covering);

/* What a sequence has just taken over: positions [first, end) lie in pages that `table` sees, and are to be
 * in the ring, too, where this rank has those of its own; likewise the first n_sinks. */
typedef struct kv_ring_filling {
    kv_seq *seq;
    const kv_table *table;
    uint32_t first, end, n_sinks;
} kv_ring_filling;

/* Gets the entries of other ranks, with their shards. False: the comm has failed. */
bool kv_ranks_fill_ring(const kv_ring_filling *filling);

/* The largest message of one rank: a block of entries of any layer. */
size_t kv_ranks_ring_bytes(const kv_cache *cache);

#endif
