/* kvcache/scoring/duo_attention.c - some heads keep everything, the others sinks and ring alone (Xiao et
 * al., DuoAttention, 2024).
 *
 * Heads are filled in the order of their retrieval scores until the budget is spent; the one where it
 * ends keeps its best entries. The paper learns the scores, of all layers together, and `retrieval` is
 * for such a pattern.
 *
 * Without a pattern the score of a head is how much of its scores, above their smallest, lies on the older
 * half of its candidates: a head that looks far back is called a retrieval head. That rule is ours, is
 * not in the paper, and was not tested against learned patterns. It also sees no more than what a
 * head still has: one that has kept little has little to look back at. */
#include "kvcache/scoring/allocator.h"

static size_t retrieval_floats(uint32_t n_heads, uint32_t n_max)
{
    (void)n_max;
    return n_heads;
}

/* In [0, 1]; a half if all scores are equal, 0 if there are none. */
static float look_back(const float *score, uint32_t n)
{
    double old = 0, all = 0, least = n == 0 ? 0 : (double)score[0];
    for (uint32_t i = 1; i < n; i++)
        least = (double)score[i] < least ? (double)score[i] : least;
    for (uint32_t i = 0; i < n; i++) {
        all += (double)score[i] - least;
        if (i < n / 2) old += (double)score[i] - least;
    }
    if (n == 0) return 0;
    return all > 0 ? (float)(old / all) : 0.5f;
}

/* The best head that has no budget yet; n_heads if there is none. UINT32_MAX marks them. */
static uint32_t next_head(const kv_split_args *args, const float *retrieval, const uint32_t *n_keep)
{
    uint32_t best = args->n_heads;
    for (uint32_t h = 0; h < args->n_heads; h++) {
        if (n_keep[h] != UINT32_MAX) continue;
        if (best == args->n_heads || retrieval[h] > retrieval[best]) best = h;
    }
    return best;
}

static void split_by_kind(const kv_split_args *args, uint32_t *n_keep)
{
    const float *retrieval = args->retrieval;
    uint64_t n_left = kv_split_total(args);
    for (uint32_t h = 0; h < args->n_heads; h++) {
        n_keep[h] = UINT32_MAX;
        if (retrieval == NULL) args->work[h] = look_back(args->score[h], args->n[h]);
    }
    if (retrieval == NULL) retrieval = args->work;
    for (uint32_t i = 0; i < args->n_heads; i++) {
        const uint32_t h = next_head(args, retrieval, n_keep);
        n_keep[h] = args->n[h] < n_left ? args->n[h] : (uint32_t)n_left;
        n_left -= n_keep[h];
    }
}

extern const kv_allocator kv_allocator_duo_attention;
const kv_allocator kv_allocator_duo_attention = {
    .name = "duo_attention", .split = split_by_kind, .work_floats = retrieval_floats};
