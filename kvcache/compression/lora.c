/* kvcache/compression/lora.c - coefficients in a basis per layer and head, made offline; see low_rank.h.
 *
 *     c = down x,   x^ = up^T c
 *
 * Of a raw page of 32 slots, 128 channels and bf16 (16384 bytes), with the r = d / 2 that the tool takes
 * unless it is told otherwise: coefficients 8192, 0.5. */
#include "kvcache/compression/low_rank.h"

static const kv_bases *bases_lora(const kv_layer_shape *layer)
{
    return &layer->lora;
}

static void encode(const kv_low_rank_side *side, const float *x, float *c)
{
    kv_low_rank_down(side->down, side->rank, side->dim, x, c);
}

static void seal_lora(const kv_seal_args *args)
{
    kv_low_rank_seal(args, encode);
}

extern const kv_codec kv_codec_lora;
const kv_codec kv_codec_lora = {
    .name = "lora",
    .is_exact = false,
    .bases = bases_lora,
    .layout = kv_low_rank_layout,
    .seal = seal_lora,
    .load = kv_low_rank_load,
};
