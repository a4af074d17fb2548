/* kvcache/placement/block.c - blocks of positions are dealt to the shards in turn: balanced to one
 * block, and a block is never split. */
#include "kvcache/placement/placement.h"

static void place_block(const kv_place_args *args, uint32_t *owner)
{
    const uint32_t block = args->first_position / args->page_tokens;
    for (uint32_t i = 0; i < args->n_slots; i++)
        owner[i] = kv_block_shard(args->n_shards, block);
}

extern const kv_placement kv_placement_block;
const kv_placement kv_placement_block = {
    .name = "block",
    .is_exact = true,
    .place = place_block,
};
