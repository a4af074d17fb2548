/* kvcache/page_pool_check.c - the invariants of a page pool, by walking slabs and lists. */
#include "kvcache/page_pool_state.h"

#include <math.h>
#include <string.h>

void kv_pool_check_begin(const kv_pool *pool)
{
    for (int t = 0; t < KV_N_TIERS; t++) {
        const kv_tier_slabs *tier = &pool->tiers[t];
        const size_t first = (size_t)tier->first * pool->pages_per_slab_max;
        const size_t n_pages = (size_t)tier->n_touched * pool->pages_per_slab_max;
        for (int i = 0; i < KV_N_HOLDERS; i++)
            memset(pool->pages.seen[i] + first, 0, n_pages * sizeof *pool->pages.seen[i]);
    }
}

void kv_pool_check_ref(const kv_pool *pool, uint32_t page, kv_holder holder)
{
    assert(page / pool->pages_per_slab_max < pool->n_slabs);
    pool->pages.seen[holder][page]++;
    if (!kv_page_is_held(pool, page)) return; /* found out at the end */
    const uint32_t on = pool->pages.leans_on[page];
    if (on != KV_PAGE_NONE) pool->pages.seen[holder][on]++;
}

bool kv_pool_check_has_turn(const kv_pool *pool, uint32_t page)
{
    enum { N_TURNS = 8 };
    uint32_t n_seen = 0;
    for (int i = 0; i < KV_N_HOLDERS; i++)
        n_seen += pool->pages.seen[i][page];
    return n_seen == 1 && (page + pool->now) % N_TURNS == 0;
}

/* The counts that a walk over the slabs of a tier finds. */
typedef struct walk {
    uint64_t n_held[2];
    uint64_t n_slots;
    uint64_t used_bytes;
    kv_pool_shard owned; /* by anybody */
    uint32_t n_in_use;
} walk;

/* Finite, and none above bias_most. */
static bool are_biases_sane(const kv_pool *pool, uint32_t page)
{
    const float *biases = kv_pool_biases(pool, page);
    for (uint32_t i = 0; biases != NULL && i < pool->pages.n_slots[page]; i++) {
        if (!isfinite(biases[i]) || biases[i] > kv_pool_bias_most(pool, page)) return false;
    }
    return true;
}

static bool is_page_sane(const kv_pool *pool, uint32_t page, walk *found)
{
    for (int i = 0; i < KV_N_HOLDERS; i++) {
        if (pool->pages.seen[i][page] != pool->pages.n_refs[i][page]) return false;
    }
    if (!kv_page_is_held(pool, page)) return true;
    if (pool->pages.n_slots[page] > pool->page_tokens) return false;
    if (!are_biases_sane(pool, page)) return false;
    const bool is_used = pool->pages.n_refs[KV_HELD_BY_SEQ][page] > 0;
    found->n_held[is_used ? 0 : 1]++;
    found->used_bytes += is_used ? kv_page_part_bytes(pool, page) : 0;
    found->n_slots += pool->pages.n_slots[page];
    for (uint32_t i = 1; i < pool->pages.n_slots[page]; i++) {
        if (kv_page_positions(pool, page)[i - 1] >= kv_page_positions(pool, page)[i]) return false;
    }
    if (pool->pages.owner[page] == KV_OWNER_NONE) return pool->pages.n_slots[page] == 0;
    found->owned.n_pages++;
    found->owned.n_slots += pool->pages.n_slots[page];
    found->owned.bytes += kv_page_owned_bytes(pool, page);
    return pool->pages.owner[page] < pool->n_shards;
}

static bool is_slab_sane(const kv_pool *pool, uint32_t slab, walk *found)
{
    const uint32_t first = slab * pool->pages_per_slab_max;
    uint32_t n_held = 0, n_listed = 0;
    for (uint32_t i = 0; i < pool->pages_per_slab_max; i++) {
        if (!is_page_sane(pool, first + i, found)) return false;
        n_held += kv_page_is_held(pool, first + i) ? 1 : 0;
    }
    if (n_held != pool->slabs.n_used[slab]) return false;
    if (n_held == 0) return true;
    const uint32_t n_pages = pool->classes.pages_per_slab[pool->slabs.page_class[slab]];
    for (uint32_t i = pool->slabs.first_free[slab]; i != KV_INDEX_NONE && n_listed <= n_pages;
         n_listed++) {
        if (kv_page_is_held(pool, first + i)) return false;
        i = pool->pages.next_free[first + i];
    }
    found->n_in_use++;
    return n_held + n_listed == n_pages;
}

/* Every slab of the list belongs to the class and has a free page; together they have n_free. */
static bool is_class_sane(const kv_pool *pool, const kv_tier_slabs *tier, uint32_t page_class)
{
    uint64_t n_free = 0;
    uint32_t n_steps = 0, prev = KV_SLAB_NONE;
    for (uint32_t slab = tier->partial[page_class]; slab != KV_SLAB_NONE;) {
        if (pool->slabs.page_class[slab] != page_class || pool->slabs.prev[slab] != prev)
            return false;
        if (n_steps++ > pool->n_slabs || pool->slabs.n_used[slab] == 0) return false;
        if (pool->slabs.first_free[slab] == KV_INDEX_NONE) return false;
        n_free += pool->classes.pages_per_slab[page_class] - pool->slabs.n_used[slab];
        prev = slab;
        slab = pool->slabs.next[slab];
    }
    return n_free == tier->n_free[page_class];
}

static bool is_tier_sane(const kv_pool *pool, const kv_tier_slabs *tier, kv_pool_shard *owned)
{
    walk found = {0};
    for (uint32_t slab = tier->first; slab < tier->first + tier->n_touched; slab++) {
        if (!is_slab_sane(pool, slab, &found)) return false;
    }
    for (uint32_t c = 0; c < pool->classes.n; c++) {
        if (!is_class_sane(pool, tier, c)) return false;
    }
    uint32_t n_free_slabs = 0;
    for (uint32_t slab = tier->free; slab != KV_SLAB_NONE; slab = pool->slabs.next[slab]) {
        if (n_free_slabs++ > tier->n_touched || pool->slabs.n_used[slab] != 0) return false;
    }
    if (found.n_slots != found.owned.n_slots) return false;
    owned->n_pages += found.owned.n_pages;
    owned->n_slots += found.owned.n_slots;
    owned->bytes += found.owned.bytes;
    return found.n_in_use == tier->n_in_use && n_free_slabs + tier->n_in_use == tier->n_touched &&
           found.n_held[0] == tier->n_held[0] && found.n_held[1] == tier->n_held[1] &&
           found.used_bytes == tier->used_bytes;
}

bool kv_pool_check_end(const kv_pool *pool)
{
    kv_pool_shard owned = {0}, all = {0};
    for (int t = 0; t < KV_N_TIERS; t++) {
        if (!is_tier_sane(pool, &pool->tiers[t], &owned)) return false;
    }
    for (uint32_t s = 0; s < pool->n_shards; s++) {
        all.n_pages += pool->shards[s].n_pages;
        all.n_slots += pool->shards[s].n_slots;
        all.bytes += pool->shards[s].bytes;
    }
    return all.n_pages == owned.n_pages && all.n_slots == owned.n_slots &&
           all.bytes == owned.bytes && all.n_slots == pool->n_slots_live;
}
