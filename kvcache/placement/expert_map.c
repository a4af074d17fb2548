/* kvcache/placement/expert_map.c - see expert_map.h. */
#include "kvcache/placement/expert_map.h"

#include "base/check.h"

static const float DECAY = 0.9f;
static const float LOAD_RATIO_MAX = 1.1f; /* of the busiest shard to the mean */

void kv_expert_map_place(arena *a, kv_expert_map *map)
{
    const size_t n = map->n_experts, n_shards = map->n_shards;
    map->shard = arena_take(a, map->n_layers, n * sizeof *map->shard);
    map->load = arena_take(a, map->n_layers, n * sizeof *map->load);
    map->n_since = arena_take(a, map->n_layers, sizeof *map->n_since);
    map->pack = (kv_eplb_pack_args){
        .n = map->n_experts,
        .n_bins = map->n_shards,
        .bin = arena_take(a, n, sizeof *map->pack.bin),
        .rank = arena_take(a, n, sizeof *map->pack.rank),
        .order = arena_take(a, n, sizeof *map->pack.order),
        .load = arena_take(a, n_shards, sizeof *map->pack.load),
        .count = arena_take(a, n_shards, sizeof *map->pack.count),
    };
    map->shard_load = arena_take(a, n_shards, sizeof *map->shard_load);
}

void kv_expert_map_init(kv_expert_map *map)
{
    for (uint32_t l = 0; l < map->n_layers; l++) {
        for (uint32_t e = 0; e < map->n_experts; e++)
            map->shard[(size_t)l * map->n_experts + e] =
                (uint16_t)((uint64_t)e * map->n_shards / map->n_experts);
    }
}

/* Load of the busiest shard over the mean, with expert e on bin[e], or on shard[e] without bins. */
static float imbalance(const kv_expert_map *map, const float *load, const uint32_t *bin,
                       const uint16_t *shard)
{
    float most = 0, sum = 0;
    for (uint32_t s = 0; s < map->n_shards; s++)
        map->shard_load[s] = 0;
    for (uint32_t e = 0; e < map->n_experts; e++) {
        const uint32_t s = bin != NULL ? bin[e] : shard[e];
        map->shard_load[s] += load[e];
        sum += load[e];
        if (map->shard_load[s] > most) most = map->shard_load[s];
    }
    return sum > 0 ? most * (float)map->n_shards / sum : 1;
}

static void check_layer(kv_expert_map *map, uint32_t layer)
{
    float *load = map->load + (size_t)layer * map->n_experts;
    uint16_t *shard = map->shard + (size_t)layer * map->n_experts;
    const float ratio = imbalance(map, load, NULL, shard);
    if (ratio > LOAD_RATIO_MAX) {
        map->pack.weight = load;
        kv_eplb_pack(&map->pack);
        if (imbalance(map, load, map->pack.bin, NULL) < ratio) {
            for (uint32_t e = 0; e < map->n_experts; e++)
                shard[e] = (uint16_t)map->pack.bin[e];
            map->n_packed++;
        }
    }
    for (uint32_t e = 0; e < map->n_experts; e++)
        load[e] *= DECAY;
}

void kv_expert_map_update(kv_expert_map *map)
{
    if (!map->is_packed) return;
    for (uint32_t l = 0; l < map->n_layers; l++) {
        if (map->n_since[l] < KV_EXPERT_CHECK) continue;
        map->n_since[l] = 0;
        check_layer(map, l);
    }
}
