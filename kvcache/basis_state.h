/* kvcache/basis_state.h - what a cache keeps for the bases that sequences make; see basis.h. */
#ifndef KVCACHE_BASIS_STATE_H
#define KVCACHE_BASIS_STATE_H

#include "kvcache/compression/svd.h"

typedef struct kv_own_bases {
    uint32_t first_class; /* by raw class; KV_CLASS_NONE: no codec of the cache has any */
    size_t n_floats;      /* of the largest basis, expanded */
    kv_svd_fit *fits;     /* [n_threads] */
    /* [n_lists], valid between kv_bases_begin and kv_bases_end: */
    uint32_t *page; /* what pages that are encoded now lean on; KV_PAGE_NONE where there are none */
    bool *is_new;   /* it was made for them */
} kv_own_bases;

#endif
