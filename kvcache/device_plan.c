/* kvcache/device_plan.c - see device_plan.h: a cache of which only that is there which its view is measured by. */
#include "kvcache/device_plan.h"

#include "kvcache/device_view.h"

#include <stdlib.h>

/* No op is called: who attends by itself has these. */
static void attend_nowhere(dev *d, const attend_pages_args *args)
{
    (void)d;
    (void)args;
    assert(false);
}

/* How slots are laid out, of ring and staging; not the slots. */
static err_t place_strips(arena *a, const kv_device_plan_input *in, kv_cache *cache)
{
    const kv_rings_config rings = {.heads = cache->heads,
                                   .n_kv_heads = cache->n_kv_heads,
                                   .n_layers = cache->n_layers,
                                   .page_tokens = in->config->page_tokens,
                                   .window_tokens = in->config->window_tokens,
                                   .sink_tokens = in->config->sink_tokens,
                                   .notes_changes = true};
    TRY(kv_strips_init(a, cache->heads, cache->n_kv_heads, cache->n_layers,
                       cache->limits.n_step_tokens_max, &cache->staging.strips));
    return kv_rings_init(a, &rings, &cache->rings);
}

static err_t open_strips(const kv_device_plan_input *in, kv_cache *cache, arena *memory)
{
    arena measure;
    arena_init_measure(&measure);
    TRY(place_strips(&measure, in, cache));
    TRY(measure.err);
    TRY(arena_init(memory, measure.used_bytes));
    return place_strips(memory, in, cache);
}

static void fill_layers(const kv_device_plan_input *in, kv_cache *cache)
{
    for (uint32_t l = 0; l < cache->n_layers; l++) {
        const kv_layer_shape *layer = &in->shape->layer[l];
        cache->heads[l] = (kv_head_shape){.k_dim = layer->k_dim,
                                          .v_dim = layer->v_dim,
                                          .v_in_k = layer->v_in_k,
                                          .type = in->type};
        cache->n_kv_heads[l] = layer->n_kv_heads;
        cache->n_kv_heads_max = (uint32_t)max_size(cache->n_kv_heads_max, layer->n_kv_heads);
        cache->v_dim_max = (uint32_t)max_size(cache->v_dim_max, layer->v_dim);
    }
}

static err_t count(const kv_device_plan_input *in, const kv_cache *cache, kv_device_plan *out)
{
    kv_view view = {.pool = {.bytes = in->pool_bytes,
                             .box_bytes = in->box_bytes,
                             .n_pages = in->n_pages,
                             .has_biases = in->has_biases,
                             .copy_bytes = in->copy_bytes}};
    const uint64_t n_seqs = in->limits.n_seqs_max;
    const uint32_t n_blocks = in->limits.n_seq_tokens_max / in->config->page_tokens + 1;
    size_t bytes, list_bytes;
    TRY(kv_view_measure(cache, &view, &bytes));
    out->attends = view.attends;
    out->hosts_attend = kv_view_needs_host(cache, in->methods);
    if (!view.attends) return ERR_OK;
    TRY(size_mul(kv_view_capacity(0, n_blocks), view.n_lists * sizeof(attn_page), &list_bytes));
    TRY(size_mul(list_bytes, n_seqs, &list_bytes));
    const uint64_t n_slots = (uint64_t)cache->rings.n_recent + cache->rings.n_sinks;
    out->pool_bytes = in->pool_bytes;
    out->ring_bytes = n_seqs * n_slots * view.slot_bytes;
    out->staging_bytes = (uint64_t)in->limits.n_step_tokens_max * view.slot_bytes;
    out->list_bytes = list_bytes;
    out->box_bytes = (uint64_t)in->n_pages * in->box_bytes;
    out->work_bytes =
        bytes - out->pool_bytes - out->ring_bytes - out->staging_bytes - out->box_bytes;
    TRY(size_add(bytes, list_bytes, &bytes));
    out->total_bytes = bytes;
    return ERR_OK;
}

err_t kv_device_plan_of(const kv_device_plan_input *in, kv_device_plan *out)
{
    const dev_ops ops = {.attend_pages = attend_nowhere};
    dev d = {.ops = &ops};
    arena memory = {0};
    kv_cache *cache = calloc(1, sizeof *cache);
    *out = (kv_device_plan){0};
    if (cache == NULL) return ERR_NO_MEMORY;
    cache->d = &d;
    cache->n_layers = in->shape->n_layers;
    cache->layer = (kv_layer_shape *)(uintptr_t)in->shape->layer; /* read */
    cache->heads = calloc(cache->n_layers, sizeof *cache->heads);
    cache->n_kv_heads = calloc(cache->n_layers, sizeof *cache->n_kv_heads);
    cache->limits = in->limits;
    cache->methods = *in->methods;
    cache->request_methods = in->config->request_methods;
    cache->has_boxes = in->box_bytes > 0;
    cache->has_tiers = in->config->host_bytes > 0 || in->config->disk_bytes > 0;
    cache->has_scattered = in->has_scattered;
    cache->n_shards = in->n_shards;
    cache->ranks.n = in->n_ranks;
    cache->page_tokens = in->config->page_tokens;
    cache->n_classes = in->n_classes;
    for (uint32_t c = 0; kv_codecs[c] != NULL; c++)
        cache->first_class[c] = c == in->methods->codec_index ? 0 : KV_CLASS_NONE;
    err_t err = cache->heads != NULL && cache->n_kv_heads != NULL ? ERR_OK : ERR_NO_MEMORY;
    if (err == ERR_OK) fill_layers(in, cache);
    if (err == ERR_OK) err = open_strips(in, cache, &memory);
    if (err == ERR_OK) err = count(in, cache, out);
    arena_deinit(&memory);
    free(cache->heads);
    free(cache->n_kv_heads);
    free(cache);
    return err;
}
