/* kvcache/prefix_share.c - what a sequence leaves to those after it; see prefix_cache.h. */
#include "kvcache/prefix_cache.h"

#include "kvcache/away.h"
#include "kvcache/commit.h"
#include "kvcache/prefix_ranks.h"
#include "kvcache/scatter.h"

#include <string.h>

/* The object sees the first n_blocks blocks of the sequence, the sinks in block 0 included. */
static void copy_table(const kv_seq *seq, uint32_t object, uint32_t n_blocks)
{
    kv_cache *cache = seq->cache;
    kv_table *table = &cache->prefix.objects[object].table;
    const kv_pages *pages = kv_pool_pages(cache->pool);
    for (uint32_t list = 0; list < table->n_lists; list++) {
        table->marks[list] = seq->table.marks[list];
        table->marks[list].tail = KV_PAGE_NONE;
        for (uint32_t b = 0; b < n_blocks; b++) {
            const uint32_t page = kv_table_page(&seq->table, list, b);
            if (page == KV_PAGE_NONE) continue;
            if (seq->table.marks[list].tail != KV_PAGE_NONE) table->marks[list].tail = b;
            kv_pool_hold(cache->pool, page, KV_HELD_BY_OBJECT);
            table->page[kv_table_entry(table, list, b)] = page;
            kv_table_see(table, list, b, kv_slot_mask(pages->n_slots[page]));
        }
    }
    (void)kv_scatter_cut(cache, table, n_blocks * cache->page_tokens, KV_HELD_BY_OBJECT);
}

/* May all ranks leave the first n_tokens of the sequence, and is there nothing yet that has them on all? */
static bool is_new(const kv_seq *seq, const uint32_t *tokens, uint32_t n_tokens)
{
    kv_cache *cache = seq->cache;
    const bool may_leave = n_tokens >= cache->page_tokens; /* else it could not be found */
    const uint32_t covering =
        may_leave ? kv_prefix_covering(cache, seq->seed, tokens, n_tokens) : KV_OBJECT_NONE;
    return kv_prefix_agree_new(cache, may_leave, covering);
}

/* A finished object of the whole blocks that a sequence has in pages: it will evict some of their entries,
 * so the object cannot borrow. */
static void share_blocks(kv_seq *seq, const uint32_t *tokens, uint32_t n_tokens)
{
    kv_cache *cache = seq->cache;
    const uint32_t page_tokens = cache->page_tokens;
    const uint32_t n_blocks = (uint32_t)min_size(n_tokens / page_tokens, seq->n_blocks);
    const kv_prefix_source self = {.table = &seq->table, .n_blocks = n_blocks};
    n_tokens = n_blocks * page_tokens;
    const bool is_whole = !kv_seq_is_lost(seq) && !seq->is_thinned && n_blocks > 0 &&
                          kv_prefix_serves(cache, &self, n_tokens);
    if (!is_new(seq, tokens, is_whole ? n_tokens : 0)) return;
    if (!kv_scatter_find_room_for_tails(seq)) return;
    const uint32_t object = kv_prefix_add(seq, tokens, n_tokens);
    if (object == KV_OBJECT_NONE) return;
    kv_table *table = &cache->prefix.objects[object].table;
    if (kv_table_grow(table, n_blocks) != ERR_OK) {
        (void)kv_prefix_drop(cache, object);
        return;
    }
    cache->prefix.bytes += kv_table_bytes(table);
    copy_table(seq, object, n_blocks);
    const bool is_own = kv_scatter_own_tails(seq); /* the object has them now */
    assert(is_own);
    kv_prefix_drop_contained(cache, object);
}

void kv_prefix_share(kv_seq *seq, const uint32_t *tokens, uint32_t n_tokens)
{
    kv_cache *cache = seq->cache;
    assert(n_tokens <= seq->length);
    if (kv_methods_evict(&seq->methods)) {
        share_blocks(seq, tokens, n_tokens);
        return;
    }
    if (seq->object != KV_OBJECT_NONE) (void)kv_prefix_drop(cache, seq->object);
    if (!is_new(seq, tokens, kv_seq_is_lost(seq) ? 0 : n_tokens)) return;
    seq->object = kv_prefix_add(seq, tokens, n_tokens);
    if (seq->object != KV_OBJECT_NONE) cache->prefix.objects[seq->object].seq = seq;
}

void kv_prefix_shorten(kv_seq *seq)
{
    if (seq->object == KV_OBJECT_NONE) return;
    kv_cache *cache = seq->cache;
    kv_prefix_object *o = &cache->prefix.objects[seq->object];
    if (o->n_tokens <= seq->length) return;
    o->n_tokens = seq->length;
    const uint32_t n_keys = seq->length / cache->page_tokens;
    if (n_keys == 0) {
        (void)kv_prefix_drop(cache, seq->object);
    } else if (n_keys < cache->prefix.index.keys[seq->object].n_keys) {
        kv_prefix_index_cut(&cache->prefix.index, seq->object, n_keys);
    }
}

/* Writes the ring to pages, encoded as all pages before it, as far as there is room; returns the tokens that are in pages then. */
static uint32_t flush_ring(kv_seq *seq)
{
    kv_cache *cache = seq->cache;
    const uint32_t n_blocks = (seq->length + cache->page_tokens - 1) / cache->page_tokens;
    for (uint32_t end = n_blocks; end > seq->n_blocks; end--) {
        const kv_goal goal = {.length = seq->length,
                              .window_length = seq->length,
                              .n_blocks = end,
                              .n_coded = seq->methods.codec->is_exact ? 0 : end};
        memset(cache->need, 0, cache->n_classes * sizeof *cache->need);
        kv_add_need(seq, &goal);
        if (!kv_make_room(cache)) continue; /* the last block is the one to do without */
        kv_reserve(seq, &goal);
        const kv_row row = {.seq = seq};
        kv_commit(cache, &row, 1);
        break;
    }
    return (uint32_t)min_size(seq->length, (size_t)seq->n_blocks * cache->page_tokens);
}

/* The object holds what the sequence held, the sinks in block 0 included. */
static void pass_table(kv_seq *seq, uint32_t object)
{
    kv_cache *cache = seq->cache;
    kv_table *table = &seq->table;
    for (uint32_t list = 0; list < table->n_lists; list++) {
        for (uint32_t b = 0; b < seq->n_blocks; b++) {
            const size_t entry = kv_table_entry(table, list, b);
            const uint32_t page = table->page[entry];
            if (page == KV_PAGE_NONE) continue;
            kv_pool_pass(cache->pool, page, KV_HELD_BY_SEQ, KV_HELD_BY_OBJECT);
            if (b > 0) continue;
            const uint32_t n_sinks = kv_pool_slots_below(cache->pool, page, cache->sink_tokens);
            kv_table_see(table, list, b, table->live[entry] | kv_slot_mask(n_sinks));
        }
    }
    cache->table_bytes -= kv_table_bytes(table);
    cache->prefix.bytes += kv_table_bytes(table);
    cache->prefix.objects[object].table = *table;
    *table = (kv_table){.n_lists = cache->n_lists};
    seq->n_blocks = seq->n_reserved = seq->n_coded = 0;
}

static void leave_object(kv_seq *seq, const uint32_t *tokens, uint32_t n_tokens)
{
    kv_cache *cache = seq->cache;
    if (!is_new(seq, tokens, n_tokens)) return;
    n_tokens = (uint32_t)min_size(n_tokens, flush_ring(seq));
    if (n_tokens < cache->page_tokens) return;
    const uint32_t object = kv_prefix_add(seq, tokens, n_tokens);
    if (object == KV_OBJECT_NONE) return;
    pass_table(seq, object);
    kv_prefix_drop_contained(cache, object);
}

void kv_prefix_forget(kv_seq *seq)
{
    if (seq->object != KV_OBJECT_NONE) (void)kv_prefix_drop(seq->cache, seq->object);
}

/* A sequence that closes, cut to its first n_tokens or, over ranks, which do not give entries back to rings,
 * to the whole blocks of them. Returns the tokens left; 0: a window has passed what they need. */
static uint32_t cut_back(kv_seq *seq, uint32_t n_tokens)
{
    const kv_cache *cache = seq->cache;
    const uint32_t n_blocks = n_tokens / cache->page_tokens;
    const kv_prefix_source self = {.table = &seq->table, .seq = seq, .n_blocks = seq->n_blocks};
    if (cache->ranks.n == 1) return kv_seq_truncate(seq, n_tokens);
    if (n_blocks < seq->n_blocks) n_tokens = n_blocks * cache->page_tokens;
    if (!kv_prefix_serves(cache, &self, n_tokens)) return 0;
    if (n_blocks < seq->n_blocks) kv_seq_cut_pages(seq, n_blocks);
    seq->length = n_tokens;
    return n_tokens;
}

void kv_prefix_leave(kv_seq *seq, const uint32_t *tokens)
{
    uint32_t n_tokens = tokens != NULL && !kv_seq_is_lost(seq) ? seq->length : 0;
    if (tokens == NULL && seq->object != KV_OBJECT_NONE) {
        const kv_prefix_object *running = &seq->cache->prefix.objects[seq->object];
        tokens = running->tokens; /* only the prompt's ids are known */
        n_tokens = cut_back(seq, running->n_tokens);
    }
    leave_object(seq, tokens, n_tokens);
    kv_prefix_forget(seq);
}
