/* kvcache/scoring/criticalkv.c - attention, weighted by what the value does to the output (Feng et
 * al., Identify Critical KV Cache in LLM Inference from an Output Perturbation Perspective, 2025).
 *
 * Half of n_keep are the best by snapkv's score s. The others are the best by
 *     (s + eps) u,   u = mean over the group of |W_O v|_1,
 * W_O being the query head's columns of the output projection. `criticalkv_l2` has the 2-norm instead,
 * which is sqrt(v' M v) with M = W_O' W_O: d instead of d_model products a channel and entry.
 *
 * Under adakv the halves are those of equal heads, which is close to the paper's CriticalAdaKV, but
 * not the same: there the first half follows the heads' budgets. */
#include "kvcache/scoring/methods.h"
#include "kvcache/scoring/output_weights.h"
#include "kvcache/scoring/score_math.h"
#include "kvcache/scoring/selection.h"
#include "kvcache/scoring/window_attention.h"

#include <float.h>
#include <math.h>

static const double SHARE_BY_ATTENTION = 0.5; /* of n_keep */
static const float ATTENTION_EPS = 1e-4f;

/* After snapkv, the same floats are used again. */
typedef struct critical {
    const kv_score_args *args;
    float *effect; /* [n]: u */
    kv_output output;
} critical;

static size_t larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

static size_t critical_floats(const kv_score_shape *shape)
{
    return larger(kv_snapkv_floats(shape), shape->n_max + kv_output_floats(shape, false));
}

static size_t critical_l2_floats(const kv_score_shape *shape)
{
    return larger(kv_snapkv_floats(shape), shape->n_max + kv_output_floats(shape, true));
}

static critical take_work(const kv_score_args *args)
{
    critical c = {.args = args, .effect = args->work};
    kv_output_init(&c.output, args, args->work + args->view->n);
    return c;
}

/* ---- u --------------------------------------------------------------------------------------------- */

static void find_effects(critical *c)
{
    const kv_score_args *args = c->args;
    for (uint32_t first = 0; first < args->view->n; first += KV_SCORE_CHUNK) {
        float sums[KV_SCORE_CHUNK] = {0};
        const uint32_t count = kv_output_read(&c->output, first);
        for (uint32_t g = 0; g < args->group; g++)
            kv_output_add_sums(&c->output, g, count, sums);
        for (uint32_t i = 0; i < count; i++)
            c->effect[first + i] = kv_score_finite((double)sums[i] / args->group);
    }
}

static void find_effects_by_gram(critical *c)
{
    const kv_score_args *args = c->args;
    for (uint32_t i = 0; i < args->view->n; i++)
        c->effect[i] = 0;
    for (uint32_t g = 0; g < args->group; g++) {
        kv_output_find_gram(&c->output, g);
        for (uint32_t first = 0; first < args->view->n; first += KV_SCORE_CHUNK) {
            float lengths[KV_SCORE_CHUNK];
            const uint32_t count = kv_output_read(&c->output, first);
            kv_output_lengths(&c->output, count, lengths);
            for (uint32_t i = 0; i < count; i++)
                c->effect[first + i] += lengths[i] / (float)args->group;
        }
    }
}

/* ---- the score --------------------------------------------------------------------------------------- */

/* s becomes the score. Those that the cut of s lets in go above all others, in the order of s. */
static void weight(const critical *c, kv_cut cut, float *s)
{
    const uint32_t n = c->args->view->n;
    const float s_most = fmaxf(kv_score_max(s, n), FLT_MIN);
    float most = 0;
    for (uint32_t i = 0; i < n; i++) {
        const double weighted = (double)(s[i] + ATTENTION_EPS) * (double)c->effect[i];
        c->effect[i] = kv_score_finite(weighted);
        most = fmaxf(most, c->effect[i]);
    }
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t key = kv_rank_key(s[i]);
        bool is_in = key > cut.key;
        if (key == cut.key && cut.n_equal > 0) {
            is_in = true;
            cut.n_equal--;
        }
        s[i] = is_in ? kv_score_finite((double)kv_score_above(most) + (double)(s[i] / s_most))
                     : c->effect[i];
    }
}

static void score_critical(const kv_score_args *args, void (*find)(critical *c), float *out)
{
    const uint32_t n = args->view->n, n_keep = args->n_keep < n ? args->n_keep : n;
    const uint32_t n_first = (uint32_t)(n_keep * SHARE_BY_ATTENTION);
    const float *const scores = out;
    kv_cut cut = {.key = UINT32_MAX, .n_equal = 0}; /* lets nothing in */
    kv_snapkv_score(args, KV_SNAPKV_KERNEL, out);
    critical c = take_work(args);
    find(&c);
    if (n_first > 0)
        cut = kv_cut_find(&(kv_cut_source){.x = &scores, .n = &n, .n_arrays = 1}, n_first);
    weight(&c, cut, out);
}

static void score_by_product(const kv_score_args *args, float *out)
{
    score_critical(args, find_effects, out);
}

static void score_by_gram(const kv_score_args *args, float *out)
{
    score_critical(args, find_effects_by_gram, out);
}

extern const kv_scorer kv_scorer_criticalkv;
const kv_scorer kv_scorer_criticalkv = {.name = "criticalkv",
                                        .needs = KV_SCORE_QUERIES | KV_SCORE_OUT_PROJ,
                                        .n_queries = KV_SNAPKV_WINDOW,
                                        .work_floats = critical_floats,
                                        .lse = kv_window_lse,
                                        .score = score_by_product};

extern const kv_scorer kv_scorer_criticalkv_l2;
const kv_scorer kv_scorer_criticalkv_l2 = {.name = "criticalkv_l2",
                                           .needs = KV_SCORE_QUERIES | KV_SCORE_OUT_PROJ,
                                           .n_queries = KV_SNAPKV_WINDOW,
                                           .work_floats = critical_l2_floats,
                                           .lse = kv_window_lse,
                                           .score = score_by_gram};
