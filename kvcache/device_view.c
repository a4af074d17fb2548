/* kvcache/device_view.c - see device_view.h: open, close, and one step. */
#include "kvcache/device_view.h"

#include "kvcache/device_choice.h"
#include "kvcache/device_low.h"
#include "kvcache/device_ranks.h"
#include "kvcache/encode.h"
#include "kvcache/kv_step_work.h"
#include "kvcache/page_changes.h"
#include "kvcache/ranks.h"

#include <stdlib.h>
#include <string.h>

enum {
    TASK_STEPS = 8,    /* numbers of tasks between a power of two and the next */
    TASK_ROWS = 8,     /* queries x heads of a task, about: what a device keeps of a block's sums */
    SLOTS_PACKED = 64, /* at least, on their way at once */
    PARTIALS_MIN = 1024, /* of a step, so that many sequences are split, not only the longest */
    SLOT_ALIGN = 64
};

/* ---- open and close ------------------------------------------------------------------------------ */

/* Can the device read what the cache keeps? */
static bool can_attend(const kv_cache *cache)
{
    if (cache->d->ops->attend_pages == NULL || cache->has_tiers || cache->has_scattered)
        return false;
    for (uint32_t l = 0; l < cache->n_layers; l++) {
        if (cache->layer[l].k_dim > ATTN_PAGES_DIM_MAX ||
            cache->layer[l].v_dim > ATTN_PAGES_DIM_MAX)
            return false;
    }
    return true;
}

static void place_hosts(const kv_cache *cache, arena *a, kv_view *view)
{
    const size_t n = cache->limits.n_step_tokens_max;
    size_t q = 0, k = 0, v = 0, out = 0;
    for (uint32_t l = 0; l < cache->n_layers; l++) {
        const kv_layer_shape *shape = &cache->layer[l];
        q = max_size(q, (size_t)shape->n_heads * shape->k_dim);
        k = max_size(k, (size_t)shape->n_kv_heads * shape->k_dim);
        v = max_size(v, (size_t)shape->n_kv_heads * shape->v_dim);
        out = max_size(out, (size_t)shape->n_heads * shape->v_dim);
    }
    view->q = arena_take(a, n, q * sizeof *view->q);
    view->k = arena_take(a, n, k * sizeof *view->k);
    view->v = arena_take(a, n, v * sizeof *view->v);
    view->out = arena_take(a, n, out * sizeof *view->out);
    view->is_hosts = arena_take(a, cache->limits.n_seqs_max, sizeof *view->is_hosts);
    if (!view->attends) return;
    view->layer_offset = arena_take(a, cache->n_layers, sizeof *view->layer_offset);
    view->first_list = arena_take(a, cache->n_layers, sizeof *view->first_list);
    view->packed = arena_take(a, view->n_packed_max, view->slot_bytes);
    view->entries = arena_take(a, KV_TOLD_BLOCKS, view->n_lists * sizeof *view->entries);
    view->seqs = arena_take(a, cache->limits.n_seqs_max, sizeof *view->seqs);
    view->rows = arena_take(a, cache->limits.n_seqs_max, sizeof *view->rows);
    view->tasks = arena_take(a, view->n_tasks_max, sizeof *view->tasks);
    view->merges = arena_take(a, cache->limits.n_seqs_max, sizeof *view->merges);
    kv_view_place_choice(cache, a, view);
    kv_view_place_work(cache, a, &view->work);
    kv_view_place_ranks(cache, a, view);
}

static void place_device(const kv_cache *cache, arena *a, kv_view *view)
{
    const size_t n_slots = (size_t)cache->rings.n_recent + cache->rings.n_sinks;
    const size_t partial =
        (size_t)view->n_heads_max * ((size_t)cache->v_dim_max + 2) * sizeof(float);
    const size_t n_pages = view->pool.has_biases ? view->pool.n_pages : 0;
    bool has_sink_logits = false;
    for (uint32_t l = 0; l < cache->n_layers; l++)
        has_sink_logits = has_sink_logits || cache->layer[l].sink_logit != NULL;
    view->device.pool = arena_take(a, 1, view->pool.bytes);
    view->device.rings = arena_take(a, cache->limits.n_seqs_max * n_slots, view->slot_bytes);
    view->device.staging = arena_take(a, cache->limits.n_step_tokens_max, view->slot_bytes);
    if (n_pages > 0)
        view->device.biases = arena_take(a, n_pages, cache->page_tokens * sizeof(float));
    view->device.bases = arena_take(a, 1, kv_view_bases_bytes(cache));
    view->device.layouts = arena_take(a, cache->n_classes, sizeof *view->device.layouts);
    if (has_sink_logits)
        view->device.sink_logits =
            arena_take(a, cache->n_layers, view->n_heads_max * sizeof(float));
    view->device.rows = arena_take(a, cache->limits.n_seqs_max, sizeof *view->device.rows);
    view->device.tasks = arena_take(a, view->n_tasks_max, sizeof *view->device.tasks);
    view->device.merges = arena_take(a, cache->limits.n_seqs_max, sizeof *view->device.merges);
    view->device.partials = arena_take(a, view->n_partials_max, partial);
    kv_view_place_choice_there(cache, a, view);
    kv_view_place_work_there(cache, a, &view->work);
    kv_view_place_ranks_there(cache, a, view);
}

/* How large a slot is, and how much there is to do in a step, at most. */
static void measure(const kv_cache *cache, kv_view *view)
{
    uint32_t group_max = 1;
    for (uint32_t l = 0; l < cache->n_layers; l++) {
        const kv_layer_shape *shape = &cache->layer[l];
        const kv_strip *strip = &cache->staging.strips.strip[l];
        view->slot_bytes += round_up(
            shape->n_kv_heads * ((size_t)strip->k_stride_bytes + strip->v_copy_bytes), SLOT_ALIGN);
        view->n_lists += shape->n_kv_heads;
        view->n_heads_max = (uint32_t)max_size(view->n_heads_max, shape->n_heads);
        group_max = (uint32_t)max_size(group_max, shape->n_heads / shape->n_kv_heads);
    }
    view->n_queries_max = group_max < TASK_ROWS ? TASK_ROWS / group_max : 1;
    view->n_packed_max =
        (uint32_t)max_size(SLOTS_PACKED, (size_t)cache->rings.n_recent + cache->rings.n_sinks);
    view->n_partials_max = (uint32_t)max_size(
        PARTIALS_MIN, attn_n_splits(cache->limits.n_seq_tokens_max - 1, cache->page_tokens));
    view->n_tasks_max = cache->limits.n_step_tokens_max + view->n_partials_max;
    view->work.copy_bytes = view->pool.copy_bytes;
    view->work.n_moves_max =
        2 * cache->limits.n_step_tokens_max; /* a token may be a sink as well */
}

/* After the arrays have their place. */
static void find_offsets(const kv_cache *cache, kv_view *view)
{
    size_t offset = 0;
    uint32_t n_lists = 0;
    for (uint32_t l = 0; l < cache->n_layers; l++) {
        const kv_strip *strip = &cache->staging.strips.strip[l];
        view->layer_offset[l] = offset;
        view->first_list[l] = n_lists;
        n_lists += cache->n_kv_heads[l];
        offset +=
            round_up(cache->n_kv_heads[l] * ((size_t)strip->k_stride_bytes + strip->v_copy_bytes),
                     SLOT_ALIGN);
    }
}

err_t kv_view_measure(const kv_cache *cache, kv_view *view, size_t *device_bytes)
{
    arena device;
    *device_bytes = 0;
    view->attends = can_attend(cache);
    if (!view->attends) return ERR_OK;
    measure(cache, view);
    arena_init_measure(&device);
    place_device(cache, &device, view);
    *device_bytes = device.used_bytes;
    return device.err;
}

static err_t open_memory(kv_cache *cache, kv_view *view, err_info *info)
{
    arena host, device;
    view->pool.bytes = kv_pool_mapped_bytes(cache->pool);
    view->pool.box_bytes = cache->has_boxes ? kv_pool_pages(cache->pool)->box_bytes : 0;
    view->pool.n_pages = kv_pool_n_pages(cache->pool);
    view->pool.has_biases = cache->evict.has_fits;
    view->pool.copy_bytes = kv_view_copy_bytes_max(cache);
    TRY(kv_view_measure(cache, view, &view->device_bytes));
    arena_init_measure(&host);
    place_hosts(cache, &host, view);
    TRY(host.err);
    TRY(arena_init(&view->memory, host.used_bytes));
    place_hosts(cache, &view->memory, view);
    TRY(view->memory.err);
    if (!view->attends) return ERR_OK;
    find_offsets(cache, view);
    TRY(dev_alloc(cache->d, view->device_bytes, &view->block, info));
    arena_init_over(&device, view->block, view->device_bytes);
    place_device(cache, &device, view);
    return device.err;
}

/* What stays as it is. */
static void send_tables(kv_cache *cache)
{
    const kv_view *view = cache->view;
    kv_view_send_kinds(cache);
    kv_view_send_bases(cache);
    for (uint32_t c = 0; c < cache->n_classes; c++) {
        attn_layout layout = kv_page_attn_layout(&cache->layout[c]);
        kv_view_aim_layout(cache, c, &layout);
        dev_upload(cache->d, view->device.layouts + c, &layout, sizeof layout);
    }
    for (uint32_t l = 0; l < cache->n_layers; l++) {
        const kv_layer_shape *shape = &cache->layer[l];
        if (shape->sink_logit == NULL) continue;
        dev_upload(cache->d, view->device.sink_logits + (size_t)l * view->n_heads_max,
                   shape->sink_logit, shape->n_heads * sizeof *shape->sink_logit);
    }
}

err_t kv_view_open(kv_cache *cache, err_info *info)
{
    if (cache->d->memory == NULL) return ERR_OK;
    cache->view = calloc(1, sizeof *cache->view);
    if (cache->view == NULL) return ERR_NO_MEMORY;
    TRY(open_memory(cache, cache->view, info));
    if (!cache->view->attends) return ERR_OK;
    send_tables(cache);
    kv_view_open_ranks(cache);
    return ERR_OK;
}

void kv_view_close(kv_cache *cache)
{
    kv_view *view = cache->view;
    if (view == NULL) return;
    for (uint32_t s = 0; view->seqs != NULL && s < cache->limits.n_seqs_max; s++) {
        dev_free(cache->d, view->seqs[s].pages);
        free(view->seqs[s].sums);
    }
    dev_free(cache->d, view->block);
    arena_deinit(&view->memory);
    free(view);
    cache->view = NULL;
}

/* ---- before a step ------------------------------------------------------------------------------- */

static bool has_windows(const kv_cache *cache)
{
    bool has = false;
    for (uint32_t l = 0; l < cache->n_layers; l++)
        has = has || cache->layer[l].window != 0;
    return has;
}

bool kv_view_needs_host(const kv_cache *cache, const kv_methods *methods)
{
    const kv_codec *codec = methods->codec;
    const bool is_routed = !methods->reads_all && !kv_view_can_choose(cache, methods);
    return is_routed || kv_methods_needs(methods) != 0 || codec->is_mixed || codec->n_queries > 0 ||
           (kv_methods_evict(methods) && has_windows(cache));
}

bool kv_view_has_entries(const kv_cache *cache, const kv_seq *seq)
{
    const kv_view *view = cache->view;
    if (!view->attends || kv_view_needs_host(cache, &seq->methods)) return false;
    if (view->seqs[seq - cache->seqs].id != seq->id) return false; /* no step of it has begun */
    for (uint32_t i = 0; i < cache->rings.n_recent + cache->rings.n_sinks; i++) {
        if (atomic_load_explicit(&seq->ring->changed[i], memory_order_relaxed)) return false;
    }
    return true;
}

/* Twice as many as before, so that a growing sequence is told again a few times in all. */
uint32_t kv_view_capacity(uint32_t had, uint32_t n_blocks)
{
    size_t capacity = had > 0 ? had : KV_TOLD_BLOCKS;
    while (capacity < n_blocks)
        capacity *= 2;
    return (uint32_t)capacity;
}

/* Allocates between steps, as tables do. */
static err_t grow_seq(kv_cache *cache, uint32_t s, uint32_t n_blocks)
{
    kv_view *view = cache->view;
    kv_view_seq *told = &view->seqs[s];
    const size_t capacity = kv_view_capacity(told->capacity, n_blocks);
    size_t bytes, sums_bytes;
    void *pages;
    if (told->id != cache->seqs[s].id) told->n_told = 0;
    told->id = cache->seqs[s].id;
    if (n_blocks <= told->capacity) return ERR_OK;
    TRY(size_mul(capacity, view->n_lists * sizeof(attn_page), &bytes));
    TRY(size_mul(capacity + 1, cache->n_layers * sizeof(kv_view_sum), &sums_bytes));
    kv_view_sum *sums = calloc(1, sums_bytes);
    if (sums == NULL) return ERR_NO_MEMORY;
    if (dev_alloc(cache->d, bytes, &pages, NULL) != ERR_OK) {
        free(sums);
        return ERR_NO_MEMORY;
    }
    dev_free(cache->d, told->pages);
    free(told->sums);
    view->device_bytes += bytes - told->capacity * view->n_lists * sizeof(attn_page);
    told->pages = pages;
    told->sums = sums;
    told->capacity = (uint32_t)capacity;
    told->n_told = 0;
    return ERR_OK;
}

err_t kv_view_grow(kv_cache *cache, const kv_row *rows, uint32_t n_rows)
{
    kv_view *view = cache->view;
    if (view == NULL) return ERR_OK;
    view->n_hosts = 0;
    for (uint32_t r = 0; r < n_rows; r++) {
        const kv_seq *seq = rows[r].seq;
        const uint32_t s = (uint32_t)(seq - cache->seqs);
        view->is_hosts[r] = !view->attends || kv_view_needs_host(cache, &seq->methods);
        view->n_hosts += view->is_hosts[r];
        if (view->is_hosts[r]) continue;
        TRY(grow_seq(cache, s, (seq->length + rows[r].n_tokens) / cache->page_tokens + 1));
    }
    return ERR_OK;
}

/* ---- a step begins ------------------------------------------------------------------------------- */

/* One query and a task for each of its splits. */
static void add_split_tasks(kv_view *view, uint32_t r, uint32_t token, uint32_t n_splits)
{
    view->merges[view->n_merges++] = (attn_merge_task){token, r, view->n_partials, n_splits};
    for (uint32_t s = 0; s < n_splits; s++)
        view->tasks[view->n_tasks++] = (attn_task){.row = r,
                                                   .n_queries = 1,
                                                   .first_split = s,
                                                   .n_splits = 1,
                                                   .partial = view->n_partials++};
}

/* What tasks of a row read in a layer; the first block that a query at `oldest` sees. */
static void count_task(kv_cache *cache, bool is_choosing, uint32_t oldest, uint32_t last,
                       const kv_row *row)
{
    kv_view *view = cache->view;
    const kv_seq *seq = row->seq;
    const kv_view_seq *told = &view->seqs[seq - cache->seqs];
    const uint32_t n_blocks = seq->n_blocks, recent = n_blocks * cache->page_tokens;
    for (uint32_t l = 0; l < cache->n_layers; l++) {
        const uint32_t window = cache->layer[l].window;
        const kv_view_sum *sums = told->sums + (size_t)l * (told->capacity + 1);
        uint32_t seen = window != 0 && oldest >= window ? oldest - window + 1 : 0;
        const uint32_t first = (uint32_t)min_size(seen / cache->page_tokens, n_blocks);
        if (seen < recent) seen = recent;
        const uint64_t n_recent =
            kv_is_home(seq)
                ? last + 1 - seen + (n_blocks > 0 && first == 0 ? cache->sink_tokens : 0)
                : 0;
        const uint64_t n_pages = is_choosing ? 0 : sums[n_blocks].n_pages - sums[first].n_pages;
        const kv_strip *strip = &cache->staging.strips.strip[l];
        view->bytes_read += (is_choosing ? 0 : sums[n_blocks].bytes - sums[first].bytes) +
                            n_recent * cache->n_kv_heads[l] *
                                ((uint64_t)strip->k_stride_bytes + strip->v_copy_bytes);
        view->blocks_read += n_pages + cache->n_kv_heads[l] * ((n_recent + cache->page_tokens - 1) /
                                                               cache->page_tokens);
        if (!row->is_decode) continue;
        view->pages_open += n_pages;
        view->pages_read += n_pages;
    }
}

static void add_row(kv_cache *cache, uint32_t r)
{
    kv_view *view = cache->view;
    const kv_row *row = &cache->step.rows[r];
    const bool is_choosing = kv_is_choosing_row(cache, r);
    const uint32_t n_blocks = is_choosing
                                  ? kv_view_add_choice(cache, r)
                                  : (row->seq->length + row->n_tokens - 1) / cache->page_tokens + 1;
    const uint32_t n_splits = (n_blocks - 1) / ATTN_SPLIT_BLOCKS + 1;
    if (row->n_tokens == 1 && n_splits > 1 && n_splits <= view->n_partials_max - view->n_partials) {
        add_split_tasks(view, r, row->first_token, n_splits);
        count_task(cache, is_choosing, row->seq->length, row->seq->length, row);
        return;
    }
    for (uint32_t j = 0; j < row->n_tokens; j += view->n_queries_max) {
        const uint32_t n = (uint32_t)min_size(view->n_queries_max, (size_t)row->n_tokens - j);
        const uint32_t first = row->seq->length + j, last = first + n - 1;
        view->tasks[view->n_tasks++] = (attn_task){
            .row = r,
            .first_query = j,
            .n_queries = n,
            .n_splits = is_choosing ? n_splits : attn_n_splits(last, cache->page_tokens),
            .partial = ATTN_NO_PARTIAL};
        count_task(cache, is_choosing, first, last, row);
    }
}

/* Tasks that do nothing, up to a number that many steps share: a sequence that grows has more of them now and then,
 * and a graph is of one number. */
static void pad_tasks(kv_view *view)
{
    uint32_t step = 1;
    while (step * TASK_STEPS < view->n_tasks)
        step *= 2;
    const size_t n = ((size_t)view->n_tasks + step - 1) / step * step;
    while (view->n_tasks < min_size(n, view->n_tasks_max))
        view->tasks[view->n_tasks++] = (attn_task){.partial = ATTN_NO_PARTIAL};
}

uint64_t kv_step_work(const kv_cache *cache)
{
    const kv_view *view = cache->view;
    if (view == NULL || view->n_hosts > 0) return 0;
    return (uint64_t)view->n_tasks << 36 | (uint64_t)view->n_merges << 18 | view->choice.n;
}

static void send_tasks(kv_cache *cache)
{
    kv_view *view = cache->view;
    if (view->n_tasks > 0) pad_tasks(view);
    dev_upload(cache->d, view->device.rows, view->rows, cache->step.n_rows * sizeof *view->rows);
    dev_upload(cache->d, view->device.tasks, view->tasks, view->n_tasks * sizeof *view->tasks);
    dev_upload(cache->d, view->device.merges, view->merges, view->n_merges * sizeof *view->merges);
    kv_view_send_choices(cache);
}

void kv_view_begin_step(kv_cache *cache)
{
    kv_view *view = cache->view;
    if (view == NULL || !view->attends) return;
    const size_t ring_bytes =
        ((size_t)cache->rings.n_recent + cache->rings.n_sinks) * view->slot_bytes;
    view->n_tasks = view->n_merges = view->n_partials = view->choice.n = 0;
    kv_view_tell_pages(cache);
    for (uint32_t r = 0; r < cache->step.n_rows; r++) {
        const kv_row *row = &cache->step.rows[r];
        const uint32_t s = (uint32_t)(row->seq - cache->seqs);
        view->rows[r] = (attn_row){0}; /* the host's has no tasks */
        if (view->is_hosts[r]) continue;
        kv_view_tell_ring(cache, s);
        kv_view_tell_lists(cache, s);
        view->rows[r] = (attn_row){.pages = view->seqs[s].pages,
                                   .ring = view->device.rings + s * ring_bytes,
                                   .n_blocks = row->seq->n_blocks,
                                   .length = row->seq->length,
                                   .first_token = row->first_token,
                                   .n_tokens = row->n_tokens,
                                   .has_pages_only = !kv_is_home(row->seq)};
        add_row(cache, r);
    }
    send_tasks(cache);
}

/* ---- inside a step ------------------------------------------------------------------------------- */

static bool has_device_rows(const kv_cache *cache)
{
    return cache->view->n_hosts < cache->step.n_rows;
}

void kv_view_append(kv_cache *cache, const kv_append_args *args)
{
    const kv_view *view = cache->view;
    const kv_layer_shape *shape = &cache->layer[args->layer];
    const kv_strip *strip = &cache->staging.strips.strip[args->layer];
    const uint32_t n = cache->step.n_tokens, n_heads = shape->n_kv_heads;
    const size_t k_bytes = (size_t)n * n_heads * shape->k_dim * sizeof *args->k,
                 v_bytes = (size_t)n * n_heads * shape->v_dim * sizeof *args->v;
    if (view->n_hosts > 0) {
        dev_download(cache->d, view->k, args->k, k_bytes);
        if (strip->v_copy_bytes > 0) dev_download(cache->d, view->v, args->v, v_bytes);
    }
    if (!has_device_rows(cache)) return;
    uint8_t *to = view->device.staging + view->layer_offset[args->layer];
    put_rows_args rows = {.x = args->k,
                          .n_rows = n,
                          .n = n_heads * shape->k_dim,
                          .type = cache->type,
                          .to = to,
                          .stride_bytes = view->slot_bytes};
    cache->d->ops->put_rows(cache->d, &rows);
    if (strip->v_copy_bytes == 0) return;
    rows.x = args->v;
    rows.n = n_heads * shape->v_dim;
    rows.to = to + (size_t)n_heads * strip->k_stride_bytes;
    cache->d->ops->put_rows(cache->d, &rows);
}

static attend_pages_args pages_args(const kv_cache *cache, const kv_attend_args *args)
{
    const kv_view *view = cache->view;
    const kv_layer_shape *shape = &cache->layer[args->layer];
    const kv_strip *strip = &cache->staging.strips.strip[args->layer];
    const size_t k_offset = view->layer_offset[args->layer];
    const bool has_values = strip->v_copy_bytes > 0;
    return (attend_pages_args){
        .q = args->q,
        .out = args->out,
        .q_stride = (size_t)shape->n_heads * shape->k_dim,
        .out_stride = (size_t)shape->n_heads * shape->v_dim,
        .n_kv_heads = shape->n_kv_heads,
        .group = shape->n_heads / shape->n_kv_heads,
        .k_dim = shape->k_dim,
        .v_dim = shape->v_dim,
        .window = shape->window,
        .scale = shape->scale,
        .type = cache->type,
        .sink_logit = shape->sink_logit != NULL
                          ? view->device.sink_logits + (size_t)args->layer * view->n_heads_max
                          : NULL,
        .block_tokens = cache->page_tokens,
        .n_sinks = cache->rings.n_sinks,
        .n_ring_slots = cache->rings.n_recent,
        .first_list = view->first_list[args->layer],
        .n_lists = view->n_lists,
        .strip = {.slot_bytes = view->slot_bytes,
                  .k_offset = k_offset,
                  .v_offset = k_offset +
                              (has_values ? (size_t)shape->n_kv_heads * strip->k_stride_bytes : 0),
                  .k_head_bytes = strip->k_stride_bytes,
                  .v_head_bytes = has_values ? strip->v_copy_bytes : strip->k_stride_bytes},
        .staging = view->device.staging,
        .layouts = view->device.layouts,
        .has_low = kv_view_has_low(cache),
        .rows = view->device.rows,
        .tasks = view->device.tasks,
        .merges = view->device.merges,
        .n_tasks = view->n_tasks,
        .n_merges = view->n_merges,
        .n_queries_max = view->n_queries_max,
        .partials = view->device.partials,
        .chosen_stride = kv_view_chosen_stride(cache),
        .masses = kv_view_masses(cache, args->layer),
    };
}

void kv_view_begin_attend(kv_cache *cache, const kv_attend_args *args, kv_attend_args *host)
{
    const kv_view *view = cache->view;
    const kv_layer_shape *shape = &cache->layer[args->layer];
    *host = *args;
    if (has_device_rows(cache)) {
        attend_pages_args pages = pages_args(cache, args);
        kv_view_choose(cache, args->layer, &pages);
        kv_view_aim_part(cache, args->layer, &pages);
        cache->d->ops->attend_pages(cache->d, &pages);
        kv_view_merge_parts(cache, args);
    }
    host->q = view->q;
    host->out = view->out;
    if (view->n_hosts > 0)
        dev_download(cache->d, view->q, args->q,
                     (size_t)cache->step.n_tokens * shape->n_heads * shape->k_dim *
                         sizeof *args->q);
}

void kv_view_end_attend(kv_cache *cache, const kv_attend_args *args)
{
    const kv_view *view = cache->view;
    const kv_layer_shape *shape = &cache->layer[args->layer];
    const size_t row = (size_t)shape->n_heads * shape->v_dim;
    for (uint32_t r = 0; r < cache->step.n_rows;) {
        uint32_t n_tokens = 0, end = r;
        for (; end < cache->step.n_rows && view->is_hosts[end]; end++)
            n_tokens += cache->step.rows[end].n_tokens;
        const size_t at = cache->step.rows[r].first_token * row;
        if (n_tokens > 0)
            dev_upload(cache->d, args->out + at, view->out + at,
                       n_tokens * row * sizeof *args->out);
        r = end + (end == r);
    }
}

void kv_view_end_step(kv_cache *cache)
{
    const kv_view *view = cache->view;
    if (view != NULL && view->attends) kv_view_count_choices(cache);
    if (view == NULL || view->n_hosts > 0) return; /* layer by layer it came already */
    for (uint32_t t = 0; t < cache->step.n_tokens; t += view->n_packed_max) {
        const uint32_t n = (uint32_t)min_size(view->n_packed_max, (size_t)cache->step.n_tokens - t);
        const kv_slot_copy copy = {.cache = cache,
                                   .strips = &cache->staging.strips,
                                   .bytes = cache->staging.bytes,
                                   .first = t,
                                   .packed = view->packed};
        dev_download(cache->d, view->packed, view->device.staging + t * view->slot_bytes,
                     n * view->slot_bytes);
        kv_slots_unpack(&copy, n);
    }
}
