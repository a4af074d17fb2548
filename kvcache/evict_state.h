/* kvcache/evict_state.h - what scheduling works in: scratch for one layer at a time, placed at open.
 *
 * A cache whose methods evict nothing, and whose requests may not bring others, has none of it. */
#ifndef KVCACHE_EVICT_STATE_H
#define KVCACHE_EVICT_STATE_H

#include "base/arena.h"
#include "kvcache/compression/matching.h"
#include "kvcache/kv_shape.h"
#include "kvcache/rewriting/rewriting.h"
#include "kvcache/scoring/whole_pages.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define KV_ENTRY_NONE UINT32_MAX

/* The entries of one head on all shards, in position order, and what becomes of them. */
typedef struct kv_head_view {
    uint32_t *positions; /* [n_max] */
    uint32_t *entry;     /* [n_max]: of its list, or KV_ENTRY_NONE: in the ring */
    uint8_t *shard;      /* [n_max]: whose list; valid with an entry */
    uint8_t *slot;       /* [n_max]: of the entry's page */
    float *bias;         /* [n_max]; NULL unless a scorer may be fitted */
    float *score;        /* [n_max] */
    float *mass;         /* [n_max]; NULL unless a scorer may need it */
    float *local;        /* [n_max]; likewise */
    float *replay;       /* [group_max][n_max], or [n_max]; likewise */
    uint32_t *last_use;  /* [n_max]; likewise */
    uint32_t *n_uses;    /* [n_max]; likewise */
    uint32_t *kept;      /* [n_max]: indices of candidates */
    kv_page_sums pages;
    uint32_t n;
    uint32_t first, n_open; /* candidates: [first, first + n_open) */
    uint32_t n_kept;        /* of them, once that is chosen: kept[n_kept] */
    uint32_t n_evicted;     /* of them */
    uint32_t n_rewritten;   /* keys and values that were written again */
    double lazy;            /* see kv_allocator.laziness; valid where it was asked */
} kv_head_view;

/* Pages of one head that are written anew from others (compact.c). */
typedef struct kv_compact_target {
    uint32_t entry;
    uint32_t to; /* the page that the entry has already, or a new one */
    uint32_t n_slots;
    uint32_t page_class; /* that the page is to have */
} kv_compact_target;

/* Entries [first, end) of one shard's list: what they hold goes to targets in order. */
typedef struct kv_compact_run {
    uint32_t shard;
    uint32_t first, end;
    uint32_t target, n_targets;
    bool is_coded; /* one target */
} kv_compact_run;

typedef struct kv_compact_plan {
    kv_compact_run *runs;       /* [n_max]: as many as a head has pages at most */
    kv_compact_target *targets; /* [n_max] */
    uint32_t n_runs, n_targets;
} kv_compact_plan;

/* Of fits (distill.c); no bytes unless a scorer may be fitted. */
typedef struct kv_distill_worker {
    kv_match match;
    float *beta;       /* [n_max] */
    uint8_t *is_fixed; /* [n_max] */
} kv_distill_worker;

/* Of rewritings (rewrite.c); no bytes unless one may be asked for. */
typedef struct kv_rewrite_worker {
    uint8_t *fate; /* [n_max]: kv_fate */
    kv_rewrite_work work;
} kv_rewrite_worker;

typedef struct kv_evict_worker {
    float *work;        /* of the scorer */
    float *queries;     /* [n_queries][group][k_dim] */
    float *query_norms; /* [n_queries] */
    uint32_t *query_positions;
    float *mean, *cov; /* see kv_query_stats */
    uint8_t *gathered; /* entries of one page in the cache type */
    kv_distill_worker distill;
    kv_rewrite_worker rewrite;
} kv_evict_worker;

typedef struct kv_evict {
    bool is_open;
    bool has_fits;            /* a scorer may be fitted: slots may get biases */
    uint32_t needs;           /* KV_SCORE_..., of all scorers that may be asked */
    uint32_t n_queries;       /* largest window of theirs */
    bool by_page;             /* does one of them keep whole pages? */
    kv_head_view *heads;      /* [n_kv_heads_max] */
    kv_compact_plan *plans;   /* [n_kv_heads_max] */
    kv_evict_worker *workers; /* [n_threads] */
    uint32_t *n_open;         /* [n_kv_heads_max]: as allocators want it */
    const float **scores;     /* [n_kv_heads_max] */
    uint32_t *n_keep;         /* [n_kv_heads_max] */
    float *split_work;
    float *lse; /* [n_kv_heads_max][lse_stride]: over ranks, see kv_scorer.lse; NULL alone */
    size_t lse_stride;
    /* Over ranks, of a rewriting that is told what goes on the others (rewrite.c); NULL: */
    uint8_t *gone;       /* [n_kv_heads_max][n_seq_tokens_max] */
    uint32_t *fixed_end; /* [n_kv_heads_max] */
    uint32_t *gone_here; /* [n_seq_tokens_max] */
    double
        *shared; /* [n_seq_tokens_max]: scores of other layers, by position; NULL: none are asked */
} kv_evict;

#endif
