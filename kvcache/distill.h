/* kvcache/distill.h - what a head keeps is made to stand for what it loses (compression/matching.h).
 *
 * Under a scorer that is fitted, the entries that stay get biases (page_bias.h) and new values when the
 * others go, before anything is packed or encoded: the reference queries are the newest that the scorer
 * asked for, and the block is what candidates lie before them, so that every query sees all of it.
 * Entries of encoded pages are fixed: they were fitted before they were encoded, and writing them again
 * would cost accuracy. So under a lossy codec the entries since the last multiple of 2048 are fitted
 * around older ones; under `none` all are fitted anew.
 *
 * Over ranks the block is what the rank has of it. Its mass and output are preserved, and those of the ranks add up
 * to the head's.
 *
 * Work is bounded by what is there: a pass over n entries with 64 queries is less than the attention of
 * the 2048 that came since the last one. Nothing depends on more than the entries and the queries, so the
 * bits are the same however the sequence was cut. */
#ifndef KVCACHE_DISTILL_H
#define KVCACHE_DISTILL_H

#include "kvcache/cache_state.h"

/* The first layer whose values cannot be written, being part of its keys; n_layers: there is none. */
uint32_t kv_distill_stops_at(const kv_cache *cache);

/* Run over a measuring and then a real arena: the scratch of one worker. */
void kv_distill_place(arena *a, const kv_cache *cache, kv_distill_worker *out);

/* What one head keeps of its candidates. */
typedef struct kv_distill_args {
    kv_seq *seq;
    uint32_t layer, head;
    const kv_head_view *view; /* kept[n_kept] are candidates, rising */
    uint32_t n_kept;
    uint32_t worker;
    kv_score_queries queries;
} kv_distill_args;

/* Writes biases and values of the kept entries; the others still have theirs. Any worker, a head at a
 * time. */
void kv_distill_head(const kv_distill_args *args);

#endif
