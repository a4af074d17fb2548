/* kvcache/routing/routing.h - which pages a query reads.
 *
 * The reader asks once per job: one KV head of one layer and a few queries of one sequence that
 * follow each other. Candidates are the pages of blocks that the layer's window does not exclude, in
 * position order, as arrays. Ring and staging are read in any case.
 *
 * A method ranks pages; it never weights outputs: the only correct weights are those of the
 * log-sum-exp merge (kernels/attention.h). */
#ifndef KVCACHE_ROUTING_ROUTING_H
#define KVCACHE_ROUTING_ROUTING_H

#include "kernels/attention.h"
#include "kvcache/page_pool.h"

typedef struct kv_route_args {
    const attn_query *query; /* n_queries > 1: a prompt's; those must read every page */
    const kv_pages *pages;   /* what is known of pages, by page id */
    const uint32_t *page;    /* [n_pages]: the candidates */
    const uint64_t *live;    /* [n_pages]: their slots that this sequence sees */
    uint32_t n_pages;
} kv_route_args;

typedef struct kv_routing {
    const char *name;
    bool is_exact; /* every query reads every live entry */

    /* Writes the indices of the chosen candidates, rising, and returns how many. Called from any
     * worker, once per job; pure; must not block, allocate or fail. */
    uint32_t (*select)(const kv_route_args *args, uint32_t *chosen);
} kv_routing;

#define KV_ROUTING_LIST(X) X(full)

extern const kv_routing *const kv_routings[]; /* ends with NULL */
extern const char kv_routing_names[];         /* " full ..." for messages */

const kv_routing *kv_routing_find(const char *name); /* NULL if unknown */

#endif
