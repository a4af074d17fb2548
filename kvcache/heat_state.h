/* kvcache/heat_state.h - what a cache has for mixed codecs; see heat.h. */
#ifndef KVCACHE_HEAT_STATE_H
#define KVCACHE_HEAT_STATE_H

#include "kvcache/compression/pikv_rule.h"
#include "kvcache/page_table.h"

/* A page of the head that is looked at. */
typedef struct kv_heated {
    kv_page_at at;
    kv_heat heat; /* KV_HEAT_COUNT: it is raw */
} kv_heated;

typedef struct kv_heats {
    uint32_t first_class[KV_HEAT_COUNT]; /* by raw class; KV_CLASS_NONE: the cache mixes nothing */
    uint32_t n_pages;                    /* of the head */
    kv_heated *pages; /* [kv_head_pages_max], and the arrays below; NULL: as above */
    float *importance;
    uint32_t *order;
    uint8_t *heat; /* that they are to have */
} kv_heats;

#endif
