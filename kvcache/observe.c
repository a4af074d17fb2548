/* kvcache/observe.c - see observe.h. */
#include "kvcache/observe.h"

#include "kvcache/blocks.h"
#include "kvcache/kv_replay.h"
#include "kvcache/query_sums.h"

#include <stdlib.h>
#include <string.h>

/* First positions whose queries are left out of sums: they are like no others (Devoto et al. 2025). */
enum { SUMS_FIRST = 4 };

static uint32_t group_of(const kv_layer_shape *shape)
{
    return shape->n_heads / shape->n_kv_heads;
}

void kv_observers_place(arena *a, const kv_cache *cache, kv_observers *observers)
{
    size_t group_max = 0, first_query = 0, first_square = 0, first_sum = 0;
    *observers = (kv_observers){0};
    if (!cache->evict.is_open && cache->methods.codec->n_queries == 0) return;
    observers->first_query =
        arena_take(a, (size_t)cache->n_layers + 1, sizeof *observers->first_query);
    observers->first_square =
        arena_take(a, (size_t)cache->n_layers + 1, sizeof *observers->first_square);
    observers->first_sum = arena_take(a, (size_t)cache->n_layers + 1, sizeof *observers->first_sum);
    for (uint32_t l = 0; l < cache->n_layers; l++) {
        const kv_layer_shape *shape = &cache->layer[l];
        group_max = max_size(group_max, group_of(shape));
        first_query += (size_t)shape->n_heads * shape->k_dim;
        first_square += (size_t)shape->n_kv_heads * shape->k_dim;
        first_sum += shape->n_heads * kv_query_n_sums(shape->k_dim);
        if (observers->first_query == NULL || observers->first_sum == NULL) continue;
        if (observers->first_square == NULL) continue;
        observers->first_query[l + 1] = first_query;
        observers->first_square[l + 1] = first_square;
        observers->first_sum[l + 1] = first_sum;
    }
    if ((cache->evict.needs & (KV_SCORE_MASS | KV_SCORE_REPLAY)) == 0) return;
    observers->lse_stride = group_max * cache->limits.n_step_tokens_max;
    observers->lse = arena_take(a, cache->n_kv_heads_max, observers->lse_stride * sizeof(float));
}

/* ---- memory -------------------------------------------------------------------------------------- */

/* Zeroed, and counted; NULL with *err set once. */
static void *take_zeroed(kv_seq *seq, size_t n, size_t each_bytes, err_t *err)
{
    size_t bytes;
    if (*err != ERR_OK) return NULL;
    *err = size_mul(n, each_bytes, &bytes);
    if (*err != ERR_OK) return NULL;
    void *data = calloc(1, bytes);
    if (data == NULL) *err = ERR_NO_MEMORY;
    if (data == NULL) return NULL;
    seq->observed.bytes += bytes;
    seq->cache->stats.observed_bytes += bytes;
    return data;
}

/* Adds what a policy asks for. */
static void want(const kv_policy *policy, kv_observed *o)
{
    if (!policy->evicts) return;
    o->needs |= policy->scorer->needs;
    if (policy->scorer->n_queries > o->window) o->window = policy->scorer->n_queries;
}

static void find_needs(const kv_seq *seq, kv_observed *o)
{
    o->needs = o->window = 0;
    o->n_squares = seq->methods.codec->n_queries;
    want(&seq->methods.selection, o);
    want(&seq->methods.policy, o);
    if (seq->methods.reads_all) o->needs &= ~(uint32_t)KV_SCORE_USES;
}

static size_t query_row_bytes(const kv_cache *cache)
{
    return cache->observers.first_query[cache->n_layers] * sizeof(float);
}

static err_t take_squares(kv_seq *seq)
{
    const kv_cache *cache = seq->cache;
    kv_observed *o = &seq->observed;
    err_t err = ERR_OK;
    if (o->n_squares == 0) return ERR_OK;
    const size_t row_bytes = cache->observers.first_square[cache->n_layers] * sizeof *o->squares;
    if (o->squares == NULL) o->squares = take_zeroed(seq, o->n_squares, row_bytes, &err);
    if (o->new_squares == NULL) o->new_squares = take_zeroed(seq, o->n_squares, row_bytes, &err);
    return err;
}

/* What does not grow with the sequence, if it is not there yet. */
static err_t take_fixed(kv_seq *seq)
{
    const kv_cache *cache = seq->cache;
    kv_observed *o = &seq->observed;
    err_t err = take_squares(seq);
    if ((o->needs & KV_SCORE_QUERIES) != 0) {
        const size_t row_bytes = query_row_bytes(cache);
        if (o->queries == NULL) o->queries = take_zeroed(seq, o->window, row_bytes, &err);
        if (o->new_queries == NULL) o->new_queries = take_zeroed(seq, o->window, row_bytes, &err);
    }
    if ((o->needs & KV_SCORE_STATS) == 0 || o->sums != NULL || o->stats != NULL) return err;
    o->sums = take_zeroed(seq, cache->observers.first_sum[cache->n_layers], sizeof *o->sums, &err);
    return err;
}

err_t kv_observed_open(kv_seq *seq)
{
    seq->observed = (kv_observed){0};
    find_needs(seq, &seq->observed);
    const err_t err = take_fixed(seq);
    if (err != ERR_OK) kv_observed_close(seq);
    return err;
}

void kv_observed_close(kv_seq *seq)
{
    kv_observed *o = &seq->observed;
    free(o->queries);
    free(o->new_queries);
    free(o->squares);
    free(o->new_squares);
    free(o->sums);
    free(o->new_sums);
    free(o->stats);
    free(o->mass);
    free(o->new_mass);
    free(o->uses);
    kv_replay_drop(seq);
    seq->cache->stats.observed_bytes -= o->bytes;
    *o = (kv_observed){0};
}

/* Forgets an array of n elements that a larger one has replaced. */
static void give_back(kv_seq *seq, void *data, size_t n, size_t each_bytes)
{
    seq->observed.bytes -= n * each_bytes;
    seq->cache->stats.observed_bytes -= n * each_bytes;
    free(data);
}

/* KV heads of all layers. */
static size_t n_heads_all(const kv_cache *cache)
{
    return cache->n_lists / cache->n_shards;
}

static size_t head_index(const kv_cache *cache, uint32_t layer, uint32_t head)
{
    return kv_list(cache, layer, head, 0) / cache->n_shards;
}

static err_t grow_mass(kv_seq *seq, uint32_t n_positions)
{
    kv_observed *o = &seq->observed;
    err_t err = ERR_OK;
    const size_t n_heads = n_heads_all(seq->cache), old = n_heads * o->n_positions;
    const size_t row_bytes = n_positions * sizeof(float);
    float *mass = take_zeroed(seq, n_heads, row_bytes, &err);
    float *new_mass = take_zeroed(seq, n_heads, row_bytes, &err);
    if (err != ERR_OK) {
        if (mass != NULL) give_back(seq, mass, n_heads, row_bytes);
        return err;
    }
    for (size_t h = 0; h < n_heads && o->n_positions > 0; h++)
        memcpy(mass + h * n_positions, o->mass + h * o->n_positions, o->n_positions * sizeof *mass);
    give_back(seq, o->mass, old, sizeof *mass);
    give_back(seq, o->new_mass, old, sizeof *mass);
    o->mass = mass;
    o->new_mass = new_mass;
    o->n_positions = n_positions;
    return ERR_OK;
}

static err_t grow_uses(kv_seq *seq, uint32_t n_entries)
{
    kv_observed *o = &seq->observed;
    err_t err = ERR_OK;
    const size_t n_lists = seq->cache->n_lists;
    kv_uses *uses = take_zeroed(seq, n_lists, n_entries * sizeof *uses, &err);
    if (err != ERR_OK) return err;
    for (size_t list = 0; list < n_lists && o->n_entries > 0; list++)
        memcpy(uses + list * n_entries, o->uses + list * o->n_entries, o->n_entries * sizeof *uses);
    give_back(seq, o->uses, n_lists * o->n_entries, sizeof *uses);
    o->uses = uses;
    o->n_entries = n_entries;
    return ERR_OK;
}

static void drop_sums(kv_seq *seq)
{
    kv_observed *o = &seq->observed;
    const size_t n = o->sums != NULL ? seq->cache->observers.first_sum[seq->cache->n_layers] : 0;
    give_back(seq, o->sums, n, sizeof *o->sums);
    give_back(seq, o->new_sums, o->new_sums != NULL ? n : 0, sizeof *o->sums);
    o->sums = o->new_sums = NULL;
}

static void drop_stats(kv_seq *seq)
{
    kv_observed *o = &seq->observed;
    const size_t n = o->stats != NULL ? seq->cache->observers.first_sum[seq->cache->n_layers] : 0;
    give_back(seq, o->stats, n, sizeof *o->stats);
    o->stats = NULL;
}

static void pack_all(const kv_seq *seq)
{
    const kv_cache *cache = seq->cache;
    const kv_observed *o = &seq->observed;
    for (uint32_t l = 0; l < cache->n_layers; l++) {
        const kv_layer_shape *shape = &cache->layer[l];
        for (uint32_t h = 0; h < shape->n_heads; h++) {
            const size_t at = cache->observers.first_sum[l] + h * kv_query_n_sums(shape->k_dim);
            kv_query_pack(o->sums + at, o->n_summed, shape->k_dim, o->stats + at);
        }
    }
}

/* Sums in the prompt, with the second copy; behind it what scorers want of them, at half the bytes. */
static err_t settle_sums(kv_seq *seq)
{
    kv_observed *o = &seq->observed;
    err_t err = ERR_OK;
    if (o->sums == NULL) return ERR_OK;
    const size_t n = seq->cache->observers.first_sum[seq->cache->n_layers];
    if (seq->length < seq->n_prompt_tokens) {
        if (o->new_sums == NULL) o->new_sums = take_zeroed(seq, n, sizeof *o->sums, &err);
        return err;
    }
    o->stats = take_zeroed(seq, n, sizeof *o->stats, &err);
    if (err != ERR_OK) return err;
    pack_all(seq);
    drop_sums(seq);
    return ERR_OK;
}

err_t kv_observed_grow(kv_seq *seq)
{
    const kv_observed *o = &seq->observed;
    const uint32_t n_entries = seq->table.capacity;
    const uint64_t n_positions = (uint64_t)n_entries * seq->cache->page_tokens;
    if (n_positions > UINT32_MAX) return ERR_OVERFLOW;
    TRY(take_fixed(seq));
    TRY(settle_sums(seq));
    if ((o->needs & KV_SCORE_MASS) != 0 && n_positions > o->n_positions)
        TRY(grow_mass(seq, (uint32_t)n_positions));
    if ((o->needs & KV_SCORE_USES) != 0 && n_entries > o->n_entries) TRY(grow_uses(seq, n_entries));
    return ERR_OK;
}

void kv_observed_forget(kv_seq *seq)
{
    const kv_cache *cache = seq->cache;
    kv_observed *o = &seq->observed;
    o->first = o->n_summed = 0;
    find_needs(seq, o);
    drop_stats(seq);
    kv_replay_forget(seq);
    if (o->sums != NULL)
        memset(o->sums, 0, cache->observers.first_sum[cache->n_layers] * sizeof *o->sums);
    if (o->mass != NULL) memset(o->mass, 0, n_heads_all(cache) * o->n_positions * sizeof *o->mass);
    if (o->uses != NULL)
        memset(o->uses, 0, (size_t)cache->n_lists * o->n_entries * sizeof *o->uses);
}

/* Later squares lie where older ones were. (A sequence whose scorer has queries begins anew.) */
void kv_observed_cut(kv_seq *seq, uint32_t n_tokens)
{
    kv_observed *o = &seq->observed;
    const uint32_t oldest = seq->length > o->n_squares ? seq->length - o->n_squares : 0;
    if (o->first < oldest) o->first = oldest;
    if (o->first > n_tokens) o->first = n_tokens;
}

static void drop_queries(kv_seq *seq)
{
    kv_observed *o = &seq->observed;
    if (o->queries == NULL) return;
    const size_t row_bytes = query_row_bytes(seq->cache);
    give_back(seq, o->queries, o->window, row_bytes);
    give_back(seq, o->new_queries, o->new_queries != NULL ? o->window : 0, row_bytes);
    o->queries = o->new_queries = NULL;
}

void kv_observed_rest(kv_seq *seq)
{
    kv_observed *o = &seq->observed;
    const kv_cache *cache = seq->cache;
    o->needs = 0;
    kv_replay_drop(seq);
    drop_queries(seq);
    drop_sums(seq);
    drop_stats(seq);
    o->n_summed = 0;
    give_back(seq, o->mass, n_heads_all(cache) * o->n_positions, sizeof *o->mass);
    give_back(seq, o->new_mass, n_heads_all(cache) * o->n_positions, sizeof *o->mass);
    give_back(seq, o->uses, (size_t)cache->n_lists * o->n_entries, sizeof *o->uses);
    o->mass = o->new_mass = NULL;
    o->uses = NULL;
    o->n_positions = o->n_entries = 0;
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
    const size_t width = (size_t)shape->n_heads * shape->k_dim;
    float *to = query_rows(row->seq, o->new_queries, args->layer);
    for (uint32_t t = row->n_tokens > o->window ? row->n_tokens - o->window : 0; t < row->n_tokens;
         t++) {
        const uint32_t position = row->seq->length + t;
        memcpy(to + position % o->window * width, args->q + (row->first_token + t) * width,
               width * sizeof *to);
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
            commit_rows(seq, o->window, (size_t)shape->n_heads * shape->k_dim,
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

void kv_observed_queries(const kv_seq *seq, const kv_observed_window *window, float *out,
                         uint32_t *positions)
{
    const kv_layer_shape *shape = &seq->cache->layer[window->layer];
    const kv_observed *o = &seq->observed;
    const size_t width = (size_t)shape->n_heads * shape->k_dim;
    const size_t n_floats = (size_t)group_of(shape) * shape->k_dim;
    assert(window->n <= kv_observed_n_queries(seq));
    for (uint32_t i = 0; i < window->n; i++) {
        positions[i] = seq->length - window->n + i;
        memcpy(out + i * n_floats,
               query_rows(seq, o->queries, window->layer) + positions[i] % o->window * width +
                   window->head * n_floats,
               n_floats * sizeof *out);
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
