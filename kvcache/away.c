/* kvcache/away.c - see away.h. */
#include "kvcache/away.h"

#include <stdatomic.h>
#include <string.h>

/* ---- reading ------------------------------------------------------------------------------------- */

void kv_seq_lose(kv_seq *seq)
{
    atomic_store_explicit(&seq->is_lost, true, memory_order_relaxed);
}

const uint8_t *kv_seq_read_page(kv_seq *seq, uint32_t page, uint8_t *landing)
{
    const kv_cache *cache = seq->cache;
    if (cache->tiers == NULL) return kv_pool_data(cache->pool, page);
    const uint8_t *data = kv_tiers_read(cache->tiers, page, landing);
    if (data != NULL) return data;
    kv_seq_lose(seq);
    memset(landing, 0, kv_pool_page_bytes(cache->pool, page)); /* finite, whatever the codec */
    return landing;
}

attn_span kv_seq_load_page(kv_seq *seq, const kv_page_place *at, uint32_t n_slots, uint32_t worker)
{
    const kv_cache *cache = seq->cache;
    const uint8_t *data = kv_seq_read_page(seq, at->page, kv_landing(cache, worker));
    return kv_page_decode(cache, at, data, n_slots, cache->decoded + worker * cache->decoded_bytes);
}

bool kv_seq_is_lost(const kv_seq *seq)
{
    return atomic_load_explicit(&seq->is_lost, memory_order_relaxed);
}

bool kv_source_is_sound(const kv_cache *cache, const kv_prefix_source *source, uint32_t n_tokens)
{
    if (cache->tiers == NULL || kv_tiers_count(cache->tiers).read_failures == 0) return true;
    if (source->seq != NULL && kv_seq_is_lost(source->seq)) return false;
    uint32_t end = (n_tokens + cache->page_tokens - 1) / cache->page_tokens;
    if (end > source->n_blocks) end = source->n_blocks;
    for (uint32_t list = 0; list < source->table->n_lists; list++) {
        for (uint32_t b = 0; b < end; b++) {
            const uint32_t page = kv_table_page(source->table, list, b);
            if (page != KV_PAGE_NONE && kv_tiers_is_bad(cache->tiers, page)) return false;
        }
    }
    return true;
}

/* ---- hints --------------------------------------------------------------------------------------- */

/* Does the row's query read this page, as far as can be told before it is asked? */
static bool is_wanted(const kv_cache *cache, const kv_row *row, uint32_t page)
{
    if (row->seq->methods.reads_all || !row->is_decode) return true;
    return kv_pool_now(cache->pool) - kv_pool_last_use(cache->pool, page) <= 1;
}

static void hint_list(const kv_cache *cache, const kv_row *row, uint32_t list)
{
    const kv_seq *seq = row->seq;
    kv_tier_range range = {0};
    for (uint32_t b = 0; b < seq->n_blocks; b++) {
        const uint32_t page = kv_table_page(&seq->table, list, b);
        if (page == KV_PAGE_NONE || kv_pool_tier(cache->pool, page) != KV_TIER_FILE) continue;
        if (is_wanted(cache, row, page)) kv_tiers_hint(cache->tiers, page, &range);
    }
    kv_tiers_hint_end(cache->tiers, &range);
}

void kv_hint_layer(const kv_cache *cache, uint32_t layer)
{
    if (cache->tiers == NULL || layer >= cache->n_layers) return;
    if (kv_pool_count_tier(cache->pool, KV_TIER_FILE).used_bytes == 0) return;
    for (uint32_t r = 0; r < cache->step.n_rows; r++) {
        for (uint32_t i = 0; i < cache->n_kv_heads[layer] * cache->n_shards; i++)
            hint_list(cache, &cache->step.rows[r], cache->first_list[layer] + i);
    }
}
