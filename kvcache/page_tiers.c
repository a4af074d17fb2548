/* kvcache/page_tiers.c - see page_tiers.h. */
#include "kvcache/page_pool_state.h"

#include <string.h>

uint32_t kv_pool_alloc_twin(kv_pool *pool, uint32_t page, kv_tier tier, kv_holder holder)
{
    const size_t box_bytes = pool->view.box_bytes;
    const uint32_t twin = kv_pool_alloc_in(pool, tier, kv_pool_class(pool, page), holder);
    if (twin == KV_PAGE_NONE) return KV_PAGE_NONE;
    if (pool->pages.owner[page] != KV_OWNER_NONE)
        kv_pool_rewrite(pool, twin, kv_page_positions(pool, page), pool->pages.n_slots[page],
                        pool->pages.owner[page]);
    if (box_bytes > 0) memcpy(kv_pool_box(pool, twin), kv_pool_box(pool, page), box_bytes);
    kv_pool_set_biases(pool, twin, kv_pool_biases(pool, page));
    if (pool->has_importance) *kv_pool_importance(pool, twin) = *kv_pool_importance(pool, page);
    if (pool->pages.last_use != NULL)
        atomic_store_explicit(&pool->pages.last_use[twin], kv_pool_last_use(pool, page),
                              memory_order_relaxed);
    if (pool->pages.leans_on[page] != KV_PAGE_NONE)
        kv_pool_lean(pool, twin, pool->pages.leans_on[page]);
    return twin;
}

kv_tier kv_pool_tier(const kv_pool *pool, uint32_t page)
{
    return kv_tier_of_slab(pool, page / pool->pages_per_slab_max);
}

uint64_t kv_pool_file_offset(const kv_pool *pool, uint32_t page)
{
    const uint32_t slab = kv_slab_of(pool, page), index = page % pool->pages_per_slab_max;
    assert(kv_tier_of_slab(pool, slab) == KV_TIER_FILE);
    return (uint64_t)(slab - pool->tiers[KV_TIER_FILE].first) * pool->slab_bytes +
           index * pool->classes.page_bytes[pool->slabs.page_class[slab]];
}

/* ---- use ----------------------------------------------------------------------------------------- */

void kv_pool_tick(kv_pool *pool)
{
    pool->now++;
}

uint32_t kv_pool_now(const kv_pool *pool)
{
    return pool->now;
}

void kv_pool_use(const kv_pool *pool, uint32_t page)
{
    /* Several workers may read one page: they all write the same. */
    if (pool->pages.last_use != NULL)
        atomic_store_explicit(&pool->pages.last_use[page], pool->now, memory_order_relaxed);
}

uint32_t kv_pool_last_use(const kv_pool *pool, uint32_t page)
{
    assert(pool->pages.last_use != NULL);
    return atomic_load_explicit(&pool->pages.last_use[page], memory_order_relaxed);
}

/* ---- queries ------------------------------------------------------------------------------------- */

bool kv_pool_has_tiers(const kv_pool *pool)
{
    return pool->tiers[KV_TIER_HOST].n + pool->tiers[KV_TIER_FILE].n > 0;
}

uint32_t kv_pool_n_pages(const kv_pool *pool)
{
    return pool->n_slabs * pool->pages_per_slab_max;
}

uint32_t kv_pool_first_page(const kv_pool *pool, kv_tier tier)
{
    return pool->tiers[tier].first * pool->pages_per_slab_max;
}

size_t kv_pool_page_bytes_max(const kv_pool *pool)
{
    size_t bytes = 0;
    for (uint32_t c = 0; c < pool->classes.n; c++)
        bytes = max_size(bytes, pool->classes.page_bytes[c]);
    return bytes;
}

uint64_t kv_pool_slab_bytes(const kv_pool *pool)
{
    return pool->slab_bytes;
}

bool kv_pool_could_spill(const kv_pool *pool, const uint64_t *need, bool with_file)
{
    uint32_t n_classes;
    const uint64_t n_slabs = kv_slabs_of(pool, need, &n_classes);
    const uint64_t n_below =
        (uint64_t)pool->tiers[KV_TIER_HOST].n + (with_file ? pool->tiers[KV_TIER_FILE].n : 0);
    if (n_classes == 1) return n_slabs <= pool->tiers[KV_TIER_POOL].n + n_below;
    /* Several classes: a slab of one that the pool cannot fill is of no use to the others, so the tiers
     * must be able to hold it all, with a slab of every class that is begun in each of the two. */
    return n_slabs + n_classes <= n_below;
}

bool kv_pool_is_full_below(const kv_pool *pool, bool with_file)
{
    const kv_tier_slabs *host = &pool->tiers[KV_TIER_HOST], *file = &pool->tiers[KV_TIER_FILE];
    return host->n_in_use == host->n && (!with_file || file->n_in_use == file->n);
}

kv_tier_counts kv_pool_count_tier(const kv_pool *pool, kv_tier which)
{
    const kv_tier_slabs *tier = &pool->tiers[which];
    return (kv_tier_counts){
        .budget_bytes = (uint64_t)tier->n * pool->slab_bytes,
        .slab_bytes = (uint64_t)tier->n_in_use * pool->slab_bytes,
        .n_pages = tier->n_held[0] + tier->n_held[1],
        .used_bytes = tier->used_bytes,
    };
}
