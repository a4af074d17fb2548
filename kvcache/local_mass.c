/* kvcache/local_mass.c - see local_mass.h. */
#include "kvcache/local_mass.h"

#include "kvcache/observed.h"
#include "kvcache/ranks.h"
#include "kvcache/read_blocks.h"

#include <string.h>

typedef struct part_place {
    uint32_t layer, head;
    uint32_t worker; /* whose scratch of attention is free */
} part_place;

/* Positions [first, end) of one part, in one head, or in all of the layer. */
typedef struct part {
    kv_seq *seq;
    const kv_attend_args *args; /* of the step that is open, or NULL: there is none */
    uint32_t first_token;       /* of the sequence in it; valid with args */
    part_place at;
    uint32_t first, end;
} part;

static const kv_layer_shape *shape_of(const part *p)
{
    return &p->seq->cache->layer[p->at.layer];
}

/* Queries that follow each other in memory. */
typedef struct query_run {
    const float *q; /* of the first, in the head's group */
    size_t stride;
    uint32_t n;
} query_run;

/* From `position` on, as many as lie together. */
static query_run find_queries(const part *p, uint32_t position)
{
    const kv_layer_shape *shape = shape_of(p);
    const size_t width = (size_t)shape->n_heads * shape->k_dim;
    const size_t group_floats = width / shape->n_kv_heads;
    if (position < p->seq->length) {
        kv_observed_run run = kv_observed_query_run(p->seq, p->at.layer, position);
        run.n = (uint32_t)min_size(run.n, (size_t)p->end - position);
        return (query_run){run.q + p->at.head * group_floats, run.stride, run.n};
    }
    const size_t token = p->first_token + position - p->seq->length;
    return (query_run){.q = p->args->q + token * width + p->at.head * group_floats,
                       .stride = width,
                       .n = p->end - position};
}

/* The part's first entry that the next query will see; its end if there is none. */
static uint32_t first_seen(const part *p)
{
    const uint32_t window = shape_of(p)->window;
    if (window == 0 || p->end < window) return p->first;
    const uint32_t first = p->end - window + 1;
    return first < p->first ? p->first : first < p->end ? first : p->end;
}

/* A window that ends with the part and begins with what is seen of it is all that its queries need. */
static kv_read_job make_job(const part *p, const query_run *run, uint32_t seen)
{
    kv_seq *seq = p->seq;
    const kv_layer_shape *shape = shape_of(p);
    kv_reader_worker *worker = &seq->cache->reader.workers[p->at.worker];
    for (uint32_t i = 0; i < run->n; i++)
        worker->positions[i] = p->end - 1;
    return (kv_read_job){.cache = seq->cache,
                         .seq = seq,
                         .worker = worker,
                         .state = &worker->state,
                         .has_low = kv_codec_is_low_rank(seq->methods.codec) && seq->n_coded > 0,
                         .layer = p->at.layer,
                         .head = p->at.head,
                         .query = {.q = run->q,
                                   .q_stride = run->stride,
                                   .positions = worker->positions,
                                   .n_queries = run->n,
                                   .group = shape->n_heads / shape->n_kv_heads,
                                   .k_dim = shape->k_dim,
                                   .v_dim = 0, /* how much they look at it is all that is wanted */
                                   .window = p->end - seen,
                                   .scale = 1,
                                   .type = seq->cache->type}};
}

static float *lse_of(const part *p)
{
    const kv_observers *observers = &p->seq->cache->observers;
    return observers->local_lse + p->at.head * observers->local_stride;
}

/* What normalises the queries of a run. */
static void find_lse(const part *p, const query_run *run, uint32_t seen, float *lse)
{
    kv_read_job j = make_job(p, run, seen);
    const attn_result result = {.o = j.state->acc, .lse = lse};
    attn_state_reset(j.state, (size_t)run->n * j.query.group, 0);
    kv_read_blocks(&j);
    attn_finish(&j.query, j.state, &result);
}

/* What they give. */
static void add_queries(const part *p, const query_run *run, uint32_t seen, const float *lse)
{
    kv_read_job j = make_job(p, run, seen);
    j.lse = lse;
    j.mass = kv_observed_local(p->seq, p->at.layer, p->at.head);
    kv_read_blocks(&j);
}

typedef enum pass { FIND_LSE, ADD_MASS } pass;

/* Run by run, in the order of the queries. */
static void walk_part(const part *p, pass what)
{
    const kv_layer_shape *shape = shape_of(p);
    const uint32_t seen = first_seen(p), n_max = kv_tile_queries(shape);
    float *lse = lse_of(p);
    if (seen == p->end) return;
    for (uint32_t position = p->first; position < p->end;) {
        query_run run = find_queries(p, position);
        run.n = run.n < n_max ? run.n : n_max;
        if (what == FIND_LSE) find_lse(p, &run, seen, lse);
        if (what == ADD_MASS) add_queries(p, &run, seen, lse);
        lse += (size_t)run.n * (shape->n_heads / shape->n_kv_heads);
        position += run.n;
    }
}

static void lse_jobs(void *ctx, size_t begin, size_t end, uint32_t worker)
{
    for (size_t h = begin; h < end; h++) {
        part p = *(const part *)ctx;
        p.at.head = (uint32_t)h;
        p.at.worker = worker;
        walk_part(&p, FIND_LSE);
    }
}

static void mass_jobs(void *ctx, size_t begin, size_t end, uint32_t worker)
{
    for (size_t h = begin; h < end; h++) {
        part p = *(const part *)ctx;
        p.at.head = (uint32_t)h;
        p.at.worker = worker;
        float *local = kv_observed_local(p.seq, p.at.layer, p.at.head);
        memset(local + p.first, 0, (p.end - p.first) * sizeof *local);
        walk_part(&p, ADD_MASS);
    }
}

/* In all heads of the layer. Over ranks each has some of the entries, and all know what normalises the queries. */
static void sum_part(part *p)
{
    const kv_cache *cache = p->seq->cache;
    const kv_layer_shape *shape = shape_of(p);
    const kv_lse_rows rows = {.lse = cache->observers.local_lse,
                              .stride = cache->observers.local_stride,
                              .n_rows = shape->n_kv_heads,
                              .n = (p->end - p->first) * (shape->n_heads / shape->n_kv_heads)};
    const bool is_empty = first_seen(p) == p->end;
    parallel_for(cache->d->pool, shape->n_kv_heads, 1, lse_jobs, p);
    if (!is_empty) kv_ranks_merge_lse(cache, &rows);
    parallel_for(cache->d->pool, shape->n_kv_heads, 1, mass_jobs, p);
}

/* Where the first part ends that has not been summed when the row begins. */
static uint32_t next_end(const kv_row *row)
{
    const uint32_t n = row->seq->cache->local_tokens;
    return row->seq->length - row->seq->length % n + n;
}

static bool completes_part(const kv_row *row)
{
    return row->seq->observed.local != NULL && !row->is_replay &&
           next_end(row) <= row->seq->length + row->n_tokens;
}

void kv_local_note(kv_cache *cache, const kv_attend_args *args)
{
    const kv_step *step = &cache->step;
    const uint32_t n = cache->local_tokens;
    for (uint32_t r = 0; r < step->n_rows; r++) {
        const kv_row *row = &step->rows[r];
        part p = {.seq = row->seq,
                  .args = args,
                  .first_token = row->first_token,
                  .at.layer = args->layer};
        if (!completes_part(row)) continue;
        for (p.end = next_end(row); p.end <= row->seq->length + row->n_tokens; p.end += n) {
            p.first = p.end - n;
            sum_part(&p);
        }
    }
}

void kv_local_finish(kv_seq *seq, uint32_t layer)
{
    const uint32_t n = seq->cache->local_tokens;
    part p = {
        .seq = seq, .at.layer = layer, .first = seq->length - seq->length % n, .end = seq->length};
    assert(!seq->cache->step.is_open);
    if (p.first < p.end) sum_part(&p);
}
