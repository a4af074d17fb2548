/* kvcache/scoring/finch.c - what the end of the prompt looks at, with every query's shares measured against an
 * even spread (Corallo and Papotti, FINCH, TACL 2024; scores as in NVIDIA's kvpress).
 *
 *     score = mean over the window and the group of  n_i p_i,   n_i = entries before query i,
 * so that a query which has more to look at counts as much as an earlier one (over ranks, more on its rank). No neighbours are averaged; the
 * window itself comes first.
 *
 * The paper's window is the question, which a delimiter sets apart; requests have none here, and the window is
 * snapkv's. Keys keep the angles of their own positions; the paper turns them to their places in the cache.
 * Its chunks are what comes between two selections of the cache, up to 2048 of a prompt. */
#include "kvcache/scoring/methods.h"
#include "kvcache/scoring/score_math.h"
#include "kvcache/scoring/window_attention.h"

static void score_chunk(kv_window *w, uint32_t first, float *out)
{
    const kv_score_args *args = w->args;
    const uint32_t count = kv_window_read(w, first);
    double sum[KV_SCORE_CHUNK] = {0};
    for (uint32_t row = 0; row < w->n_rows; row++) {
        const uint32_t position = args->queries.positions[row / args->group];
        const double n_before = kv_score_n_before(args->view, position);
        float p[KV_SCORE_CHUNK];
        kv_window_shares(w, row, first, p);
        for (uint32_t i = 0; i < count; i++)
            sum[i] += n_before * (double)p[i];
    }
    for (uint32_t i = 0; i < count; i++)
        out[first + i] = w->n_rows == 0 ? 0 : (float)(sum[i] / w->n_rows);
}

static void score_window(const kv_score_args *args, float *out)
{
    const uint32_t n = args->view->n;
    kv_window w;
    kv_window_init(&w, args);
    for (uint32_t first = 0; first < n; first += KV_SCORE_CHUNK)
        score_chunk(&w, first, out);
    kv_score_recent(out, w.n_open, n, kv_score_max(out, w.n_open));
}

extern const kv_scorer kv_scorer_finch;
const kv_scorer kv_scorer_finch = {.name = "finch",
                                   .needs = KV_SCORE_QUERIES,
                                   .n_queries = KV_SNAPKV_WINDOW,
                                   .work_floats = kv_window_floats,
                                   .lse = kv_window_lse,
                                   .score = score_window};
