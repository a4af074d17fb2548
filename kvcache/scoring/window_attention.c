/* kvcache/scoring/window_attention.c - see window_attention.h. */
#include "kvcache/scoring/window_attention.h"

#include "kvcache/scoring/score_math.h"

#include <float.h>
#include <math.h>

size_t kv_window_floats(const kv_score_shape *shape)
{
    return 2 * (size_t)KV_SCORE_CHUNK * shape->k_dim + 2 * (size_t)shape->n_queries * shape->group;
}

/* Scores of the chunk; returns how many entries the row sees, the first ones. */
static uint32_t logits(const kv_window *w, uint32_t row, uint32_t first, float x[KV_SCORE_CHUNK])
{
    const kv_score_args *args = w->args;
    const uint32_t position = args->queries.positions[row / args->group];
    uint32_t n_seen = kv_chunk_count(args->view->n, first);
    while (n_seen > 0 && args->view->positions[first + n_seen - 1] > position)
        n_seen--;
    if (n_seen == 0) return 0;
    kv_chunk_dots(args->queries.q + (size_t)row * args->k_dim, w->columns, args->k_dim, x);
    const float *bias = args->view->bias;
    for (uint32_t i = 0; i < n_seen; i++)
        x[i] = kv_score_logit(x[i] * args->scale + (bias != NULL ? bias[first + i] : 0));
    return n_seen;
}

/* Adds the chunk to what normalises the row. */
static void add_chunk(kv_window *w, uint32_t row, uint32_t first)
{
    float x[KV_SCORE_CHUNK], sum = 0;
    const uint32_t n_seen = logits(w, row, first, x);
    if (n_seen == 0) return;
    const float most = fmaxf(w->most[row], kv_score_max(x, n_seen));
    for (uint32_t i = 0; i < n_seen; i++)
        sum += expf(x[i] - most);
    w->sum[row] = w->sum[row] * expf(w->most[row] - most) + sum;
    w->most[row] = most;
}

uint32_t kv_window_read(kv_window *w, uint32_t first)
{
    const kv_score_args *args = w->args;
    const uint32_t count = kv_chunk_count(args->view->n, first);
    args->view->load(args->view, first, count, w->keys, NULL);
    kv_chunk_turn(w->keys, count, args->k_dim, w->columns);
    return count;
}

void kv_window_init(kv_window *w, const kv_score_args *args)
{
    const size_t chunk_floats = (size_t)KV_SCORE_CHUNK * args->k_dim;
    const uint32_t n_rows = args->queries.n * args->group;
    *w = (kv_window){
        .args = args, .n_rows = n_rows, .keys = args->work, .columns = args->work + chunk_floats};
    w->most = w->columns + chunk_floats;
    w->sum = w->most + n_rows;
    if (n_rows == 0) return;
    w->n_open = kv_score_n_before(args->view, args->queries.positions[0]);
    for (uint32_t row = 0; row < n_rows; row++) {
        w->most[row] = args->lse != NULL ? args->lse[row] : -FLT_MAX;
        w->sum[row] = args->lse != NULL ? 1 : 0;
    }
    if (args->lse != NULL) return;
    for (uint32_t first = 0; first < args->view->n; first += KV_SCORE_CHUNK) {
        kv_window_read(w, first);
        for (uint32_t row = 0; row < n_rows; row++)
            add_chunk(w, row, first);
    }
}

void kv_window_lse(const kv_score_args *args, float *out)
{
    kv_window w;
    kv_score_args here = *args;
    here.lse = NULL;
    kv_window_init(&w, &here);
    for (uint32_t row = 0; row < w.n_rows; row++)
        out[row] = w.sum[row] > 0 ? w.most[row] + logf(w.sum[row]) : -INFINITY;
}

void kv_window_shares(const kv_window *w, uint32_t row, uint32_t first, float p[KV_SCORE_CHUNK])
{
    const uint32_t n_seen = logits(w, row, first, p);
    for (uint32_t i = 0; i < n_seen; i++)
        p[i] = expf(p[i] - w->most[row]) / w->sum[row];
    for (uint32_t i = n_seen; i < KV_SCORE_CHUNK; i++)
        p[i] = 0;
}

void kv_window_mean(kv_window *w, float *out)
{
    const uint32_t n = w->args->view->n;
    for (uint32_t first = 0; first < n; first += KV_SCORE_CHUNK) {
        const uint32_t count = kv_window_read(w, first);
        float sum[KV_SCORE_CHUNK] = {0}, p[KV_SCORE_CHUNK];
        for (uint32_t row = 0; row < w->n_rows; row++) {
            kv_window_shares(w, row, first, p);
            for (uint32_t i = 0; i < count; i++)
                sum[i] += p[i];
        }
        for (uint32_t i = 0; i < count; i++)
            out[first + i] = w->n_rows == 0 ? 0 : sum[i] / (float)w->n_rows;
    }
}
