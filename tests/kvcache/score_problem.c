/* tests/kvcache/score_problem.c - see score_problem.h. */
#include "tests/kvcache/score_problem.h"

#include "tests/kernels/golden_layer.h"

#include "base/random.h"

#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { GUARD = 64 }; /* floats behind an array that nobody may touch */
static const float GUARD_VALUE = 123456.75f;

static void *zeros(size_t n, size_t bytes)
{
    void *x = calloc(n + 1, bytes);
    ck_assert_ptr_nonnull(x);
    return x;
}

static void load_rows(const kv_score_view *view, uint32_t first, uint32_t count, float *k, float *v)
{
    const score_problem *p = view->ctx;
    ck_assert_uint_ge(count, 1);
    ck_assert_uint_le(count, KV_SCORE_CHUNK);
    ck_assert_uint_le((uint64_t)first + count, p->n);
    if (k != NULL) memcpy(k, p->k + (size_t)first * p->k_dim, (size_t)count * p->k_dim * sizeof *k);
    if (v != NULL) memcpy(v, p->v + (size_t)first * p->v_dim, (size_t)count * p->v_dim * sizeof *v);
}

static void make_args(score_problem *p)
{
    p->view = (kv_score_view){.n = p->n, .positions = p->positions, .load = load_rows, .ctx = p};
    p->rope = (kv_rope){.freq = p->freq, .n = p->k_dim / 2 * 2, .scale = 1};
    p->projection = (matrix){.data = p->out_proj,
                             .type = DTYPE_F32,
                             .rows = p->d_model,
                             .cols = p->n_kv_heads * p->group * p->v_dim};
    p->args = (kv_score_args){.view = &p->view,
                              .n_layers = 1,
                              .n_kv_heads = p->n_kv_heads,
                              .group = p->group,
                              .k_dim = p->k_dim,
                              .v_dim = p->v_dim,
                              .scale = 1 / sqrtf((float)p->k_dim),
                              .length = p->n == 0 ? 0 : p->positions[p->n - 1] + 1,
                              .n_keep = p->n / 2,
                              .seed = 5,
                              .queries = {p->n_queries, p->q, p->q_positions, p->input_norm},
                              .stats = {p->n, p->mean, p->cov},
                              .rope = &p->rope,
                              .n_prompt = p->n,
                              .replay = p->replay,
                              .mass = p->mass,
                              .local = p->local,
                              .last_use = p->last_use,
                              .n_uses = p->n_uses,
                              .now = 1000,
                              .out_proj = &p->projection};
}

void score_problem_init(score_problem *p, const score_shape *s)
{
    *p = (score_problem){.n = s->n,
                         .group = s->group,
                         .k_dim = s->k_dim,
                         .v_dim = s->v_dim,
                         .n_queries = s->n_queries,
                         .d_model = s->d_model,
                         .n_kv_heads = 2};
    p->positions = zeros(s->n, sizeof *p->positions);
    p->k = zeros((size_t)s->n * s->k_dim, sizeof *p->k);
    p->v = zeros((size_t)s->n * s->v_dim, sizeof *p->v);
    p->q = zeros((size_t)s->n_queries * s->group * s->k_dim, sizeof *p->q);
    p->q_positions = zeros(s->n_queries, sizeof *p->q_positions);
    p->mean = zeros((size_t)s->group * s->k_dim, sizeof *p->mean);
    p->cov = zeros((size_t)s->group * s->k_dim * s->k_dim, sizeof *p->cov);
    p->freq = zeros(s->k_dim / 2, sizeof *p->freq);
    p->mass = zeros(s->n, sizeof *p->mass);
    p->local = zeros(s->n, sizeof *p->local);
    p->replay = zeros((size_t)s->n * s->group, sizeof *p->replay);
    p->input_norm = zeros(s->n_queries, sizeof *p->input_norm);
    p->last_use = zeros(s->n, sizeof *p->last_use);
    p->n_uses = zeros(s->n, sizeof *p->n_uses);
    p->out_proj = zeros((size_t)s->d_model * 2 * s->group * s->v_dim, sizeof *p->out_proj);
    for (uint32_t c = 0; c < s->k_dim / 2; c++)
        p->freq[c] = powf(10000, -2.0f * (float)c / (float)s->k_dim);
    for (uint32_t i = 0; i < s->n; i++)
        p->positions[i] = i;
    for (uint32_t i = 0; i < s->n_queries; i++)
        p->q_positions[i] = s->n - s->n_queries + i;
    make_args(p);
}

void score_problem_deinit(score_problem *p)
{
    void *const arrays[] = {p->positions, p->k,        p->v,      p->q,     p->q_positions,
                            p->mean,      p->cov,      p->freq,   p->mass,  p->n_uses,
                            p->last_use,  p->out_proj, p->replay, p->local, p->input_norm};
    for (size_t i = 0; i < sizeof arrays / sizeof arrays[0]; i++)
        free(arrays[i]);
}

/* ---- random ---------------------------------------------------------------------------------------- */

static void fill(float *x, size_t n, uint64_t seed, uint64_t stream)
{
    for (size_t i = 0; i < n; i++)
        x[i] = 2 * random_uniform(seed, stream, i) - 1;
}

/* cov = A A' / k_dim with a random A. */
static void fill_covariances(score_problem *p, uint64_t seed)
{
    const uint32_t d = p->k_dim;
    float *a = zeros((size_t)d * d, sizeof *a);
    for (uint32_t g = 0; g < p->group; g++) {
        float *cov = p->cov + (size_t)g * d * d;
        fill(a, (size_t)d * d, seed, 100 + g);
        for (uint32_t r = 0; r < d; r++) {
            for (uint32_t c = 0; c < d; c++) {
                for (uint32_t i = 0; i < d; i++)
                    cov[r * d + c] += a[r * d + i] * a[c * d + i] / (float)d;
            }
        }
    }
    free(a);
}

void score_problem_random(score_problem *p, const score_shape *s, uint64_t seed)
{
    score_problem_init(p, s);
    fill(p->k, (size_t)s->n * s->k_dim, seed, 1);
    fill(p->v, (size_t)s->n * s->v_dim, seed, 2);
    fill(p->q, (size_t)s->n_queries * s->group * s->k_dim, seed, 3);
    fill(p->mean, (size_t)s->group * s->k_dim, seed, 4);
    fill(p->out_proj, (size_t)s->d_model * 2 * s->group * s->v_dim, seed, 5);
    fill_covariances(p, seed);
    uint32_t position = 0;
    for (uint32_t i = 0; i < s->n; i++) {
        p->positions[i] = position;
        p->mass[i] = 3 * random_uniform(seed, 6, i);
        p->local[i] = 2 * random_uniform(seed, 10, i);
        p->last_use[i] = random_at(seed, 7, i / 8).word[0] % 1001;
        p->n_uses[i] = random_at(seed, 8, i / 8).word[0] % 50;
        position += i >= 4 && i + 1 + s->n_queries < s->n ? 2 : 1;
    }
    for (uint32_t i = 0; i < s->n * s->group; i++)
        p->replay[i] = random_uniform(seed, 9, i);
    for (uint32_t i = 0; i < s->n_queries; i++) {
        p->q_positions[i] = p->positions[s->n - s->n_queries + i];
        p->input_norm[i] = 0.5f + random_uniform(seed, 11, i);
    }
    make_args(p);
}

/* ---- golden ---------------------------------------------------------------------------------------- */

/* mean and cov over the queries of positions 4 to 47, before RoPE. */
static void golden_stats(score_problem *p, uint32_t g, uint32_t head)
{
    enum { D = GOLDEN_DIM, FIRST = 4, N = GOLDEN_TOKENS - FIRST };
    float q[N][D];
    double mean[D] = {0};
    for (uint32_t t = 0; t < N; t++) {
        golden_query_before_rope(head, FIRST + t, q[t]);
        for (uint32_t c = 0; c < D; c++)
            mean[c] += (double)q[t][c] / N;
    }
    for (uint32_t r = 0; r < D; r++) {
        p->mean[g * D + r] = (float)mean[r];
        for (uint32_t c = 0; c < D; c++) {
            double sum = 0;
            for (uint32_t t = 0; t < N; t++)
                sum += ((double)q[t][r] - mean[r]) * ((double)q[t][c] - mean[c]) / N;
            p->cov[(g * D + r) * D + c] = (float)sum;
        }
    }
    p->args.stats.n = N;
}

/* Adds what the dense attention of query t gives to every entry. */
static void golden_mass(score_problem *p, uint32_t head, uint32_t t)
{
    float q[GOLDEN_DIM];
    double x[GOLDEN_TOKENS], sum = 0;
    golden_query(head, t, q);
    for (uint32_t i = 0; i <= t; i++) {
        x[i] = 0;
        for (uint32_t c = 0; c < GOLDEN_DIM; c++)
            x[i] += (double)q[c] * (double)p->k[i * GOLDEN_DIM + c];
        x[i] = exp(x[i] / sqrt(GOLDEN_DIM));
        sum += x[i];
    }
    for (uint32_t i = 0; i <= t; i++)
        p->mass[i] += (float)(x[i] / sum / p->group);
}

void score_problem_golden(score_problem *p, uint32_t kv_head, uint32_t n_queries)
{
    enum { GROUP = 2 };
    score_problem_init(p, &(score_shape){.n = GOLDEN_TOKENS,
                                         .group = GROUP,
                                         .k_dim = GOLDEN_DIM,
                                         .v_dim = GOLDEN_DIM,
                                         .n_queries = n_queries,
                                         .d_model = GOLDEN_WIDTH});
    p->args.head = kv_head;
    golden_out_proj(p->out_proj);
    for (uint32_t t = 0; t < GOLDEN_TOKENS; t++) {
        golden_key(kv_head, t, p->k + t * GOLDEN_DIM);
        golden_value(kv_head, t, p->v + t * GOLDEN_DIM);
    }
    for (uint32_t g = 0; g < GROUP; g++) {
        const uint32_t head = kv_head * GROUP + g;
        golden_stats(p, g, head);
        for (uint32_t t = 0; t < GOLDEN_TOKENS; t++)
            golden_mass(p, head, t);
        for (uint32_t i = 0; i < n_queries; i++)
            golden_query(head, GOLDEN_TOKENS - n_queries + i, p->q + (i * GROUP + g) * GOLDEN_DIM);
    }
}

/* ---- running --------------------------------------------------------------------------------------- */

/* A pointer that a scorer may not follow. */
static void *const UNASKED = (void *)(uintptr_t)0x10;

static void poison_unasked(kv_score_args *args, uint32_t needs)
{
    if ((needs & KV_SCORE_QUERIES) == 0)
        args->queries = (kv_score_queries){999, UNASKED, UNASKED, UNASKED};
    if ((needs & KV_SCORE_INPUT_NORM) == 0) args->queries.input_norm = UNASKED;
    if ((needs & KV_SCORE_STATS) == 0) args->stats = (kv_query_stats){999, UNASKED, UNASKED};
    if ((needs & KV_SCORE_MASS) == 0) args->mass = UNASKED;
    if ((needs & KV_SCORE_LOCAL) == 0) args->local = UNASKED;
    if ((needs & KV_SCORE_REPLAY) == 0) args->replay = UNASKED;
    if ((needs & KV_SCORE_USES) == 0) args->last_use = args->n_uses = UNASKED;
    if ((needs & KV_SCORE_OUT_PROJ) == 0) args->out_proj = UNASKED;
}

static float *guarded(size_t n, float dirt)
{
    float *x = malloc((n + GUARD) * sizeof *x);
    ck_assert_ptr_nonnull(x);
    for (size_t i = 0; i < n + GUARD; i++)
        x[i] = i < n ? dirt : GUARD_VALUE;
    return x;
}

static void check_guard(const char *name, const float *x, size_t n)
{
    for (size_t i = n; i < n + GUARD; i++)
        ck_assert_msg(f32_bits(x[i]) == f32_bits(GUARD_VALUE), "%s wrote behind its memory", name);
}

void score_problem_run(const score_problem *p, const kv_scorer *scorer, float dirt, float *out)
{
    const kv_score_shape shape = {.n_max = p->n,
                                  .group = p->group,
                                  .k_dim = p->k_dim,
                                  .v_dim = p->v_dim,
                                  .n_queries = p->n_queries};
    const size_t n_work = scorer->work_floats == NULL ? 0 : scorer->work_floats(&shape);
    float *work = guarded(n_work, dirt), *scores = guarded(p->n, dirt);
    kv_score_args args = p->args;
    poison_unasked(&args, scorer->needs);
    args.work = n_work == 0 ? UNASKED : work;
    scorer->score(&args, scores);
    check_guard(scorer->name, work, n_work);
    check_guard(scorer->name, scores, p->n);
    memcpy(out, scores, p->n * sizeof *out);
    free(work);
    free(scores);
}
