/* kvcache/distill.c - see distill.h. */
#include "kvcache/distill.h"

#include "kvcache/away.h"
#include "kvcache/compact.h"
#include "kvcache/demote.h"
#include "kvcache/page_bias.h"
#include "kvcache/score_view.h"

#include <string.h>

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

/* ---- pages of the sequence's own ----------------------------------------------------------------- */

static bool must_copy(const kv_seq *seq, uint32_t list, uint32_t entry)
{
    const kv_cache *cache = seq->cache;
    const uint32_t page = kv_table_page(&seq->table, list, entry);
    return page != KV_PAGE_NONE && !kv_is_coded_page(cache, page) && !kv_page_is_own(cache, page);
}

/* Writes to cache->need; returns how many pages must be copied. */
static uint32_t count_copies(const kv_seq *seq, uint32_t layer)
{
    kv_cache *cache = seq->cache;
    uint32_t n = 0;
    memset(cache->need, 0, cache->n_classes * sizeof *cache->need);
    for (uint32_t i = 0; i < cache->n_kv_heads[layer] * cache->n_shards; i++) {
        for (uint32_t b = 0; b < seq->n_blocks; b++)
            n += must_copy(seq, kv_list(cache, layer, 0, 0) + i, b);
    }
    cache->need[cache->layer_class[layer]] = n;
    return n;
}

static void copy_page(kv_seq *seq, uint32_t list, uint32_t entry)
{
    const kv_cache *cache = seq->cache;
    const size_t at = kv_table_entry(&seq->table, list, entry);
    const uint32_t from = seq->table.page[at];
    const uint32_t to = kv_pool_alloc_twin(cache->pool, from, KV_TIER_POOL, KV_HELD_BY_SEQ);
    assert(to != KV_PAGE_NONE);
    memcpy(kv_pool_data(cache->pool, to), kv_seq_read_page(seq, from, kv_landing(cache, 0)),
           kv_pool_page_bytes(cache->pool, to));
    (void)kv_pool_drop(cache->pool, from, KV_HELD_BY_SEQ);
    seq->table.page[at] = to;
}

err_t kv_distill_own(kv_seq *seq, uint32_t layer)
{
    kv_cache *cache = seq->cache;
    /* Every object that is given up may leave pages to this sequence alone: counted again. */
    while (count_copies(seq, layer) > 0 && !kv_demote_until_room(cache)) {
        if (!kv_prefix_give_up_block(cache) && !kv_prefix_give_up_object(cache)) return ERR_KV_FULL;
    }
    for (uint32_t i = 0; i < cache->n_kv_heads[layer] * cache->n_shards; i++) {
        const uint32_t list = kv_list(cache, layer, 0, 0) + i;
        for (uint32_t b = 0; b < seq->n_blocks; b++) {
            if (must_copy(seq, list, b)) copy_page(seq, list, b);
        }
    }
    return ERR_OK;
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

/* The largest finite number of a type. */
static float type_max(dtype type)
{
    return type == DTYPE_F32 ? 0x1.fffffep127f : 0x1.fep127f;
}

static void put_value(void *ctx, uint32_t i, const float *value)
{
    const head_fit *fit = ctx;
    const kv_cache *cache = fit->args->seq->cache;
    const uint32_t layer = fit->args->layer, c = fit->args->view->kept[i];
    const kv_head_shape *shape = &cache->heads[layer];
    const kv_strip *strip = &cache->layout[cache->layer_class[layer]].strip;
    uint8_t *out = kv_pool_data(cache->pool, page_of(fit, c)) + strip->v_offset_bytes +
                   (size_t)fit->block.slot[c] * strip->v_stride_bytes;
    for (uint32_t d = 0; d < shape->v_dim; d++) {
        const float most = type_max(shape->type);
        const float x = value[d] < -most ? -most : value[d] > most ? most : value[d];
        const uint16_t half = bf16_from_f32(x);
        if (shape->type == DTYPE_F32) {
            memcpy(out + 4 * (size_t)d, &x, sizeof x);
        } else {
            memcpy(out + 2 * (size_t)d, &half, sizeof half);
        }
    }
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
