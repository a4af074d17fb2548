/* kvcache/ranks.c - see ranks.h.
 *
 * A rank's part is one piece of memory, sums before their lse, so that a layer costs one all_gather: each
 * rank writes its part where the gathering leaves it. */
#include "kvcache/ranks.h"

#include "kvcache/away.h"
#include "kvcache/local_mass.h"
#include "kvcache/prefix_ranks.h"

#include <math.h>
#include <string.h>

/* Merging fewer floats than this is not worth a parallel loop. */
enum { MERGE_FLOATS = 4096 };

/* ---- opening ------------------------------------------------------------------------------------- */

err_t kv_ranks_init(kv_cache *cache, const kv_config *config, err_info *info)
{
    kv_ranks *ranks = &cache->ranks;
    *ranks = (kv_ranks){.comm = config->comm, .n = 1};
    cache->n_shards = config->n_shards;
    if (ranks->comm == NULL) return ERR_OK;
    const uint32_t n = comm_n_ranks(ranks->comm);
    if (n > KV_SHARDS_MAX)
        return err_set(info, ERR_BAD_CONFIG,
                       "the cache has at most %d shards, too few for %u ranks", KV_SHARDS_MAX, n);
    ranks->n = n;
    ranks->rank = comm_rank(ranks->comm);
    if (n == 1) return ERR_OK;
    if (cache->n_shards == 1) cache->n_shards = n;
    if (cache->n_shards >= n) return ERR_OK;
    return err_set(info, ERR_BAD_CONFIG, "kv-shards: %u is less than the number of ranks, %u",
                   cache->n_shards, n);
}

/* Of one token. */
static size_t part_floats(const kv_cache *cache, uint32_t layer)
{
    const kv_layer_shape *shape = &cache->layer[layer];
    return (size_t)shape->n_heads * ((size_t)shape->v_dim + 1 + cache->has_boxes);
}

/* Beside the tokens: one for each row, if one may be lost. */
static size_t flag_floats(const kv_cache *cache, uint32_t n_rows)
{
    return cache->has_file ? n_rows : 0;
}

/* What normalises the scores of a layer at once: of windows of queries, or of a part (local_mass.h). */
static size_t score_floats(const kv_cache *cache)
{
    size_t n_heads_max = 0;
    if (!cache->evict.is_open) return 0;
    for (uint32_t l = 0; l < cache->n_layers; l++)
        n_heads_max = max_size(n_heads_max, cache->layer[l].n_heads);
    return max_size(n_heads_max * KV_LOCAL_TOKENS, cache->n_kv_heads_max * cache->evict.lse_stride);
}

err_t kv_ranks_place(arena *a, kv_cache *cache)
{
    size_t row_bytes = 0, bytes;
    if (cache->ranks.n == 1) return ERR_OK;
    for (uint32_t l = 0; l < cache->n_layers; l++)
        row_bytes = max_size(row_bytes, part_floats(cache, l) * sizeof(float));
    TRY(size_mul(row_bytes, cache->limits.n_step_tokens_max, &bytes));
    TRY(size_add(bytes, flag_floats(cache, cache->limits.n_seqs_max) * sizeof(float), &bytes));
    cache->ranks.part_bytes = max_size(bytes, kv_ranks_ring_bytes(cache));
    TRY(size_mul(score_floats(cache), sizeof(float), &bytes));
    cache->ranks.part_bytes = max_size(cache->ranks.part_bytes, bytes);
    TRY(size_mul(cache->ranks.part_bytes, cache->ranks.n, &bytes));
    if (bytes > COMM_BYTES_MAX) return ERR_OVERFLOW;
    cache->ranks.parts = arena_take(a, bytes, 1);
    return ERR_OK;
}

/* ---- agreeing ------------------------------------------------------------------------------------ */

err_t kv_ranks_agree(const kv_cache *cache, err_t err, err_info *info)
{
    const kv_ranks *ranks = &cache->ranks;
    uint32_t code[KV_SHARDS_MAX];
    if (ranks->n <= 1) return err; /* 0: opening failed before there were ranks */
    code[ranks->rank] = (uint32_t)err;
    TRY(comm_all_gather(ranks->comm, &code[ranks->rank], code, sizeof code[0], info));
    for (uint32_t r = 0; r < ranks->n; r++) {
        if (code[r] != ERR_OK)
            return err_set(info, (err_t)code[r], "rank %u: %s", r, err_sentence((err_t)code[r]));
    }
    return ERR_OK;
}

bool kv_ranks_gather(const kv_cache *cache, const void *in, void *out, size_t bytes)
{
    if (cache->ranks.n > 1)
        return comm_all_gather(cache->ranks.comm, in, out, bytes, NULL) == ERR_OK;
    memcpy(out, in, bytes);
    return true;
}

/* ---- sums ---------------------------------------------------------------------------------------- */

/* The float at the same place of all parts. */
static float merge_lse(const float *part, size_t stride, uint32_t n_ranks)
{
    double top = -INFINITY, sum = 0;
    for (uint32_t r = 0; r < n_ranks; r++)
        top = fmax(top, (double)part[r * stride]);
    if (top == -INFINITY) return -INFINITY;
    for (uint32_t r = 0; r < n_ranks; r++)
        sum += exp((double)part[r * stride] - top);
    return (float)(top + log(sum));
}

void kv_ranks_merge_lse(const kv_cache *cache, const kv_lse_rows *rows)
{
    const kv_ranks *ranks = &cache->ranks;
    const size_t n_floats = rows->n_rows * rows->n;
    if (ranks->n == 1) return;
    assert(n_floats * sizeof(float) <= ranks->part_bytes);
    float *own = ranks->parts + ranks->rank * n_floats;
    for (size_t i = 0; i < rows->n_rows; i++)
        memcpy(own + i * rows->n, rows->lse + i * rows->stride, rows->n * sizeof *own);
    if (!kv_ranks_gather(cache, own, ranks->parts, n_floats * sizeof *own)) return;
    for (size_t i = 0; i < n_floats; i++)
        rows->lse[i / rows->n * rows->stride + i % rows->n] =
            merge_lse(ranks->parts + i, n_floats, ranks->n);
}

void kv_ranks_sum(const kv_cache *cache, double *x, size_t n)
{
    const kv_ranks *ranks = &cache->ranks;
    if (ranks->n == 1) return;
    for (size_t at = 0; at < n;) {
        const size_t count = min_size(n - at, ranks->part_bytes / sizeof *x);
        double *parts = (double *)(void *)ranks->parts, *own = parts + ranks->rank * count;
        memcpy(own, x + at, count * sizeof *x);
        if (!kv_ranks_gather(cache, own, parts, count * sizeof *x)) return;
        for (size_t i = 0; i < count; i++) {
            x[at + i] = 0;
            for (uint32_t r = 0; r < ranks->n; r++)
                x[at + i] += parts[r * count + i];
        }
        at += count;
    }
}

/* ---- attention ----------------------------------------------------------------------------------- */

/* Floats of one rank's part in this step. */
static size_t step_floats(const kv_cache *cache, uint32_t layer)
{
    return cache->step.n_tokens * part_floats(cache, layer) +
           flag_floats(cache, cache->step.n_rows);
}

/* Of rank r, in this step. */
static kv_part part_of(const kv_cache *cache, uint32_t layer, uint32_t r)
{
    const kv_layer_shape *shape = &cache->layer[layer];
    const size_t n_rows = (size_t)cache->step.n_tokens * shape->n_heads;
    float *o = cache->ranks.parts + r * step_floats(cache, layer);
    float *lse = o + n_rows * shape->v_dim;
    return (kv_part){.o = o,
                     .lse = lse,
                     .unread = cache->has_boxes ? lse + n_rows : NULL,
                     .lost = lse + (cache->has_boxes ? 2 * n_rows : n_rows)};
}

kv_part kv_ranks_part(const kv_cache *cache, uint32_t layer)
{
    return part_of(cache, layer, cache->ranks.rank);
}

typedef struct merge_loop {
    const kv_cache *cache;
    uint32_t layer;
    float *out;
} merge_loop;

/* Where the lse of all ranks is kept for those that note what entries get; NULL: nobody does. */
static float *whole_lse(const kv_cache *cache, size_t head, size_t token, size_t group)
{
    const kv_observers *observers = &cache->observers;
    if (observers->lse == NULL) return NULL;
    return observers->lse + head / group * observers->lse_stride + token * group + head % group;
}

/* Row i: head i mod n_heads of token i / n_heads. */
static void merge_rows(void *ctx, size_t begin, size_t end, uint32_t worker)
{
    const merge_loop *loop = ctx;
    const kv_cache *cache = loop->cache;
    const kv_layer_shape *shape = &cache->layer[loop->layer];
    const size_t group = shape->n_heads / shape->n_kv_heads;
    const size_t part_stride = step_floats(cache, loop->layer);
    const kv_part first = part_of(cache, loop->layer, 0);
    (void)worker;
    for (size_t i = begin; i < end; i++) {
        const size_t token = i / shape->n_heads, head = i % shape->n_heads;
        const size_t row = (head / group * cache->step.n_tokens + token) * group + head % group;
        float lse[KV_SHARDS_MAX];
        for (uint32_t r = 0; r < cache->ranks.n; r++)
            lse[r] = first.lse[r * part_stride + row];
        attn_merge(&(attn_merge_args){.o = first.o + i * shape->v_dim,
                                      .part_stride = part_stride,
                                      .lse = lse,
                                      .n_parts = cache->ranks.n,
                                      .v_dim = shape->v_dim,
                                      .out = loop->out + i * shape->v_dim,
                                      .out_lse = whole_lse(cache, head, token, group)});
    }
}

/* Which rows' sequences this rank has lost, before its part goes out. */
static void tell_lost(const kv_cache *cache, uint32_t layer)
{
    const kv_part own = kv_ranks_part(cache, layer);
    for (uint32_t i = 0; i < flag_floats(cache, cache->step.n_rows); i++)
        own.lost[i] = kv_seq_is_lost(cache->step.rows[i].seq) ? 1 : 0;
}

static void hear_lost(const kv_cache *cache, uint32_t layer)
{
    for (uint32_t r = 0; r < cache->ranks.n; r++) {
        const kv_part part = part_of(cache, layer, r);
        for (uint32_t i = 0; i < flag_floats(cache, cache->step.n_rows); i++) {
            if (part.lost[i] != 0) kv_seq_lose(cache->step.rows[i].seq);
        }
    }
}

bool kv_ranks_merge(const kv_cache *cache, uint32_t layer, float *out)
{
    const kv_layer_shape *shape = &cache->layer[layer];
    const size_t n_rows = (size_t)cache->step.n_tokens * shape->n_heads;
    tell_lost(cache, layer);
    const err_t err =
        comm_all_gather(cache->ranks.comm, kv_ranks_part(cache, layer).o, cache->ranks.parts,
                        step_floats(cache, layer) * sizeof(float), NULL);
    if (err != ERR_OK) { /* which the comm keeps; nothing may be left that is no number */
        memset(out, 0, n_rows * shape->v_dim * sizeof *out);
        return false;
    }
    hear_lost(cache, layer);
    merge_loop loop = {.cache = cache, .layer = layer, .out = out};
    parallel_for(cache->d->pool, n_rows, MERGE_FLOATS / part_floats(cache, layer) + 1, merge_rows,
                 &loop);
    return true;
}

/* Of one query head. */
static double certificate_of(const kv_cache *cache, uint32_t layer, size_t row)
{
    const size_t stride = step_floats(cache, layer);
    const kv_part first = part_of(cache, layer, 0);
    double top = -INFINITY, read = 0, unread = 0;
    for (uint32_t r = 0; r < cache->ranks.n; r++) {
        const float *lse = first.lse + r * stride, *left = first.unread + r * stride;
        top = fmax(top, (double)fmaxf(lse[row], left[row]));
    }
    for (uint32_t r = 0; r < cache->ranks.n; r++) {
        read += exp((double)first.lse[r * stride + row] - top);
        unread += exp((double)first.unread[r * stride + row] - top);
    }
    return kv_route_certificate(read, unread);
}

kv_misses kv_ranks_misses(const kv_cache *cache, uint32_t layer, const kv_row *row, uint32_t head)
{
    const kv_layer_shape *shape = &cache->layer[layer];
    const uint32_t group = shape->n_heads / shape->n_kv_heads;
    const size_t first = ((size_t)head * cache->step.n_tokens + row->first_token) * group;
    kv_misses misses = {0};
    for (uint32_t g = 0; g < group; g++) {
        const bool is_exact = row->seq->methods.reads_all;
        const double one = is_exact ? 0 : certificate_of(cache, layer, first + g);
        kv_misses_add(&misses, &(kv_misses){.n = 1, .sum = one, .max = one});
    }
    return misses;
}
