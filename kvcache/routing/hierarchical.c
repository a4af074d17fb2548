/* kvcache/routing/hierarchical.c - runs of pages first, then pages of the best runs.
 *
 * topk looks at the box of every page, which is 1 / page_tokens of all keys and values and grows with
 * the context. Here the boxes of whole runs are looked at first, and only the pages of those that may
 * hold the best ones after. It reads as many pages as topk, and not always the same: a run's box is
 * looser than its pages'. So twice as many runs are kept as the pages would fill.
 *
 * Where pages are scattered over shards by their experts, runs mean nothing, and the coarse level are the
 * shards themselves: pages are chosen from the best of them, as many as hold twice the budget. */
#include "kvcache/routing/ranking.h"

#include <math.h>

enum { RUNS_KEPT = 2 }; /* times what the budget needs */

static bool reads_all(const kv_route_settings *settings)
{
    return settings->k == 1;
}

static uint32_t select_runs(const kv_route_args *args, uint32_t *chosen)
{
    const uint64_t n_pages = (uint64_t)RUNS_KEPT * kv_rank_budget(args, args->n_open);
    const uint32_t of_run = KV_RUN_PAGES / args->n_ranks > 0 ? KV_RUN_PAGES / args->n_ranks : 1;
    const uint64_t n = (n_pages + of_run - 1) / of_run; /* of a run each rank has its part */
    kv_rank_by_bound(args);
    return kv_rank_choose(args, n < args->n_pages ? (uint32_t)n : args->n_pages, chosen);
}

/* Chooses shards; returns how many candidates they have. */
static uint32_t choose_shards(const kv_route_args *args, uint32_t n_wanted)
{
    uint32_t n_pages = 0;
    (void)kv_rank_shards(args);
    for (uint32_t s = 0; s < args->n_shards; s++)
        args->work.shards[s].priority = args->work.shards[s].bound;
    kv_rank_shard_order(args);
    for (uint32_t r = 0; r < args->n_shards && n_pages < n_wanted; r++) {
        kv_route_shard *shard = &args->work.shards[args->work.shard_order[r]];
        shard->is_chosen = true;
        n_pages += shard->n_pages;
    }
    return n_pages;
}

static uint32_t select_pages(const kv_route_args *args, uint32_t *chosen)
{
    const uint32_t n = kv_rank_budget(args, args->n_open);
    uint32_t n_left = args->n_pages;
    kv_rank_by_bound(args);
    if (args->is_scattered) {
        n_left = choose_shards(args, RUNS_KEPT * n);
        for (uint32_t i = 0; i < args->n_pages; i++) {
            if (!args->work.shards[args->shard[i]].is_chosen) args->work.priority[i] = -INFINITY;
        }
        kv_rank_order(args);
    }
    return kv_rank_choose(args, n < n_left ? n : n_left, chosen);
}

extern const kv_routing kv_routing_hierarchical;
const kv_routing kv_routing_hierarchical = {.name = "hierarchical",
                                            .obeys = KV_ROUTE_K,
                                            .is_exact = reads_all,
                                            .select_runs = select_runs,
                                            .select = select_pages};
