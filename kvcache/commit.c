/* kvcache/commit.c - see commit.h.
 *
 * Writing is one job per (row, layer), on all threads: jobs touch different strips and pages. The
 * bookkeeping of pages is done by the owner, before and after. */
#include "kvcache/commit.h"

#include "kvcache/demote.h"
#include "kvcache/device_view.h"
#include "kvcache/run_box.h"
#include "kvcache/scatter.h"

/* A commit job copies at least this much, or the loop stays on one thread. */
enum { SERIAL_BYTES_MAX = 64 * 1024 };

/* Entries [at->position, + n_slots) of this step. */
static attn_span staged_span(const kv_seq *seq, const kv_ring_place *at, uint32_t n_slots)
{
    const kv_staging *staging = &seq->cache->staging;
    assert(at->position >= seq->length);
    assert(at->position + n_slots <= seq->length + seq->n_step_tokens);
    attn_span span =
        kv_strip_span(&staging->strips.strip[at->layer],
                      kv_strips_at(&staging->strips, staging->bytes, at->layer, at->head),
                      seq->first_token + (at->position - seq->length), n_slots);
    span.first_position = at->position;
    return span;
}

uint32_t kv_recent_spans(const kv_seq *seq, const kv_ring_place *at, uint32_t n_slots,
                         attn_span out[2])
{
    const kv_cache *cache = seq->cache;
    uint32_t n = 0;
    uint32_t n_ring = 0;
    if (at->position < seq->length) {
        n_ring = (uint32_t)min_size(n_slots, (size_t)seq->length - at->position);
        out[n++] = kv_ring_span(&cache->rings, seq->ring, at, n_ring);
    }
    if (n_ring < n_slots) {
        const kv_ring_place staged = {at->layer, at->head, at->position + n_ring};
        out[n++] = staged_span(seq, &staged, n_slots - n_ring);
    }
    return n;
}

/* ---- before the step ----------------------------------------------------------------------------- */

static uint32_t page_class(const kv_seq *seq, const kv_goal *goal, uint32_t layer, uint32_t block)
{
    const kv_cache *cache = seq->cache;
    const bool is_coded =
        kv_goal_encodes(cache, goal, block) && !kv_codec_waits(seq->methods.codec);
    return is_coded ? kv_coded_class(cache, &seq->methods, layer) : cache->layer_class[layer];
}

void kv_add_need(const kv_seq *seq, const kv_goal *goal)
{
    const kv_cache *cache = seq->cache;
    for (uint32_t l = 0; l < cache->n_layers; l++) {
        uint32_t n_scattered = 0;
        for (uint32_t b = seq->n_blocks; b < goal->n_blocks; b++) {
            if (kv_block_passed(cache, l, b, goal->window_length)) continue;
            if (cache->scatters[l]) {
                n_scattered++;
                continue;
            }
            if (!kv_is_own_block(cache, b)) continue;
            cache->need[page_class(seq, goal, l, b)] += cache->n_kv_heads[l];
        }
        /* Who owns the step's entries is not known yet, so there is room for the worst. */
        cache->need[cache->layer_class[l]] +=
            (uint64_t)kv_pages_to_open(cache, l, n_scattered) * cache->n_kv_heads[l];
    }
    kv_encode_need(seq, goal);
}

bool kv_make_room(kv_cache *cache)
{
    while (!kv_demote_until_room(cache)) {
        if (kv_prefix_give_up_block(cache)) continue;
        /* Pages that an object shares with a sequence have one holder once it is gone, and may leave. */
        if (kv_may_demote(cache) && kv_prefix_give_up_object(cache)) continue;
        kv_scatter_pack(cache);
        return kv_pool_has_room(cache->pool, cache->need);
    }
    return true;
}

void kv_reserve(kv_seq *seq, const kv_goal *goal)
{
    kv_cache *cache = seq->cache;
    const uint32_t end = goal->n_blocks;
    seq->n_coded_goal = goal->n_coded;
    if (end <= seq->n_blocks) return;
    assert(end <= seq->table.capacity);
    for (uint32_t l = 0; l < cache->n_layers; l++) {
        for (uint32_t h = 0; h < cache->n_kv_heads[l] && !cache->scatters[l]; h++) {
            for (uint32_t b = seq->n_blocks; b < end; b++) {
                if (kv_block_passed(cache, l, b, goal->window_length)) continue;
                if (!kv_is_own_block(cache, b)) continue;
                const uint32_t list = kv_home_list(cache, l, h, b);
                const uint32_t page =
                    kv_pool_alloc_page(cache->pool, page_class(seq, goal, l, b), KV_HELD_BY_SEQ);
                assert(page != KV_PAGE_NONE);
                seq->table.page[kv_table_entry(&seq->table, list, b)] = page;
            }
        }
    }
    seq->n_reserved = end;
}

/* ---- after the step ------------------------------------------------------------------------------ */

typedef struct commit_loop {
    kv_cache *cache;
    const kv_row *rows;
} commit_loop;

static uint32_t block_slots(const kv_seq *seq, uint32_t block)
{
    const uint32_t end = seq->length + seq->n_step_tokens, page_tokens = seq->cache->page_tokens;
    return (uint32_t)min_size(page_tokens, (size_t)end - block * page_tokens);
}

/* The expert of a position that is not in a page yet. */
static uint16_t expert_of(const kv_seq *seq, uint32_t layer, uint32_t position)
{
    const kv_cache *cache = seq->cache;
    if (position < seq->length) return *kv_ring_expert(&cache->rings, seq->ring, layer, position);
    return cache->staging.expert[(size_t)layer * cache->limits.n_step_tokens_max +
                                 seq->first_token + (position - seq->length)];
}

/* Asks placement who owns the entries of a block. What came from a page goes to where it was. */
static void place_block(const kv_seq *seq, uint32_t layer, uint32_t block, uint32_t n_slots,
                        uint32_t *owner)
{
    kv_cache *cache = seq->cache;
    uint16_t expert[KV_PAGE_TOKENS_MAX];
    uint32_t shard[KV_PAGE_TOKENS_MAX];
    const uint32_t first = block * cache->page_tokens;
    /* What a closing sequence finds room for differs between ranks, and their maps may not. */
    const bool counts =
        cache->placement->follows_experts && (cache->ranks.n == 1 || seq->n_step_tokens > 0);
    for (uint32_t i = 0; i < n_slots; i++) {
        expert[i] = expert_of(seq, layer, first + i);
        shard[i] = cache->n_shards;
        if (expert[i] == KV_EXPERT_NONE || expert[i] < KV_EXPERT_OF_SHARD) continue;
        shard[i] = expert[i] - KV_EXPERT_OF_SHARD;
        expert[i] = KV_EXPERT_NONE;
    }
    const kv_place_args args = {.layer = layer,
                                .n_shards = cache->n_shards,
                                .page_tokens = cache->page_tokens,
                                .first_position = first,
                                .n_slots = n_slots,
                                .expert = expert,
                                .expert_shard = kv_expert_shards(&cache->experts, layer)};
    cache->placement->place(&args, owner);
    for (uint32_t i = 0; i < n_slots; i++) {
        if (shard[i] < cache->n_shards) owner[i] = shard[i];
        assert(owner[i] < cache->n_shards);
        if (counts && expert[i] != KV_EXPERT_NONE)
            kv_expert_map_count(&cache->experts, layer, expert[i]);
    }
}

/* Notes slots, positions and owner of a block's reserved pages, and which slots this sequence sees. */
static void describe_block(kv_seq *seq, uint32_t layer, uint32_t block, const uint32_t *owner)
{
    kv_cache *cache = seq->cache;
    const uint32_t n_slots = block_slots(seq, block);
    uint64_t live = kv_slot_mask(n_slots);
    if (block == 0) live &= ~kv_slot_mask(cache->sink_tokens); /* read from the ring */
    for (uint32_t i = 0; i < n_slots; i++)
        assert(owner[i] == kv_block_shard(cache->n_shards, block));
    for (uint32_t h = 0; h < cache->n_kv_heads[layer]; h++) {
        const uint32_t list = kv_home_list(cache, layer, h, block);
        const uint32_t page = kv_table_page(&seq->table, list, block);
        if (page == KV_PAGE_NONE)
            continue; /* the layer's window has passed it, or another rank's */
        const uint32_t page_class = kv_pool_class(cache->pool, page);
        kv_pool_fill(cache->pool, page, block * cache->page_tokens, n_slots,
                     kv_choose_owner(cache, owner[0], page_class));
        kv_count_spilled(cache, owner[0], page, n_slots);
        kv_table_see(&seq->table, list, block, live);
        cache->stats.pages_committed++;
        if (kv_is_coded_page(cache, page)) kv_encode_count(cache, layer, page);
    }
}

static void describe_pages(kv_seq *seq)
{
    const kv_cache *cache = seq->cache;
    const uint32_t length =
        seq->is_replaying ? seq->n_prompt_tokens : seq->length + seq->n_step_tokens;
    uint32_t owner[KV_PAGE_TOKENS_MAX];
    for (uint32_t b = seq->n_blocks; b < seq->n_reserved; b++) {
        for (uint32_t l = 0; l < cache->n_layers; l++) {
            place_block(seq, l, b, block_slots(seq, b), owner);
            if (!cache->scatters[l]) {
                describe_block(seq, l, b, owner);
            } else if (kv_block_passed(cache, l, b, length)) {
                kv_scatter_skip(seq, l, b);
            } else {
                kv_scatter_append(seq, l, b, owner, block_slots(seq, b));
            }
        }
    }
}

static void seal_page(const kv_seq *seq, uint32_t layer, uint32_t head, uint32_t block,
                      uint32_t worker)
{
    const kv_cache *cache = seq->cache;
    const uint32_t page =
        kv_table_page(&seq->table, kv_home_list(cache, layer, head, block), block);
    if (page == KV_PAGE_NONE || kv_view_made(cache, page)) return;
    attn_span spans[2];
    const kv_ring_place at = {layer, head, block * cache->page_tokens};
    const uint32_t n_spans = kv_recent_spans(seq, &at, block_slots(seq, block), spans);
    kv_page_seal(seq, &(kv_page_place){layer, head, page}, spans, n_spans, worker);
}

/* Copies staged positions [first, end) of one head to the ring. */
static void stage_to_ring(const kv_seq *seq, uint32_t layer, uint32_t head, uint32_t first,
                          uint32_t end)
{
    const kv_cache *cache = seq->cache;
    const uint32_t page_tokens = cache->page_tokens;
    for (uint32_t p = first; p < end;) {
        const uint32_t n = (uint32_t)min_size(page_tokens - p % page_tokens, (size_t)end - p);
        const kv_ring_place at = {layer, head, p};
        const attn_span staged = staged_span(seq, &at, n);
        kv_ring_write(&cache->rings, seq->ring, &at, &staged);
        p += n;
    }
}

/* Sinks first, wherever they are staged; then what the pages do not take. */
static void stage_layer(const kv_seq *seq, uint32_t layer)
{
    const kv_cache *cache = seq->cache;
    const uint32_t end = seq->length + seq->n_step_tokens;
    uint32_t first = seq->n_reserved * cache->page_tokens;
    if (first < seq->length) first = seq->length;
    const uint32_t sinks_end = (uint32_t)min_size(cache->sink_tokens, end);
    for (uint32_t h = 0; h < cache->n_kv_heads[layer]; h++) {
        if (seq->length < sinks_end) {
            const kv_ring_place at = {layer, h, seq->length};
            const attn_span staged = staged_span(seq, &at, sinks_end - seq->length);
            kv_ring_write_sinks(&cache->rings, seq->ring, &at, &staged);
        }
        stage_to_ring(seq, layer, h, first, end);
    }
    for (uint32_t p = first; p < end; p++)
        *kv_ring_expert(&cache->rings, seq->ring, layer, p) =
            cache->staging.expert[(size_t)layer * cache->limits.n_step_tokens_max +
                                  seq->first_token + (p - seq->length)];
}

/* Job i: layer i mod n_layers of row i / n_layers. Pages first: the ring is overwritten after. */
static void commit_jobs(void *ctx, size_t begin, size_t end, uint32_t worker)
{
    const commit_loop *loop = ctx;
    for (size_t i = begin; i < end; i++) {
        const uint32_t layer = (uint32_t)(i % loop->cache->n_layers);
        kv_seq *seq = loop->rows[i / loop->cache->n_layers].seq;
        const bool scatters = loop->cache->scatters[layer];
        if (scatters) kv_scatter_write(seq, layer, worker);
        for (uint32_t b = seq->n_blocks; b < seq->n_reserved && !scatters; b++) {
            for (uint32_t h = 0; h < loop->cache->n_kv_heads[layer]; h++)
                seal_page(seq, layer, h, b, worker);
        }
        kv_runs_write(seq, layer, seq->n_blocks, seq->n_reserved);
        stage_layer(seq, layer);
    }
}

/* Blocks below this one are passed by the layer's window at `length`. */
static uint32_t n_passed_blocks(const kv_cache *cache, uint32_t layer, uint32_t length)
{
    const uint32_t window = cache->layer[layer].window;
    if (window == 0 || length + 1 < window) return 0;
    return (length + 1 - window) / cache->page_tokens;
}

/* Frees the pages that windows have passed since old_length: those before are gone already. */
static void drop_passed(kv_seq *seq, uint32_t old_length)
{
    const kv_cache *cache = seq->cache;
    for (uint32_t l = 0; l < cache->n_layers; l++) {
        if (cache->scatters[l]) kv_scatter_drop_passed(seq, l);
        if (cache->scatters[l]) continue;
        const uint32_t first = n_passed_blocks(cache, l, old_length);
        const uint32_t end =
            (uint32_t)min_size(n_passed_blocks(cache, l, seq->length), seq->n_blocks);
        for (uint32_t h = 0; h < cache->n_kv_heads[l] && first < end; h++) {
            for (uint32_t b = first; b < end; b++)
                kv_table_drop_entry(&seq->table, cache->pool, kv_home_list(cache, l, h, b), b,
                                    KV_HELD_BY_SEQ);
        }
    }
}

void kv_commit(kv_cache *cache, const kv_row *rows, uint32_t n_rows)
{
    size_t n_tokens = 0;
    for (uint32_t r = 0; r < n_rows; r++) {
        const kv_seq *seq = rows[r].seq;
        describe_pages(rows[r].seq);
        n_tokens += seq->n_step_tokens + (seq->n_reserved - seq->n_blocks) * cache->page_tokens;
    }
    kv_view_commit(cache, rows, n_rows);
    const commit_loop loop = {.cache = cache, .rows = rows};
    const size_t n_jobs = (size_t)n_rows * cache->n_layers;
    const bool is_small = n_tokens * kv_cache_bytes_per_token(cache) < SERIAL_BYTES_MAX;
    parallel_for(cache->d->pool, n_jobs, is_small ? n_jobs : 1, commit_jobs, (void *)&loop);
    kv_view_end_commit(cache, rows, n_rows);
    for (uint32_t r = 0; r < n_rows; r++) {
        kv_seq *seq = rows[r].seq;
        const uint32_t old_length = seq->length;
        seq->length += seq->n_step_tokens;
        seq->n_step_tokens = 0;
        seq->is_taken = false;
        seq->n_blocks = seq->n_reserved;
        /* Of a thinned one blocks are no longer whole; behind a replay the prompt's end is back. */
        if (!seq->is_thinned && !seq->is_replaying) drop_passed(seq, old_length);
        kv_encode(seq, (uint32_t)min_size(seq->n_coded_goal, seq->n_blocks));
    }
    kv_expert_map_update(&cache->experts);
}
