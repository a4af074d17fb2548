/* kvcache/score_view.c - see score_view.h. */
#include "kvcache/score_view.h"

#include "kvcache/away.h"
#include "kvcache/page_bias.h"

#include <string.h>

/* An entry of a page, or of the ring. */
typedef struct entry_place {
    uint32_t entry, slot;
} entry_place;

static const entry_place in_ring = {KV_ENTRY_NONE, 0};

static void add_entry(kv_head_view *view, uint32_t position, entry_place place, float bias)
{
    view->positions[view->n] = position;
    if (view->bias != NULL) view->bias[view->n] = bias;
    view->entry[view->n] = place.entry;
    view->slot[view->n++] = (uint8_t)place.slot;
}

static void list_pages(const kv_seq *seq, uint32_t list, uint32_t oldest, kv_head_view *view)
{
    const kv_cache *cache = seq->cache;
    const uint32_t *positions = kv_pool_pages(cache->pool)->positions;
    for (uint32_t b = 0; b < seq->n_blocks; b++) {
        const size_t entry = kv_table_entry(&seq->table, list, b);
        const uint32_t page = seq->table.page[entry];
        const uint32_t *at = positions + (size_t)page * cache->page_tokens;
        const float *biases = page != KV_PAGE_NONE ? kv_pool_biases(cache->pool, page) : NULL;
        for (uint64_t live = seq->table.live[entry]; live != 0; live &= live - 1) {
            const uint32_t slot = (uint32_t)__builtin_ctzll(live);
            if (at[slot] >= oldest)
                add_entry(view, at[slot], (entry_place){b, slot},
                          biases != NULL ? biases[slot] : 0);
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
    view->n = view->n_evicted = 0;
    for (uint32_t p = oldest; p < n_sinks; p++)
        add_entry(view, p, in_ring, 0);
    view->first = view->n;
    list_pages(seq, kv_list(cache, layer, head, 0), oldest, view);
    if (first_in_ring < n_sinks) first_in_ring = n_sinks;
    if (first_in_ring < oldest) first_in_ring = oldest;
    for (uint32_t p = first_in_ring; p < length; p++)
        add_entry(view, p, in_ring, 0);
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
    const uint32_t page =
        kv_table_page(&seq->table, kv_list(cache, from->layer, from->head, 0), entry);
    if (page != *from->page)
        *from->span = kv_seq_load_page(from->seq, &(kv_page_place){from->layer, from->head, page},
                                       kv_pool_pages(cache->pool)->n_slots[page], from->worker);
    *from->page = page;
    return kv_span_cut(from->span, from->view->slot[i], 1);
}

void kv_view_load(const kv_score_view *view, uint32_t first, uint32_t count, float *k, float *v)
{
    const kv_view_source *from = view->ctx;
    const kv_cache *cache = from->seq->cache;
    const kv_head_shape *shape = &cache->heads[from->layer];
    assert(count <= KV_SCORE_CHUNK);
    assert(first + count <= view->n);
    for (uint32_t i = 0; i < count; i++) {
        const attn_span row = find_entry(from, first + i);
        if (k != NULL) load_row(row.k, shape->type, shape->k_dim, k + (size_t)i * shape->k_dim);
        if (v != NULL) load_row(row.v, shape->type, shape->v_dim, v + (size_t)i * shape->v_dim);
    }
}
