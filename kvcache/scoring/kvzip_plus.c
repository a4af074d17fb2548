/* kvcache/scoring/kvzip_plus.c - kvzip, by what an entry adds to the residual stream (KVzip+ of Jegou and Jeblick,
 * KVzap, arXiv 2601.07891).
 *
 *     score = max over the replayed tokens j and the group's query heads g of  p_gj |W_O v|_2 / |h_j|_2
 * with p as in kvzip.c, W_O the columns of the output projection that belong to g, and h_j the residual stream at
 * the layer's input, to which attention adds the product. (NVIDIA's kvpress has there what its hook of the
 * attention sees, which is h_j behind the layer's norm.) Scores of layers and heads are in one unit, so it goes
 * well with adakv. The first 4 positions come first.
 *
 * Behind the prompt, or if nobody fed the replay, the latest 32 queries stand in as they do in kvzip.c, weighted
 * in the same way. */
#include "kvcache/scoring/methods.h"
#include "kvcache/scoring/output_weights.h"
#include "kvcache/scoring/score_math.h"
#include "kvcache/scoring/window_attention.h"

#include <float.h>
#include <math.h>

enum { N_LATEST = 32 };

static size_t plus_floats(const kv_score_shape *shape)
{
    return kv_window_floats(shape) + kv_output_floats(shape, true);
}

/* out[i] becomes at least what head g of the latest queries gives to the chunk's entry i. */
static void raise_by_latest(kv_window *w, uint32_t g, uint32_t first, const float *lengths,
                            float *out)
{
    const kv_score_queries *queries = &w->args->queries;
    const uint32_t count = kv_window_read(w, first), group = w->args->group;
    for (uint32_t i = 0; i < queries->n; i++) {
        const float norm = fmaxf(queries->input_norm[i], FLT_MIN);
        float p[KV_SCORE_CHUNK];
        kv_window_shares(w, i * group + g, first, p);
        for (uint32_t k = 0; k < count; k++)
            out[first + k] = fmaxf(
                out[first + k], kv_score_finite((double)p[k] * (double)lengths[k] / (double)norm));
    }
}

static void raise_by_replay(const kv_score_args *args, uint32_t g, uint32_t first, uint32_t count,
                            const float *lengths, float *out)
{
    const float *share = args->replay + (size_t)g * args->view->n + first;
    for (uint32_t i = 0; i < count; i++)
        out[first + i] =
            fmaxf(out[first + i], kv_score_finite((double)share[i] * (double)lengths[i]));
}

void kv_kvzip_plus_score(const kv_score_args *args, uint32_t n_first, float *out)
{
    const uint32_t n = args->view->n, n_sinks = kv_score_n_before(args->view, n_first);
    const bool has_replay = args->replay != NULL;
    const bool has_latest = !has_replay || args->length > args->n_prompt;
    kv_window w = {.n_rows = 0};
    kv_output output;
    kv_output_init(&output, args, args->work);
    kv_score_args rest = *args;
    rest.work = output.gram + (size_t)args->v_dim * args->v_dim;
    if (has_latest) kv_window_init(&w, &rest);
    for (uint32_t i = 0; i < n; i++)
        out[i] = 0;
    for (uint32_t g = 0; g < args->group; g++) {
        kv_output_find_gram(&output, g);
        for (uint32_t first = 0; first < n; first += KV_SCORE_CHUNK) {
            float lengths[KV_SCORE_CHUNK];
            const uint32_t count = kv_output_read(&output, first);
            kv_output_lengths(&output, count, lengths);
            if (has_replay) raise_by_replay(args, g, first, count, lengths, out);
            if (w.n_rows > 0) raise_by_latest(&w, g, first, lengths, out);
        }
    }
    const float top = kv_score_above(kv_score_max(out + n_sinks, n - n_sinks));
    for (uint32_t i = 0; i < n_sinks; i++)
        out[i] = top;
}

static void score_default(const kv_score_args *args, float *out)
{
    kv_kvzip_plus_score(args, KV_REPLAY_SINKS, out);
}

extern const kv_scorer kv_scorer_kvzip_plus;
const kv_scorer kv_scorer_kvzip_plus = {.name = "kvzip_plus",
                                        .needs = KV_SCORE_REPLAY | KV_SCORE_QUERIES |
                                                 KV_SCORE_OUT_PROJ | KV_SCORE_INPUT_NORM,
                                        .n_queries = N_LATEST,
                                        .work_floats = plus_floats,
                                        .lse = kv_window_lse,
                                        .score = score_default};
