/* kvcache/scoring/non_causal.c - what the queries around an entry look at, earlier ones included (Chari and Van
 * Durme, Compactor, arXiv 2507.08143; this part of it as in NVIDIA's kvpress).
 *
 *     score = mean of  local |v|  over the entry and its two neighbours,
 * local being the attention that the entry gets in its part of 256 positions without causality and without
 * scale (local_mass.h), and neighbours those that are still there, over ranks those that the rank has; beside the first and the last stand zeros.
 *
 * The paper turns scores into distances from their mean, in deviations over all heads of the layer. That is one
 * rising straight line for all of them, so no comparison within a layer changes, and it is left out. Its other
 * half, leverage scores of keys, is not built: they come from a random sketch. */
#include "kvcache/scoring/methods.h"
#include "kvcache/scoring/score_math.h"

#include <math.h>

static size_t local_floats(const kv_score_shape *shape)
{
    return shape->n_max + (size_t)KV_SCORE_CHUNK * shape->v_dim;
}

static void score_local(const kv_score_args *args, float *out)
{
    const uint32_t n = args->view->n, v_dim = args->v_dim;
    float *weighted = args->work, *values = weighted + n;
    for (uint32_t first = 0; first < n; first += KV_SCORE_CHUNK) {
        const uint32_t count = kv_chunk_count(n, first);
        args->view->load(args->view, first, count, NULL, values);
        for (uint32_t i = 0; i < count; i++) {
            const double length = sqrt(kv_row_square(values + (size_t)i * v_dim, v_dim));
            weighted[first + i] = kv_score_finite((double)args->local[first + i] * length);
        }
    }
    for (uint32_t i = 0; i < n; i++) {
        const double before = i > 0 ? (double)weighted[i - 1] : 0;
        const double behind = i + 1 < n ? (double)weighted[i + 1] : 0;
        out[i] = kv_score_finite((before + (double)weighted[i] + behind) / 3);
    }
}

extern const kv_scorer kv_scorer_non_causal;
const kv_scorer kv_scorer_non_causal = {.name = "non_causal",
                                        .needs = KV_SCORE_LOCAL,
                                        .work_floats = local_floats,
                                        .score = score_local};
