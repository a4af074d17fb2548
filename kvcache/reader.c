/* kvcache/reader.c - see reader.h. */
#include "kvcache/reader.h"

#include "kvcache/commit.h"
#include "kvcache/key_box.h"
#include "kvcache/scatter.h"

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
    attn_state *state; /* the worker's, or its probe */
    attn_query query;
    uint32_t layer, head;
    bool is_decode, is_probe;
    bool has_low;               /* the sequence has pages of coefficients */
    kv_misses *misses;          /* the job's own; written if is_decode */
    uint32_t n_spans, n_blocks; /* listed and not yet folded */
} job;

static uint32_t tile_queries(const kv_layer_shape *shape)
{
    const uint32_t n = TILE_ROWS_MAX / (shape->n_heads / shape->n_kv_heads);
    return n < 1 ? 1 : n > KV_TILE_QUERIES_MAX ? KV_TILE_QUERIES_MAX : n;
}

/* Adds what the largest tile of any layer needs for pages of one codec's coefficients. */
static void add_low_sizes(const kv_cache *cache, uint32_t codec, kv_low_sizes *sizes)
{
    for (uint32_t l = 0; l < cache->n_layers; l++) {
        const kv_layer_shape *shape = &cache->layer[l];
        const uint32_t page_class = cache->first_class[codec] + cache->layer_class[l];
        const kv_head_shape *head = &cache->layout[page_class].shape;
        const size_t n_rows = (size_t)tile_queries(shape) * (shape->n_heads / shape->n_kv_heads);
        sizes->n_rows = max_size(sizes->n_rows, n_rows);
        sizes->k_rank = (uint32_t)max_size(sizes->k_rank, head->k_rank);
        sizes->v_rank = (uint32_t)max_size(sizes->v_rank, head->v_rank);
        sizes->v_dim = (uint32_t)max_size(sizes->v_dim, head->v_dim);
    }
}

/* Zeros if no codec of the cache has coefficients. */
static kv_low_sizes low_sizes(const kv_cache *cache)
{
    kv_low_sizes sizes = {0};
    for (uint32_t codec = 0; kv_codecs[codec] != NULL; codec++) {
        if (kv_codecs[codec]->bases != NULL && cache->first_class[codec] != KV_CLASS_NONE)
            add_low_sizes(cache, codec, &sizes);
    }
    return sizes;
}

void kv_reader_place(arena *a, const kv_cache *cache, kv_reader *reader)
{
    const kv_low_sizes low = low_sizes(cache);
    size_t rows_max = 0, acc_max = 0, group_max = 0;
    for (uint32_t l = 0; l < cache->n_layers; l++) {
        const kv_layer_shape *shape = &cache->layer[l];
        const size_t group = shape->n_heads / shape->n_kv_heads;
        const size_t rows = tile_queries(shape) * group;
        group_max = max_size(group_max, group);
        rows_max = max_size(rows_max, rows);
        acc_max = max_size(acc_max, rows * shape->v_dim);
    }
    const uint32_t n_workers = thread_pool_n_threads(cache->d->pool);
    kv_reader_worker *workers = arena_take(a, n_workers, sizeof *workers);
    for (uint32_t w = 0; w < n_workers; w++) {
        kv_reader_worker placed = {
            .spans = arena_take(a, (size_t)2 * KV_READ_BLOCKS, sizeof *placed.spans),
            .blocks = arena_take(a, KV_READ_BLOCKS, sizeof *placed.blocks),
            .positions = arena_take(a, KV_TILE_QUERIES_MAX, sizeof *placed.positions),
            .state.max = arena_take(a, rows_max, sizeof *placed.state.max),
            .state.sum = arena_take(a, rows_max, sizeof *placed.state.sum),
            .state.acc = arena_take(a, acc_max, sizeof *placed.state.acc),
            .probe.max = arena_take(a, group_max, sizeof *placed.probe.max),
            .probe.sum = arena_take(a, group_max, sizeof *placed.probe.sum),
        };
        placed.probe.acc = placed.state.acc; /* never written: no channels */
        kv_choice_place(a, cache, &placed.choice);
        if (low.n_rows > 0) kv_low_place(a, &low, &placed.low);
        if (workers != NULL) workers[w] = placed;
    }
    reader->n_workers = n_workers;
    reader->workers = workers;
    reader->tiles = arena_take(a, cache->limits.n_step_tokens_max, sizeof *reader->tiles);
    reader->job_misses = arena_take(a, (size_t)cache->limits.n_seqs_max * cache->n_kv_heads_max,
                                    sizeof *reader->job_misses);
}

void kv_reader_begin_step(kv_reader *reader)
{
    reader->step_misses = (kv_misses){0};
}

void kv_reader_count(const kv_reader *reader, kv_stats *stats)
{
    const kv_misses all = reader->misses, step = reader->step_misses;
    stats->bytes_read = stats->blocks_read = stats->pages_open = stats->pages_read = 0;
    for (uint32_t w = 0; w < reader->n_workers; w++) {
        const kv_reader_worker *worker = &reader->workers[w];
        stats->bytes_read += worker->bytes_read;
        stats->blocks_read += worker->blocks_read;
        stats->pages_open += worker->pages_open;
        stats->pages_read += worker->pages_read;
    }
    stats->certificates = all.n;
    stats->certificate_sum = all.sum;
    stats->certificate_max = all.max;
    stats->step_certificate_mean = step.n > 0 ? step.sum / (double)step.n : 0;
    stats->step_certificate_max = step.max;
}

/* ---- blocks -------------------------------------------------------------------------------------- */

static void begin_low(job *j)
{
    if (!j->has_low) return;
    const kv_methods *methods = &j->seq->methods;
    const kv_head_bases bases = kv_bases_of_head(j->cache, methods->codec, j->layer, j->head);
    const kv_page_layout *layout = kv_coded_layout(j->cache, methods, j->layer);
    kv_low_begin(&j->worker->low, &layout->shape, &bases, &j->query);
}

static void fold_low(job *j)
{
    kv_low_reader *low = &j->worker->low;
    const kv_page_layout *coded = kv_coded_layout(j->cache, &j->seq->methods, j->layer);
    if (!j->has_low || low->n_blocks == 0) return;
    for (uint32_t s = 0; s < low->n_blocks && !j->is_probe; s++)
        j->worker->bytes_read += kv_page_read_bytes(coded, low->spans[s].n_slots);
    j->worker->blocks_read += j->is_probe ? 0 : low->n_blocks;
    kv_low_fold(low, j->cache->d->ops);
}

static void fold_blocks(job *j)
{
    fold_low(j);
    if (j->n_blocks == 0) return;
    const kv_page_layout *raw = &j->cache->layout[j->cache->layer_class[j->layer]];
    const kv_page_layout *coded = kv_coded_layout(j->cache, &j->seq->methods, j->layer);
    for (uint32_t s = 0; s < j->n_spans && !j->is_probe; s++) {
        const attn_span *span = &j->worker->spans[s];
        j->worker->bytes_read +=
            kv_page_read_bytes(span->coding == ATTN_PLAIN ? raw : coded, span->n_slots);
    }
    j->worker->blocks_read += j->is_probe ? 0 : j->n_blocks;
    const attn_blocks blocks = {
        .spans = j->worker->spans, .blocks = j->worker->blocks, .n_blocks = j->n_blocks};
    j->cache->d->ops->attend(&j->query, &blocks, j->state);
    j->n_blocks = 0;
    j->n_spans = 0;
}

/* All that is listed goes into the state. */
static void finish_blocks(job *j)
{
    fold_blocks(j);
    if (j->has_low) kv_low_merge(&j->worker->low, &j->query, j->state);
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

/* The sinks, from the ring: the beginning of block 0. */
static uint32_t sink_span(const job *j, attn_span *out)
{
    const kv_cache *cache = j->cache;
    if (cache->sink_tokens == 0) return 0;
    *out = kv_ring_sink_span(&cache->rings, j->seq->ring, j->layer, j->head, cache->sink_tokens);
    return 1;
}

/* The entries of a page, without the sinks: they come first. */
static uint32_t page_span(const job *j, const kv_page_at *at, attn_span *out)
{
    const kv_cache *cache = j->cache;
    const kv_pages *pages = kv_pool_pages(cache->pool);
    const uint32_t list = kv_list(cache, j->layer, j->head, at->shard);
    const uint32_t n_slots = pages->n_slots[at->page];
    const uint32_t n_sinks =
        at->block == 0 ? kv_pool_slots_below(cache->pool, at->page, cache->sink_tokens) : 0;
    if (n_sinks >= n_slots) return 0;
    attn_span span =
        kv_page_span(kv_layout_of(cache, at->page), kv_pool_data(cache->pool, at->page), n_slots);
    span.positions = pages->positions + (size_t)at->page * cache->page_tokens;
    span.live = j->seq->table.live[kv_table_entry(&j->seq->table, list, at->block)];
    *out = kv_span_cut(&span, n_sinks, n_slots - n_sinks);
    return 1;
}

static bool is_low_page(const job *j, uint32_t page)
{
    return j->has_low && kv_is_coded_page(j->cache, page);
}

/* A page that has sinks is never one. */
static void add_low_page(job *j, const kv_page_at *at)
{
    attn_span span;
    if (page_span(j, at, &span) == 0 || span.live == 0) return;
    kv_low_add(&j->worker->low, &span);
    if (j->worker->low.n_blocks == KV_LOW_BLOCKS) fold_low(j);
}

/* A page by itself; its sinks have been read. */
static void add_page(job *j, const kv_page_at *at)
{
    attn_span span;
    if (is_low_page(j, at->page)) {
        add_low_page(j, at);
    } else {
        add_block(j, &span, page_span(j, at, &span));
    }
}

static void add_page_block(job *j, uint32_t block)
{
    attn_span spans[2];
    const uint32_t list = kv_home_list(j->cache, j->layer, j->head, block);
    const kv_page_at at = {kv_block_shard(j->cache->n_shards, block), block,
                           kv_table_page(&j->seq->table, list, block)};
    assert(at.page != KV_PAGE_NONE);
    if (block > 0 || j->cache->sink_tokens == 0) {
        add_page(j, &at);
        return;
    }
    uint32_t n = sink_span(j, spans);
    n += page_span(j, &at, spans + n);
    add_block(j, spans, n);
}

/* Block 0 without its page. */
static void add_sinks(job *j)
{
    attn_span span;
    add_block(j, &span, sink_span(j, &span));
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

/* Pages of a scattered layer that the query sees, in their order; returns their number. With a choice,
 * candidates that were not chosen are left out; a probe of what is read in any case leaves out all. */
static uint32_t add_scattered(job *j, const kv_choice_range *range, const kv_choice *choice)
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
        add_page(j, &at);
        n++;
    }
    return n;
}

/* ---- a choice of pages --------------------------------------------------------------------------- */

static void note_log_read(const job *probe)
{
    for (uint32_t g = 0; g < probe->query.group; g++)
        probe->worker->choice.log_read[g] = kv_log_mass(probe->state, g);
}

/* The keys of one more candidate. Block 0 has its sinks already. */
static void probe_page(void *ctx, uint32_t page)
{
    job *probe = ctx;
    const kv_choice *choice = &probe->worker->choice;
    add_page(probe, &(kv_page_at){choice->shard[page], choice->block[page], choice->page[page]});
    finish_blocks(probe);
    note_log_read(probe);
}

/* Of the range, what is read whatever is chosen: sinks, and what are no candidates; then the rest of the
 * sequence, up to position `end`. */
static void probe_recent(job *probe, const kv_choice_range *range, uint32_t end)
{
    const uint32_t n_blocks = probe->seq->n_blocks;
    attn_state_reset(probe->state, probe->query.group, 0);
    begin_low(probe);
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
static void choose_pages(job *j, const kv_choice_range *range, uint32_t end)
{
    kv_choice *choice = &j->worker->choice;
    job probe = *j;
    probe.state = &j->worker->probe;
    probe.query.v_dim = 0;
    probe.is_probe = true;
    kv_choice_list(choice, range, &j->query);
    if (j->seq->methods.routing->needs_log_read && choice->n_pages > 0)
        probe_recent(&probe, range, end);
    kv_choice_make(choice, range, j->query.group, probe_page, &probe);
    j->worker->bytes_read +=
        (choice->n_pages + choice->runs.n) * kv_box_bytes(&j->cache->heads[j->layer]);
    j->worker->pages_open += choice->n_open;
    j->worker->pages_read += choice->n_chosen;
}

/* Pages of the range as far as they were chosen. */
static void add_chosen_blocks(job *j, const kv_choice_range *range)
{
    const kv_choice *choice = &j->worker->choice;
    if (range->first == 0 && range->end > 0 &&
        (choice->n_chosen == 0 || choice->block[choice->chosen[0]] != 0))
        add_sinks(j);
    for (uint32_t i = 0; i < choice->n_chosen; i++)
        add_page_block(j, choice->block[choice->chosen[i]]);
}

static void note_misses(const job *j, const float *sink_logit)
{
    *j->misses = (kv_misses){.n = j->query.group}; /* nothing is missed */
    if (j->seq->methods.reads_all) return;
    j->misses->n = 0;
    kv_choice_certify(&j->worker->choice, &j->query, j->state, sink_logit, j->misses);
}

/* ---- jobs ---------------------------------------------------------------------------------------- */

/* What a layer that is placed by blocks has in pages; returns the first block that is not read yet. */
static uint32_t read_pages(job *j, const kv_choice_range *range, uint32_t end)
{
    const uint32_t n_open = range->end > range->first ? range->end - range->first : 0;
    const bool is_chosen = j->is_decode && !j->seq->methods.reads_all;
    uint32_t first = range->first;
    if (is_chosen) {
        choose_pages(j, range, end);
        begin_low(j); /* a probe may have used it */
        add_chosen_blocks(j, range);
        first += n_open;
    } else if (j->is_decode) {
        j->worker->pages_open += n_open;
        j->worker->pages_read += n_open;
    }
    for (; first < j->seq->n_blocks; first++)
        add_page_block(j, first);
    return first;
}

/* The same of a layer whose entries are placed one by one. */
static uint32_t read_scattered(job *j, const kv_choice_range *range, uint32_t end)
{
    const uint32_t n_blocks = j->seq->n_blocks;
    const bool is_chosen = j->is_decode && !j->seq->methods.reads_all;
    if (is_chosen) choose_pages(j, range, end);
    if (is_chosen) begin_low(j); /* a probe may have used it */
    if (range->first == 0 && n_blocks > 0) add_sinks(j);
    const uint32_t n = add_scattered(j, range, is_chosen ? &j->worker->choice : NULL);
    if (j->is_decode && !is_chosen) {
        j->worker->pages_open += n;
        j->worker->pages_read += n;
    }
    return n_blocks;
}

/* Reads, in position order, what the job's queries see. */
static void read_blocks(job *j)
{
    const attn_query *query = &j->query;
    const uint32_t oldest = query->positions[0];
    const uint32_t end = query->positions[query->n_queries - 1] + 1;
    kv_choice_range range = {.seq = j->seq, .layer = j->layer, .head = j->head};
    if (query->window != 0 && oldest >= query->window)
        range.first_seen = oldest - query->window + 1;
    range.first = range.first_seen / j->cache->page_tokens;
    range.end = kv_blocks_left(j->cache, j->seq->length);
    const uint32_t n_read =
        (j->cache->scatters[j->layer] ? read_scattered : read_pages)(j, &range, end);
    add_recent_blocks(j, range.first > n_read ? range.first : n_read, end);
    finish_blocks(j);
}

/* The slot of a job, which only it writes: a decode row has one tile. */
static kv_misses *misses_of(const kv_cache *cache, uint32_t row, uint32_t head)
{
    return cache->reader.job_misses + (size_t)row * cache->n_kv_heads_max + head;
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
             .state = &worker->state,
             .is_decode = row->is_decode,
             .has_low = row->seq->methods.codec->bases != NULL && row->seq->n_coded > 0,
             .misses = misses_of(cache, tile->row, head),
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
    begin_low(&j);
    read_blocks(&j);
    const float *sink_logit =
        shape->sink_logit != NULL ? shape->sink_logit + (size_t)head * group : NULL;
    if (j.is_decode) note_misses(&j, sink_logit);
    const attn_result result = {
        .o = loop->args->out + token * o_stride + (size_t)head * group * shape->v_dim,
        .o_stride = o_stride,
        .sink_logit = sink_logit,
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

/* In the order of rows and heads, whoever ran the jobs: sums of doubles depend on it. */
static void gather_misses(kv_cache *cache, uint32_t n_kv_heads)
{
    kv_reader *reader = &cache->reader;
    for (uint32_t r = 0; r < cache->step.n_rows; r++) {
        const kv_row *row = &cache->step.rows[r];
        for (uint32_t h = 0; h < n_kv_heads && row->is_decode; h++) {
            const kv_misses *misses = misses_of(cache, r, h);
            kv_misses_add(&row->seq->step_misses, misses);
            kv_misses_add(&reader->step_misses, misses);
            kv_misses_add(&reader->misses, misses);
        }
    }
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
    gather_misses(cache, shape->n_kv_heads);
}
