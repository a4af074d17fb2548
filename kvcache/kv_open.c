/* kvcache/kv_open.c - open and close.
 *
 * Everything whose size the settings fix is allocated here: per-layer arrays first, since the sizes
 * of the others follow from them, then staging, scratch and tables of sequences, then the pool. */
#include "kvcache/basis.h"
#include "kvcache/encode.h"

#include "kvcache/compression/value_weight.h"
#include "kvcache/demote.h"
#include "kvcache/device_view.h"
#include "kvcache/evict.h"
#include "kvcache/heat.h"
#include "kvcache/key_box.h"
#include "kvcache/kv_replay.h"
#include "kvcache/local_mass.h"
#include "kvcache/memory_available.h"
#include "kvcache/ranks.h"

#include <stdlib.h>
#include <string.h>

/* The budget chosen without kv-cache-memory-bytes: at most this share of available memory. */
enum { MEMORY_SHARE = 4 };

/* ---- settings ------------------------------------------------------------------------------------ */

static err_t check_numbers(const kv_config *config, err_info *info)
{
    if (config->page_tokens < 4 || config->page_tokens > KV_PAGE_TOKENS_MAX)
        return err_set(info, ERR_BAD_CONFIG, "kv-page-tokens: %u is outside [4, %d]",
                       config->page_tokens, KV_PAGE_TOKENS_MAX);
    if (config->sink_tokens > config->page_tokens)
        return err_set(info, ERR_BAD_CONFIG, "kv-sink: %u is more than kv-page-tokens, %u",
                       config->sink_tokens, config->page_tokens);
    if (config->window_tokens > 65536)
        return err_set(info, ERR_BAD_CONFIG, "kv-window: %u is outside [0, 65536]",
                       config->window_tokens);
    if (config->n_shards < 1 || config->n_shards > KV_SHARDS_MAX)
        return err_set(info, ERR_BAD_CONFIG, "kv-shards: %u is outside [1, %d]", config->n_shards,
                       KV_SHARDS_MAX);
    return ERR_OK;
}

static err_t read_placement(kv_cache *cache, const kv_config *config, err_info *info)
{
    const uint32_t n = cache->n_shards;
    cache->placement = config->placement != NULL ? kv_placement_find(config->placement) : NULL;
    if (cache->placement == NULL)
        return err_set(info, ERR_BAD_CONFIG, "kv-placement: '%s' is unknown; known are:%s",
                       config->placement != NULL ? config->placement : "", kv_placement_names);
    if (cache->placement->needs_power_of_two && (n & (n - 1)) != 0)
        return err_set(info, ERR_BAD_CONFIG,
                       "kv-shards: %u is no power of two, which kv-placement %s needs", n,
                       cache->placement->name);
    cache->experts.is_packed = cache->placement->follows_experts &&
                               (config->eplb || cache->methods.routing->packs_experts);
    return ERR_OK;
}

static err_t check_tiers(const kv_config *config, err_info *info)
{
    const bool has_path = config->disk_path != NULL && config->disk_path[0] != '\0';
    if (config->disk_bytes > 0 && !has_path)
        return err_set(info, ERR_BAD_CONFIG, "kv-disk-bytes: %llu, but kv-disk-path is not set",
                       (unsigned long long)config->disk_bytes);
    if (config->disk_bytes == 0 && has_path)
        return err_set(info, ERR_BAD_CONFIG, "kv-disk-path: '%s', but kv-disk-bytes is 0",
                       config->disk_path);
    return ERR_OK;
}

static dtype resolve_type(uint32_t wanted, dtype model_type)
{
    if (wanted == KV_DTYPE_F32) return DTYPE_F32;
    if (wanted == KV_DTYPE_BF16) return DTYPE_BF16;
    return model_type == DTYPE_F32 ? DTYPE_F32 : DTYPE_BF16; /* f16 as well: bf16 has its range */
}

static err_t read_config(kv_cache *cache, const kv_config *config, err_info *info)
{
    TRY(check_numbers(config, info));
    TRY(check_tiers(config, info));
    TRY(kv_methods_resolve(config, &cache->methods, info));
    TRY(kv_ranks_init(cache, config, info));
    TRY(read_placement(cache, config, info));
    cache->request_methods = config->request_methods;
    cache->has_boxes = cache->request_methods || !cache->methods.reads_all;
    cache->page_tokens = config->page_tokens;
    cache->window_tokens = config->window_tokens;
    cache->sink_tokens = config->sink_tokens;
    cache->section_tokens = KV_SECTION_TOKENS;
    cache->replay_tokens = KV_REPLAY_CHUNK;
    cache->local_tokens = KV_LOCAL_TOKENS;
    cache->prefix_caching = config->prefix_caching;
    cache->has_file = config->disk_bytes > 0;
    cache->has_tiers = cache->has_file || config->host_bytes > 0;
    return ERR_OK;
}

/* ---- arrays -------------------------------------------------------------------------------------- */

/* One function over a measuring and then a real arena. */
typedef err_t place_function(kv_cache *cache, arena *a);

static err_t place(kv_cache *cache, place_function *function, arena *out)
{
    arena measure;
    arena_init_measure(&measure);
    TRY(function(cache, &measure));
    TRY(measure.err);
    TRY(arena_init(out, measure.used_bytes));
    TRY(function(cache, out));
    return out->err;
}

static err_t place_layers(kv_cache *cache, arena *a)
{
    const size_t n = cache->n_layers;
    cache->layer = arena_take(a, n, sizeof *cache->layer);
    cache->heads = arena_take(a, n, sizeof *cache->heads);
    cache->n_kv_heads = arena_take(a, n, sizeof *cache->n_kv_heads);
    cache->first_list = arena_take(a, n, sizeof *cache->first_list);
    cache->scatters = arena_take(a, n, sizeof *cache->scatters);
    cache->layer_class = arena_take(a, n, sizeof *cache->layer_class);
    /* At most a class per layer and codec, bases counting as one. */
    cache->layout = arena_take(a, KV_CODECS_MAX * n, sizeof *cache->layout);
    cache->class_codec = arena_take(a, KV_CODECS_MAX * n, sizeof *cache->class_codec);
    cache->need = arena_take(a, KV_CODECS_MAX * n, sizeof *cache->need);
    return ERR_OK;
}

static void check_layer(const kv_layer_shape *shape)
{
    assert(shape->n_kv_heads >= 1);
    assert(shape->n_heads % shape->n_kv_heads == 0);
    assert(shape->k_dim >= 1);
    assert(shape->v_dim >= 1);
    assert(!shape->v_in_k || shape->v_dim <= shape->k_dim);
}

/* The first layer whose raw pages have this class. */
static uint32_t layer_of_class(const kv_cache *cache, uint32_t page_class)
{
    uint32_t layer = 0;
    while (cache->layer_class[layer] != page_class)
        layer++;
    return layer;
}

/* The ranks that a low-rank codec has in a layer. */
static err_t read_bases(const kv_codec *codec, const kv_layer_shape *shape, uint32_t layer,
                        kv_head_shape *head, err_info *info)
{
    if (codec->bases == NULL) return ERR_OK;
    const kv_bases *bases = codec->bases(shape);
    if (bases->k.rank == 0 || bases->v.rank == 0)
        return err_set(
            info, ERR_BAD_CONFIG,
            "kv-compression: %s needs kv_bases.safetensors beside the model, with bases of "
            "layer %u; tools/calibrate_kv.py makes it",
            codec->name, layer);
    head->k_rank = bases->k.rank;
    head->v_rank = bases->v.rank;
    return ERR_OK;
}

static err_t add_class(kv_cache *cache, const kv_codec *codec, uint32_t raw_class, err_info *info)
{
    const uint32_t layer = layer_of_class(cache, raw_class);
    kv_head_shape head = cache->heads[layer];
    TRY(read_bases(codec, &cache->layer[layer], layer, &head, info));
    const err_t err = codec->layout(&head, cache->page_tokens, &cache->layout[cache->n_classes]);
    if (err != ERR_OK)
        return err_set(info, err,
                       "kv-compression: %s cannot encode, or make smaller, pages of %u keys "
                       "of %u and values of %u channels%s",
                       codec->name, cache->page_tokens, head.k_dim, head.v_dim,
                       head.v_in_k ? " in one" : "");
    cache->class_codec[cache->n_classes++] = codec;
    return ERR_OK;
}

/* The classes of the bases of a codec that has its own: pages without slots. */
static err_t add_basis_classes(kv_cache *cache, const kv_codec *codec)
{
    cache->own_bases.first_class = cache->n_classes;
    for (uint32_t c = 0; c < cache->n_raw_classes; c++) {
        kv_page_layout *layout = &cache->layout[cache->n_classes];
        *layout = (kv_page_layout){.shape = cache->heads[layer_of_class(cache, c)]};
        TRY(kv_svd_basis_bytes(&layout->shape, &layout->page_bytes));
        cache->class_codec[cache->n_classes++] = codec;
    }
    return ERR_OK;
}

/* The classes of one codec, in the order of the raw ones. A codec that cannot encode one of the shapes
 * gets none. */
static err_t add_classes(kv_cache *cache, uint32_t codec, err_info *info)
{
    const uint32_t first = cache->n_classes;
    if (cache->first_class[codec] != KV_CLASS_NONE) return ERR_OK;
    for (uint32_t c = 0; c < cache->n_raw_classes; c++) {
        const err_t err = add_class(cache, kv_codecs[codec], c, info);
        if (err == ERR_OK) continue;
        cache->n_classes = first;
        return err;
    }
    cache->first_class[codec] = first;
    return kv_codecs[codec]->has_own_bases ? add_basis_classes(cache, kv_codecs[codec]) : ERR_OK;
}

static bool has_same_ranks(const kv_bases *a, const kv_bases *b)
{
    return a->k.rank == b->k.rank && a->v.rank == b->v.rank;
}

static bool is_same_shape(const kv_cache *cache, uint32_t one, uint32_t other)
{
    const kv_head_shape *a = &cache->heads[one], *b = &cache->heads[other];
    return a->k_dim == b->k_dim && a->v_dim == b->v_dim && a->v_in_k == b->v_in_k &&
           has_same_ranks(&cache->layer[one].lora, &cache->layer[other].lora) &&
           has_same_ranks(&cache->layer[one].lora_plus, &cache->layer[other].lora_plus);
}

/* Those of the codecs that a mixed one chooses from; its own is the hottest's. */
static err_t add_mixed_classes(kv_cache *cache, uint32_t codec, err_info *info)
{
    for (int h = KV_HEAT_COUNT; h-- > 0;) {
        uint32_t one = 0;
        while (strcmp(kv_codecs[one]->name, kv_heat_codecs[h]) != 0)
            one++;
        TRY(add_classes(cache, one, info));
        cache->heats.first_class[h] = cache->first_class[one];
    }
    cache->first_class[codec] = cache->heats.first_class[KV_HEAT_HOT];
    return ERR_OK;
}

static err_t add_codec(kv_cache *cache, uint32_t codec, err_info *info)
{
    return (kv_codecs[codec]->is_mixed ? add_mixed_classes : add_classes)(cache, codec, info);
}

/* Layers whose heads have one shape share a size class, raw and encoded by every codec that a sequence
 * may ask for. */
static err_t find_classes(kv_cache *cache, err_info *info)
{
    for (uint32_t l = 0; l < cache->n_layers; l++) {
        uint32_t same = 0;
        while (same < l && !is_same_shape(cache, same, l))
            same++;
        cache->layer_class[l] = same < l ? cache->layer_class[same] : cache->n_classes;
        if (same < l) continue;
        TRY(kv_codec_none.layout(&cache->heads[l], cache->page_tokens,
                                 &cache->layout[cache->n_classes]));
        cache->class_codec[cache->n_classes++] = &kv_codec_none;
    }
    cache->n_raw_classes = cache->n_classes;
    cache->own_bases.first_class = KV_CLASS_NONE;
    for (uint32_t codec = 0; kv_codecs[codec] != NULL; codec++) {
        assert(codec + 1 < KV_CODECS_MAX);
        cache->first_class[codec] = kv_codecs[codec]->is_exact ? 0 : KV_CLASS_NONE;
    }
    for (int h = 0; h < KV_HEAT_COUNT; h++)
        cache->heats.first_class[h] = KV_CLASS_NONE;
    if (!cache->methods.codec->is_exact) TRY(add_codec(cache, cache->methods.codec_index, info));
    for (uint32_t codec = 0; cache->request_methods && kv_codecs[codec] != NULL; codec++) {
        const err_t err = add_codec(cache, codec, NULL);
        if (err != ERR_OK && err != ERR_UNSUPPORTED && err != ERR_BAD_CONFIG) return err;
    }
    return ERR_OK;
}

static err_t read_shape(kv_cache *cache, const kv_shape *shape, err_info *info)
{
    assert(shape->n_layers >= 1);
    assert(shape->n_experts < KV_EXPERT_OF_SHARD);
    cache->n_experts = shape->n_experts;
    if (shape->n_layers > KV_CLASSES_MAX / KV_CODECS_MAX)
        return err_set(info, ERR_BAD_MODEL, "the cache has room for %d layers, not %u",
                       KV_CLASSES_MAX / KV_CODECS_MAX, shape->n_layers);
    cache->n_layers = shape->n_layers;
    TRY(place(cache, place_layers, &cache->layer_memory));
    memcpy(cache->layer, shape->layer, shape->n_layers * sizeof *cache->layer);
    for (uint32_t l = 0; l < cache->n_layers; l++) {
        const kv_layer_shape *layer = &cache->layer[l];
        check_layer(layer);
        cache->heads[l] = (kv_head_shape){.k_dim = layer->k_dim,
                                          .v_dim = layer->v_dim,
                                          .v_in_k = layer->v_in_k,
                                          .type = cache->type};
        cache->n_kv_heads[l] = layer->n_kv_heads;
        cache->scatters[l] =
            cache->n_shards > 1 && layer->has_router && !cache->placement->is_exact;
        cache->has_scattered = cache->has_scattered || cache->scatters[l];
        cache->first_list[l] = cache->n_lists;
        cache->n_lists += layer->n_kv_heads * cache->n_shards;
        if (layer->n_kv_heads > cache->n_kv_heads_max) cache->n_kv_heads_max = layer->n_kv_heads;
        if (layer->v_dim > cache->v_dim_max) cache->v_dim_max = layer->v_dim;
    }
    return find_classes(cache, info);
}

static err_t place_staging(kv_cache *cache, arena *a)
{
    kv_staging *staging = &cache->staging;
    const uint32_t n_tokens = cache->limits.n_step_tokens_max;
    size_t expert_bytes;
    TRY(kv_strips_init(a, cache->heads, cache->n_kv_heads, cache->n_layers, n_tokens,
                       &staging->strips));
    TRY(size_mul(n_tokens, sizeof *staging->expert, &expert_bytes));
    staging->bytes = arena_take(a, staging->strips.total_bytes, 1);
    staging->expert = arena_take(a, cache->n_layers, expert_bytes);
    staging->total_bytes = staging->strips.total_bytes + cache->n_layers * expert_bytes;
    return ERR_OK;
}

static err_t place_work(kv_cache *cache, arena *a)
{
    const size_t n_seqs = cache->limits.n_seqs_max;
    const kv_rings_config rings = {.heads = cache->heads,
                                   .n_kv_heads = cache->n_kv_heads,
                                   .n_layers = cache->n_layers,
                                   .page_tokens = cache->page_tokens,
                                   .window_tokens = cache->window_tokens,
                                   .sink_tokens = cache->sink_tokens,
                                   .notes_changes = cache->d->ops->attend_pages != NULL};
    size_t page_bytes = 0;
    for (uint32_t c = 0; c < cache->n_raw_classes; c++)
        page_bytes = max_size(page_bytes, cache->layout[c].page_bytes);
    if (cache->has_file) cache->landing_bytes = round_up(page_bytes, ARENA_ALIGN);
    TRY(place_staging(cache, a));
    TRY(kv_rings_init(a, &rings, &cache->rings));
    kv_own_bases_place(a, cache, &cache->own_bases);
    kv_heats_place(a, cache, &cache->heats);
    kv_reader_place(a, cache, &cache->reader);
    kv_prefix_place(a, &cache->prefix);
    cache->bases_offset = round_up(page_bytes, ARENA_ALIGN);
    cache->decoded_bytes = cache->bases_offset +
                           round_up(cache->own_bases.n_floats * sizeof(float), ARENA_ALIGN) +
                           cache->landing_bytes;
    cache->decoded = arena_take(a, thread_pool_n_threads(cache->d->pool), cache->decoded_bytes);
    if (cache->has_tiers) cache->victims = arena_take(a, KV_VICTIMS_MAX, sizeof *cache->victims);
    if (cache->request_methods || cache->methods.codec->weighs_values)
        cache->v_weight = arena_take(a, cache->n_lists, cache->v_dim_max * sizeof(float));
    cache->sealings = arena_take(a, KV_SEALING_MAX, sizeof *cache->sealings);
    cache->step.rows = arena_take(a, n_seqs, sizeof *cache->step.rows);
    cache->step.has_experts = arena_take(a, cache->n_layers, sizeof *cache->step.has_experts);
    cache->seqs = arena_take(a, n_seqs, sizeof *cache->seqs);
    kv_expert_map_place(a, &cache->experts);
    kv_evict_place(a, cache, &cache->evict);
    TRY(kv_ranks_place(a, cache));
    kv_observers_place(a, cache, &cache->observers);
    return ERR_OK;
}

/* ---- pool ---------------------------------------------------------------------------------------- */

/* need[c] = pages of class c for n_seqs sequences of n_blocks blocks. */
static void need_all(kv_cache *cache, uint64_t n_seqs, uint64_t n_blocks)
{
    memset(cache->need, 0, cache->n_classes * sizeof *cache->need);
    for (uint32_t l = 0; l < cache->n_layers; l++) {
        kv_need_blocks(cache, &cache->methods, l, n_blocks, cache->need);
        kv_replay_need(cache, &cache->methods, l, n_blocks, cache->need);
    }
    for (uint32_t c = 0; c < cache->n_classes; c++)
        cache->need[c] *= n_seqs;
}

static uint64_t choose_budget(kv_cache *cache, const kv_config *settings,
                              const kv_pool_config *config)
{
    const uint32_t n_here = settings->n_ranks_here > 0 ? settings->n_ranks_here : 1;
    need_all(cache, cache->limits.n_seqs_max,
             cache->limits.n_seq_tokens_max / cache->page_tokens + 1);
    const uint64_t wanted = kv_pool_least_bytes(config, cache->need);
    const uint64_t here = kv_memory_available() / MEMORY_SHARE / n_here;
    /* The view of a device is as large, and has rings and staging beside it. */
    const uint64_t there = dev_room(cache->d) / 4 * 3;
    const uint64_t most = here < there ? here : there;
    return wanted < most ? wanted : most;
}

/* A tier that cannot hold a slab would hold nothing. */
static err_t check_tier_bytes(const kv_cache *cache, const kv_config *config, err_info *info)
{
    const struct {
        const char *key;
        uint64_t wanted;
        kv_tier tier;
    } tiers[2] = {{"kv-host-bytes", config->host_bytes, KV_TIER_HOST},
                  {"kv-disk-bytes", config->disk_bytes, KV_TIER_FILE}};
    for (int t = 0; t < 2; t++) {
        const uint64_t bytes = kv_pool_count_tier(cache->pool, tiers[t].tier).budget_bytes;
        if (tiers[t].wanted == 0 || bytes > 0) continue;
        return err_set(info, ERR_BAD_CONFIG, "%s: %llu is less than %llu, the unit of the pool",
                       tiers[t].key, (unsigned long long)tiers[t].wanted,
                       (unsigned long long)kv_pool_slab_bytes(cache->pool));
    }
    return ERR_OK;
}

static err_t open_pool(kv_cache *cache, const kv_config *settings, err_info *info)
{
    const uint64_t memory_bytes = settings->memory_bytes;
    size_t page_bytes[KV_CLASSES_MAX];
    kv_pool_config config = {.budget_bytes = memory_bytes,
                             .host_bytes = settings->host_bytes,
                             .file_bytes = settings->disk_bytes,
                             .page_tokens = cache->page_tokens,
                             .n_classes = cache->n_classes,
                             .page_bytes = page_bytes,
                             .n_shards = cache->n_shards,
                             .has_biases = cache->evict.has_fits,
                             .has_importance = cache->heats.pages != NULL,
                             .notes_changes = cache->d->ops->attend_pages != NULL};
    for (uint32_t c = 0; c < cache->n_classes; c++)
        page_bytes[c] = cache->layout[c].page_bytes;
    for (uint32_t l = 0; l < cache->n_layers && cache->has_boxes; l++)
        config.box_bytes = max_size(config.box_bytes, kv_box_bytes(&cache->heads[l]));
    cache->run_box_bytes = config.box_bytes;
    if (memory_bytes == 0) config.budget_bytes = choose_budget(cache, settings, &config);
    need_all(cache, 1, 1);
    const uint64_t least = kv_pool_least_bytes(&config, cache->need);
    if (config.budget_bytes < least)
        return err_set(info, ERR_BAD_CONFIG,
                       "kv-cache-memory-bytes: %llu; one page per layer and head needs %llu",
                       (unsigned long long)config.budget_bytes, (unsigned long long)least);
    const err_t err = kv_pool_open(&config, &cache->pool);
    if (err != ERR_OK)
        return err_set(info, err, "kv-cache-memory-bytes: cannot reserve %llu bytes",
                       (unsigned long long)config.budget_bytes);
    cache->quota_bytes = kv_pool_count(cache->pool).budget_bytes / kv_n_own_shards(cache);
    if (!cache->has_tiers) return ERR_OK;
    TRY(check_tier_bytes(cache, settings, info));
    return kv_tiers_open(cache->pool, cache->has_file ? settings->disk_path : NULL, &cache->tiers,
                         info);
}

/* ---- open and close ------------------------------------------------------------------------------ */

static void weigh_values(kv_cache *cache)
{
    for (uint32_t l = 0; l < cache->n_layers && cache->v_weight != NULL; l++) {
        for (uint32_t h = 0; h < cache->n_kv_heads[l] && cache->layer[l].out_proj != NULL; h++)
            kv_value_weight_fill(&cache->layer[l], h,
                                 cache->v_weight +
                                     (size_t)kv_list(cache, l, h, 0) * cache->v_dim_max);
    }
}

static void init_seqs(kv_cache *cache)
{
    for (uint32_t s = cache->limits.n_seqs_max; s-- > 0;) {
        cache->seqs[s] = (kv_seq){.cache = cache, .next_free = cache->free_seqs};
        cache->free_seqs = &cache->seqs[s];
    }
}

static err_t open_parts(kv_cache *cache, const kv_config *config, const kv_shape *shape,
                        err_info *info)
{
    TRY(read_config(cache, config, info));
    cache->type = resolve_type(config->dtype, shape->model_type);
    TRY(read_shape(cache, shape, info));
    cache->experts.n_layers = cache->n_layers;
    cache->experts.n_experts = cache->n_experts;
    cache->experts.n_shards = cache->n_shards;
    cache->prefix.n_objects_max = 4 * cache->limits.n_seqs_max + 64;
    TRY(place(cache, place_work, &cache->work_memory));
    TRY(kv_demote_check(cache, &cache->methods, info));
    TRY(kv_evict_check(cache, &cache->methods, info));
    init_seqs(cache);
    kv_expert_map_init(&cache->experts);
    weigh_values(cache);
    memset(cache->staging.expert, 0xff, /* KV_EXPERT_NONE: layers without a router */
           cache->staging.total_bytes - cache->staging.strips.total_bytes);
    TRY(open_pool(cache, config, info));
    TRY(kv_view_open(cache, info));
    return kv_prefix_init(cache);
}

err_t kv_cache_open(dev *d, const kv_config *config, const kv_shape *shape, const kv_limits *limits,
                    kv_cache **out, err_info *info)
{
    *out = NULL;
    assert(limits->n_seqs_max >= 1);
    assert(limits->n_seqs_max <= UINT32_MAX / 8);
    assert(limits->n_step_tokens_max >= 1);
    assert(limits->n_step_tokens_max <= UINT32_MAX / 8);
    assert(limits->n_seq_tokens_max >= 1);
    assert(limits->n_seq_tokens_max <= UINT32_MAX / 8);
    kv_cache *cache = calloc(1, sizeof *cache);
    if (cache == NULL) return err_set(info, ERR_NO_MEMORY, "no memory for the KV cache");
    cache->d = d;
    cache->limits = *limits;
    err_t err = open_parts(cache, config, shape, info);
    err = kv_ranks_agree(cache, err, info);
    if (err != ERR_OK) {
        kv_cache_close(cache);
        return err_set(info, err, "no memory for the KV cache: %s", err_sentence(err));
    }
    kv_publish(cache);
    *out = cache;
    return ERR_OK;
}

void kv_cache_close(kv_cache *cache)
{
    if (cache == NULL) return;
    assert(cache->stats.seqs_open == 0);
    kv_prefix_deinit(cache);
    kv_view_close(cache);
    kv_rings_deinit(&cache->rings);
    kv_tiers_close(cache->tiers);
    kv_pool_close(cache->pool);
    arena_deinit(&cache->work_memory);
    arena_deinit(&cache->layer_memory);
    free(cache);
}
