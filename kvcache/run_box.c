/* kvcache/run_box.c - see run_box.h. To a run's box, its pages' are so many keys: two each. */
#include "kvcache/run_box.h"

#include "kvcache/blocks.h"
#include "kvcache/key_box.h"

/* The corners of the boxes of the run's pages, as far as it has any that are read. */
static uint32_t list_corners(const kv_cache *cache, const kv_table *table, uint32_t layer,
                             uint32_t head, uint32_t run, attn_span out[KV_RUN_PAGES])
{
    const uint32_t key_bytes = (uint32_t)kv_box_bytes(&cache->heads[layer]) / 2;
    uint32_t n = 0;
    for (uint32_t b = run * KV_RUN_PAGES; b < (run + 1) * KV_RUN_PAGES; b++) {
        const size_t entry = kv_table_entry(table, kv_home_list(cache, layer, head, b), b);
        if (table->live[entry] == 0) continue;
        out[n++] = (attn_span){.k = kv_pool_box(cache->pool, table->page[entry]),
                               .k_stride_bytes = key_bytes,
                               .n_slots = 2};
    }
    return n;
}

void kv_runs_write(kv_seq *seq, uint32_t layer, uint32_t first, uint32_t end)
{
    const kv_cache *cache = seq->cache;
    if (seq->table.run_box_bytes == 0 || cache->scatters[layer]) return;
    for (uint32_t h = 0; h < cache->n_kv_heads[layer]; h++) {
        const uint32_t list = kv_list(cache, layer, h, 0);
        for (uint32_t run = first / KV_RUN_PAGES; run < end / KV_RUN_PAGES; run++) {
            attn_span corners[KV_RUN_PAGES];
            const kv_box_keys keys = {.spans = corners,
                                      .n_spans =
                                          list_corners(cache, &seq->table, layer, h, run, corners)};
            kv_box_write(&cache->heads[layer], &keys, kv_table_run_box(&seq->table, list, run));
        }
    }
}

bool kv_run_holds(const kv_cache *cache, const kv_table *table, uint32_t layer, uint32_t head,
                  uint32_t run)
{
    attn_span corners[KV_RUN_PAGES];
    const kv_box_keys keys = {.spans = corners,
                              .n_spans = list_corners(cache, table, layer, head, run, corners)};
    const uint32_t list = kv_list(cache, layer, head, 0);
    return kv_box_holds(&cache->heads[layer], &keys, kv_table_run_box(table, list, run));
}
