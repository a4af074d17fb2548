/* kvcache/scoring/tova.c - what the newest token looks at (Oren et al., TOVA, 2024).
 *
 * score = mean over all query heads of the layer of p of the last query, so that all KV heads keep the
 * same entries: each scores its group, the cache averages. The last entry comes first. */
#include "kvcache/scoring/score_math.h"
#include "kvcache/scoring/window_attention.h"

static void score_last_query(const kv_score_args *args, float *out)
{
    kv_window w;
    kv_window_init(&w, args);
    kv_window_mean(&w, out);
    kv_score_recent(out, w.n_open, args->view->n, kv_score_max(out, w.n_open));
}

extern const kv_scorer kv_scorer_tova;
const kv_scorer kv_scorer_tova = {.name = "tova",
                                  .needs = KV_SCORE_QUERIES,
                                  .n_queries = 1,
                                  .over_heads = true,
                                  .work_floats = kv_window_floats,
                                  .lse = kv_window_lse,
                                  .score = score_last_query};
