/* kvcache/scoring/keydiff.c - keys that point elsewhere than most (Park et al., KeyDiff, 2025).
 *
 * score = -cos(k, a), a = mean of k / |k| over the entries. The paper selects in rounds of 128 new
 * entries; here a round is what comes between two selections of the cache, up to 2048 of a prompt and
 * one block of a decode. Over ranks the mean is over what the rank has. */
#include "kvcache/scoring/score_math.h"

#include <math.h>

/* Lengths below count as this. */
static const double LENGTH_LEAST = 1e-12, COSINE_LEAST = 1e-8;

static size_t keydiff_floats(const kv_score_shape *shape)
{
    return ((size_t)KV_SCORE_CHUNK + 1) * shape->k_dim;
}

/* Adds the unit keys of a chunk. */
static void add_units(const float *keys, uint32_t count, uint32_t k_dim, float *anchor)
{
    double scale[KV_SCORE_CHUNK];
    for (uint32_t i = 0; i < count; i++)
        scale[i] = 1 / fmax(sqrt(kv_row_square(keys + (size_t)i * k_dim, k_dim)), LENGTH_LEAST);
    for (uint32_t c = 0; c < k_dim; c++) {
        double sum = 0;
        for (uint32_t i = 0; i < count; i++)
            sum += (double)keys[(size_t)i * k_dim + c] * scale[i];
        anchor[c] += (float)sum;
    }
}

static double cosine(const float *key, const float *anchor, uint32_t k_dim, double anchor_length)
{
    double dot = 0;
    const double length = sqrt(kv_row_square(key, k_dim));
    for (uint32_t c = 0; c < k_dim; c++)
        dot += (double)key[c] * (double)anchor[c];
    return dot / (fmax(length, COSINE_LEAST) * fmax(anchor_length, COSINE_LEAST));
}

static void score_differences(const kv_score_args *args, float *out)
{
    const uint32_t n = args->view->n, k_dim = args->k_dim;
    float *anchor = args->work, *keys = args->work + k_dim;
    for (uint32_t c = 0; c < k_dim; c++)
        anchor[c] = 0;
    for (uint32_t first = 0; first < n; first += KV_SCORE_CHUNK) {
        const uint32_t count = kv_chunk_count(n, first);
        args->view->load(args->view, first, count, keys, NULL);
        add_units(keys, count, k_dim, anchor);
    }
    for (uint32_t c = 0; c < k_dim; c++)
        anchor[c] /= (float)n;
    const double length = sqrt(kv_row_square(anchor, k_dim));
    for (uint32_t first = 0; first < n; first += KV_SCORE_CHUNK) {
        const uint32_t count = kv_chunk_count(n, first);
        args->view->load(args->view, first, count, keys, NULL);
        for (uint32_t i = 0; i < count; i++)
            out[first + i] =
                kv_score_finite(-cosine(keys + (size_t)i * k_dim, anchor, k_dim, length));
    }
}

extern const kv_scorer kv_scorer_keydiff;
const kv_scorer kv_scorer_keydiff = {
    .name = "keydiff", .work_floats = keydiff_floats, .score = score_differences};
