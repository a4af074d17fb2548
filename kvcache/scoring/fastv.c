/* kvcache/scoring/fastv.c - what the newest token looks at in the second layer (Chen et al., An Image is
 * Worth 1/2 Tokens After Layer 2, ECCV 2024, arXiv 2403.06764).
 *
 * FastV drops image tokens behind its second layer, by the attention that the last query pays them there, a
 * mean over all heads, and they are gone from all later layers. This is a reading of it for text, which
 * nobody has validated: every entry of a prompt is a candidate as image tokens are there, and what goes is
 * the entries of the later layers, not the hidden states, since the prompt has been computed by then.
 * `fastv` alone is fastv+deep: the first two layers keep everything. */
#include "kvcache/scoring/score_math.h"
#include "kvcache/scoring/window_attention.h"

static void score_last_query(const kv_score_args *args, float *out)
{
    kv_window w;
    kv_window_init(&w, args);
    kv_window_mean(&w, out);
    kv_score_recent(out, w.n_open, args->view->n, kv_score_max(out, w.n_open));
}

extern const kv_scorer kv_scorer_fastv;
const kv_scorer kv_scorer_fastv = {.name = "fastv",
                                   .needs = KV_SCORE_QUERIES,
                                   .n_queries = 1,
                                   .over_heads = true,
                                   .from = KV_FROM_SECOND_LAYER,
                                   .work_floats = kv_window_floats,
                                   .lse = kv_window_lse,
                                   .score = score_last_query};
