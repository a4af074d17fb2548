/* kvcache/reader.c - see reader.h. */
#include "kvcache/reader.h"

#include "kvcache/away.h"
#include "kvcache/basis.h"
#include "kvcache/commit.h"
#include "kvcache/key_box.h"
#include "kvcache/page_bias.h"

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
    kv_seq *seq;
    kv_reader_worker *worker;
    attn_state *state; /* the worker's, or its probe */
    attn_query query;
    uint32_t layer, head;
    bool is_decode, is_probe;
    bool has_low;      /* the sequence has pages of coefficients */
    kv_misses *misses; /* the job's own; written if is_decode */
    const float
        *lse;    /* [n_queries][group]: what has been read is read again for its mass; or NULL */
    float *mass; /* by position; valid with lse */
    uint32_t n_spans, n_blocks; /* listed and not yet folded */
    uint32_t n_landed;          /* pages of those blocks that were read from the file */
} job;

static uint32_t tile_queries(const kv_layer_shape *shape)
{
    const uint32_t n = TILE_ROWS_MAX / (shape->n_heads / shape->n_kv_heads);
    return n < 1 ? 1 : n > KV_TILE_QUERIES_MAX ? KV_TILE_QUERIES_MAX : n;
}

void kv_reader_place(arena *a, const kv_cache *cache, kv_reader *reader)
{
    size_t rows_max = 0, acc_max = 0, group_max = 0;
    for (uint32_t l = 0; l < cache->n_layers; l++) {
        const kv_layer_shape *shape = &cache->layer[l];
        const size_t group = shape->n_heads / shape->n_kv_heads;
        const size_t rows = tile_queries(shape) * group;
        group_max = max_size(group_max, group);
        rows_max = max_size(rows_max, rows);
        acc_max = max_size(acc_max, rows * shape->v_dim);
    }
    const kv_low_sizes low = kv_low_sizes_of(cache, rows_max);
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
        if (cache->has_file) placed.landings = arena_take(a, KV_READ_BLOCKS, cache->landing_bytes);
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

static void fold_low(job *j)
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

static void count_read(const job *j)
{
    const kv_page_layout *raw = &j->cache->layout[j->cache->layer_class[j->layer]];
    const kv_page_layout *coded = kv_coded_layout(j->cache, &j->seq->methods, j->layer);
    for (uint32_t s = 0; s < j->n_spans; s++) {
        const attn_span *span = &j->worker->spans[s];
        j->worker->bytes_read +=
            kv_page_read_bytes(span->coding == ATTN_PLAIN ? raw : coded, span->n_slots);
    }
    j->worker->blocks_read += j->n_blocks;
}

static void fold_blocks(job *j)
{
    const dev_ops *ops = j->cache->d->ops;
    fold_low(j);
    if (j->n_blocks == 0) return;
    if (!j->is_probe) count_read(j);
    const attn_blocks blocks = {
        .spans = j->worker->spans, .blocks = j->worker->blocks, .n_blocks = j->n_blocks};
    if (j->lse != NULL) {
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
static void finish_blocks(job *j)
{
    fold_blocks(j);
    if (j->has_low && j->worker->low.has_begun) kv_low_merge(&j->worker->low, &j->query, j->state);
}

/* Makes the scratch ready for a page of coefficients, whose basis need not be that of the last one. */
static void begin_low(job *j, uint32_t page)
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

/* The bytes of a page, which stay where they are until the blocks are folded. What is in the file is
 * waited for: that is the price of a cache larger than memory. kv_hint_layer has asked for it while
 * the layer before was computed, so as a rule the system call copies and does not wait. */
static const uint8_t *page_bytes(job *j, uint32_t page)
{
    const kv_cache *cache = j->cache;
    if (!cache->has_tiers) return kv_pool_data(cache->pool, page);
    kv_pool_use(cache->pool, page);
    if (kv_pool_tier(cache->pool, page) != KV_TIER_FILE) return kv_pool_data(cache->pool, page);
    if (j->n_landed == KV_READ_BLOCKS) fold_blocks(j); /* blocks of both kinds wait together */
    return kv_seq_read_page(j->seq, page,
                            j->worker->landings + j->n_landed++ * cache->landing_bytes);
}

/* The entries of a page, without the sinks. */
static uint32_t page_span(job *j, uint32_t block, attn_span *out)
{
    const kv_cache *cache = j->cache;
    const kv_table *table = &j->seq->table;
    const size_t entry = kv_table_entry(table, kv_list(cache, j->layer, j->head, 0), block);
    const uint32_t page = table->page[entry];
    assert(page != KV_PAGE_NONE || j->seq->is_thinned);
    if (page == KV_PAGE_NONE) return 0;
    const kv_pages *pages = kv_pool_pages(cache->pool);
    const uint32_t n_slots = pages->n_slots[page], n_sinks = kv_page_sinks(cache, page);
    if (n_sinks >= n_slots || table->live[entry] == 0) return 0;
    attn_span span = kv_page_span(kv_layout_of(cache, page), page_bytes(j, page), n_slots);
    span.positions = pages->positions + (size_t)page * cache->page_tokens;
    span.live = table->live[entry];
    span.bias = kv_pool_biases(cache->pool, page);
    *out = kv_span_cut(&span, n_sinks, n_slots - n_sinks);
    return 1;
}

static bool is_low_page(const job *j, uint32_t block)
{
    if (!j->has_low) return false;
    const uint32_t list = kv_list(j->cache, j->layer, j->head, 0);
    const uint32_t page = kv_table_page(&j->seq->table, list, block);
    return page != KV_PAGE_NONE && kv_is_coded_page(j->cache, page);
}

/* The block that has the sinks is never one. */
static void add_low_block(job *j, uint32_t block)
{
    attn_span span;
    if (page_span(j, block, &span) == 0 || span.live == 0) return;
    begin_low(j, kv_table_page(&j->seq->table, kv_list(j->cache, j->layer, j->head, 0), block));
    kv_low_add(&j->worker->low, &span);
    if (j->worker->low.n_blocks == KV_LOW_BLOCKS) fold_low(j);
}

static void add_page_block(job *j, uint32_t block)
{
    attn_span spans[2];
    if (is_low_page(j, block)) {
        add_low_block(j, block);
        return;
    }
    uint32_t n = block == 0 ? sink_span(j, spans) : 0;
    n += page_span(j, block, spans + n);
    if (j->is_decode && !j->is_probe && j->lse == NULL)
        kv_observe_use(j->seq, kv_list(j->cache, j->layer, j->head, 0), block, j->seq->length);
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
    const uint32_t block = probe->worker->choice.block[page];
    attn_span span;
    if (is_low_page(probe, block)) {
        add_low_block(probe, block);
    } else {
        add_block(probe, &span, page_span(probe, block, &span));
    }
    finish_blocks(probe);
    note_log_read(probe);
}

/* Of the job's blocks, from `first`, those that are read whatever is chosen: sinks, and what is not
 * among the first n_old blocks. */
static void probe_recent(job *probe, uint32_t first, uint32_t n_old, uint32_t end)
{
    attn_state_reset(probe->state, probe->query.group, 0);
    probe->worker->low.has_begun = false;
    if (first == 0 && n_old > 0) add_sinks(probe);
    for (uint32_t b = n_old > first ? n_old : first; b < probe->seq->n_blocks; b++)
        add_page_block(probe, b);
    add_recent_blocks(probe, first > probe->seq->n_blocks ? first : probe->seq->n_blocks, end);
    finish_blocks(probe);
    note_log_read(probe);
}

/* Chooses among blocks [first, n_old); the rest of the sequence, up to position `end`, is read. */
static void choose_pages(job *j, uint32_t first, uint32_t n_old, uint32_t end)
{
    kv_choice *choice = &j->worker->choice;
    const kv_choice_range range = {j->seq, j->layer, j->head, first, n_old};
    job probe = *j;
    probe.state = &j->worker->probe;
    probe.query.v_dim = 0;
    probe.is_probe = true;
    kv_choice_list(choice, &range, &j->query);
    if (j->seq->methods.routing->needs_log_read && choice->n_pages > 0)
        probe_recent(&probe, first, n_old, end);
    kv_choice_make(choice, &j->seq->methods, j->query.group, probe_page, &probe);
    j->worker->bytes_read +=
        (choice->n_pages + choice->runs.n) * kv_box_bytes(&j->cache->heads[j->layer]);
    j->worker->pages_open += choice->n_open;
    j->worker->pages_read += choice->n_chosen;
}

/* Pages of blocks [first, n_old) as far as they were chosen. */
static void add_chosen_blocks(job *j, uint32_t first, uint32_t n_old)
{
    const kv_choice *choice = &j->worker->choice;
    if (first == 0 && n_old > 0 && (choice->n_chosen == 0 || choice->block[choice->chosen[0]] != 0))
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

/* A full read of entries [first, end). */
static void count_open(const job *j, uint32_t first, uint32_t end)
{
    const kv_table *table = &j->seq->table;
    uint32_t n = end - first;
    for (uint32_t b = first; b < end && j->seq->is_thinned; b++)
        n -= kv_table_page(table, kv_list(j->cache, j->layer, j->head, 0), b) == KV_PAGE_NONE;
    j->worker->pages_open += n;
    j->worker->pages_read += n;
}

/* Reads, in position order, what the job's queries see. The second time, for mass, a decode query reads what
 * was chosen the first time. */
static void read_blocks(job *j)
{
    const attn_query *query = &j->query;
    const uint32_t page_tokens = j->cache->page_tokens;
    const uint32_t oldest = query->positions[0];
    const uint32_t end = query->positions[query->n_queries - 1] + 1;
    const uint32_t n_blocks = j->seq->n_blocks;
    uint32_t first = 0;
    if (query->window != 0 && oldest >= query->window && !j->seq->is_thinned)
        first = (oldest - query->window + 1) / page_tokens;
    j->worker->low.has_begun = false;
    if (j->is_decode) {
        const uint32_t n_old = kv_blocks_left(j->cache, j->seq->length);
        const uint32_t n_open = n_old > first ? n_old - first : 0;
        if (j->seq->methods.reads_all) {
            if (j->lse == NULL) count_open(j, first, first + n_open);
        } else {
            if (j->lse == NULL) choose_pages(j, first, n_old, end);
            j->worker->low.has_begun = false; /* a probe may have used it */
            add_chosen_blocks(j, first, n_old);
            first += n_open;
        }
    }
    for (uint32_t b = first; b < n_blocks; b++)
        add_page_block(j, b);
    add_recent_blocks(j, first > n_blocks ? first : n_blocks, end);
    finish_blocks(j);
}

/* The slot of a job, which only it writes: a decode row has one tile. */
static kv_misses *misses_of(const kv_cache *cache, uint32_t row, uint32_t head)
{
    return cache->reader.job_misses + (size_t)row * cache->n_kv_heads_max + head;
}

static job make_job(const attend_loop *loop, const kv_tile *tile, uint32_t head,
                    kv_reader_worker *worker)
{
    kv_cache *cache = loop->cache;
    const kv_row *row = &cache->step.rows[tile->row];
    const kv_layer_shape *shape = &cache->layer[loop->args->layer];
    const uint32_t group = shape->n_heads / shape->n_kv_heads;
    const size_t token = (size_t)row->first_token + tile->first;
    const size_t q_stride = (size_t)shape->n_heads * shape->k_dim;
    for (uint32_t i = 0; i < tile->n_queries; i++)
        worker->positions[i] = row->seq->length + tile->first + i;
    return (job){.cache = cache,
                 .seq = row->seq,
                 .worker = worker,
                 .state = &worker->state,
                 .is_decode = row->is_decode,
                 .has_low = kv_codec_is_low_rank(row->seq->methods.codec) && row->seq->n_coded > 0,
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
}

static bool wants_mass(const kv_seq *seq)
{
    return (seq->observed.needs & KV_SCORE_MASS) != 0;
}

/* Where the lse of a tile's queries is kept; NULL if nobody asks for mass. */
static float *lse_of(const attend_loop *loop, const kv_tile *tile, uint32_t head)
{
    const kv_cache *cache = loop->cache;
    const kv_row *row = &cache->step.rows[tile->row];
    const kv_layer_shape *shape = &cache->layer[loop->args->layer];
    const size_t token = (size_t)row->first_token + tile->first;
    if (!wants_mass(row->seq)) return NULL;
    return cache->observers.lse + head * cache->observers.lse_stride +
           token * (shape->n_heads / shape->n_kv_heads);
}

static void attend_tile(const attend_loop *loop, const kv_tile *tile, uint32_t head,
                        kv_reader_worker *worker)
{
    const kv_row *row = &loop->cache->step.rows[tile->row];
    const kv_layer_shape *shape = &loop->cache->layer[loop->args->layer];
    const uint32_t group = shape->n_heads / shape->n_kv_heads;
    const size_t token = (size_t)row->first_token + tile->first;
    const size_t o_stride = (size_t)shape->n_heads * shape->v_dim;
    job j = make_job(loop, tile, head, worker);
    attn_state_reset(&worker->state, (size_t)tile->n_queries * group, shape->v_dim);
    read_blocks(&j);
    const float *sink_logit =
        shape->sink_logit != NULL ? shape->sink_logit + (size_t)head * group : NULL;
    if (j.is_decode) note_misses(&j, sink_logit);
    const attn_result result = {
        .o = loop->args->out + token * o_stride + (size_t)head * group * shape->v_dim,
        .o_stride = o_stride,
        .lse = lse_of(loop, tile, head),
        .sink_logit = sink_logit,
    };
    attn_finish(&j.query, &worker->state, &result);
    if (!j.is_decode || result.lse == NULL) return;
    j.lse = result.lse; /* now, while the choice of pages is known */
    j.mass = kv_observe_mass(j.seq, j.layer, head);
    read_blocks(&j);
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

/* The mass that one row's queries leave in one head: tile after tile, since every sum has one order. */
static void add_row_mass(const attend_loop *loop, uint32_t row, uint32_t head,
                         kv_reader_worker *worker)
{
    const kv_reader *reader = &loop->cache->reader;
    float *mass = NULL;
    for (uint32_t t = 0; t < loop->n_tiles; t++) {
        const kv_tile *tile = &reader->tiles[t];
        if (tile->row != row) continue;
        job j = make_job(loop, tile, head, worker);
        if (mass == NULL) mass = kv_observe_mass(j.seq, j.layer, head);
        j.lse = lse_of(loop, tile, head);
        j.mass = mass;
        read_blocks(&j);
    }
}

/* Job i: row i mod n_rows of head i / n_rows. Decode rows have been dealt with. */
static void mass_jobs(void *ctx, size_t begin, size_t end, uint32_t worker)
{
    const attend_loop *loop = ctx;
    const kv_step *step = &loop->cache->step;
    for (size_t i = begin; i < end; i++) {
        const kv_row *row = &step->rows[i % step->n_rows];
        if (row->is_decode || !wants_mass(row->seq)) continue;
        add_row_mass(loop, (uint32_t)(i % step->n_rows), (uint32_t)(i / step->n_rows),
                     &loop->cache->reader.workers[worker]);
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
    kv_observe_queries(cache, args);
    loop.n_tiles = cut_tiles(cache, shape, &work);
    const size_t n_jobs = (size_t)loop.n_tiles * shape->n_kv_heads;
    const bool is_small = work * shape->n_kv_heads < SERIAL_WORK_MAX;
    kv_hint_layer(cache, args->layer + 1); /* a call that starts reading and does not wait for it */
    parallel_for(cache->d->pool, n_jobs, is_small ? n_jobs : 1, attend_jobs, &loop);
    gather_misses(cache, shape->n_kv_heads);
    if (cache->observers.lse == NULL) return;
    const size_t n_row_jobs = (size_t)cache->step.n_rows * shape->n_kv_heads;
    parallel_for(cache->d->pool, n_row_jobs, is_small ? n_row_jobs : 1, mass_jobs, &loop);
}
