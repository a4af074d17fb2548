/* tests/kernels/test_cuda_moe.c - router and experts of CUDA against the reference. */
#include "tests/kernels/cuda_fixture.h"

#include <math.h>
#include <stdlib.h>

#define N_OF(array) (sizeof(array) / sizeof(array)[0])

typedef struct routing {
    uint32_t n_tokens, n_experts, top_k;
    uint32_t n_levels; /* of logits; few make ties */
    router_kind kind;
    bool has_choice_bias;
    uint32_t n_groups, top_groups, n_group_best;
} routing;

/* Experts must be equal, weights to rounding. Logits: [n_tokens][n_experts] */
static void check_router(gpu *g, const routing *r, const float *logits, bool renormalise)
{
    const size_t n = (size_t)r->n_tokens * r->top_k;
    uint32_t *want = test_alloc(n * sizeof *want), *got = test_alloc(n * sizeof *got);
    matrix bias = random_matrix(&g->random, DTYPE_BF16, 1, r->n_experts);
    router_args args = {.kind = r->kind,
                        .choice_bias = r->has_choice_bias ? bias.data : NULL,
                        .choice_bias_type = DTYPE_BF16,
                        .n_groups = r->n_groups,
                        .top_groups = r->top_groups,
                        .n_group_best = r->n_group_best,
                        .jitter = 0.2f,
                        .logits = logits,
                        .n_tokens = r->n_tokens,
                        .n_experts = r->n_experts,
                        .top_k = r->top_k,
                        .renormalise = renormalise,
                        .scale = 0.75f,
                        .expert = want,
                        .weight = poisoned_floats(n)};
    g->cpu->ops->router(g->cpu, &args);
    float *want_weight = args.weight;
    args.logits = gpu_put(g, logits, (size_t)r->n_tokens * r->n_experts * sizeof *logits);
    if (r->has_choice_bias) args.choice_bias = gpu_put_matrix(g, &bias).data;
    args.expert = (uint32_t *)gpu_poisoned(g, n);
    args.weight = gpu_poisoned(g, n);
    g->ops->router(g->d, &args);
    gpu_get(g, got, args.expert, n * sizeof *got);
    float *weight = gpu_get_floats(g, args.weight, n);
    ck_assert_mem_eq(got, want, n * sizeof *got);
    for (size_t i = 0; i < n; i++) {
        if (isnan(want_weight[i])) {
            ck_assert(isnan(weight[i]));
        } else {
            assert_near(weight + i, want_weight + i, 1, (tolerance){0, 1e-6}, g->random.seed);
        }
    }
    matrix_free(&bias);
    free(want);
    free(got);
    free(want_weight);
    free(weight);
}

START_TEST(the_router_chooses_as_the_reference_ties_included)
{
    static const routing problems[] = {
        {.n_tokens = 1, .n_experts = 1, .top_k = 1, .n_levels = 9},
        {.n_tokens = 3, .n_experts = 8, .top_k = 2, .n_levels = 2},
        {.n_tokens = 31, .n_experts = 64, .top_k = 8, .n_levels = 5},
        {.n_tokens = 5, .n_experts = 100, .top_k = 16, .n_levels = 3},
        {.n_tokens = 2, .n_experts = 1024, .top_k = 8, .n_levels = 1000},
        {.n_tokens = 4, .n_experts = 40, .top_k = 6, .n_levels = 1},
        {7, 40, 4, 1000, ROUTER_SIGMOID, true, 0, 0, 0},
        {9, 256, 8, 1000, ROUTER_SIGMOID, true, 8, 4, 2},
        {5, 160, 6, 3, ROUTER_SOFTMAX, false, 8, 3, 1},
        {6, 8, 4, 2, ROUTER_SIGMOID, false, 8, 5, 2},
    };
    for (size_t i = 0; i < N_OF(problems); i++) {
        const routing *r = &problems[i];
        gpu g = gpu_open(0);
        const size_t n = (size_t)r->n_tokens * r->n_experts;
        float *logits = test_alloc(n * sizeof *logits);
        for (size_t k = 0; k < n; k++)
            logits[k] = 0.25f * (float)random_below(&g.random, r->n_levels);
        check_router(&g, r, logits, false);
        check_router(&g, r, logits, true);
        logits[n / 2] = NAN;
        logits[0] = INFINITY;
        check_router(&g, r, logits, true);
        free(logits);
        gpu_close(&g);
    }
}

/* Kinds of their own, with logits that are near to each other and far. */
START_TEST(other_routers_choose_and_weigh_as_the_reference)
{
    static const routing problems[] = {{1, 1, 1, 9, 0, false, 0, 0, 0},
                                       {3, 8, 2, 4, 0, false, 0, 0, 0},
                                       {31, 64, 2, 50, 0, false, 0, 0, 0},
                                       {5, 100, 16, 30, 0, false, 0, 0, 0},
                                       {2, 1024, 2, 1000, 0, false, 0, 0, 0}};
    for (size_t i = 0; i < 2 * N_OF(problems); i++) {
        routing r = problems[i / 2];
        gpu g = gpu_open(0);
        const size_t n = (size_t)r.n_tokens * r.n_experts;
        float *logits = test_alloc(n * sizeof *logits);
        for (size_t k = 0; k < n; k++)
            logits[k] = 0.25f * ((float)random_below(&g.random, r.n_levels) - 3);
        r.kind = i % 2 == 0 ? ROUTER_SIGMOID : ROUTER_SPARSEMIXER;
        check_router(&g, &r, logits, false);
        free(logits);
        gpu_close(&g);
    }
}

typedef struct problem {
    uint32_t n_tokens, dim, ffn, n_experts, top_k;
    dtype type;
} problem;

typedef struct experts {
    problem p;
    moe_expert *host, *there; /* [n_experts]; `there` holds device pointers, in device memory */
    float *x, *weight, *out;
    uint32_t *chosen;
} experts;

/* Different experts for every token, a sixth of them elsewhere. */
static void choose(gpu *g, experts *e)
{
    const problem *p = &e->p;
    for (uint32_t t = 0; t < p->n_tokens; t++) {
        const uint32_t first = random_below(&g->random, p->n_experts);
        const uint32_t step = p->n_experts % 7 == 0 ? 1 : 7;
        for (uint32_t c = 0; c < p->top_k; c++) {
            const bool is_here = random_below(&g->random, 6) != 0;
            e->chosen[t * p->top_k + c] =
                is_here ? (first + c * step) % p->n_experts : MOE_ELSEWHERE;
        }
    }
}

/* Experts in pairs have biases and the other activation. */
static bool is_clamped(const problem *p)
{
    return p->top_k == 2;
}

static matrix random_part(gpu *g, dtype type, uint32_t rows, uint32_t cols, uint32_t row_step)
{
    if (!dtype_has_scales(type)) return random_matrix(&g->random, type, rows, cols);
    return random_scaled_matrix(&g->random, (matrix){.type = type,
                                                     .rows = rows,
                                                     .cols = cols,
                                                     .row_step = row_step,
                                                     .block_rows = 128,
                                                     .block_cols = 128});
}

static experts experts_open(gpu *g, const problem *p)
{
    experts e = {.p = *p, .host = test_alloc(p->n_experts * sizeof *e.host)};
    memset(e.host, 0, p->n_experts * sizeof *e.host);
    moe_expert *there = test_alloc(p->n_experts * sizeof *there);
    for (uint32_t i = 0; i < p->n_experts; i++) {
        const uint32_t step = p->type == DTYPE_MXFP4 ? 2 : 1; /* gate and up take turns */
        e.host[i].gate = random_part(g, p->type, p->ffn, p->dim, step);
        e.host[i].up = random_part(g, p->type, p->ffn, p->dim, step);
        e.host[i].down = random_part(g, p->type, p->dim, p->ffn, 1);
        there[i] = (moe_expert){.gate = gpu_put_matrix(g, &e.host[i].gate),
                                .up = gpu_put_matrix(g, &e.host[i].up),
                                .down = gpu_put_matrix(g, &e.host[i].down)};
        if (!is_clamped(p)) continue;
        e.host[i].gate_bias = random_matrix(&g->random, DTYPE_BF16, 1, p->ffn);
        e.host[i].up_bias = random_matrix(&g->random, DTYPE_F16, 1, p->ffn);
        e.host[i].down_bias = random_matrix(&g->random, DTYPE_F32, 1, p->dim);
        there[i].gate_bias = gpu_put_matrix(g, &e.host[i].gate_bias);
        there[i].up_bias = gpu_put_matrix(g, &e.host[i].up_bias);
        there[i].down_bias = gpu_put_matrix(g, &e.host[i].down_bias);
    }
    e.there = gpu_put(g, there, p->n_experts * sizeof *there);
    free(there);
    e.x = random_floats(&g->random, (size_t)p->n_tokens * p->dim);
    e.weight = random_floats(&g->random, (size_t)p->n_tokens * p->top_k);
    e.out = random_floats(&g->random, (size_t)p->n_tokens * p->dim);
    e.chosen = test_alloc((size_t)p->n_tokens * p->top_k * sizeof *e.chosen);
    choose(g, &e);
    return e;
}

static void experts_close(experts *e)
{
    for (uint32_t i = 0; i < e->p.n_experts; i++) {
        matrix_free(&e->host[i].gate);
        matrix_free(&e->host[i].up);
        matrix_free(&e->host[i].down);
        if (!is_clamped(&e->p)) continue;
        matrix_free(&e->host[i].gate_bias);
        matrix_free(&e->host[i].up_bias);
        matrix_free(&e->host[i].down_bias);
    }
    free(e->host);
    free(e->x);
    free(e->weight);
    free(e->out);
    free(e->chosen);
}

/* Tokens [first, first + n) on the GPU. */
static float *run(gpu *g, const experts *e, uint32_t first, uint32_t n)
{
    const problem *p = &e->p;
    const size_t x_at = (size_t)first * p->dim, pair_at = (size_t)first * p->top_k;
    const size_t n_pairs = (size_t)n * p->top_k, n_x = (size_t)n * p->dim;
    const size_t scratch = cuda_moe_scratch_bytes(n, p->dim, p->ffn, p->n_experts, p->top_k);
    const moe_args args = {.x = gpu_put(g, e->x + x_at, n_x * sizeof *e->x),
                           .n_tokens = n,
                           .dim = p->dim,
                           .ffn = p->ffn,
                           .n_experts = p->n_experts,
                           .top_k = p->top_k,
                           .activation = is_clamped(p) ? MOE_CLAMPED : MOE_SILU,
                           .alpha = 1.702f,
                           .limit = 1.5f,
                           .expert = e->there,
                           .chosen = gpu_put(g, e->chosen + pair_at, n_pairs * sizeof *e->chosen),
                           .weight = gpu_put(g, e->weight + pair_at, n_pairs * sizeof *e->weight),
                           .out = gpu_put(g, e->out + x_at, n_x * sizeof *e->out),
                           .scratch = gpu_poisoned(g, (scratch + 3) / 4)};
    g->ops->moe(g->d, &args);
    return gpu_get_floats(g, args.out, n_x);
}

static float *expect(gpu *g, const experts *e)
{
    const problem *p = &e->p;
    const size_t n = (size_t)p->n_tokens * p->dim;
    float *out = test_alloc(n * sizeof *out);
    memcpy(out, e->out, n * sizeof *out);
    moe_args args = {.x = e->x,
                     .n_tokens = p->n_tokens,
                     .dim = p->dim,
                     .ffn = p->ffn,
                     .n_experts = p->n_experts,
                     .top_k = p->top_k,
                     .activation = is_clamped(p) ? MOE_CLAMPED : MOE_SILU,
                     .alpha = 1.702f,
                     .limit = 1.5f,
                     .expert = e->host,
                     .chosen = e->chosen,
                     .weight = e->weight,
                     .out = out};
    args.scratch =
        test_alloc(moe_scratch_bytes(p->n_tokens, p->dim, p->ffn, p->n_experts, p->top_k) + 64);
    void *scratch = args.scratch;
    args.scratch = (void *)(((uintptr_t)scratch + 63) / 64 * 64);
    g->cpu->ops->moe(g->cpu, &args);
    free(scratch);
    return out;
}

static const problem problems[] = {
    {1, 1, 1, 1, 1, DTYPE_F32},      {1, 72, 40, 8, 2, DTYPE_BF16},
    {5, 130, 33, 64, 8, DTYPE_BF16}, {31, 40, 70, 5, 4, DTYPE_BF16},
    {33, 72, 65, 3, 2, DTYPE_BF16},  {35, 36, 66, 4, 2, DTYPE_F32},
    {9, 31, 17, 6, 3, DTYPE_F16},    {2, 1040, 16, 4, 2, DTYPE_BF16},
    {150, 16, 16, 2, 1, DTYPE_BF16}, {3, 160, 130, 4, 2, DTYPE_FP8},
    {35, 160, 130, 3, 2, DTYPE_FP8}, {2, 96, 64, 4, 2, DTYPE_MXFP4},
    {35, 96, 64, 3, 2, DTYPE_MXFP4},
};

START_TEST(experts_are_summed_as_the_reference_does)
{
    for (size_t i = 0; i < N_OF(problems); i++) {
        gpu g = gpu_open(0);
        experts e = experts_open(&g, &problems[i]);
        const problem *p = &e.p;
        float *want = expect(&g, &e), *got = run(&g, &e, 0, p->n_tokens);
        /* hidden is of the order of dim / 3, and is summed over ffn with random signs. */
        const double size = (double)p->dim / 3 * sqrt((double)p->ffn * p->top_k) + 1;
        const bool is_exact = p->type == DTYPE_F32 || p->type == DTYPE_F16;
        const double part = is_exact ? 3e-6 : dtype_has_scales(p->type) ? 2e-4 : 3e-5;
        assert_near(got, want, (size_t)p->n_tokens * p->dim, (tolerance){part * size, part},
                    g.random.seed);
        free(want);
        free(got);
        experts_close(&e);
        gpu_close(&g);
    }
}

START_TEST(a_token_has_the_same_bits_in_every_batch)
{
    for (size_t i = 0; i < N_OF(problems); i++) {
        gpu g = gpu_open(0);
        experts e = experts_open(&g, &problems[i]);
        const uint32_t n = e.p.n_tokens;
        float *whole = run(&g, &e, 0, n);
        float *alone = run(&g, &e, n - 1, 1), *half = run(&g, &e, 0, (n + 1) / 2);
        assert_same_bits(alone, whole + (size_t)(n - 1) * e.p.dim, e.p.dim, g.random.seed);
        assert_same_bits(half, whole, (size_t)((n + 1) / 2) * e.p.dim, g.random.seed);
        free(whole);
        free(alone);
        free(half);
        experts_close(&e);
        gpu_close(&g);
    }
}

START_TEST(scratch_whose_size_overflows_is_refused)
{
    ck_assert_uint_eq(cuda_moe_scratch_bytes(UINT32_MAX, UINT32_MAX, UINT32_MAX, 1, UINT32_MAX), 0);
    ck_assert_uint_gt(cuda_moe_scratch_bytes(1, 1, 1, 1, 1), 0);
}

const test_case test_cases[] = {
    TEST_CASE(other_routers_choose_and_weigh_as_the_reference),
    TEST_CASE(the_router_chooses_as_the_reference_ties_included),
    TEST_CASE(experts_are_summed_as_the_reference_does),
    TEST_CASE(a_token_has_the_same_bits_in_every_batch),
    TEST_CASE(scratch_whose_size_overflows_is_refused),
    TEST_CASES_END,
};
