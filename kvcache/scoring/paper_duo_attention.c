/* kvcache/scoring/paper_duo_attention.c - Duo by the formula of the PiKV paper (arXiv 2508.06526): the
 * attention that an entry has got, summed over all layers.
 *
 * DuoAttention as published parts heads into those that stream and those that retrieve
 * (duo_attention.c) and has nothing in common with it. All layers and heads keep the same entries. */
#include "kvcache/scoring/scorer.h"

static void score_mass(const kv_score_args *args, float *out)
{
    for (uint32_t i = 0; i < args->view->n; i++)
        out[i] = args->mass[i];
}

extern const kv_scorer kv_scorer_paper_duo_attention;
const kv_scorer kv_scorer_paper_duo_attention = {.name = "paper_duo_attention",
                                                 .needs = KV_SCORE_MASS,
                                                 .over_heads = true,
                                                 .from = KV_FROM_ALL_LAYERS,
                                                 .score = score_mass};
