/* kvcache/kv_queries.c - numbers about a cache, and their publication. */
#include "kvcache/basis.h"
#include "kvcache/demote.h"
#include "kvcache/device_view.h"
#include "kvcache/evict.h"
#include "kvcache/heat.h"
#include "kvcache/kv_replay.h"
#include "kvcache/ranks.h"
#include "kvcache/scatter.h"

static void count_tiers(const kv_cache *cache, kv_stats *stats)
{
    if (cache->tiers == NULL) return;
    const kv_tier_counts host = kv_pool_count_tier(cache->pool, KV_TIER_HOST);
    const kv_tier_counts file = kv_pool_count_tier(cache->pool, KV_TIER_FILE);
    const kv_tiers_counts counts = kv_tiers_count(cache->tiers);
    stats->host_budget_bytes = host.budget_bytes;
    stats->host_bytes = host.slab_bytes;
    stats->host_pages = host.n_pages;
    stats->disk_budget_bytes = counts.is_off ? 0 : file.budget_bytes;
    stats->disk_bytes = file.slab_bytes;
    stats->disk_pages = file.n_pages;
    stats->away_used_bytes = host.used_bytes + file.used_bytes;
    stats->pages_demoted = counts.pages_demoted;
    stats->pages_promoted = counts.pages_promoted;
    stats->disk_read_bytes = counts.read_bytes;
    stats->disk_read_failures = counts.read_failures;
    stats->disk_write_failures = counts.write_failures;
    kv_tiers_report(cache->tiers);
}

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
    if (cache->view != NULL) stats->staging_bytes += cache->view->memory.used_bytes;
    if (cache->view != NULL) stats->view_bytes = cache->view->device_bytes;
    stats->pages_total = pool.pages_used + pool.pages_cached + pool.pages_free;
    stats->pages_used = pool.pages_used;
    stats->pages_cached = pool.pages_cached;
    stats->pages_free = pool.pages_free;
    stats->used_bytes = pool.used_bytes;
    stats->slots_live = pool.slots_live;
    stats->prefix_objects = prefix->n_objects;
    stats->n_shards = cache->n_shards;
    stats->experts_packed = cache->experts.n_packed;
    const kv_pool_shard *shards = kv_pool_shards(cache->pool);
    for (uint32_t s = 0; s < cache->n_shards; s++) {
        stats->shards[s].pages = shards[s].n_pages;
        stats->shards[s].slots = shards[s].n_slots;
        stats->shards[s].bytes = shards[s].bytes;
    }
    kv_reader_count(cache, stats);
    count_tiers(cache, stats);
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

/* To a row of the step: no other can have a scorer that asks. */
static bool host_attends(const kv_cache *cache)
{
    return cache->view == NULL || cache->view->n_hosts > 0;
}

bool kv_cache_wants_q_nope(const kv_cache *cache)
{
    return (cache->evict.needs & KV_SCORE_STATS) != 0 && host_attends(cache);
}

bool kv_cache_wants_input_norm(const kv_cache *cache)
{
    return (cache->evict.needs & KV_SCORE_INPUT_NORM) != 0 && host_attends(cache);
}

err_t kv_cache_check_methods(const kv_cache *cache, const kv_methods *methods, err_info *info)
{
    if (cache->first_class[methods->codec_index] == KV_CLASS_NONE)
        return err_set(info, ERR_UNSUPPORTED, "kv-compression: the cache has no pages for %s",
                       methods->codec->name);
    if (!methods->reads_all && !cache->has_boxes)
        return err_set(info, ERR_UNSUPPORTED, "kv-routing: the cache keeps no bounds for %s",
                       methods->routing->name);
    TRY(kv_demote_check(cache, methods, info));
    return kv_evict_check(cache, methods, info);
}

size_t kv_cache_bytes_per_token(const kv_cache *cache)
{
    const uint32_t n_pages = 4; /* that a mixed codec's shares are whole of */
    size_t bytes = 0;
    for (uint32_t l = 0; l < cache->n_layers; l++)
        bytes += cache->n_kv_heads[l] * kv_coded_bytes(cache, &cache->methods, l, n_pages);
    return bytes / n_pages / cache->page_tokens;
}

static uint64_t page_bytes(const kv_cache *cache, uint32_t page)
{
    return kv_pool_share_bytes(cache->pool, kv_pool_class(cache->pool, page));
}

/* Adds the pages of one KV head, as they are and as raw ones would be. Over ranks these are counted at home, so
 * that the ranks' sum has them once. */
static void add_head(const kv_seq *seq, uint32_t layer, uint32_t head, kv_usage *usage)
{
    const kv_cache *cache = seq->cache;
    const uint64_t raw_bytes = kv_pool_share_bytes(cache->pool, cache->layer_class[layer]);
    for (uint32_t b = 0; b < seq->n_blocks && kv_is_home(seq); b++) {
        if (!kv_block_passed(cache, layer, b, seq->length)) usage->uncompressed_bytes += raw_bytes;
    }
    for (uint32_t s = 0; s < cache->n_shards; s++) {
        uint32_t basis = KV_PAGE_NONE; /* pages that share one follow each other */
        for (uint32_t b = 0; b < seq->n_blocks; b++) {
            const uint32_t page = kv_table_page(&seq->table, kv_list(cache, layer, head, s), b);
            if (page == KV_PAGE_NONE) continue;
            const uint32_t on = kv_pool_leans_on(cache->pool, page);
            if (on != KV_PAGE_NONE && on != basis) usage->resident_bytes += page_bytes(cache, on);
            if (on != KV_PAGE_NONE) basis = on;
            usage->resident_bytes += page_bytes(cache, page);
        }
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
                      .pages_demoted = seq->n_pages_demoted,
                      .certificates = seq->misses.n,
                      .certificate_sum = seq->misses.sum};
    for (uint32_t l = 0; l < cache->n_layers; l++) {
        for (uint32_t h = 0; h < cache->n_kv_heads[l]; h++)
            add_head(seq, l, h, out);
    }
}

/* What layers with a sliding window keep: everything, or what the window spans. */
typedef enum window_use { WINDOWS_KEEP_ALL, WINDOWS_FREE_PAGES } window_use;

/* Of a sequence that runs alone: what may not leave the pool, in blocks. A step's new ones, the sinks',
 * and under a lossy codec a section of raw ones. */
static uint64_t resident_blocks(const kv_cache *cache, const kv_methods *methods)
{
    const uint32_t page_tokens = cache->page_tokens;
    const uint64_t n_step = cache->limits.n_step_tokens_max / page_tokens + 3;
    return methods->codec->is_exact ? n_step : n_step + cache->section_tokens / page_tokens + 3;
}

/* Do n_blocks of a sequence with these needs fit with the help of the tiers? */
static bool could_spill(const kv_cache *cache, const kv_methods *methods, uint64_t n_blocks,
                        const uint64_t *need)
{
    uint64_t resident[KV_CLASSES_MAX] = {0};
    if (cache->tiers == NULL || kv_methods_evict(methods)) return false;
    const uint64_t n_resident = resident_blocks(cache, methods);
    for (uint32_t l = 0; l < cache->n_layers; l++)
        kv_need_blocks(cache, methods, l, n_blocks < n_resident ? n_blocks : n_resident, resident);
    for (uint32_t l = 0; l < cache->n_layers && methods->codec->has_own_bases; l++)
        resident[kv_basis_class(cache, l)] = need[kv_basis_class(cache, l)]; /* never demoted */
    return kv_pool_could_hold(cache->pool, resident) &&
           kv_pool_could_spill(cache->pool, need, !kv_tiers_count(cache->tiers).is_off);
}

/* Could an empty cache hold a sequence of n_blocks blocks? */
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
        kv_replay_need(cache, methods, l, n_blocks, need);
    }
    return kv_pool_could_hold(cache->pool, need) || could_spill(cache, methods, n_blocks, need);
}

uint64_t kv_cache_capacity_tokens(const kv_cache *cache, const kv_methods *methods)
{
    if (methods == NULL) methods = &cache->methods;
    uint64_t low =
        0; /* blocks that fit, and that do not: a page has KV_STRIP_ALIGN bytes or more */
    uint64_t high = 1;
    for (int t = 0; t < KV_N_TIERS; t++)
        high += kv_pool_count_tier(cache->pool, (kv_tier)t).budget_bytes / KV_STRIP_ALIGN;
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
