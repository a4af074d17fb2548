/* service/plan_cache.c - see plan_cache.h.
 *
 * Per layer and rank the pages of one KV head are counted (head_pages), as raw ones, encoded ones and
 * bases; a size class of the pool is a shape of them. Sums over layers give the pool's need, from which
 * the pool itself says how many slabs that is. Descriptors per slab are asked of a pool that is opened
 * for the purpose and holds one page. */
#include "service/plan_cache.h"

#include "base/arena.h"
#include "base/check.h"
#include "kvcache/compression/pikv_rule.h"
#include "kvcache/compression/svd.h"
#include "kvcache/device_measure.h"
#include "kvcache/encode.h"
#include "kvcache/key_box.h"
#include "kvcache/page_pool.h"
#include "service/plan_routing.h"

#include <stdlib.h>
#include <string.h>

/* Slabs of the pool that is opened to be asked: its own constants weigh little beside so many. */
enum { ASKED_SLABS_MAX = 65536 };

/* Raw, coded, bases. */
enum { CLASSES_OF_A_LAYER = 2 + KV_HEAT_COUNT };

/* One layer, as the pool sees it. */
typedef struct plan_layer {
    kv_head_shape head;
    uint32_t n_kv_heads;
    uint32_t raw_class, basis_class; /* in plan_work.page_bytes */
    uint32_t coded_class[KV_HEAT_COUNT];
    kv_page_layout raw;
    kv_page_layout coded
        [KV_HEAT_COUNT]; /* by heat; the first alone, unless the codec mixes; raw under an exact one */
    uint32_t first;      /* blocks below have been passed by the layer's window */
    bool scatters;
} plan_layer;

typedef struct plan_work {
    const plan_cache_input *in;
    const kv_methods *methods;
    const kv_placement *placement;
    dtype type;
    uint32_t n_shards;
    uint32_t n_left;    /* blocks that have left the ring */
    size_t box_bytes;   /* 0: there are none */
    plan_layer *layers; /* [n_layers] */
    size_t *page_bytes; /* [CLASSES_OF_A_LAYER * n_layers]; n_classes valid */
    uint64_t *need;     /* [CLASSES_OF_A_LAYER * n_layers] */
    uint32_t n_classes;
    plan_reads reads; /* of the layer that was asked about last, which had n_asked pages a head */
    uint32_t n_asked;
    bool asked_scattered;
} plan_work;

/* Of one KV head on one rank. */
typedef struct plan_pages {
    uint64_t n_raw, n_coded, n_bases;
    uint64_t n_raw_entries; /* in the raw ones, without sinks: those are read from the ring */
} plan_pages;

static err_t add_product(uint64_t *sum, uint64_t a, uint64_t b)
{
    size_t product, total;
    TRY(size_mul(a, b, &product));
    TRY(size_add(*sum, product, &total));
    *sum = total;
    return ERR_OK;
}

/* ---- settings ------------------------------------------------------------------------------------ */

static err_t check_settings(plan_work *w, err_info *info)
{
    const kv_config *config = w->in->config;
    if (config->sink_tokens > config->page_tokens)
        return err_set(info, ERR_BAD_CONFIG, "kv-sink: %u is more than kv-page-tokens, %u",
                       config->sink_tokens, config->page_tokens);
    if (config->request_methods)
        return err_set(info, ERR_UNSUPPORTED,
                       "kv-request-methods: a plan is for one setting of methods; leave it out");
    if (w->methods->policy.limits_pool && config->host_bytes == 0 && config->disk_bytes == 0)
        return err_set(info, ERR_UNSUPPORTED,
                       "kv-scheduling: flexgen moves pages, and neither kv-host-bytes nor "
                       "kv-disk-bytes is set");
    w->placement = kv_placement_find(config->placement);
    if (w->placement == NULL)
        return err_set(info, ERR_BAD_CONFIG, "kv-placement: '%s' is unknown; known are:%s",
                       config->placement, kv_placement_names);
    w->n_shards = config->n_shards > w->in->n_ranks ? config->n_shards : w->in->n_ranks;
    if (w->placement->needs_power_of_two && (w->n_shards & (w->n_shards - 1)) != 0)
        return err_set(info, ERR_BAD_CONFIG,
                       "kv-shards: %u (one per rank at least) is no power of two, which "
                       "kv-placement %s needs",
                       w->n_shards, w->placement->name);
    return ERR_OK;
}

/* ---- shapes -------------------------------------------------------------------------------------- */

/* Of so many codecs the pages are. */
static uint32_t n_codings(const plan_work *w)
{
    return w->methods->codec->is_mixed ? KV_HEAT_COUNT : 1;
}

/* Of n encoded pages of a head, those with this heat. */
static uint64_t coded_share(const plan_work *w, uint32_t heat, uint64_t n)
{
    return w->methods->codec->is_mixed ? kv_heat_share((kv_heat)heat, (uint32_t)n) : n;
}

static err_t codec_layout(const plan_work *w, uint32_t l, uint32_t heat, kv_page_layout *out,
                          err_info *info)
{
    kv_head_shape head = w->layers[l].head;
    const kv_codec *codec =
        w->methods->codec->is_mixed ? kv_codec_find(kv_heat_codecs[heat]) : w->methods->codec;
    if (codec->bases != NULL) {
        const kv_bases *bases = codec->bases(&w->in->shape->layer[l]);
        if (bases->k.rank == 0 || bases->v.rank == 0)
            return err_set(info, ERR_BAD_CONFIG,
                           "kv-compression: %s needs kv_bases.safetensors beside the model, with "
                           "bases of layer %u; tools/calibrate_kv.py makes it",
                           codec->name, l);
        head.k_rank = bases->k.rank;
        head.v_rank = bases->v.rank;
    }
    const err_t err = codec->layout(&head, w->in->config->page_tokens, out);
    if (err == ERR_OK) return ERR_OK;
    return err_set(info, err,
                   "kv-compression: %s cannot encode, or make smaller, pages of %u keys of %u and "
                   "values of %u channels",
                   codec->name, w->in->config->page_tokens, head.k_dim, head.v_dim);
}

static uint32_t add_class(plan_work *w, size_t page_bytes)
{
    w->page_bytes[w->n_classes] = page_bytes;
    return w->n_classes++;
}

/* Layers of one shape share their classes. */
static bool has_same_classes(const plan_layer *a, const plan_layer *b)
{
    return a->raw.page_bytes == b->raw.page_bytes &&
           a->coded[0].page_bytes == b->coded[0].page_bytes && a->head.k_dim == b->head.k_dim &&
           a->head.v_dim == b->head.v_dim && a->head.v_in_k == b->head.v_in_k;
}

static err_t read_layer(plan_work *w, uint32_t l, err_info *info)
{
    const kv_layer_shape *shape = &w->in->shape->layer[l];
    const uint32_t page_tokens = w->in->config->page_tokens, n_tokens = w->in->n_tokens;
    plan_layer *layer = &w->layers[l];
    *layer =
        (plan_layer){.n_kv_heads = shape->n_kv_heads,
                     .head = {.k_dim = shape->k_dim,
                              .v_dim = shape->v_dim,
                              .v_in_k = shape->v_in_k,
                              .type = w->type},
                     .scatters = w->n_shards > 1 && shape->has_router && !w->placement->is_exact};
    if (shape->window != 0 && n_tokens >= shape->window)
        layer->first = (uint32_t)(((uint64_t)n_tokens + 1 - shape->window) / page_tokens);
    if (layer->first > w->n_left) layer->first = w->n_left;
    TRY(kv_codec_none.layout(&layer->head, page_tokens, &layer->raw));
    for (uint32_t heat = 0; heat < n_codings(w); heat++)
        TRY(codec_layout(w, l, heat, &layer->coded[heat], info));
    for (uint32_t other = 0; other < l; other++) {
        const plan_layer *same = &w->layers[other];
        if (!has_same_classes(same, layer)) continue;
        layer->raw_class = same->raw_class;
        memcpy(layer->coded_class, same->coded_class, sizeof layer->coded_class);
        layer->basis_class = same->basis_class;
        return ERR_OK;
    }
    layer->raw_class = layer->coded_class[0] = add_class(w, layer->raw.page_bytes);
    for (uint32_t heat = 0; heat < n_codings(w) && !w->methods->codec->is_exact; heat++)
        layer->coded_class[heat] = add_class(w, layer->coded[heat].page_bytes);
    if (!w->methods->codec->has_own_bases) return ERR_OK;
    size_t basis_bytes;
    TRY(kv_svd_basis_bytes(&layer->coded[0].shape, &basis_bytes));
    layer->basis_class = add_class(w, basis_bytes);
    return ERR_OK;
}

static err_t read_layers(plan_work *w, err_info *info)
{
    const kv_config *config = w->in->config;
    const uint32_t n_layers = w->in->shape->n_layers;
    w->type = config->dtype == KV_DTYPE_F32 ? DTYPE_F32
              : config->dtype == KV_DTYPE_AUTO && w->in->shape->model_type == DTYPE_F32
                  ? DTYPE_F32
                  : DTYPE_BF16;
    if (w->in->n_tokens >= config->window_tokens)
        w->n_left = (w->in->n_tokens - config->window_tokens) / config->page_tokens;
    w->layers = calloc(n_layers, sizeof *w->layers);
    w->page_bytes = calloc(n_layers, CLASSES_OF_A_LAYER * sizeof *w->page_bytes);
    w->need = calloc(n_layers, CLASSES_OF_A_LAYER * sizeof *w->need);
    if (w->layers == NULL || w->page_bytes == NULL || w->need == NULL)
        return err_set(info, ERR_NO_MEMORY, "plan: out of memory");
    for (uint32_t l = 0; l < n_layers; l++) {
        TRY(read_layer(w, l, info));
        const size_t box_bytes = w->methods->reads_all ? 0 : kv_box_bytes(&w->layers[l].head);
        if (box_bytes > w->box_bytes) w->box_bytes = box_bytes;
    }
    return ERR_OK;
}

/* ---- pages of a head ----------------------------------------------------------------------------- */

/* Shards below n that are this rank's. */
static uint32_t shards_below(const plan_work *w, uint32_t rank, uint32_t n)
{
    return n > rank ? (n - rank - 1) / w->in->n_ranks + 1 : 0;
}

/* Blocks below n that are dealt to this rank's shards. */
static uint64_t blocks_below(const plan_work *w, uint32_t rank, uint32_t n)
{
    const uint64_t n_rounds = n / w->n_shards;
    return n_rounds * shards_below(w, rank, w->n_shards) + shards_below(w, rank, n % w->n_shards);
}

/* Entries of a head that are in pages, without sinks, over all ranks. */
static uint64_t entries_in_pages(const plan_work *w, const plan_layer *layer)
{
    const kv_config *config = w->in->config;
    const kv_methods *m = w->methods;
    uint64_t n = (uint64_t)(w->n_left - layer->first) * config->page_tokens;
    if (layer->first == 0) n -= n < config->sink_tokens ? n : config->sink_tokens;
    if (!kv_methods_evict(m)) return n;
    const kv_policy *policy = m->policy.evicts ? &m->policy : &m->selection;
    const uint64_t recent =
        w->in->n_tokens - (uint64_t)w->n_left * config->page_tokens + config->sink_tokens;
    const uint64_t n_keep = kv_policy_n_keep(policy, w->in->n_tokens);
    const uint64_t n_kept = n_keep > recent ? n_keep - recent : 0;
    return n_kept < n ? n_kept : n;
}

/* Every shard gets the same number of entries, in pages that are filled one after the other. In the page
 * of block 0 the sinks keep their places, though they are read from the ring (scattered layers keep them
 * apart). What is being filled stays raw while others go on adding to it, but not behind an eviction,
 * which packs. */
static void dealt_pages(const plan_work *w, const plan_layer *layer, uint32_t rank, plan_pages *out)
{
    const uint32_t page_tokens = w->in->config->page_tokens;
    const bool is_coded = !w->methods->codec->is_exact;
    const bool is_packed = kv_methods_evict(w->methods);
    const uint64_t n_lists = shards_below(w, rank, w->n_shards);
    const uint64_t n_entries = (entries_in_pages(w, layer) + w->n_shards - 1) / w->n_shards;
    const uint64_t n_sinks = layer->scatters || layer->first > 0 ? 0 : w->in->config->sink_tokens;
    for (uint64_t i = 0; i < n_lists && n_entries > 0; i++) {
        const uint64_t n_places = n_entries + (rank == 0 && i == 0 ? n_sinks : 0);
        const uint64_t n_pages = (n_places + page_tokens - 1) / page_tokens;
        const uint64_t n_coded = !is_coded ? 0 : is_packed ? n_pages : n_places / page_tokens;
        out->n_coded += n_coded;
        out->n_raw += n_pages - n_coded;
        out->n_raw_entries += !is_coded ? n_entries : is_packed ? 0 : n_places % page_tokens;
    }
}

static void head_pages(const plan_work *w, const plan_layer *layer, uint32_t rank, plan_pages *out)
{
    const kv_config *config = w->in->config;
    *out = (plan_pages){0};
    if (layer->scatters || kv_methods_evict(w->methods)) {
        dealt_pages(w, layer, rank, out);
    } else {
        const uint64_t n = blocks_below(w, rank, w->n_left) - blocks_below(w, rank, layer->first);
        const bool has_sinks = layer->first == 0 && rank == 0 && n > 0 && config->sink_tokens > 0;
        out->n_raw = w->methods->codec->is_exact ? n : has_sinks;
        out->n_coded = n - out->n_raw;
        out->n_raw_entries =
            out->n_raw * config->page_tokens - (has_sinks ? config->sink_tokens : 0);
    }
    if (!w->methods->codec->has_own_bases) return;
    uint64_t n_bases = 0; /* as kv_basis_need_blocks: at most one for every doubling */
    for (uint64_t n = out->n_coded; n > 0; n /= 2)
        n_bases++;
    out->n_bases = n_bases * shards_below(w, rank, w->n_shards);
}

/* ---- memory -------------------------------------------------------------------------------------- */

static err_t least_bytes(const plan_work *w, uint64_t *n_pages, uint64_t *bytes)
{
    const kv_pool_config pool = {.page_tokens = w->in->config->page_tokens,
                                 .n_classes = w->n_classes,
                                 .page_bytes = w->page_bytes};
    size_t all_bytes = 0;
    *n_pages = 0;
    for (uint32_t c = 0; c < w->n_classes; c++) { /* before slabs, which are a little more */
        TRY(add_product(&all_bytes, 2 * w->need[c], w->page_bytes[c] + KV_SLAB_BYTES));
        *n_pages += w->need[c];
    }
    *bytes = kv_pool_least_bytes(&pool, w->need);
    return ERR_OK;
}

/* w->need of a rank, for all sequences. */
static err_t need_pages(plan_work *w, uint32_t rank)
{
    memset(w->need, 0, w->n_classes * sizeof *w->need);
    for (uint32_t l = 0; l < w->in->shape->n_layers; l++) {
        const plan_layer *layer = &w->layers[l];
        const uint64_t n_heads = (uint64_t)layer->n_kv_heads * w->in->n_seqs;
        plan_pages pages;
        head_pages(w, layer, rank, &pages);
        TRY(add_product(&w->need[layer->raw_class], n_heads, pages.n_raw));
        for (uint32_t heat = 0; heat < n_codings(w); heat++)
            TRY(add_product(&w->need[layer->coded_class[heat]], n_heads,
                            coded_share(w, heat, pages.n_coded)));
        if (pages.n_bases > 0)
            TRY(add_product(&w->need[layer->basis_class], n_heads, pages.n_bases));
    }
    return ERR_OK;
}

/* Under flexgen the budget's share of a sequence's pages stays in the pool; the others go to the tiers below. */
static err_t split_tiers(plan_work *w, uint32_t rank, plan_cache *out)
{
    const kv_policy *policy = &w->methods->policy;
    if (!policy->limits_pool) return ERR_OK;
    const uint64_t n_keep = kv_policy_n_keep(policy, w->in->n_tokens);
    uint64_t n_pages;
    TRY(need_pages(w, rank));
    for (uint32_t c = 0; c < w->n_classes; c++)
        w->need[c] = w->need[c] * n_keep / w->in->n_tokens;
    TRY(least_bytes(w, &n_pages, &out->page_bytes));
    TRY(need_pages(w, rank));
    for (uint32_t c = 0; c < w->n_classes; c++)
        w->need[c] -= w->need[c] * n_keep / w->in->n_tokens;
    return least_bytes(w, &out->n_pages_away, &out->away_bytes);
}

/* Raw pages of the last section of one prompt, beside what will be left of it. */
static err_t count_section(plan_work *w, uint32_t rank, plan_cache *out)
{
    const uint32_t n_section = KV_SECTION_TOKENS / w->in->config->page_tokens + 3;
    uint64_t n_pages;
    if (w->methods->codec->is_exact && !kv_methods_evict(w->methods)) return ERR_OK;
    memset(w->need, 0, w->n_classes * sizeof *w->need);
    for (uint32_t l = 0; l < w->in->shape->n_layers; l++) {
        const uint32_t n = n_section < w->n_left ? n_section : w->n_left;
        TRY(add_product(&w->need[w->layers[l].raw_class], w->layers[l].n_kv_heads,
                        blocks_below(w, rank, n)));
    }
    return least_bytes(w, &n_pages, &out->section_bytes);
}

static bool has_fits(const kv_methods *m)
{
    return (m->policy.evicts && m->policy.scorer->is_fitted) ||
           (m->selection.evicts && m->selection.scorer->is_fitted);
}

/* The pool's bytes of knowledge about n_slabs slabs. */
static err_t count_descriptors(const plan_work *w, uint64_t n_slabs, uint64_t slab_bytes,
                               plan_cache *out)
{
    const kv_methods *m = w->methods;
    const uint64_t n_asked = n_slabs < ASKED_SLABS_MAX ? n_slabs : ASKED_SLABS_MAX;
    const kv_pool_config config = {.budget_bytes = (n_asked > 0 ? n_asked : 1) * slab_bytes,
                                   .page_tokens = w->in->config->page_tokens,
                                   .n_classes = w->n_classes,
                                   .page_bytes = w->page_bytes,
                                   .box_bytes = w->box_bytes,
                                   .has_biases = has_fits(m),
                                   .has_importance = m->codec->is_mixed,
                                   .n_shards = w->n_shards};
    kv_pool *pool;
    TRY(kv_pool_open(&config, &pool));
    const uint32_t page = kv_pool_alloc_page(pool, 0, KV_HELD_BY_SEQ);
    const uint64_t each_bytes = kv_pool_count(pool).descriptor_bytes; /* one slab is in use */
    kv_pool_drop(pool, page, KV_HELD_BY_SEQ);
    kv_pool_close(pool);
    return add_product(&out->descriptor_bytes, n_slabs, each_bytes);
}

/* Tables of a rank's shards, as large as doubling makes them, and the prefix cache's list of objects. */
static err_t count_tables(const plan_work *w, uint32_t rank, plan_cache *out)
{
    const uint32_t page_tokens = w->in->config->page_tokens;
    const bool has_runs = w->methods->routing->select_runs != NULL && !w->methods->reads_all;
    const uint64_t n_blocks = ((uint64_t)w->in->n_tokens + page_tokens - 1) / page_tokens;
    kv_table table = {.n_lists = 1, .run_box_bytes = has_runs ? w->box_bytes : 0};
    uint64_t n_lists = 0;
    TRY(kv_table_grow(&table, (uint32_t)n_blocks));
    const size_t list_bytes = kv_table_bytes(&table);
    kv_table_deinit(&table);
    for (uint32_t l = 0; l < w->in->shape->n_layers; l++)
        n_lists += (uint64_t)w->layers[l].n_kv_heads * shards_below(w, rank, w->n_shards);
    const kv_prefix *prefix = NULL; /* only sizes of what it points to */
    const uint64_t n_objects = 4 * (uint64_t)w->in->n_seqs + 64;
    out->table_bytes = n_objects * (sizeof *prefix->objects + sizeof *prefix->index.keys);
    TRY(size_mul(n_lists, w->in->n_seqs, &n_lists));
    return add_product(&out->table_bytes, n_lists, list_bytes);
}

static err_t count_rings(const plan_work *w, plan_cache *out)
{
    const kv_config *config = w->in->config;
    const uint32_t n_layers = w->in->shape->n_layers, n_step_tokens = w->in->n_step_tokens;
    kv_head_shape *heads = calloc(n_layers, sizeof *heads);
    uint32_t *n_kv_heads = calloc(n_layers, sizeof *n_kv_heads);
    err_t err = heads != NULL && n_kv_heads != NULL ? ERR_OK : ERR_NO_MEMORY;
    for (uint32_t l = 0; l < n_layers && err == ERR_OK; l++) {
        heads[l] = w->layers[l].head;
        n_kv_heads[l] = w->layers[l].n_kv_heads;
    }
    const kv_rings_config rings_config = {.heads = heads,
                                          .n_kv_heads = n_kv_heads,
                                          .n_layers = n_layers,
                                          .page_tokens = config->page_tokens,
                                          .window_tokens = config->window_tokens,
                                          .sink_tokens = config->sink_tokens};
    arena measure;
    kv_rings rings = {0};
    kv_staging staging = {0};
    arena_init_measure(&measure);
    if (err == ERR_OK) err = kv_rings_init(&measure, &rings_config, &rings);
    if (err == ERR_OK)
        err = kv_strips_init(&measure, heads, n_kv_heads, n_layers, n_step_tokens, &staging.strips);
    free(heads);
    free(n_kv_heads);
    TRY(err);
    const uint64_t expert_bytes = n_step_tokens * sizeof *staging.expert;
    out->staging_bytes = staging.strips.total_bytes;
    TRY(add_product(&out->staging_bytes, n_layers, expert_bytes));
    return add_product(&out->ring_bytes, rings.ring_bytes, w->in->n_seqs);
}

/* ---- reading ------------------------------------------------------------------------------------- */

/* Bytes of one step of one sequence: of the pages that one rank has, and of what is recent. */
static err_t count_layer_reads(plan_work *w, const plan_layer *layer, uint32_t most,
                               plan_cache *out)
{
    const kv_config *config = w->in->config;
    const uint64_t row_bytes = kv_page_read_bytes(&layer->raw, 1);
    uint64_t n_pages = 0, bytes = 0, bytes_most = 0;
    for (uint32_t rank = 0; rank < w->in->n_ranks; rank++) {
        plan_pages pages;
        uint64_t rank_bytes = 0;
        head_pages(w, layer, rank, &pages);
        for (uint32_t heat = 0; heat < n_codings(w); heat++)
            TRY(add_product(&rank_bytes, coded_share(w, heat, pages.n_coded),
                            kv_page_read_bytes(&layer->coded[heat], config->page_tokens)));
        TRY(add_product(&rank_bytes, pages.n_raw_entries, row_bytes));
        bytes += rank_bytes;
        n_pages += pages.n_raw + pages.n_coded;
        if (rank == most) bytes_most = rank_bytes;
    }
    if (n_pages > UINT32_MAX) return ERR_OVERFLOW;
    const plan_routing routing = {.methods = w->methods,
                                  .n_shards = w->n_shards,
                                  .page_tokens = config->page_tokens,
                                  .is_scattered = layer->scatters};
    if (n_pages != w->n_asked || layer->scatters != w->asked_scattered)
        TRY(plan_routing_ask(&routing, (uint32_t)n_pages, &w->reads));
    w->n_asked = (uint32_t)n_pages;
    w->asked_scattered = layer->scatters;
    const double share = n_pages > 0 ? (double)w->reads.n_chosen / (double)n_pages : 1;
    const uint64_t box_bytes = w->reads.n_boxes * w->box_bytes;
    const double part = bytes > 0 ? (double)bytes_most / (double)bytes : 0;
    const uint64_t read_bytes = share < 1 ? (uint64_t)(share * (double)bytes) : bytes;
    const uint64_t all_bytes = read_bytes + box_bytes;
    const uint64_t all_most =
        w->in->n_ranks == 1 ? all_bytes : (uint64_t)(part * (double)all_bytes);
    const uint64_t window = w->in->shape->layer[(size_t)(layer - w->layers)].window;
    uint64_t n_recent = (uint64_t)w->in->n_tokens + 1 - (uint64_t)w->n_left * config->page_tokens;
    if (layer->first == 0 && w->n_left > 0) n_recent += config->sink_tokens;
    if (window != 0 && n_recent > window) n_recent = window;
    out->share_read += share / w->in->shape->n_layers;
    TRY(add_product(&out->read_page_bytes, layer->n_kv_heads, all_bytes));
    TRY(add_product(&out->read_page_bytes_most, layer->n_kv_heads, all_most));
    return add_product(&out->read_recent_bytes, layer->n_kv_heads * row_bytes, n_recent);
}

/* ---- the whole ----------------------------------------------------------------------------------- */

static void describe(const plan_work *w, plan_cache *out)
{
    const plan_layer *first = &w->layers[0];
    const kv_methods *m = w->methods;
    const uint32_t scorer_needs = kv_methods_needs(m);
    for (uint32_t l = 0; l < w->in->shape->n_layers; l++) {
        const plan_layer *layer = &w->layers[l];
        out->token_bytes += layer->n_kv_heads * kv_page_read_bytes(&layer->raw, 1);
        out->is_scattered = out->is_scattered || layer->scatters;
        for (uint32_t heat = 0; heat < n_codings(w) && !m->codec->is_exact; heat++)
            out->copy_bytes = max_size(out->copy_bytes,
                                       kv_view_copy_bytes(&layer->coded[heat], w->box_bytes > 0));
    }
    out->type = w->type;
    out->n_classes = w->n_classes;
    out->box_bytes = w->box_bytes;
    out->has_biases = has_fits(m);
    out->n_shards = w->n_shards;
    out->layer_token_bytes = first->n_kv_heads * kv_page_read_bytes(&first->raw, 1);
    uint64_t coded_bytes = 0; /* of four pages, which is what the rule deals out evenly */
    for (uint32_t heat = 0; heat < n_codings(w); heat++)
        coded_bytes += coded_share(w, heat, 4) * first->coded[heat].page_bytes;
    out->compression = 4 * (double)first->raw.page_bytes / (double)coded_bytes;
    out->is_thinned = kv_methods_evict(m);
    out->reads_by_data = plan_routing_is_open(m);
    out->keeps_more = (scorer_needs & ~(uint32_t)KV_SCORE_OUT_PROJ) != 0 || m->codec->n_queries > 0;
    const double entries_bytes = (double)(sizeof(uint32_t) + sizeof(uint64_t)); /* page, bitmap */
    if (out->n_pages > 0)
        out->page_overhead_bytes =
            (double)out->descriptor_bytes / (double)out->n_pages + entries_bytes;
}

/* The pool numbers places for its smallest pages. */
static uint64_t ids_of_slab(const plan_work *w, uint64_t slab_bytes)
{
    size_t smallest = SIZE_MAX;
    for (uint32_t c = 0; c < w->n_classes; c++)
        smallest = w->page_bytes[c] < smallest ? w->page_bytes[c] : smallest;
    return slab_bytes / smallest;
}

static err_t check_ids(const plan_work *w, uint64_t n_slabs, uint64_t slab_bytes, err_info *info)
{
    const uint64_t per_slab = ids_of_slab(w, slab_bytes);
    if (n_slabs <= (KV_PAGE_NONE - 1) / per_slab) return ERR_OK;
    return err_set(info, ERR_OVERFLOW,
                   "context, batch: a rank would hold %llu slabs of %llu pages, and can number %u "
                   "pages; take more ranks",
                   (unsigned long long)n_slabs, (unsigned long long)per_slab, KV_PAGE_NONE - 1);
}

static err_t count(plan_work *w, plan_cache *out, err_info *info)
{
    uint32_t most = 0;
    for (uint32_t rank = 0; rank < w->in->n_ranks; rank++) {
        uint64_t n_pages, bytes;
        TRY(need_pages(w, rank));
        TRY(least_bytes(w, &n_pages, &bytes));
        if (bytes <= out->page_bytes) continue;
        most = rank;
        out->n_pages = n_pages;
        out->page_bytes = bytes;
    }
    memset(w->need, 0, w->n_classes * sizeof *w->need);
    w->need[0] = 1;
    uint64_t n_one, slab_bytes;
    TRY(least_bytes(w, &n_one, &slab_bytes));
    TRY(check_ids(w, out->page_bytes / slab_bytes, slab_bytes, info));
    TRY(count_descriptors(w, out->page_bytes / slab_bytes, slab_bytes, out));
    TRY(split_tiers(w, most, out));
    TRY(count_section(w, most, out));
    out->n_page_ids =
        (out->page_bytes + out->section_bytes) / slab_bytes * ids_of_slab(w, slab_bytes);
    TRY(count_tables(w, most, out));
    TRY(count_rings(w, out));
    for (uint32_t l = 0; l < w->in->shape->n_layers; l++)
        TRY(count_layer_reads(w, &w->layers[l], most, out));
    describe(w, out);
    return ERR_OK;
}

err_t plan_cache_of(const plan_cache_input *in, plan_cache *out, err_info *info)
{
    assert(in->n_tokens >= 1 && in->n_tokens <= UINT32_MAX / 8);
    assert(in->n_seqs >= 1 && in->n_seqs <= in->n_step_tokens);
    assert(in->n_ranks >= 1 && in->n_ranks <= KV_SHARDS_MAX);
    *out = (plan_cache){0};
    TRY(kv_methods_resolve(in->config, &out->methods, info));
    plan_work w = {.in = in, .methods = &out->methods};
    err_t err = check_settings(&w, info);
    if (err == ERR_OK) err = read_layers(&w, info);
    if (err == ERR_OK) err = count(&w, out, info);
    free(w.layers);
    free(w.page_bytes);
    free(w.need);
    return err == ERR_OK ? ERR_OK : err_set(info, err, "plan of the cache: %s", err_sentence(err));
}
