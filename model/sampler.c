/* model/sampler.c - see sampler.h. What is drawn from, and how, is kernels/sample.h's. */
#include "model/sampler.h"

#include "base/check.h"
#include "base/random.h"
#include "model/sampler_state.h"

#include <math.h>

void sampler_score(const float *logits, uint32_t n_vocab, uint32_t token, int32_t n_logprobs,
                   sampler_result *out)
{
    sample_score_cpu(logits, n_vocab, token, n_logprobs, out);
}

/* ---- adjustments --------------------------------------------------------------------------------- */

typedef struct adjustment {
    const sampler_params *params;
    const sampler_state *state;
    const sampler_input *in;
} adjustment;

static void apply_bans(const sampler_params *params, const sampler_input *in)
{
    for (uint32_t i = 0; i < in->n_banned; i++) {
        if (in->banned[i] < in->n_vocab) in->logits[in->banned[i]] = -INFINITY;
    }
    if (params->allowed == NULL) return;
    for (uint32_t i = 0; i < in->n_vocab; i++) {
        if ((params->allowed[i / 64] >> (i % 64) & 1) == 0) in->logits[i] = -INFINITY;
    }
}

static void adjust_logits(const void *ctx, float *logits, uint32_t n_vocab)
{
    const adjustment *const a = ctx;
    for (uint32_t i = 0; i < a->params->n_bias; i++) {
        const sampler_bias *const bias = &a->params->bias[i];
        if (bias->token < n_vocab) logits[bias->token] += bias->bias;
    }
    apply_bans(a->params, a->in);
    if (a->state != NULL) sampler_state_apply(a->state, a->params, logits, n_vocab);
}

/* ---- draws --------------------------------------------------------------------------------------- */

/* Uniform in [0, 1), 53 bits. */
static double draw_uniform(const sampler_params *params, uint64_t position)
{
    const random_block block = random_at(params->seed, params->choice, position);
    const uint64_t bits = (uint64_t)block.word[0] << 32 | block.word[1];
    return (double)(bits >> 11) * 0x1p-53;
}

static sample_row row_of(const sampler_params *params, uint64_t position)
{
    return (sample_row){.uniform = draw_uniform(params, position),
                        .temperature = params->temperature,
                        .top_p = params->top_p,
                        .min_p = params->min_p,
                        .top_k = params->top_k,
                        .n_logprobs = params->n_logprobs};
}

size_t sampler_scratch_bytes(uint32_t n_vocab)
{
    return sample_scratch_bytes(n_vocab);
}

void sampler_run(const sampler_params *params, const sampler_state *state, const sampler_input *in,
                 sampler_result *out)
{
    const sample_row row = row_of(params, in->position);
    const adjustment by = {.params = params, .state = state, .in = in};
    const sample_one one = {.row = &row,
                            .logits = in->logits,
                            .n_vocab = in->n_vocab,
                            .edit = adjust_logits,
                            .ctx = &by,
                            .scratch = in->scratch};
    sample_one_cpu(&one, out);
}

bool sampler_lower(const sampler_params *params, const sampler_state *state,
                   const sampler_input *in, uint32_t n_edits_max, sample_row *row,
                   sample_edit *edits)
{
    const uint32_t n_seen = state != NULL ? sampler_state_n_tokens(state) : 0;
    const size_t n_most = (size_t)params->n_bias + in->n_banned + n_seen;
    uint32_t n = 0;
    if (params->allowed != NULL || n_most > n_edits_max) return false;
    for (uint32_t i = 0; i < params->n_bias; i++) {
        const sampler_bias *const bias = &params->bias[i];
        if (bias->token >= in->n_vocab) continue;
        edits[n++] = (sample_edit){.token = bias->token, .kind = SAMPLE_ADD, .by = bias->bias};
    }
    for (uint32_t i = 0; i < in->n_banned; i++) {
        if (in->banned[i] >= in->n_vocab) continue;
        edits[n++] = (sample_edit){.token = in->banned[i], .kind = SAMPLE_BAN};
    }
    if (state != NULL) n += sampler_state_lower(state, params, in->n_vocab, edits + n);
    *row = row_of(params, in->position);
    row->n_edits = n;
    return true;
}
