/* kvcache/rewrite.c - see rewrite.h. */
#include "kvcache/rewrite.h"

#include "kvcache/compact.h"
#include "kvcache/encode.h"
#include "kvcache/ranks.h"
#include "kvcache/score_view.h"

#include <string.h>

/* ---- at open ------------------------------------------------------------------------------------- */

/* May the cache be asked for it? */
static bool may_be_asked(const kv_cache *cache, const kv_rewriting *rewriting)
{
    const kv_rewriting *const *asked = cache->methods.rewritings.list;
    while (*asked != NULL && *asked != rewriting)
        asked++;
    return cache->request_methods || *asked != NULL;
}

static err_t check_layer(const kv_rewriting *rewriting, const kv_cache *cache, uint32_t l,
                         err_info *info)
{
    const kv_layer_shape *layer = &cache->layer[l];
    if (layer->v_in_k)
        return err_set(info, ERR_UNSUPPORTED,
                       "kv-rewrite: %s writes keys or values, and in layer %u values are part of "
                       "keys",
                       rewriting->name, l);
    if (rewriting->turns_keys && layer->rope == NULL)
        return err_set(info, ERR_UNSUPPORTED,
                       "kv-rewrite: %s turns keys by position, and those of layer %u have none",
                       rewriting->name, l);
    return ERR_OK;
}

err_t kv_rewrite_check(const kv_cache *cache, const kv_methods *methods, err_info *info)
{
    for (const kv_rewriting *const *at = methods->rewritings.list; *at != NULL; at++) {
        if (!cache->evict.is_open || !may_be_asked(cache, *at))
            return err_set(info, ERR_UNSUPPORTED, "kv-rewrite: the cache keeps nothing for %s",
                           (*at)->name);
        for (uint32_t l = 0; l < cache->n_layers; l++)
            TRY(check_layer(*at, cache, l, info));
    }
    return ERR_OK;
}

void kv_rewrite_place(arena *a, const kv_cache *cache, kv_rewrite_worker *out)
{
    size_t n_indices = 0, n_floats = 0;
    bool is_asked = false;
    for (uint32_t i = 0; kv_rewritings[i] != NULL; i++) {
        const kv_rewriting *rewriting = kv_rewritings[i];
        if (!may_be_asked(cache, rewriting)) continue;
        is_asked = true;
        for (uint32_t l = 0; l < cache->n_layers; l++) {
            const kv_rewrite_shape shape = {.n_max = cache->limits.n_seq_tokens_max,
                                            .k_dim = cache->layer[l].k_dim,
                                            .v_dim = cache->layer[l].v_dim};
            n_floats = max_size(n_floats, rewriting->n_floats(&shape));
            if (rewriting->n_indices != NULL)
                n_indices = max_size(n_indices, rewriting->n_indices(&shape));
        }
    }
    if (!is_asked) return;
    out->fate = arena_take(a, cache->limits.n_seq_tokens_max, sizeof *out->fate);
    out->work = (kv_rewrite_work){.index = arena_take(a, n_indices, sizeof *out->work.index),
                                  .rows = arena_take(a, n_floats, sizeof *out->work.rows)};
}

void kv_rewrite_place_joint(arena *a, const kv_cache *cache, kv_evict *out)
{
    const size_t n_heads = cache->n_kv_heads_max, n_max = cache->limits.n_seq_tokens_max;
    bool is_asked = false;
    for (uint32_t i = 0; kv_rewritings[i] != NULL; i++)
        is_asked |= kv_rewritings[i]->turns_keys && may_be_asked(cache, kv_rewritings[i]);
    if (!is_asked) return;
    out->gone = arena_take(a, n_heads, n_max * sizeof *out->gone);
    out->fixed_end = arena_take(a, n_heads, sizeof *out->fixed_end);
    out->gone_here = arena_take(a, n_max, sizeof *out->gone_here);
}

/* ---- a head -------------------------------------------------------------------------------------- */

typedef struct head_rewrite {
    const kv_rewrite_head_args *args;
    bool has_new_keys; /* in pages */
    uint32_t n_written;
} head_rewrite;

static uint32_t page_of(const kv_rewrite_head_args *args, uint32_t i)
{
    const kv_seq *seq = args->seq;
    const uint32_t list = kv_list(seq->cache, args->layer, args->head, args->view->shard[i]);
    return kv_table_page(&seq->table, list, args->view->entry[i]);
}

/* Where entry i lies. */
typedef struct row_place {
    const kv_strip *strip;
    uint8_t *base;
    uint32_t slot;
} row_place;

static row_place find_row(const kv_rewrite_head_args *args, uint32_t i)
{
    const kv_cache *cache = args->seq->cache;
    const uint32_t layer = args->layer, position = args->view->positions[i];
    if (args->view->entry[i] != KV_ENTRY_NONE) {
        assert(kv_page_is_own(cache, page_of(args, i)));
        return (row_place){.strip = &cache->layout[cache->layer_class[layer]].strip,
                           .base = kv_pool_data(cache->pool, page_of(args, i)),
                           .slot = args->view->slot[i]};
    }
    assert(position < cache->sink_tokens); /* recent entries stay as they are */
    return (row_place){
        .strip = &cache->rings.strips.strip[layer],
        .base = kv_strips_at(&cache->rings.strips, args->seq->ring->bytes, layer, args->head),
        .slot = cache->rings.n_recent + position};
}

static void put_key(void *ctx, uint32_t i, const float *key)
{
    head_rewrite *rewrite = ctx;
    const kv_rewrite_head_args *args = rewrite->args;
    const row_place row = find_row(args, i);
    kv_strip_put_k(row.strip, row.base, row.slot, &args->seq->cache->heads[args->layer], key);
    rewrite->has_new_keys = rewrite->has_new_keys || args->view->entry[i] != KV_ENTRY_NONE;
    rewrite->n_written++;
}

static void put_value(void *ctx, uint32_t i, const float *value)
{
    head_rewrite *rewrite = ctx;
    const kv_rewrite_head_args *args = rewrite->args;
    const row_place row = find_row(args, i);
    kv_strip_put_v(row.strip, row.base, row.slot, &args->seq->cache->heads[args->layer], value);
    rewrite->n_written++;
}

static void find_fates(const kv_rewrite_head_args *args, uint8_t *fate)
{
    const kv_cache *cache = args->seq->cache;
    const kv_head_view *view = args->view;
    for (uint32_t i = 0, next = 0; i < view->n; i++) {
        const uint32_t c = i - view->first; /* wraps for sinks */
        const bool is_kept = next < args->n_kept && view->kept[next] == c;
        next += is_kept;
        fate[i] = c >= view->n_open ? KV_FATE_GUARDED : is_kept ? KV_FATE_STAYS : KV_FATE_GOES;
        if (fate[i] != KV_FATE_GOES && view->entry[i] != KV_ENTRY_NONE &&
            kv_is_coded_page(cache, page_of(args, i)))
            fate[i] = KV_FATE_FIXED;
    }
}

/* ---- over ranks ---------------------------------------------------------------------------------- */

bool kv_rewrite_is_joint(const kv_seq *seq)
{
    const kv_rewriting *const *at = seq->methods.rewritings.list;
    while (*at != NULL && !(*at)->turns_keys)
        at++;
    return seq->cache->ranks.n > 1 && *at != NULL;
}

static uint8_t *gone_of(const kv_cache *cache, uint32_t head)
{
    return cache->evict.gone + (size_t)head * cache->limits.n_seq_tokens_max;
}

/* What a rank says of one head before it names what goes. */
typedef struct head_news {
    uint32_t n_gone, fixed_end;
} head_news;

/* Writes the positions of what goes to `out`, unless it is NULL. */
static head_news list_gone(const kv_rewrite_head_args *args, uint32_t *out)
{
    const kv_cache *cache = args->seq->cache;
    const kv_head_view *view = args->view;
    head_news news = {0};
    for (uint32_t c = 0, next = 0; c < view->n_open; c++) {
        const uint32_t i = view->first + c;
        const bool is_kept = next < args->n_kept && view->kept[next] == c;
        next += is_kept;
        if (!is_kept && out != NULL) out[news.n_gone] = view->positions[i];
        news.n_gone += !is_kept;
        if (is_kept && kv_is_coded_page(cache, page_of(args, i)))
            news.fixed_end = view->positions[i] + 1;
    }
    return news;
}

static kv_rewrite_head_args head_args(const kv_seq *seq, uint32_t layer, uint32_t head)
{
    const kv_head_view *view = &seq->cache->evict.heads[head];
    return (kv_rewrite_head_args){.seq = (kv_seq *)(uintptr_t)seq,
                                  .layer = layer,
                                  .head = head,
                                  .view = view,
                                  .n_kept = view->n_kept};
}

/* Of all heads and ranks: what is fixed. Returns how many go of one head on one rank, at most. */
static uint32_t share_news(const kv_seq *seq, uint32_t layer)
{
    const kv_cache *cache = seq->cache;
    const uint32_t n_heads = cache->n_kv_heads[layer];
    head_news *all = (head_news *)(void *)cache->ranks.parts;
    head_news *own = all + (size_t)cache->ranks.rank * n_heads;
    uint32_t most = 0;
    for (uint32_t h = 0; h < n_heads; h++) {
        const kv_rewrite_head_args args = head_args(seq, layer, h);
        own[h] = list_gone(&args, NULL);
        cache->evict.fixed_end[h] = 0;
    }
    if (!kv_ranks_gather(cache, own, all, n_heads * sizeof *own)) return 0;
    for (uint32_t i = 0; i < n_heads * cache->ranks.n; i++) {
        uint32_t *end = &cache->evict.fixed_end[i % n_heads];
        *end = (uint32_t)max_size(*end, all[i].fixed_end);
        most = (uint32_t)max_size(most, all[i].n_gone);
    }
    return most;
}

/* Of one head, as many at a time as a part holds. */
static void share_gone(const kv_rewrite_head_args *args, uint32_t n_most)
{
    const kv_cache *cache = args->seq->cache;
    const kv_ranks *ranks = &cache->ranks;
    uint8_t *gone = gone_of(cache, args->head);
    uint32_t *own = cache->evict.gone_here, *all = (uint32_t *)(void *)ranks->parts;
    const size_t n_max = ranks->part_bytes / sizeof *own;
    const uint32_t n_own = list_gone(args, own).n_gone;
    for (uint32_t i = n_own; i < n_most; i++)
        own[i] = UINT32_MAX; /* nothing: others have more */
    for (size_t at = 0; at < n_most; at += n_max) {
        const size_t n = min_size(n_max, n_most - at);
        if (!kv_ranks_gather(cache, own + at, all, n * sizeof *own)) return;
        for (size_t i = 0; i < n * ranks->n; i++) {
            if (all[i] < args->seq->length) gone[all[i]] = 1;
        }
    }
}

void kv_rewrite_meet(const kv_seq *seq, uint32_t layer)
{
    const kv_cache *cache = seq->cache;
    const uint32_t n_most = share_news(seq, layer);
    for (uint32_t h = 0; h < cache->n_kv_heads[layer]; h++) {
        const kv_rewrite_head_args args = head_args(seq, layer, h);
        memset(gone_of(cache, h), 0, seq->length);
        if (n_most > 0) share_gone(&args, n_most);
    }
}

/* ---- a head, continued --------------------------------------------------------------------------- */

/* Of the raw pages of a head, whose keys are others now. */
static void write_boxes(const kv_rewrite_head_args *args)
{
    const kv_cache *cache = args->seq->cache;
    for (uint32_t s = 0; s < cache->n_shards; s++) {
        const uint32_t list = kv_list(cache, args->layer, args->head, s);
        for (uint32_t b = 0; b < args->seq->n_blocks; b++) {
            const uint32_t page = kv_table_page(&args->seq->table, list, b);
            if (page == KV_PAGE_NONE || kv_is_coded_page(cache, page)) continue;
            const kv_page_place place = {args->layer, args->head, page};
            kv_page_box_write(cache, &place, args->worker);
        }
    }
}

uint32_t kv_rewrite_head(const kv_rewrite_head_args *args)
{
    const kv_cache *cache = args->seq->cache;
    const kv_layer_shape *shape = &cache->layer[args->layer];
    const kv_rewrite_worker *worker = &cache->evict.workers[args->worker].rewrite;
    const bool is_joint = kv_rewrite_is_joint(args->seq);
    uint32_t page = KV_PAGE_NONE;
    attn_span span;
    const kv_view_source source = {.seq = args->seq,
                                   .layer = args->layer,
                                   .head = args->head,
                                   .view = args->view,
                                   .worker = args->worker,
                                   .page = &page,
                                   .span = &span};
    const kv_score_view view = {.n = args->view->n,
                                .positions = args->view->positions,
                                .bias = args->view->bias,
                                .load = kv_view_load,
                                .ctx = &source};
    head_rewrite rewrite = {.args = args};
    find_fates(args, worker->fate);
    const kv_rewrite_args each = {.view = &view,
                                  .fate = worker->fate,
                                  .k_dim = shape->k_dim,
                                  .v_dim = shape->v_dim,
                                  .rope = shape->rope,
                                  .gone = is_joint ? gone_of(cache, args->head) : NULL,
                                  .gone_end = is_joint ? args->seq->length : 0,
                                  .fixed_end = is_joint ? cache->evict.fixed_end[args->head] : 0,
                                  .work = worker->work,
                                  .put_key = put_key,
                                  .put_value = put_value,
                                  .ctx = &rewrite};
    for (const kv_rewriting *const *at = args->seq->methods.rewritings.list; *at != NULL; at++)
        (*at)->rewrite(&each);
    if (rewrite.has_new_keys && cache->has_boxes) write_boxes(args);
    return rewrite.n_written;
}
