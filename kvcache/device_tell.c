/* kvcache/device_tell.c - what of the cache has changed, on its way to the device. */
#include "kvcache/device_view.h"

#include "kvcache/blocks.h"
#include "kvcache/device_low.h"
#include "kvcache/encode.h"
#include "kvcache/page_bias.h"
#include "kvcache/page_changes.h"

#include <string.h>

/* ---- pages --------------------------------------------------------------------------------------- */

static void tell_biases(const kv_cache *cache, uint32_t page)
{
    const float *biases = kv_pool_biases(cache->pool, page);
    if (cache->view->device.biases == NULL || biases == NULL) return;
    dev_upload(cache->d, cache->view->device.biases + (size_t)page * cache->page_tokens, biases,
               kv_pool_pages(cache->pool)->n_slots[page] * sizeof *biases);
}

/* The boxes of pages [first, end). */
static void tell_boxes(const kv_cache *cache, uint32_t first, uint32_t end)
{
    const size_t bytes = kv_pool_pages(cache->pool)->box_bytes;
    uint8_t *boxes = cache->view->choice.boxes;
    if (boxes == NULL || first == end) return;
    dev_upload(cache->d, boxes + first * bytes, kv_pool_box(cache->pool, first),
               (end - first) * bytes);
}

/* And what biases them at most. */
static void tell_most_biases(const kv_cache *cache, uint32_t first, uint32_t end)
{
    const float *most = kv_pool_most_biases(cache->pool);
    if (cache->view->choice.boxes == NULL || most == NULL || first == end) return;
    dev_upload(cache->d, cache->view->choice.bias_most + first, most + first,
               (end - first) * sizeof *most);
}

/* Pages that follow each other, in the pool and by their numbers. */
typedef struct page_run {
    const uint8_t *first, *end; /* NULL: none */
    uint64_t offset;
    uint32_t first_page, end_page;
} page_run;

static void tell_run(const kv_cache *cache, page_run *run)
{
    if (run->first != NULL)
        dev_upload(cache->d, cache->view->device.pool + run->offset, run->first,
                   (size_t)(run->end - run->first));
    tell_boxes(cache, run->first_page, run->end_page);
    *run = (page_run){0};
}

/* Pages are handed out in the order of their addresses, and of their numbers, so most of them go in long runs. */
void kv_view_tell_pages(kv_cache *cache)
{
    page_run run = {0};
    uint32_t first = 0, end = 0; /* of all that is noted, made there or not */
    kv_page_change change;
    while (kv_pool_take_change(cache->pool, &change)) {
        const uint32_t page = change.page;
        const uint8_t *data = kv_pool_data(cache->pool, page);
        if (page != end) {
            tell_most_biases(cache, first, end);
            first = page;
        }
        end = page + 1;
        tell_biases(cache, page);
        if (change.is_made) continue;
        if (data != run.end || page != run.end_page) {
            tell_run(cache, &run);
            run = (page_run){
                .first = data, .offset = kv_pool_offset(cache->pool, page), .first_page = page};
        }
        run.end = data + kv_pool_page_bytes(cache->pool, page);
        run.end_page = page + 1;
    }
    tell_most_biases(cache, first, end);
    tell_run(cache, &run);
}

/* ---- rings --------------------------------------------------------------------------------------- */

/* One slot of one head: its key, and its value if that is stored by itself. */
static void copy_head(const kv_slot_copy *c, uint32_t layer, uint32_t head, uint32_t slot,
                      uint8_t *packed, bool is_packing)
{
    const kv_view *view = c->cache->view;
    const kv_strip *strip = &c->strips->strip[layer];
    const uint32_t n_heads = c->cache->n_kv_heads[layer];
    uint8_t *base = kv_strips_at(c->strips, c->bytes, layer, head);
    uint8_t *k = base + (size_t)slot * strip->k_stride_bytes;
    uint8_t *v = base + strip->v_offset_bytes + (size_t)slot * strip->v_stride_bytes;
    uint8_t *packed_k = packed + view->layer_offset[layer] + (size_t)head * strip->k_stride_bytes;
    uint8_t *packed_v = packed + view->layer_offset[layer] +
                        (size_t)n_heads * strip->k_stride_bytes +
                        (size_t)head * strip->v_copy_bytes;
    if (is_packing) {
        memcpy(packed_k, k, strip->k_stride_bytes);
        memcpy(packed_v, v, strip->v_copy_bytes);
    } else {
        memcpy(k, packed_k, strip->k_stride_bytes);
        memcpy(v, packed_v, strip->v_copy_bytes);
    }
}

typedef struct copy_loop {
    const kv_slot_copy *copy;
    bool is_packing;
} copy_loop;

static void copy_slots(void *ctx, size_t begin, size_t end, uint32_t worker)
{
    const copy_loop *loop = ctx;
    const kv_slot_copy *c = loop->copy;
    (void)worker;
    for (size_t i = begin; i < end; i++) {
        uint8_t *packed = c->packed + i * c->cache->view->slot_bytes;
        for (uint32_t l = 0; l < c->cache->n_layers; l++) {
            for (uint32_t h = 0; h < c->cache->n_kv_heads[l]; h++)
                copy_head(c, l, h, c->first + (uint32_t)i, packed, loop->is_packing);
        }
    }
}

void kv_slots_pack(const kv_slot_copy *copy, uint32_t n)
{
    parallel_for(copy->cache->d->pool, n, 1, copy_slots, &(copy_loop){copy, true});
}

void kv_slots_unpack(const kv_slot_copy *copy, uint32_t n)
{
    parallel_for(copy->cache->d->pool, n, 1, copy_slots, &(copy_loop){copy, false});
}

/* Slots [first, first + n) of a ring. */
static void tell_slots(kv_cache *cache, uint32_t s, uint32_t first, uint32_t n)
{
    const kv_view *view = cache->view;
    const kv_rings *rings = &cache->rings;
    const size_t n_slots = (size_t)rings->n_recent + rings->n_sinks;
    const kv_slot_copy copy = {.cache = cache,
                               .strips = &rings->strips,
                               .bytes = cache->seqs[s].ring->bytes,
                               .first = first,
                               .packed = view->packed};
    kv_slots_pack(&copy, n);
    dev_upload(cache->d, view->device.rings + (s * n_slots + first) * view->slot_bytes,
               view->packed, n * view->slot_bytes);
}

void kv_view_tell_ring(kv_cache *cache, uint32_t s)
{
    const uint32_t n_slots = cache->rings.n_recent + cache->rings.n_sinks;
    atomic_bool *changed = cache->seqs[s].ring->changed;
    for (uint32_t first = 0; first < n_slots; first++) {
        uint32_t n = 0;
        while (first + n < n_slots && n < cache->view->n_packed_max &&
               atomic_exchange_explicit(&changed[first + n], false, memory_order_relaxed))
            n++;
        if (n > 0) tell_slots(cache, s, first, n);
        first += n > 0 ? n - 1 : 0;
    }
}

/* ---- lists --------------------------------------------------------------------------------------- */

typedef struct list_head {
    uint32_t layer, head;
} list_head;

/* What a sequence sees of the page of a block: sinks are read from the ring. Adds what is read of it. */
static attn_page page_entry(const kv_seq *seq, const list_head *head, uint32_t block,
                            kv_view_sum *sum)
{
    const kv_cache *cache = seq->cache;
    const kv_pages *pages = kv_pool_pages(cache->pool);
    const uint32_t list = kv_home_list(cache, head->layer, head->head, block);
    const uint32_t page = kv_table_page(&seq->table, list, block);
    if (page == KV_PAGE_NONE) return (attn_page){0};
    const uint32_t n_sinks = kv_page_sinks(cache, page);
    const size_t slots = (size_t)page * cache->page_tokens;
    const bool has_bias = kv_pool_biases(cache->pool, page) != NULL;
    const uint64_t live =
        seq->table.live[kv_table_entry(&seq->table, list, block)] & ~kv_slot_mask(n_sinks);
    if (live == 0) return (attn_page){0};
    const uint64_t read_bytes =
        kv_page_read_bytes(kv_layout_of(cache, page), pages->n_slots[page] - n_sinks);
    assert(read_bytes <= UINT32_MAX);
    sum->bytes += read_bytes;
    sum->n_pages++;
    return (attn_page){
        .data = cache->view->device.pool + kv_pool_offset(cache->pool, page),
        .basis = kv_view_basis(cache, &(kv_page_place){head->layer, head->head, page}),
        .bias = has_bias ? cache->view->device.biases + slots : NULL,
        .live = live,
        .first_position = pages->positions[slots],
        .layout = (uint16_t)kv_pool_class(cache->pool, page),
        .n_slots = pages->n_slots[page],
        .box = page,
        .read_bytes = (uint32_t)read_bytes,
    };
}

typedef struct entry_loop {
    const kv_seq *seq;
    kv_view_seq *told;
    uint32_t first;
} entry_loop;

/* Job i: entries of block first + i, and what a layer has of it alone. */
static void fill_entries(void *ctx, size_t begin, size_t end, uint32_t worker)
{
    const entry_loop *loop = ctx;
    const kv_cache *cache = loop->seq->cache;
    const kv_view *view = cache->view;
    (void)worker;
    for (size_t i = begin; i < end; i++) {
        const uint32_t block = loop->first + (uint32_t)i;
        attn_page *entry = view->entries + i * view->n_lists;
        for (uint32_t l = 0; l < cache->n_layers; l++) {
            kv_view_sum sum = {0};
            for (uint32_t h = 0; h < cache->n_kv_heads[l]; h++)
                *entry++ = page_entry(loop->seq, &(list_head){l, h}, block, &sum);
            loop->told->sums[(size_t)l * (loop->told->capacity + 1) + block + 1] = sum;
        }
    }
}

/* From what blocks have to what lies below them. */
static void add_sums(const kv_cache *cache, kv_view_seq *told, uint32_t first, uint32_t end)
{
    for (uint32_t l = 0; l < cache->n_layers; l++) {
        kv_view_sum *sums = told->sums + (size_t)l * (told->capacity + 1);
        for (uint32_t b = first; b < end; b++) {
            sums[b + 1].bytes += sums[b].bytes;
            sums[b + 1].n_pages += sums[b].n_pages;
        }
    }
}

/* The first block that the device does not know as it is. */
static uint32_t first_changed(const kv_seq *seq, const kv_view_seq *told)
{
    uint32_t first = told->n_told;
    for (uint32_t list = 0; list < seq->table.n_lists && seq->table.capacity > 0; list++) {
        if (seq->table.changed[list] < first) first = seq->table.changed[list];
    }
    return first;
}

void kv_view_tell_lists(kv_cache *cache, uint32_t s)
{
    const kv_seq *seq = &cache->seqs[s];
    const kv_view *view = cache->view;
    kv_view_seq *told = &cache->view->seqs[s];
    const uint32_t first = first_changed(seq, told);
    for (uint32_t b = first; b < seq->n_blocks; b += KV_TOLD_BLOCKS) {
        const uint32_t n = (uint32_t)min_size(KV_TOLD_BLOCKS, (size_t)seq->n_blocks - b);
        const entry_loop loop = {seq, told, b};
        parallel_for(cache->d->pool, n, 1, fill_entries, (void *)&loop);
        dev_upload(cache->d, told->pages + (size_t)b * view->n_lists, view->entries,
                   (size_t)n * view->n_lists * sizeof *view->entries);
    }
    if (first < seq->n_blocks) add_sums(cache, told, first, seq->n_blocks);
    told->n_told = seq->n_blocks;
    for (uint32_t list = 0; list < seq->table.n_lists && seq->table.capacity > 0; list++)
        seq->table.changed[list] = KV_PAGE_NONE;
}
