/* model/rope.c - see rope.h. In float32 where transformers is, whose numbers depend on how angles are rounded. */
#include "model/rope.h"

#include <assert.h>
#include <math.h>

static const double two_pi = 6.283185307179586;

static void fill_plain(const rope_config *r, double theta, float *freq)
{
    for (uint32_t i = 0; i < r->n_rotated / 2; i++)
        freq[i] = 1.0f / powf((float)theta, (float)(2 * i) / (float)r->n_rotated);
}

static void fill_dynamic(const rope_config *r, uint32_t n_positions, float *freq)
{
    const double dim = r->n_rotated,
                 most = n_positions > r->n_original ? n_positions : r->n_original;
    const double stretch = (double)r->factor * most / r->n_original - ((double)r->factor - 1);
    fill_plain(r, dim > 2 ? (double)r->theta * pow(stretch, dim / (dim - 2)) : (double)r->theta,
               freq);
}

static void fill_llama3(const rope_config *r, float *freq)
{
    const float low = (float)r->n_original / r->low_freq,
                high = (float)r->n_original / r->high_freq;
    fill_plain(r, (double)r->theta, freq);
    for (uint32_t i = 0; i < r->n_rotated / 2; i++) {
        const float wave = (float)(two_pi / (double)freq[i]);
        if (wave > low) {
            freq[i] /= r->factor;
        } else if (wave >= high) {
            const float part =
                ((float)r->n_original / wave - r->low_freq) / (r->high_freq - r->low_freq);
            freq[i] = (1 - part) * freq[i] / r->factor + part * freq[i];
        }
    }
}

/* The pair that makes so many turns over the original positions. */
static double pair_of_turns(const rope_config *r, double n_turns)
{
    return r->n_rotated * log(r->n_original / (n_turns * two_pi)) / (2 * log((double)r->theta));
}

static void fill_yarn(const rope_config *r, float *freq)
{
    double low = pair_of_turns(r, (double)r->beta_fast),
           high = pair_of_turns(r, (double)r->beta_slow);
    if (!r->is_range_exact) {
        low = floor(low);
        high = ceil(high);
    }
    low = fmax(low, 0);
    high = fmin(high, r->n_rotated - 1.0);
    if (low == high) high += 0.001;
    fill_plain(r, (double)r->theta, freq);
    for (uint32_t i = 0; i < r->n_rotated / 2; i++) {
        const float ramp = fminf(fmaxf(((float)i - (float)low) / (float)(high - low), 0), 1);
        const float kept = 1 - ramp;
        freq[i] = freq[i] / r->factor * (1 - kept) + freq[i] * kept;
    }
}

static float yarn_scale(float factor, float mscale)
{
    return factor <= 1 ? 1 : (float)(0.1 * (double)mscale * log((double)factor) + 1.0);
}

static float scale_of_yarn(const rope_config *r)
{
    if (r->cos_scale != 0) return r->cos_scale;
    if (r->mscale != 0 && r->mscale_all != 0)
        return yarn_scale(r->factor, r->mscale) / yarn_scale(r->factor, r->mscale_all);
    return yarn_scale(r->factor, 1);
}

static float fill_longrope(const rope_config *r, bool is_long, float *freq)
{
    const float *const divisor = is_long ? r->long_factor : r->short_factor;
    const float scale = is_long ? r->long_scale : r->short_scale;
    for (uint32_t i = 0; i < r->n_rotated / 2; i++)
        freq[i] = 1.0f / (divisor[i] * powf(r->theta, (float)(2 * i) / (float)r->n_rotated));
    if (scale != 0) return scale;
    if (r->cos_scale != 0) return r->cos_scale;
    return r->factor <= 1 ? 1
                          : (float)sqrt(1 + log((double)r->factor) / log((double)r->n_original));
}

float rope_fill(const rope_config *rope, uint32_t n_positions, float *freq)
{
    switch (rope->kind) {
    case ROPE_LINEAR:
        fill_plain(rope, (double)rope->theta, freq);
        for (uint32_t i = 0; i < rope->n_rotated / 2; i++)
            freq[i] /= rope->factor;
        return 1;
    case ROPE_DYNAMIC: fill_dynamic(rope, n_positions, freq); return 1;
    case ROPE_LLAMA3: fill_llama3(rope, freq); return 1;
    case ROPE_YARN: fill_yarn(rope, freq); return scale_of_yarn(rope);
    case ROPE_LONGROPE: return fill_longrope(rope, n_positions > rope->n_original, freq);
    default:
        assert(rope->kind == ROPE_PLAIN);
        fill_plain(rope, (double)rope->theta, freq);
        return 1;
    }
}
