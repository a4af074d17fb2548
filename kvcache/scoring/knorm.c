/* kvcache/scoring/knorm.c - short keys draw much attention (Devoto et al., A simple and effective L2
 * norm-based strategy for KV cache compression, 2024).
 *
 * score = -|k|, which RoPE does not change. Weak when half of the entries go. */
#include "kvcache/scoring/score_math.h"

#include <math.h>

static size_t chunk_floats(const kv_score_shape *shape)
{
    return (size_t)KV_SCORE_CHUNK * shape->k_dim;
}

static void score_norms(const kv_score_args *args, float *out)
{
    const uint32_t n = args->view->n, k_dim = args->k_dim;
    for (uint32_t first = 0; first < n; first += KV_SCORE_CHUNK) {
        const uint32_t count = kv_chunk_count(n, first);
        args->view->load(args->view, first, count, args->work, NULL);
        for (uint32_t i = 0; i < count; i++) {
            const double square = kv_row_square(args->work + (size_t)i * k_dim, k_dim);
            out[first + i] = kv_score_finite(-sqrt(square));
        }
    }
}

extern const kv_scorer kv_scorer_knorm;
const kv_scorer kv_scorer_knorm = {
    .name = "knorm", .work_floats = chunk_floats, .score = score_norms};
