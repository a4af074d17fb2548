/* kvcache/scoring/lagkv.c - entries that spread over the range of those that follow (Liang et al.,
 * LagKV, 2025).
 *
 * Behind the sinks, entries are cut into partitions of `lag`. With mn and mx of each channel over the
 * next partition, f(x) = standard deviation over the channels of (x - mn) / (mx - mn); softmax of f over
 * the partition, mean of keys' and values', and then the rank within the partition: score = rank / lag.
 * The last partition and what follows have no successor and score 1; shorter sequences score by
 * recency. Over ranks partitions are of what the rank has.
 *
 * Different from the paper: where it lets all protected entries tie, sinks come first and then the
 * newest, lest sinks are dropped; a channel that is constant in the next partition says nothing, where
 * the paper divides by 0. */
#include "kvcache/scoring/methods.h"
#include "kvcache/scoring/score_math.h"

#include <math.h>

/* Keys or values, and where what is known of them goes. */
typedef struct side {
    bool is_values;
    uint32_t dim;
    float *rows;       /* [KV_SCORE_CHUNK][dim] */
    float *low, *high; /* [dim]: range in the next partition */
    float *spread;     /* [lag] */
} side;

static size_t lag_floats(const kv_score_shape *shape)
{
    const size_t dims = (size_t)shape->k_dim + shape->v_dim;
    return (KV_SCORE_CHUNK + 2) * dims + 2 * (size_t)KV_LAGKV_LAG;
}

static side take_side(float **work, bool is_values, uint32_t dim, uint32_t lag)
{
    side s = {.is_values = is_values, .dim = dim, .rows = *work};
    s.low = s.rows + (size_t)KV_SCORE_CHUNK * dim;
    s.high = s.low + dim;
    s.spread = s.high + dim;
    *work = s.spread + lag;
    return s;
}

static void load_rows(const kv_score_view *view, const side *s, uint32_t first, uint32_t count)
{
    view->load(view, first, count, s->is_values ? NULL : s->rows, s->is_values ? s->rows : NULL);
}

static void find_range(const kv_score_view *view, const side *s, uint32_t first, uint32_t end)
{
    for (uint32_t c = 0; c < s->dim; c++) {
        s->low[c] = INFINITY;
        s->high[c] = -INFINITY;
    }
    for (uint32_t at = first; at < end; at += KV_SCORE_CHUNK) {
        const uint32_t count = kv_chunk_count(end, at);
        load_rows(view, s, at, count);
        for (size_t i = 0; i < (size_t)count * s->dim; i++) {
            const uint32_t c = (uint32_t)(i % s->dim);
            s->low[c] = fminf(s->low[c], s->rows[i]);
            s->high[c] = fmaxf(s->high[c], s->rows[i]);
        }
    }
}

/* Standard deviation over the channels of where x lies in the range. */
static float spread(const side *s, const float *x)
{
    double sum = 0, squares = 0;
    for (uint32_t c = 0; c < s->dim; c++) {
        const double range = (double)s->high[c] - (double)s->low[c];
        sum += range > 0 ? ((double)x[c] - (double)s->low[c]) / range : 0;
    }
    for (uint32_t c = 0; c < s->dim; c++) {
        const double range = (double)s->high[c] - (double)s->low[c];
        const double at = range > 0 ? ((double)x[c] - (double)s->low[c]) / range : 0;
        squares += (at - sum / s->dim) * (at - sum / s->dim);
    }
    return s->dim < 2 ? 0 : kv_score_logit((float)sqrt(squares / (s->dim - 1)));
}

/* spread = softmax over the partition [first, first + lag) of f, by the range of the next. */
static void score_side(const kv_score_view *view, const side *s, uint32_t first, uint32_t lag)
{
    find_range(view, s, first + lag, first + 2 * lag);
    for (uint32_t at = 0; at < lag; at += KV_SCORE_CHUNK) {
        const uint32_t count = kv_chunk_count(lag, at);
        load_rows(view, s, first + at, count);
        for (uint32_t i = 0; i < count; i++)
            s->spread[at + i] = spread(s, s->rows + (size_t)i * s->dim);
    }
    kv_score_softmax(s->spread, lag);
}

/* out[i] = (number of elements of x that rank below x[i]) / n; of equal ones the earlier is lower. */
static void rank(const float *x, uint32_t n, float *out)
{
    for (uint32_t i = 0; i < n; i++) {
        uint32_t n_below = 0;
        for (uint32_t j = 0; j < n; j++)
            n_below += x[j] < x[i] || (x[j] == x[i] && j < i);
        out[i] = (float)n_below / (float)n;
    }
}

/* Scores what has a successor; returns its end. */
static uint32_t score_partitions(const kv_score_args *args, uint32_t n_sinks, uint32_t lag,
                                 float *out)
{
    float *work = args->work;
    const side keys = take_side(&work, false, args->k_dim, lag);
    const side values = take_side(&work, true, args->v_dim, lag);
    uint32_t first = n_sinks;
    for (; args->view->n - first >= 2 * lag; first += lag) {
        score_side(args->view, &keys, first, lag);
        score_side(args->view, &values, first, lag);
        for (uint32_t i = 0; i < lag; i++)
            keys.spread[i] = (keys.spread[i] + values.spread[i]) / 2;
        rank(keys.spread, lag, out + first);
    }
    return first;
}

void kv_lagkv_score(const kv_score_args *args, uint32_t lag, float *out)
{
    const uint32_t n = args->view->n, n_sinks = kv_score_n_before(args->view, KV_SCORE_SINKS);
    const uint32_t end = score_partitions(args, n_sinks, lag, out);
    if (end == n_sinks) {
        for (uint32_t i = n_sinks; i < n; i++)
            out[i] = (float)(i - n_sinks) / (float)(n - n_sinks);
    } else {
        kv_score_recent(out, end, n, 0); /* ranks are below 1 */
    }
    for (uint32_t i = 0; i < n_sinks; i++)
        out[i] = 2;
}

static void score_default(const kv_score_args *args, float *out)
{
    kv_lagkv_score(args, KV_LAGKV_LAG, out);
}

extern const kv_scorer kv_scorer_lagkv;
const kv_scorer kv_scorer_lagkv = {
    .name = "lagkv", .work_floats = lag_floats, .score = score_default};
