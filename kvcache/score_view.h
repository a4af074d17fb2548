/* kvcache/score_view.h - what a scorer sees of one head: its live entries in position order.
 *
 * Sinks and recent entries come from the ring, all others from the pages of all shards, of which encoded
 * ones are decoded as the scorer reads them. Entries that the layer's sliding window has passed are not
 * shown. */
#ifndef KVCACHE_SCORE_VIEW_H
#define KVCACHE_SCORE_VIEW_H

#include "kvcache/cache_state.h"
#include "kvcache/scoring/scorer.h"

/* Lists the entries of a head, and which of them are candidates: neither sinks nor recent. */
void kv_view_list(const kv_seq *seq, uint32_t layer, uint32_t head, kv_head_view *view);

/* What kv_view_load needs beside the list. */
typedef struct kv_view_source {
    kv_seq *seq;
    uint32_t layer, head;
    const kv_head_view *view;
    uint32_t worker; /* whose scratch has the page that was read last */
    uint32_t *page;  /* which it is; KV_PAGE_NONE at first */
    attn_span *span; /* its entries */
} kv_view_source;

/* kv_score_view.load over a kv_view_source. */
void kv_view_load(const kv_score_view *view, uint32_t first, uint32_t count, float *k, float *v);

#endif
