/* kvcache/compression/codec.h - how the entries of a full page are written down.
 *
 * A codec fixes the bytes of an encoded page, which make a size class in the pool, encodes a block once
 * (when: see commit.h), and decodes entries again when a sequence is cut or a prefix is shared.
 * Attention reads the page as it lies: what it must know is in the span (kernels/attention.h).
 *
 * `none` is the one exact codec. Its pages are strips of the cache type, and they are also what blocks
 * lie in under every other codec until they are encoded. */
#ifndef KVCACHE_COMPRESSION_CODEC_H
#define KVCACHE_COMPRESSION_CODEC_H

#include "kernels/encode_pages.h"
#include "kvcache/head_strip.h"
#include "kvcache/kv_shape.h"

typedef struct kv_page_layout {
    size_t page_bytes;
    kv_head_shape shape;
    kv_strip strip; /* entries of a page in the cache type: `none`'s page, or what load writes */
    attn_coding coding;
    /* encoded pages: | k grid | k codes | v grid | v codes |, a row of codes per slot; see attn_coding */
    uint32_t k_row_bytes, v_row_bytes;
    uint32_t v_group, v_grid_row_bytes;
    uint32_t k_grid_bytes, v_grid_bytes; /* one per page; values: 0 if each slot has its own */
    size_t k_offset, v_grid_offset, v_offset;
    kv_strip
        coefficients; /* pages of low rank are strips of k_rank and v_rank numbers; else 0 slots */
} kv_page_layout;

/* The bases of one head, each [rank][dim]; all NULL but for low-rank codecs. */
typedef struct kv_head_bases {
    const float *k_down, *k_up, *v_down, *v_up;
} kv_head_bases;

typedef struct kv_seal_args {
    const kv_page_layout *layout;
    const attn_span *spans; /* [n_spans]: the block's entries in position order, cache type */
    uint32_t n_spans;
    uint8_t *page; /* out, [page_bytes] */
    /* Either may be NULL: not known. */
    const float *q_norm;   /* [k_dim]: sum of q_c^2 over the latest queries of the head's group */
    const float *v_weight; /* [v_dim]: what the output projection makes of a channel */
    kv_head_bases bases;
} kv_seal_args;

typedef struct kv_load_args {
    const kv_page_layout *layout;
    const uint8_t *page;
    uint32_t n_slots; /* the first of the page */
    uint8_t *scratch; /* [strip.strip_bytes] */
    kv_head_bases bases;
} kv_load_args;

typedef struct kv_codec {
    const char *name;
    bool is_exact;      /* an entry comes back with its bits */
    bool weighs_values; /* asks for v_weight when it seals */
    uint32_t n_queries; /* asks for q_norm over at most so many queries; 0: does not */

    /* The bases that a low-rank codec uses of a layer; NULL for all others. */
    const kv_bases *(*bases)(const kv_layer_shape *layer);
    bool has_own_bases; /* low-rank too, but sequences make them themselves; kvcache/basis.h */

    /* Has no pages of its own but those of others, by the heat of each: compression/pikv_rule.h and
     * kvcache/heat.h. Its functions below are the hottest one's. */
    bool is_mixed;

    /* At open, once per head shape. ERR_OVERFLOW; ERR_UNSUPPORTED for shapes that it cannot encode or
     * whose pages it does not make smaller. */
    err_t (*layout)(const kv_head_shape *shape, uint32_t page_tokens,
                    kv_page_layout *out) MUST_CHECK;

    /* Writes the page, once. Called from any worker between steps; different pages at the same time;
     * must not block, allocate or fail. The same entries give the same bytes. */
    void (*seal)(const kv_seal_args *args);

    /* Slots [0, n_slots) of a sealed page in the cache type. Between steps. The span lies in `scratch`,
     * or in the page if nothing has to be decoded. */
    attn_span (*load)(const kv_load_args *args);
} kv_codec;

#define KV_CODEC_LIST(X) \
    X(none)              \
    X(fp8)               \
    X(int8) X(int4) X(int2) X(prune) X(think) X(lora) X(lora_plus) X(svd) X(pikv) X(paper_fastv)

extern const kv_codec *const kv_codecs[]; /* ends with NULL */
extern const char kv_codec_names[];       /* " none fp8 ..." for messages */
extern const kv_codec kv_codec_none;

/* Are its pages coefficients? */
static inline bool kv_codec_is_low_rank(const kv_codec *codec)
{
    return codec->bases != NULL || codec->has_own_bases;
}

/* Does it encode what lies in raw pages, those of a step included? Others encode the step's at once. */
static inline bool kv_codec_waits(const kv_codec *codec)
{
    return codec->has_own_bases || codec->is_mixed;
}

const kv_codec *kv_codec_find(const char *name); /* NULL if unknown */

/* Slots [0, n_slots) of a page as attention reads them; all of them live. Of coefficients: plain rows of
 * k_rank and v_rank elements, which kvcache/low_reader.h knows to read. */
attn_span kv_page_span(const kv_page_layout *layout, const uint8_t *page, uint32_t n_slots);

/* The same for a device. */
attn_layout kv_page_attn_layout(const kv_page_layout *layout);

/* What kernels/encode_pages.h makes of entries; not of pages of coefficients or kept channels. */
encode_kind kv_page_kind(const kv_page_layout *layout);
bool kv_has_kind(const kv_page_layout *layout);

/* Bytes that attention reads of n_slots of a page. */
uint64_t kv_page_read_bytes(const kv_page_layout *layout, uint32_t n_slots);

/* ---- for codecs ---- */

/* Appends a part of `bytes` to the page; parts begin at multiples of 4. ERR_OVERFLOW. */
err_t kv_page_add_part(kv_page_layout *layout, size_t bytes, size_t *offset) MUST_CHECK;

/* Rounds the page up to whole cache lines. ERR_UNSUPPORTED if it is no smaller than a raw one. */
err_t kv_page_finish(kv_page_layout *layout) MUST_CHECK;

#endif
