/* kvcache/kv_map_ranks.c - see kv_map_ranks.h.
 *
 * A rank's part is one piece of memory of a size that follows from settings and query, so that it is gathered
 * with one call. Sequences and lists come in the same order on every rank. */
#include "kvcache/kv_map_ranks.h"

#include "base/check.h"
#include "kvcache/ranks.h"

#include <string.h>

typedef struct part_head {
    kv_stats stats;
    uint32_t n_runs;
    bool is_truncated;
} part_head;

typedef struct part_list {
    uint64_t slots_live, seq_slots_live;
    uint32_t n_pages, first_run, n_runs, unused;
} part_list;

typedef struct part_run {
    uint32_t first_block, n_blocks, n_live;
    uint16_t codec; /* index in kv_codecs */
    uint8_t tier, is_cached;
} part_run;

/* Where things lie in a part; offsets in bytes. */
typedef struct part_layout {
    size_t slots; /* uint64_t [n_seqs_max] */
    size_t lists; /* part_list [n_lists] */
    size_t runs;  /* part_run [KV_MAP_RUNS_MAX], or none */
    size_t bytes;
} part_layout;

static err_t lay_out(const kv_cache *cache, const kv_map_query *query, part_layout *out)
{
    size_t bytes;
    out->slots = sizeof(part_head);
    TRY(size_mul(cache->limits.n_seqs_max, sizeof(uint64_t), &bytes));
    TRY(size_add(out->slots, bytes, &out->lists));
    TRY(size_mul(cache->n_lists, sizeof(part_list), &bytes));
    TRY(size_add(out->lists, bytes, &out->runs));
    return size_add(out->runs, query->seq != 0 ? KV_MAP_RUNS_MAX * sizeof(part_run) : 0,
                    &out->bytes);
}

err_t kv_map_parts_bytes(const kv_cache *cache, const kv_map_query *query, size_t *out)
{
    part_layout layout;
    *out = 0;
    if (cache->ranks.n == 1) return ERR_OK;
    TRY(lay_out(cache, query, &layout));
    return size_mul(layout.bytes, cache->ranks.n, out);
}

static uint16_t codec_index(const kv_codec *codec)
{
    uint16_t i = 0;
    while (kv_codecs[i] != codec)
        i++;
    return i;
}

static void write_part(const kv_map *map, const part_layout *layout, uint8_t *part)
{
    part_head *head = (part_head *)(void *)part;
    uint64_t *slots = (uint64_t *)(void *)(part + layout->slots);
    part_list *lists = (part_list *)(void *)(part + layout->lists);
    part_run *runs = (part_run *)(void *)(part + layout->runs);
    *head =
        (part_head){.stats = map->stats, .n_runs = map->n_runs, .is_truncated = map->is_truncated};
    for (uint32_t s = 0; s < map->n_seqs; s++)
        slots[s] = map->seqs[s].slots_live;
    for (uint32_t i = 0; i < map->n_lists; i++) {
        const kv_map_list *list = &map->lists[i];
        lists[i] = (part_list){.slots_live = list->slots_live,
                               .seq_slots_live = list->seq_slots_live,
                               .n_pages = list->n_pages,
                               .first_run = list->first_run,
                               .n_runs = list->n_runs};
    }
    for (uint32_t i = 0; i < map->n_runs; i++) {
        const kv_map_run *run = &map->runs[i];
        runs[i] = (part_run){.first_block = run->first_block,
                             .n_blocks = run->n_blocks,
                             .n_live = run->n_live,
                             .codec = codec_index(run->codec),
                             .tier = (uint8_t)run->tier,
                             .is_cached = run->is_cached};
    }
}

/* What is counted by where it lies. Sequences and cached objects are the same everywhere. */
static void add_stats(const kv_stats *from, kv_stats *sum)
{
    sum->pool_budget_bytes += from->pool_budget_bytes;
    sum->slab_bytes += from->slab_bytes;
    sum->table_bytes += from->table_bytes;
    sum->ring_bytes += from->ring_bytes;
    sum->observed_bytes += from->observed_bytes;
    sum->staging_bytes += from->staging_bytes;
    sum->view_bytes += from->view_bytes;
    sum->pages_total += from->pages_total;
    sum->pages_used += from->pages_used;
    sum->pages_cached += from->pages_cached;
    sum->pages_free += from->pages_free;
    sum->used_bytes += from->used_bytes;
    sum->slots_live += from->slots_live;
}

/* Appends a run of another rank's part to the map. */
static void take_run(const part_run *from, kv_map *map)
{
    map->runs[map->n_runs++] = (kv_map_run){.first_block = from->first_block,
                                            .n_blocks = from->n_blocks,
                                            .codec = kv_codecs[from->codec],
                                            .n_live = from->n_live,
                                            .tier = (kv_tier)from->tier,
                                            .is_cached = from->is_cached != 0};
}

static void merge_counts(const kv_cache *cache, const part_layout *layout, kv_map *map)
{
    for (uint32_t r = 0; r < cache->ranks.n; r++) {
        const uint8_t *part = map->parts + r * layout->bytes;
        const part_head *head = (const part_head *)(const void *)part;
        const uint64_t *slots = (const uint64_t *)(const void *)(part + layout->slots);
        if (r == cache->ranks.rank) continue;
        add_stats(&head->stats, &map->stats);
        map->is_truncated = map->is_truncated || head->is_truncated;
        for (uint32_t s = 0; s < map->n_seqs; s++)
            map->seqs[s].slots_live += slots[s];
    }
}

/* A list is its shard's owner's; the runs are put together anew, in the order of lists. */
static void merge_lists(const kv_cache *cache, const part_layout *layout, kv_map *map)
{
    map->n_runs = 0;
    for (uint32_t i = 0; i < map->n_lists; i++) {
        kv_map_list *list = &map->lists[i];
        const uint8_t *part = map->parts + list->shard % cache->ranks.n * layout->bytes;
        const part_list *from = (const part_list *)(const void *)(part + layout->lists) + i;
        const part_run *runs = (const part_run *)(const void *)(part + layout->runs);
        list->slots_live = from->slots_live;
        list->seq_slots_live = from->seq_slots_live;
        list->n_pages = from->n_pages;
        list->first_run = map->n_runs;
        for (uint32_t j = 0; j < from->n_runs && map->n_runs < KV_MAP_RUNS_MAX; j++)
            take_run(&runs[from->first_run + j], map);
        list->n_runs = map->n_runs - list->first_run;
        map->is_truncated = map->is_truncated || list->n_runs < from->n_runs;
    }
}

void kv_map_merge(const kv_cache *cache, kv_map *map)
{
    part_layout layout;
    if (cache->ranks.n == 1) return;
    const err_t err = lay_out(cache, &map->query, &layout);
    assert(err == ERR_OK); /* it was asked when the map was opened */
    uint8_t *own = map->parts + cache->ranks.rank * layout.bytes;
    write_part(map, &layout, own);
    if (!kv_ranks_gather(cache, own, map->parts, layout.bytes)) return;
    merge_counts(cache, &layout, map);
    merge_lists(cache, &layout, map);
}
