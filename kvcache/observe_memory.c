/* kvcache/observe_memory.c - what is kept for scorers and codecs: places, growth, and giving back; see observe.h. */
#include "kvcache/observe.h"

#include "kvcache/blocks.h"
#include "kvcache/kv_replay.h"
#include "kvcache/local_mass.h"
#include "kvcache/query_sums.h"

#include <stdlib.h>
#include <string.h>

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
        first_query += kv_query_width(shape) + 1; /* and the norm of the layer's input */
        first_square += (size_t)shape->n_kv_heads * shape->k_dim;
        first_sum += shape->n_heads * kv_query_n_sums(shape->k_dim);
        if (observers->first_query == NULL || observers->first_sum == NULL) continue;
        if (observers->first_square == NULL) continue;
        observers->first_query[l + 1] = first_query;
        observers->first_square[l + 1] = first_square;
        observers->first_sum[l + 1] = first_sum;
    }
    observers->group_max = (uint32_t)group_max;
    observers->local_stride = group_max * KV_LOCAL_TOKENS;
    if ((cache->evict.needs & KV_SCORE_LOCAL) != 0)
        observers->local_lse =
            arena_take(a, cache->n_kv_heads_max, observers->local_stride * sizeof(float));
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
    o->needs |= kv_policy_needs(policy);
    o->window = (uint32_t)max_size(o->window, kv_policy_n_queries(policy));
    o->wants_lazy = o->wants_lazy || (policy->evicts && kv_policy_by_laziness(policy));
}

static void find_needs(const kv_seq *seq, kv_observed *o)
{
    o->needs = o->window = 0;
    o->wants_lazy = false;
    o->n_squares = seq->methods.codec->n_queries;
    want(&seq->methods.selection, o);
    want(&seq->methods.policy, o);
    if ((o->needs & KV_SCORE_LOCAL) != 0)
        o->window = (uint32_t)max_size(o->window, KV_LOCAL_TOKENS);
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
    if ((o->needs & (KV_SCORE_QUERIES | KV_SCORE_LOCAL)) != 0) {
        const size_t row_bytes = query_row_bytes(cache);
        if (o->queries == NULL) o->queries = take_zeroed(seq, o->window, row_bytes, &err);
        if (o->new_queries == NULL) o->new_queries = take_zeroed(seq, o->window, row_bytes, &err);
    }
    if (o->wants_lazy && o->lazy == NULL)
        o->lazy = take_zeroed(seq, cache->n_layers, sizeof *o->lazy, &err);
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
    free(o->local);
    free(o->uses);
    free(o->lazy);
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

/* A larger copy of floats by position, of every head. */
static float *take_grown(kv_seq *seq, const float *old, uint32_t n_old, uint32_t n, err_t *err)
{
    const size_t n_heads = n_heads_all(seq->cache);
    float *grown = take_zeroed(seq, n_heads, n * sizeof *grown, err);
    for (size_t h = 0; h < n_heads && grown != NULL && n_old > 0; h++)
        memcpy(grown + h * n, old + h * n_old, n_old * sizeof *grown);
    return grown;
}

static err_t grow_local(kv_seq *seq, uint32_t n_positions)
{
    kv_observed *o = &seq->observed;
    err_t err = ERR_OK;
    float *local = take_grown(seq, o->local, o->n_local, n_positions, &err);
    if (err != ERR_OK) return err;
    give_back(seq, o->local, n_heads_all(seq->cache) * o->n_local, sizeof *local);
    o->local = local;
    o->n_local = n_positions;
    return ERR_OK;
}

static err_t grow_mass(kv_seq *seq, uint32_t n_positions)
{
    kv_observed *o = &seq->observed;
    err_t err = ERR_OK;
    const size_t n_heads = n_heads_all(seq->cache), old = n_heads * o->n_positions;
    const size_t row_bytes = n_positions * sizeof(float);
    float *mass = take_grown(seq, o->mass, o->n_positions, n_positions, &err);
    float *new_mass = take_zeroed(seq, n_heads, row_bytes, &err);
    if (err != ERR_OK) {
        if (mass != NULL) give_back(seq, mass, n_heads, row_bytes);
        return err;
    }
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
    if ((o->needs & KV_SCORE_LOCAL) != 0 && n_positions > o->n_local)
        TRY(grow_local(seq, (uint32_t)n_positions));
    if ((o->needs & KV_SCORE_USES) != 0 && n_entries > o->n_entries) TRY(grow_uses(seq, n_entries));
    return ERR_OK;
}

void kv_observed_forget(kv_seq *seq)
{
    const kv_cache *cache = seq->cache;
    kv_observed *o = &seq->observed;
    o->first = o->n_summed = o->lazy_length = 0;
    find_needs(seq, o);
    drop_stats(seq);
    kv_replay_forget(seq);
    if (o->sums != NULL)
        memset(o->sums, 0, cache->observers.first_sum[cache->n_layers] * sizeof *o->sums);
    if (o->mass != NULL) memset(o->mass, 0, n_heads_all(cache) * o->n_positions * sizeof *o->mass);
    if (o->local != NULL) memset(o->local, 0, n_heads_all(cache) * o->n_local * sizeof *o->local);
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
    give_back(seq, o->local, n_heads_all(cache) * o->n_local, sizeof *o->local);
    give_back(seq, o->uses, (size_t)cache->n_lists * o->n_entries, sizeof *o->uses);
    give_back(seq, o->lazy, o->lazy != NULL ? cache->n_layers : 0, sizeof *o->lazy);
    o->lazy = NULL;
    o->wants_lazy = false;
    o->mass = o->new_mass = o->local = NULL;
    o->uses = NULL;
    o->n_positions = o->n_local = o->n_entries = 0;
}
