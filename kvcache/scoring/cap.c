/* kvcache/scoring/cap.c - entries whose values no others can stand in for, among those that queries to come
 * look at (CapKV, arXiv 2604.25975; as in NVIDIA's kvpress).
 *
 * With m the mean query to come (future_queries.h) of one query head, over the entries t behind the sinks,
 *     w_t = exp(tau cos(m, k_t) - largest),     A = I + sum_t (w_t + 1e-6) v_t v_t',
 *     score_t = mean over the group of  w_t v_t' A^-1 v_t:
 * the capacity that the entry alone adds, a ridge leverage score. tau = 5, 512 positions ahead. The first 4
 * positions are in neither and come first.
 *
 * Over ranks the entries are those that the rank has: what others hold stands in for none of them.
 *
 * A is summed and solved in double precision: A = L L', and v' A^-1 v = |L^-1 v|^2. Every pivot is at least 1,
 * A being I and more; what rounding takes below that is put back. */
#include "kvcache/scoring/future_queries.h"
#include "kvcache/scoring/methods.h"
#include "kvcache/scoring/score_math.h"

#include "base/check.h"

#include <math.h>

static const double WEIGHT_LEAST = 1e-6, LENGTH_LEAST = 1e-12;

typedef struct cap {
    const kv_score_args *args;
    const kv_cap_settings *settings;
    double *a;      /* [v_dim][v_dim]: A, then L in its lower half */
    double *solved; /* [v_dim]: L^-1 v of one entry */
    float *weight;  /* [n] */
    float *rows;    /* [KV_SCORE_CHUNK][max(k_dim, v_dim)] */
    float *mean;    /* [k_dim] */
    float *turn;    /* [2][rope.n / 2] */
    uint32_t n_sinks;
} cap;

static size_t widest(size_t k_dim, size_t v_dim)
{
    return k_dim > v_dim ? k_dim : v_dim;
}

static size_t cap_floats(const kv_score_shape *shape)
{
    const size_t k = shape->k_dim, v = shape->v_dim;
    return 2 * (v * v + v) + shape->n_max + KV_SCORE_CHUNK * widest(k, v) + 2 * k;
}

static cap take_work(const kv_score_args *args, const kv_cap_settings *settings)
{
    const size_t k = args->k_dim, v = args->v_dim;
    cap c = {.args = args, .settings = settings};
    c.a = (double *)(void *)args->work;
    assert((uintptr_t)c.a % _Alignof(double) == 0);
    c.solved = c.a + v * v;
    c.weight = args->work + 2 * (v * v + v);
    c.rows = c.weight + args->view->n;
    c.mean = c.rows + KV_SCORE_CHUNK * widest(k, v);
    c.turn = c.mean + k;
    c.n_sinks = kv_score_n_before(args->view, KV_SCORE_SINKS);
    return c;
}

/* mean = m of head g */
static void find_mean(const cap *c, uint32_t g)
{
    const kv_score_args *args = c->args;
    for (uint32_t i = 0; i < args->k_dim; i++)
        c->mean[i] = args->stats.n > 0 ? args->stats.mean[(size_t)g * args->k_dim + i] : 0;
    if (args->rope != NULL) kv_future_rotate(args->rope, c->turn, c->mean, 1);
}

static double cosine(const cap *c, const float *key)
{
    const uint32_t k_dim = c->args->k_dim;
    const double lengths = fmax(sqrt(kv_row_square(c->mean, k_dim)), LENGTH_LEAST) *
                           fmax(sqrt(kv_row_square(key, k_dim)), LENGTH_LEAST);
    double dot = 0;
    for (uint32_t i = 0; i < k_dim; i++)
        dot += (double)c->mean[i] * (double)key[i];
    return fmin(fmax(dot / lengths, -1), 1);
}

static void find_weights(const cap *c)
{
    const kv_score_view *view = c->args->view;
    float most = -1;
    for (uint32_t first = c->n_sinks; first < view->n; first += KV_SCORE_CHUNK) {
        const uint32_t count = kv_chunk_count(view->n, first);
        view->load(view, first, count, c->rows, NULL);
        for (uint32_t i = 0; i < count; i++) {
            c->weight[first + i] = (float)cosine(c, c->rows + (size_t)i * c->args->k_dim);
            most = fmaxf(most, c->weight[first + i]);
        }
    }
    for (uint32_t i = c->n_sinks; i < view->n; i++)
        c->weight[i] = (float)exp(c->settings->tau * ((double)c->weight[i] - (double)most));
}

/* The lower half of A. */
static void find_capacity(const cap *c)
{
    const kv_score_view *view = c->args->view;
    const uint32_t v_dim = c->args->v_dim;
    for (size_t i = 0; i < (size_t)v_dim * v_dim; i++)
        c->a[i] = i % (v_dim + 1) == 0;
    for (uint32_t first = c->n_sinks; first < view->n; first += KV_SCORE_CHUNK) {
        const uint32_t count = kv_chunk_count(view->n, first);
        view->load(view, first, count, NULL, c->rows);
        for (uint32_t i = 0; i < count; i++) {
            const float *v = c->rows + (size_t)i * v_dim;
            const double weight = (double)c->weight[first + i] + WEIGHT_LEAST;
            for (uint32_t r = 0; r < v_dim; r++) {
                const double scaled = weight * (double)v[r];
                for (uint32_t k = 0; k <= r; k++)
                    c->a[(size_t)r * v_dim + k] += scaled * (double)v[k];
            }
        }
    }
}

/* A becomes L. */
static void factor(const cap *c)
{
    const uint32_t n = c->args->v_dim;
    for (uint32_t r = 0; r < n; r++) {
        double *row = c->a + (size_t)r * n;
        for (uint32_t k = 0; k <= r; k++) {
            const double *other = c->a + (size_t)k * n;
            double sum = row[k];
            for (uint32_t i = 0; i < k; i++)
                sum -= row[i] * other[i];
            row[k] = k < r ? sum / other[k] : sqrt(fmax(sum, 1));
        }
    }
}

/* |L^-1 v|^2 */
static double leverage(const cap *c, const float *v)
{
    const uint32_t n = c->args->v_dim;
    double square = 0;
    for (uint32_t r = 0; r < n; r++) {
        const double *row = c->a + (size_t)r * n;
        double sum = (double)v[r];
        for (uint32_t k = 0; k < r; k++)
            sum -= row[k] * c->solved[k];
        c->solved[r] = sum / row[r];
        square += c->solved[r] * c->solved[r];
    }
    return square;
}

/* out += score / group */
static void add_head(const cap *c, uint32_t g, float *out)
{
    const kv_score_view *view = c->args->view;
    find_mean(c, g);
    find_weights(c);
    find_capacity(c);
    factor(c);
    for (uint32_t first = c->n_sinks; first < view->n; first += KV_SCORE_CHUNK) {
        const uint32_t count = kv_chunk_count(view->n, first);
        view->load(view, first, count, NULL, c->rows);
        for (uint32_t i = 0; i < count; i++) {
            const double gain = leverage(c, c->rows + (size_t)i * c->args->v_dim);
            out[first + i] +=
                kv_score_finite((double)c->weight[first + i] * gain) / (float)c->args->group;
        }
    }
}

void kv_cap_score(const kv_score_args *args, const kv_cap_settings *settings, float *out)
{
    const cap c = take_work(args, settings);
    const uint32_t n = args->view->n;
    if (args->rope != NULL) kv_future_turn(args->rope, args->length, settings->n_future, c.turn);
    for (uint32_t i = 0; i < n; i++)
        out[i] = 0;
    for (uint32_t g = 0; g < args->group; g++)
        add_head(&c, g, out);
    const float top = kv_score_above(kv_score_max(out + c.n_sinks, n - c.n_sinks));
    for (uint32_t i = 0; i < c.n_sinks; i++)
        out[i] = top;
}

static void score_default(const kv_score_args *args, float *out)
{
    kv_cap_score(args, &(kv_cap_settings){.n_future = 512, .tau = 5}, out);
}

extern const kv_scorer kv_scorer_cap;
const kv_scorer kv_scorer_cap = {
    .name = "cap", .needs = KV_SCORE_STATS, .work_floats = cap_floats, .score = score_default};
