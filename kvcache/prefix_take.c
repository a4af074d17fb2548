/* kvcache/prefix_take.c - a new sequence takes what a cached prefix holds.
 *
 * Whole blocks that the source has in pages are taken by reference. What is left of the prefix - less
 * than a block from a finished source, up to a ring from a running one - is copied into the ring of
 * the new sequence, and the first tokens into its sinks. Either way the entries keep their bits, but
 * for encoded pages: what is copied from them is what they decode to, and what is taken by reference
 * was encoded earlier than in a sequence of its own.
 *
 * Where entries are placed one by one, the pages that are full with entries of these blocks are shared,
 * and the last page of each list, if it is not, is copied: see scatter.h. */
#include "kvcache/away.h"
#include "kvcache/demote.h"
#include "kvcache/encode.h"
#include "kvcache/kv_replay.h"
#include "kvcache/prefix_ranks.h"
#include "kvcache/ranks.h"
#include "kvcache/run_box.h"
#include "kvcache/scatter.h"

typedef struct take {
    kv_seq *seq;
    kv_prefix_source source;
    uint32_t n_tokens;
    uint32_t n_blocks; /* taken by reference */
} take;

static void take_pages(const take *t, uint32_t layer, uint32_t head)
{
    const kv_cache *cache = t->seq->cache;
    kv_table *table = &t->seq->table;
    for (uint32_t b = 0; b < t->n_blocks; b++) {
        const uint32_t list = kv_home_list(cache, layer, head, b);
        const uint32_t page = kv_table_page(t->source.table, list, b);
        if (page == KV_PAGE_NONE || kv_block_passed(cache, layer, b, t->n_tokens)) continue;
        kv_pool_hold(cache->pool, page, KV_HELD_BY_SEQ);
        table->page[kv_table_entry(table, list, b)] = page;
        uint64_t live = t->source.table->live[kv_table_entry(t->source.table, list, b)];
        if (b == 0) live &= ~kv_slot_mask(cache->sink_tokens); /* read from the ring */
        kv_table_see(table, list, b, live);
    }
}

/* Slots [0, n_slots) of the source's block, from its page or its ring; false if a window has passed
 * the page, and then no query will ask for them. */
static bool load_block(const take *t, const kv_ring_place *at, uint32_t n_slots, attn_span *out)
{
    const kv_cache *cache = t->seq->cache;
    const uint32_t block = at->position / cache->page_tokens;
    if (block >= t->source.n_blocks) {
        *out = kv_ring_span(&cache->rings, t->source.seq->ring, at, n_slots);
        return true;
    }
    const uint32_t list = kv_home_list(cache, at->layer, at->head, block);
    const uint32_t page = kv_table_page(t->source.table, list, block);
    if (page == KV_PAGE_NONE) return false;
    const kv_page_place from = {at->layer, at->head, page};
    *out = kv_seq_load_page(t->seq, &from, n_slots, 0);
    return true;
}

static void take_recent(const take *t, uint32_t layer, uint32_t head)
{
    const kv_cache *cache = t->seq->cache;
    attn_span span;
    uint32_t p = t->n_blocks * cache->page_tokens;
    if (cache->scatters[layer]) {
        const uint32_t in_pages = t->source.n_blocks * cache->page_tokens;
        const uint32_t end = (uint32_t)min_size(in_pages, t->n_tokens);
        const kv_scatter_range range = {t->source.table, layer, head, p, end};
        kv_scatter_to_ring(t->seq, &range);
        if (end > p) p = end;
    }
    for (; p < t->n_tokens; p += cache->page_tokens) {
        const kv_ring_place at = {layer, head, p};
        const uint32_t n = (uint32_t)min_size(cache->page_tokens, (size_t)t->n_tokens - p);
        if (load_block(t, &at, n, &span)) kv_ring_write(&cache->rings, t->seq->ring, &at, &span);
    }
}

static void take_sinks(const take *t, uint32_t layer, uint32_t head)
{
    const kv_cache *cache = t->seq->cache;
    const uint32_t n = (uint32_t)min_size(cache->sink_tokens, t->n_tokens);
    const kv_ring_place at = {layer, head, 0};
    attn_span span;
    if (n == 0) return;
    if (t->source.seq != NULL) {
        span = kv_ring_sink_span(&cache->rings, t->source.seq->ring, layer, head, n);
    } else if (cache->scatters[layer]) {
        const kv_scatter_range range = {t->source.table, layer, head, 0, n};
        kv_scatter_to_sinks(t->seq, &range);
        return;
    } else if (!load_block(t, &at, n, &span)) {
        return;
    }
    kv_ring_write_sinks(&cache->rings, t->seq->ring, &at, &span);
}

/* Experts are known of entries that are still in a ring. */
static void take_experts(const take *t, uint32_t layer)
{
    const kv_cache *cache = t->seq->cache;
    const uint32_t in_pages = t->source.n_blocks * cache->page_tokens;
    for (uint32_t p = t->n_blocks * cache->page_tokens; p < t->n_tokens; p++) {
        *kv_ring_expert(&cache->rings, t->seq->ring, layer, p) =
            p < in_pages ? KV_EXPERT_NONE
                         : *kv_ring_expert(&cache->rings, t->source.seq->ring, layer, p);
    }
}

static void take_all(const take *t)
{
    const kv_cache *cache = t->seq->cache;
    for (uint32_t l = 0; l < cache->n_layers; l++) {
        take_experts(t, l);
        for (uint32_t h = 0; h < cache->n_kv_heads[l]; h++) {
            if (cache->scatters[l]) {
                kv_scatter_take(t->seq, &(kv_scatter_source){t->source.table, l, h,
                                                             t->n_blocks * cache->page_tokens,
                                                             t->n_tokens});
            } else {
                take_pages(t, l, h);
            }
            take_recent(t, l, h);
            take_sinks(t, l, h);
        }
        kv_runs_write(t->seq, l, 0, t->n_blocks);
    }
    t->seq->length = t->seq->observed.first = t->n_tokens;
    t->seq->n_blocks = t->seq->n_reserved = t->n_blocks;
    t->seq->is_taken = true;
}

/* The sequence holds nothing again. */
static void give_back(kv_seq *seq)
{
    const kv_cache *cache = seq->cache;
    (void)kv_scatter_cut(cache, &seq->table, 0, KV_HELD_BY_SEQ);
    (void)kv_table_drop(&seq->table, cache->pool, 0, seq->n_blocks, KV_HELD_BY_SEQ);
    seq->length = seq->n_blocks = seq->n_reserved = seq->observed.first = 0;
    seq->is_taken = false;
}

/* A prompt that is read again is scored where it lies, and coefficients are not read for that. */
static bool has_unscorable(const kv_seq *seq)
{
    const kv_cache *cache = seq->cache;
    if (!kv_codec_is_low_rank(seq->methods.codec)) return false;
    if (!kv_replay_is_due(cache, &seq->methods, seq->n_prompt_tokens)) return false;
    for (uint32_t list = 0; list < cache->n_lists; list++) {
        for (uint32_t b = 0; b < seq->n_blocks; b++) {
            const uint32_t page = kv_table_page(&seq->table, list, b);
            if (page != KV_PAGE_NONE && kv_is_coded_page(cache, page)) return true;
        }
    }
    return false;
}

/* Over ranks, what has been copied from pages is here as far as they are. */
static bool take_from_ranks(const take *t)
{
    const kv_cache *cache = t->seq->cache;
    const uint32_t in_pages = t->source.n_blocks * cache->page_tokens;
    const bool has_ring = t->source.seq != NULL;
    const kv_ring_filling filling = {
        .seq = t->seq,
        .table = t->source.table,
        .first = t->n_blocks * cache->page_tokens,
        .end = (uint32_t)min_size(in_pages, t->n_tokens),
        .n_sinks = has_ring ? 0 : (uint32_t)min_size(cache->sink_tokens, t->n_tokens)};
    return cache->ranks.n == 1 || kv_ranks_fill_ring(&filling);
}

static uint32_t find(kv_seq *seq, const uint32_t *tokens, uint32_t n_tokens, uint32_t *n_taken)
{
    if (seq->cache->ranks.n > 1) return kv_prefix_find_common(seq, tokens, n_tokens, n_taken);
    return kv_prefix_find(seq->cache, seq->seed, tokens, n_tokens, n_taken);
}

/* What a rank cannot read is lost to all. */
static bool agree_taken(kv_seq *seq, bool is_taken)
{
    enum { TAKEN = 1, LOST = 2 };
    uint32_t all[KV_SHARDS_MAX];
    const uint32_t own = (is_taken ? TAKEN : 0) | (kv_seq_is_lost(seq) ? LOST : 0);
    if (!kv_ranks_gather(seq->cache, &own, all, sizeof own)) return false;
    for (uint32_t r = 0; r < seq->cache->ranks.n; r++) {
        is_taken = is_taken && (all[r] & TAKEN) != 0;
        if ((all[r] & LOST) != 0) kv_seq_lose(seq);
    }
    return is_taken;
}

uint32_t kv_seq_take_prefix(kv_seq *seq, const uint32_t *tokens, uint32_t n_tokens)
{
    kv_cache *cache = seq->cache;
    assert(seq->is_open);
    assert(seq->length == 0);
    assert(!cache->step.is_open);
    if (!cache->prefix_caching || seq->no_prefix_read) return 0;
    take t = {.seq = seq};
    const uint32_t object = find(seq, tokens, n_tokens, &t.n_tokens);
    cache->stats.prefix_query_tokens += n_tokens;
    if (object != KV_OBJECT_NONE && kv_seq_grow(seq, t.n_tokens) == ERR_OK) {
        kv_promote_object(cache, object, (t.n_tokens - 1) / cache->page_tokens + 1);
        t.source = kv_prefix_get_source(cache, object);
        t.n_blocks = (uint32_t)min_size(kv_blocks_kept(cache, t.n_tokens), t.source.n_blocks);
        take_all(&t);
        bool is_taken = take_from_ranks(&t);
        kv_prefix_touch(&cache->prefix, object);
        /* Copying may give up the object, too. */
        is_taken = is_taken && kv_scatter_own_tails(seq) && !has_unscorable(seq);
        if (!agree_taken(seq, is_taken)) give_back(seq);
        seq->n_coded = kv_encode_taken(seq);
        cache->stats.prefix_hit_tokens += seq->length;
    }
    kv_publish(cache);
    return seq->length;
}
