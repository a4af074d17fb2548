/* kvcache/kv_map.c - see kv_map.h. */
#include "kvcache/kv_map.h"

#include "kvcache/encode.h"
#include "kvcache/kv_map_ranks.h"

#include <stdlib.h>

/* ---- open and close ------------------------------------------------------------------------------ */

static err_t open_arrays(const kv_cache *cache, kv_map *map)
{
    map->seqs = calloc(cache->limits.n_seqs_max, sizeof *map->seqs);
    map->lists = calloc(cache->n_lists, sizeof *map->lists);
    map->runs = map->query.seq != 0 ? calloc(KV_MAP_RUNS_MAX, sizeof *map->runs) : NULL;
    size_t parts_bytes;
    if (map->seqs == NULL || map->lists == NULL) return ERR_NO_MEMORY;
    TRY(kv_map_parts_bytes(cache, &map->query, &parts_bytes));
    map->parts = parts_bytes > 0 ? calloc(parts_bytes, 1) : NULL;
    if (parts_bytes > 0 && map->parts == NULL) return ERR_NO_MEMORY;
    return map->query.seq != 0 && map->runs == NULL ? ERR_NO_MEMORY : ERR_OK;
}

err_t kv_map_open(const kv_cache *cache, const kv_map_query *query, kv_map **out)
{
    *out = NULL;
    if (query->has_layer && query->layer >= cache->n_layers) return ERR_BAD_ARGUMENT;
    kv_map *map = calloc(1, sizeof *map);
    if (map == NULL) return ERR_NO_MEMORY;
    map->query = *query;
    const err_t err = open_arrays(cache, map);
    if (err != ERR_OK) {
        kv_map_close(map);
        return err;
    }
    *out = map;
    return ERR_OK;
}

void kv_map_close(kv_map *map)
{
    if (map == NULL) return;
    free(map->seqs);
    free(map->lists);
    free(map->runs);
    free(map->parts);
    free(map);
}

/* ---- taking -------------------------------------------------------------------------------------- */

static void take_settings(const kv_cache *cache, kv_map *map)
{
    map->methods = cache->methods;
    map->placement = cache->placement->name;
    map->type = cache->type;
    map->n_layers = cache->n_layers;
    map->page_tokens = cache->page_tokens;
    map->window_tokens = cache->window_tokens;
    map->sink_tokens = cache->sink_tokens;
    map->n_shards = cache->n_shards;
    map->prefix_caching = cache->prefix_caching;
    map->request_methods = cache->request_methods;
    map->stats = cache->stats;
}

static int by_id(const void *a, const void *b)
{
    const kv_map_seq *x = a, *y = b;
    return (x->id > y->id) - (x->id < y->id);
}

static bool is_wanted(const kv_map_query *query, const kv_seq *seq, const kv_seq *before)
{
    if (query->seq == KV_MAP_NEWEST) return before == NULL || seq->id > before->id;
    return seq->id == query->seq;
}

/* Returns the sequence whose pages are wanted, if it is open. */
static const kv_seq *take_seqs(const kv_cache *cache, kv_map *map)
{
    const kv_seq *wanted = NULL;
    map->n_seqs = 0;
    for (uint32_t s = 0; s < cache->limits.n_seqs_max; s++) {
        const kv_seq *seq = &cache->seqs[s];
        if (!seq->is_open) continue;
        kv_map_seq *row = &map->seqs[map->n_seqs++];
        *row = (kv_map_seq){.id = seq->id,
                            .methods = seq->methods,
                            .length = seq->length,
                            .n_blocks = seq->n_blocks};
        for (uint32_t list = 0; list < cache->n_lists && seq->table.capacity > 0; list++)
            row->slots_live += seq->table.n_live[list];
        if (is_wanted(&map->query, seq, wanted)) wanted = seq;
    }
    qsort(map->seqs, map->n_seqs, sizeof *map->seqs, by_id);
    return wanted;
}

static bool are_alike(const kv_map_run *a, const kv_map_run *b)
{
    return a->first_block + a->n_blocks == b->first_block && a->codec == b->codec &&
           a->n_live == b->n_live && a->tier == b->tier && a->is_cached == b->is_cached;
}

static void add_run(kv_map *map, kv_map_list *row, const kv_map_run *run)
{
    kv_map_run *last = row->n_runs > 0 ? &map->runs[map->n_runs - 1] : NULL;
    if (last != NULL && are_alike(last, run)) {
        last->n_blocks++;
    } else if (map->n_runs == KV_MAP_RUNS_MAX) {
        map->is_truncated = true;
    } else {
        map->runs[map->n_runs++] = *run;
        row->n_runs++;
    }
}

static void take_pages(const kv_seq *seq, uint32_t list, kv_map *map, kv_map_list *row)
{
    const kv_cache *cache = seq->cache;
    const kv_pages *pages = kv_pool_pages(cache->pool);
    row->first_run = map->n_runs;
    for (uint32_t b = 0; b < seq->n_blocks; b++) {
        const uint32_t page = kv_table_page(&seq->table, list, b);
        if (page == KV_PAGE_NONE) continue;
        const uint64_t live = seq->table.live[kv_table_entry(&seq->table, list, b)];
        const kv_map_run run = {.first_block = b,
                                .n_blocks = 1,
                                .codec = kv_codec_of(cache, page),
                                .n_live = (uint32_t)__builtin_popcountll(live),
                                .tier = kv_pool_tier(cache->pool, page),
                                .is_cached = pages->n_refs[KV_HELD_BY_OBJECT][page] > 0};
        row->n_pages++;
        row->seq_slots_live += run.n_live;
        add_run(map, row, &run);
    }
}

/* What all open sequences have in a list. */
static uint64_t count_slots(const kv_cache *cache, uint32_t list)
{
    uint64_t n = 0;
    for (uint32_t s = 0; s < cache->limits.n_seqs_max; s++) {
        const kv_seq *seq = &cache->seqs[s];
        if (seq->is_open && seq->table.capacity > 0) n += seq->table.n_live[list];
    }
    return n;
}

static void take_layer(const kv_cache *cache, uint32_t layer, const kv_seq *seq, kv_map *map)
{
    for (uint32_t h = 0; h < cache->n_kv_heads[layer]; h++) {
        for (uint32_t s = 0; s < cache->n_shards; s++) {
            const uint32_t list = kv_list(cache, layer, h, s);
            kv_map_list *row = &map->lists[map->n_lists++];
            *row = (kv_map_list){
                .layer = layer, .head = h, .shard = s, .slots_live = count_slots(cache, list)};
            if (seq != NULL) take_pages(seq, list, map, row);
        }
    }
}

void kv_map_take(const kv_cache *cache, kv_map *map)
{
    assert(!cache->step.is_open);
    take_settings(cache, map);
    const kv_seq *seq = take_seqs(cache, map);
    map->has_seq = seq != NULL;
    map->seq_id = seq != NULL ? seq->id : 0;
    map->n_lists = map->n_runs = 0;
    map->is_truncated = false;
    for (uint32_t l = 0; l < cache->n_layers; l++) {
        if (!map->query.has_layer || l == map->query.layer) take_layer(cache, l, seq, map);
    }
    kv_map_merge(cache, map);
}
