/* kvcache/scoring/adakv.c - heads compete for the layer's budget by their scores (Feng et al., Ada-KV,
 * 2024).
 *
 * Pool the candidates of all heads, let c_h be how many of head h are among the best n_heads * n_keep;
 * then n_h = (1 - f) c_h + f n_keep with floor f = 0.2, so that no head falls silent. The paper's
 * code rounds each n_h and loses or gains some; here the largest remainders are rounded up until the
 * sum is exact. Scores must mean the same in all heads: attention does, lengths of keys hardly. */
#include "kvcache/scoring/allocator.h"
#include "kvcache/scoring/selection.h"

#include <math.h>

/* The floor is one part of five; in whole parts nothing is rounded. */
enum { PARTS = 5 };

static size_t rest_floats(uint32_t n_heads, uint32_t n_max)
{
    (void)n_max;
    return n_heads;
}

/* c_h. Of equal scores at the cut the earlier ones are in, those of the first head first. */
static void count_best(const kv_split_args *args, uint64_t n_in, uint32_t *count)
{
    const kv_cut cut = kv_cut_find(
        &(kv_cut_source){.x = args->score, .n = args->n, .n_arrays = args->n_heads}, n_in);
    uint64_t n_equal = cut.n_equal;
    uint32_t n_most = 0;
    for (uint32_t h = 0; h < args->n_heads; h++) {
        count[h] = 0;
        for (uint32_t i = 0; i < args->n[h]; i++)
            count[h] += kv_rank_key(args->score[h][i]) > cut.key;
        n_most = args->n[h] > n_most ? args->n[h] : n_most;
    }
    for (uint32_t i = 0; i < n_most && n_equal > 0; i++) {
        for (uint32_t h = 0; h < args->n_heads && n_equal > 0; h++) {
            if (i >= args->n[h] || kv_rank_key(args->score[h][i]) != cut.key) continue;
            count[h]++;
            n_equal--;
        }
    }
}

/* The head with room that lacks most, in parts; the first of equal ones. */
static uint32_t neediest(const kv_split_args *args, const uint32_t *n_keep)
{
    uint32_t best = 0;
    float most = -INFINITY;
    for (uint32_t h = 0; h < args->n_heads; h++) {
        if (n_keep[h] == args->n[h] || !(args->work[h] > most)) continue;
        best = h;
        most = args->work[h];
    }
    return best;
}

static void split_by_score(const kv_split_args *args, uint32_t *n_keep)
{
    const uint64_t n_in = kv_split_total(args);
    uint64_t n_left = n_in;
    for (uint32_t h = 0; h < args->n_heads; h++)
        n_keep[h] = 0;
    if (n_in == 0) return;
    count_best(args, n_in, n_keep);
    for (uint32_t h = 0; h < args->n_heads; h++) {
        const uint64_t wanted = (PARTS - 1) * (uint64_t)n_keep[h] + args->n_keep;
        const uint64_t most = PARTS * (uint64_t)args->n[h];
        const uint64_t target = wanted < most ? wanted : most;
        n_keep[h] = (uint32_t)(target / PARTS);
        args->work[h] = (float)(target % PARTS);
        n_left -= n_keep[h];
    }
    for (; n_left > 0; n_left--) {
        const uint32_t h = neediest(args, n_keep);
        n_keep[h]++;
        args->work[h] -= PARTS;
    }
}

extern const kv_allocator kv_allocator_adakv;
const kv_allocator kv_allocator_adakv = {
    .name = "adakv", .split = split_by_score, .work_floats = rest_floats};
