/* kvcache/distill.c - see distill.h. */
#include "kvcache/distill.h"

#include "kvcache/encode.h"
#include "kvcache/page_bias.h"
#include "kvcache/score_view.h"

uint32_t kv_distill_stops_at(const kv_cache *cache)
{
    uint32_t l = 0;
    while (l < cache->n_layers && !cache->layer[l].v_in_k)
        l++;
    return l;
}

void kv_distill_place(arena *a, const kv_cache *cache, kv_distill_worker *out)
{
    kv_match_shape shape = {.n_max = cache->limits.n_seq_tokens_max,
                            .t_max = cache->limits.n_seq_tokens_max};
    for (uint32_t l = 0; l < cache->n_layers; l++) {
        const kv_layer_shape *layer = &cache->layer[l];
        const uint32_t n_rows = cache->evict.n_queries * (layer->n_heads / layer->n_kv_heads);
        if (n_rows > shape.n_queries_max) shape.n_queries_max = n_rows;
        if (layer->k_dim > shape.k_dim) shape.k_dim = layer->k_dim;
        if (layer->v_dim > shape.v_dim) shape.v_dim = layer->v_dim;
    }
    kv_match_place(a, &shape, &out->match);
    out->beta = arena_take(a, shape.t_max, sizeof *out->beta);
    out->is_fixed = arena_take(a, shape.n_max, sizeof *out->is_fixed);
}

/* ---- a head -------------------------------------------------------------------------------------- */

typedef struct head_fit {
    const kv_distill_args *args;
    kv_head_view block;
} head_fit;

/* Of entry i of the block. */
static uint32_t page_of(const head_fit *fit, uint32_t i)
{
    const kv_seq *seq = fit->args->seq;
    const uint32_t list =
        kv_list(seq->cache, fit->args->layer, fit->args->head, fit->block.shard[i]);
    return kv_table_page(&seq->table, list, fit->block.entry[i]);
}

/* Of the candidates those that every query sees; they lie in pages. */
static kv_head_view cut_block(const kv_distill_args *args)
{
    const kv_head_view *view = args->view;
    const uint32_t end = args->queries.positions[0];
    kv_head_view block = {.positions = view->positions + view->first,
                          .entry = view->entry + view->first,
                          .shard = view->shard + view->first,
                          .slot = view->slot + view->first,
                          .bias = view->bias + view->first};
    while (block.n < view->n_open && block.positions[block.n] < end)
        block.n++;
    return block;
}

/* Returns whether there is anything to write. */
static bool find_fixed(const head_fit *fit, uint32_t n_kept, uint8_t *is_fixed)
{
    const kv_cache *cache = fit->args->seq->cache;
    bool any_open = false;
    for (uint32_t i = 0; i < fit->block.n; i++)
        is_fixed[i] = kv_is_coded_page(cache, page_of(fit, i));
    for (uint32_t i = 0; i < n_kept; i++)
        any_open = any_open || !is_fixed[fit->args->view->kept[i]];
    return any_open;
}

static void put_value(void *ctx, uint32_t i, const float *value)
{
    const head_fit *fit = ctx;
    const kv_cache *cache = fit->args->seq->cache;
    const uint32_t layer = fit->args->layer, c = fit->args->view->kept[i];
    const kv_strip *strip = &cache->layout[cache->layer_class[layer]].strip;
    kv_strip_put_v(strip, kv_pool_data(cache->pool, page_of(fit, c)), fit->block.slot[c],
                   &cache->heads[layer], value);
}

static void write_biases(const head_fit *fit, uint32_t n_kept, const kv_distill_worker *worker)
{
    kv_pool *pool = fit->args->seq->cache->pool;
    for (uint32_t i = 0; i < n_kept; i++) {
        const uint32_t c = fit->args->view->kept[i];
        if (worker->is_fixed[c]) continue;
        kv_pool_set_bias(pool, page_of(fit, c), fit->block.slot[c], worker->beta[i]);
    }
}

void kv_distill_head(const kv_distill_args *args)
{
    const kv_cache *cache = args->seq->cache;
    const kv_layer_shape *shape = &cache->layer[args->layer];
    kv_distill_worker *worker = &cache->evict.workers[args->worker].distill;
    if (args->queries.n == 0) return;
    head_fit fit = {.args = args, .block = cut_block(args)};
    uint32_t n_kept = 0, page = KV_PAGE_NONE;
    while (n_kept < args->n_kept && args->view->kept[n_kept] < fit.block.n)
        n_kept++;
    if (n_kept == 0 || n_kept == fit.block.n || !find_fixed(&fit, n_kept, worker->is_fixed)) return;
    attn_span span;
    const kv_view_source source = {.seq = args->seq,
                                   .layer = args->layer,
                                   .head = args->head,
                                   .view = &fit.block,
                                   .worker = args->worker,
                                   .page = &page,
                                   .span = &span};
    const kv_score_view view = {.n = fit.block.n,
                                .positions = fit.block.positions,
                                .bias = fit.block.bias,
                                .load = kv_view_load,
                                .ctx = &source};
    const kv_match_args match = {.view = &view,
                                 .is_fixed = worker->is_fixed,
                                 .q = args->queries.q,
                                 .n_queries =
                                     args->queries.n * (shape->n_heads / shape->n_kv_heads),
                                 .scale = shape->scale};
    const kv_match_out out = {.beta = worker->beta, .put = put_value, .ctx = &fit};
    worker->match.shape.k_dim = shape->k_dim;
    worker->match.shape.v_dim = shape->v_dim;
    kv_match_begin(&worker->match, &match);
    kv_match_fit(&worker->match, (kv_match_set){args->view->kept, n_kept}, &kv_match_defaults,
                 &out);
    write_biases(&fit, n_kept, worker);
}
