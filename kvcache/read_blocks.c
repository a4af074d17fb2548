/* kvcache/read_blocks.c - see read_blocks.h. */
#include "kvcache/read_blocks.h"

#include "kvcache/away.h"
#include "kvcache/basis.h"
#include "kvcache/commit.h"
#include "kvcache/heat.h"
#include "kvcache/key_box.h"
#include "kvcache/page_bias.h"
#include "kvcache/ranks.h"
#include "kvcache/scatter.h"

#include <math.h>

/* ---- blocks -------------------------------------------------------------------------------------- */

static void fold_low(kv_read_job *j)
{
    kv_low_reader *low = &j->worker->low;
    const dev_ops *ops = j->cache->d->ops;
    const kv_page_layout *coded = kv_coded_layout(j->cache, &j->seq->methods, j->layer);
    if (!j->has_low || low->n_blocks == 0) return;
    for (uint32_t s = 0; s < low->n_blocks && !j->is_probe; s++)
        j->worker->bytes_read += kv_page_read_bytes(coded, low->spans[s].n_slots);
    j->worker->blocks_read += j->is_probe ? 0 : low->n_blocks;
    if (j->lse != NULL) {
        kv_low_add_mass(low, ops, j->lse, j->mass);
    } else {
        kv_low_fold(low, ops);
    }
}

static void count_read(const kv_read_job *j)
{
    const kv_page_layout *raw = &j->cache->layout[j->cache->layer_class[j->layer]];
    for (uint32_t s = 0; s < j->n_spans; s++) {
        const attn_span *span = &j->worker->spans[s];
        const kv_page_layout *layout =
            span->coding == ATTN_PLAIN
                ? raw
                : kv_layout_of_coding(j->cache, &j->seq->methods, j->layer, span->coding);
        j->worker->bytes_read += kv_page_read_bytes(layout, span->n_slots);
    }
    j->worker->blocks_read += j->n_blocks;
}

static void fold_blocks(kv_read_job *j)
{
    const dev_ops *ops = j->cache->d->ops;
    fold_low(j);
    if (j->n_blocks == 0) return;
    if (!j->is_probe) count_read(j);
    const attn_blocks blocks = {
        .spans = j->worker->spans, .blocks = j->worker->blocks, .n_blocks = j->n_blocks};
    if (j->most != NULL) {
        ops->attend_max(&(attn_max_args){
            .query = &j->query, .blocks = &blocks, .lse = j->lse, .most = j->most});
    } else if (j->lse != NULL) {
        ops->attend_mass(&(attn_mass_args){
            .query = &j->query, .blocks = &blocks, .lse = j->lse, .mass = j->mass});
    } else {
        ops->attend(&j->query, &blocks, j->state);
    }
    j->n_blocks = 0;
    j->n_spans = 0;
    j->n_landed = 0;
}

/* All that is listed goes into the state. */
static void finish_blocks(kv_read_job *j)
{
    fold_blocks(j);
    if (j->has_low && j->worker->low.has_begun) kv_low_merge(&j->worker->low, &j->query, j->state);
}

/* Makes the scratch ready for a page of coefficients, whose basis need not be that of the last one. */
static void begin_low(kv_read_job *j, uint32_t page)
{
    kv_low_reader *low = &j->worker->low;
    const kv_page_place at = {j->layer, j->head, page};
    const uint32_t basis = kv_pool_leans_on(j->cache->pool, page);
    if (low->has_begun && low->basis == basis) return;
    if (low->has_begun) {
        fold_low(j);
        kv_low_merge(low, &j->query, j->state);
    }
    const kv_head_bases bases = kv_page_bases(j->cache, &at, low->floats);
    kv_low_begin(low, &kv_layout_of(j->cache, page)->shape, &bases, &j->query);
    low->basis = basis;
    low->has_begun = true;
}

/* Bit i: slot i of the span is in the ranges. */
static uint64_t slots_in(const kv_read_ranges *only, const attn_span *span)
{
    uint64_t slots = 0;
    for (uint32_t i = 0; i < span->n_slots; i++) {
        const uint32_t p = span->positions != NULL ? span->positions[i] : span->first_position + i;
        const bool is_in =
            p < only->first_end || (p >= only->first && p < only->end) || p >= only->behind;
        slots |= (uint64_t)is_in << i;
    }
    return slots;
}

/* Lists one block of spans; those without a live slot are left out. */
static void add_block(kv_read_job *j, const attn_span *spans, uint32_t n_spans)
{
    attn_block *block = &j->worker->blocks[j->n_blocks];
    *block = (attn_block){.first_span = j->n_spans};
    for (uint32_t s = 0; s < n_spans; s++) {
        attn_span span = spans[s];
        if (j->only != NULL) span.live &= slots_in(j->only, &span);
        if (span.live == 0) continue;
        j->worker->spans[j->n_spans++] = span;
        block->n_spans++;
    }
    if (block->n_spans > 0) j->n_blocks++;
    if (j->n_blocks == KV_READ_BLOCKS) fold_blocks(j);
}

/* Ranks all have sinks, ring and staging. What is added up over them reads those at home; what a rank notes of
 * entries it notes of these, too, since they may go to its pages. */
static bool reads_ring(const kv_read_job *j)
{
    return kv_is_home(j->seq) || j->lse != NULL;
}

/* The sinks, from the ring: the beginning of block 0. */
static uint32_t sink_span(const kv_read_job *j, attn_span *out)
{
    const kv_cache *cache = j->cache;
    if (cache->sink_tokens == 0 || !reads_ring(j)) return 0;
    *out = kv_ring_sink_span(&cache->rings, j->seq->ring, j->layer, j->head, cache->sink_tokens);
    return 1;
}

/* The bytes of a page, which stay where they are until the blocks are folded. What is in the file is
 * waited for: that is the price of a cache larger than memory. kv_hint_layer has asked for it while
 * the layer before was computed, so as a rule the system call copies and does not wait. */
static const uint8_t *page_bytes(kv_read_job *j, uint32_t page)
{
    const kv_cache *cache = j->cache;
    if (!cache->has_tiers) return kv_pool_data(cache->pool, page);
    kv_pool_use(cache->pool, page);
    if (kv_pool_tier(cache->pool, page) != KV_TIER_FILE) return kv_pool_data(cache->pool, page);
    if (j->n_landed == KV_READ_BLOCKS) fold_blocks(j); /* blocks of both kinds wait together */
    return kv_seq_read_page(j->seq, page,
                            j->worker->landings + j->n_landed++ * cache->landing_bytes);
}

/* The entries of a page, without the sinks: they come first. */
static uint32_t page_span(kv_read_job *j, const kv_page_at *at, attn_span *out)
{
    const kv_cache *cache = j->cache;
    const kv_pages *pages = kv_pool_pages(cache->pool);
    const uint32_t list = kv_list(cache, j->layer, j->head, at->shard);
    const uint32_t n_slots = pages->n_slots[at->page], n_sinks = kv_page_sinks(cache, at->page);
    const uint64_t live = j->seq->table.live[kv_table_entry(&j->seq->table, list, at->block)];
    if (n_sinks >= n_slots || live == 0) return 0;
    attn_span span = kv_page_span(kv_layout_of(cache, at->page), page_bytes(j, at->page), n_slots);
    span.positions = pages->positions + (size_t)at->page * cache->page_tokens;
    span.live = live;
    span.bias = kv_pool_biases(cache->pool, at->page);
    *out = kv_span_cut(&span, n_sinks, n_slots - n_sinks);
    return 1;
}

static bool is_low_page(const kv_read_job *j, uint32_t page)
{
    return j->has_low && kv_is_coded_page(j->cache, page);
}

/* One that has sinks is a thinned sequence's, which reads them from its ring as well. */
static void add_low_page(kv_read_job *j, const kv_page_at *at)
{
    attn_span span;
    if (page_span(j, at, &span) == 0 || span.live == 0) return;
    begin_low(j, at->page);
    kv_low_add(&j->worker->low, &span);
    if (j->worker->low.n_blocks == KV_LOW_BLOCKS) fold_low(j);
}

/* A page by itself; its sinks have been read. */
static void add_page(kv_read_job *j, const kv_page_at *at)
{
    attn_span span;
    if (is_low_page(j, at->page)) {
        add_low_page(j, at);
    } else if (page_span(j, at, &span) > 0) {
        add_block(j, &span, 1);
    }
}

/* Block 0 without its page. */
static void add_sinks(kv_read_job *j)
{
    attn_span span;
    if (sink_span(j, &span) > 0) add_block(j, &span, 1);
}

static void add_page_block(kv_read_job *j, uint32_t block)
{
    const uint32_t list = kv_home_list(j->cache, j->layer, j->head, block);
    const kv_page_at at = {kv_block_shard(j->cache->n_shards, block), block,
                           kv_table_page(&j->seq->table, list, block)};
    const bool has_page = at.page != KV_PAGE_NONE;
    attn_span spans[2];
    assert(has_page || j->seq->is_thinned || !kv_is_own_block(j->cache, block));
    if (j->is_decode && !j->is_probe && j->lse == NULL)
        kv_observe_use(j->seq, list, block, j->seq->length);
    if (has_page && is_low_page(j, at.page)) {
        if (block == 0) add_sinks(j);
        add_low_page(j, &at);
        return;
    }
    uint32_t n = block == 0 ? sink_span(j, spans) : 0;
    if (has_page) n += page_span(j, &at, spans + n);
    add_block(j, spans, n);
}

/* Blocks that begin at or after `first` and hold positions below `end`, in ring and staging. */
static void add_recent_blocks(kv_read_job *j, uint32_t first, uint32_t end)
{
    const uint32_t page_tokens = j->cache->page_tokens;
    if (!reads_ring(j)) return;
    for (uint32_t b = first; b * page_tokens < end; b++) {
        attn_span spans[2];
        const kv_ring_place at = {j->layer, j->head, b * page_tokens};
        const uint32_t n_slots = (uint32_t)min_size(page_tokens, (size_t)end - at.position);
        add_block(j, spans, kv_recent_spans(j->seq, &at, n_slots, spans));
    }
}

/* Pages of a scattered layer that the query sees, in their order; returns their number. With a choice,
 * candidates that were not chosen are left out; a probe of what is read in any case leaves out all. */
static uint32_t add_scattered(kv_read_job *j, const kv_choice_range *range, const kv_choice *choice)
{
    uint32_t n = 0, next = 0;
    kv_page_at at;
    kv_walk walk;
    kv_walk_begin(&walk, j->cache, &j->seq->table, j->layer, j->head, j->seq->n_blocks);
    while (kv_walk_next(&walk, &at)) {
        if (kv_last_position(j->cache, at.page) < range->first_seen) continue;
        if ((choice != NULL || j->is_probe) && kv_choice_has(range, &at)) {
            if (j->is_probe || next == choice->n_chosen) continue;
            if (choice->page[choice->chosen[next]] != at.page) continue;
            next++;
        }
        if (j->is_decode && !j->is_probe && j->lse == NULL) {
            const uint32_t list = kv_list(j->cache, j->layer, j->head, at.shard);
            kv_observe_use(j->seq, list, at.block, j->seq->length);
        }
        add_page(j, &at);
        n++;
    }
    return n;
}

/* ---- a choice of pages --------------------------------------------------------------------------- */

static void note_log_read(const kv_read_job *probe)
{
    for (uint32_t g = 0; g < probe->query.group; g++)
        probe->worker->choice.log_read[g] = kv_log_mass(probe->state, g);
}

/* The keys of one more candidate. Block 0 has its sinks already. */
static void probe_page(void *ctx, uint32_t page)
{
    kv_read_job *probe = ctx;
    const kv_choice *choice = &probe->worker->choice;
    add_page(probe, &(kv_page_at){choice->shard[page], choice->block[page], choice->page[page]});
    finish_blocks(probe);
    note_log_read(probe);
}

/* Of the range, what is read whatever is chosen: sinks, and what are no candidates; then the rest of the
 * sequence, up to position `end`. */
static void probe_recent(kv_read_job *probe, const kv_choice_range *range, uint32_t end)
{
    const uint32_t n_blocks = probe->seq->n_blocks;
    attn_state_reset(probe->state, probe->query.group, 0);
    probe->worker->low.has_begun = false;
    if (range->first == 0 && range->end > 0) add_sinks(probe);
    if (probe->cache->scatters[probe->layer]) {
        add_scattered(probe, range, NULL);
    } else {
        for (uint32_t b = range->end > range->first ? range->end : range->first; b < n_blocks; b++)
            add_page_block(probe, b);
    }
    add_recent_blocks(probe, range->first > n_blocks ? range->first : n_blocks, end);
    finish_blocks(probe);
    note_log_read(probe);
}

/* Chooses among the candidates of the range; the rest of the sequence, up to position `end`, is read. */
static void choose_pages(kv_read_job *j, const kv_choice_range *range, uint32_t end)
{
    kv_choice *choice = &j->worker->choice;
    kv_read_job probe = *j;
    probe.state = &j->worker->probe;
    probe.query.v_dim = 0;
    probe.is_probe = true;
    probe.lse = NULL;
    kv_choice_list(choice, range, &j->query);
    if (j->seq->methods.routing->needs_log_read && choice->n_pages > 0)
        probe_recent(&probe, range, end);
    kv_choice_make(choice, range, j->query.group, probe_page, &probe);
    j->worker->bytes_read +=
        (choice->n_pages + choice->runs.n) * kv_box_bytes(&j->cache->heads[j->layer]);
    j->worker->pages_open += j->is_again ? 0 : choice->n_open;
    j->worker->pages_read += j->is_again ? 0 : choice->n_chosen;
}

/* Pages of the range as far as they were chosen. */
static void add_chosen_blocks(kv_read_job *j, const kv_choice_range *range)
{
    const kv_choice *choice = &j->worker->choice;
    if (range->first == 0 && range->end > 0 &&
        (choice->n_chosen == 0 || choice->block[choice->chosen[0]] != 0))
        add_sinks(j);
    for (uint32_t i = 0; i < choice->n_chosen; i++)
        add_page_block(j, choice->block[choice->chosen[i]]);
}

void kv_read_note_misses(const kv_read_job *j, const float *sink_logit)
{
    *j->misses = (kv_misses){.n = j->query.group}; /* nothing is missed */
    if (j->seq->methods.reads_all) return;
    j->misses->n = 0;
    kv_choice_certify(&j->worker->choice, &j->query, j->state, sink_logit, j->misses);
}

void kv_read_note_unread(const kv_read_job *j, float *out)
{
    for (uint32_t g = 0; g < j->query.group; g++)
        out[g] = j->seq->methods.reads_all ? -INFINITY
                                           : (float)kv_choice_log_unread(&j->worker->choice, g);
}

/* ---- jobs ---------------------------------------------------------------------------------------- */

/* A full read of entries [first, end). */
static void count_open(const kv_read_job *j, uint32_t first, uint32_t end)
{
    const kv_table *table = &j->seq->table;
    uint32_t n = end - first;
    const bool has_gaps = j->seq->is_thinned || j->cache->ranks.n > 1;
    for (uint32_t b = first; b < end && has_gaps; b++)
        n -= kv_table_page(table, kv_home_list(j->cache, j->layer, j->head, b), b) == KV_PAGE_NONE;
    j->worker->pages_open += n;
    j->worker->pages_read += n;
}

/* What a layer that is placed by blocks has in pages; returns the first block that is not read yet. */
static uint32_t read_pages(kv_read_job *j, const kv_choice_range *range, uint32_t end)
{
    const uint32_t n_open = range->end > range->first ? range->end - range->first : 0;
    const bool is_chosen = j->is_decode && !j->seq->methods.reads_all;
    uint32_t first = range->first;
    if (is_chosen) {
        if (j->lse == NULL || j->is_again) choose_pages(j, range, end);
        j->worker->low.has_begun = false; /* a probe may have used it */
        add_chosen_blocks(j, range);
        first += n_open;
    } else if (j->is_decode && j->lse == NULL) {
        count_open(j, first, first + n_open);
    }
    for (; first < j->seq->n_blocks; first++)
        add_page_block(j, first);
    return first;
}

/* The same of a layer whose entries are placed one by one. */
static uint32_t read_scattered(kv_read_job *j, const kv_choice_range *range, uint32_t end)
{
    const uint32_t n_blocks = j->seq->n_blocks;
    const bool is_chosen = j->is_decode && !j->seq->methods.reads_all;
    if (is_chosen && (j->lse == NULL || j->is_again)) choose_pages(j, range, end);
    j->worker->low.has_begun = false; /* a probe may have used it */
    if (range->first == 0 && n_blocks > 0) add_sinks(j);
    const uint32_t n = add_scattered(j, range, is_chosen ? &j->worker->choice : NULL);
    if (j->is_decode && !is_chosen && j->lse == NULL) {
        j->worker->pages_open += n;
        j->worker->pages_read += n;
    }
    return n_blocks;
}

void kv_read_blocks(kv_read_job *j)
{
    const attn_query *query = &j->query;
    const uint32_t oldest = query->positions[0];
    const uint32_t end = query->positions[query->n_queries - 1] + 1;
    kv_choice_range range = {.seq = j->seq, .layer = j->layer, .head = j->head};
    if (query->window != 0 && oldest >= query->window && !j->seq->is_thinned)
        range.first_seen = oldest - query->window + 1;
    range.first = range.first_seen / j->cache->page_tokens;
    j->worker->low.has_begun = false;
    range.end = kv_blocks_left(j->cache, j->seq->length);
    const uint32_t n_read =
        (j->cache->scatters[j->layer] ? read_scattered : read_pages)(j, &range, end);
    add_recent_blocks(j, range.first > n_read ? range.first : n_read, end);
    finish_blocks(j);
}
