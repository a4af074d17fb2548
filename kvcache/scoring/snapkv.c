/* kvcache/scoring/snapkv.c - what the last queries look at, smoothed (Li et al., SnapKV, 2024).
 *
 * score = mean over the group and the window of p, averaged over 5 neighbours; beyond either end lie
 * zeros, and the divisor is always 5. Neighbours are those that are still there, whatever their distance
 * in positions: the paper selects once and does not meet gaps. Over ranks they are those that the rank has. The
 * window itself comes first. */
#include "kvcache/scoring/methods.h"
#include "kvcache/scoring/score_math.h"
#include "kvcache/scoring/window_attention.h"

size_t kv_snapkv_floats(const kv_score_shape *shape)
{
    return kv_window_floats(shape) + shape->n_max;
}

/* out[i] = sum of x[n] from i - kernel / 2 to i + kernel / 2, by kernel. */
static void average(const float *x, uint32_t n, uint32_t kernel, float *out)
{
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t begin = i < kernel / 2 ? 0 : i - kernel / 2;
        const uint32_t end = n - i <= kernel / 2 ? n : i + kernel / 2 + 1;
        float sum = 0;
        for (uint32_t j = begin; j < end; j++)
            sum += x[j];
        out[i] = sum / (float)kernel;
    }
}

void kv_snapkv_score(const kv_score_args *args, uint32_t kernel, float *out)
{
    kv_window w;
    kv_window_init(&w, args);
    float *mean = w.sum + w.n_rows;
    kv_window_mean(&w, mean);
    average(mean, w.n_open, kernel, out);
    kv_score_recent(out, w.n_open, args->view->n, kv_score_max(out, w.n_open));
}

static void score_default(const kv_score_args *args, float *out)
{
    kv_snapkv_score(args, KV_SNAPKV_KERNEL, out);
}

extern const kv_scorer kv_scorer_snapkv;
const kv_scorer kv_scorer_snapkv = {.name = "snapkv",
                                    .needs = KV_SCORE_QUERIES,
                                    .n_queries = KV_SNAPKV_WINDOW,
                                    .work_floats = kv_snapkv_floats,
                                    .lse = kv_window_lse,
                                    .score = score_default};
