/* kvcache/kv_sane.c - the invariants of a cache, by walking everything. */
#include "kvcache/away.h"
#include "kvcache/basis.h"
#include "kvcache/heat.h"
#include "kvcache/key_box.h"
#include "kvcache/page_bias.h"
#include "kvcache/run_box.h"
#include "kvcache/scatter.h"

/* Blocks [0, n_blocks) of a table; `length` tokens are held, and windows have freed what they pass. */
typedef struct view {
    const kv_table *table;
    uint32_t n_blocks;         /* with slots */
    uint32_t n_reserved;       /* with or without slots */
    const kv_methods *methods; /* NULL: raw or encoded, either is fine */
    uint32_t n_coded;          /* encoded below, raw from there on */
    uint32_t n_tokens;
    kv_holder holder;
    bool has_sinks;  /* the first slots of block 0 are read elsewhere */
    bool is_thinned; /* entries are no blocks any more */
} view;

/* Of the layer's size, and leaning on a basis if it must. */
static bool is_of_layer(const kv_cache *cache, uint32_t layer, uint32_t page)
{
    const uint32_t page_class = kv_pool_class(cache->pool, page);
    const uint32_t on = kv_pool_leans_on(cache->pool, page);
    if (page_class % cache->n_raw_classes != cache->layer_class[layer]) return false;
    if ((on != KV_PAGE_NONE) != kv_codec_of(cache, page)->has_own_bases) return false;
    return on == KV_PAGE_NONE || kv_pool_class(cache->pool, on) == kv_basis_class(cache, layer);
}

/* Raw or encoded, as the sequence says. */
static bool is_class_sane(const kv_cache *cache, const view *v, uint32_t layer, uint32_t block,
                          uint32_t page)
{
    const uint32_t page_class = kv_pool_class(cache->pool, page);
    const bool is_coded = kv_is_coded_page(cache, page);
    if (!is_of_layer(cache, layer, page)) return false;
    if (v->methods == NULL || block >= v->n_blocks) return true;
    if (is_coded && !kv_is_coded_class(cache, v->methods, layer, page_class)) return false;
    if (v->methods->codec->is_exact) return !is_coded;
    if (v->is_thinned && block == 0) return true;
    return is_coded == (block < v->n_coded && (block > 0 || cache->sink_tokens == 0));
}

/* No live key lies outside the box of its page; looked at when it is the page's turn. */
static bool is_box_sane(const kv_cache *cache, const kv_page_place *at)
{
    if (!cache->has_boxes || !kv_pool_check_has_turn(cache->pool, at->page)) return true;
    const kv_pages *pages = kv_pool_pages(cache->pool);
    const uint8_t *data = cache->tiers != NULL
                              ? kv_tiers_peek(cache->tiers, at->page, kv_landing(cache, 0))
                              : kv_pool_data(cache->pool, at->page);
    if (data == NULL) return true; /* a failing disk is no bug of ours */
    const attn_span span =
        kv_page_decode(cache, at, data, pages->n_slots[at->page], cache->decoded);
    const kv_box_keys keys = {
        .spans = &span, .n_spans = 1, .n_left_out = kv_page_sinks(cache, at->page)};
    return kv_box_holds(&cache->heads[at->layer], &keys, kv_pool_box(cache->pool, at->page));
}

/* The page of a thinned sequence's entry: some live slots, none of them a sink, all positions rising, also
 * from entry to entry: *next is where they may go on. */
static bool is_thinned_page_sane(const kv_cache *cache, const view *v, uint32_t page, uint64_t live,
                                 uint32_t *next)
{
    const kv_pages *pages = kv_pool_pages(cache->pool);
    const uint32_t *positions = pages->positions + (size_t)page * cache->page_tokens;
    const uint32_t n_slots = pages->n_slots[page];
    if (live == 0 || (live & ~kv_slot_mask(n_slots)) != 0) return false;
    for (uint32_t i = 0; i < n_slots; i++) {
        const bool is_live = (live >> i & 1) != 0;
        if (i > 0 && positions[i] <= positions[i - 1]) return false;
        if (!is_live) continue;
        if (positions[i] < *next || positions[i] < cache->sink_tokens) return false;
        if (positions[i] >= v->n_blocks * cache->page_tokens) return false;
        *next = positions[i] + 1;
    }
    return true;
}

/* ---- layers that are placed by blocks ------------------------------------------------------------ */

/* What does not lie in its home list must not be there at all. */
static bool is_entry_sane(const kv_cache *cache, const view *v, uint32_t layer, uint32_t list,
                          uint32_t block, uint32_t *next)
{
    const kv_pages *pages = kv_pool_pages(cache->pool);
    const size_t entry = kv_table_entry(v->table, list, block);
    const uint32_t page = v->table->page[entry];
    const uint64_t live = v->table->live[entry];
    const bool is_home = (list - kv_list(cache, layer, 0, 0)) % cache->n_shards ==
                         kv_block_shard(cache->n_shards, block);
    if (page == KV_PAGE_NONE)
        return live == 0 &&
               (!is_home || block >= v->n_reserved || cache->layer[layer].window != 0 ||
                v->is_thinned || !kv_is_own_block(cache, block));
    if (block >= v->n_reserved || !is_home || !kv_is_own_block(cache, block)) return false;
    kv_pool_check_ref(cache->pool, page, v->holder);
    if (!is_class_sane(cache, v, layer, block, page)) return false;
    if (block >= v->n_blocks) return live == 0 && pages->n_slots[page] == 0;
    const kv_page_place at = {layer, (list - cache->first_list[layer]) / cache->n_shards, page};
    if (!is_box_sane(cache, &at)) return false;
    if (!v->is_thinned && kv_pool_biases(cache->pool, page) != NULL) return false;
    if (v->is_thinned)
        return pages->owner[page] < cache->n_shards &&
               is_thinned_page_sane(cache, v, page, live, next);
    const uint32_t first = block * cache->page_tokens;
    const uint32_t n_slots = (uint32_t)min_size(cache->page_tokens, (size_t)v->n_tokens - first);
    if (pages->n_slots[page] < n_slots || pages->owner[page] >= cache->n_shards) return false;
    for (uint32_t i = 0; i < n_slots; i++) {
        if (pages->positions[(size_t)page * cache->page_tokens + i] != first + i) return false;
    }
    uint64_t expected = kv_slot_mask(n_slots);
    if (block == 0 && v->has_sinks) expected &= ~kv_slot_mask(cache->sink_tokens);
    return live == expected;
}

/* ---- layers whose entries are placed one by one --------------------------------------------------- */

/* Sums over positions: a set of n different ones has those of [first, end) only if it is that range, or
 * was made to deceive. */
typedef struct position_sums {
    uint64_t n, sum, squares;
} position_sums;

static void add_position(position_sums *sums, uint64_t position)
{
    sums->n++;
    sums->sum += position;
    sums->squares += position * position;
}

/* Raw while it is being filled or has sinks; encoded when all of its positions are below. Of a thinned
 * sequence that has not found room to encode everything, a full one may still be raw. */
static bool is_scattered_class_sane(const kv_cache *cache, const view *v, uint32_t layer,
                                    uint32_t page)
{
    const uint32_t page_class = kv_pool_class(cache->pool, page);
    const bool is_coded = kv_is_coded_page(cache, page);
    const bool is_full = kv_pool_pages(cache->pool)->n_slots[page] == cache->page_tokens;
    if (!is_of_layer(cache, layer, page)) return false;
    if (v->methods == NULL) return true;
    if (is_coded && !kv_is_coded_class(cache, v->methods, layer, page_class)) return false;
    if (v->is_thinned) return !is_coded || !v->methods->codec->is_exact;
    const bool is_below = kv_last_position(cache, page) / cache->page_tokens < v->n_coded;
    const bool has_sinks = kv_pool_slots_below(cache->pool, page, cache->sink_tokens) > 0;
    return is_coded == (is_full && is_below && !has_sinks);
}

/* Of a thinned sequence. What is not sealed is the list's last page, and its own. */
static bool is_scattered_rest_sane(const kv_cache *cache, const view *v, const kv_ring_place *at,
                                   const kv_page_at *page, uint32_t *next)
{
    const kv_pages *pages = kv_pool_pages(cache->pool);
    const uint32_t list = kv_list(cache, at->layer, at->head, page->shard);
    const uint64_t live = v->table->live[kv_table_entry(v->table, list, page->block)];
    const bool is_sealed = kv_is_sealed_page(cache, page->page);
    const kv_page_place place = {at->layer, at->head, page->page};
    kv_pool_check_ref(cache->pool, page->page, v->holder);
    if (pages->owner[page->page] >= cache->n_shards) return false;
    if (!is_scattered_class_sane(cache, v, at->layer, page->page)) return false;
    if (!is_sealed && (v->table->marks[list].tail != page->block ||
                       pages->n_refs[KV_HELD_BY_SEQ][page->page] > 1 ||
                       pages->n_refs[KV_HELD_BY_OBJECT][page->page] > 0))
        return false;
    if (is_sealed && !is_box_sane(cache, &place)) return false;
    return is_thinned_page_sane(cache, v, page->page, live, next);
}

/* One page of a list: its positions follow those before, and the live ones are below the end. */
static bool is_scattered_page_sane(const kv_cache *cache, const view *v, const kv_ring_place *at,
                                   const kv_page_at *page, position_sums *sums)
{
    const kv_pages *pages = kv_pool_pages(cache->pool);
    const uint32_t *positions = pages->positions + (size_t)page->page * cache->page_tokens;
    const uint32_t list = kv_list(cache, at->layer, at->head, page->shard);
    const uint64_t live = v->table->live[kv_table_entry(v->table, list, page->block)];
    const uint32_t n_slots = pages->n_slots[page->page];
    const bool is_tail = v->table->marks[list].tail == page->block;
    const uint32_t end = (uint32_t)min_size((size_t)v->n_blocks * cache->page_tokens, v->n_tokens);
    const uint32_t n = kv_pool_slots_below(cache->pool, page->page, end);
    kv_pool_check_ref(cache->pool, page->page, v->holder);
    if (n == 0 || pages->owner[page->page] >= cache->n_shards) return false;
    if (positions[0] / cache->page_tokens != page->block) return false;
    if (!is_tail && n < cache->page_tokens) return false;
    if (v->holder == KV_HELD_BY_SEQ && n < cache->page_tokens &&
        (n < n_slots || pages->n_refs[KV_HELD_BY_SEQ][page->page] > 1 ||
         pages->n_refs[KV_HELD_BY_OBJECT][page->page] > 0))
        return false; /* it goes on here, and must be its own */
    if (!is_scattered_class_sane(cache, v, at->layer, page->page)) return false;
    const bool is_sealed = n_slots == cache->page_tokens;
    const kv_page_place place = {at->layer, at->head, page->page};
    if (is_sealed && !is_box_sane(cache, &place)) return false;
    for (uint32_t i = 0; i < n; i++) {
        if (positions[i] >= at->position) add_position(sums, positions[i]);
    }
    const uint32_t n_sinks =
        v->has_sinks ? kv_pool_slots_below(cache->pool, page->page, cache->sink_tokens) : 0;
    return live == (kv_slot_mask(n) & ~kv_slot_mask(n_sinks));
}

/* The pages of one list; adds its positions from at->position on. */
static bool is_scattered_list_sane(const kv_cache *cache, const view *v, const kv_ring_place *at,
                                   uint32_t shard, position_sums *sums)
{
    const kv_table *table = v->table;
    const uint32_t list = kv_list(cache, at->layer, at->head, shard);
    const kv_list_marks *marks = &table->marks[list];
    uint32_t tail = KV_PAGE_NONE, last = 0, next = 0;
    for (uint32_t b = 0; b < table->capacity; b++) {
        const kv_page_at page = {shard, b, table->page[kv_table_entry(table, list, b)]};
        if (page.page == KV_PAGE_NONE) {
            if (table->live[kv_table_entry(table, list, b)] != 0) return false;
            continue;
        }
        if (b < marks->first || b >= v->n_blocks || !kv_is_own_shard(cache, shard)) return false;
        const uint32_t first =
            kv_pool_pages(cache->pool)->positions[(size_t)page.page * cache->page_tokens];
        if (tail != KV_PAGE_NONE && first <= last) return false;
        const bool is_sane = v->is_thinned ? is_scattered_rest_sane(cache, v, at, &page, &next)
                                           : is_scattered_page_sane(cache, v, at, &page, sums);
        if (!is_sane) return false;
        last = kv_last_position(cache, page.page);
        tail = b;
    }
    return table->capacity == 0 || marks->tail == tail;
}

/* Every position that no window has passed lies on exactly one of the head's lists, unless evicted. */
static bool is_scattered_head_sane(const kv_cache *cache, const view *v, uint32_t layer,
                                   uint32_t head)
{
    const uint32_t end = (uint32_t)min_size((size_t)v->n_blocks * cache->page_tokens, v->n_tokens);
    kv_ring_place at = {layer, head, 0};
    position_sums sums = {0}, expected = {0};
    for (uint32_t s = 0; s < cache->n_shards && v->n_blocks > 0; s++) {
        const uint32_t passed = v->table->marks[kv_list(cache, layer, head, s)].passed;
        if (passed > 0 && cache->layer[layer].window == 0) return false;
        if (passed > at.position) at.position = passed;
    }
    for (uint32_t s = 0; s < cache->n_shards; s++) {
        if (!is_scattered_list_sane(cache, v, &at, s, &sums)) return false;
    }
    for (uint32_t p = at.position; p < end; p++)
        add_position(&expected, p);
    if (v->is_thinned) return true;
    if (cache->ranks.n > 1) return sums.n <= expected.n; /* the others are other ranks' */
    return sums.n == expected.n && sums.sum == expected.sum && sums.squares == expected.squares;
}

/* ---- tables -------------------------------------------------------------------------------------- */

static bool is_head_sane(const kv_cache *cache, const view *v, uint32_t layer, uint32_t head)
{
    const kv_table *table = v->table;
    if (cache->scatters[layer] && !is_scattered_head_sane(cache, v, layer, head)) return false;
    for (uint32_t s = 0; s < cache->n_shards && table->capacity > 0; s++) {
        const uint32_t list = kv_list(cache, layer, head, s);
        uint32_t n_live = 0, next = 0;
        for (uint32_t b = 0; b < table->capacity; b++) {
            if (!cache->scatters[layer] && !is_entry_sane(cache, v, layer, list, b, &next))
                return false;
            n_live += (uint32_t)__builtin_popcountll(table->live[kv_table_entry(table, list, b)]);
        }
        if (n_live != table->n_live[list]) return false;
    }
    if (table->run_boxes == NULL || cache->scatters[layer]) return true;
    for (uint32_t run = 0; run < v->n_blocks / KV_RUN_PAGES; run++) {
        if (!kv_run_holds(cache, table, layer, head, run)) return false;
    }
    return true;
}

static bool is_table_sane(const kv_cache *cache, const view *v)
{
    const kv_table *table = v->table;
    if (table->n_lists != cache->n_lists || v->n_reserved > table->capacity) return false;
    for (uint32_t l = 0; l < cache->n_layers; l++) {
        for (uint32_t h = 0; h < cache->n_kv_heads[l]; h++) {
            if (!is_head_sane(cache, v, l, h)) return false;
        }
    }
    return true;
}

static bool is_seq_sane(const kv_cache *cache, const kv_seq *seq)
{
    const uint64_t in_pages = (uint64_t)seq->n_blocks * cache->page_tokens;
    if (seq->ring == NULL || in_pages > seq->length) return false;
    if (seq->length - in_pages > cache->rings.n_recent) return false;
    if (seq->n_blocks < kv_blocks_left(cache, seq->length)) return false;
    if (seq->n_coded > seq->n_blocks || (seq->methods.codec->is_exact && seq->n_coded > 0))
        return false;
    const bool is_settled = !kv_methods_evict(&seq->methods) || seq->settled_length == seq->length;
    if (!cache->step.is_open && !seq->is_taken && is_settled &&
        seq->n_coded < kv_goal_at(seq, seq->length).n_coded)
        return false;
    if (seq->settled_length > seq->chosen_length || seq->chosen_length > seq->length) return false;
    if (seq->is_thinned && !kv_methods_evict(&seq->methods)) return false;
    if (!cache->step.is_open && (seq->n_step_tokens != 0 || seq->n_reserved != seq->n_blocks))
        return false;
    if (seq->object != KV_OBJECT_NONE && cache->prefix.objects[seq->object].seq != seq)
        return false;
    const view v = {.table = &seq->table,
                    .n_blocks = seq->n_blocks,
                    .n_reserved = seq->n_reserved,
                    .methods = &seq->methods,
                    .n_coded = seq->n_coded,
                    .n_tokens = seq->length,
                    .holder = KV_HELD_BY_SEQ,
                    .has_sinks = true,
                    .is_thinned = seq->is_thinned};
    const kv_prefix_source self = {.table = &seq->table, .seq = seq, .n_blocks = seq->n_blocks};
    return is_table_sane(cache, &v) &&
           (seq->is_thinned || kv_prefix_serves(cache, &self, seq->length));
}

static bool are_seqs_sane(const kv_cache *cache)
{
    uint32_t n_open = 0, n_free = 0;
    size_t table_bytes = 0, ring_bytes = 0, observed_bytes = 0;
    for (uint32_t s = 0; s < cache->limits.n_seqs_max; s++) {
        const kv_seq *seq = &cache->seqs[s];
        if (!seq->is_open) continue;
        n_open++;
        if (!is_seq_sane(cache, seq)) return false;
        table_bytes += kv_table_bytes(&seq->table);
        ring_bytes += cache->rings.ring_bytes;
        observed_bytes += seq->observed.bytes;
    }
    for (const kv_seq *seq = cache->free_seqs; seq != NULL; seq = seq->next_free) {
        if (seq->is_open || n_free++ > cache->limits.n_seqs_max) return false;
    }
    for (const kv_ring *ring = cache->rings.free; ring != NULL; ring = ring->next)
        ring_bytes += cache->rings.ring_bytes;
    return n_open + n_free == cache->limits.n_seqs_max && n_open == cache->stats.seqs_open &&
           table_bytes == cache->table_bytes && observed_bytes == cache->stats.observed_bytes &&
           ring_bytes == cache->rings.total_bytes;
}

static bool is_object_sane(const kv_cache *cache, uint32_t object)
{
    const kv_prefix_object *o = &cache->prefix.objects[object];
    const uint32_t n_keys = cache->prefix.index.keys[object].n_keys;
    if (!o->is_used) return n_keys == 0 && o->tokens == NULL;
    if (o->n_tokens < cache->page_tokens || n_keys != o->n_tokens / cache->page_tokens)
        return false;
    if (o->seq != NULL) return o->seq->object == object && o->n_tokens <= o->seq->length;
    const uint32_t n_blocks = (o->n_tokens - 1) / cache->page_tokens + 1;
    const view v = {.table = &o->table,
                    .n_blocks = n_blocks,
                    .n_reserved = n_blocks,
                    .n_tokens = o->n_tokens,
                    .holder = KV_HELD_BY_OBJECT};
    return is_table_sane(cache, &v);
}

static bool is_prefix_sane(const kv_cache *cache)
{
    const kv_prefix *prefix = &cache->prefix;
    size_t bytes = kv_prefix_index_bytes(&prefix->index);
    uint32_t n_used = 0, n_linked = 0, before = KV_OBJECT_NONE;
    for (uint32_t o = 0; o < prefix->n_objects_max; o++) {
        if (!is_object_sane(cache, o)) return false;
        if (!prefix->objects[o].is_used) continue;
        n_used++;
        bytes += prefix->objects[o].data_bytes;
        if (prefix->objects[o].seq == NULL) bytes += kv_table_bytes(&prefix->objects[o].table);
    }
    for (uint32_t o = prefix->oldest; o != KV_OBJECT_NONE; o = prefix->objects[o].newer) {
        if (!prefix->objects[o].is_used || prefix->objects[o].older != before) return false;
        if (n_linked++ > prefix->n_objects_max) return false;
        before = o;
    }
    return before == prefix->newest && n_linked == n_used && n_used == prefix->n_objects &&
           bytes == prefix->bytes && kv_prefix_index_is_sane(&prefix->index, prefix->n_objects_max);
}

bool kv_cache_is_sane(const kv_cache *cache)
{
    kv_pool_check_begin(cache->pool);
    if (!are_seqs_sane(cache) || !is_prefix_sane(cache)) return false;
    if (!kv_pool_check_end(cache->pool)) return false;
    const kv_stats *s = &cache->stats;
    return s->pages_used + s->pages_cached + s->pages_free == s->pages_total &&
           s->slab_bytes <= s->pool_budget_bytes;
}
