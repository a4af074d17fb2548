/* kvcache/routing/full.c - every query reads every page: exact, and what the others are measured by. */
#include "kvcache/routing/routing.h"

static bool is_always_exact(const kv_route_settings *settings)
{
    (void)settings;
    return true;
}

extern const kv_routing kv_routing_full;
const kv_routing kv_routing_full = {.name = "full", .is_exact = is_always_exact};
