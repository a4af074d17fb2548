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
#include "kvcache/scoring/score_math.h"
#include "kvcache/scoring/selection.h"

#include <float.h>
#include <math.h>

static const double SHARE_BY_ATTENTION = 0.5; /* of n_keep */
static const float ATTENTION_EPS = 1e-4f;

/* After snapkv, the same floats are used again. */
typedef struct critical {
    const kv_score_args *args;
    float *effect;         /* [n]: u */
    float *rows, *columns; /* [KV_SCORE_CHUNK][v_dim] and turned over */
    float *weights;        /* [v_dim]: a row of W_O */
    float *gram;           /* [v_dim][v_dim]: M, for the 2-norm */
} critical;

static size_t effect_floats(const kv_score_shape *shape, bool by_gram)
{
    const size_t v = shape->v_dim;
    return shape->n_max + (2 * (size_t)KV_SCORE_CHUNK + 1) * v + (by_gram ? v * v : 0);
}

static size_t larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

static size_t critical_floats(const kv_score_shape *shape)
{
    return larger(kv_snapkv_floats(shape), effect_floats(shape, false));
}

static size_t critical_l2_floats(const kv_score_shape *shape)
{
    return larger(kv_snapkv_floats(shape), effect_floats(shape, true));
}

static critical take_work(const kv_score_args *args)
{
    const size_t chunk_floats = (size_t)KV_SCORE_CHUNK * args->v_dim;
    critical c = {.args = args, .effect = args->work};
    c.rows = c.effect + args->view->n;
    c.columns = c.rows + chunk_floats;
    c.weights = c.columns + chunk_floats;
    c.gram = c.weights + args->v_dim;
    return c;
}

/* ---- u --------------------------------------------------------------------------------------------- */

static float element(const matrix *m, size_t i)
{
    uint16_t half;
    if (m->type == DTYPE_F32) {
        float x;
        memcpy(&x, (const uint8_t *)m->data + 4 * i, sizeof x);
        return x;
    }
    memcpy(&half, (const uint8_t *)m->data + 2 * i, sizeof half);
    return m->type == DTYPE_BF16 ? f32_from_bf16(half) : f32_from_f16(half);
}

/* Row r of the part of W_O that belongs to head g of the group. */
static void read_weights(const critical *c, uint32_t g, uint32_t r)
{
    const kv_score_args *args = c->args;
    const size_t head = (size_t)args->head * args->group + g;
    for (uint32_t i = 0; i < args->v_dim; i++)
        c->weights[i] =
            element(args->out_proj, (size_t)r * args->out_proj->cols + head * args->v_dim + i);
}

/* Reads the values of the chunk, turned over. */
static uint32_t read_values(const critical *c, uint32_t first)
{
    const kv_score_args *args = c->args;
    const uint32_t count = kv_chunk_count(args->view->n, first);
    args->view->load(args->view, first, count, NULL, c->rows);
    kv_chunk_turn(c->rows, count, args->v_dim, c->columns);
    return count;
}

static void find_effects(const critical *c)
{
    const kv_score_args *args = c->args;
    for (uint32_t first = 0; first < args->view->n; first += KV_SCORE_CHUNK) {
        float sum[KV_SCORE_CHUNK] = {0}, x[KV_SCORE_CHUNK];
        const uint32_t count = read_values(c, first);
        for (uint32_t row = 0; row < args->out_proj->rows * args->group; row++) {
            read_weights(c, row % args->group, row / args->group);
            kv_chunk_dots(c->weights, c->columns, args->v_dim, x);
            for (uint32_t i = 0; i < count; i++)
                sum[i] += fabsf(x[i]);
        }
        for (uint32_t i = 0; i < count; i++)
            c->effect[first + i] = kv_score_finite((double)sum[i] / args->group);
    }
}

/* gram = M of head g; the upper half is enough. */
static void find_gram(const critical *c, uint32_t g)
{
    const uint32_t v_dim = c->args->v_dim;
    for (size_t i = 0; i < (size_t)v_dim * v_dim; i++)
        c->gram[i] = 0;
    for (uint32_t r = 0; r < c->args->out_proj->rows; r++) {
        read_weights(c, g, r);
        for (uint32_t i = 0; i < v_dim; i++)
            kv_row_add(c->weights[i], c->weights + i, v_dim - i, c->gram + (size_t)i * v_dim + i);
    }
}

static void find_effects_by_gram(const critical *c)
{
    const kv_score_args *args = c->args;
    for (uint32_t i = 0; i < args->view->n; i++)
        c->effect[i] = 0;
    for (uint32_t g = 0; g < args->group; g++) {
        find_gram(c, g);
        for (uint32_t first = 0; first < args->view->n; first += KV_SCORE_CHUNK) {
            float square[KV_SCORE_CHUNK];
            const uint32_t count = read_values(c, first);
            kv_chunk_forms(c->gram, c->columns, args->v_dim, square);
            for (uint32_t i = 0; i < count; i++)
                c->effect[first + i] +=
                    sqrtf(fmaxf(kv_score_finite((double)square[i]), 0)) / (float)args->group;
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

static void score_critical(const kv_score_args *args, void (*find)(const critical *c), float *out)
{
    const uint32_t n = args->view->n, n_keep = args->n_keep < n ? args->n_keep : n;
    const uint32_t n_first = (uint32_t)(n_keep * SHARE_BY_ATTENTION);
    const float *const scores = out;
    kv_cut cut = {.key = UINT32_MAX, .n_equal = 0}; /* lets nothing in */
    kv_snapkv_score(args, KV_SNAPKV_KERNEL, out);
    const critical c = take_work(args);
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
                                        .score = score_by_product};

extern const kv_scorer kv_scorer_criticalkv_l2;
const kv_scorer kv_scorer_criticalkv_l2 = {.name = "criticalkv_l2",
                                           .needs = KV_SCORE_QUERIES | KV_SCORE_OUT_PROJ,
                                           .n_queries = KV_SNAPKV_WINDOW,
                                           .work_floats = critical_l2_floats,
                                           .score = score_by_gram};
