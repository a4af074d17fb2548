/* model/rope.h - rotary positions: how fast each pair of channels turns, with the scalings that stretch them.
 *
 * linear    all frequencies divided by `factor` (Chen et al., arXiv 2306.15595)
 * dynamic   NTK: a larger base behind n_original positions (bloc97, 2023)
 * llama3    low frequencies divided, high ones kept, between them a blend (Llama 3.1)
 * yarn      a ramp between both and a factor on cos and sin (Peng et al., arXiv 2309.00071)
 * longrope  a divisor for each frequency, one set for short and one for long contexts (Ding et al., arXiv 2402.13753)
 *
 * transformers lets dynamic and longrope follow the length of the sequence so far. Keys that are cached cannot be
 * turned again, so here, as in vLLM, the choice is made once for the positions that the model serves
 * (model_options.n_positions_max): dynamic takes the base that transformers has at that length, and longrope the long
 * factors if it serves more than n_original positions. Up to n_original served positions both are what transformers
 * computes; beyond, it would agree for a sequence of just that length. Of longrope's two scales on cos and sin
 * (short_mscale, long_mscale of Phi-3.5-MoE) the one of the chosen factors holds. */
#ifndef MODEL_ROPE_H
#define MODEL_ROPE_H

#include <stdbool.h>
#include <stdint.h>

enum { ROPE_PAIRS_MAX = 256 };

typedef enum rope_kind {
    ROPE_PLAIN,
    ROPE_LINEAR,
    ROPE_DYNAMIC,
    ROPE_LLAMA3,
    ROPE_YARN,
    ROPE_LONGROPE,
    ROPE_KINDS
} rope_kind;

typedef struct rope_config {
    rope_kind kind;
    float theta;
    uint32_t n_rotated; /* channels of a head that turn: even */
    float factor;
    uint32_t n_original;           /* positions before the stretch; of all but plain and linear */
    float low_freq, high_freq;     /* llama3: low_freq_factor, high_freq_factor */
    float beta_fast, beta_slow;    /* yarn */
    bool is_range_exact;           /* yarn: truncate is false */
    float cos_scale;               /* yarn, longrope: on cos and sin; 0: from `factor` */
    float mscale, mscale_all;      /* yarn: both set: the scale from them */
    float short_scale, long_scale; /* longrope: instead of cos_scale where not 0 */
    float short_factor[ROPE_PAIRS_MAX], long_factor[ROPE_PAIRS_MAX]; /* longrope: [n_rotated / 2] */
} rope_config;

/* freq [n_rotated / 2]: radians per position, for a model that serves n_positions. Returns the factor on cos and
 * sin. */
float rope_fill(const rope_config *rope, uint32_t n_positions, float *freq);

#endif
