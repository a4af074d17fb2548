/* kvcache/placement/expert_map.h - which shard has which expert, for placement by expert.
 *
 * At first experts lie in order, as many on each shard. What is counted are entries committed per layer
 * and expert, as a moving average: every KV_EXPERT_CHECK entries of a layer the count so far is weighed
 * by 0.9. At the same time the load of the shards is looked at, and when the busiest has more than 1.1
 * times the mean, the layer's experts are packed anew by EPLB's packing (eplb.h) - each on one shard,
 * since an entry has one owner, so there is nothing to replicate. Entries that were placed stay where
 * they are; the open pages of a sequence go on on their shards.
 *
 * The map depends on what the cache has seen, whoever sent it. So under placement by expert a result may
 * depend, to rounding, on what was computed before it; kv-eplb: false keeps the first map.
 *
 * Threads: the cache's owner, between steps. Allocates nothing after kv_expert_map_place. */
#ifndef KVCACHE_PLACEMENT_EXPERT_MAP_H
#define KVCACHE_PLACEMENT_EXPERT_MAP_H

#include "base/arena.h"
#include "kvcache/placement/eplb.h"

#include <stdbool.h>

enum { KV_EXPERT_CHECK = 1024 };

typedef struct kv_expert_map {
    uint32_t n_layers, n_experts, n_shards;
    bool is_packed;    /* measured and packed, not only in order */
    uint16_t *shard;   /* [n_layers][n_experts] */
    float *load;       /* [n_layers][n_experts]: entries, weighed */
    uint32_t *n_since; /* [n_layers]: entries since the last check */
    uint64_t n_packed; /* layers whose map was changed, since start */
    kv_eplb_pack_args pack;
    float *shard_load; /* [n_shards] */
} kv_expert_map;

/* Run over a measuring and then a real arena; the first four fields are set. */
void kv_expert_map_place(arena *a, kv_expert_map *map);
void kv_expert_map_init(kv_expert_map *map);

/* Shards of a layer's experts, [n_experts]. */
static inline const uint16_t *kv_expert_shards(const kv_expert_map *map, uint32_t layer)
{
    return map->shard + (size_t)layer * map->n_experts;
}

/* An entry of the layer was placed by its expert. */
static inline void kv_expert_map_count(kv_expert_map *map, uint32_t layer, uint32_t expert)
{
    map->load[(size_t)layer * map->n_experts + expert] += 1;
    map->n_since[layer]++;
}

/* Packs the experts of layers that have seen enough and are out of balance. */
void kv_expert_map_update(kv_expert_map *map);

#endif
