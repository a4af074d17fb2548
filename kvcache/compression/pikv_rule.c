/* kvcache/compression/pikv_rule.c - see pikv_rule.h. */
#include "kvcache/compression/pikv_rule.h"

#include "kvcache/routing/ranking.h"

#include <math.h>

const char *const kv_heat_codecs[KV_HEAT_COUNT] = {"int8", "int4", "int2"};

/* Pages that are hotter cool down to `level`, the least important first, until `n_wanted` are so cold. */
static void cool(const kv_heat_args *args, kv_heat level, uint32_t n_wanted, uint8_t *heat)
{
    uint32_t n_cold = 0;
    for (uint32_t p = 0; p < args->n_pages; p++)
        n_cold += heat[p] >= level;
    for (uint32_t rank = args->n_pages; rank-- > 0 && n_cold < n_wanted;) {
        uint8_t *page = &heat[args->order[rank]];
        if (*page >= level) continue;
        *page = (uint8_t)level;
        n_cold++;
    }
}

void kv_heat_assign(const kv_heat_args *args, uint8_t *heat)
{
    const uint32_t n = args->n_pages;
    for (uint32_t p = 0; p < n; p++) {
        if (isnan(args->importance[p])) args->importance[p] = INFINITY; /* has no order otherwise */
    }
    const kv_route_args ranked = {.n_pages = n,
                                  .work = {.order = args->order, .priority = args->importance}};
    kv_rank_order(&ranked);
    cool(args, KV_HEAT_COLDEST, kv_heat_share(KV_HEAT_COLDEST, n), heat);
    cool(args, KV_HEAT_COLD, n - kv_heat_share(KV_HEAT_HOT, n), heat);
}
