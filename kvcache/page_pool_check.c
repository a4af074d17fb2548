/* kvcache/page_pool_check.c - the invariants of a page pool, by walking slabs, pages and free lists. */
#include "kvcache/page_pool_state.h"

#include "base/check.h"

#include <string.h>

void kv_pool_check_begin(const kv_pool *pool)
{
    const size_t n_pages = (size_t)pool->n_touched * pool->pages_per_slab_max;
    for (int i = 0; i < KV_N_HOLDERS; i++)
        memset(pool->pages.seen[i], 0, n_pages * sizeof *pool->pages.seen[i]);
}

void kv_pool_check_ref(const kv_pool *pool, uint32_t page, kv_holder holder)
{
    assert(page / pool->pages_per_slab_max < pool->n_touched);
    pool->pages.seen[holder][page]++;
}

/* The counts that a walk over the slabs finds. */
typedef struct walk {
    uint64_t n_held[2];
    uint64_t n_slots;
    uint64_t used_bytes;
    uint64_t n_owned, owned_bytes;
    uint32_t n_in_use;
} walk;

static bool is_page_sane(const kv_pool *pool, uint32_t page, walk *found)
{
    for (int i = 0; i < KV_N_HOLDERS; i++) {
        if (pool->pages.seen[i][page] != pool->pages.n_refs[i][page]) return false;
    }
    if (!kv_pool_is_held(pool, page)) return true;
    if (pool->pages.n_slots[page] > pool->page_tokens) return false;
    const bool is_used = pool->pages.n_refs[KV_HELD_BY_SEQ][page] > 0;
    found->n_held[is_used ? 0 : 1]++;
    found->used_bytes += is_used ? kv_pool_page_bytes(pool, kv_pool_class(pool, page)) : 0;
    found->n_slots += pool->pages.n_slots[page];
    const bool has_owner = pool->pages.owner[page] != KV_OWNER_NONE;
    if (has_owner && pool->pages.owner[page] >= pool->n_shards) return false;
    if (has_owner) found->owned_bytes += kv_pool_page_bytes(pool, kv_pool_class(pool, page));
    found->n_owned += has_owner ? 1 : 0;
    const uint32_t *positions = pool->pages.positions + (size_t)page * pool->page_tokens;
    for (uint32_t i = 1; i < pool->pages.n_slots[page]; i++) {
        if (positions[i - 1] >= positions[i]) return false;
    }
    return has_owner || pool->pages.n_slots[page] == 0;
}

static bool is_slab_sane(const kv_pool *pool, uint32_t slab, walk *found)
{
    const uint32_t first = slab * pool->pages_per_slab_max;
    uint32_t n_held = 0, n_listed = 0;
    for (uint32_t i = 0; i < pool->pages_per_slab_max; i++) {
        if (!is_page_sane(pool, first + i, found)) return false;
        n_held += kv_pool_is_held(pool, first + i) ? 1 : 0;
    }
    if (n_held != pool->slabs.n_used[slab]) return false;
    if (n_held == 0) return true;
    const uint32_t n_pages = pool->classes.pages_per_slab[pool->slabs.page_class[slab]];
    for (uint32_t i = pool->slabs.first_free[slab]; i != INDEX_NONE && n_listed <= n_pages;
         n_listed++) {
        if (kv_pool_is_held(pool, first + i)) return false;
        i = pool->pages.next_free[first + i];
    }
    found->n_in_use++;
    return n_held + n_listed == n_pages;
}

/* Every slab of the list belongs to the class and has a free page; together they have n_free. */
static bool is_class_sane(const kv_pool *pool, uint32_t page_class)
{
    uint64_t n_free = 0;
    uint32_t n_steps = 0, prev = SLAB_NONE;
    for (uint32_t slab = pool->classes.partial[page_class]; slab != SLAB_NONE;) {
        if (pool->slabs.page_class[slab] != page_class || pool->slabs.prev[slab] != prev)
            return false;
        if (n_steps++ > pool->n_slabs || pool->slabs.n_used[slab] == 0) return false;
        if (pool->slabs.first_free[slab] == INDEX_NONE) return false;
        n_free += pool->classes.pages_per_slab[page_class] - pool->slabs.n_used[slab];
        prev = slab;
        slab = pool->slabs.next[slab];
    }
    return n_free == pool->classes.n_free[page_class];
}

bool kv_pool_check_end(const kv_pool *pool)
{
    walk found = {0};
    for (uint32_t slab = 0; slab < pool->n_touched; slab++) {
        if (!is_slab_sane(pool, slab, &found)) return false;
    }
    for (uint32_t c = 0; c < pool->classes.n; c++) {
        if (!is_class_sane(pool, c)) return false;
    }
    kv_pool_shard all = {0};
    for (uint32_t s = 0; s < pool->n_shards; s++) {
        all.n_pages += pool->shards[s].n_pages;
        all.n_slots += pool->shards[s].n_slots;
        all.bytes += pool->shards[s].bytes;
    }
    if (all.n_pages != found.n_owned || all.bytes != found.owned_bytes) return false;
    if (all.n_slots != found.n_slots) return false;
    uint32_t n_free_slabs = 0;
    for (uint32_t slab = pool->free_slabs; slab != SLAB_NONE; slab = pool->slabs.next[slab]) {
        if (n_free_slabs++ > pool->n_touched || pool->slabs.n_used[slab] != 0) return false;
    }
    return found.n_in_use == pool->n_in_use && n_free_slabs + pool->n_in_use == pool->n_touched &&
           found.n_held[0] == pool->n_held[0] && found.n_held[1] == pool->n_held[1] &&
           found.n_slots == pool->n_slots_live && found.used_bytes == pool->used_bytes;
}
