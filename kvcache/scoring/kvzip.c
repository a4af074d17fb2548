/* kvcache/scoring/kvzip.c - what a repetition of the prompt looks at (Kim et al., KVzip, arXiv 2505.23416).
 *
 * score = the largest share of attention that any query gives to the entry while the prompt is read again,
 * over the replayed tokens and the heads of the group; the first 4 positions get 1, more than which none can
 * have. It asks no question, so the entries that stay serve any. The replay is the caller's (kv_replay.h).
 * Each head keeps its best, unless an allocator deals the budget otherwise; the paper pools all layers and
 * heads.
 *
 * Behind the prompt nothing is read again. There an entry has the larger of that score and of the largest
 * share that one of the latest 32 queries gives it, a softmax over all entries: what was decoded competes
 * with the prompt by how much it is looked at now. The same, with no first part, stands in for a replay that
 * nobody fed. */
#include "kvcache/scoring/score_math.h"
#include "kvcache/scoring/window_attention.h"

#include <math.h>

enum { N_LATEST = 32 };

/* out[i] becomes at least the largest share of the chunk's entry i. */
static void raise_chunk(kv_window *w, uint32_t first, float *out)
{
    const uint32_t count = kv_window_read(w, first);
    for (uint32_t row = 0; row < w->n_rows; row++) {
        float p[KV_SCORE_CHUNK];
        kv_window_shares(w, row, first, p);
        for (uint32_t i = 0; i < count; i++)
            out[first + i] = fmaxf(out[first + i], p[i]);
    }
}

static void raise_by_latest(const kv_score_args *args, float *out)
{
    kv_window w;
    kv_window_init(&w, args);
    if (w.n_rows == 0) return;
    for (uint32_t first = 0; first < args->view->n; first += KV_SCORE_CHUNK)
        raise_chunk(&w, first, out);
}

static void score_replay(const kv_score_args *args, float *out)
{
    const uint32_t n = args->view->n;
    for (uint32_t i = 0; i < n; i++)
        out[i] = args->replay != NULL ? args->replay[i] : 0;
    if (args->replay == NULL || args->length > args->n_prompt) raise_by_latest(args, out);
    for (uint32_t i = 0; i < n && args->view->positions[i] < KV_REPLAY_SINKS; i++)
        out[i] = 1;
}

extern const kv_scorer kv_scorer_kvzip;
const kv_scorer kv_scorer_kvzip = {.name = "kvzip",
                                   .needs = KV_SCORE_REPLAY | KV_SCORE_QUERIES,
                                   .n_queries = N_LATEST,
                                   .work_floats = kv_window_floats,
                                   .lse = kv_window_lse,
                                   .score = score_replay};
