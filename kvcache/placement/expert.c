/* kvcache/placement/expert.c - an entry lies where the expert of its token is.
 *
 * The expert is the token's top-1 in this layer. Which shard has which expert is for expert_map.h to
 * say; it may say so differently later, and then what was placed before stays where it is. */
#include "kvcache/placement/placement.h"
#include "kvcache/recent_ring.h"

static void place_expert(const kv_place_args *args, uint32_t *owner)
{
    const uint32_t block = args->first_position / args->page_tokens;
    for (uint32_t i = 0; i < args->n_slots; i++)
        owner[i] = args->expert[i] == KV_EXPERT_NONE ? kv_block_shard(args->n_shards, block)
                                                     : args->expert_shard[args->expert[i]];
}

extern const kv_placement kv_placement_expert;
const kv_placement kv_placement_expert = {
    .name = "expert",
    .follows_experts = true,
    .place = place_expert,
};
