/* kvcache/own_pages.c - see own_pages.h. */
#include "kvcache/own_pages.h"

#include "kvcache/away.h"
#include "kvcache/compact.h"
#include "kvcache/demote.h"
#include "kvcache/page_changes.h"

#include <string.h>

static bool must_copy(const kv_seq *seq, uint32_t list, uint32_t entry)
{
    const kv_cache *cache = seq->cache;
    const uint32_t page = kv_table_page(&seq->table, list, entry);
    return page != KV_PAGE_NONE && !kv_is_coded_page(cache, page) && !kv_page_is_own(cache, page);
}

/* Writes to cache->need; returns how many pages must be copied. */
static uint32_t count_copies(const kv_seq *seq, uint32_t layer)
{
    kv_cache *cache = seq->cache;
    uint32_t n = 0;
    memset(cache->need, 0, cache->n_classes * sizeof *cache->need);
    for (uint32_t i = 0; i < cache->n_kv_heads[layer] * cache->n_shards; i++) {
        for (uint32_t b = 0; b < seq->n_blocks; b++)
            n += must_copy(seq, kv_list(cache, layer, 0, 0) + i, b);
    }
    cache->need[cache->layer_class[layer]] = n;
    return n;
}

static void copy_page(kv_seq *seq, uint32_t list, uint32_t entry)
{
    const kv_cache *cache = seq->cache;
    const size_t at = kv_table_entry(&seq->table, list, entry);
    const uint32_t from = seq->table.page[at];
    const uint32_t to = kv_pool_alloc_twin(cache->pool, from, KV_TIER_POOL, KV_HELD_BY_SEQ);
    assert(to != KV_PAGE_NONE);
    memcpy(kv_pool_data(cache->pool, to), kv_seq_read_page(seq, from, kv_landing(cache, 0)),
           kv_pool_page_bytes(cache->pool, to));
    (void)kv_pool_drop(cache->pool, from, KV_HELD_BY_SEQ);
    kv_table_replace(&seq->table, list, entry, to);
}

err_t kv_own_pages(kv_seq *seq, uint32_t layer)
{
    kv_cache *cache = seq->cache;
    /* Every object that is given up may leave pages to this sequence alone: counted again. */
    while (count_copies(seq, layer) > 0 && !kv_demote_until_room(cache)) {
        if (!kv_prefix_give_up_block(cache) && !kv_prefix_give_up_object(cache)) return ERR_KV_FULL;
    }
    for (uint32_t i = 0; i < cache->n_kv_heads[layer] * cache->n_shards; i++) {
        const uint32_t list = kv_list(cache, layer, 0, 0) + i;
        for (uint32_t b = 0; b < seq->n_blocks; b++) {
            if (must_copy(seq, list, b)) copy_page(seq, list, b);
            if (kv_table_page(&seq->table, list, b) == KV_PAGE_NONE) continue;
            kv_pool_note_change(cache->pool, kv_table_page(&seq->table, list, b));
            seq->table.changed[list] = 0; /* whether it has biases is told with it */
        }
    }
    return ERR_OK;
}
