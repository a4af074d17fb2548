/* kvcache/scoring/expected_attention.c - the attention that queries to come will pay, if they are like
 * those so far (Devoto et al., Expected Attention, 2025).
 *
 * Queries before RoPE are taken for Gaussian, N(m, S) per head. R is their rotation, averaged over
 * the next 512 positions. Then, with scale s of attention scores,
 *     z_t = s (R m) . k_t + s^2 / 2  k_t' (R S R') k_t,      p = softmax_t(z),
 *     score = (mean over the group of p + eps) |v_t|.
 * R m and R S R' are made once a head, so an entry costs one quadratic form. The first 4 positions
 * are in neither statistics nor softmax, and come first.
 *
 * eps is 0 in the paper; 0.01 is what kvpress uses with adakv in its leaderboard. */
#include "kvcache/scoring/future_queries.h"
#include "kvcache/scoring/methods.h"
#include "kvcache/scoring/score_math.h"

#include <math.h>

enum { N_FUTURE = 512 };

typedef struct expected {
    float *rows, *columns; /* [KV_SCORE_CHUNK][max(k_dim, v_dim)], [k_dim][KV_SCORE_CHUNK] */
    float *turn;           /* [2][rope.n / 2]: mean cosine and sine of the angle to come */
    float *mean, *cov;     /* [k_dim], [k_dim][k_dim]: turned and scaled, of one query head */
    float *z;              /* [n] */
} expected;

static size_t expected_floats(const kv_score_shape *shape)
{
    const size_t k = shape->k_dim, v = shape->v_dim;
    return KV_SCORE_CHUNK * ((k > v ? k : v) + k) + 2 * k + k * k + shape->n_max;
}

static expected take_work(const kv_score_args *args)
{
    const size_t k = args->k_dim, v = args->v_dim;
    expected e = {.rows = args->work};
    e.columns = e.rows + KV_SCORE_CHUNK * (k > v ? k : v);
    e.turn = e.columns + KV_SCORE_CHUNK * k;
    e.mean = e.turn + k;
    e.cov = e.mean + k;
    e.z = e.cov + k * k;
    return e;
}

/* mean = scale R m, cov = scale^2 / 2 R S R' */
static void prepare_head(const kv_score_args *args, const expected *e, uint32_t g)
{
    const uint32_t k_dim = args->k_dim;
    const size_t n_cov = (size_t)k_dim * k_dim;
    const float half = args->scale * args->scale / 2;
    const bool has_stats = args->stats.n > 0;
    for (uint32_t c = 0; c < k_dim; c++)
        e->mean[c] = has_stats ? args->scale * args->stats.mean[(size_t)g * k_dim + c] : 0;
    for (size_t i = 0; i < n_cov; i++)
        e->cov[i] = has_stats ? half * args->stats.cov[g * n_cov + i] : 0;
    if (args->rope == NULL) return;
    kv_future_rotate(args->rope, e->turn, e->mean, 1);
    for (uint32_t c = 0; c < k_dim; c++)
        kv_future_rotate(args->rope, e->turn, e->cov + c, k_dim);
    for (uint32_t r = 0; r < k_dim; r++)
        kv_future_rotate(args->rope, e->turn, e->cov + (size_t)r * k_dim, 1);
}

/* z of the entries from n_sinks on. */
static void find_logits(const kv_score_args *args, const expected *e, uint32_t n_sinks)
{
    const uint32_t n = args->view->n;
    for (uint32_t first = n_sinks; first < n; first += KV_SCORE_CHUNK) {
        float form[KV_SCORE_CHUNK], dot[KV_SCORE_CHUNK];
        const uint32_t count = kv_chunk_count(n, first);
        args->view->load(args->view, first, count, e->rows, NULL);
        kv_chunk_turn(e->rows, count, args->k_dim, e->columns);
        kv_chunk_dots(e->mean, e->columns, args->k_dim, dot);
        kv_chunk_forms(e->cov, e->columns, args->k_dim, form);
        for (uint32_t i = 0; i < count; i++)
            e->z[first + i] = kv_score_logit(dot[i] + form[i]);
    }
}

/* out += p / group over the same. */
static void add_head(const kv_score_args *args, const expected *e, uint32_t g, float *out)
{
    const uint32_t n = args->view->n, n_sinks = kv_score_n_before(args->view, KV_SCORE_SINKS);
    prepare_head(args, e, g);
    find_logits(args, e, n_sinks);
    if (args->lse == NULL) kv_score_softmax(e->z + n_sinks, n - n_sinks);
    for (uint32_t i = n_sinks; i < n; i++) {
        const float p = args->lse == NULL ? e->z[i] : expf(e->z[i] - args->lse[g]);
        out[i] += p / (float)args->group;
    }
}

static void weight_by_values(const kv_score_args *args, const expected *e, float eps, float *out)
{
    const uint32_t n = args->view->n;
    for (uint32_t first = 0; first < n; first += KV_SCORE_CHUNK) {
        const uint32_t count = kv_chunk_count(n, first);
        args->view->load(args->view, first, count, NULL, e->rows);
        for (uint32_t i = 0; i < count; i++) {
            const double square = kv_row_square(e->rows + (size_t)i * args->v_dim, args->v_dim);
            out[first + i] = kv_score_finite((double)(out[first + i] + eps) * sqrt(square));
        }
    }
}

void kv_expected_score(const kv_score_args *args, const kv_expected_settings *settings, float *out)
{
    const expected e = take_work(args);
    const uint32_t n = args->view->n, n_sinks = kv_score_n_before(args->view, KV_SCORE_SINKS);
    if (args->rope != NULL) kv_future_turn(args->rope, args->length, settings->n_future, e.turn);
    for (uint32_t i = 0; i < n; i++)
        out[i] = 0;
    for (uint32_t g = 0; g < args->group; g++)
        add_head(args, &e, g, out);
    weight_by_values(args, &e, settings->eps, out);
    const float top = kv_score_above(kv_score_max(out + n_sinks, n - n_sinks));
    for (uint32_t i = 0; i < n_sinks; i++)
        out[i] = top;
}

/* Of the softmax of every query head. */
static void find_lse(const kv_score_args *args, uint32_t n_future, float *out)
{
    const expected e = take_work(args);
    const uint32_t n = args->view->n, n_sinks = kv_score_n_before(args->view, KV_SCORE_SINKS);
    if (args->rope != NULL) kv_future_turn(args->rope, args->length, n_future, e.turn);
    for (uint32_t g = 0; g < args->group; g++) {
        double top = -INFINITY, sum = 0;
        prepare_head(args, &e, g);
        find_logits(args, &e, n_sinks);
        for (uint32_t i = n_sinks; i < n; i++)
            top = fmax(top, (double)e.z[i]);
        for (uint32_t i = n_sinks; i < n; i++)
            sum += exp((double)e.z[i] - top);
        out[g] = sum > 0 ? (float)(top + log(sum)) : -INFINITY;
    }
}

static void lse_default(const kv_score_args *args, float *out)
{
    find_lse(args, N_FUTURE, out);
}

static void score_default(const kv_score_args *args, float *out)
{
    kv_expected_score(args, &(kv_expected_settings){.n_future = N_FUTURE, .eps = 0.01f}, out);
}

extern const kv_scorer kv_scorer_expected_attention;
const kv_scorer kv_scorer_expected_attention = {.name = "expected_attention",
                                                .needs = KV_SCORE_STATS,
                                                .work_floats = expected_floats,
                                                .lse = lse_default,
                                                .score = score_default};
