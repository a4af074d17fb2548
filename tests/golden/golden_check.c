/* tests/golden/golden_check.c - see golden_check.h. */
#include "tests/golden/golden_check.h"

#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static void check_row(const track *t, uint32_t position, const float *expected)
{
    const uint32_t n = t->g->n_vocab;
    const float *const logits = track_logits(t, position);
    float largest = 0;
    for (uint32_t i = 0; i < n; i++)
        largest = fmaxf(largest, fabsf(expected[i]));
    for (uint32_t i = 0; i < n; i++)
        ck_assert_msg(fabsf(logits[i] - expected[i]) <= 1e-4f * largest + 1e-6f,
                      "%s: prompt %u, position %u, token %u: %.7g is not %.7g", t->g->d->ops->name,
                      t->prompt, position, i, (double)logits[i], (double)expected[i]);
}

void golden_check_prompt_logits(const track *t)
{
    uint32_t n;
    const int32_t *const positions = golden_ids(t->g, t->prompt, "logits_pos", &n);
    const float *const expected = golden_floats(t->g, t->prompt, "logits");
    for (uint32_t i = 0; i < n; i++)
        check_row(t, (uint32_t)positions[i], expected + (size_t)i * t->g->n_vocab);
}

void golden_check_greedy(const track *t)
{
    uint32_t n;
    const int32_t *const expected = golden_ids(t->g, t->prompt, "greedy", &n);
    ck_assert(n == GOLDEN_GREEDY_TOKENS);
    ck_assert(t->n_tokens == t->n_prompt + n);
    for (uint32_t i = 0; i < n; i++)
        ck_assert_msg(t->tokens[t->n_prompt + i] == (uint32_t)expected[i],
                      "%s: prompt %u: greedy token %u: %u is not %d", t->g->d->ops->name, t->prompt,
                      i, t->tokens[t->n_prompt + i], expected[i]);
    check_row(t, t->n_done - 1, golden_floats(t->g, t->prompt, "greedy_logits_last"));
}

void golden_run_crowd(track *tracks, uint32_t n_tracks)
{
    track *pointers[GOLDEN_PROMPTS_MAX];
    bool running = true;
    for (uint32_t i = 0; i < n_tracks; i++)
        pointers[i] = &tracks[i];
    while (running) {
        uint32_t n_tokens[GOLDEN_PROMPTS_MAX] = {0};
        running = false;
        for (uint32_t i = 0; i < n_tracks; i++) {
            track *const t = &tracks[i];
            const bool is_finished = t->n_tokens == t->n_prompt + GOLDEN_GREEDY_TOKENS;
            const uint32_t rest = is_finished ? 0 : t->n_tokens - t->n_done;
            n_tokens[i] = rest < 5 + 6 * i ? rest : 5 + 6 * i;
            running = running || n_tokens[i] > 0;
        }
        if (!running) break;
        golden_step(pointers, n_tokens, n_tracks);
        for (uint32_t i = 0; i < n_tracks; i++) {
            if (n_tokens[i] > 0 && tracks[i].n_done == tracks[i].n_tokens)
                track_add_greedy(&tracks[i]);
        }
    }
}

void golden_check_same_bits(const track *a, const float *kept, const char *how)
{
    const size_t n_vocab = a->g->n_vocab;
    for (uint32_t t = a->n_cached; t < a->n_prompt; t++)
        ck_assert_msg(memcmp(track_logits(a, t), kept + t * n_vocab, n_vocab * sizeof *kept) == 0,
                      "%s: prompt %u, position %u: %s differs from whole", a->g->d->ops->name,
                      a->prompt, t, how);
}

float *golden_keep_whole(golden *g, uint32_t prompt)
{
    track t;
    track_open(g, prompt, &t);
    ck_assert(t.n_cached == 0);
    track_run_prompt(&t, GOLDEN_STEP_TOKENS_MAX);
    const size_t bytes = (size_t)t.n_prompt * g->n_vocab * sizeof(float);
    float *const kept = malloc(bytes);
    ck_assert_ptr_nonnull(kept);
    memcpy(kept, t.logits, bytes);
    track_close(&t);
    kv_cache_drop_prefixes(g->cache);
    return kept;
}
