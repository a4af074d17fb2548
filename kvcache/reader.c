/* kvcache/reader.c - see reader.h. */
#include "kvcache/reader.h"

#include "kvcache/away.h"
#include "kvcache/basis.h"
#include "kvcache/device_view.h"
#include "kvcache/encode.h"
#include "kvcache/kv_replay.h"
#include "kvcache/local_mass.h"
#include "kvcache/ranks.h"
#include "kvcache/read_blocks.h"

#include <float.h>
#include <math.h>

/* Query rows (queries x heads) of a tile: bounds the scratch of wide groups. */
enum { TILE_ROWS_MAX = 128 };

/* Below this many multiply-adds a parallel loop costs more than it saves. */
static const double SERIAL_WORK_MAX = 65536;

typedef struct attend_loop {
    kv_cache *cache;
    const kv_attend_args *args;
    kv_part part; /* of this rank; alone it is the whole, and has no lse */
    uint32_t n_tiles;
} attend_loop;

uint32_t kv_tile_queries(const kv_layer_shape *shape)
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
        const size_t rows = kv_tile_queries(shape) * group;
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
            .lse = arena_take(a, rows_max, sizeof *placed.lse),
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

void kv_reader_count(const kv_cache *cache, kv_stats *stats)
{
    const kv_reader *reader = &cache->reader;
    const kv_misses all = reader->misses, step = reader->step_misses;
    stats->bytes_read = stats->blocks_read = stats->pages_open = stats->pages_read = 0;
    for (uint32_t w = 0; w < reader->n_workers; w++) {
        const kv_reader_worker *worker = &reader->workers[w];
        stats->bytes_read += worker->bytes_read;
        stats->blocks_read += worker->blocks_read;
        stats->pages_open += worker->pages_open;
        stats->pages_read += worker->pages_read;
    }
    if (cache->view != NULL) {
        stats->bytes_read += cache->view->bytes_read;
        stats->blocks_read += cache->view->blocks_read;
        stats->pages_open += cache->view->pages_open;
        stats->pages_read += cache->view->pages_read;
    }
    stats->certificates = all.n;
    stats->certificate_sum = all.sum;
    stats->certificate_max = all.max;
    stats->step_certificate_mean = step.n > 0 ? step.sum / (double)step.n : 0;
    stats->step_certificate_max = step.max;
}

/* ---- jobs ---------------------------------------------------------------------------------------- */

/* The slot of a job, which only it writes: a decode row has one tile. */
static kv_misses *misses_of(const kv_cache *cache, uint32_t row, uint32_t head)
{
    return cache->reader.job_misses + (size_t)row * cache->n_kv_heads_max + head;
}

static kv_read_job make_job(const attend_loop *loop, const kv_tile *tile, uint32_t head,
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
    return (kv_read_job){
        .cache = cache,
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

static bool wants_mass(const kv_row *row)
{
    return !row->is_replay && (row->seq->observed.needs & KV_SCORE_MASS) != 0;
}

/* Where the lse of a tile's queries over all ranks is kept; NULL if no scorer may ask for what entries get. */
static float *noted_lse(const attend_loop *loop, const kv_tile *tile, uint32_t head)
{
    const kv_cache *cache = loop->cache;
    const kv_layer_shape *shape = &cache->layer[loop->args->layer];
    const size_t token = (size_t)cache->step.rows[tile->row].first_token + tile->first;
    if (cache->observers.lse == NULL) return NULL;
    return cache->observers.lse + head * cache->observers.lse_stride +
           token * (shape->n_heads / shape->n_kv_heads);
}

/* Where attention writes it: over ranks to this one's part. NULL: nobody asks. */
static float *lse_of(const attend_loop *loop, const kv_tile *tile, uint32_t head)
{
    const kv_cache *cache = loop->cache;
    const kv_row *row = &cache->step.rows[tile->row];
    const kv_layer_shape *shape = &cache->layer[loop->args->layer];
    const size_t token = (size_t)row->first_token + tile->first;
    if (loop->part.lse != NULL) {
        const size_t group = shape->n_heads / shape->n_kv_heads;
        return loop->part.lse + ((size_t)head * cache->step.n_tokens + token) * group;
    }
    if (!wants_mass(row) && !row->is_replay) return NULL;
    return noted_lse(loop, tile, head);
}

/* Is the lse of a replay's queries over what its scores compare another than that of attention? Not if the chunk
 * is the whole prompt, unless attention added a logit. */
static bool must_normalise(const kv_cache *cache, const kv_row *row, uint32_t layer)
{
    kv_replay_chunk chunk;
    if (!row->is_replay) return false;
    const bool is_wanted = kv_seq_wants_replay(row->seq, &chunk);
    assert(is_wanted);
    return chunk.first > 0 || chunk.end < row->seq->n_prompt_tokens ||
           cache->layer[layer].sink_logit != NULL;
}

/* Finds it: over the first entries, the chunk's and its own. The state is free again. */
static void normalise_tile(const attend_loop *loop, const kv_tile *tile, uint32_t head,
                           kv_reader_worker *worker)
{
    kv_replay_chunk chunk;
    kv_read_job j = make_job(loop, tile, head, worker);
    const bool is_wanted = kv_seq_wants_replay(j.seq, &chunk);
    assert(is_wanted);
    const kv_read_ranges compared = {.first_end = (uint32_t)min_size(KV_REPLAY_SINKS, chunk.first),
                                     .first = chunk.first,
                                     .end = chunk.end,
                                     .behind = j.seq->n_prompt_tokens};
    const attn_result result = {.o = j.state->acc, .lse = noted_lse(loop, tile, head)};
    j.only = &compared;
    j.query.v_dim = 0;
    attn_state_reset(j.state, (size_t)tile->n_queries * j.query.group, 0);
    kv_read_blocks(&j);
    attn_finish(&j.query, j.state, &result);
}

/* What is missed over ranks is known once their parts have come together. */
static void note_misses(const attend_loop *loop, const kv_read_job *j, size_t token,
                        const float *sink_logit)
{
    const kv_cache *cache = loop->cache;
    const size_t at = ((size_t)j->head * cache->step.n_tokens + token) * j->query.group;
    if (cache->ranks.n == 1) {
        kv_read_note_misses(j, sink_logit);
    } else if (loop->part.unread != NULL) {
        kv_read_note_unread(j, loop->part.unread + at);
    }
}

static void attend_tile(const attend_loop *loop, const kv_tile *tile, uint32_t head,
                        kv_reader_worker *worker)
{
    const kv_row *row = &loop->cache->step.rows[tile->row];
    const kv_layer_shape *shape = &loop->cache->layer[loop->args->layer];
    const uint32_t group = shape->n_heads / shape->n_kv_heads;
    const size_t token = (size_t)row->first_token + tile->first;
    const size_t o_stride = (size_t)shape->n_heads * shape->v_dim;
    kv_read_job j = make_job(loop, tile, head, worker);
    attn_state_reset(&worker->state, (size_t)tile->n_queries * group, shape->v_dim);
    kv_read_blocks(&j);
    const float *sink_logit = shape->sink_logit != NULL && kv_is_home(row->seq)
                                  ? shape->sink_logit + (size_t)head * group
                                  : NULL;
    if (j.is_decode) note_misses(loop, &j, token, sink_logit);
    const attn_result result = {
        .o = loop->part.o + token * o_stride + (size_t)head * group * shape->v_dim,
        .o_stride = o_stride,
        .lse = lse_of(loop, tile, head),
        .sink_logit = sink_logit,
    };
    attn_finish(&j.query, &worker->state, &result);
    if (loop->cache->ranks.n > 1) return; /* what follows needs the lse of all */
    if (must_normalise(loop->cache, row, j.layer)) normalise_tile(loop, tile, head, worker);
    if (!j.is_decode || !wants_mass(row)) return;
    j.lse = result.lse; /* now, while the choice of pages is known */
    j.mass = kv_observe_mass(j.seq, j.layer, head);
    kv_read_blocks(&j);
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
        kv_read_job j = make_job(loop, tile, head, worker);
        if (mass == NULL) mass = kv_observe_mass(j.seq, j.layer, head);
        j.lse = noted_lse(loop, tile, head);
        j.mass = mass;
        j.is_again = true;
        kv_read_blocks(&j);
    }
}

/* Raises the scores of every query head by the tile's shares, each divided by the norm of its token: in logarithms
 * a larger lse. One head after the other, since a pass keeps the largest of all heads that it is given. */
static void raise_by_head(const attend_loop *loop, const kv_tile *tile, const kv_read_job *whole)
{
    const uint32_t group = whole->query.group, n = tile->n_queries;
    const size_t token = (size_t)loop->cache->step.rows[tile->row].first_token + tile->first;
    const float *norm = loop->args->input_norm + token;
    float *lse = whole->worker->lse;
    for (uint32_t g = 0; g < group; g++) {
        kv_read_job j = *whole;
        for (uint32_t i = 0; i < n; i++)
            lse[i] = whole->lse[(size_t)i * group + g] + logf(fmaxf(norm[i], FLT_MIN));
        j.lse = lse;
        j.most = whole->most + (size_t)g * j.seq->n_prompt_tokens;
        j.query.q += (size_t)g * j.query.k_dim;
        j.query.group = 1;
        kv_read_blocks(&j);
    }
}

/* The largest shares that one replay row's queries give to its chunk in one head. */
static void raise_row_scores(const attend_loop *loop, uint32_t row, uint32_t head,
                             kv_reader_worker *worker)
{
    const kv_reader *reader = &loop->cache->reader;
    const kv_seq *seq = loop->cache->step.rows[row].seq;
    const bool has_norms = kv_replay_has_norms(seq);
    kv_replay_chunk chunk;
    const bool is_wanted = kv_seq_wants_replay(seq, &chunk);
    assert(is_wanted);
    if (has_norms) assert(loop->args->input_norm != NULL);
    const kv_read_ranges scored = {.first = chunk.first, .end = chunk.end, .behind = UINT32_MAX};
    for (uint32_t t = 0; t < loop->n_tiles; t++) {
        const kv_tile *tile = &reader->tiles[t];
        if (tile->row != row) continue;
        kv_read_job j = make_job(loop, tile, head, worker);
        j.only = &scored;
        j.lse = noted_lse(loop, tile, head);
        j.most = kv_replay_scores(seq, j.layer, head);
        if (has_norms) raise_by_head(loop, tile, &j);
        if (!has_norms) kv_read_blocks(&j);
    }
}

/* Job i: row i mod n_rows of head i / n_rows. A rank alone has dealt with decode rows. */
static void share_jobs(void *ctx, size_t begin, size_t end, uint32_t worker)
{
    const attend_loop *loop = ctx;
    const kv_step *step = &loop->cache->step;
    for (size_t i = begin; i < end; i++) {
        const kv_row *row = &step->rows[i % step->n_rows];
        const uint32_t r = (uint32_t)(i % step->n_rows), head = (uint32_t)(i / step->n_rows);
        kv_reader_worker *scratch = &loop->cache->reader.workers[worker];
        if (row->is_replay) raise_row_scores(loop, r, head, scratch);
        const bool is_left = !row->is_decode || loop->cache->ranks.n > 1;
        if (is_left && wants_mass(row)) add_row_mass(loop, r, head, scratch);
    }
}

typedef struct normalise_loop {
    const attend_loop *loop;
    uint32_t row;
} normalise_loop;

static void normalise_jobs(void *ctx, size_t begin, size_t end, uint32_t worker)
{
    const normalise_loop *n = ctx;
    const kv_reader *reader = &n->loop->cache->reader;
    for (size_t head = begin; head < end; head++) {
        for (uint32_t t = 0; t < n->loop->n_tiles; t++) {
            if (reader->tiles[t].row != n->row) continue;
            normalise_tile(n->loop, &reader->tiles[t], (uint32_t)head, &reader->workers[worker]);
        }
    }
}

/* Over ranks: what the scores of replays compare lies on all of them. */
static void normalise_over_ranks(const attend_loop *loop)
{
    const kv_cache *cache = loop->cache;
    const kv_layer_shape *shape = &cache->layer[loop->args->layer];
    const size_t group = shape->n_heads / shape->n_kv_heads;
    for (uint32_t r = 0; r < cache->step.n_rows; r++) {
        const kv_row *row = &cache->step.rows[r];
        if (!must_normalise(cache, row, loop->args->layer)) continue;
        normalise_loop each = {.loop = loop, .row = r};
        const kv_lse_rows rows = {.lse = cache->observers.lse + row->first_token * group,
                                  .stride = cache->observers.lse_stride,
                                  .n_rows = shape->n_kv_heads,
                                  .n = row->n_tokens * group};
        parallel_for(cache->d->pool, shape->n_kv_heads, 1, normalise_jobs, &each);
        kv_ranks_merge_lse(cache, &rows);
    }
}

/* Cuts what the host attends to into tiles; returns their number. *work: multiply-adds of one KV head. */
static uint32_t cut_tiles(kv_cache *cache, const kv_layer_shape *shape, double *work)
{
    const uint32_t n_max = kv_tile_queries(shape);
    const double per_key =
        (double)(shape->n_heads / shape->n_kv_heads) * ((double)shape->k_dim + shape->v_dim);
    uint32_t n_tiles = 0;
    *work = 0;
    for (uint32_t r = 0; r < cache->step.n_rows; r++) {
        const kv_row *row = &cache->step.rows[r];
        if (!kv_is_hosts_row(cache, r)) continue;
        for (uint32_t first = 0; first < row->n_tokens; first += n_max) {
            const uint32_t n = (uint32_t)min_size(n_max, (size_t)row->n_tokens - first);
            cache->reader.tiles[n_tiles++] = (kv_tile){r, first, n};
        }
        *work += (double)row->n_tokens * (row->seq->length + row->n_tokens) * per_key;
    }
    return n_tiles;
}

/* In the order of rows and heads, whoever ran the jobs: sums of doubles depend on it. */
static void gather_misses(kv_cache *cache, uint32_t layer)
{
    kv_reader *reader = &cache->reader;
    const uint32_t n_kv_heads = cache->layer[layer].n_kv_heads;
    for (uint32_t r = 0; r < cache->step.n_rows; r++) {
        const kv_row *row = &cache->step.rows[r];
        if (cache->view != NULL && kv_is_choosing_row(cache, r)) continue; /* when the step ends */
        for (uint32_t h = 0; h < n_kv_heads && row->is_decode; h++) {
            const kv_misses nothing = {.n = cache->layer[layer].n_heads / n_kv_heads};
            const kv_misses misses = cache->ranks.n > 1 ? kv_ranks_misses(cache, layer, row, h)
                                     : kv_is_hosts_row(cache, r) ? *misses_of(cache, r, h)
                                                                 : nothing;
            kv_misses_add(&row->seq->step_misses, &misses);
            kv_misses_add(&reader->step_misses, &misses);
            kv_misses_add(&reader->misses, &misses);
        }
    }
}

/* args: of the host's memory. */
static void attend(kv_cache *cache, const kv_attend_args *args)
{
    const kv_layer_shape *shape = &cache->layer[args->layer];
    double work;
    attend_loop loop = {.cache = cache, .args = args, .part.o = args->out};
    if (cache->ranks.n > 1) loop.part = kv_ranks_part(cache, args->layer);
    kv_observe_queries(cache, args);
    loop.n_tiles = cut_tiles(cache, shape, &work);
    const size_t n_jobs = (size_t)loop.n_tiles * shape->n_kv_heads;
    const bool is_small = work * shape->n_kv_heads < SERIAL_WORK_MAX;
    kv_hint_layer(cache, args->layer + 1); /* a call that starts reading and does not wait for it */
    parallel_for(cache->d->pool, n_jobs, is_small ? n_jobs : 1, attend_jobs, &loop);
    const bool is_whole = cache->ranks.n == 1 || kv_ranks_merge(cache, args->layer, args->out);
    if (!is_whole) return;
    gather_misses(cache, args->layer);
    kv_local_note(cache, args);
    if (cache->observers.lse == NULL) return;
    if (cache->ranks.n > 1) normalise_over_ranks(&loop);
    const size_t n_row_jobs = (size_t)cache->step.n_rows * shape->n_kv_heads;
    parallel_for(cache->d->pool, n_row_jobs, is_small ? n_row_jobs : 1, share_jobs, &loop);
}

void kv_attend(kv_cache *cache, const kv_attend_args *args)
{
    assert(cache->step.is_open);
    assert(args->layer < cache->n_layers);
    assert(cache->step.n_appended == args->layer + 1);
    if (cache->view == NULL) {
        attend(cache, args);
        return;
    }
    kv_attend_args host;
    kv_view_begin_attend(cache, args, &host);
    if (cache->view->n_hosts == 0) {
        gather_misses(cache, args->layer);
        return;
    }
    attend(cache, &host);
    kv_view_end_attend(cache, args);
}
