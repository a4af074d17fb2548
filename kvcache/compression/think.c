/* kvcache/compression/think.c - half of the channels of the keys, by what recent queries make of them.
 *
 * ThinK (Xu et al., arXiv 2407.21018): a channel of keys is worth
 *     (mean over recent queries of q_c^2) (mean over the entries of k_c^2),
 * of which the d / 2 largest stay; recent are the last 32 of all heads of the group. Unlike there each page
 * chooses for itself, with the queries that are recent when it is sealed: of the end of the prompt for its
 * pages, of the present for those that leave the ring later. Without queries (q_norm of kv_seal_args is
 * NULL: the sequence has just taken a cached prefix, or was cut) all count as alike, and the channels of
 * the largest magnitude stay. Values stay whole.
 *
 * Of a raw page of 32 slots, 128 channels and bf16 (16384 bytes): keys 4096, values 8192, a bit per channel
 * of both 32; together 12352 with the rounding to cache lines, 0.754. */
#include "kvcache/compression/kept.h"

enum { WINDOW = 32 };

static const kv_kept_shares SHARES = {.k_dropped = 0.5, .v_dropped = 0};

static err_t layout_think(const kv_head_shape *shape, uint32_t page_tokens, kv_page_layout *out)
{
    return kv_kept_layout(&SHARES, shape, page_tokens, out);
}

static void seal_think(const kv_seal_args *args)
{
    static const double all[ATTN_CODED_DIM_MAX] = {0};
    double score[ATTN_CODED_DIM_MAX];
    kv_kept_energy(args, true, score);
    for (uint32_t c = 0; c < args->layout->shape.k_dim && args->q_norm != NULL; c++)
        score[c] *= (double)args->q_norm[c];
    kv_kept_seal(args, score, all);
}

extern const kv_codec kv_codec_think;
const kv_codec kv_codec_think = {
    .name = "think",
    .is_exact = false,
    .n_queries = WINDOW,
    .layout = layout_think,
    .seal = seal_think,
    .load = kv_kept_load,
};
