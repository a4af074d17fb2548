/* kvcache/routing/topk.c - the k pages whose keys may score highest (Tang et al., Quest, 2024).
 *
 * Quest lets every query head choose, reads the last page always and its first two layers densely. Here
 * the query heads of a KV head choose together, by their largest bound, since what is read for one of
 * them is read for all; the recent window takes the place of the last page; all layers are alike. */
#include "kvcache/routing/ranking.h"

static bool reads_all(const kv_route_settings *settings)
{
    return settings->k == 1; /* a share; numbers of pages are above 1 */
}

static uint32_t select_best(const kv_route_args *args, uint32_t *chosen)
{
    kv_rank_by_bound(args);
    return kv_rank_choose(args, kv_rank_budget(args, args->n_pages), chosen);
}

extern const kv_routing kv_routing_topk;
const kv_routing kv_routing_topk = {.name = "topk",
                                    .obeys = KV_ROUTE_K,
                                    .rule = ATTN_RULE_BEST,
                                    .is_exact = reads_all,
                                    .select = select_best};
