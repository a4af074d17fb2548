/* kvcache/compression/pikv_rule.c - see pikv_rule.h. */
#include "kvcache/compression/pikv_rule.h"

#include "kvcache/routing/ranking.h"

#include <math.h>

const char *const kv_heat_codecs[KV_HEAT_COUNT] = {"int8", "int4", "int2"};

void kv_heat_assign(const kv_heat_args *args, uint8_t *heat)
{
    const uint32_t n = args->n_pages, n_hot = n - n / 2, n_warm = n - n / 4;
    for (uint32_t p = 0; p < n; p++) {
        if (isnan(args->importance[p])) args->importance[p] = INFINITY; /* has no order otherwise */
    }
    const kv_route_args ranked = {.n_pages = n,
                                  .work = {.order = args->order, .priority = args->importance}};
    kv_rank_order(&ranked);
    for (uint32_t rank = 0; rank < n; rank++)
        heat[args->order[rank]] = rank < n_hot    ? KV_HEAT_HOT
                                  : rank < n_warm ? KV_HEAT_COLD
                                                  : KV_HEAT_COLDEST;
}
