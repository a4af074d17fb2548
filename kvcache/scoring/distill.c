/* kvcache/scoring/distill.c - what attention matching keeps: the keys with the highest attention
 * (compression/matching.h; Zweiger et al., 2026), whose biases and values the cache fits afterwards.
 *
 * score = mean over the group and the window of p^2. The window itself comes first, as it is. */
#include "kvcache/scoring/score_math.h"
#include "kvcache/scoring/window_attention.h"

enum { WINDOW = 64 };

static void score_squares(const kv_score_args *args, float *out)
{
    kv_window w;
    kv_window_init(&w, args);
    for (uint32_t first = 0; first < args->view->n; first += KV_SCORE_CHUNK) {
        const uint32_t count = kv_window_read(&w, first);
        float sum[KV_SCORE_CHUNK] = {0}, p[KV_SCORE_CHUNK];
        for (uint32_t row = 0; row < w.n_rows; row++) {
            kv_window_shares(&w, row, first, p);
            for (uint32_t i = 0; i < count; i++)
                sum[i] += p[i] * p[i];
        }
        for (uint32_t i = 0; i < count; i++)
            out[first + i] = w.n_rows == 0 ? 0 : sum[i] / (float)w.n_rows;
    }
    kv_score_recent(out, w.n_open, args->view->n, kv_score_max(out, w.n_open));
}

extern const kv_scorer kv_scorer_distill;
const kv_scorer kv_scorer_distill = {.name = "distill",
                                     .needs = KV_SCORE_QUERIES,
                                     .n_queries = WINDOW,
                                     .is_fitted = true,
                                     .work_floats = kv_window_floats,
                                     .lse = kv_window_lse,
                                     .score = score_squares};
