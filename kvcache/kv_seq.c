/* kvcache/kv_seq.c - sequences: open, share, cut, close. */
#include "kvcache/away.h"
#include "kvcache/kv_replay.h"
#include "kvcache/prefix_ranks.h"
#include "kvcache/ranks.h"
#include "kvcache/scatter.h"

/* Gives back what open_here took; nothing of it is counted yet. */
static void shut(kv_seq *seq)
{
    kv_cache *cache = seq->cache;
    kv_ring_give(&cache->rings, seq->ring);
    kv_observed_close(seq);
    *seq = (kv_seq){.cache = cache, .next_free = cache->free_seqs, .object = KV_OBJECT_NONE};
    cache->free_seqs = seq;
}

/* On this rank. */
static err_t open_here(kv_cache *cache, const kv_seq_options *options, kv_seq **out)
{
    kv_seq *seq = cache->free_seqs;
    if (seq == NULL) return ERR_BAD_ARGUMENT;
    kv_ring *ring = kv_ring_take(&cache->rings);
    if (ring == NULL) return ERR_NO_MEMORY;
    cache->free_seqs = seq->next_free;
    const kv_methods *methods = options->methods != NULL ? options->methods : &cache->methods;
    const bool is_alone = (kv_methods_needs(methods) & KV_SCORE_LOCAL) != 0;
    assert(kv_cache_check_methods(cache, methods, NULL) == ERR_OK);
    *seq = (kv_seq){
        .cache = cache,
        .methods = *methods,
        .is_open = true,
        .no_prefix_read = options->no_prefix_read || is_alone,
        .no_prefix_write = options->no_prefix_write || is_alone,
        .n_prompt_tokens = options->n_prompt_tokens,
        .object = KV_OBJECT_NONE,
        .seed = kv_prefix_seed(cache, methods, options->salt, options->salt_bytes),
        .table = {.n_lists = cache->n_lists,
                  .run_box_bytes = methods->routing->select_runs != NULL && !methods->reads_all
                                       ? cache->run_box_bytes
                                       : 0},
        .ring = ring,
    };
    const err_t err = kv_observed_open(seq);
    if (err == ERR_OK) *out = seq;
    if (err != ERR_OK) shut(seq);
    return err;
}

err_t kv_seq_open(kv_cache *cache, const kv_seq_options *options, kv_seq **out)
{
    kv_seq *seq = NULL;
    *out = NULL;
    assert(!cache->step.is_open);
    const err_t err = kv_ranks_agree(cache, open_here(cache, options, &seq), NULL);
    if (err != ERR_OK) {
        if (seq != NULL) shut(seq); /* another rank could not */
        return err;
    }
    seq->id = ++cache->last_id;
    seq->origin = ++cache->last_origin;
    cache->stats.seqs_open++;
    kv_publish(cache);
    *out = seq;
    return ERR_OK;
}

err_t kv_seq_grow(kv_seq *seq, uint32_t n_tokens)
{
    const uint32_t page_tokens = seq->cache->page_tokens;
    const size_t before = kv_table_bytes(&seq->table);
    TRY(kv_table_grow(&seq->table, (n_tokens + page_tokens - 1) / page_tokens));
    seq->cache->table_bytes += kv_table_bytes(&seq->table) - before;
    return kv_observed_grow(seq);
}

void kv_seq_share_prompt(kv_seq *seq, const uint32_t *tokens, uint32_t n_tokens)
{
    assert(seq->is_open);
    assert(!seq->cache->step.is_open);
    if (!seq->cache->prefix_caching || seq->no_prefix_write) return;
    kv_prefix_share(seq, tokens, n_tokens);
    kv_publish(seq->cache);
}

uint32_t kv_seq_length(const kv_seq *seq)
{
    return seq->length;
}

/* The first n_slots entries of a block go back from pages to the ring, where an unfinished block is. */
static void unseal_block(kv_seq *seq, uint32_t block, uint32_t n_slots)
{
    const kv_cache *cache = seq->cache;
    const uint32_t first = block * cache->page_tokens;
    for (uint32_t l = 0; l < cache->n_layers; l++) {
        for (uint32_t i = 0; i < n_slots; i++)
            *kv_ring_expert(&cache->rings, seq->ring, l, first + i) = KV_EXPERT_NONE;
        for (uint32_t h = 0; h < cache->n_kv_heads[l]; h++) {
            const kv_scatter_range range = {&seq->table, l, h, first, first + n_slots};
            if (cache->scatters[l]) kv_scatter_to_ring(seq, &range);
            if (cache->scatters[l]) continue;
            const uint32_t page =
                kv_table_page(&seq->table, kv_home_list(cache, l, h, block), block);
            if (page == KV_PAGE_NONE) continue; /* no query of this layer will ask for it */
            const kv_ring_place at = {l, h, first};
            const kv_page_place from = {l, h, page};
            const attn_span span = kv_seq_load_page(seq, &from, n_slots, 0);
            kv_ring_write(&cache->rings, seq->ring, &at, &span);
        }
    }
}

void kv_seq_cut_pages(kv_seq *seq, uint32_t n_blocks)
{
    kv_cache *cache = seq->cache;
    (void)kv_scatter_cut(cache, &seq->table, n_blocks * cache->page_tokens, KV_HELD_BY_SEQ);
    kv_table_drop(&seq->table, cache->pool, n_blocks, seq->n_blocks, KV_HELD_BY_SEQ);
    seq->n_blocks = seq->n_reserved = n_blocks;
    if (seq->n_coded > n_blocks) seq->n_coded = n_blocks;
}

/* The sequence begins anew. */
static void start_again(kv_seq *seq)
{
    seq->is_thinned = false;
    seq->settled_length = seq->chosen_length = seq->n_replayed = 0;
    kv_observed_forget(seq);
}

/* What has gone back to the ring from this rank's pages goes to the others', and theirs comes. */
static bool fill_ring(kv_seq *seq, uint32_t first, uint32_t end)
{
    const kv_ring_filling filling = {.seq = seq, .table = &seq->table, .first = first, .end = end};
    return seq->cache->ranks.n == 1 || kv_ranks_fill_ring(&filling);
}

/* To its first n_tokens, n_blocks blocks of them in pages. Returns what is left of it: that or nothing. */
static uint32_t cut(kv_seq *seq, uint32_t n_tokens, uint32_t n_blocks)
{
    const kv_cache *cache = seq->cache;
    if (n_blocks < seq->n_blocks) {
        for (uint32_t b = n_blocks; b < seq->n_blocks && b * cache->page_tokens < n_tokens; b++) {
            const size_t n_left = n_tokens - b * cache->page_tokens;
            unseal_block(seq, b, (uint32_t)min_size(n_left, cache->page_tokens));
        }
        const bool is_filled = fill_ring(seq, n_blocks * cache->page_tokens, n_tokens);
        if (kv_seq_is_lost(seq) || !is_filled) n_blocks = n_tokens = 0;
        kv_seq_cut_pages(seq, n_blocks);
        if (!kv_scatter_own_tails(seq) || kv_seq_is_lost(seq)) kv_seq_cut_pages(seq, n_tokens = 0);
    }
    seq->length = n_tokens;
    seq->is_replaying = false;
    if (n_tokens == 0) start_again(seq);
    kv_prefix_shorten(seq);
    return n_tokens;
}

/* Over ranks no entry can go back to rings from pages, which other ranks do not have: lengths alone say
 * whether a cut needs some, or what a window has passed. */
static bool is_cut_in_ring(const kv_seq *seq, uint32_t n_tokens)
{
    const kv_cache *cache = seq->cache;
    for (uint32_t l = 0; l < cache->n_layers; l++) {
        if (cache->layer[l].window != 0 && seq->length >= cache->layer[l].window) return false;
    }
    return kv_blocks_kept(cache, n_tokens) >= seq->n_blocks;
}

uint32_t kv_seq_truncate(kv_seq *seq, uint32_t n_tokens)
{
    kv_cache *cache = seq->cache;
    assert(seq->is_open);
    assert(!cache->step.is_open);
    assert(n_tokens <= seq->length);
    const kv_prefix_source self = {.table = &seq->table, .seq = seq, .n_blocks = seq->n_blocks};
    const bool is_served = cache->ranks.n > 1 ? is_cut_in_ring(seq, n_tokens)
                                              : kv_prefix_serves(cache, &self, n_tokens);
    if (n_tokens < seq->length && (kv_methods_evict(&seq->methods) || !is_served)) n_tokens = 0;
    if (n_tokens < seq->length) kv_observed_cut(seq, n_tokens);
    n_tokens = cut(seq, n_tokens, kv_blocks_kept(cache, n_tokens));
    seq->origin = ++cache->last_origin; /* other entries may follow */
    kv_publish(cache);
    return n_tokens;
}

/* Pages and ring are then what they were: nothing of the prompt has been encoded, or passed by a window. */
uint32_t kv_seq_end_replay(kv_seq *seq)
{
    kv_cache *cache = seq->cache;
    kv_replay_chunk chunk;
    const bool is_wanted = kv_seq_wants_replay(seq, &chunk);
    assert(is_wanted);
    assert(!cache->step.is_open);
    seq->n_replayed = chunk.end;
    uint32_t n_tokens = cut(seq, seq->n_prompt_tokens, kv_blocks_left(cache, seq->n_prompt_tokens));
    /* Another rank may have had no room. */
    if (kv_ranks_agree(cache, n_tokens > 0 ? ERR_OK : ERR_KV_FULL, NULL) != ERR_OK)
        n_tokens = cut(seq, 0, 0);
    kv_publish(cache);
    return n_tokens;
}

void kv_seq_close(kv_seq *seq, const uint32_t *tokens)
{
    kv_cache *cache = seq->cache;
    assert(seq->is_open);
    assert(!cache->step.is_open);
    cache->stats.seqs_lost += kv_seq_is_lost(seq);
    if (kv_seq_is_lost(seq)) kv_prefix_forget(seq);
    if (cache->prefix_caching && !seq->no_prefix_write && !kv_methods_evict(&seq->methods))
        kv_prefix_leave(seq, tokens);
    assert(seq->object == KV_OBJECT_NONE);
    kv_table_drop(&seq->table, cache->pool, 0, seq->n_blocks, KV_HELD_BY_SEQ);
    cache->table_bytes -= kv_table_bytes(&seq->table);
    kv_table_deinit(&seq->table);
    shut(seq);
    cache->stats.seqs_open--;
    kv_publish(cache);
}
