/* kvcache/kv_stats.h - what the cache counts. Plain numbers, copied as a whole. */
#ifndef KVCACHE_KV_STATS_H
#define KVCACHE_KV_STATS_H

#include "kvcache/kv_config.h"

#include <stdint.h>

typedef struct kv_shard_stats {
    uint64_t pages; /* now: that it owns, of open sequences and of cached objects */
    uint64_t slots;
    uint64_t bytes;   /* of these pages, in shares of slabs */
    uint64_t spilled; /* since start: its entries that went to another shard, per KV head */
} kv_shard_stats;

typedef struct kv_stats {
    /* now, bytes as the allocator holds them */
    uint64_t pool_budget_bytes;
    uint64_t slab_bytes;  /* slabs in use, pages of live sequences and of cached objects */
    uint64_t table_bytes; /* page tables, descriptors, prefix index */
    uint64_t ring_bytes;
    uint64_t observed_bytes; /* what scorers need beside the entries */
    uint64_t staging_bytes;  /* and what is on its way to or from a device */
    uint64_t view_bytes;     /* in the memory of a device that attends by itself: device_view.h */
    /* now, pages and slots */
    uint64_t pages_total; /* used, cached and free; free slabs count as pages of the largest size */
    uint64_t pages_used;  /* referenced by an open sequence */
    uint64_t pages_cached; /* referenced by cached objects alone */
    uint64_t pages_free;
    uint64_t used_bytes; /* of pages_used, in shares of slabs */
    uint64_t slots_live; /* entries in pages, counted once per page */
    uint32_t seqs_open;
    uint32_t prefix_objects;
    /* now, tiers below the pool */
    uint64_t host_budget_bytes, host_bytes, host_pages; /* bytes: in slabs */
    /* the disk's budget is 0 from when the file is left alone */
    uint64_t disk_budget_bytes, disk_bytes, disk_pages;
    uint64_t away_used_bytes; /* of pages there that an open sequence holds, in shares of slabs */
    /* since start */
    uint64_t pages_demoted, pages_promoted;
    uint64_t disk_read_bytes;
    uint64_t disk_read_failures, disk_write_failures;
    uint64_t seqs_lost; /* closed after a page could not be read */
    uint64_t tokens_appended;
    uint64_t pages_committed;
    uint64_t pages_encoded;     /* one that is encoded again, coarser, counts again */
    uint64_t encoded_raw_bytes; /* of those pages before, and as they are */
    uint64_t encoded_bytes;
    uint64_t pages_given_up;    /* of cached objects, under pressure */
    uint64_t entries_evicted;   /* by scheduling; what windows have passed is not counted */
    uint64_t entries_rewritten; /* keys and values of entries that stayed then; see rewrite.h */
    uint64_t pages_evicted;   /* that sequences gave back for it, holes that were closed included */
    uint64_t pages_compacted; /* written anew from others */
    double score_seconds;     /* choosing what stays */
    uint64_t prefix_query_tokens;
    uint64_t prefix_hit_tokens;
    uint64_t bytes_read; /* by attention, counted in the reader */
    uint64_t blocks_read;
    /* since start, decode queries, per KV head: head-pages behind the window, and those read of them */
    uint64_t pages_open;
    uint64_t pages_read;
    /* Certificates: bounds of the share of attention that a decode query's head has not read. */
    uint64_t certificates;        /* since start */
    double certificate_sum;       /* of all of them */
    double certificate_max;       /* of all of them */
    double step_certificate_mean; /* of the last step that had decode queries */
    double step_certificate_max;
    /* Shards. */
    uint64_t n_shards;
    uint64_t entries_spilled; /* since start, of all shards */
    uint64_t experts_packed;  /* since start: layers whose experts were packed onto shards anew */
    kv_shard_stats shards[KV_SHARDS_MAX];
} kv_stats;

/* What one sequence costs. Pages that it shares with others count in full. */
typedef struct kv_usage {
    uint64_t resident_bytes;     /* shares of slabs and page descriptors, its tables, its ring,
                                  * what its scorer keeps */
    uint64_t uncompressed_bytes; /* the same if all its entries lay in raw pages */
    uint64_t pages_evicted;      /* that scheduling gave back, holes that were closed included */
    uint64_t pages_demoted;      /* to lower tiers, whether they have come back or not */
    uint64_t certificates;       /* of its decode queries, one per head and layer */
    double certificate_sum;
} kv_usage;

#endif
