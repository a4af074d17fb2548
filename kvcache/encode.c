/* kvcache/encode.c - see encode.h. */
#include "kvcache/encode.h"

#include "kvcache/away.h"
#include "kvcache/basis.h"
#include "kvcache/device_commit.h"
#include "kvcache/heat.h"
#include "kvcache/key_box.h"
#include "kvcache/kv_replay.h"
#include "kvcache/observed.h"
#include "kvcache/page_bias.h"
#include "kvcache/ranks.h"
#include "kvcache/run_box.h"
#include "kvcache/scatter.h"

/* ---- goals --------------------------------------------------------------------------------------- */

kv_goal kv_goal_at(const kv_seq *seq, uint32_t length)
{
    const kv_cache *cache = seq->cache;
    kv_goal goal = {
        .length = length, .window_length = length, .n_blocks = kv_blocks_left(cache, length)};
    if (seq->methods.codec->is_exact) return goal;
    const uint32_t since = length % cache->section_tokens;
    const bool is_prompt = length < seq->n_prompt_tokens;
    goal.n_coded = kv_blocks_left(cache, is_prompt ? length - since : length);
    if (goal.n_coded < seq->n_coded) goal.n_coded = seq->n_coded; /* of a prefix that was taken */
    return goal;
}

void kv_need_blocks(const kv_cache *cache, const kv_methods *methods, uint32_t layer,
                    uint64_t n_blocks, uint64_t *need)
{
    n_blocks = kv_own_blocks_max(cache, layer, n_blocks);
    const bool is_exact = methods->codec->is_exact, is_raw = is_exact || kv_methods_replay(methods);
    const uint64_t n_section = kv_section_blocks(cache);
    const uint64_t n_raw = is_raw || n_blocks < n_section ? n_blocks : n_section;
    need[cache->layer_class[layer]] +=
        kv_pages_most(cache, layer, n_raw) * cache->n_kv_heads[layer];
    if (is_exact) return;
    if (methods->codec->is_mixed) {
        kv_heat_need_blocks(cache, methods, layer, n_blocks, need);
        return;
    }
    need[kv_coded_class(cache, methods, layer)] += n_blocks * cache->n_kv_heads[layer];
    if (methods->codec->has_own_bases) kv_basis_need_blocks(cache, layer, n_blocks, need);
}

bool kv_goal_encodes(const kv_cache *cache, const kv_goal *goal, uint32_t block)
{
    return block < goal->n_coded && (block > 0 || cache->sink_tokens == 0);
}

/* The next length above seq->length at which more is encoded. */
static uint64_t next_change(const kv_seq *seq)
{
    const kv_cache *cache = seq->cache;
    const uint32_t length = seq->length;
    if (length < seq->n_prompt_tokens &&
        kv_replay_is_due(cache, &seq->methods, seq->n_prompt_tokens))
        return seq->n_prompt_tokens;
    if (length < seq->n_prompt_tokens) {
        const uint64_t section =
            (length / cache->section_tokens + 1) * (uint64_t)cache->section_tokens;
        return section < seq->n_prompt_tokens ? section : seq->n_prompt_tokens;
    }
    return cache->window_tokens +
           ((uint64_t)kv_blocks_left(cache, length) + 1) * cache->page_tokens;
}

uint32_t kv_seq_step_tokens_max(const kv_seq *seq)
{
    if (seq->methods.codec->is_exact && !kv_methods_evict(&seq->methods)) return UINT32_MAX;
    return (uint32_t)(next_change(seq) - seq->length);
}

/* ---- one page ------------------------------------------------------------------------------------ */

attn_span kv_page_decode(const kv_cache *cache, const kv_page_place *at, const uint8_t *data,
                         uint32_t n_slots, uint8_t *scratch)
{
    const kv_load_args args = {
        .layout = kv_layout_of(cache, at->page),
        .page = data,
        .n_slots = n_slots,
        .scratch = scratch,
        .bases = kv_page_bases(cache, at, (float *)(void *)(scratch + cache->bases_offset))};
    return kv_codec_of(cache, at->page)->load(&args);
}

attn_span kv_page_load(const kv_cache *cache, const kv_page_place *at, uint32_t n_slots,
                       uint8_t *scratch)
{
    return kv_page_decode(cache, at, kv_pool_data(cache->pool, at->page), n_slots, scratch);
}

void kv_page_box_write(const kv_cache *cache, const kv_page_place *at, uint32_t worker)
{
    if (!cache->has_boxes) return;
    const attn_span span = kv_page_load(cache, at, kv_pool_pages(cache->pool)->n_slots[at->page],
                                        cache->decoded + worker * cache->decoded_bytes);
    const kv_box_keys keys = {.spans = &span,
                              .n_spans = 1,
                              .n_left_out = kv_page_sinks(cache, at->page),
                              .is_rounded = kv_is_coded_page(cache, at->page)};
    kv_box_write(&cache->heads[at->layer], &keys, kv_pool_box(cache->pool, at->page));
}

/* NULL if the codec does not ask, or nothing is known. */
static const float *find_q_norm(const kv_seq *seq, const kv_page_place *at,
                                float memory[ATTN_CODED_DIM_MAX])
{
    if (kv_codec_of(seq->cache, at->page)->n_queries == 0) return NULL;
    assert(seq->cache->layer[at->layer].k_dim <= ATTN_CODED_DIM_MAX);
    return kv_observed_q_norm(seq, at->layer, at->head, memory) ? memory : NULL;
}

void kv_page_write(const kv_seq *seq, const kv_page_place *at, const attn_span *spans,
                   uint32_t n_spans, uint32_t worker)
{
    const kv_cache *cache = seq->cache;
    float q_norm[ATTN_CODED_DIM_MAX];
    uint8_t *scratch = cache->decoded + worker * cache->decoded_bytes;
    const kv_seal_args args = {
        .layout = kv_layout_of(cache, at->page),
        .spans = spans,
        .n_spans = n_spans,
        .page = kv_pool_data(cache->pool, at->page),
        .q_norm = find_q_norm(seq, at, q_norm),
        .v_weight = kv_value_weight(cache, at->layer, at->head),
        .bases = kv_page_bases(cache, at, (float *)(void *)(scratch + cache->bases_offset)),
    };
    kv_codec_of(cache, at->page)->seal(&args);
}

void kv_page_seal(const kv_seq *seq, const kv_page_place *at, const attn_span *spans,
                  uint32_t n_spans, uint32_t worker)
{
    kv_page_write(seq, at, spans, n_spans, worker);
    kv_page_box_write(seq->cache, at, worker);
}

/* ---- encoding ------------------------------------------------------------------------------------ */

/* Blocks that have raw pages now and are to be encoded. The page with the sinks need not stay raw in a
 * thinned sequence, which nobody takes a prefix from. */
static uint32_t first_to_encode(const kv_seq *seq)
{
    if (seq->is_thinned) return 0;
    return seq->n_coded == 0 && seq->cache->sink_tokens > 0 ? 1 : seq->n_coded;
}

/* Pages of a head of a scattered layer that will be encoded, at most. All positions of each lie in the goal's
 * blocks, so there are no more than blocks, with those that are encoded now. */
static uint32_t n_to_encode_scattered(const kv_seq *seq, const kv_goal *goal, uint32_t layer,
                                      uint32_t head)
{
    const kv_cache *cache = seq->cache;
    uint32_t n_raw = kv_pages_to_open(cache, layer, goal->n_blocks - seq->n_blocks);
    uint32_t n_coded = 0;
    kv_page_at at;
    kv_walk walk;
    kv_walk_begin(&walk, cache, &seq->table, layer, head, seq->n_blocks);
    while (kv_walk_next(&walk, &at))
        *(kv_is_coded_page(cache, at.page) ? &n_coded : &n_raw) += 1;
    const uint32_t n_most = goal->n_coded > n_coded ? goal->n_coded - n_coded : 0;
    return (uint32_t)min_size(n_raw, n_most);
}

/* Raw pages of a head that will be encoded, as far as they are there. */
static uint32_t n_to_encode(const kv_seq *seq, const kv_goal *goal, uint32_t layer, uint32_t head)
{
    const kv_cache *cache = seq->cache;
    const uint32_t end = (uint32_t)min_size(goal->n_coded, seq->n_blocks);
    uint32_t n = 0;
    for (uint32_t b = first_to_encode(seq); b < end; b++) {
        if (!seq->is_thinned && kv_block_passed(cache, layer, b, goal->window_length))
            continue; /* freed before */
        const uint32_t page = kv_table_page(&seq->table, kv_home_list(cache, layer, head, b), b);
        n += page != KV_PAGE_NONE && !kv_is_coded_page(cache, page);
    }
    return n;
}

/* Blocks of the step that get pages in the layer, and are encoded when it ends. */
static uint32_t n_new_to_encode(const kv_seq *seq, const kv_goal *goal, uint32_t layer)
{
    uint32_t n = 0;
    for (uint32_t b = seq->n_blocks; b < goal->n_blocks; b++) {
        n += !kv_block_passed(seq->cache, layer, b, goal->window_length) &&
             kv_goal_encodes(seq->cache, goal, b) && kv_is_own_block(seq->cache, b);
    }
    return n;
}

/* Adds the pages of one layer. Those of the step's blocks that are encoded at once are counted elsewhere. */
static void need_layer(const kv_seq *seq, const kv_goal *goal, uint32_t layer)
{
    const kv_cache *cache = seq->cache;
    const bool waits = kv_codec_waits(seq->methods.codec);
    const uint32_t n_new = waits ? n_new_to_encode(seq, goal, layer) : 0;
    for (uint32_t h = 0; h < cache->n_kv_heads[layer]; h++) {
        const uint32_t n_raw = cache->scatters[layer] ? n_to_encode_scattered(seq, goal, layer, h)
                                                      : n_to_encode(seq, goal, layer, h) + n_new;
        if (seq->methods.codec->is_mixed) {
            kv_heat_need(seq, layer, h, n_raw);
        } else {
            cache->need[kv_coded_class(cache, &seq->methods, layer)] += n_raw;
        }
    }
}

void kv_encode_need(const kv_seq *seq, const kv_goal *goal)
{
    const kv_cache *cache = seq->cache;
    if (goal->n_coded <= seq->n_coded) return;
    if (seq->methods.codec->has_own_bases) kv_basis_need(seq, goal->n_coded);
    for (uint32_t l = 0; l < cache->n_layers; l++)
        need_layer(seq, goal, l);
}

void kv_encode_count(kv_cache *cache, uint32_t layer, uint32_t page)
{
    cache->stats.pages_encoded++;
    cache->stats.encoded_raw_bytes += cache->layout[cache->layer_class[layer]].page_bytes;
    cache->stats.encoded_bytes += kv_layout_of(cache, page)->page_bytes;
}

static void seal_jobs(void *ctx, size_t begin, size_t end, uint32_t worker)
{
    const kv_cache *cache = ctx;
    const kv_pages *pages = kv_pool_pages(cache->pool);
    for (size_t i = begin; i < end; i++) {
        const kv_sealing *sealing = &cache->sealings[i];
        if (kv_view_made(cache, sealing->to)) continue;
        const kv_page_place from = {sealing->layer, sealing->head, sealing->from};
        const kv_page_place to = {sealing->layer, sealing->head, sealing->to};
        const attn_span span =
            kv_seq_load_page(sealing->seq, &from, pages->n_slots[sealing->from], worker);
        kv_page_seal(sealing->seq, &to, &span, 1, worker);
    }
}

static void seal_all(kv_cache *cache, uint32_t n)
{
    kv_view_seal(cache, n);
    parallel_for(cache->d->pool, n, 4, seal_jobs, cache);
    for (uint32_t i = 0; i < n; i++)
        (void)kv_pool_drop(cache->pool, cache->sealings[i].from, KV_HELD_BY_SEQ);
}

/* The table sees the new page from now on, with the slots that it saw of the old one. */
static uint32_t replace_page(kv_seq *seq, uint32_t layer, size_t entry, uint32_t page_class)
{
    kv_cache *cache = seq->cache;
    const kv_pages *pages = kv_pool_pages(cache->pool);
    const uint32_t from = seq->table.page[entry];
    const uint32_t to = kv_pool_alloc_page(cache->pool, page_class, KV_HELD_BY_SEQ);
    assert(to != KV_PAGE_NONE);
    kv_pool_rewrite(cache->pool, to, pages->positions + (size_t)from * cache->page_tokens,
                    pages->n_slots[from], pages->owner[from]);
    kv_pool_set_biases(cache->pool, to, kv_pool_biases(cache->pool, from));
    if (seq->methods.codec->is_mixed)
        *kv_pool_importance(cache->pool, to) = *kv_pool_importance(cache->pool, from);
    if (seq->methods.codec->has_own_bases)
        kv_pool_lean(cache->pool, to, cache->own_bases.page[entry / seq->table.capacity]);
    kv_table_replace(&seq->table, (uint32_t)(entry / seq->table.capacity),
                     (uint32_t)(entry % seq->table.capacity), to);
    kv_encode_count(cache, layer, to);
    return to;
}

/* Full, raw, not where a cached prefix keeps sinks (from a thinned sequence nobody takes one), and with no
 * position from block `end` on. */
static bool is_to_encode(const kv_seq *seq, uint32_t page, uint32_t end)
{
    const kv_cache *cache = seq->cache;
    const kv_pages *pages = kv_pool_pages(cache->pool);
    return pages->n_slots[page] == cache->page_tokens && !kv_is_coded_page(cache, page) &&
           (seq->is_thinned || kv_page_sinks(cache, page) == 0) &&
           kv_last_position(cache, page) / cache->page_tokens < end;
}

bool kv_encodes(const kv_seq *seq, uint32_t layer, const kv_page_at *at, const kv_encoded *blocks)
{
    const kv_cache *cache = seq->cache;
    if (at->page == KV_PAGE_NONE || kv_is_coded_page(cache, at->page)) return false;
    if (cache->scatters[layer]) return is_to_encode(seq, at->page, blocks->end);
    return at->block >= blocks->first && at->block < blocks->end;
}

/* Pages on their way, encoded whenever there are KV_SEALING_MAX. */
static void add_sealing(kv_seq *seq, const kv_page_place *from, size_t entry, uint32_t page_class,
                        uint32_t *n)
{
    kv_cache *cache = seq->cache;
    const uint32_t to = replace_page(seq, from->layer, entry, page_class);
    cache->sealings[(*n)++] = (kv_sealing){from->layer, from->head, from->page, to, seq};
    if (*n < KV_SEALING_MAX) return;
    seal_all(cache, *n);
    *n = 0;
}

/* The head's raw pages of these blocks. */
static void encode_raw(kv_seq *seq, uint32_t layer, uint32_t head, const kv_encoded *blocks,
                       uint32_t *n)
{
    const kv_cache *cache = seq->cache;
    const uint32_t page_class = kv_coded_class(cache, &seq->methods, layer);
    kv_page_at at;
    kv_walk walk;
    kv_walk_begin(&walk, cache, &seq->table, layer, head, seq->n_blocks);
    kv_walk_skip(&walk, blocks->first);
    while (kv_walk_next(&walk, &at)) {
        if (!kv_encodes(seq, layer, &at, blocks)) continue;
        const size_t entry =
            kv_table_entry(&seq->table, kv_list(cache, layer, head, at.shard), at.block);
        add_sealing(seq, &(kv_page_place){layer, head, at.page}, entry, page_class, n);
    }
}

/* The same under a mixed codec, and those that have become colder. */
static void encode_by_heat(kv_seq *seq, uint32_t layer, uint32_t head, const kv_encoded *blocks,
                           uint32_t *n)
{
    const kv_cache *cache = seq->cache;
    const kv_heats *heats = &cache->heats;
    kv_heat_choose(seq, layer, head, blocks);
    for (uint32_t i = 0; i < heats->n_pages; i++) {
        const kv_page_at *at = &heats->pages[i].at;
        const size_t entry =
            kv_table_entry(&seq->table, kv_list(cache, layer, head, at->shard), at->block);
        if (heats->heat[i] == heats->pages[i].heat) continue;
        add_sealing(seq, &(kv_page_place){layer, head, at->page}, entry,
                    kv_heat_class(cache, layer, (kv_heat)heats->heat[i]), n);
    }
}

/* As many pages at a time as there is room to note. */
static void encode_pages(kv_seq *seq, const kv_encoded *blocks)
{
    kv_cache *cache = seq->cache;
    const bool is_mixed = seq->methods.codec->is_mixed;
    uint32_t n = 0;
    if (is_mixed) kv_heat_measure(seq, blocks);
    for (uint32_t l = 0; l < cache->n_layers; l++) {
        for (uint32_t h = 0; h < cache->n_kv_heads[l]; h++)
            (is_mixed ? encode_by_heat : encode_raw)(seq, l, h, blocks, &n);
    }
    seal_all(cache, n);
}

void kv_encode(kv_seq *seq, uint32_t end)
{
    const kv_cache *cache = seq->cache;
    const kv_encoded blocks = {first_to_encode(seq), end};
    const bool is_mixed = seq->methods.codec->is_mixed;
    if (end <= seq->n_coded) return;
    if (seq->methods.codec->has_own_bases) kv_bases_begin(seq, &blocks);
    encode_pages(seq, &blocks);
    if (seq->methods.codec->has_own_bases) kv_bases_end(seq);
    for (uint32_t l = 0; l < cache->n_layers; l++)
        kv_runs_write(seq, l, is_mixed ? 0 : seq->n_coded, end);
    seq->n_coded = end;
}

uint32_t kv_encode_taken(const kv_seq *seq)
{
    const kv_cache *cache = seq->cache;
    if (seq->methods.codec->is_exact) return 0;
    uint32_t n_coded = seq->n_blocks;
    for (uint32_t list = 0; list < cache->n_lists; list++) {
        for (uint32_t b = 0; b < seq->n_blocks; b++) {
            const uint32_t page = kv_table_page(&seq->table, list, b);
            if (page == KV_PAGE_NONE || !is_to_encode(seq, page, n_coded)) continue;
            n_coded = kv_last_position(cache, page) / cache->page_tokens;
        }
    }
    return n_coded;
}
