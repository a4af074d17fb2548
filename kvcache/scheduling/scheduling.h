/* kvcache/scheduling/scheduling.h - which entries stay.
 *
 * A policy is a budget allocator (how many entries each head of a layer keeps) times a scorer (which
 * ones: the best). The cache asks for the budget when a sequence's blocks leave the ring, at the end
 * of a step, once per sequence and layer, for all heads at a time. The one method there is keeps
 * everything, so no scorer is ever asked for and the table has no entry for one yet. */
#ifndef KVCACHE_SCHEDULING_SCHEDULING_H
#define KVCACHE_SCHEDULING_SCHEDULING_H

#include <stdbool.h>
#include <stdint.h>

typedef struct kv_budget_args {
    uint32_t layer;
    uint32_t n_kv_heads;
    uint32_t length;        /* positions of the sequence, ring and sinks included */
    const uint32_t *n_live; /* [n_kv_heads]: entries in pages, those being committed included */
} kv_budget_args;

typedef struct kv_scheduling {
    const char *name;
    bool is_exact; /* nothing is ever evicted */

    /* Writes how many entries in pages each head keeps, n_keep[h] <= n_live[h]. Called by the owner
     * between steps; pure; must not block, allocate or fail. */
    void (*budget)(const kv_budget_args *args, uint32_t *n_keep);
} kv_scheduling;

#define KV_SCHEDULING_LIST(X) X(none)

extern const kv_scheduling *const kv_schedulings[]; /* ends with NULL */
extern const char kv_scheduling_names[];            /* " none ..." for messages */

const kv_scheduling *kv_scheduling_find(const char *name); /* NULL if unknown */

#endif
