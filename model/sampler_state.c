/* model/sampler_state.c - the tokens that a sequence has seen, for the penalties of sampler.h.
 *
 * An open-addressing table from token to its counts, twice as large as the number of tokens that it
 * may hold, allocated at open: a step allocates nothing, and a penalty costs the distinct tokens, not
 * the vocabulary. With every penalty off nothing is noted and the table has one place. */
#include "model/sampler_state.h"

#include "base/check.h"

#include <stdlib.h>

typedef struct seen {
    uint32_t token; /* NO_TOKEN: a free place */
    uint32_t n_output;
    bool in_prompt;
} seen;

enum { NO_TOKEN = UINT32_MAX };

struct sampler_state {
    bool is_off; /* no penalty would read it */
    uint32_t n_tokens, n_tokens_max;
    size_t mask; /* places - 1; places are a power of two */
    seen place[];
};

err_t sampler_state_open(const sampler_params *params, uint32_t n_tokens_max, sampler_state **out)
{
    const bool is_off = params->repetition_penalty == 1.0f && params->presence_penalty == 0.0f &&
                        params->frequency_penalty == 0.0f;
    size_t n_places = 1;
    while (!is_off && n_places < 2 * (size_t)n_tokens_max)
        n_places *= 2;
    size_t bytes;
    *out = NULL;
    TRY(size_mul(n_places, sizeof(seen), &bytes));
    TRY(size_add(bytes, sizeof(sampler_state), &bytes));
    sampler_state *const s = malloc(bytes);
    if (s == NULL) return ERR_NO_MEMORY;
    s->is_off = is_off;
    s->n_tokens = 0;
    s->n_tokens_max = n_tokens_max;
    s->mask = n_places - 1;
    for (size_t i = 0; i < n_places; i++)
        s->place[i] = (seen){.token = (uint32_t)NO_TOKEN};
    *out = s;
    return ERR_OK;
}

void sampler_state_close(sampler_state *s)
{
    free(s);
}

/* The token's place; a fresh one if it has none. */
static seen *get_place(sampler_state *s, uint32_t token)
{
    assert(token != (uint32_t)NO_TOKEN);
    size_t i = ((size_t)token * 0x9e3779b97f4a7c15u >> 20) & s->mask;
    while (s->place[i].token != token) {
        if (s->place[i].token == (uint32_t)NO_TOKEN) {
            assert(s->n_tokens < s->n_tokens_max);
            s->n_tokens++;
            s->place[i].token = token;
            break;
        }
        i = (i + 1) & s->mask;
    }
    return &s->place[i];
}

void sampler_note_prompt(sampler_state *s, const uint32_t *tokens, size_t n_tokens)
{
    if (s->is_off) return;
    for (size_t i = 0; i < n_tokens; i++)
        get_place(s, tokens[i])->in_prompt = true;
}

void sampler_note_output(sampler_state *s, uint32_t token)
{
    if (s->is_off) return;
    get_place(s, token)->n_output++;
}

void sampler_state_reset_output(sampler_state *s)
{
    for (size_t i = 0; i <= s->mask; i++)
        s->place[i].n_output = 0;
}

static bool is_penalized(const seen *p, uint32_t n_vocab)
{
    return p->token < n_vocab && (p->n_output > 0 || p->in_prompt);
}

/* What the number of its occurrences in the output costs. */
static float count_penalty(const sampler_params *params, const seen *p)
{
    if (p->n_output == 0) return 0;
    return params->frequency_penalty * (float)p->n_output + params->presence_penalty;
}

/* As vLLM: the repetition penalty divides positive and multiplies negative logits. */
void sampler_state_apply(const sampler_state *s, const sampler_params *params, float *logits,
                         uint32_t n_vocab)
{
    if (s->is_off) return;
    for (size_t i = 0; i <= s->mask; i++) {
        const seen *const p = &s->place[i];
        if (!is_penalized(p, n_vocab)) continue;
        const float x = logits[p->token];
        logits[p->token] =
            (x > 0 ? x / params->repetition_penalty : x * params->repetition_penalty) -
            count_penalty(params, p);
    }
}

uint32_t sampler_state_n_tokens(const sampler_state *s)
{
    return s->n_tokens;
}

uint32_t sampler_state_lower(const sampler_state *s, const sampler_params *params, uint32_t n_vocab,
                             sample_edit *edits)
{
    uint32_t n = 0;
    if (s->is_off) return 0;
    for (size_t i = 0; i <= s->mask; i++) {
        const seen *const p = &s->place[i];
        if (!is_penalized(p, n_vocab)) continue;
        edits[n++] = (sample_edit){.token = p->token,
                                   .kind = SAMPLE_PENALIZE,
                                   .by = params->repetition_penalty,
                                   .minus = count_penalty(params, p)};
    }
    return n;
}
