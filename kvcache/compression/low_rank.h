/* kvcache/compression/low_rank.h - what the low-rank codecs share: pages of coefficients.
 *
 * An entry x of d channels is kept as r numbers c = down x, and stands for x^ = up^T c. Both matrices are
 * made offline from the keys (after RoPE, as they are cached) and values of a text, per layer and head, by
 * tools/calibrate_kv.py: a linear autoencoder, chosen so that what is lost of scores and of outputs is as
 * small as it can be on that text. So a page needs no basis of its own, and costs r / d.
 * (PCA of keys and values: Palu, Chang et al., arXiv 2407.21118; the names lora and lora_plus and the affine
 * form are of the PiKV paper, arXiv 2508.06526. There is nothing of an adapter's training in it.)
 *
 * A page is a strip of r_k and r_v numbers in the cache type, and attention stays in the space of the
 * coefficients: see kvcache/low_reader.h. */
#ifndef KVCACHE_COMPRESSION_LOW_RANK_H
#define KVCACHE_COMPRESSION_LOW_RANK_H

#include "kvcache/compression/codec.h"

err_t kv_low_rank_layout(const kv_head_shape *shape, uint32_t page_tokens,
                         kv_page_layout *out) MUST_CHECK;

/* One side of one head. */
typedef struct kv_low_rank_side {
    const float *down, *up; /* [rank][dim] */
    uint32_t rank, dim;
    bool is_keys;
} kv_low_rank_side;

/* Seals a page whose rows are what `encode` makes of the entries: c [rank] of x [dim]. */
typedef void kv_low_rank_encode(const kv_low_rank_side *side, const float *x, float *c);
void kv_low_rank_seal(const kv_seal_args *args, kv_low_rank_encode *encode);

attn_span kv_low_rank_load(const kv_load_args *args);

/* A number for the content of a layer's bases, the same in every run; hash_init was called. */
uint64_t kv_low_rank_mark(const kv_layer_shape *layer, const kv_bases *bases);

/* The products, in an order of terms that depends on the shape alone.
 * out[r] = sum_c m[r][c] x[c]. */
void kv_low_rank_down(const float *m, uint32_t rank, uint32_t dim, const float *x, float *out);
/* out[c] += sum_r y[r] m[r][c]. */
void kv_low_rank_add_up(const float *m, uint32_t rank, uint32_t dim, const float *y, float *out);

#endif
