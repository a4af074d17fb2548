/* kvcache/routing/topk.c - the k pages whose keys may score highest (Tang et al., Quest, 2024).
 *
 * Quest lets every query head choose, reads the last page always and its first two layers densely. Here
 * the query heads of a KV head choose together, by their largest bound, since what is read for one of
 * them is read for all; the recent window takes the place of the last page; all layers are alike. */
#include "kvcache/routing/ranking.h"

#include <math.h>

static bool reads_all(const kv_route_settings *settings)
{
    return settings->k == 1; /* a share; numbers of pages are above 1 */
}

static uint32_t budget(const kv_route_settings *settings, uint32_t n_pages)
{
    const double n = settings->k <= 1 ? ceil(settings->k * n_pages) : settings->k;
    return n < n_pages ? (uint32_t)n : n_pages;
}

static uint32_t select_best(const kv_route_args *args, uint32_t *chosen)
{
    float *priority = args->work.priority;
    for (uint32_t i = 0; i < args->n_pages; i++) {
        priority[i] = args->bound[i];
        for (uint32_t g = 1; g < args->group; g++)
            priority[i] = fmaxf(priority[i], args->bound[(size_t)g * args->n_pages + i]);
    }
    kv_rank_order(args);
    return kv_rank_choose(args, budget(args->settings, args->n_pages), chosen);
}

extern const kv_routing kv_routing_topk;
const kv_routing kv_routing_topk = {
    .name = "topk", .obeys = KV_ROUTE_K, .is_exact = reads_all, .select = select_best};
