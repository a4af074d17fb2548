/* kvcache/scatter.c - see scatter.h. */
#include "kvcache/scatter.h"

#include "kvcache/away.h"
#include "kvcache/commit.h"

#include <string.h>

/* ---- pages in order ------------------------------------------------------------------------------ */

void kv_walk_begin(kv_walk *walk, const kv_cache *cache, const kv_table *table, uint32_t layer,
                   uint32_t head, uint32_t n_blocks)
{
    walk->cache = cache;
    walk->table = table;
    walk->layer = layer;
    walk->head = head;
    walk->block = n_blocks;
    walk->end = n_blocks;
    walk->n = walk->next = 0;
    for (uint32_t s = 0; s < cache->n_shards && n_blocks > 0; s++) {
        const uint32_t first = table->marks[kv_list(cache, layer, head, s)].first;
        if (first < walk->block) walk->block = first;
    }
}

/* The pages at one block's entries, in order of their first positions: there are few. */
static void list_pages(kv_walk *walk, uint32_t block)
{
    const kv_cache *cache = walk->cache;
    const uint32_t *positions = kv_pool_pages(cache->pool)->positions;
    walk->n = walk->next = 0;
    for (uint32_t s = 0; s < cache->n_shards; s++) {
        const uint32_t list = kv_list(cache, walk->layer, walk->head, s);
        const kv_page_at at = {s, block,
                               walk->table->page[kv_table_entry(walk->table, list, block)]};
        if (at.page == KV_PAGE_NONE) continue;
        const uint32_t first = positions[(size_t)at.page * cache->page_tokens];
        uint32_t i = walk->n++;
        for (; i > 0 && positions[(size_t)walk->at[i - 1].page * cache->page_tokens] > first; i--)
            walk->at[i] = walk->at[i - 1];
        walk->at[i] = at;
    }
}

bool kv_walk_next(kv_walk *walk, kv_page_at *out)
{
    while (walk->next == walk->n) {
        if (walk->block == walk->end) return false;
        list_pages(walk, walk->block++);
    }
    *out = walk->at[walk->next++];
    return true;
}

/* The entry with a page before this one, or KV_PAGE_NONE. */
static uint32_t entry_before(const kv_table *table, uint32_t list, uint32_t block)
{
    while (block > table->marks[list].first) {
        if (table->page[kv_table_entry(table, list, --block)] != KV_PAGE_NONE) return block;
    }
    return KV_PAGE_NONE;
}

/* ---- commit -------------------------------------------------------------------------------------- */

/* n pages' worth of entries, dealt to lists whose open pages are full: each list but one may end with a
 * page of one entry. */
uint32_t kv_pages_to_open(const kv_cache *cache, uint32_t layer, uint32_t n_blocks)
{
    if (!cache->scatters[layer] || n_blocks == 0) return n_blocks;
    const uint64_t n_entries = (uint64_t)n_blocks * cache->page_tokens;
    const uint64_t n = (uint64_t)n_blocks + cache->n_shards - 1;
    return (uint32_t)(n < n_entries ? n : n_entries);
}

/* n_shards - 1 beyond the blocks are there before a step, as many may be opened by it, and of a layer
 * with a window each list may have one more whose beginning has been passed. */
uint64_t kv_pages_most(const kv_cache *cache, uint32_t layer, uint64_t n_blocks)
{
    if (!cache->scatters[layer] || n_blocks == 0) return n_blocks;
    const uint64_t n_entries = n_blocks * cache->page_tokens;
    const uint64_t n = n_blocks + (uint64_t)3 * cache->n_shards;
    return n < n_entries ? n : n_entries;
}

size_t kv_head_pages_max(const kv_cache *cache)
{
    const size_t n = cache->limits.n_seq_tokens_max / cache->page_tokens + 1;
    return cache->placement->is_exact ? n : n + 3 * (size_t)cache->n_shards;
}

uint32_t kv_choose_owner(const kv_cache *cache, uint32_t shard, uint32_t page_class)
{
    const kv_pool_shard *shards = kv_pool_shards(cache->pool);
    if (shards[shard].bytes + kv_pool_part_bytes(cache->pool, page_class) <= cache->quota_bytes)
        return shard;
    uint32_t emptiest = cache->ranks.rank; /* of this rank's, which alone has them all */
    for (uint32_t s = emptiest; s < cache->n_shards; s += cache->ranks.n) {
        if (shards[s].bytes < shards[emptiest].bytes) emptiest = s;
    }
    return emptiest;
}

void kv_count_spilled(kv_cache *cache, uint32_t shard, uint32_t page, uint32_t n)
{
    if (kv_pool_pages(cache->pool)->owner[page] == shard) return;
    cache->stats.entries_spilled += n;
    cache->stats.shards[shard].spilled += n;
}

/* A raw page for the list, without slots. */
static uint32_t open_page(kv_seq *seq, uint32_t layer, uint32_t list, uint32_t shard,
                          uint32_t block)
{
    kv_cache *cache = seq->cache;
    const uint32_t page_class = cache->layer_class[layer];
    const uint32_t page = kv_pool_alloc_page(cache->pool, page_class, KV_HELD_BY_SEQ);
    assert(page != KV_PAGE_NONE); /* room was found when the step began */
    assert(seq->table.page[kv_table_entry(&seq->table, list, block)] == KV_PAGE_NONE);
    kv_pool_own(cache->pool, page, kv_choose_owner(cache, shard, page_class));
    seq->table.page[kv_table_entry(&seq->table, list, block)] = page;
    seq->table.marks[list].tail = block;
    cache->stats.pages_committed++;
    return page;
}

static void append_entry(kv_seq *seq, uint32_t layer, uint32_t head, uint32_t shard,
                         uint32_t position)
{
    kv_cache *cache = seq->cache;
    kv_table *table = &seq->table;
    const uint32_t list = kv_list(cache, layer, head, shard);
    const uint32_t tail = table->marks[list].tail;
    uint32_t page = tail != KV_PAGE_NONE ? table->page[kv_table_entry(table, list, tail)] : tail;
    if (page == KV_PAGE_NONE || kv_is_sealed_page(cache, page))
        page = open_page(seq, layer, list, shard, position / cache->page_tokens);
    const uint32_t block = table->marks[list].tail;
    const uint64_t slot = (uint64_t)1 << kv_pool_append(cache->pool, page, position);
    if (position >= cache->sink_tokens) /* those below are read from the ring */
        kv_table_see(table, list, block, table->live[kv_table_entry(table, list, block)] | slot);
    kv_count_spilled(cache, shard, page, 1);
}

void kv_scatter_append(kv_seq *seq, uint32_t layer, uint32_t block, const uint32_t *owner,
                       uint32_t n_slots)
{
    const uint32_t first = block * seq->cache->page_tokens;
    for (uint32_t h = 0; h < seq->cache->n_kv_heads[layer]; h++) {
        for (uint32_t i = 0; i < n_slots; i++) {
            if (kv_is_own_shard(seq->cache, owner[i]))
                append_entry(seq, layer, h, owner[i], first + i);
        }
    }
}

void kv_scatter_skip(kv_seq *seq, uint32_t layer, uint32_t block)
{
    const kv_cache *cache = seq->cache;
    kv_list_marks *marks = seq->table.marks + kv_list(cache, layer, 0, 0);
    for (uint32_t i = 0; i < cache->n_kv_heads[layer] * cache->n_shards; i++)
        marks[i].passed = (block + 1) * cache->page_tokens;
}

/* Copies slots [first, end) of a page from where they are now: runs of positions within a block. */
static void write_slots(const kv_seq *seq, kv_ring_place at, uint32_t page, uint32_t first,
                        uint32_t end)
{
    const kv_cache *cache = seq->cache;
    const uint32_t *positions =
        kv_pool_pages(cache->pool)->positions + (size_t)page * cache->page_tokens;
    const kv_strip *strip = &cache->layout[cache->layer_class[at.layer]].strip;
    uint8_t *data = kv_pool_data(cache->pool, page);
    for (uint32_t i = first; i < end;) {
        uint32_t n = 1;
        while (i + n < end && positions[i + n] == positions[i] + n &&
               positions[i + n] % cache->page_tokens != 0)
            n++;
        attn_span spans[2];
        at.position = positions[i];
        const uint32_t n_spans = kv_recent_spans(seq, &at, n, spans);
        for (uint32_t s = 0; s < n_spans; s++) {
            kv_strip_write(strip, data, i, &spans[s]);
            i += spans[s].n_slots;
        }
    }
}

void kv_scatter_write(const kv_seq *seq, uint32_t layer, uint32_t worker)
{
    const kv_cache *cache = seq->cache;
    const kv_table *table = &seq->table;
    const uint32_t first_new = seq->n_blocks * cache->page_tokens;
    for (uint32_t h = 0; h < cache->n_kv_heads[layer]; h++) {
        for (uint32_t s = 0; s < cache->n_shards; s++) {
            const uint32_t list = kv_list(cache, layer, h, s);
            uint32_t block = table->marks[list].tail;
            while (block != KV_PAGE_NONE) {
                const uint32_t page = table->page[kv_table_entry(table, list, block)];
                const uint32_t first = kv_pool_slots_below(cache->pool, page, first_new);
                const uint32_t end = kv_pool_pages(cache->pool)->n_slots[page];
                if (first == end) break;
                write_slots(seq, (kv_ring_place){.layer = layer, .head = h}, page, first, end);
                if (end == cache->page_tokens)
                    kv_page_box_write(cache, &(kv_page_place){layer, h, page}, worker);
                block = first > 0 ? KV_PAGE_NONE : entry_before(table, list, block);
            }
        }
    }
}

void kv_scatter_find_ends(kv_seq *seq, uint32_t layer)
{
    const kv_cache *cache = seq->cache;
    if (!cache->scatters[layer]) return;
    for (uint32_t i = 0; i < cache->n_kv_heads[layer] * cache->n_shards; i++) {
        const uint32_t list = kv_list(cache, layer, 0, 0) + i;
        kv_list_marks *marks = &seq->table.marks[list];
        marks->tail = entry_before(&seq->table, list, seq->n_blocks);
        while (marks->first < seq->n_blocks &&
               kv_table_page(&seq->table, list, marks->first) == KV_PAGE_NONE)
            marks->first++;
    }
}

void kv_scatter_drop_passed(kv_seq *seq, uint32_t layer)
{
    const kv_cache *cache = seq->cache;
    kv_table *table = &seq->table;
    const uint64_t window = cache->layer[layer].window;
    if (window == 0) return;
    for (uint32_t i = 0; i < cache->n_kv_heads[layer] * cache->n_shards; i++) {
        const uint32_t list = kv_list(cache, layer, 0, 0) + i;
        kv_list_marks *marks = &table->marks[list];
        uint32_t b = marks->first;
        for (; b < seq->n_blocks; b++) {
            const uint32_t page = table->page[kv_table_entry(table, list, b)];
            if (page == KV_PAGE_NONE) continue;
            const uint32_t last = kv_last_position(cache, page);
            if (last + window > seq->length) break;
            (void)kv_table_drop_entry(table, cache->pool, list, b, KV_HELD_BY_SEQ);
            marks->passed = (uint32_t)max_size(marks->passed, last + 1);
            if (marks->tail == b) marks->tail = KV_PAGE_NONE;
        }
        marks->first = b;
    }
}

/* ---- cutting and sharing ------------------------------------------------------------------------- */

static uint64_t cut_list(const kv_cache *cache, kv_table *table, uint32_t list, uint32_t position,
                         kv_holder holder)
{
    kv_list_marks *marks = &table->marks[list];
    uint64_t n_freed = 0;
    while (marks->tail != KV_PAGE_NONE) {
        const uint32_t block = marks->tail;
        const size_t entry = kv_table_entry(table, list, block);
        const uint32_t n = kv_pool_slots_below(cache->pool, table->page[entry], position);
        if (n > 0) {
            kv_table_see(table, list, block, table->live[entry] & kv_slot_mask(n));
            break;
        }
        n_freed += kv_table_drop_entry(table, cache->pool, list, block, holder);
        marks->tail = entry_before(table, list, block);
    }
    marks->first = (uint32_t)min_size(marks->first, position / cache->page_tokens);
    marks->passed = (uint32_t)min_size(marks->passed, position);
    return n_freed;
}

uint64_t kv_scatter_cut(const kv_cache *cache, kv_table *table, uint32_t position, kv_holder holder)
{
    uint64_t n_freed = 0;
    if (table->capacity == 0) return 0;
    for (uint32_t l = 0; l < cache->n_layers; l++) {
        if (!cache->scatters[l]) continue;
        for (uint32_t i = 0; i < cache->n_kv_heads[l] * cache->n_shards; i++)
            n_freed += cut_list(cache, table, kv_list(cache, l, 0, 0) + i, position, holder);
    }
    return n_freed;
}

static void take_list(kv_seq *seq, const kv_scatter_source *source, uint32_t list)
{
    const kv_cache *cache = seq->cache;
    const kv_pages *pages = kv_pool_pages(cache->pool);
    const uint64_t window = cache->layer[source->layer].window;
    const uint32_t n_blocks = source->end / cache->page_tokens;
    kv_table *table = &seq->table;
    kv_list_marks *marks = &table->marks[list];
    *marks = source->table->marks[list];
    marks->tail = KV_PAGE_NONE;
    marks->first = (uint32_t)min_size(marks->first, n_blocks);
    marks->passed = (uint32_t)min_size(marks->passed, source->end);
    for (uint32_t b = marks->first; b < n_blocks; b++) {
        const uint32_t page = kv_table_page(source->table, list, b);
        if (page == KV_PAGE_NONE) continue;
        const uint32_t n = kv_pool_slots_below(cache->pool, page, source->end);
        const uint32_t last = pages->positions[(size_t)page * cache->page_tokens + n - 1];
        if (window != 0 && last + window <= source->n_tokens) {
            marks->passed = (uint32_t)max_size(marks->passed, last + 1);
            continue;
        }
        kv_pool_hold(cache->pool, page, KV_HELD_BY_SEQ);
        table->page[kv_table_entry(table, list, b)] = page;
        uint64_t live = source->table->live[kv_table_entry(source->table, list, b)];
        if (b == 0) /* read from the ring */
            live &= ~kv_slot_mask(kv_pool_slots_below(cache->pool, page, cache->sink_tokens));
        kv_table_see(table, list, b, live & kv_slot_mask(n));
        marks->tail = b;
    }
}

void kv_scatter_take(kv_seq *seq, const kv_scatter_source *source)
{
    const kv_cache *cache = seq->cache;
    for (uint32_t s = 0; s < cache->n_shards && source->end > 0; s++)
        take_list(seq, source, kv_list(cache, source->layer, source->head, s));
}

/* A list's tail with fewer slots than a page, and how many of them the sequence sees. */
typedef struct open_tail {
    size_t entry;
    uint32_t page, n_slots;
} open_tail;

static bool find_open_tail(const kv_seq *seq, uint32_t list, open_tail *out)
{
    const kv_cache *cache = seq->cache;
    const kv_table *table = &seq->table;
    const uint32_t block = table->marks[list].tail;
    if (block == KV_PAGE_NONE) return false;
    out->entry = kv_table_entry(table, list, block);
    out->page = table->page[out->entry];
    out->n_slots = kv_pool_slots_below(cache->pool, out->page, seq->n_blocks * cache->page_tokens);
    return out->n_slots < cache->page_tokens;
}

static bool is_own(const kv_cache *cache, uint32_t page)
{
    const kv_pages *pages = kv_pool_pages(cache->pool);
    return pages->n_refs[KV_HELD_BY_SEQ][page] == 1 &&
           pages->n_refs[KV_HELD_BY_OBJECT][page] == 0 && !kv_is_coded_page(cache, page) &&
           kv_pool_tier(cache->pool, page) == KV_TIER_POOL;
}

static void copy_tail(kv_seq *seq, uint32_t layer, uint32_t list, const open_tail *tail)
{
    kv_cache *cache = seq->cache;
    const uint32_t i = list - kv_list(cache, layer, 0, 0), shard = i % cache->n_shards;
    const uint32_t page_class = cache->layer_class[layer];
    const uint32_t page = kv_pool_alloc_page(cache->pool, page_class, KV_HELD_BY_SEQ);
    assert(page != KV_PAGE_NONE);
    const kv_page_place from = {layer, i / cache->n_shards, tail->page};
    const attn_span span = kv_seq_load_page(seq, &from, tail->n_slots, 0);
    kv_pool_rewrite(cache->pool, page,
                    kv_pool_pages(cache->pool)->positions + (size_t)tail->page * cache->page_tokens,
                    tail->n_slots, kv_choose_owner(cache, shard, page_class));
    kv_strip_write(&cache->layout[page_class].strip, kv_pool_data(cache->pool, page), 0, &span);
    kv_count_spilled(cache, shard, page, tail->n_slots);
    seq->table.page[tail->entry] = page;
    (void)kv_pool_drop(cache->pool, tail->page, KV_HELD_BY_SEQ);
}

bool kv_scatter_own_tails(kv_seq *seq)
{
    kv_cache *cache = seq->cache;
    open_tail tail;
    if (seq->table.capacity == 0) return true;
    memset(cache->need, 0, cache->n_classes * sizeof *cache->need);
    for (uint32_t l = 0; l < cache->n_layers; l++) {
        for (uint32_t i = 0; cache->scatters[l] && i < cache->n_kv_heads[l] * cache->n_shards;
             i++) {
            if (!find_open_tail(seq, kv_list(cache, l, 0, 0) + i, &tail)) continue;
            if (is_own(cache, tail.page)) {
                kv_pool_shrink(cache->pool, tail.page, tail.n_slots); /* so it stays in the pool */
            } else {
                cache->need[cache->layer_class[l]]++;
            }
        }
    }
    if (!kv_make_room(cache)) return false;
    for (uint32_t l = 0; l < cache->n_layers; l++) {
        for (uint32_t i = 0; cache->scatters[l] && i < cache->n_kv_heads[l] * cache->n_shards;
             i++) {
            if (!find_open_tail(seq, kv_list(cache, l, 0, 0) + i, &tail)) continue;
            if (is_own(cache, tail.page)) {
                kv_pool_shrink(cache->pool, tail.page, tail.n_slots);
            } else {
                copy_tail(seq, l, kv_list(cache, l, 0, 0) + i, &tail);
            }
        }
    }
    return true;
}

bool kv_scatter_find_room_for_tails(kv_seq *seq)
{
    kv_cache *cache = seq->cache;
    open_tail tail;
    memset(cache->need, 0, cache->n_classes * sizeof *cache->need);
    for (uint32_t l = 0; l < cache->n_layers && seq->table.capacity > 0; l++) {
        const uint32_t n = cache->scatters[l] ? cache->n_kv_heads[l] * cache->n_shards : 0;
        for (uint32_t i = 0; i < n; i++)
            cache->need[cache->layer_class[l]] +=
                find_open_tail(seq, kv_list(cache, l, 0, 0) + i, &tail);
    }
    return kv_make_room(cache);
}

static void replace_in(kv_table *table, const kv_page_at *at, uint32_t list, uint32_t to)
{
    if (kv_table_page(table, list, at->block) == at->page)
        table->page[kv_table_entry(table, list, at->block)] = to;
}

/* Whoever sees a page sees it at the same entry of the same list. */
static void move_page(kv_cache *cache, const kv_page_at *at, uint32_t list)
{
    const uint32_t to = kv_pool_move_page(cache->pool, at->page);
    if (to == at->page) return;
    for (uint32_t s = 0; s < cache->limits.n_seqs_max; s++)
        replace_in(&cache->seqs[s].table, at, list, to);
    for (uint32_t o = 0; o < cache->prefix.n_objects_max; o++)
        replace_in(&cache->prefix.objects[o].table, at, list, to);
}

static void pack_list(kv_seq *seq, uint32_t list)
{
    const kv_list_marks *marks = &seq->table.marks[list];
    if (marks->tail == KV_PAGE_NONE) return;
    for (uint32_t b = marks->first; b <= marks->tail; b++) {
        const kv_page_at at = {.block = b, .page = kv_table_page(&seq->table, list, b)};
        if (at.page != KV_PAGE_NONE && !kv_is_coded_page(seq->cache, at.page) &&
            kv_pool_tier(seq->cache->pool, at.page) == KV_TIER_POOL)
            move_page(seq->cache, &at, list);
    }
}

void kv_scatter_pack(kv_cache *cache)
{
    for (uint32_t s = 0; s < cache->limits.n_seqs_max && cache->has_scattered; s++) {
        kv_seq *seq = &cache->seqs[s];
        if (!seq->is_open || seq->table.capacity == 0) continue;
        for (uint32_t l = 0; l < cache->n_layers; l++) {
            const uint32_t n = cache->scatters[l] ? cache->n_kv_heads[l] * cache->n_shards : 0;
            for (uint32_t i = 0; i < n; i++)
                pack_list(seq, kv_list(cache, l, 0, 0) + i);
        }
    }
}

/* ---- back to a ring ------------------------------------------------------------------------------ */

/* Slots of a page in the range, one by one, to the ring. */
static void page_to_ring(kv_seq *seq, const kv_scatter_range *range, uint32_t page,
                         void (*write)(const kv_rings *, kv_ring *, const kv_ring_place *,
                                       const attn_span *))
{
    const kv_cache *cache = seq->cache;
    const uint32_t first = kv_pool_slots_below(cache->pool, page, range->first);
    const uint32_t end = kv_pool_slots_below(cache->pool, page, range->end);
    if (first == end) return;
    const uint32_t *positions =
        kv_pool_pages(cache->pool)->positions + (size_t)page * cache->page_tokens;
    const kv_page_place from = {range->layer, range->head, page};
    const attn_span span = kv_seq_load_page(seq, &from, end, 0);
    for (uint32_t i = first; i < end; i++) {
        const kv_ring_place at = {range->layer, range->head, positions[i]};
        const attn_span slot = kv_span_cut(&span, i, 1);
        write(&cache->rings, seq->ring, &at, &slot);
    }
}

/* The next time they leave the ring they go to where they were. */
static void note_shard(const kv_seq *seq, const kv_scatter_range *range, uint32_t page,
                       uint32_t shard)
{
    const kv_cache *cache = seq->cache;
    const uint32_t *positions =
        kv_pool_pages(cache->pool)->positions + (size_t)page * cache->page_tokens;
    const uint32_t end = kv_pool_slots_below(cache->pool, page, range->end);
    for (uint32_t i = kv_pool_slots_below(cache->pool, page, range->first); i < end; i++)
        *kv_ring_expert(&cache->rings, seq->ring, range->layer, positions[i]) =
            (uint16_t)(KV_EXPERT_OF_SHARD + shard);
}

void kv_scatter_to_ring(kv_seq *seq, const kv_scatter_range *range)
{
    const kv_cache *cache = seq->cache;
    for (uint32_t s = 0; s < cache->n_shards && range->first < range->end; s++) {
        const uint32_t list = kv_list(cache, range->layer, range->head, s);
        uint32_t block = range->table->marks[list].tail;
        while (block != KV_PAGE_NONE) {
            const uint32_t page = range->table->page[kv_table_entry(range->table, list, block)];
            page_to_ring(seq, range, page, kv_ring_write);
            if (range->head == 0) note_shard(seq, range, page, s);
            /* Positions rise along the list. */
            if (kv_pool_slots_below(cache->pool, page, range->first) > 0) break;
            block = entry_before(range->table, list, block);
        }
    }
}

void kv_scatter_to_sinks(kv_seq *seq, const kv_scatter_range *range)
{
    const kv_cache *cache = seq->cache;
    assert(range->end <= cache->sink_tokens);
    for (uint32_t s = 0; s < cache->n_shards; s++) {
        const uint32_t page =
            kv_table_page(range->table, kv_list(cache, range->layer, range->head, s), 0);
        if (page != KV_PAGE_NONE) page_to_ring(seq, range, page, kv_ring_write_sinks);
    }
}
