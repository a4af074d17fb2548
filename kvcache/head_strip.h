/* kvcache/head_strip.h - where the keys and values of one head lie, wherever they lie.
 *
 * A strip holds n_slots keys of one (layer, KV head), one after the other, and then their values:
 *
 *   | k 0 | k 1 | ... | k n-1 | pad | v 0 | v 1 | ... | v n-1 | pad |
 *     ^ base                          ^ base + v_offset_bytes
 *
 * Staging, ring and unencoded pages are strips of different lengths with rows of the same type, so
 * that an entry moves between them by copying its bits and attention reads all three alike. With
 * v_in_k (MLA) a value is the first channels of its key: v_offset is 0 and nothing else is stored.
 *
 * kv_strips describes one strip per (layer, head) inside one allocation. */
#ifndef KVCACHE_HEAD_STRIP_H
#define KVCACHE_HEAD_STRIP_H

#include "base/arena.h"
#include "kernels/attention.h"

#include <stdbool.h>

typedef struct kv_head_shape {
    uint32_t k_dim, v_dim;
    bool v_in_k;
    dtype type;              /* f32 or bf16 */
    uint32_t k_rank, v_rank; /* coefficients under a low-rank codec, else 0 */
} kv_head_shape;

typedef struct kv_strip {
    uint32_t n_slots;
    uint32_t k_stride_bytes; /* of one key */
    uint32_t v_stride_bytes; /* between values */
    uint32_t v_copy_bytes;   /* of one value if it is stored by itself, else 0 */
    size_t v_offset_bytes;
    size_t strip_bytes; /* a multiple of KV_STRIP_ALIGN */
} kv_strip;

enum { KV_STRIP_ALIGN = 64 }; /* keys and values begin on a cache line */

/* ERR_OVERFLOW if the sizes do not fit. */
err_t kv_strip_init(const kv_head_shape *shape, uint32_t n_slots, kv_strip *out) MUST_CHECK;

/* Slots [first_slot, first_slot + n_slots) as attention reads them; all of them live. */
attn_span kv_strip_span(const kv_strip *strip, const uint8_t *base, uint32_t first_slot,
                        uint32_t n_slots);

/* Copies all slots of `from` (no gaps in it, rows as in `strip`) to first_slot and up. */
void kv_strip_write(const kv_strip *strip, uint8_t *base, uint32_t first_slot,
                    const attn_span *from);

/* Writes a key, or a value that is stored by itself, rounded to the type of the shape; what is larger than
 * its numbers becomes the largest. */
void kv_strip_put_k(const kv_strip *strip, uint8_t *base, uint32_t slot, const kv_head_shape *shape,
                    const float *k);
void kv_strip_put_v(const kv_strip *strip, uint8_t *base, uint32_t slot, const kv_head_shape *shape,
                    const float *v);

/* The part [first, first + n) of a span's slots. */
attn_span kv_span_cut(const attn_span *span, uint32_t first, uint32_t n);

/* Strips of n_slots for every head of every layer. The arrays lie in the arena of their owner. */
typedef struct kv_strips {
    uint32_t n_layers;
    kv_strip *strip;     /* [n_layers] */
    size_t *layer_bytes; /* [n_layers]: where the layer's first head begins */
    size_t total_bytes;
} kv_strips;

/* heads[l] is the shape of layer l, n_kv_heads[l] their number. While the arena only measures, no
 * array is written. */
err_t kv_strips_init(arena *a, const kv_head_shape *heads, const uint32_t *n_kv_heads,
                     uint32_t n_layers, uint32_t n_slots, kv_strips *out) MUST_CHECK;

static inline uint8_t *kv_strips_at(const kv_strips *strips, uint8_t *block, uint32_t layer,
                                    uint32_t head)
{
    return block + strips->layer_bytes[layer] + head * strips->strip[layer].strip_bytes;
}

#endif
