/* kvcache/scoring/lru_plus.c - pages that were read lately or often.
 *
 *     score = 2^(-age / 256) / 2 + (n_uses / largest n_uses) / 2,    age in steps.
 *
 * Both parts lie in [0, 1], where the paper's -age + lambda n_uses (paper_lru_plus.c) forgets uses at
 * a rate that depends on how long it runs. The weights are our choice; nothing published says them. */
#include "kvcache/scoring/scorer.h"

#include <math.h>

static const double HALF_LIFE_STEPS = 256;

static void score_recent_and_frequent(const kv_score_args *args, float *out)
{
    uint32_t most = 1;
    for (uint32_t i = 0; i < args->view->n; i++)
        most = args->n_uses[i] > most ? args->n_uses[i] : most;
    for (uint32_t i = 0; i < args->view->n; i++) {
        const double age = args->now - args->last_use[i];
        out[i] = (float)(exp2(-age / HALF_LIFE_STEPS) / 2 + (double)args->n_uses[i] / most / 2);
    }
}

extern const kv_scorer kv_scorer_lru_plus;
const kv_scorer kv_scorer_lru_plus = {.name = "lru_plus",
                                      .needs = KV_SCORE_USES,
                                      .by_page = true,
                                      .score = score_recent_and_frequent};
