/* kvcache/device_ranks.c - see device_ranks.h. */
#include "kvcache/device_ranks.h"

#include "kvcache/ranks.h"

#include <math.h>

/* Of one rank's part: outputs, then their lse. */
static size_t token_floats(const kv_cache *cache, uint32_t layer)
{
    const kv_layer_shape *shape = &cache->layer[layer];
    return (size_t)shape->n_heads * ((size_t)shape->v_dim + 1);
}

static size_t part_floats(const kv_cache *cache, uint32_t layer)
{
    return cache->step.n_tokens * token_floats(cache, layer);
}

void kv_view_place_ranks(const kv_cache *cache, arena *a, kv_view *view)
{
    if (cache->ranks.n == 1 || !cache->has_boxes) return;
    view->ranks.masses =
        arena_take(a, cache->limits.n_seqs_max, 2 * view->n_heads_max * sizeof(float));
}

void kv_view_place_ranks_there(const kv_cache *cache, arena *a, kv_view *view)
{
    size_t most = 0;
    if (cache->ranks.n == 1) return;
    for (uint32_t l = 0; l < cache->n_layers; l++)
        most = max_size(most, token_floats(cache, l) * sizeof(float));
    view->ranks.parts =
        arena_take(a, (size_t)cache->ranks.n * cache->limits.n_step_tokens_max, most);
}

void kv_view_open_ranks(kv_cache *cache)
{
    if (cache->ranks.n > 1)
        cache->view->ranks.comm = dev_comm_make(cache->d, cache->ranks.comm, cache->ranks.parts);
}

void kv_view_aim_part(const kv_cache *cache, uint32_t layer, attend_pages_args *args)
{
    const kv_layer_shape *shape = &cache->layer[layer];
    if (cache->ranks.n == 1) return;
    const size_t n = part_floats(cache, layer);
    assert(n * sizeof(float) <= cache->ranks.part_bytes);
    args->out = cache->view->ranks.parts + cache->ranks.rank * n;
    args->lse = args->out + (size_t)cache->step.n_tokens * shape->n_heads * shape->v_dim;
}

void kv_view_merge_parts(const kv_cache *cache, const kv_attend_args *args)
{
    const kv_layer_shape *shape = &cache->layer[args->layer];
    const size_t n = part_floats(cache, args->layer);
    const kv_view *view = cache->view;
    if (cache->ranks.n == 1) return;
    if (dev_comm_gather(&view->ranks.comm, view->ranks.parts, n) != ERR_OK) {
        dev_zero(cache->d, args->out,
                 (size_t)cache->step.n_tokens * shape->n_heads * shape->v_dim * sizeof *args->out);
        return; /* the comm keeps why */
    }
    cache->d->ops->merge_parts(cache->d, &(merge_parts_args){.parts = view->ranks.parts,
                                                             .part_stride = n,
                                                             .n_parts = cache->ranks.n,
                                                             .n_tokens = cache->step.n_tokens,
                                                             .n_heads = shape->n_heads,
                                                             .v_dim = shape->v_dim,
                                                             .out = args->out});
}

/* The sum of a mass becomes 1, and its maximum the log of what all ranks have. */
bool kv_view_merge_masses(const kv_cache *cache, attn_mass *masses, double *unread, size_t n)
{
    float *logs = cache->view->ranks.masses;
    if (cache->ranks.n == 1) return true;
    assert(n <= (size_t)cache->limits.n_seqs_max * cache->view->n_heads_max);
    for (size_t i = 0; i < n; i++) {
        logs[i] = masses[i].sum > 0 ? (float)((double)masses[i].max + log((double)masses[i].sum))
                                    : -INFINITY;
        logs[n + i] = (float)unread[i];
    }
    kv_ranks_merge_lse(cache,
                       &(kv_lse_rows){.lse = logs, .stride = 2 * n, .n_rows = 1, .n = 2 * n});
    for (size_t i = 0; i < n; i++) {
        masses[i] = (attn_mass){.max = logs[i], .sum = logs[i] > -INFINITY ? 1 : 0};
        unread[i] = logs[n + i];
    }
    return comm_status(cache->ranks.comm, NULL) == ERR_OK;
}

/* As routing deals it (kv_rank_budget); a half, since 1 itself would be a share. */
double kv_view_own_k(const kv_cache *cache, double k)
{
    return cache->ranks.n == 1 || k <= 1 ? k : ceil(floor(k) / cache->ranks.n) + 0.5;
}
