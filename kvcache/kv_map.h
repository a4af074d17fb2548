/* kvcache/kv_map.h - what lies where: the cache at one moment, for people to look at.
 *
 * A map has settings and counters, every open sequence, and what each list (layer, KV head, shard)
 * holds of all of them. Of one sequence, if asked for, it has the pages as well, as runs of neighbours
 * that are alike:
 *
 *   block   0    1    2    3    4    5
 *   page   28 | 32   32   32 | 32   32      slots that the sequence sees
 *         none  int8 int8 int8  none none   three runs
 *
 * Memory is reserved when a map is opened. Taking it allocates nothing, and costs a walk over the table of
 * one sequence and a sum per list of the others.
 *
 * Threads: kv_map_take is for the cache's owner, between steps; the rest is for whoever has the map. */
#ifndef KVCACHE_KV_MAP_H
#define KVCACHE_KV_MAP_H

#include "kvcache/kv_cache.h"
#include "kvcache/page_tiers.h"

enum { KV_MAP_RUNS_MAX = 8192 };
#define KV_MAP_NEWEST \
    UINT64_MAX /* for an id: of the sequence that was opened last, when the map is taken */

typedef struct kv_map_query {
    uint64_t seq;   /* whose pages are shown; 0: nobody's; KV_MAP_NEWEST */
    bool has_layer; /* lists of this layer only */
    uint32_t layer;
} kv_map_query;

typedef struct kv_map_seq {
    uint64_t id; /* from 1 on, in the order in which sequences were opened; never used again */
    kv_methods methods;
    uint32_t length;     /* tokens held */
    uint32_t n_blocks;   /* of them in pages */
    uint64_t slots_live; /* entries in pages, all lists */
} kv_map_seq;

typedef struct kv_map_run {
    uint32_t first_block, n_blocks;
    const kv_codec *codec;
    uint32_t n_live; /* slots of each page that the sequence sees */
    kv_tier tier;
    bool is_cached; /* cached prefixes hold the pages, too */
} kv_map_run;

typedef struct kv_map_list {
    uint32_t layer, head, shard;
    uint64_t slots_live; /* of all open sequences; pages that two of them see count twice */
    /* Of the sequence whose pages are shown: */
    uint32_t n_pages;
    uint64_t seq_slots_live;
    uint32_t first_run, n_runs;
} kv_map_list;

typedef struct kv_map {
    kv_map_query query;
    kv_methods methods; /* of sequences that bring none */
    const char *placement;
    dtype type;
    uint32_t n_layers, page_tokens, window_tokens, sink_tokens, n_shards;
    bool prefix_caching, request_methods;
    kv_stats stats;
    kv_map_seq *seqs; /* [n_seqs], by id */
    uint32_t n_seqs;
    kv_map_list *lists; /* [n_lists], by layer, head and shard */
    uint32_t n_lists;
    kv_map_run *runs; /* [n_runs], as the lists name them */
    uint32_t n_runs;
    bool has_seq;      /* query.seq is open; always so with KV_MAP_NEWEST, unless nothing is */
    uint64_t seq_id;   /* the one that is shown, with has_seq */
    bool is_truncated; /* it has more than KV_MAP_RUNS_MAX runs, and the last are left out */
    uint8_t *parts;    /* of all ranks, see kv_map_ranks.h; NULL: there is one */
} kv_map;

/* ERR_NO_MEMORY; ERR_BAD_ARGUMENT: there is no such layer. */
err_t kv_map_open(const kv_cache *cache, const kv_map_query *query, kv_map **out) MUST_CHECK;
void kv_map_close(kv_map *map); /* NULL is fine */

/* Over ranks all of them take one of the same query, as all calls of a cache, and each gets the whole. */
void kv_map_take(const kv_cache *cache, kv_map *map);

#endif
