/* kvcache/routing/pikv.c - the k best shards, those whose pages lie in slower memory at a discount.
 *
 * The cache-aware router of the PiKV paper (arXiv 2508.06526): score - lambda log(1 + misses). Here the score
 * is the bound of what a key on the shard can score, as everywhere; gate scores know nothing of keys. Misses
 * are the shard's pages in the file, which would be waited for; without a file the shards with the largest
 * bounds are read. So of all methods this one alone reads other pages when others lie in memory. */
#include "kvcache/routing/ranking.h"

#include <math.h>

static const float LAMBDA = 0.5f;

static bool reads_all(const kv_route_settings *settings)
{
    return settings->k == 1;
}

static uint32_t select_shards(const kv_route_args *args, uint32_t *chosen)
{
    const uint32_t n = kv_rank_shards(args);
    for (uint32_t s = 0; s < args->n_shards; s++) {
        const float misses = args->misses != NULL ? args->misses[s] : 0;
        args->work.shards[s].priority = args->work.shards[s].bound - LAMBDA * log1pf(misses);
    }
    kv_rank_shard_order(args);
    return kv_rank_choose_shards(args, kv_rank_budget(args, n), chosen);
}

extern const kv_routing kv_routing_pikv;
const kv_routing kv_routing_pikv = {.name = "pikv",
                                    .obeys = KV_ROUTE_K,
                                    .rule = ATTN_RULE_SHARDS,
                                    .is_exact = reads_all,
                                    .select = select_shards};
