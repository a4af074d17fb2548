/* kvcache/routing/topk_balanced.c - the k best shards, those with much to read at a discount.
 *
 * The load-balanced router of the PiKV paper (arXiv 2508.06526) takes alpha times the load above the mean
 * from a shard's score. Here the score is the bound of what a key on the shard can score, and the load
 * its live entries over the mean, since what a shard costs is what is read of it. All candidates of the
 * chosen shards are read; k counts shards. */
#include "kvcache/routing/ranking.h"

/* A shard with twice the mean must be able to score one more: e times the attention per entry. */
static const float ALPHA = 1;

static bool reads_all(const kv_route_settings *settings)
{
    return settings->k == 1;
}

static uint32_t select_shards(const kv_route_args *args, uint32_t *chosen)
{
    const uint32_t n = kv_rank_shards(args);
    uint64_t n_live = 0;
    for (uint32_t s = 0; s < args->n_shards; s++)
        n_live += args->work.shards[s].n_live;
    const float mean = (float)n_live / (float)n;
    for (uint32_t s = 0; s < args->n_shards; s++) {
        kv_route_shard *shard = &args->work.shards[s];
        shard->priority = shard->bound - ALPHA * ((float)shard->n_live / mean - 1);
    }
    kv_rank_shard_order(args);
    return kv_rank_choose_shards(args, kv_rank_budget(args, n), chosen);
}

extern const kv_routing kv_routing_topk_balanced;
const kv_routing kv_routing_topk_balanced = {.name = "topk_balanced",
                                             .obeys = KV_ROUTE_K,
                                             .rule = ATTN_RULE_SHARDS_BALANCED,
                                             .is_exact = reads_all,
                                             .select = select_shards};
