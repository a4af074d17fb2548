/* kvcache/page_pool_state.h - what a page pool is made of; private to page_pool*.c. */
#ifndef KVCACHE_PAGE_POOL_STATE_H
#define KVCACHE_PAGE_POOL_STATE_H

#include "base/arena.h"
#include "kvcache/page_pool.h"

#define SLAB_NONE  UINT32_MAX
#define INDEX_NONE UINT16_MAX /* end of a slab's free pages */

struct kv_pool {
    uint8_t *base; /* [n_slabs][slab_bytes]: the mapping, or NULL */
    size_t slab_bytes;
    uint32_t n_slabs;
    uint32_t n_touched;  /* slabs [0, n_touched) were in use at some time */
    uint32_t n_in_use;   /* slabs that belong to a class now */
    uint32_t free_slabs; /* list of slabs below n_touched without a class */
    uint32_t page_tokens;
    uint32_t pages_per_slab_max;
    arena memory;
    struct {
        uint32_t n;
        size_t *page_bytes;       /* [n] */
        uint32_t *pages_per_slab; /* [n] */
        uint32_t *partial;        /* [n]: first slab with a free page, or SLAB_NONE */
        uint64_t *n_free;         /* [n]: free pages in the slabs of the class */
    } classes;
    struct {
        uint16_t *page_class; /* [n_slabs]; valid while n_used > 0 */
        uint16_t *n_used;     /* [n_slabs]: pages held */
        uint16_t *first_free; /* [n_slabs]: index of a free page, or INDEX_NONE */
        uint32_t *next;       /* [n_slabs]: in `partial` or `free_slabs` */
        uint32_t *prev;       /* [n_slabs]: in `partial` */
    } slabs;
    struct {
        uint32_t *n_refs[KV_N_HOLDERS]; /* [n_pages] */
        uint16_t *next_free;            /* [n_pages]: index within the slab */
        uint16_t *owner;                /* [n_pages] */
        uint8_t *n_slots;               /* [n_pages] */
        uint32_t *positions;            /* [n_pages][page_tokens] */
        uint8_t *boxes;                 /* [n_pages][box_bytes], or NULL */
        uint32_t *seen[KV_N_HOLDERS];   /* [n_pages]: references told to a check */
    } pages;
    kv_pages view;
    uint64_t n_held[2]; /* pages: held by a sequence, by objects alone */
    uint64_t used_bytes;
    uint64_t n_slots_live;
    uint32_t n_shards;
    kv_pool_shard *shards; /* [n_shards]: what each owns */
};

static inline bool kv_pool_is_held(const kv_pool *pool, uint32_t page)
{
    return pool->pages.n_refs[KV_HELD_BY_SEQ][page] > 0 ||
           pool->pages.n_refs[KV_HELD_BY_OBJECT][page] > 0;
}

#endif
