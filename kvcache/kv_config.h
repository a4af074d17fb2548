/* kvcache/kv_config.h - the settings of the KV cache, and their table. */
#ifndef KVCACHE_KV_CONFIG_H
#define KVCACHE_KV_CONFIG_H

#include "base/config.h"
#include "kernels/comm.h"

enum { KV_PAGE_TOKENS_MAX = 64, KV_SHARDS_MAX = 64 };

typedef enum kv_dtype { KV_DTYPE_AUTO, KV_DTYPE_F32, KV_DTYPE_BF16 } kv_dtype;

typedef struct kv_config {
    uint32_t dtype;         /* kv_dtype; auto: bf16 for models stored in bf16 or f16, else f32 */
    uint64_t memory_bytes;  /* budget of the page pool; 0: see kv_cache_open */
    uint64_t host_bytes;    /* host memory for pages that the pool has no room for; 0: none */
    uint64_t disk_bytes;    /* the same in a file; 0: none */
    char *disk_path;        /* folder of that file; set exactly if disk_bytes is */
    uint32_t page_tokens;   /* slots of a head-page and positions of a block */
    uint32_t window_tokens; /* newest tokens kept in the ring */
    uint32_t sink_tokens;   /* first tokens kept in the ring; <= page_tokens */
    bool prefix_caching;
    uint32_t n_shards;
    bool eplb; /* placement by expert packs experts onto shards by load, again and again */
    bool request_methods; /* requests may choose methods of their own */
    double routing_k;     /* see kv_route_settings; each is obeyed by some of the methods */
    double routing_eps;
    double routing_tau;
    double budget;         /* see kv_policy; `none` has no use for it */
    double lazy_threshold; /* obeyed by allocators that ask how lazy layers are */
    char *routing;         /* names of registry entries, resolved once in kv_cache_open */
    char *scheduling;
    char *placement;
    char *compression; /* a codec, or SELECTION,CODEC */
    char *rewrite;     /* none, or names with commas between them */
    comm *
        comm; /* no setting: the ranks that hold the cache together, see ranks.h. NULL: alone. Borrowed */
    uint32_t n_ranks_here; /* no setting: ranks that share this machine's memory; 0 is 1 */
} kv_config;

extern const cfg_table kv_config_table;

#endif
