/* kvcache/routing/eplb.c - every query reads every page, and load moves the experts: exact.
 *
 * Under placement by expert it has experts packed onto shards by measured load (placement/expert_map.h);
 * under any other it is `full`. The PiKV paper gives this name to a router with an entropy penalty; this
 * is what the published load balancer of that name does. */
#include "kvcache/routing/routing.h"

static bool is_always_exact(const kv_route_settings *settings)
{
    (void)settings;
    return true;
}

extern const kv_routing kv_routing_eplb;
const kv_routing kv_routing_eplb = {
    .name = "eplb", .packs_experts = true, .is_exact = is_always_exact};
