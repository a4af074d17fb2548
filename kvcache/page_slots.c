/* kvcache/page_slots.c - see page_slots.h. */
#include "kvcache/page_pool_state.h"

#include <string.h>

static void count_slots(kv_pool *pool, uint32_t page, uint32_t n_slots)
{
    const uint32_t n_before = pool->pages.n_slots[page];
    pool->n_slots_live += n_slots - (uint64_t)n_before;
    pool->shards[pool->pages.owner[page]].n_slots += n_slots - (uint64_t)n_before;
    pool->pages.n_slots[page] = (uint8_t)n_slots;
    kv_pool_note_change(pool, page);
}

void kv_pool_own(kv_pool *pool, uint32_t page, uint32_t owner)
{
    assert(kv_page_is_held(pool, page));
    assert(pool->pages.owner[page] == KV_OWNER_NONE);
    assert(owner < pool->n_shards);
    pool->pages.owner[page] = (uint16_t)owner;
    pool->shards[owner].n_pages++;
    pool->shards[owner].bytes += kv_page_owned_bytes(pool, page);
}

void kv_pool_fill(kv_pool *pool, uint32_t page, uint32_t first_position, uint32_t n_slots,
                  uint32_t owner)
{
    assert(n_slots <= pool->page_tokens);
    kv_pool_own(pool, page, owner);
    uint32_t *positions = kv_page_positions(pool, page);
    for (uint32_t i = 0; i < n_slots; i++)
        positions[i] = first_position + i;
    count_slots(pool, page, n_slots);
}

void kv_pool_rewrite(kv_pool *pool, uint32_t page, const uint32_t *positions, uint32_t n_slots,
                     uint32_t owner)
{
    assert(n_slots <= pool->page_tokens);
    if (pool->pages.owner[page] == KV_OWNER_NONE) kv_pool_own(pool, page, owner);
    memcpy(kv_page_positions(pool, page), positions, n_slots * sizeof *positions);
    count_slots(pool, page, n_slots);
    kv_pool_set_biases(pool, page, NULL);
}

uint32_t kv_pool_append(kv_pool *pool, uint32_t page, uint32_t position)
{
    const uint32_t slot = pool->pages.n_slots[page];
    uint32_t *positions = kv_page_positions(pool, page);
    assert(pool->pages.owner[page] != KV_OWNER_NONE);
    assert(slot < pool->page_tokens);
    assert(slot == 0 || positions[slot - 1] < position);
    positions[slot] = position;
    count_slots(pool, page, slot + 1);
    if (kv_pool_biases(pool, page) != NULL) kv_pool_set_bias(pool, page, slot, 0);
    return slot;
}

void kv_pool_shrink(kv_pool *pool, uint32_t page, uint32_t n_slots)
{
    assert(pool->pages.owner[page] != KV_OWNER_NONE);
    assert(n_slots <= pool->pages.n_slots[page]);
    count_slots(pool, page, n_slots);
}

uint32_t kv_pool_slots_below(const kv_pool *pool, uint32_t page, uint32_t position)
{
    const uint32_t *positions = kv_page_positions(pool, page);
    uint32_t n = pool->pages.n_slots[page];
    while (n > 0 && positions[n - 1] >= position)
        n--;
    return n;
}
