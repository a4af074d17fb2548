/* kvcache/reader.c - see reader.h. */
#include "kvcache/reader.h"

#include "kvcache/commit.h"

/* Query rows (queries x heads) of a tile: bounds the scratch of wide groups. */
enum { TILE_ROWS_MAX = 128 };

/* Below this many multiply-adds a parallel loop costs more than it saves. */
static const double SERIAL_WORK_MAX = 65536;

typedef struct attend_loop {
    kv_cache *cache;
    const kv_attend_args *args;
    uint32_t n_tiles;
} attend_loop;

/* One job while it runs. */
typedef struct job {
    const kv_cache *cache;
    const kv_seq *seq;
    kv_reader_worker *worker;
    attn_query query;
    uint32_t layer, head;
    uint32_t n_spans, n_blocks; /* listed and not yet folded */
} job;

static uint32_t tile_queries(const kv_layer_shape *shape)
{
    const uint32_t n = TILE_ROWS_MAX / (shape->n_heads / shape->n_kv_heads);
    return n < 1 ? 1 : n > KV_TILE_QUERIES_MAX ? KV_TILE_QUERIES_MAX : n;
}

void kv_reader_place(arena *a, const kv_cache *cache, kv_reader *reader)
{
    size_t rows_max = 0, acc_max = 0;
    for (uint32_t l = 0; l < cache->n_layers; l++) {
        const kv_layer_shape *shape = &cache->layer[l];
        const size_t group = shape->n_heads / shape->n_kv_heads;
        const size_t rows = tile_queries(shape) * group;
        rows_max = max_size(rows_max, rows);
        acc_max = max_size(acc_max, rows * shape->v_dim);
    }
    const uint32_t n_workers = thread_pool_n_threads(cache->d->pool);
    const size_t n_blocks = cache->limits.n_seq_tokens_max / cache->page_tokens + 1;
    kv_reader_worker *workers = arena_take(a, n_workers, sizeof *workers);
    for (uint32_t w = 0; w < n_workers; w++) {
        const kv_reader_worker placed = {
            .spans = arena_take(a, (size_t)2 * KV_READ_BLOCKS, sizeof *placed.spans),
            .blocks = arena_take(a, KV_READ_BLOCKS, sizeof *placed.blocks),
            .chosen = arena_take(a, n_blocks, sizeof *placed.chosen),
            .positions = arena_take(a, KV_TILE_QUERIES_MAX, sizeof *placed.positions),
            .state.max = arena_take(a, rows_max, sizeof *placed.state.max),
            .state.sum = arena_take(a, rows_max, sizeof *placed.state.sum),
            .state.acc = arena_take(a, acc_max, sizeof *placed.state.acc),
        };
        if (workers != NULL) workers[w] = placed;
    }
    reader->n_workers = n_workers;
    reader->workers = workers;
    reader->tiles = arena_take(a, cache->limits.n_step_tokens_max, sizeof *reader->tiles);
}

void kv_reader_count(const kv_reader *reader, uint64_t *bytes_read, uint64_t *blocks_read)
{
    *bytes_read = *blocks_read = 0;
    for (uint32_t w = 0; w < reader->n_workers; w++) {
        *bytes_read += reader->workers[w].bytes_read;
        *blocks_read += reader->workers[w].blocks_read;
    }
}

static void fold_blocks(job *j)
{
    if (j->n_blocks == 0) return;
    const kv_page_layout *raw = &j->cache->layout[j->cache->layer_class[j->layer]];
    const kv_page_layout *coded = kv_coded_layout(j->cache, j->layer);
    for (uint32_t s = 0; s < j->n_spans; s++) {
        const attn_span *span = &j->worker->spans[s];
        j->worker->bytes_read +=
            kv_page_read_bytes(span->coding == ATTN_PLAIN ? raw : coded, span->n_slots);
    }
    j->worker->blocks_read += j->n_blocks;
    const attn_blocks blocks = {
        .spans = j->worker->spans, .blocks = j->worker->blocks, .n_blocks = j->n_blocks};
    j->cache->d->ops->attend(&j->query, &blocks, &j->worker->state);
    j->n_blocks = 0;
    j->n_spans = 0;
}

/* Lists one block of spans; those without a live slot are left out. */
static void add_block(job *j, const attn_span *spans, uint32_t n_spans)
{
    attn_block *block = &j->worker->blocks[j->n_blocks];
    *block = (attn_block){.first_span = j->n_spans};
    for (uint32_t s = 0; s < n_spans; s++) {
        if (spans[s].live == 0) continue;
        j->worker->spans[j->n_spans++] = spans[s];
        block->n_spans++;
    }
    if (block->n_spans > 0) j->n_blocks++;
    if (j->n_blocks == KV_READ_BLOCKS) fold_blocks(j);
}

static void add_page_block(job *j, uint32_t block)
{
    const kv_cache *cache = j->cache;
    const kv_table *table = &j->seq->table;
    const size_t entry = kv_table_entry(table, kv_list(cache, j->layer, j->head, 0), block);
    const uint32_t page = table->page[entry];
    assert(page != KV_PAGE_NONE);
    const kv_pages *pages = kv_pool_pages(cache->pool);
    const uint32_t n_slots = pages->n_slots[page], n_sinks = block == 0 ? cache->sink_tokens : 0;
    attn_span spans[2];
    uint32_t n = 0;
    if (n_sinks > 0)
        spans[n++] = kv_ring_sink_span(&cache->rings, j->seq->ring, j->layer, j->head, n_sinks);
    if (n_sinks < n_slots) {
        attn_span span =
            kv_page_span(kv_layout_of(cache, page), kv_pool_data(cache->pool, page), n_slots);
        span.positions = pages->positions + (size_t)page * cache->page_tokens;
        span.live = table->live[entry];
        spans[n++] = kv_span_cut(&span, n_sinks, n_slots - n_sinks);
    }
    add_block(j, spans, n);
}

/* Pages of blocks [first, end), as far as routing selects them. */
static void add_page_blocks(job *j, uint32_t first, uint32_t end)
{
    if (first >= end) return;
    const kv_cache *cache = j->cache;
    const kv_table *table = &j->seq->table;
    const size_t entry = kv_table_entry(table, kv_list(cache, j->layer, j->head, 0), first);
    const kv_route_args args = {.query = &j->query,
                                .pages = kv_pool_pages(cache->pool),
                                .page = table->page + entry,
                                .live = table->live + entry,
                                .n_pages = end - first};
    const uint32_t n_chosen = cache->routing->select(&args, j->worker->chosen);
    assert(n_chosen <= args.n_pages);
    for (uint32_t i = 0; i < n_chosen; i++)
        add_page_block(j, first + j->worker->chosen[i]);
}

/* Blocks that begin at or after `first` and hold positions below `end`, in ring and staging. */
static void add_recent_blocks(job *j, uint32_t first, uint32_t end)
{
    const uint32_t page_tokens = j->cache->page_tokens;
    for (uint32_t b = first; b * page_tokens < end; b++) {
        attn_span spans[2];
        const kv_ring_place at = {j->layer, j->head, b * page_tokens};
        const uint32_t n_slots = (uint32_t)min_size(page_tokens, (size_t)end - at.position);
        add_block(j, spans, kv_recent_spans(j->seq, &at, n_slots, spans));
    }
}

static void read_blocks(job *j)
{
    const attn_query *query = &j->query;
    const uint32_t page_tokens = j->cache->page_tokens;
    const uint32_t oldest = query->positions[0];
    const uint32_t end = query->positions[query->n_queries - 1] + 1;
    uint32_t first = 0;
    if (query->window != 0 && oldest >= query->window)
        first = (oldest - query->window + 1) / page_tokens;
    const uint32_t n_blocks = j->seq->n_blocks;
    add_page_blocks(j, first, n_blocks);
    add_recent_blocks(j, first > n_blocks ? first : n_blocks, end);
    fold_blocks(j);
}

static void attend_tile(const attend_loop *loop, const kv_tile *tile, uint32_t head,
                        kv_reader_worker *worker)
{
    kv_cache *cache = loop->cache;
    const kv_row *row = &cache->step.rows[tile->row];
    const kv_layer_shape *shape = &cache->layer[loop->args->layer];
    const uint32_t group = shape->n_heads / shape->n_kv_heads;
    const size_t token = (size_t)row->first_token + tile->first;
    const size_t q_stride = (size_t)shape->n_heads * shape->k_dim;
    const size_t o_stride = (size_t)shape->n_heads * shape->v_dim;
    for (uint32_t i = 0; i < tile->n_queries; i++)
        worker->positions[i] = row->seq->length + tile->first + i;
    job j = {.cache = cache,
             .seq = row->seq,
             .worker = worker,
             .layer = loop->args->layer,
             .head = head,
             .query = {
                 .q = loop->args->q + token * q_stride + (size_t)head * group * shape->k_dim,
                 .q_stride = q_stride,
                 .positions = worker->positions,
                 .n_queries = tile->n_queries,
                 .group = group,
                 .k_dim = shape->k_dim,
                 .v_dim = shape->v_dim,
                 .window = shape->window,
                 .scale = shape->scale,
                 .type = cache->type,
             }};
    attn_state_reset(&worker->state, (size_t)tile->n_queries * group, shape->v_dim);
    read_blocks(&j);
    const attn_result result = {
        .o = loop->args->out + token * o_stride + (size_t)head * group * shape->v_dim,
        .o_stride = o_stride,
        .sink_logit = shape->sink_logit != NULL ? shape->sink_logit + (size_t)head * group : NULL,
    };
    attn_finish(&j.query, &worker->state, &result);
}

/* Job i: tile i mod n_tiles of head i / n_tiles, so that neighbours share keys. */
static void attend_jobs(void *ctx, size_t begin, size_t end, uint32_t worker)
{
    const attend_loop *loop = ctx;
    const kv_reader *reader = &loop->cache->reader;
    for (size_t i = begin; i < end; i++) {
        const kv_tile *tile = &reader->tiles[i % loop->n_tiles];
        attend_tile(loop, tile, (uint32_t)(i / loop->n_tiles), &reader->workers[worker]);
    }
}

/* Cuts the step into tiles; returns their number. *work: multiply-adds of one KV head. */
static uint32_t cut_tiles(kv_cache *cache, const kv_layer_shape *shape, double *work)
{
    const uint32_t n_max = tile_queries(shape);
    const double per_key =
        (double)(shape->n_heads / shape->n_kv_heads) * ((double)shape->k_dim + shape->v_dim);
    uint32_t n_tiles = 0;
    *work = 0;
    for (uint32_t r = 0; r < cache->step.n_rows; r++) {
        const kv_row *row = &cache->step.rows[r];
        for (uint32_t first = 0; first < row->n_tokens; first += n_max) {
            const uint32_t n = (uint32_t)min_size(n_max, (size_t)row->n_tokens - first);
            cache->reader.tiles[n_tiles++] = (kv_tile){r, first, n};
        }
        *work += (double)row->n_tokens * (row->seq->length + row->n_tokens) * per_key;
    }
    return n_tiles;
}

void kv_attend(kv_cache *cache, const kv_attend_args *args)
{
    assert(cache->step.is_open);
    assert(args->layer < cache->n_layers);
    assert(cache->step.n_appended == args->layer + 1);
    const kv_layer_shape *shape = &cache->layer[args->layer];
    double work;
    attend_loop loop = {.cache = cache, .args = args};
    loop.n_tiles = cut_tiles(cache, shape, &work);
    const size_t n_jobs = (size_t)loop.n_tiles * shape->n_kv_heads;
    const bool is_small = work * shape->n_kv_heads < SERIAL_WORK_MAX;
    parallel_for(cache->d->pool, n_jobs, is_small ? n_jobs : 1, attend_jobs, &loop);
}
