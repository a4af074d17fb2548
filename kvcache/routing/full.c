/* kvcache/routing/full.c - every query reads every page: exact, and what the others are measured by. */
#include "kvcache/routing/routing.h"

static uint32_t select_all(const kv_route_args *args, uint32_t *chosen)
{
    for (uint32_t i = 0; i < args->n_pages; i++)
        chosen[i] = i;
    return args->n_pages;
}

extern const kv_routing kv_routing_full;
const kv_routing kv_routing_full = {
    .name = "full",
    .is_exact = true,
    .select = select_all,
};
