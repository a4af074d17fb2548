/* model/sampler_state.h - between sampler.c and sampler_state.c. */
#ifndef MODEL_SAMPLER_STATE_H
#define MODEL_SAMPLER_STATE_H

#include "model/sampler.h"

/* Applies repetition, frequency and presence penalties in place. */
void sampler_state_apply(const sampler_state *s, const sampler_params *params, float *logits,
                         uint32_t n_vocab);

#endif
