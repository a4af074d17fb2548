/* kvcache/page_pool_state.h - the struct behind page_pool.h; for page_pool.c, page_tiers.c and
 * page_pool_check.c.
 *
 * Slabs are numbered through all tiers, so that a page's id says where it lies and every array over
 * pages is one array:
 *
 *   slab  | 0 ...        the pool | ...         host memory | ...             the file | */
#ifndef KVCACHE_PAGE_POOL_STATE_H
#define KVCACHE_PAGE_POOL_STATE_H

#include "kvcache/page_bias.h"
#include "kvcache/page_changes.h"
#include "kvcache/page_slots.h"
#include "kvcache/page_tiers.h"

#include "base/arena.h"
#include "base/check.h"

#include <stdatomic.h>

#define KV_SLAB_NONE  UINT32_MAX
#define KV_INDEX_NONE UINT16_MAX /* end of a slab's free pages */

/* Of a copy of a page; all but the first are in the list. */
typedef enum kv_page_state { KV_PAGE_TOLD, KV_PAGE_CHANGED, KV_PAGE_MADE } kv_page_state;

/* The slabs of one tier. */
typedef struct kv_tier_slabs {
    uint8_t *base; /* [n][slab_bytes]: the mapping; NULL: there is none, as for the file */
    uint32_t first, n;
    uint32_t n_touched; /* the first n_touched of them were in use at some time */
    uint32_t n_in_use;  /* slabs that belong to a class now */
    uint32_t free;      /* list of touched slabs without a class */
    uint32_t *partial;  /* [n_classes]: first slab with a free page, or KV_SLAB_NONE */
    uint64_t *n_free;   /* [n_classes]: free pages in the slabs of the class */
    uint64_t n_held[2]; /* pages: held by a sequence, by objects alone */
    uint64_t used_bytes;
} kv_tier_slabs;

struct kv_pool {
    size_t slab_bytes;
    uint32_t n_slabs; /* of all tiers */
    uint32_t page_tokens;
    uint32_t pages_per_slab_max;
    bool has_biases, has_importance, notes_changes;
    arena memory;
    struct {
        uint32_t n;
        size_t *page_bytes;       /* [n] */
        uint32_t *pages_per_slab; /* [n] */
    } classes;
    struct {
        uint16_t *page_class; /* [n_slabs]; valid while n_used > 0 */
        uint16_t *n_used;     /* [n_slabs]: pages held */
        uint16_t *first_free; /* [n_slabs]: index of a free page, or KV_INDEX_NONE */
        uint32_t *next;       /* [n_slabs]: in `partial` or `free` of its tier */
        uint32_t *prev;       /* [n_slabs]: in `partial` */
    } slabs;
    struct {
        uint32_t *n_refs[KV_N_HOLDERS]; /* [n_pages] */
        uint16_t *next_free;            /* [n_pages]: index within the slab */
        uint32_t *leans_on;             /* [n_pages], or KV_PAGE_NONE; valid while held */
        uint16_t *owner;                /* [n_pages] */
        uint8_t *n_slots;               /* [n_pages] */
        uint32_t *positions;            /* [n_pages][page_tokens] */
        uint8_t *boxes;                 /* [n_pages][box_bytes], or NULL */
        float *importance;              /* [n_pages], or NULL */
        float *biases;                  /* [n_pages][page_tokens], or NULL; see bias_most */
        float *bias_most;               /* [n_pages]; -inf: the page has none; or NULL */
        _Atomic uint32_t *last_use;     /* [n_pages], or NULL without tiers */
        uint32_t *seen[KV_N_HOLDERS];   /* [n_pages]: references told to a check */
    } pages;
    struct {
        uint32_t *pages; /* [n_pages]: [n_taken, n) are noted; NULL: changes are not */
        uint8_t *state;  /* [n_pages]: kv_page_state */
        uint32_t n, n_taken;
    } changes;
    kv_tier_slabs tiers[KV_N_TIERS];
    uint32_t now; /* what last_use is measured in; see kv_pool_tick */
    kv_pages view;
    uint64_t n_slots_live;
    uint32_t n_shards;
    kv_pool_shard *shards; /* [n_shards]: what each owns */
};

static inline kv_tier kv_tier_of_slab(const kv_pool *pool, uint32_t slab)
{
    assert(slab < pool->n_slabs);
    if (slab < pool->tiers[KV_TIER_HOST].first) return KV_TIER_POOL;
    return slab < pool->tiers[KV_TIER_FILE].first ? KV_TIER_HOST : KV_TIER_FILE;
}

/* ---- page_pool.c ---- */

uint32_t kv_slab_of(const kv_pool *pool, uint32_t page);
uint32_t kv_pool_alloc_in(kv_pool *pool, kv_tier where, uint32_t page_class, kv_holder holder);
/* The slabs that so many pages take, and *n_classes of them. */
uint64_t kv_slabs_of(const kv_pool *pool, const uint64_t *need, uint32_t *n_classes);

static inline bool kv_page_is_held(const kv_pool *pool, uint32_t page)
{
    return pool->pages.n_refs[KV_HELD_BY_SEQ][page] > 0 ||
           pool->pages.n_refs[KV_HELD_BY_OBJECT][page] > 0;
}

static inline uint64_t kv_page_part_bytes(const kv_pool *pool, uint32_t page)
{
    return kv_pool_part_bytes(pool, kv_pool_class(pool, page));
}

/* What a page counts for its owner's bytes: those of the pool alone. */
static inline uint64_t kv_page_owned_bytes(const kv_pool *pool, uint32_t page)
{
    return kv_pool_tier(pool, page) == KV_TIER_POOL ? kv_page_part_bytes(pool, page) : 0;
}

static inline uint32_t *kv_page_positions(const kv_pool *pool, uint32_t page)
{
    return pool->pages.positions + (size_t)page * pool->page_tokens;
}

#endif
