/* service/plan_cache.h - what the KV cache of one rank will hold and read, before it is opened.
 *
 * Sizes are asked of the cache's own parts - codecs for pages, the pool for slabs and descriptors, tables,
 * rings and strips for theirs - and only how many of each there are is worked out here. With one rank and
 * an exact setting the numbers are those that the allocator counts, byte for byte
 * (tests/service/test_plan_cache.c).
 *
 * Over ranks: a rank owns the shards s with s mod n_ranks = its number, there being at
 * least as many shards as ranks; it holds the pages and tables of its shards, and the rings and the staging
 * of all sequences, since an owner must have the entry that it commits.
 *
 * A sequence is planned at rest: it has been read up to n_tokens, and what was to be encoded or evicted
 * has been. */
#ifndef SERVICE_PLAN_CACHE_H
#define SERVICE_PLAN_CACHE_H

#include "kvcache/kv_methods.h"

typedef struct plan_cache_input {
    const kv_config *config; /* memory_bytes and the tiers' sizes are not read */
    const kv_shape *shape;
    uint32_t n_tokens;      /* held by each sequence, >= 1 */
    uint32_t n_seqs;        /* decoded together, >= 1 */
    uint32_t n_step_tokens; /* of the largest step: the size of staging, >= n_seqs */
    uint32_t n_ranks;       /* [1, KV_SHARDS_MAX] */
} plan_cache_input;

/* Of the rank with most pages, all sequences, unless a line says otherwise. */
typedef struct plan_cache {
    kv_methods methods;
    dtype type; /* after `auto` */
    uint32_t n_shards;
    uint64_t n_pages;
    uint64_t page_bytes; /* in whole slabs: the smallest kv-cache-memory-bytes that holds them */
    uint64_t
        section_bytes; /* raw pages of one prompt that will be encoded or thinned, at their most */
    uint64_t n_pages_away; /* of n_pages */
    uint64_t away_bytes;   /* of pages that flexgen keeps in the lower tiers */
    uint64_t ring_bytes, table_bytes, descriptor_bytes, staging_bytes;

    /* One decode step of one sequence, which has n_tokens behind it and one new token. */
    uint64_t read_recent_bytes;    /* ring, sinks and staging: by the sequence's home rank alone */
    uint64_t read_page_bytes;      /* pages and boxes, all ranks together */
    uint64_t read_page_bytes_most; /* of this rank */
    double share_read;             /* of its pages */

    /* What a device's copy is sized by: kvcache/device_plan.h. */
    uint32_t n_classes;
    uint64_t n_page_ids; /* that the pool numbers, with room for the section */
    size_t box_bytes;    /* of a page; 0: there are none */
    size_t copy_bytes;   /* of an encoded page and its box, on their way */
    bool has_biases;

    /* For comparisons: raw rows in the cache type, over all ranks. */
    uint64_t token_bytes;       /* one position, all layers */
    uint64_t layer_token_bytes; /* one position, first layer */
    double compression;         /* raw page / encoded page, first layer */
    double page_overhead_bytes; /* descriptors and table entries of a page, mean */

    /* What the numbers are not exact for. */
    bool
        is_thinned; /* entries are evicted: pages by the budget's mean, whatever allocators make of it */
    bool is_scattered;  /* entries are placed one by one: every shard is taken to get the same */
    bool reads_by_data; /* routing stops by what it sees: taken to read all */
    bool keeps_more;    /* scorers keep memory beside the entries, which is not counted */
} plan_cache;

/* ERR_BAD_CONFIG and ERR_UNSUPPORTED in the words of the settings; ERR_OVERFLOW; ERR_NO_MEMORY. */
err_t plan_cache_of(const plan_cache_input *in, plan_cache *out, err_info *info) MUST_CHECK;

#endif
