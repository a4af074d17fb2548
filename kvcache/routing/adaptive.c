/* kvcache/routing/adaptive.c - the fewest pages whose estimated mass reaches tau (a nucleus of pages).
 *
 * The estimate takes n exp(bound) for the mass of a page, read or not, and the true mass of sinks and
 * window. Bounds are loose, so it is an estimate and no promise: what was missed is in the
 * certificate. A promise costs the keys of the chosen pages a second time: see certified.c. */
#include "kvcache/routing/ranking.h"

#include <math.h>

static bool reads_all(const kv_route_settings *settings)
{
    return settings->tau == 1;
}

/* Do the pages before `rank`, with what is read in any case, make up tau in every head? */
static bool is_reached(const kv_route_args *args, uint32_t rank)
{
    for (uint32_t g = 0; g < args->group; g++) {
        const double *rest = args->work.rest + (size_t)g * (args->n_pages + 1);
        const double all = exp(args->log_read[g] - args->work.scale[g]) + rest[0];
        if (rest[rank] > (1 - args->settings->tau) * all) return false;
    }
    return true;
}

static uint32_t select_nucleus(const kv_route_args *args, uint32_t *chosen)
{
    uint32_t n = 0;
    kv_rank_by_mass(args);
    while (n < args->n_pages && !is_reached(args, n))
        n++;
    return kv_rank_choose(args, n, chosen);
}

extern const kv_routing kv_routing_adaptive;
const kv_routing kv_routing_adaptive = {.name = "adaptive",
                                        .obeys = KV_ROUTE_TAU,
                                        .needs_log_read = true,
                                        .rule = ATTN_RULE_NUCLEUS,
                                        .is_exact = reads_all,
                                        .select = select_nucleus};
