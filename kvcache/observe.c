/* kvcache/observe.c - see observe.h. */
#include "kvcache/observe.h"

#include "kvcache/blocks.h"
#include "kvcache/observed.h"
#include "kvcache/query_sums.h"

#include <string.h>

/* First positions whose queries are left out of sums: they are like no others (Devoto et al. 2025). */
enum { SUMS_FIRST = 4 };

static uint32_t group_of(const kv_layer_shape *shape)
{
    return shape->n_heads / shape->n_kv_heads;
}

static size_t head_index(const kv_cache *cache, uint32_t layer, uint32_t head)
{
    return kv_list(cache, layer, head, 0) / cache->n_shards;
}

/* ---- a step -------------------------------------------------------------------------------------- */

static float *query_rows(const kv_seq *seq, float *queries, uint32_t layer)
{
    return queries + seq->observed.window * seq->cache->observers.first_query[layer];
}

/* The newest queries of the row, as many as the window has. */
static void note_queries(const kv_row *row, const kv_layer_shape *shape, const kv_attend_args *args)
{
    const kv_observed *o = &row->seq->observed;
    const size_t width = kv_query_width(shape);
    const bool has_norm = (o->needs & KV_SCORE_INPUT_NORM) != 0;
    float *rows = query_rows(row->seq, o->new_queries, args->layer);
    if (has_norm) assert(args->input_norm != NULL);
    for (uint32_t t = row->n_tokens > o->window ? row->n_tokens - o->window : 0; t < row->n_tokens;
         t++) {
        float *to = rows + (row->seq->length + t) % o->window * (width + 1);
        memcpy(to, args->q + (row->first_token + t) * width, width * sizeof *to);
        to[width] = has_norm ? args->input_norm[row->first_token + t] : 0;
    }
}

static float *square_rows(const kv_seq *seq, float *squares, uint32_t layer)
{
    return squares + seq->observed.n_squares * seq->cache->observers.first_square[layer];
}

/* Of the newest queries of the row. */
static void note_squares(const kv_row *row, const kv_layer_shape *shape, const kv_attend_args *args)
{
    const kv_observed *o = &row->seq->observed;
    const size_t width = (size_t)shape->n_kv_heads * shape->k_dim;
    const uint32_t group = group_of(shape), k_dim = shape->k_dim;
    float *to = square_rows(row->seq, o->new_squares, args->layer);
    for (uint32_t t = row->n_tokens > o->n_squares ? row->n_tokens - o->n_squares : 0;
         t < row->n_tokens; t++) {
        float *out = to + (row->seq->length + t) % o->n_squares * width;
        const float *q = args->q + (row->first_token + t) * width * group;
        for (size_t i = 0; i < width; i++) {
            double sum = 0;
            for (uint32_t g = 0; g < group; g++) {
                const double x = (double)q[(i / k_dim * group + g) * k_dim + i % k_dim];
                sum += x * x;
            }
            out[i] = (float)sum;
        }
    }
}

/* Tokens of the row whose queries are summed. */
typedef struct summed {
    uint32_t first, end;
} summed;

static summed find_summed(const kv_seq *seq, uint32_t n_tokens)
{
    const uint32_t length = seq->length;
    const uint32_t n_prompt = seq->n_prompt_tokens > length ? seq->n_prompt_tokens - length : 0;
    return (summed){.first = length < SUMS_FIRST ? SUMS_FIRST - length : 0,
                    .end = n_tokens < n_prompt ? n_tokens : n_prompt};
}

typedef struct sum_loop {
    const kv_cache *cache;
    const kv_attend_args *args;
} sum_loop;

/* Job i: query head i mod n_heads of row i / n_heads. */
static void sum_jobs(void *ctx, size_t begin, size_t end, uint32_t worker)
{
    const sum_loop *loop = ctx;
    const kv_cache *cache = loop->cache;
    const kv_layer_shape *shape = &cache->layer[loop->args->layer];
    const size_t n = kv_query_n_sums(shape->k_dim),
                 first = cache->observers.first_sum[loop->args->layer];
    (void)worker;
    for (size_t i = begin; i < end; i++) {
        const kv_row *row = &cache->step.rows[i / shape->n_heads];
        const size_t head = i % shape->n_heads;
        const kv_observed *o = &row->seq->observed;
        const summed tokens = find_summed(row->seq, row->n_tokens);
        if (o->sums == NULL || tokens.first >= tokens.end) continue;
        double *sums = o->new_sums + first + head * n;
        memcpy(sums, o->sums + first + head * n, n * sizeof *sums);
        for (uint32_t t = tokens.first; t < tokens.end; t++) {
            const size_t at = (size_t)(row->first_token + t) * shape->n_heads + head;
            kv_query_add(loop->args->q_nope + at * shape->k_dim, shape->k_dim, sums);
        }
    }
}

void kv_observe_queries(kv_cache *cache, const kv_attend_args *args)
{
    const kv_layer_shape *shape = &cache->layer[args->layer];
    bool any_sums = false;
    if (cache->observers.first_query == NULL) return;
    for (uint32_t r = 0; r < cache->step.n_rows; r++) {
        const kv_row *row = &cache->step.rows[r];
        const summed tokens = find_summed(row->seq, row->n_tokens);
        if (row->is_replay) continue; /* these are not the sequence's own */
        if (row->seq->observed.queries != NULL) note_queries(row, shape, args);
        if (row->seq->observed.squares != NULL) note_squares(row, shape, args);
        any_sums = any_sums || (row->seq->observed.sums != NULL && tokens.first < tokens.end);
    }
    if (!any_sums) return;
    assert(args->q_nope != NULL);
    sum_loop loop = {.cache = cache, .args = args};
    parallel_for(cache->d->pool, (size_t)cache->step.n_rows * shape->n_heads, 1, sum_jobs, &loop);
}

float *kv_observe_mass(const kv_seq *seq, uint32_t layer, uint32_t head)
{
    const kv_observed *o = &seq->observed;
    const size_t at = head_index(seq->cache, layer, head) * o->n_positions;
    memcpy(o->new_mass + at, o->mass + at, seq->length * sizeof *o->mass);
    memset(o->new_mass + at + seq->length, 0, seq->n_step_tokens * sizeof *o->mass);
    return o->new_mass + at;
}

void kv_observe_use(const kv_seq *seq, uint32_t list, uint32_t entry, uint32_t position)
{
    const kv_observed *o = &seq->observed;
    if (o->uses == NULL) return;
    o->uses[(size_t)list * o->n_entries + entry].last_use = position;
    o->uses[(size_t)list * o->n_entries + entry].n_uses++;
}

/* Copies what a step has noted of its newest positions, n_rows of them at most, `width` floats each. */
static void commit_rows(const kv_seq *seq, uint32_t n_rows, size_t width, const float *from,
                        float *to)
{
    const uint32_t end = seq->length + seq->n_step_tokens;
    for (uint32_t p = end - (uint32_t)min_size(seq->n_step_tokens, n_rows); p < end; p++)
        memcpy(to + p % n_rows * width, from + p % n_rows * width, width * sizeof *to);
}

static void commit_queries(kv_seq *seq)
{
    const kv_cache *cache = seq->cache;
    const kv_observed *o = &seq->observed;
    for (uint32_t l = 0; l < cache->n_layers; l++) {
        const kv_layer_shape *shape = &cache->layer[l];
        if (o->queries != NULL)
            commit_rows(seq, o->window, kv_query_width(shape) + 1,
                        query_rows(seq, o->new_queries, l), query_rows(seq, o->queries, l));
        if (o->squares != NULL)
            commit_rows(seq, o->n_squares, (size_t)shape->n_kv_heads * shape->k_dim,
                        square_rows(seq, o->new_squares, l), square_rows(seq, o->squares, l));
    }
}

void kv_observe_commit(kv_seq *seq)
{
    kv_observed *o = &seq->observed;
    const summed tokens = find_summed(seq, seq->n_step_tokens);
    commit_queries(seq);
    if (o->sums != NULL && tokens.first < tokens.end) {
        double *const sums = o->sums;
        o->sums = o->new_sums;
        o->new_sums = sums;
        o->n_summed += tokens.end - tokens.first;
    }
    if (o->mass != NULL) {
        float *const mass = o->mass;
        o->mass = o->new_mass;
        o->new_mass = mass;
    }
}

/* ---- for scorers and codecs ---------------------------------------------------------------------- */

uint32_t kv_observed_n_queries(const kv_seq *seq)
{
    return (uint32_t)min_size(seq->length - seq->observed.first, seq->observed.window);
}

kv_observed_run kv_observed_query_run(const kv_seq *seq, uint32_t layer, uint32_t position)
{
    const kv_layer_shape *shape = &seq->cache->layer[layer];
    const kv_observed *o = &seq->observed;
    const size_t width = kv_query_width(shape) + 1;
    const uint32_t at = position % o->window;
    assert(position < seq->length);
    assert(position >= seq->length - kv_observed_n_queries(seq));
    return (kv_observed_run){
        .q = query_rows(seq, o->queries, layer) + at * width,
        .stride = width,
        .n = (uint32_t)min_size(o->window - at, (size_t)seq->length - position)};
}

void kv_observed_queries(const kv_seq *seq, const kv_observed_window *window,
                         const kv_observed_rows *out)
{
    const kv_layer_shape *shape = &seq->cache->layer[window->layer];
    const size_t n_floats = (size_t)group_of(shape) * shape->k_dim;
    assert(window->n <= kv_observed_n_queries(seq));
    for (uint32_t i = 0; i < window->n; i++) {
        const uint32_t position = seq->length - window->n + i;
        const float *row = kv_observed_query_run(seq, window->layer, position).q;
        out->positions[i] = position;
        out->input_norm[i] = row[kv_query_width(shape)];
        memcpy(out->q + i * n_floats, row + window->head * n_floats, n_floats * sizeof *row);
    }
}

/* A commit asks before the length has grown, and means the tokens of its step, too. */
bool kv_observed_q_norm(const kv_seq *seq, uint32_t layer, uint32_t head, float *out)
{
    const kv_layer_shape *shape = &seq->cache->layer[layer];
    const kv_observed *o = &seq->observed;
    const size_t width = (size_t)shape->n_kv_heads * shape->k_dim;
    const uint32_t end = seq->length + seq->n_step_tokens;
    const uint32_t n = (uint32_t)min_size(end - o->first, o->n_squares);
    if (o->squares == NULL || n == 0) return false;
    const float *rows = square_rows(seq, o->squares, layer) + (size_t)head * shape->k_dim;
    for (uint32_t c = 0; c < shape->k_dim; c++) {
        double sum = 0;
        for (uint32_t p = end - n; p < end; p++)
            sum += (double)rows[p % o->n_squares * width + c];
        out[c] = (float)sum;
    }
    return true;
}

void kv_observed_stats(const kv_seq *seq, uint32_t layer, uint32_t head, float *mean, float *cov)
{
    const kv_layer_shape *shape = &seq->cache->layer[layer];
    const kv_observed *o = &seq->observed;
    const size_t k_dim = shape->k_dim;
    for (size_t g = 0; g < group_of(shape); g++, mean += k_dim, cov += k_dim * k_dim) {
        const size_t query_head = head * group_of(shape) + g;
        const size_t at =
            seq->cache->observers.first_sum[layer] + query_head * kv_query_n_sums(shape->k_dim);
        if (o->stats != NULL) {
            kv_query_unpack(o->stats + at, shape->k_dim, mean, cov);
        } else {
            kv_query_stats_of(o->sums + at, o->n_summed, shape->k_dim, mean, cov);
        }
    }
}

const float *kv_observed_mass(const kv_seq *seq, uint32_t layer, uint32_t head)
{
    return seq->observed.mass + head_index(seq->cache, layer, head) * seq->observed.n_positions;
}

float *kv_observed_local(const kv_seq *seq, uint32_t layer, uint32_t head)
{
    return seq->observed.local + head_index(seq->cache, layer, head) * seq->observed.n_local;
}

kv_uses kv_observed_uses(const kv_seq *seq, uint32_t list, uint32_t entry)
{
    const kv_observed *o = &seq->observed;
    return o->uses != NULL ? o->uses[(size_t)list * o->n_entries + entry] : (kv_uses){0};
}

void kv_observed_set_uses(const kv_seq *seq, uint32_t list, uint32_t entry, kv_uses uses)
{
    const kv_observed *o = &seq->observed;
    if (o->uses != NULL) o->uses[(size_t)list * o->n_entries + entry] = uses;
}

void kv_uses_join(kv_uses *to, kv_uses from)
{
    if (from.last_use > to->last_use) to->last_use = from.last_use;
    if (from.n_uses > to->n_uses) to->n_uses = from.n_uses;
}
