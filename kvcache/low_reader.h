/* kvcache/low_reader.h - attention over pages of coefficients (compression/low_rank.h).
 *
 * Reading is linear, so no entry is ever rebuilt. With k^ = up_k^T c and v^ = up_v^T e
 *     q . k^_t = (up_k q) . c_t            sum_t p_t v^_t = up_v^T sum_t p_t e_t
 * Queries are projected once per tile; pages are then plain entries of r_k and r_v channels, which the plain
 * attention folds, in position order, into a state of their own; and at the end that state's sums are
 * projected back and merged into the other's, as partials of disjoint keys are (kernels/attention.h). What
 * is in which state depends on positions alone, so no bit depends on tiles or batches here, either. Where the
 * basis changes, the state is merged and begins anew. */
#ifndef KVCACHE_LOW_READER_H
#define KVCACHE_LOW_READER_H

#include "base/arena.h"
#include "kernels/dev.h"
#include "kvcache/compression/codec.h"

enum { KV_LOW_BLOCKS = 64 };

/* Scratch of one worker, of no bytes under other codecs. */
typedef struct kv_low_reader {
    attn_span *spans;   /* [KV_LOW_BLOCKS]: one a block */
    attn_block *blocks; /* [KV_LOW_BLOCKS] */
    uint32_t n_blocks;  /* listed and not yet folded */
    float *q;           /* [n_queries][group][k_rank] */
    float *up;          /* [v_dim]: one row of sums, projected back */
    float *floats;      /* [n_floats]: of a basis that must be expanded */
    bool has_begun;
    uint32_t basis;   /* what the pages lean on that are in the state; KV_PAGE_NONE: the model's */
    attn_state state; /* of v_rank channels */
    attn_query query; /* in the space of coefficients */
    const float *v_up;
} kv_low_reader;

typedef struct kv_low_sizes {
    size_t n_rows; /* (query, head) of the largest tile */
    size_t n_floats;
    uint32_t k_rank, v_rank, v_dim;
} kv_low_sizes;

/* Run over a measuring and then a real arena. */
void kv_low_place(arena *a, const kv_low_sizes *sizes, kv_low_reader *out);

/* Pages of one basis begin, in a tile: projects its queries. Values without channels (v_dim 0) stay without. */
void kv_low_begin(kv_low_reader *low, const kv_head_shape *shape, const kv_head_bases *bases,
                  const attn_query *query);

/* Lists the entries of one page; the caller folds when KV_LOW_BLOCKS are listed. */
void kv_low_add(kv_low_reader *low, const attn_span *span);
void kv_low_fold(kv_low_reader *low, const dev_ops *ops);

/* Instead of a fold: the mass of the listed entries, as of attn_mass_args. */
void kv_low_add_mass(kv_low_reader *low, const dev_ops *ops, const float *lse, float *mass);

/* Adds what has been folded since begin, or the last merge, to the state of the tile's `query`. */
void kv_low_merge(kv_low_reader *low, const attn_query *query, attn_state *into);

#endif
