/* kvcache/device_low.c - see device_low.h. Bases of a model lie codec by codec, layer by layer, head by head. */
#include "kvcache/device_low.h"

#include "kvcache/device_view.h"
#include "kvcache/page_changes.h"

static bool has_bases(const kv_cache *cache, uint32_t codec)
{
    return kv_codecs[codec]->bases != NULL && cache->first_class[codec] != KV_CLASS_NONE;
}

static size_t k_floats(const kv_cache *cache, uint32_t layer, const kv_bases *bases)
{
    return (size_t)bases->k.rank * cache->layer[layer].k_dim;
}

static size_t v_floats(const kv_cache *cache, uint32_t layer, const kv_bases *bases)
{
    return (size_t)bases->v.rank * cache->layer[layer].v_dim;
}

static size_t head_bytes(const kv_cache *cache, uint32_t layer, const kv_bases *bases)
{
    return (k_floats(cache, layer, bases) + v_floats(cache, layer, bases)) * sizeof(float);
}

/* Where the first head of a layer begins, or behind the end of all. */
static size_t layer_at(const kv_cache *cache, uint32_t codec, uint32_t layer)
{
    size_t at = 0;
    for (uint32_t c = 0; kv_codecs[c] != NULL && c <= codec; c++) {
        for (uint32_t l = 0; has_bases(cache, c) && l < (c < codec ? cache->n_layers : layer); l++)
            at +=
                cache->n_kv_heads[l] * head_bytes(cache, l, kv_codecs[c]->bases(&cache->layer[l]));
    }
    return at;
}

size_t kv_view_bases_bytes(const kv_cache *cache)
{
    return layer_at(cache, UINT32_MAX, 0);
}

static void send_layer(kv_cache *cache, uint32_t codec, uint32_t layer)
{
    const kv_bases *bases = kv_codecs[codec]->bases(&cache->layer[layer]);
    const size_t n_k = k_floats(cache, layer, bases), n_v = v_floats(cache, layer, bases);
    uint8_t *to = cache->view->device.bases + layer_at(cache, codec, layer);
    for (uint32_t h = 0; h < cache->n_kv_heads[layer]; h++) {
        dev_upload(cache->d, to, bases->k.up + h * n_k, n_k * sizeof(float));
        dev_upload(cache->d, to + n_k * sizeof(float), bases->v.up + h * n_v, n_v * sizeof(float));
        to += head_bytes(cache, layer, bases);
    }
}

void kv_view_send_bases(kv_cache *cache)
{
    for (uint32_t c = 0; kv_codecs[c] != NULL; c++) {
        for (uint32_t l = 0; has_bases(cache, c) && l < cache->n_layers; l++)
            send_layer(cache, c, l);
    }
}

void kv_view_aim_layout(const kv_cache *cache, uint32_t page_class, attn_layout *layout)
{
    const kv_head_shape *shape = &cache->layout[page_class].shape;
    if (layout->coding != ATTN_LOW) return;
    if (cache->class_codec[page_class]->has_own_bases) {
        const kv_svd_rows rows = kv_svd_find_rows(shape);
        layout->basis_type = shape->type;
        layout->k_basis_offset = rows.k_offset;
        layout->v_basis_offset = rows.v_offset;
    } else {
        layout->basis_type = DTYPE_F32;
        layout->v_basis_offset = (uint64_t)shape->k_rank * shape->k_dim * sizeof(float);
    }
}

static uint32_t index_of(const kv_codec *codec)
{
    uint32_t c = 0;
    while (kv_codecs[c] != codec)
        c++;
    return c;
}

const uint8_t *kv_view_basis(const kv_cache *cache, const kv_page_place *at)
{
    const kv_codec *codec = kv_codec_of(cache, at->page);
    const kv_view *view = cache->view;
    if (!kv_is_coded_page(cache, at->page) || !kv_codec_is_low_rank(codec)) return NULL;
    if (codec->has_own_bases)
        return view->device.pool +
               kv_pool_offset(cache->pool, kv_pool_leans_on(cache->pool, at->page));
    return view->device.bases + layer_at(cache, index_of(codec), at->layer) +
           at->head * head_bytes(cache, at->layer, codec->bases(&cache->layer[at->layer]));
}

bool kv_view_has_low(const kv_cache *cache)
{
    bool has = false;
    for (uint32_t c = 0; c < cache->n_classes; c++)
        has = has || cache->layout[c].coefficients.n_slots > 0;
    return has;
}
