/* kvcache/observe.h - what scorers need of a sequence beside its entries, kept while it runs (observed.h: and read).
 *
 *   queries   the newest n_queries of every head, after RoPE, f32, position p at p mod n_queries; behind those
 *             of a position the norm of the layer's input there, if a scorer asks for it
 *   squares   of those of every KV head's group, channel by channel and summed over the group, f32, as many
 *             as the codec asks for, position p at p mod n_squares
 *   sums      of the prompt's queries before RoPE and of their products, without positions below 4:
 *             doubles, added in position order, so that the cut of the prompt changes no bit; behind the
 *             prompt what scorers want of them, in f32
 *   mass      for every position the attention that it got, a mean over the heads of its group summed
 *             over the queries in their order (dev_ops.attend_mass: a second pass over the keys)
 *   uses      of pages: the position of the last decode query that read it, and how many did; kept only
 *             if routing leaves pages out
 *   local     for every position what it got from the queries around it (local_mass.h), in one copy; takes
 *             the newest KV_LOCAL_TOKENS queries, too
 *   lazy      how lazy each layer is, at the length at which that was last asked
 *
 *   replay    while a prompt is read again, and as long as its scores are asked for: the largest share of
 *             every position (kv_replay.h). A maximum may be raised twice, so there is one copy. All others
 *             stand still meanwhile: these queries are not the sequence's own
 *
 * A sequence has what its scorers and its codec ask for, allocated when it opens and when its table grows;
 * what only a selection asks for is given back once the prompt's end has been chosen. What a step
 * adds goes to a second copy that takes the place of the first when the step ends: an aborted step
 * leaves no trace, but for uses. A prefix that was taken brings nothing along: scorers know of it what
 * later queries showed. */
#ifndef KVCACHE_OBSERVE_H
#define KVCACHE_OBSERVE_H

#include "base/arena.h"
#include "kvcache/kv_cache.h"
#include "kvcache/scoring/scorer.h"

#include <stdbool.h>

typedef struct kv_uses {
    uint32_t last_use; /* position; 0 before the first use */
    uint32_t n_uses;
} kv_uses;

/* Of one sequence. Per head: all KV heads of all layers, one after the other. */
typedef struct kv_observed {
    uint32_t needs;  /* KV_SCORE_...; 0: nothing is kept */
    uint32_t window; /* the largest that is asked for */
    uint32_t n_squares;
    uint32_t first; /* the queries of positions below were not seen, or are no longer there */
    float *queries, *new_queries; /* layer l at window * observers.first_query[l]:
                                   * [window][kv_query_width + 1] */
    float *squares, *new_squares; /* layer l at n_squares * observers.first_square[l]:
                                   * [n_squares][n_kv_heads][k_dim] */
    double *sums,
        *new_sums;     /* the second only in the prompt; layer l at observers.first_sum[l]: of each
                              * query head [k_dim], then of products c <= r at r (r + 1) / 2 + c */
    float *stats;      /* instead, behind the prompt: means and covariances, in the order of sums */
    uint32_t n_summed; /* queries in sums, or that stats are of */
    float *mass, *new_mass; /* per head [n_positions] */
    float *local;           /* per head [n_local] */
    kv_uses *uses;          /* [n_lists][n_entries] */
    uint32_t n_positions, n_local, n_entries;
    float *replay; /* per head [n_prompt_tokens]; NULL unless the prompt is read again */
    bool wants_lazy;
    double *lazy;               /* [n_layers]: see kv_allocator.laziness; found at lazy_length */
    uint32_t lazy_length;       /* 0: not yet */
    size_t replay_bytes, bytes; /* of replay; of all these */
} kv_observed;

/* What is the same for all sequences. */
typedef struct kv_observers {
    size_t *first_query;  /* [n_layers + 1]: floats of one position in the layers before */
    size_t *first_square; /* [n_layers + 1]: floats of one position in the layers before */
    size_t *first_sum;    /* [n_layers + 1]: doubles of the layers before */
    float *
        lse; /* [n_kv_heads_max][lse_stride], of one layer, over what all ranks hold; NULL unless mass or
              * replays are asked for */
    size_t lse_stride; /* of a KV head: one for each token of a step and query head of its group */
    float *
        local_lse; /* [n_kv_heads_max][local_stride]: of a part (local_mass.h); NULL: nobody asks */
    size_t local_stride;
    uint32_t group_max;
} kv_observers;

/* Floats of one position's queries in a layer. */
static inline size_t kv_query_width(const kv_layer_shape *shape)
{
    return (size_t)shape->n_heads * shape->k_dim;
}

/* Run over a measuring and then a real arena; after kv_evict_place. */
void kv_observers_place(arena *a, const kv_cache *cache, kv_observers *observers);

/* ---- one sequence ---- */

err_t kv_observed_open(kv_seq *seq) MUST_CHECK; /* ERR_NO_MEMORY, ERR_OVERFLOW */
void kv_observed_close(kv_seq *seq);

/* As much as its table. ERR_NO_MEMORY changes nothing. */
err_t kv_observed_grow(kv_seq *seq) MUST_CHECK;

/* The sequence begins anew. */
void kv_observed_forget(kv_seq *seq);

/* The sequence is about to be cut to its first n_tokens. */
void kv_observed_cut(kv_seq *seq, uint32_t n_tokens);

/* Nothing is chosen any more: only what the codec asks for is kept from now on. */
void kv_observed_rest(kv_seq *seq);

/* ---- a step ---- */

/* Before attention: q_nope may lie where its output will. */
void kv_observe_queries(kv_cache *cache, const kv_attend_args *args);

/* What the step adds to the mass of a head: first the old sums are copied, with zeros for its tokens.
 * Returns floats by position. */
float *kv_observe_mass(const kv_seq *seq, uint32_t layer, uint32_t head);

/* A decode query at this position reads the page of an entry. One caller at a time for a list. */
void kv_observe_use(const kv_seq *seq, uint32_t list, uint32_t entry, uint32_t position);

/* The step ends well; n_step_tokens is still set. */
void kv_observe_commit(kv_seq *seq);

#endif
