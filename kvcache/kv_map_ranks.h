/* kvcache/kv_map_ranks.h - the maps of all ranks become one. For kv_map.c. */
#ifndef KVCACHE_KV_MAP_RANKS_H
#define KVCACHE_KV_MAP_RANKS_H

#include "kvcache/cache_state.h"
#include "kvcache/kv_map.h"

/* Memory that merging needs beside the map; 0 where there is one rank. ERR_OVERFLOW. */
err_t kv_map_parts_bytes(const kv_cache *cache, const kv_map_query *query, size_t *out) MUST_CHECK;

/* Of a map of what this rank has: counters and slots become sums over all ranks, and lists and runs those of
 * the rank that owns the shard. All ranks call it. If their comm has failed the map stays what it is. */
void kv_map_merge(const kv_cache *cache, kv_map *map);

#endif
