/* kvcache/scoring/h2o.c - heavy hitters: the attention that an entry has got so far (Zhang et al., H2O,
 * 2023).
 *
 * The sum favours what came early; observed_attention divides. The paper's recent half of the budget is
 * the cache's ring here, and heads of a group share their mean, since they share the entry. */
#include "kvcache/scoring/scorer.h"

static void score_mass(const kv_score_args *args, float *out)
{
    for (uint32_t i = 0; i < args->view->n; i++)
        out[i] = args->mass[i];
}

extern const kv_scorer kv_scorer_h2o;
const kv_scorer kv_scorer_h2o = {.name = "h2o", .needs = KV_SCORE_MASS, .score = score_mass};
