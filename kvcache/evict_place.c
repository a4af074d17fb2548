/* kvcache/evict_place.c - what scheduling works in, and what scorers may ask of a cache; see evict.h. */
#include "kvcache/distill.h"
#include "kvcache/evict.h"
#include "kvcache/rewrite.h"
#include "kvcache/scatter.h"

static uint32_t group_of(const kv_layer_shape *shape)
{
    return shape->n_heads / shape->n_kv_heads;
}

static bool asks(const kv_policy *policy, const kv_scorer *scorer)
{
    return policy->evicts && policy->scorer == scorer;
}

static bool may_be_asked(const kv_cache *cache, const kv_scorer *scorer)
{
    return cache->request_methods || asks(&cache->methods.policy, scorer) ||
           asks(&cache->methods.selection, scorer);
}

/* The same of allocators that ask how lazy layers are. */
static bool may_be_lazy(const kv_cache *cache)
{
    return cache->request_methods ||
           (cache->methods.policy.evicts && kv_policy_by_laziness(&cache->methods.policy)) ||
           (cache->methods.selection.evicts && kv_policy_by_laziness(&cache->methods.selection));
}

/* Floats that any scorer or allocator works in over the entries of a head, over the shapes of all layers. */
static size_t work_floats(const kv_cache *cache, uint32_t n_queries)
{
    size_t most = 0;
    for (uint32_t l = 0; l < cache->n_layers; l++) {
        const kv_layer_shape *layer = &cache->layer[l];
        const kv_score_shape shape = {.n_max = cache->limits.n_seq_tokens_max,
                                      .group = group_of(layer),
                                      .k_dim = layer->k_dim,
                                      .v_dim = layer->v_dim,
                                      .n_queries = n_queries};
        for (uint32_t s = 0; kv_scorers[s] != NULL; s++) {
            if (!may_be_asked(cache, kv_scorers[s]) || kv_scorers[s]->work_floats == NULL) continue;
            most = max_size(most, kv_scorers[s]->work_floats(&shape));
        }
        for (uint32_t i = 0; kv_allocators[i] != NULL && may_be_lazy(cache); i++) {
            if (kv_allocators[i]->laziness == NULL) continue;
            most = max_size(most, kv_allocators[i]->laziness_floats(&shape));
        }
    }
    return most;
}

static size_t split_floats(const kv_cache *cache)
{
    size_t most = 0;
    for (uint32_t i = 0; kv_allocators[i] != NULL; i++) {
        if (kv_allocators[i]->work_floats == NULL) continue;
        most = max_size(most, kv_allocators[i]->work_floats(cache->n_kv_heads_max,
                                                            cache->limits.n_seq_tokens_max));
    }
    return most;
}

static size_t widest_group(const kv_cache *cache)
{
    size_t most = 0;
    for (uint32_t l = 0; l < cache->n_layers; l++)
        most = max_size(most, group_of(&cache->layer[l]));
    return most;
}

static void place_heads(arena *a, const kv_cache *cache, kv_evict *evict)
{
    const size_t n_max = cache->limits.n_seq_tokens_max, n_heads = cache->n_kv_heads_max;
    const size_t n_pages = kv_head_pages_max(cache);
    const size_t n_shares = (evict->needs & KV_SCORE_INPUT_NORM) != 0 ? widest_group(cache) : 1;
    evict->heads = arena_take(a, n_heads, sizeof *evict->heads);
    evict->plans = arena_take(a, n_heads, sizeof *evict->plans);
    for (size_t h = 0; h < n_heads; h++) {
        kv_head_view view = {0};
        view.positions = arena_take(a, n_max, sizeof *view.positions);
        view.entry = arena_take(a, n_max, sizeof *view.entry);
        view.shard = arena_take(a, n_max, sizeof *view.shard);
        view.slot = arena_take(a, n_max, sizeof *view.slot);
        view.score = arena_take(a, n_max, sizeof *view.score);
        view.kept = arena_take(a, n_max, sizeof *view.kept);
        if (evict->has_fits) view.bias = arena_take(a, n_max, sizeof *view.bias);
        if ((evict->needs & KV_SCORE_MASS) != 0)
            view.mass = arena_take(a, n_max, sizeof *view.mass);
        if ((evict->needs & KV_SCORE_LOCAL) != 0)
            view.local = arena_take(a, n_max, sizeof *view.local);
        if ((evict->needs & KV_SCORE_REPLAY) != 0)
            view.replay = arena_take(a, n_max, n_shares * sizeof *view.replay);
        if ((evict->needs & KV_SCORE_USES) != 0) {
            view.last_use = arena_take(a, n_max, sizeof *view.last_use);
            view.n_uses = arena_take(a, n_max, sizeof *view.n_uses);
        }
        if (evict->by_page) {
            view.pages.of_entry = arena_take(a, n_max, sizeof *view.pages.of_entry);
            view.pages.score = arena_take(a, n_max, sizeof *view.pages.score);
            view.pages.n_open = arena_take(a, n_max, sizeof *view.pages.n_open);
            view.pages.n_kept = arena_take(a, n_max, sizeof *view.pages.n_kept);
        }
        const kv_compact_plan plan = {.runs = arena_take(a, n_pages, sizeof *plan.runs),
                                      .targets = arena_take(a, n_pages, sizeof *plan.targets)};
        if (evict->heads != NULL) evict->heads[h] = view;
        if (evict->plans != NULL) evict->plans[h] = plan;
    }
    evict->n_open = arena_take(a, n_heads, sizeof *evict->n_open);
    evict->scores = arena_take(a, n_heads, sizeof *evict->scores);
    evict->n_keep = arena_take(a, n_heads, sizeof *evict->n_keep);
    evict->split_work = arena_take(a, split_floats(cache), sizeof *evict->split_work);
}

static void place_workers(arena *a, const kv_cache *cache, kv_evict *evict)
{
    size_t rows = 0, squares = 0; /* floats of a group's queries, and of its covariances */
    for (uint32_t l = 0; l < cache->n_layers; l++) {
        const kv_layer_shape *shape = &cache->layer[l];
        rows = max_size(rows, (size_t)group_of(shape) * shape->k_dim);
        squares = max_size(squares, (size_t)group_of(shape) * shape->k_dim * shape->k_dim);
    }
    const bool has_stats = (evict->needs & KV_SCORE_STATS) != 0;
    const uint32_t n_workers = thread_pool_n_threads(cache->d->pool);
    const size_t n_work = work_floats(cache, evict->n_queries);
    evict->workers = arena_take(a, n_workers, sizeof *evict->workers);
    for (uint32_t w = 0; w < n_workers; w++) {
        kv_evict_worker worker = {
            .work = arena_take(a, n_work, sizeof *worker.work),
            .queries = arena_take(a, evict->n_queries, rows * sizeof *worker.queries),
            .query_norms = arena_take(a, evict->n_queries, sizeof *worker.query_norms),
            .query_positions = arena_take(a, evict->n_queries, sizeof *worker.query_positions),
            .mean = arena_take(a, has_stats ? rows : 0, sizeof *worker.mean),
            .cov = arena_take(a, has_stats ? squares : 0, sizeof *worker.cov),
            .gathered = arena_take(a, cache->decoded_bytes, 1),
        };
        if (evict->has_fits) kv_distill_place(a, cache, &worker.distill);
        kv_rewrite_place(a, cache, &worker.rewrite);
        if (evict->workers != NULL) evict->workers[w] = worker;
    }
}

void kv_evict_place(arena *a, const kv_cache *cache, kv_evict *evict)
{
    bool has_shared = false;
    *evict = (kv_evict){.is_open = cache->request_methods || kv_methods_evict(&cache->methods)};
    if (!evict->is_open) return;
    for (uint32_t s = 0; kv_scorers[s] != NULL; s++) {
        if (!may_be_asked(cache, kv_scorers[s])) continue;
        evict->needs |= kv_scorers[s]->needs;
        evict->by_page = evict->by_page || kv_scorers[s]->by_page;
        if (kv_scorers[s]->n_queries > evict->n_queries)
            evict->n_queries = kv_scorers[s]->n_queries;
        evict->has_fits |=
            kv_scorers[s]->is_fitted && kv_distill_stops_at(cache) == cache->n_layers;
        has_shared = has_shared || kv_scorers[s]->from != KV_FROM_OWN_LAYER;
    }
    if (may_be_lazy(cache)) {
        evict->needs |= KV_SCORE_QUERIES;
        evict->n_queries = evict->n_queries > 0 ? evict->n_queries : 1;
    }
    evict->lse_stride = max_size(evict->n_queries, 1) * widest_group(cache);
    if (cache->ranks.n > 1) kv_rewrite_place_joint(a, cache, evict);
    if (cache->ranks.n > 1)
        evict->lse = arena_take(a, cache->n_kv_heads_max, evict->lse_stride * sizeof *evict->lse);
    if (has_shared)
        evict->shared = arena_take(a, cache->limits.n_seq_tokens_max, sizeof *evict->shared);
    place_heads(a, cache, evict);
    place_workers(a, cache, evict);
}

static err_t check_policy(const kv_cache *cache, const kv_policy *policy, const char *key,
                          err_info *info)
{
    if (!policy->evicts) return ERR_OK;
    const bool is_lazy = kv_policy_by_laziness(policy);
    if (!cache->evict.is_open || !may_be_asked(cache, policy->scorer) ||
        (is_lazy && !may_be_lazy(cache)))
        return err_set(info, ERR_UNSUPPORTED, "%s: the cache keeps nothing for %s", key,
                       policy->name);
    if (policy->scorer->is_fitted && !cache->evict.has_fits)
        return err_set(info, ERR_UNSUPPORTED,
                       "%s: %s writes values, and those of layer %u are part of its keys", key,
                       policy->name, kv_distill_stops_at(cache));
    for (uint32_t l = 0; l < cache->n_layers; l++) {
        if ((policy->scorer->needs & KV_SCORE_OUT_PROJ) != 0 && cache->layer[l].out_proj == NULL)
            return err_set(info, ERR_UNSUPPORTED,
                           "%s: %s needs an output projection, and layer %u has none", key,
                           policy->name, l);
    }
    return ERR_OK;
}

err_t kv_evict_check(const kv_cache *cache, const kv_methods *methods, err_info *info)
{
    TRY(check_policy(cache, &methods->policy, "kv-scheduling", info));
    TRY(check_policy(cache, &methods->selection, "kv-compression", info));
    return kv_rewrite_check(cache, methods, info);
}
