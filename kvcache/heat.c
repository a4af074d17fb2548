/* kvcache/heat.c - see heat.h. */
#include "kvcache/heat.h"

#include "kvcache/away.h"
#include "kvcache/compression/pikv.h"
#include "kvcache/scatter.h"

/* ---- classes ------------------------------------------------------------------------------------- */

void kv_heats_place(arena *a, const kv_cache *cache, kv_heats *out)
{
    const size_t n = kv_head_pages_max(cache);
    if (out->first_class[KV_HEAT_HOT] == KV_CLASS_NONE) return;
    out->pages = arena_take(a, n, sizeof *out->pages);
    out->importance = arena_take(a, n, sizeof *out->importance);
    out->order = arena_take(a, n, sizeof *out->order);
    out->heat = arena_take(a, n, sizeof *out->heat);
}

/* KV_HEAT_COUNT: none of them. */
static kv_heat heat_of_class(const kv_cache *cache, uint32_t layer, uint32_t page_class)
{
    uint32_t heat = 0;
    while (heat < KV_HEAT_COUNT && kv_heat_class(cache, layer, (kv_heat)heat) != page_class)
        heat++;
    return (kv_heat)heat;
}

bool kv_is_coded_class(const kv_cache *cache, const kv_methods *methods, uint32_t layer,
                       uint32_t page_class)
{
    if (methods->codec->is_mixed) return heat_of_class(cache, layer, page_class) < KV_HEAT_COUNT;
    return page_class == kv_coded_class(cache, methods, layer);
}

const kv_page_layout *kv_layout_of_coding(const kv_cache *cache, const kv_methods *methods,
                                          uint32_t layer, attn_coding coding)
{
    for (int h = 0; h < KV_HEAT_COUNT && methods->codec->is_mixed; h++) {
        const kv_page_layout *layout = &cache->layout[kv_heat_class(cache, layer, (kv_heat)h)];
        if (layout->coding == coding) return layout;
    }
    return kv_coded_layout(cache, methods, layer);
}

uint64_t kv_coded_bytes(const kv_cache *cache, const kv_methods *methods, uint32_t layer,
                        uint32_t n)
{
    uint64_t bytes = 0;
    if (!methods->codec->is_mixed)
        return n * (uint64_t)kv_coded_layout(cache, methods, layer)->page_bytes;
    for (int h = 0; h < KV_HEAT_COUNT; h++)
        bytes += kv_heat_share((kv_heat)h, n) *
                 (uint64_t)cache->layout[kv_heat_class(cache, layer, (kv_heat)h)].page_bytes;
    return bytes;
}

/* ---- room ---------------------------------------------------------------------------------------- */

void kv_heat_need_blocks(const kv_cache *cache, const kv_methods *methods, uint32_t layer,
                         uint64_t n_blocks, uint64_t *need)
{
    /* What may be encoded at once; without it at least so many of the others are cold, if no page ever goes. */
    const uint64_t n_new = kv_pages_most(cache, layer, kv_section_blocks(cache));
    const uint64_t n_old = n_blocks > n_new ? n_blocks - n_new : 0;
    const bool stays = !kv_methods_evict(methods) && cache->layer[layer].window == 0;
    const uint64_t n[KV_HEAT_COUNT] = {
        [KV_HEAT_HOT] = n_blocks - (stays ? n_old / 2 : 0),
        [KV_HEAT_COLD] = n_blocks / 2 - (stays ? n_old / 4 : 0),
        [KV_HEAT_COLDEST] = n_blocks / 4,
    };
    for (int h = 0; h < KV_HEAT_COUNT; h++)
        need[kv_heat_class(cache, layer, (kv_heat)h)] += n[h] * cache->n_kv_heads[layer];
}

void kv_heat_need(const kv_seq *seq, uint32_t layer, uint32_t head, uint32_t n_raw)
{
    const kv_cache *cache = seq->cache;
    uint32_t n[KV_HEAT_COUNT + 1] = {0}, n_all = n_raw;
    kv_page_at at;
    kv_walk walk;
    kv_walk_begin(&walk, cache, &seq->table, layer, head, seq->n_blocks);
    while (kv_walk_next(&walk, &at))
        n[heat_of_class(cache, layer, kv_pool_class(cache->pool, at.page))]++;
    for (int h = 0; h < KV_HEAT_COUNT; h++)
        n_all += n[h];
    /* Those that a window passes before may be the cold ones, and then others take their places. */
    if (cache->layer[layer].window != 0) n[KV_HEAT_COLD] = n[KV_HEAT_COLDEST] = 0;
    const uint32_t n_hot = kv_heat_share(KV_HEAT_HOT, n_all), n_cold = n_all - n_hot;
    const uint32_t n_coldest = kv_heat_share(KV_HEAT_COLDEST, n_all);
    const uint32_t had_cold = n[KV_HEAT_COLD] + n[KV_HEAT_COLDEST];
    uint64_t *need = cache->need;
    need[kv_heat_class(cache, layer, KV_HEAT_HOT)] += min_size(n_raw, n_hot);
    need[kv_heat_class(cache, layer, KV_HEAT_COLD)] += n_cold > had_cold ? n_cold - had_cold : 0;
    need[kv_heat_class(cache, layer, KV_HEAT_COLDEST)] +=
        n_coldest > n[KV_HEAT_COLDEST] ? n_coldest - n[KV_HEAT_COLDEST] : 0;
}

/* ---- choosing ------------------------------------------------------------------------------------ */

typedef struct measure_loop {
    kv_seq *seq;
    const kv_encoded *blocks;
} measure_loop;

static void measure_head(const measure_loop *loop, uint32_t layer, uint32_t head, uint32_t worker)
{
    kv_seq *seq = loop->seq;
    const kv_cache *cache = seq->cache;
    kv_page_at at;
    kv_walk walk;
    kv_walk_begin(&walk, cache, &seq->table, layer, head, seq->n_blocks);
    kv_walk_skip(&walk, loop->blocks->first);
    while (kv_walk_next(&walk, &at)) {
        if (!kv_encodes(seq, layer, &at, loop->blocks)) continue;
        const kv_page_place place = {layer, head, at.page};
        const uint32_t n_slots = kv_pool_pages(cache->pool)->n_slots[at.page];
        const attn_span span = kv_seq_load_page(seq, &place, n_slots, worker);
        *kv_pool_importance(cache->pool, at.page) = kv_page_importance(&cache->heads[layer], &span);
    }
}

/* Job i: head i mod n_kv_heads_max, if there is one, of layer i / n_kv_heads_max. */
static void measure_jobs(void *ctx, size_t begin, size_t end, uint32_t worker)
{
    const measure_loop *loop = ctx;
    const kv_cache *cache = loop->seq->cache;
    for (size_t i = begin; i < end; i++) {
        const uint32_t layer = (uint32_t)(i / cache->n_kv_heads_max);
        const uint32_t head = (uint32_t)(i % cache->n_kv_heads_max);
        if (head < cache->n_kv_heads[layer]) measure_head(loop, layer, head, worker);
    }
}

void kv_heat_measure(kv_seq *seq, const kv_encoded *blocks)
{
    const kv_cache *cache = seq->cache;
    measure_loop loop = {.seq = seq, .blocks = blocks};
    parallel_for(cache->d->pool, (size_t)cache->n_layers * cache->n_kv_heads_max, 1, measure_jobs,
                 &loop);
}

void kv_heat_choose(const kv_seq *seq, uint32_t layer, uint32_t head, const kv_encoded *blocks)
{
    kv_cache *cache = seq->cache;
    kv_heats *heats = &cache->heats;
    kv_page_at at;
    kv_walk walk;
    heats->n_pages = 0;
    kv_walk_begin(&walk, cache, &seq->table, layer, head, seq->n_blocks);
    while (kv_walk_next(&walk, &at)) {
        const bool is_raw = !kv_is_coded_page(cache, at.page);
        if (is_raw && !kv_encodes(seq, layer, &at, blocks)) continue;
        const kv_heat heat = heat_of_class(cache, layer, kv_pool_class(cache->pool, at.page));
        const uint32_t i = heats->n_pages++;
        assert(i < kv_head_pages_max(cache));
        assert(is_raw == (heat == KV_HEAT_COUNT));
        heats->pages[i] = (kv_heated){at, heat};
        heats->importance[i] = *kv_pool_importance(cache->pool, at.page);
        heats->heat[i] = is_raw ? KV_HEAT_HOT : (uint8_t)heat;
    }
    const kv_heat_args args = {
        .importance = heats->importance, .n_pages = heats->n_pages, .order = heats->order};
    kv_heat_assign(&args, heats->heat);
}
