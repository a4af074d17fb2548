/* kvcache/scoring/lru.c - the page that was read last.
 *
 * Read means chosen by routing: when every step reads every page, this is first in, first out. */
#include "kvcache/scoring/scorer.h"

static void score_last_use(const kv_score_args *args, float *out)
{
    for (uint32_t i = 0; i < args->view->n; i++)
        out[i] = -(float)(args->now - args->last_use[i]);
}

extern const kv_scorer kv_scorer_lru;
const kv_scorer kv_scorer_lru = {
    .name = "lru", .needs = KV_SCORE_USES, .by_page = true, .score = score_last_use};
