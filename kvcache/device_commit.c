/* kvcache/device_commit.c - see device_commit.h. */
#include "kvcache/device_commit.h"

#include "kvcache/blocks.h"
#include "kvcache/device_measure.h"
#include "kvcache/device_view.h"
#include "kvcache/encode.h"
#include "kvcache/key_box.h"
#include "kvcache/page_changes.h"

#include <string.h>

/* ---- memory -------------------------------------------------------------------------------------- */

size_t kv_view_copy_bytes(const kv_page_layout *layout, bool has_box)
{
    if (!kv_has_kind(layout)) return 0;
    return round_up(layout->page_bytes + (has_box ? kv_box_bytes(&layout->shape) : 0),
                    ENCODE_ALIGN);
}

/* Under methods that sequences may bring, boxes come with every page. */
static size_t copy_bytes_of(const kv_cache *cache, uint32_t page_class)
{
    return kv_view_copy_bytes(&cache->layout[page_class], cache->has_boxes);
}

size_t kv_view_copy_bytes_max(const kv_cache *cache)
{
    size_t most = 0;
    for (uint32_t c = cache->n_raw_classes; c < cache->n_classes; c++)
        most = max_size(most, copy_bytes_of(cache, c));
    return most;
}

void kv_view_place_work(const kv_cache *cache, arena *a, kv_view_work *out)
{
    out->kinds = arena_take(a, cache->n_classes, sizeof *out->kinds);
    out->tasks = arena_take(a, KV_MADE_MAX, sizeof *out->tasks);
    out->made = arena_take(a, KV_MADE_MAX, sizeof *out->made);
    out->copies = arena_take(a, KV_MADE_MAX, out->copy_bytes);
    out->copy_at = arena_take(a, KV_MADE_MAX, sizeof *out->copy_at);
    out->moves = arena_take(a, out->n_moves_max, sizeof *out->moves);
    out->is_committed = arena_take(a, cache->limits.n_seqs_max, sizeof *out->is_committed);
}

void kv_view_place_work_there(const kv_cache *cache, arena *a, kv_view_work *out)
{
    out->device.kinds = arena_take(a, cache->n_classes, sizeof *out->device.kinds);
    out->device.tasks = arena_take(a, KV_MADE_MAX, sizeof *out->device.tasks);
    out->device.copies = arena_take(a, KV_MADE_MAX, out->copy_bytes);
    out->device.moves = arena_take(a, out->n_moves_max, sizeof *out->device.moves);
}

void kv_view_send_kinds(kv_cache *cache)
{
    kv_view_work *work = &cache->view->work;
    for (uint32_t c = 0; c < cache->n_classes; c++) {
        if (kv_has_kind(&cache->layout[c])) work->kinds[c] = kv_page_kind(&cache->layout[c]);
    }
    dev_upload(cache->d, work->device.kinds, work->kinds, cache->n_classes * sizeof *work->kinds);
}

/* ---- pages --------------------------------------------------------------------------------------- */

bool kv_view_made(const kv_cache *cache, uint32_t page)
{
    return cache->view != NULL && kv_is_coded_page(cache, page) &&
           kv_pool_is_made(cache->pool, page);
}

/* Page i of those that came down. */
static void take_page(void *ctx, size_t begin, size_t end, uint32_t worker)
{
    const kv_cache *cache = ctx;
    const kv_view_work *work = &cache->view->work;
    (void)worker;
    for (size_t i = begin; i < end; i++) {
        const encode_kind *kind = &work->kinds[work->tasks[i].kind];
        const uint8_t *copy = work->copies + work->copy_at[i];
        if (work->tasks[i].copy == NULL) continue;
        memcpy(kv_pool_data(cache->pool, work->made[i]), copy, kind->page_bytes);
        if (work->tasks[i].box != NULL)
            memcpy(kv_pool_box(cache->pool, work->made[i]), copy + kind->page_bytes,
                   encode_box_bytes(kind));
    }
}

/* Does what is listed. */
static void make_pages(kv_cache *cache)
{
    kv_view_work *work = &cache->view->work;
    if (work->n == 0) return;
    dev_upload(cache->d, work->device.tasks, work->tasks, work->n * sizeof *work->tasks);
    cache->d->ops->encode_pages(
        cache->d, &(encode_pages_args){work->device.kinds, work->device.tasks, work->n});
    if (work->n_copied > 0) {
        dev_download(cache->d, work->copies, work->device.copies, work->n_copied);
        parallel_for(cache->d->pool, work->n, 16, take_page, cache);
    }
    work->n = 0;
    work->n_copied = 0;
}

/* Lists a page that has its slots, made of these runs. */
static void add_page(kv_cache *cache, uint32_t page, const encode_run run[2])
{
    const kv_view *view = cache->view;
    kv_view_work *work = &cache->view->work;
    const size_t box_bytes = kv_pool_pages(cache->pool)->box_bytes;
    const uint32_t page_class = kv_pool_class(cache->pool, page);
    encode_task *task = &work->tasks[work->n];
    *task = (encode_task){.run = {run[0], run[1]},
                          .page = view->device.pool + kv_pool_offset(cache->pool, page),
                          .kind = page_class};
    if (view->choice.boxes != NULL) {
        task->box = view->choice.boxes + page * box_bytes;
        task->n_left_out = kv_page_sinks(cache, page);
    }
    if (kv_is_coded_page(cache, page)) {
        task->copy = work->device.copies + work->n_copied;
        work->copy_at[work->n] = work->n_copied;
        work->n_copied += copy_bytes_of(cache, page_class);
    }
    work->made[work->n++] = page;
    kv_pool_note_made(cache->pool, page);
    if (work->n == KV_MADE_MAX) make_pages(cache);
}

/* ---- a commit ------------------------------------------------------------------------------------ */

/* Slots [first, + n) of a ring or of staging. */
static encode_run slots_run(const kv_cache *cache, const kv_page_place *at, const uint8_t *slots,
                            uint32_t first, uint32_t n)
{
    const kv_view *view = cache->view;
    const kv_strip *strip = &cache->staging.strips.strip[at->layer];
    const uint8_t *k = slots + first * view->slot_bytes + view->layer_offset[at->layer];
    assert(view->slot_bytes <= UINT32_MAX);
    return (encode_run){.k = k + (size_t)at->head * strip->k_stride_bytes,
                        .v = k + (size_t)cache->n_kv_heads[at->layer] * strip->k_stride_bytes +
                             (size_t)at->head * strip->v_copy_bytes,
                        .k_stride_bytes = (uint32_t)view->slot_bytes,
                        .v_stride_bytes = (uint32_t)view->slot_bytes,
                        .n_slots = n};
}

static uint8_t *ring_there(const kv_seq *seq)
{
    const kv_cache *cache = seq->cache;
    const size_t n_slots = (size_t)cache->rings.n_recent + cache->rings.n_sinks;
    return cache->view->device.rings +
           (size_t)(seq - cache->seqs) * n_slots * cache->view->slot_bytes;
}

static void commit_page(kv_seq *seq, uint32_t layer, uint32_t head, uint32_t block)
{
    kv_cache *cache = seq->cache;
    const uint32_t page =
        kv_table_page(&seq->table, kv_home_list(cache, layer, head, block), block);
    if (page == KV_PAGE_NONE || !kv_has_kind(kv_layout_of(cache, page))) return;
    const kv_page_place at = {layer, head, page};
    const uint32_t n = kv_pool_pages(cache->pool)->n_slots[page];
    const uint32_t first = block * cache->page_tokens;
    const uint32_t n_old = first < seq->length ? (uint32_t)min_size(n, seq->length - first) : 0;
    encode_run run[2] = {{0}};
    if (n_old > 0)
        run[0] = slots_run(cache, &at, ring_there(seq), first % cache->rings.n_recent, n_old);
    if (n_old < n)
        run[1] = slots_run(cache, &at, cache->view->device.staging,
                           seq->first_token + (first + n_old - seq->length), n - n_old);
    add_page(cache, page, run);
}

/* Positions [first, end) of the step, to `slot` of the ring and up, or round its recent part. */
static void move_slots(const kv_seq *seq, uint32_t first, uint32_t end, bool are_sinks)
{
    const kv_cache *cache = seq->cache;
    const kv_view *view = cache->view;
    kv_view_work *work = &cache->view->work;
    const uint32_t n_recent = cache->rings.n_recent;
    for (uint32_t p = first; p < end; p++) {
        const size_t from = seq->first_token + (p - seq->length);
        const size_t to = are_sinks ? n_recent + p : p % n_recent;
        assert(work->n_moves < work->n_moves_max);
        work->moves[work->n_moves++] = (move_task){view->device.staging + from * view->slot_bytes,
                                                   ring_there(seq) + to * view->slot_bytes};
    }
}

/* Positions of the step that stay in the ring: [*first, *end), and as sinks below *sinks_end. */
static void find_staying(const kv_seq *seq, uint32_t *first, uint32_t *end, uint32_t *sinks_end)
{
    const kv_cache *cache = seq->cache;
    *end = seq->length + seq->n_step_tokens;
    *first = seq->n_reserved * cache->page_tokens;
    if (*first < seq->length) *first = seq->length;
    *sinks_end = (uint32_t)min_size(cache->sink_tokens, *end);
}

static void commit_row(kv_seq *seq)
{
    const kv_cache *cache = seq->cache;
    uint32_t first, end, sinks_end;
    for (uint32_t l = 0; l < cache->n_layers; l++) {
        assert(!cache->scatters[l]);
        for (uint32_t b = seq->n_blocks; b < seq->n_reserved; b++) {
            for (uint32_t h = 0; h < cache->n_kv_heads[l]; h++)
                commit_page(seq, l, h, b);
        }
    }
    find_staying(seq, &first, &end, &sinks_end);
    move_slots(seq, seq->length, sinks_end, true);
    move_slots(seq, first, end, false);
}

void kv_view_commit(kv_cache *cache, const kv_row *rows, uint32_t n_rows)
{
    if (cache->view == NULL || !cache->view->attends) return;
    kv_view_work *work = &cache->view->work;
    work->n_moves = 0;
    for (uint32_t r = 0; r < n_rows; r++) {
        work->is_committed[r] = kv_view_has_entries(cache, rows[r].seq);
        if (work->is_committed[r]) commit_row(rows[r].seq);
    }
    make_pages(cache);
    if (work->n_moves == 0) return;
    dev_upload(cache->d, work->device.moves, work->moves, work->n_moves * sizeof *work->moves);
    cache->d->ops->move_slots(
        cache->d, &(move_slots_args){work->device.moves, work->n_moves, cache->view->slot_bytes});
}

static void forget_changes(kv_ring *ring, uint32_t first, uint32_t end, uint32_t n_recent)
{
    for (uint32_t p = first; p < end; p++)
        atomic_store_explicit(&ring->changed[n_recent > 0 ? p % n_recent : p], false,
                              memory_order_relaxed);
}

void kv_view_end_commit(kv_cache *cache, const kv_row *rows, uint32_t n_rows)
{
    const uint32_t n_recent = cache->rings.n_recent;
    for (uint32_t r = 0; cache->view != NULL && r < n_rows; r++) {
        const kv_seq *seq = rows[r].seq;
        uint32_t first, end, sinks_end;
        if (!cache->view->attends || !cache->view->work.is_committed[r]) continue;
        find_staying(seq, &first, &end, &sinks_end);
        if (seq->length < sinks_end)
            forget_changes(seq->ring, n_recent + seq->length, n_recent + sinks_end, 0);
        forget_changes(seq->ring, first, end, n_recent);
    }
}

/* ---- encoding ------------------------------------------------------------------------------------ */

static bool can_seal(const kv_cache *cache, const kv_sealing *sealing)
{
    return !kv_is_coded_page(cache, sealing->from) &&
           kv_has_kind(kv_layout_of(cache, sealing->to)) &&
           kv_pool_has_copy(cache->pool, sealing->from);
}

void kv_view_seal(kv_cache *cache, uint32_t n)
{
    if (cache->view == NULL || !cache->view->attends) return;
    for (uint32_t i = 0; i < n; i++) {
        const kv_sealing *sealing = &cache->sealings[i];
        const kv_strip *strip = &kv_layout_of(cache, sealing->from)->strip;
        if (!can_seal(cache, sealing)) continue;
        const uint8_t *from = cache->view->device.pool + kv_pool_offset(cache->pool, sealing->from);
        const encode_run run[2] = {{.k = from,
                                    .v = from + strip->v_offset_bytes,
                                    .k_stride_bytes = strip->k_stride_bytes,
                                    .v_stride_bytes = strip->v_stride_bytes,
                                    .n_slots = kv_pool_pages(cache->pool)->n_slots[sealing->from]}};
        add_page(cache, sealing->to, run);
    }
    make_pages(cache);
}
