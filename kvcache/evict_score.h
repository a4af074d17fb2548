/* kvcache/evict_score.h - what entries of a layer are worth, before some of them go (evict.h).
 *
 * Over ranks kv_score_layer under kv_scores_together, kv_share_scores and kv_find_laziness are collective. */
#ifndef KVCACHE_EVICT_SCORE_H
#define KVCACHE_EVICT_SCORE_H

#include "kvcache/cache_state.h"

/* A layer of a sequence from whose entries is being chosen. */
typedef struct kv_evict_layer {
    kv_seq *seq;
    const kv_policy *policy; /* that chooses now */
    uint32_t layer;
    uint32_t n_keep;    /* entries that a head of this layer keeps on average, */
    uint32_t n_granted; /* candidates among them; over ranks, of this one's */
    bool has_lse;       /* evict.lse has what all ranks hold */
} kv_evict_layer;

static inline kv_head_view *kv_evict_head(const kv_evict_layer *loop, size_t h)
{
    return &loop->seq->cache->evict.heads[h];
}

/* Lists the entries of all heads. */
void kv_list_layer(kv_evict_layer *loop);

/* Scores of all heads, which are listed. */
void kv_score_layer(kv_evict_layer *loop);

/* Must all ranks score the layer, whether something goes on this one or not? */
bool kv_scores_together(const kv_evict_layer *loop);

/* Scores that all layers go by, at their positions: before the first layer, if the scorer has such. */
void kv_share_scores(kv_seq *seq, const kv_policy *policy);

/* How lazy all layers are, before anything goes: what has gone at this length already would show. */
void kv_find_laziness(kv_seq *seq, const kv_policy *policy);

/* The newest n_wanted of a head's group, as far as there are so many, in the worker's scratch. */
kv_score_queries kv_latest_queries(const kv_evict_layer *loop, uint32_t head, uint32_t n_wanted,
                                   const kv_evict_worker *worker);

#endif
