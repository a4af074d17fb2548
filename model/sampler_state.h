/* model/sampler_state.h - between sampler.c and sampler_state.c. */
#ifndef MODEL_SAMPLER_STATE_H
#define MODEL_SAMPLER_STATE_H

#include "model/sampler.h"

/* Applies repetition, frequency and presence penalties in place. */
void sampler_state_apply(const sampler_state *s, const sampler_params *params, float *logits,
                         uint32_t n_vocab);

/* How many tokens are in it: no more edits are made of it. */
uint32_t sampler_state_n_tokens(const sampler_state *s);

/* The same as edits of a device's logits; returns their number. */
uint32_t sampler_state_lower(const sampler_state *s, const sampler_params *params, uint32_t n_vocab,
                             sample_edit *edits);

#endif
