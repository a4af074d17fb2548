/* model/sampler.h - from logits to a token: what a request wants of kernels/sample.h.
 *
 * Order of steps, as vLLM has it: raw log-probabilities are taken first (those are what `logprobs`
 * reports); then logit bias, bans (min_tokens, allowed mask), repetition / presence / frequency
 * penalties, temperature, top-k, min-p, top-p, and one draw by inverse transform. Randomness is a function
 * of (seed, choice, position) only. temperature 0 (below 1e-5): the largest adjusted logit, ties to the
 * lower id.
 *
 * sampler_run does it on the host; sampler_lower says it for a device that has the logits.
 *
 * Threads: a sampler_state belongs to one sequence; sampler_run is pure but for it and its scratch,
 * so rows of one step are sampled in parallel. No allocation after sampler_state_open. */
#ifndef MODEL_SAMPLER_H
#define MODEL_SAMPLER_H

#include "base/error.h"
#include "kernels/sample.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct sampler_bias {
    uint32_t token;
    float bias;
} sampler_bias;

enum { SAMPLER_LOGPROBS_MAX = SAMPLE_LOGPROBS_MAX };

typedef struct sampler_params {
    float temperature;                         /* >= 0 */
    float top_p;                               /* (0, 1] */
    float min_p;                               /* [0, 1] */
    uint32_t top_k;                            /* 0: off */
    float repetition_penalty;                  /* > 0; 1: off; over prompt and output tokens */
    float presence_penalty, frequency_penalty; /* over output tokens */
    const sampler_bias *bias;                  /* [n_bias], no token twice; borrowed */
    uint32_t n_bias;
    const uint64_t
        *allowed; /* bit per token of the vocabulary, or NULL: the hook for constrained output */
    uint64_t seed;
    uint32_t choice;    /* index among the request's choices: part of the random stream */
    int32_t n_logprobs; /* top entries wanted; -1: none at all, 0: the chosen token's alone */
} sampler_params;

typedef sample_entry sampler_entry;
typedef sample_result sampler_result;

/* Which tokens a sequence has seen, for the penalties: room for `n_tokens_max` distinct ones. */
typedef struct sampler_state sampler_state;
err_t sampler_state_open(const sampler_params *params, uint32_t n_tokens_max,
                         sampler_state **out) MUST_CHECK;
void sampler_state_close(sampler_state *s);
void sampler_note_prompt(sampler_state *s, const uint32_t *tokens, size_t n_tokens);
void sampler_note_output(sampler_state *s, uint32_t token);
void sampler_state_reset_output(sampler_state *s);

typedef struct sampler_input {
    float *logits; /* [n_vocab]; overwritten */
    uint32_t n_vocab;
    uint64_t position;      /* index of the token drawn, counted from the start of the output */
    const uint32_t *banned; /* ids that may not be drawn now (EOS and stop ids before min_tokens) */
    uint32_t n_banned;
    void *scratch; /* sampler_scratch_bytes(n_vocab) */
} sampler_input;
void sampler_run(const sampler_params *params, const sampler_state *state, const sampler_input *in,
                 sampler_result *out);
size_t sampler_scratch_bytes(uint32_t n_vocab);

/* The same for dev_ops.sample: all of `row` but logits_row and first_edit, and its edits. Of `in`, logits and scratch
 * are not used. False: it cannot be said so (a mask of allowed tokens, or more than n_edits_max edits), which no
 * other row has a part in. */
bool sampler_lower(const sampler_params *params, const sampler_state *state,
                   const sampler_input *in, uint32_t n_edits_max, sample_row *row,
                   sample_edit *edits);

/* Scoring of a given token (echo, prompt logprobs): raw log-probability of `token` and the top list. */
void sampler_score(const float *logits, uint32_t n_vocab, uint32_t token, int32_t n_logprobs,
                   sampler_result *out);

#endif
