/* kvcache/kv_queries.c - numbers about a cache, and their publication. */
#include "kvcache/encode.h"
#include "kvcache/evict.h"

void kv_publish(kv_cache *cache)
{
    kv_stats *stats = &cache->stats;
    const kv_pool_counts pool = kv_pool_count(cache->pool);
    const kv_prefix *prefix = &cache->prefix;
    stats->pool_budget_bytes = pool.budget_bytes;
    stats->slab_bytes = pool.slab_bytes;
    stats->table_bytes =
        pool.descriptor_bytes + cache->table_bytes + prefix->bytes +
        prefix->n_objects_max * (sizeof *prefix->objects + sizeof *prefix->index.keys);
    stats->ring_bytes = cache->rings.total_bytes;
    stats->staging_bytes = cache->staging.total_bytes;
    stats->pages_total = pool.pages_used + pool.pages_cached + pool.pages_free;
    stats->pages_used = pool.pages_used;
    stats->pages_cached = pool.pages_cached;
    stats->pages_free = pool.pages_free;
    stats->used_bytes = pool.used_bytes;
    stats->slots_live = pool.slots_live;
    stats->prefix_objects = prefix->n_objects;
    kv_reader_count(&cache->reader, stats);
    kv_stats_board_write(&cache->board, stats);
    paranoid_assert(kv_cache_is_sane(cache));
}

void kv_stats_read(const kv_cache *cache, kv_stats *out)
{
    kv_stats_board_read(&cache->board, out);
}

dtype kv_cache_type(const kv_cache *cache)
{
    return cache->type;
}

const kv_methods *kv_cache_methods(const kv_cache *cache)
{
    return &cache->methods;
}

bool kv_cache_wants_q_nope(const kv_cache *cache)
{
    return (cache->evict.needs & KV_SCORE_STATS) != 0;
}

err_t kv_cache_check_methods(const kv_cache *cache, const kv_methods *methods, err_info *info)
{
    if (cache->first_class[methods->codec_index] == KV_CLASS_NONE)
        return err_set(info, ERR_UNSUPPORTED, "kv-compression: the cache has no pages for %s",
                       methods->codec->name);
    if (!methods->reads_all && !cache->has_boxes)
        return err_set(info, ERR_UNSUPPORTED, "kv-routing: the cache keeps no bounds for %s",
                       methods->routing->name);
    return kv_evict_check(cache, methods, info);
}

size_t kv_cache_bytes_per_token(const kv_cache *cache)
{
    size_t bytes = 0;
    for (uint32_t l = 0; l < cache->n_layers; l++)
        bytes += cache->n_kv_heads[l] * kv_coded_layout(cache, &cache->methods, l)->page_bytes;
    return bytes / cache->page_tokens;
}

/* Adds the pages of one list, as they are and as raw ones would be. */
static void add_list(const kv_seq *seq, uint32_t layer, uint32_t list, kv_usage *usage)
{
    const kv_cache *cache = seq->cache;
    const uint64_t raw_bytes = kv_pool_share_bytes(cache->pool, cache->layer_class[layer]);
    for (uint32_t b = 0; b < seq->n_blocks; b++) {
        const uint32_t page = kv_table_page(&seq->table, list, b);
        if (!kv_block_passed(cache, layer, b, seq->length)) usage->uncompressed_bytes += raw_bytes;
        if (page == KV_PAGE_NONE) continue;
        usage->resident_bytes += kv_pool_share_bytes(cache->pool, kv_pool_class(cache->pool, page));
    }
}

void kv_seq_usage(const kv_seq *seq, kv_usage *out)
{
    const kv_cache *cache = seq->cache;
    const uint64_t own_bytes =
        kv_table_bytes(&seq->table) + cache->rings.ring_bytes + seq->observed.bytes;
    assert(seq->is_open);
    assert(!cache->step.is_open);
    *out = (kv_usage){.resident_bytes = own_bytes,
                      .uncompressed_bytes = own_bytes,
                      .pages_evicted = seq->n_pages_evicted,
                      .certificates = seq->misses.n,
                      .certificate_sum = seq->misses.sum};
    for (uint32_t l = 0; l < cache->n_layers; l++) {
        for (uint32_t h = 0; h < cache->n_kv_heads[l]; h++)
            add_list(seq, l, kv_list(cache, l, h, 0), out);
    }
}

/* What layers with a sliding window keep: everything, or what the window spans. */
typedef enum window_use { WINDOWS_KEEP_ALL, WINDOWS_FREE_PAGES } window_use;

/* Could an empty pool hold a sequence of n_blocks blocks? */
static bool could_hold(const kv_cache *cache, const kv_methods *methods, uint64_t n_blocks,
                       window_use use)
{
    uint64_t need[KV_CLASSES_MAX] = {0};
    const uint32_t page_tokens = cache->page_tokens;
    for (uint32_t l = 0; l < cache->n_layers; l++) {
        const uint64_t window = cache->layer[l].window;
        uint64_t n = n_blocks;
        if (use == WINDOWS_FREE_PAGES && window != 0) {
            /* What the window spans before a step, and what the step adds of it. */
            const uint64_t step = min_size(window, cache->limits.n_step_tokens_max);
            const uint64_t most = (window + step) / page_tokens + 3;
            if (most < n) n = most;
        }
        kv_need_blocks(cache, methods, l, n, need);
    }
    return kv_pool_could_hold(cache->pool, need);
}

uint64_t kv_cache_capacity_tokens(const kv_cache *cache, const kv_methods *methods)
{
    if (methods == NULL) methods = &cache->methods;
    uint64_t low =
        0; /* blocks that fit, and that do not: a page has KV_STRIP_ALIGN bytes or more */
    uint64_t high = kv_pool_count(cache->pool).budget_bytes / KV_STRIP_ALIGN + 1;
    while (high - low > 1) {
        const uint64_t middle = low + (high - low) / 2;
        if (could_hold(cache, methods, middle, WINDOWS_KEEP_ALL)) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return low * cache->page_tokens;
}

bool kv_cache_could_fit(const kv_cache *cache, const kv_methods *methods, uint32_t n_tokens)
{
    return n_tokens <= cache->limits.n_seq_tokens_max &&
           could_hold(cache, methods != NULL ? methods : &cache->methods,
                      kv_blocks_left(cache, n_tokens), WINDOWS_FREE_PAGES);
}
