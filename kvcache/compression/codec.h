/* kvcache/compression/codec.h - how the entries of a full page are written down.
 *
 * A codec fixes the bytes of a page, which make its size class in the pool, encodes a block when it
 * is sealed, and gives entries back to a ring when a sequence is cut or a prefix is shared. */
#ifndef KVCACHE_COMPRESSION_CODEC_H
#define KVCACHE_COMPRESSION_CODEC_H

#include "kvcache/head_strip.h"

typedef struct kv_page_layout {
    size_t page_bytes;
    kv_strip strip; /* where attention finds slot i, if the codec reads_raw */
} kv_page_layout;

typedef struct kv_seal_args {
    const kv_page_layout *layout;
    const attn_span *spans; /* [n_spans]: the block's entries in position order, cache type */
    uint32_t n_spans;
    uint8_t *page; /* out, [page_bytes] */
} kv_seal_args;

typedef struct kv_codec {
    const char *name;
    bool is_exact;  /* an entry comes back with its bits */
    bool reads_raw; /* attention reads the page as a strip of the cache type */

    /* At open, once per head shape. ERR_OVERFLOW; ERR_UNSUPPORTED for shapes it cannot encode. */
    err_t (*layout)(const kv_head_shape *shape, uint32_t page_tokens,
                    kv_page_layout *out) MUST_CHECK;

    /* When a page gets no more slots, once. Called from any worker between steps; different pages
     * at the same time; must not block, allocate or fail. */
    void (*seal)(const kv_seal_args *args);

    /* Slots [0, n_slots) of a sealed page in the cache type. Between steps. The span is valid as
     * long as the page is held and, for codecs that decode, until the next call. */
    attn_span (*load)(const kv_page_layout *layout, const uint8_t *page, uint32_t n_slots);
} kv_codec;

#define KV_CODEC_LIST(X) X(none)

extern const kv_codec *const kv_codecs[]; /* ends with NULL */
extern const char kv_codec_names[];       /* " none ..." for messages */

const kv_codec *kv_codec_find(const char *name); /* NULL if unknown */

#endif
