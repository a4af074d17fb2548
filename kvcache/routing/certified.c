/* kvcache/routing/certified.c - reads on until what is left cannot matter.
 *
 * Pages are read in order of the mass that they may have, and after each the certificate (routing.h) of
 * what is left is computed from the true mass of what was read. It stops at eps, so no head of any
 * query misses more than that share of its attention. This is branch and bound; the boxes are Quest's.
 *
 * It pays where pages are unlike each other and their keys alike. Under RoPE the fast channels turn
 * full circle within a page, so that their part of a box says nothing about the key; bounds are then
 * so far above the scores that almost every page is read. `topk` reads little and promises nothing. */
#include "kvcache/routing/ranking.h"

static bool reads_all(const kv_route_settings *settings)
{
    return settings->eps == 0;
}

static uint32_t select_certified(const kv_route_args *args, uint32_t *chosen)
{
    const double eps = args->settings->eps * (1 - KV_ROUTE_MARGIN);
    uint32_t n = 0;
    kv_rank_by_mass(args);
    for (; n < args->n_pages && !kv_rank_is_enough(args, n, eps); n++)
        args->read(args->read_ctx, args->work.order[n]);
    return kv_rank_choose(args, n, chosen);
}

extern const kv_routing kv_routing_certified;
const kv_routing kv_routing_certified = {.name = "certified",
                                         .obeys = KV_ROUTE_EPS,
                                         .needs_log_read = true,
                                         .rule = ATTN_RULE_CERTIFIED,
                                         .is_exact = reads_all,
                                         .select = select_certified};
