/* service/plan_routing.h - how many pages a routing method lets a decode query read.
 *
 * The method itself is asked, about pages of which none looks better than another, so its own rounding
 * counts. A method that stops by what it finds (certified, adaptive) has no answer without keys: all
 * pages, the most it can be. */
#ifndef SERVICE_PLAN_ROUTING_H
#define SERVICE_PLAN_ROUTING_H

#include "kvcache/kv_methods.h"

typedef struct plan_routing {
    const kv_methods *methods;
    uint32_t n_shards;
    uint32_t page_tokens;
    bool is_scattered; /* see kv_route_args */
} plan_routing;

/* Of the pages of one KV head. */
typedef struct plan_reads {
    uint64_t n_boxes; /* looked at: of pages, and of runs of them */
    uint64_t n_chosen;
} plan_reads;

err_t plan_routing_ask(const plan_routing *routing, uint32_t n_pages, plan_reads *out) MUST_CHECK;

/* Does it stop by what it finds? */
static inline bool plan_routing_is_open(const kv_methods *methods)
{
    return !methods->reads_all && methods->routing->obeys != KV_ROUTE_K;
}

#endif
