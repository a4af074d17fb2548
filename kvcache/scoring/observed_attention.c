/* kvcache/scoring/observed_attention.c - the attention that an entry has got from a query on average: h2o's
 * sum (Zhang et al., 2023), divided by the number of queries that could see it, as in NVIDIA's
 * kvpress. */
#include "kvcache/scoring/scorer.h"

static void score_mean(const kv_score_args *args, float *out)
{
    for (uint32_t i = 0; i < args->view->n; i++)
        out[i] = args->mass[i] / (float)(args->length - args->view->positions[i]);
}

extern const kv_scorer kv_scorer_observed_attention;
const kv_scorer kv_scorer_observed_attention = {
    .name = "observed_attention", .needs = KV_SCORE_MASS, .score = score_mean};
