/* tests/kvcache/match_problem.c - see match_problem.h. */
#include "tests/kvcache/match_problem.h"

#include "base/check.h"
#include "tests/kernels/golden_layer.h"

#include <check.h>
#include <math.h>
#include <string.h>

/* ---- inputs ---------------------------------------------------------------------------------- */

void match_make_block(uint32_t head, uint32_t n, block *b)
{
    b->n = n;
    for (uint32_t t = 0; t < n; t++) {
        golden_key(head, t, b->k[t]);
        golden_value(head, t, b->v[t]);
        b->positions[t] = t;
        b->bias[t] = 0;
        b->is_fixed[t] = 0;
    }
}

void match_make_queries(uint32_t head, uint32_t state, uint32_t n, uint32_t position, queries *out)
{
    out->n = GROUP * n;
    for (uint32_t i = 0; i < GROUP * n; i++)
        golden_query_at(GROUP * head + i / n, state + i % n, position + i % n, out->q[i]);
}

/* ---- calls ----------------------------------------------------------------------------------- */

static void load(const kv_score_view *view, uint32_t first, uint32_t count, float *k, float *v)
{
    const block *b = view->ctx;
    ck_assert_uint_ge(count, 1);
    ck_assert_uint_le(count, KV_SCORE_CHUNK);
    ck_assert_uint_le(first + count, b->n);
    if (k != NULL) memcpy(k, b->k[first], count * sizeof b->k[0]);
    if (v != NULL) memcpy(v, b->v[first], count * sizeof b->v[0]);
}

typedef struct puts {
    const block *b;
    matched *out;
    uint32_t next; /* kept entries that have been put, or are fixed */
} puts;

static void skip_fixed(puts *p)
{
    while (p->next < p->out->n && p->b->is_fixed[p->out->kept[p->next]] != 0)
        p->next++;
}

static void put(void *ctx, uint32_t i, const float *value)
{
    puts *p = ctx;
    skip_fixed(p);
    ck_assert_uint_eq(i, p->next++);
    memcpy(p->out->values[i], value, sizeof p->out->values[i]);
}

void match_run(const block *b, const queries *q, uint32_t n_keep, selection how,
               const kv_match_options *options, uint32_t spare, matched *out)
{
    const kv_match_shape shape = {.n_max = b->n + spare,
                                  .t_max = n_keep + spare,
                                  .n_queries_max = q->n + spare,
                                  .k_dim = D,
                                  .v_dim = D};
    const kv_score_view view = {
        .n = b->n, .positions = b->positions, .bias = b->bias, .load = load, .ctx = b};
    const kv_match_args args = {.view = &view,
                                .is_fixed = b->is_fixed,
                                .q = &q->q[0][0],
                                .n_queries = q->n,
                                .scale = (float)(1 / sqrt(D))};
    kv_match match;
    arena a;
    arena_init_measure(&a);
    kv_match_place(&a, &shape, &match);
    ck_assert_int_eq(arena_init(&a, a.used_bytes), ERR_OK);
    kv_match_place(&a, &shape, &match);
    ck_assert_int_eq(a.err, ERR_OK);
    kv_match_begin(&match, &args);
    if (how == HAK)
        kv_match_choose(&match, n_keep, out->kept);
    else if (how == OMP)
        kv_match_choose_omp(&match, n_keep, options, out->kept);
    out->n = n_keep;
    puts p = {.b = b, .out = out};
    for (uint32_t i = 0; i < n_keep; i++)
        memcpy(out->values[i], b->v[out->kept[i]], sizeof out->values[i]);
    const kv_match_out to = {.beta = out->beta, .put = put, .ctx = &p};
    kv_match_fit(&match, (kv_match_set){out->kept, n_keep}, options, &to);
    arena_deinit(&a);
    skip_fixed(&p);
    ck_assert_uint_eq(p.next, n_keep);
    for (uint32_t i = 1; i < n_keep; i++)
        ck_assert_uint_lt(out->kept[i - 1], out->kept[i]);
    ck_assert_uint_lt(out->kept[n_keep - 1], b->n);
}

/* Output of kept entries, or of all with kept NULL; returns the logarithm of the mass. */
static double attend(const block *b, const matched *kept, const float *q, double out[D])
{
    const uint32_t n = kept == NULL ? b->n : kept->n;
    double x[N_MAX], most = -INFINITY, sum = 0;
    for (uint32_t i = 0; i < n; i++) {
        const float *k = b->k[kept == NULL ? i : kept->kept[i]];
        x[i] = kept == NULL ? (double)b->bias[i] : (double)kept->beta[i];
        for (uint32_t c = 0; c < D; c++)
            x[i] += (double)q[c] * (double)k[c] / sqrt(D);
        most = fmax(most, x[i]);
    }
    memset(out, 0, D * sizeof *out);
    for (uint32_t i = 0; i < n; i++) {
        const float *v = kept == NULL ? b->v[i] : kept->values[i];
        sum += exp(x[i] - most);
        for (uint32_t c = 0; c < D; c++)
            out[c] += exp(x[i] - most) * (double)v[c];
    }
    for (uint32_t c = 0; c < D; c++)
        out[c] /= sum;
    return most + log(sum);
}

errors match_measure(const block *b, const matched *kept, const queries *q)
{
    double wrong = 0, all = 0, lse = 0;
    for (uint32_t i = 0; i < q->n; i++) {
        double o[D], o2[D];
        lse += fabs(attend(b, NULL, q->q[i], o) - attend(b, kept, q->q[i], o2));
        for (uint32_t c = 0; c < D; c++) {
            wrong += (o[c] - o2[c]) * (o[c] - o2[c]);
            all += o[c] * o[c];
        }
    }
    return (errors){.output = sqrt(wrong / all), .lse = lse / q->n};
}

errors match_measure_eviction(const block *b, const matched *kept, const queries *q)
{
    matched evicted = *kept;
    for (uint32_t i = 0; i < kept->n; i++) {
        evicted.beta[i] = b->bias[kept->kept[i]];
        memcpy(evicted.values[i], b->v[kept->kept[i]], sizeof evicted.values[i]);
    }
    return match_measure(b, &evicted, q);
}
