/* kvcache/ranks_state.h - what a cache knows of the group that holds it; see ranks.h. */
#ifndef KVCACHE_RANKS_STATE_H
#define KVCACHE_RANKS_STATE_H

#include "kernels/comm.h"

typedef struct kv_ranks {
    comm *comm;        /* NULL: alone */
    uint32_t n, rank;  /* 1 and 0 alone */
    float *parts;      /* [n][part_bytes]; NULL alone */
    size_t part_bytes; /* of the largest step, or of a block of entries */
} kv_ranks;

#endif
