/* kvcache/compression/prune.c - the strongest half of the channels of keys, three quarters of values'.
 *
 * A channel of keys is worth its energy over the entries of the page, sum_t k_tc^2; one of values
 *     (sum_t v_tc^2) sum_i W_ic^2,
 * where W_ic is what the layer's output projection makes of it, of all query heads that read it
 * (v_weight of kv_seal_args; without it all are alike). No queries are asked: for that see think.c.
 * The PiKV paper (arXiv 2508.06526) prunes channels by a learned importance and gives as its error the
 * energy of those that are left out, which is what is made small here. A value has no channels that every
 * reader leaves alone, as a key has, so fewer of them go.
 *
 * Of a raw page of 32 slots, 128 channels and bf16 (16384 bytes): keys 4096, values 6144, a bit per channel
 * of both 32; together 10304 with the rounding to cache lines, 0.629. */
#include "kvcache/compression/kept.h"

static const kv_kept_shares SHARES = {.k_dropped = 0.5, .v_dropped = 0.25};

static err_t layout_prune(const kv_head_shape *shape, uint32_t page_tokens, kv_page_layout *out)
{
    return kv_kept_layout(&SHARES, shape, page_tokens, out);
}

static void seal_prune(const kv_seal_args *args)
{
    double k_score[ATTN_CODED_DIM_MAX], v_score[ATTN_CODED_DIM_MAX];
    kv_kept_energy(args, true, k_score);
    kv_kept_energy(args, false, v_score);
    for (uint32_t c = 0; c < args->layout->shape.v_dim && args->v_weight != NULL; c++)
        v_score[c] *= (double)args->v_weight[c];
    kv_kept_seal(args, k_score, v_score);
}

extern const kv_codec kv_codec_prune;
const kv_codec kv_codec_prune = {
    .name = "prune",
    .is_exact = false,
    .weighs_values = true,
    .layout = layout_prune,
    .seal = seal_prune,
    .load = kv_kept_load,
};
