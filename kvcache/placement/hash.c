/* kvcache/placement/hash.c - position t with expert e lies on shard (t mod N) xor (e mod N) of N.
 *
 * The shard function of the PiKV paper (arXiv 2508.06526), with one N for both of its moduli. Only a
 * power of two gives each shard its share: of six shards, t xor e would reach eight. */
#include "kvcache/placement/placement.h"
#include "kvcache/recent_ring.h"

static void place_hash(const kv_place_args *args, uint32_t *owner)
{
    const uint32_t n = args->n_shards;
    for (uint32_t i = 0; i < args->n_slots; i++) {
        const uint32_t t = args->first_position + i;
        owner[i] = args->expert[i] == KV_EXPERT_NONE ? kv_block_shard(n, t / args->page_tokens)
                                                     : (t % n) ^ (args->expert[i] % n);
    }
}

extern const kv_placement kv_placement_hash;
const kv_placement kv_placement_hash = {
    .name = "hash",
    .needs_power_of_two = true,
    .place = place_hash,
};
