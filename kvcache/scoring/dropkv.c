/* kvcache/scoring/dropkv.c - the error that an entry's absence would make (DropKV, proposed for NVIDIA's
 * kvpress, 2026; not a published paper).
 *
 * Without entry j the output o of a query becomes o + p_j / (1 - p_j) (o - v_j), exactly. So
 *     score_j = mean over the group of  sum over the window of  (p_j / (1 - p_j))^2 |v_j - o|^2.
 * Errors of different heads are in one unit, which makes it a good match for adakv. The window itself
 * comes first. The window's size is not settled there; ours is snapkv's.
 *
 * Over ranks p and o are of what the rank holds: the error of its part of the output. */
#include "kvcache/scoring/methods.h"
#include "kvcache/scoring/score_math.h"
#include "kvcache/scoring/window_attention.h"

#include <math.h>

/* 1 - p is no smaller: p is known to about that. */
static const float REST_LEAST = 1e-6f;

typedef struct drop {
    kv_window window;
    float *values, *columns; /* [KV_SCORE_CHUNK][v_dim] and turned over */
    float *output;           /* [n_rows][v_dim] */
} drop;

static size_t drop_floats(const kv_score_shape *shape)
{
    return kv_window_floats(shape) + 2 * (size_t)KV_SCORE_CHUNK * shape->v_dim +
           (size_t)shape->n_queries * shape->group * shape->v_dim;
}

static void drop_init(drop *d, const kv_score_args *args)
{
    kv_window_init(&d->window, args);
    d->values = d->window.sum + d->window.n_rows;
    d->columns = d->values + (size_t)KV_SCORE_CHUNK * args->v_dim;
    d->output = d->columns + (size_t)KV_SCORE_CHUNK * args->v_dim;
}

static uint32_t read_chunk(drop *d, uint32_t first)
{
    const kv_score_args *args = d->window.args;
    const uint32_t count = kv_window_read(&d->window, first);
    args->view->load(args->view, first, count, NULL, d->values);
    return count;
}

/* output = sum_j p_j v_j */
static void add_outputs(drop *d, uint32_t first)
{
    const uint32_t v_dim = d->window.args->v_dim, count = read_chunk(d, first);
    for (uint32_t row = 0; row < d->window.n_rows; row++) {
        float p[KV_SCORE_CHUNK], *output = d->output + (size_t)row * v_dim;
        kv_window_shares(&d->window, row, first, p);
        for (uint32_t i = 0; i < count; i++)
            kv_row_add(p[i], d->values + (size_t)i * v_dim, v_dim, output);
    }
}

static void score_chunk(drop *d, uint32_t first, float *out)
{
    const kv_score_args *args = d->window.args;
    const uint32_t count = read_chunk(d, first);
    double sum[KV_SCORE_CHUNK] = {0};
    kv_chunk_turn(d->values, count, args->v_dim, d->columns);
    for (uint32_t row = 0; row < d->window.n_rows; row++) {
        float p[KV_SCORE_CHUNK], distance[KV_SCORE_CHUNK];
        kv_window_shares(&d->window, row, first, p);
        kv_chunk_distances(d->output + (size_t)row * args->v_dim, d->columns, args->v_dim,
                           distance);
        for (uint32_t i = 0; i < count; i++) {
            const float odds = p[i] / fmaxf(1 - p[i], REST_LEAST);
            sum[i] += (double)odds * (double)odds * (double)kv_score_finite((double)distance[i]);
        }
    }
    for (uint32_t i = 0; i < count; i++)
        out[first + i] = kv_score_finite(sum[i] / args->group);
}

static void score_errors(const kv_score_args *args, float *out)
{
    drop d;
    const uint32_t n = args->view->n;
    drop_init(&d, args);
    for (size_t i = 0; i < (size_t)d.window.n_rows * args->v_dim; i++)
        d.output[i] = 0;
    for (uint32_t first = 0; first < n; first += KV_SCORE_CHUNK)
        add_outputs(&d, first);
    for (uint32_t first = 0; first < n; first += KV_SCORE_CHUNK)
        score_chunk(&d, first, out);
    kv_score_recent(out, d.window.n_open, n, kv_score_max(out, d.window.n_open));
}

extern const kv_scorer kv_scorer_dropkv;
const kv_scorer kv_scorer_dropkv = {.name = "dropkv",
                                    .needs = KV_SCORE_QUERIES,
                                    .n_queries = KV_SNAPKV_WINDOW,
                                    .work_floats = drop_floats,
                                    .score = score_errors};
