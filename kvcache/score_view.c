/* kvcache/score_view.c - see score_view.h. */
#include "kvcache/score_view.h"

#include "kvcache/away.h"
#include "kvcache/page_bias.h"

#include <string.h>

/* Where a walk over one list of a head is: at an entry, or at its end. */
typedef struct cursor {
    uint32_t shard, block, page;
    uint32_t ordinal; /* of the page in the view's pages; valid if something of it was listed */
    bool is_listed;
    uint64_t live; /* slots of the page that are still to come */
    uint32_t slot;
    uint32_t position; /* UINT32_MAX: at the end */
} cursor;

/* To the next live slot whose position is not below `oldest`. */
static void step_cursor(const kv_seq *seq, uint32_t list, uint32_t oldest, cursor *c)
{
    const kv_cache *cache = seq->cache;
    const uint32_t *positions = kv_pool_pages(cache->pool)->positions;
    do {
        while (c->live == 0) {
            c->position = UINT32_MAX;
            if (++c->block == seq->n_blocks) return;
            const size_t entry = kv_table_entry(&seq->table, list, c->block);
            c->live = seq->table.live[entry];
            c->page = seq->table.page[entry];
            c->is_listed = false;
        }
        c->slot = (uint32_t)__builtin_ctzll(c->live);
        c->live &= c->live - 1;
        c->position = positions[(size_t)c->page * cache->page_tokens + c->slot];
    } while (c->position < oldest);
}

static void add_recent(kv_head_view *view, uint32_t position)
{
    view->positions[view->n] = position;
    if (view->bias != NULL) view->bias[view->n] = 0;
    view->entry[view->n++] = KV_ENTRY_NONE;
}

static void add_entry(const kv_pool *pool, kv_head_view *view, cursor *c)
{
    const float *biases = kv_pool_biases(pool, c->page);
    if (view->bias != NULL) view->bias[view->n] = biases != NULL ? biases[c->slot] : 0;
    view->positions[view->n] = c->position;
    view->entry[view->n] = c->block;
    view->shard[view->n] = (uint8_t)c->shard;
    view->slot[view->n] = (uint8_t)c->slot;
    if (view->pages.of_entry != NULL) {
        if (!c->is_listed) c->ordinal = view->pages.n++;
        c->is_listed = true;
        view->pages.of_entry[view->n] = c->ordinal;
    }
    view->n++;
}

/* Positions rise along each list, so the lists are merged: runs of the one that is behind. */
static void list_pages(const kv_seq *seq, uint32_t layer, uint32_t head, uint32_t oldest,
                       kv_head_view *view)
{
    const kv_cache *cache = seq->cache;
    cursor at[KV_SHARDS_MAX];
    for (uint32_t s = 0; s < cache->n_shards; s++) {
        at[s] = (cursor){.shard = s, .block = UINT32_MAX, .position = UINT32_MAX};
        if (seq->n_blocks > 0) step_cursor(seq, kv_list(cache, layer, head, s), oldest, &at[s]);
    }
    for (;;) {
        cursor *first = at;
        uint32_t next = UINT32_MAX; /* position at which another list is behind */
        for (uint32_t s = 1; s < cache->n_shards; s++) {
            cursor *later = &at[s];
            if (later->position < first->position) {
                later = first;
                first = &at[s];
            }
            if (later->position < next) next = later->position;
        }
        if (first->position == UINT32_MAX) return;
        while (first->position < next) {
            add_entry(cache->pool, view, first);
            step_cursor(seq, kv_list(cache, layer, head, first->shard), oldest, first);
        }
    }
}

void kv_view_list(const kv_seq *seq, uint32_t layer, uint32_t head, kv_head_view *view)
{
    const kv_cache *cache = seq->cache;
    const uint32_t length = seq->length, window = cache->layer[layer].window;
    const uint32_t oldest = window != 0 && length >= window ? length - window + 1 : 0;
    const uint32_t n_sinks = (uint32_t)min_size(cache->sink_tokens, length);
    const uint32_t recent = kv_blocks_left(cache, length) * cache->page_tokens;
    uint32_t first_in_ring = seq->n_blocks * cache->page_tokens;
    view->n = view->n_evicted = view->n_rewritten = view->pages.n = 0;
    for (uint32_t p = oldest; p < n_sinks; p++)
        add_recent(view, p);
    view->first = view->n;
    list_pages(seq, layer, head, oldest, view);
    if (first_in_ring < n_sinks) first_in_ring = n_sinks;
    if (first_in_ring < oldest) first_in_ring = oldest;
    for (uint32_t p = first_in_ring; p < length; p++)
        add_recent(view, p);
    uint32_t end = view->n;
    while (end > view->first && view->positions[end - 1] >= recent)
        end--;
    view->n_open = end - view->first;
}

/* ---- loading ------------------------------------------------------------------------------------- */

static void load_row(const void *row, dtype type, uint32_t n, float *out)
{
    const uint8_t *bytes = row;
    if (type == DTYPE_F32) {
        memcpy(out, bytes, n * sizeof *out);
        return;
    }
    for (uint32_t i = 0; i < n; i++) {
        uint16_t half;
        memcpy(&half, bytes + 2 * (size_t)i, sizeof half);
        out[i] = f32_from_bf16(half);
    }
}

/* Entry i of the view, as a span of one slot. */
static attn_span find_entry(const kv_view_source *from, uint32_t i)
{
    const kv_seq *seq = from->seq;
    const kv_cache *cache = seq->cache;
    const uint32_t position = from->view->positions[i], entry = from->view->entry[i];
    if (entry == KV_ENTRY_NONE && position < cache->sink_tokens) {
        const attn_span sinks = kv_ring_sink_span(&cache->rings, seq->ring, from->layer, from->head,
                                                  cache->sink_tokens);
        return kv_span_cut(&sinks, position, 1);
    }
    if (entry == KV_ENTRY_NONE) {
        const kv_ring_place at = {from->layer, from->head, position};
        return kv_ring_span(&cache->rings, seq->ring, &at, 1);
    }
    const uint32_t list = kv_list(cache, from->layer, from->head, from->view->shard[i]);
    const uint32_t page = kv_table_page(&seq->table, list, entry);
    if (page != *from->page)
        *from->span = kv_seq_load_page(from->seq, &(kv_page_place){from->layer, from->head, page},
                                       kv_pool_pages(cache->pool)->n_slots[page], from->worker);
    *from->page = page;
    return kv_span_cut(from->span, from->view->slot[i], 1);
}

/* Entries [first, first + count) of a view, and where they are wanted. */
typedef struct wanted_rows {
    uint32_t first, count;
    float *k, *v;
} wanted_rows;

/* Rows of one shard; what lies in the ring goes with the first. */
static void load_shard(const kv_view_source *from, const wanted_rows *rows, uint32_t shard)
{
    const kv_head_shape *shape = &from->seq->cache->heads[from->layer];
    for (uint32_t i = 0; i < rows->count; i++) {
        const uint32_t at = rows->first + i;
        const bool is_recent = from->view->entry[at] == KV_ENTRY_NONE;
        if ((is_recent ? 0 : from->view->shard[at]) != shard) continue;
        const attn_span row = find_entry(from, at);
        if (rows->k != NULL)
            load_row(row.k, shape->type, shape->k_dim, rows->k + (size_t)i * shape->k_dim);
        if (rows->v != NULL)
            load_row(row.v, shape->type, shape->v_dim, rows->v + (size_t)i * shape->v_dim);
    }
}

void kv_view_load(const kv_score_view *view, uint32_t first, uint32_t count, float *k, float *v)
{
    const kv_view_source *from = view->ctx;
    assert(count <= KV_SCORE_CHUNK);
    assert(first + count <= view->n);
    /* Shard by shard: neighbours lie on pages of all of them, and each page is decoded for itself. */
    for (uint32_t s = 0; s < from->seq->cache->n_shards; s++)
        load_shard(from, &(wanted_rows){first, count, k, v}, s);
}
