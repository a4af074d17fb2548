/* kvcache/page_changes.c - see page_changes.h: a list that every page is in at most once. */
#include "kvcache/page_changes.h"

#include "kvcache/page_pool_state.h"

void kv_pool_note_change(kv_pool *pool, uint32_t page)
{
    if (pool->changes.pages == NULL) return;
    if (pool->changes.state[page] == KV_PAGE_TOLD) pool->changes.pages[pool->changes.n++] = page;
    pool->changes.state[page] = KV_PAGE_CHANGED;
}

void kv_pool_note_made(kv_pool *pool, uint32_t page)
{
    assert(pool->changes.state[page] != KV_PAGE_TOLD);
    pool->changes.state[page] = KV_PAGE_MADE;
}

bool kv_pool_is_made(const kv_pool *pool, uint32_t page)
{
    return pool->changes.pages != NULL && pool->changes.state[page] == KV_PAGE_MADE;
}

bool kv_pool_has_copy(const kv_pool *pool, uint32_t page)
{
    return pool->changes.pages != NULL && pool->changes.state[page] != KV_PAGE_CHANGED;
}

bool kv_pool_take_change(kv_pool *pool, kv_page_change *change)
{
    while (pool->changes.n_taken < pool->changes.n) {
        const uint32_t page = pool->changes.pages[pool->changes.n_taken++];
        *change = (kv_page_change){page, kv_pool_is_made(pool, page)};
        pool->changes.state[page] = KV_PAGE_TOLD;
        if (kv_page_is_held(pool, page)) return true;
    }
    pool->changes.n = pool->changes.n_taken = 0;
    return false;
}

uint64_t kv_pool_offset(const kv_pool *pool, uint32_t page)
{
    assert(kv_pool_tier(pool, page) == KV_TIER_POOL);
    return (uint64_t)(kv_pool_data(pool, page) - pool->tiers[KV_TIER_POOL].base);
}

uint64_t kv_pool_mapped_bytes(const kv_pool *pool)
{
    return pool->tiers[KV_TIER_POOL].n * (uint64_t)pool->slab_bytes;
}
