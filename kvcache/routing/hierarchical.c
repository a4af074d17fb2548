/* kvcache/routing/hierarchical.c - runs of pages first, then pages of the best runs.
 *
 * topk looks at the box of every page, which is 1 / page_tokens of all keys and values and grows with
 * the context. Here the boxes of whole runs are looked at first, and only the pages of those that may
 * hold the best ones after. It reads as many pages as topk, and not always the same: a run's box is
 * looser than its pages'. So twice as many runs are kept as the pages would fill. */
#include "kvcache/routing/ranking.h"

enum { RUNS_KEPT = 2 }; /* times what the budget needs */

static bool reads_all(const kv_route_settings *settings)
{
    return settings->k == 1;
}

static uint32_t select_runs(const kv_route_args *args, uint32_t *chosen)
{
    const uint64_t n_pages = (uint64_t)RUNS_KEPT * kv_rank_budget(args->settings, args->n_open);
    const uint64_t n = (n_pages + KV_RUN_PAGES - 1) / KV_RUN_PAGES;
    kv_rank_by_bound(args);
    return kv_rank_choose(args, n < args->n_pages ? (uint32_t)n : args->n_pages, chosen);
}

static uint32_t select_pages(const kv_route_args *args, uint32_t *chosen)
{
    const uint32_t n = kv_rank_budget(args->settings, args->n_open);
    kv_rank_by_bound(args);
    return kv_rank_choose(args, n < args->n_pages ? n : args->n_pages, chosen);
}

extern const kv_routing kv_routing_hierarchical;
const kv_routing kv_routing_hierarchical = {.name = "hierarchical",
                                            .obeys = KV_ROUTE_K,
                                            .is_exact = reads_all,
                                            .select_runs = select_runs,
                                            .select = select_pages};
