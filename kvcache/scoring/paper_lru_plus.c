/* kvcache/scoring/paper_lru_plus.c - LRU+ by the formula of the PiKV paper (2025): -age + lambda n_uses.
 *
 * The paper names no lambda; 1 makes a use worth a step. Its other utilities are no methods of their
 * own: LRU's -age is `lru`, H2O's attention is `h2o`, StreamingLLM's threshold of age is
 * `streaming_llm` once there is a budget, and AdaKV's weights and features are left open. */
#include "kvcache/scoring/scorer.h"

static void score_sum(const kv_score_args *args, float *out)
{
    for (uint32_t i = 0; i < args->view->n; i++)
        out[i] = (float)((double)args->n_uses[i] - (double)(args->now - args->last_use[i]));
}

extern const kv_scorer kv_scorer_paper_lru_plus;
const kv_scorer kv_scorer_paper_lru_plus = {
    .name = "paper_lru_plus", .needs = KV_SCORE_USES, .by_page = true, .score = score_sum};
