/* kvcache/compression/lora_plus.c - as lora, around a mean, and keys keep their length; see low_rank.h.
 *
 * A basis of rank r has r - 1 directions and the mean b of the text's entries, last in `up`; its last row
 * of `down` is not used. With x' = up^T down (x - b) + b
 *     keys     c = (g down (k - b), g),  g = |k| / |k'|:   k^ = g k'
 *     values   c = (down (v - b), 1):                      v^ = v'
 * The mean is then one more direction to whoever reads, and g costs nothing. A projection shortens what it
 * projects; g gives scores their scale back (the magnitude of DoRA, Liu et al., arXiv 2402.09353).
 *
 * Bytes are those of lora. */
#include "kvcache/compression/low_rank.h"

#include <math.h>

static const kv_bases *bases_plus(const kv_layer_shape *layer)
{
    return &layer->lora_plus;
}

static double squares(const float *x, uint32_t n)
{
    double sum = 0;
    for (uint32_t c = 0; c < n; c++)
        sum += (double)x[c] * (double)x[c];
    return sum;
}

/* The factor that gives what c stands for the length of x; 1 if there is none. */
static float stretch(const kv_low_rank_side *side, const float *x, const float *c)
{
    float back[ATTN_CODED_DIM_MAX] = {0};
    kv_low_rank_add_up(side->up, side->rank, side->dim, c, back);
    const double g = sqrt(squares(x, side->dim) / squares(back, side->dim));
    return isfinite(g) ? (float)g : 1;
}

static void encode(const kv_low_rank_side *side, const float *x, float *c)
{
    float rest[ATTN_CODED_DIM_MAX];
    const uint32_t last = side->rank - 1;
    const float *mean = side->up + (size_t)last * side->dim;
    for (uint32_t i = 0; i < side->dim; i++)
        rest[i] = x[i] - mean[i];
    kv_low_rank_down(side->down, last, side->dim, rest, c);
    c[last] = 1;
    const float g = side->is_keys ? stretch(side, x, c) : 1;
    for (uint32_t r = 0; r < side->rank; r++)
        c[r] *= g;
}

static void seal_plus(const kv_seal_args *args)
{
    kv_low_rank_seal(args, encode);
}

extern const kv_codec kv_codec_lora_plus;
const kv_codec kv_codec_lora_plus = {
    .name = "lora_plus",
    .is_exact = false,
    .bases = bases_plus,
    .layout = kv_low_rank_layout,
    .seal = seal_plus,
    .load = kv_low_rank_load,
};
