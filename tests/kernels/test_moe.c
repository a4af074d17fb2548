/* tests/kernels/test_moe.c - router and experts. */
#include "tests/kernels/fixture.h"

#include <math.h>
#include <stdlib.h>

/* One layer of experts and the arrays of one batch. */
typedef struct layer {
    uint32_t n_tokens, dim, ffn, n_experts, top_k;
    moe_activation activation;
    bool has_bias;
    moe_expert *expert;
    float *x, *weight, *out;
    uint32_t *chosen;
    uint64_t seed;
} layer;

static void choose(layer *l, test_random *r)
{
    for (uint32_t t = 0; t < l->n_tokens; t++) {
        for (uint32_t k = 0; k < l->top_k; k++) { /* distinct: steps around the circle */
            const uint32_t first = k == 0 ? random_below(r, l->n_experts) : l->chosen[t * l->top_k];
            l->chosen[t * l->top_k + k] = (first + k) % l->n_experts;
            l->weight[t * l->top_k + k] = 0.5f + 0.5f * random_signed(r);
        }
    }
}

static layer layer_open(layer shape, dtype type)
{
    test_random r = random_fresh();
    layer l = shape;
    const size_t n_pairs = (size_t)l.n_tokens * l.top_k;
    l.seed = r.seed;
    l.expert = test_alloc(l.n_experts * sizeof *l.expert);
    memset(l.expert, 0, l.n_experts * sizeof *l.expert);
    for (uint32_t e = 0; e < l.n_experts; e++) {
        l.expert[e].gate = random_matrix(&r, type, l.ffn, l.dim);
        l.expert[e].up = random_matrix(&r, type, l.ffn, l.dim);
        l.expert[e].down = random_matrix(&r, type, l.dim, l.ffn);
        if (!l.has_bias) continue;
        l.expert[e].gate_bias = random_matrix(&r, type, 1, l.ffn);
        l.expert[e].up_bias = random_matrix(&r, DTYPE_F32, 1, l.ffn);
        l.expert[e].down_bias = random_matrix(&r, type, 1, l.dim);
    }
    l.x = random_floats(&r, (size_t)l.n_tokens * l.dim);
    l.weight = test_alloc(n_pairs * sizeof *l.weight);
    l.chosen = test_alloc(n_pairs * sizeof *l.chosen);
    l.out = random_floats(&r, (size_t)l.n_tokens * l.dim); /* "added to" */
    choose(&l, &r);
    return l;
}

static void layer_close(layer *l)
{
    for (uint32_t e = 0; e < l->n_experts; e++) {
        matrix_free(&l->expert[e].gate);
        matrix_free(&l->expert[e].up);
        matrix_free(&l->expert[e].down);
        if (!l->has_bias) continue;
        matrix_free(&l->expert[e].gate_bias);
        matrix_free(&l->expert[e].up_bias);
        matrix_free(&l->expert[e].down_bias);
    }
    free(l->expert);
    free(l->x);
    free(l->weight);
    free(l->chosen);
    free(l->out);
}

/* Tokens [first, first + n) of the layer; returns fresh outputs. */
static float *run(const layer *l, const char *isa, uint32_t first, uint32_t n)
{
    dev *d = open_table(isa, 2);
    float *out = test_alloc((size_t)n * l->dim * sizeof *out);
    memcpy(out, l->out + (size_t)first * l->dim, (size_t)n * l->dim * sizeof *out);
    const size_t bytes = moe_scratch_bytes(n, l->dim, l->ffn, l->n_experts, l->top_k);
    void *scratch = aligned_alloc(64, bytes);
    ck_assert_ptr_nonnull(scratch);
    memset(scratch, 0xff, bytes);
    const moe_args args = {.x = l->x + (size_t)first * l->dim,
                           .n_tokens = n,
                           .dim = l->dim,
                           .ffn = l->ffn,
                           .n_experts = l->n_experts,
                           .top_k = l->top_k,
                           .activation = l->activation,
                           .alpha = 1.702f,
                           .limit = 1.5f, /* that some products pass */
                           .expert = l->expert,
                           .chosen = l->chosen + (size_t)first * l->top_k,
                           .weight = l->weight + (size_t)first * l->top_k,
                           .out = out,
                           .scratch = scratch};
    d->ops->moe(d, &args);
    free(scratch);
    dev_close(d);
    return out;
}

static void check_twins(layer shape, dtype type)
{
    layer l = layer_open(shape, type);
    const size_t n = (size_t)l.n_tokens * l.dim;
    float *want = run(&l, "ref", 0, l.n_tokens);
    const double scale = sqrt((double)l.ffn) * (double)l.dim; /* of the sums of products */
    for (const dev_ops *const *t = dev_cpu_tables() + 1; *t != NULL; t++) {
        float *got = run(&l, (*t)->name, 0, l.n_tokens);
        assert_near(got, want, n, (tolerance){1e-6 * scale, 2e-5}, l.seed);
        free(got);
    }
    free(want);
    layer_close(&l);
}

START_TEST(every_table_agrees_with_the_reference)
{
    static const layer shapes[] = {
        {.n_tokens = 1, .dim = 64, .ffn = 128, .n_experts = 8, .top_k = 2},
        {.n_tokens = 1, .dim = 31, .ffn = 17, .n_experts = 4, .top_k = 4},
        {.n_tokens = 2, .dim = 40, .ffn = 24, .n_experts = 60, .top_k = 8},
        {.n_tokens = 19, .dim = 100, .ffn = 70, .n_experts = 3, .top_k = 1},
        {.n_tokens = 150, .dim = 48, .ffn = 33, .n_experts = 2, .top_k = 2},
        {.n_tokens = 64, .dim = 257, .ffn = 96, .n_experts = 16, .top_k = 4},
        {.n_tokens = 1,
         .dim = 64,
         .ffn = 96,
         .n_experts = 8,
         .top_k = 2,
         .activation = MOE_CLAMPED,
         .has_bias = true},
        {.n_tokens = 39,
         .dim = 31,
         .ffn = 45,
         .n_experts = 5,
         .top_k = 3,
         .activation = MOE_CLAMPED,
         .has_bias = true},
        {.n_tokens = 9, .dim = 40, .ffn = 24, .n_experts = 3, .top_k = 2, .has_bias = true},
    };
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        for (size_t t = 0; t < 3; t++)
            check_twins(shapes[i], all_dtypes[t]);
    }
}
END_TEST

START_TEST(a_token_has_the_same_bits_alone_and_in_any_batch)
{
    static const layer shape = {.n_tokens = 150,
                                .dim = 72,
                                .ffn = 57,
                                .n_experts = 5,
                                .top_k = 3,
                                .activation = MOE_CLAMPED,
                                .has_bias = true};
    static const uint32_t sizes[] = {1, 2, 7, 33, 90};
    layer l = layer_open(shape, DTYPE_BF16);
    test_random r = random_fresh();
    for (const dev_ops *const *t = dev_cpu_tables(); *t != NULL; t++) {
        float *whole = run(&l, (*t)->name, 0, l.n_tokens);
        for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
            const uint32_t first = random_below(&r, l.n_tokens - sizes[i] + 1);
            float *part = run(&l, (*t)->name, first, sizes[i]);
            assert_same_bits(part, whole + (size_t)first * l.dim, (size_t)sizes[i] * l.dim, l.seed);
            free(part);
        }
        free(whole);
    }
    layer_close(&l);
}
END_TEST

/* Two ranks, each with two of the experts to itself and every other token of the third and fourth, add up to
 * the whole, to rounding; the weights of what a rank leaves out are not looked at. */
START_TEST(choices_of_other_ranks_are_left_out)
{
    static const layer shape = {.n_tokens = 20, .dim = 32, .ffn = 48, .n_experts = 6, .top_k = 2};
    layer l = layer_open(shape, DTYPE_F32);
    memset(l.out, 0, (size_t)l.n_tokens * l.dim * sizeof *l.out);
    for (const dev_ops *const *t = dev_cpu_tables(); *t != NULL; t++) {
        float *whole = run(&l, (*t)->name, 0, l.n_tokens), *half[2];
        for (uint32_t side = 0; side < 2; side++) {
            layer own = l;
            own.expert = test_alloc(l.n_experts * sizeof *own.expert);
            own.chosen = test_alloc((size_t)l.n_tokens * l.top_k * sizeof *own.chosen);
            memcpy(own.expert, l.expert, l.n_experts * sizeof *own.expert);
            own.expert[side] = own.expert[4 + side] = (moe_expert){0};
            for (uint32_t i = 0; i < l.n_tokens * l.top_k; i++) {
                const uint32_t e = l.chosen[i], token = i / l.top_k;
                const bool is_shared = e == 2 || e == 3;
                const bool is_own = is_shared ? token % 2 == side : e % 2 != side;
                own.chosen[i] = is_own ? e : MOE_ELSEWHERE;
            }
            half[side] = run(&own, (*t)->name, 0, l.n_tokens);
            free(own.chosen);
            free(own.expert);
        }
        for (size_t i = 0; i < (size_t)l.n_tokens * l.dim; i++)
            half[0][i] += half[1][i];
        assert_near(half[0], whole, (size_t)l.n_tokens * l.dim, (tolerance){1e-3, 1e-5}, l.seed);
        free(half[0]);
        free(half[1]);
        free(whole);
    }
    layer_close(&l);
}
END_TEST

/* One expert of one channel: 0.5 * (2 h - 1), h = min(3 x + 1, 7) sigmoid(1.702 ..) (clip(x - 20) + 1). */
START_TEST(clamped_activation_and_biases_are_the_formula)
{
    static const float gate = 3, up = 1, down = 2, gate_bias = 1, up_bias = -20, down_bias = -1;
    static const float xs[3] = {1, 5, 40};
    const matrix one = {.data = &gate, .type = DTYPE_F32, .rows = 1, .cols = 1};
    moe_expert expert = {.gate = one, .up = one, .down = one};
    expert.gate_bias = expert.up_bias = expert.down_bias = one;
    expert.up.data = &up;
    expert.down.data = &down;
    expert.gate_bias.data = &gate_bias;
    expert.up_bias.data = &up_bias;
    expert.down_bias.data = &down_bias;
    for (const dev_ops *const *t = dev_cpu_tables(); *t != NULL; t++) {
        for (int i = 0; i < 3; i++) {
            const double x = (double)xs[i], g = fmin(3 * x + 1, 7);
            const double u = fmax(fmin(x - 20, 7), -7);
            const double want = 0.5 * (2 * g / (1 + exp(-1.702 * g)) * (u + 1) - 1);
            float weight = 0.5f, x_there = xs[i], out = 0;
            uint32_t chosen = 0;
            dev *d = open_table((*t)->name, 1);
            void *scratch = aligned_alloc(64, moe_scratch_bytes(1, 1, 1, 1, 1));
            const moe_args args = {.x = &x_there,
                                   .n_tokens = 1,
                                   .dim = 1,
                                   .ffn = 1,
                                   .n_experts = 1,
                                   .top_k = 1,
                                   .activation = MOE_CLAMPED,
                                   .alpha = 1.702f,
                                   .limit = 7,
                                   .expert = &expert,
                                   .chosen = &chosen,
                                   .weight = &weight,
                                   .out = &out,
                                   .scratch = scratch};
            d->ops->moe(d, &args);
            ck_assert_double_eq_tol((double)out, want, 1e-5 * fabs(want));
            free(scratch);
            dev_close(d);
        }
    }
}
END_TEST

START_TEST(a_scratch_that_does_not_fit_is_reported)
{
    ck_assert_uint_eq(moe_scratch_bytes(UINT32_MAX, 1, UINT32_MAX, 8, UINT32_MAX), 0);
    ck_assert_uint_gt(moe_scratch_bytes(1, 1, 1, 1, 1), 0);
}
END_TEST

typedef struct routed {
    uint32_t expert[8];
    float weight[8];
} routed;

static routed route(const char *isa, const float *logits, uint32_t n_experts, uint32_t top_k,
                    bool renormalise)
{
    routed out = {{0}, {0}};
    dev *d = open_table(isa, 1);
    const router_args args = {.logits = logits,
                              .n_tokens = 1,
                              .n_experts = n_experts,
                              .top_k = top_k,
                              .renormalise = renormalise,
                              .scale = 1,
                              .expert = out.expert,
                              .weight = out.weight};
    d->ops->router(d, &args);
    dev_close(d);
    return out;
}

START_TEST(a_tie_goes_to_the_lower_expert)
{
    static const float logits[6] = {1, 2, 2, -1, 2, 1};
    for (const dev_ops *const *t = dev_cpu_tables(); *t != NULL; t++) {
        const routed r = route((*t)->name, logits, 6, 5, false);
        static const uint32_t want[5] = {1, 2, 4, 0, 5};
        for (size_t i = 0; i < 5; i++)
            ck_assert_uint_eq(r.expert[i], want[i]);
    }
}
END_TEST

START_TEST(weights_are_the_softmax_and_sum_to_one_when_renormalised)
{
    static const float logits[4] = {0, 1, 2, 3};
    const double sum = 1 + exp(1) + exp(2) + exp(3);
    for (const dev_ops *const *t = dev_cpu_tables(); *t != NULL; t++) {
        const routed plain = route((*t)->name, logits, 4, 2, false);
        ck_assert_double_eq_tol((double)plain.weight[0], exp(3) / sum, 1e-7);
        ck_assert_double_eq_tol((double)plain.weight[1], exp(2) / sum, 1e-7);
        const routed whole = route((*t)->name, logits, 4, 2, true);
        ck_assert_double_eq_tol((double)whole.weight[0], exp(1) / (exp(1) + 1), 1e-7);
        ck_assert_double_eq_tol((double)(whole.weight[0] + whole.weight[1]), 1, 1e-7);
    }
}
END_TEST

static routed route_by(const char *isa, router_kind kind, const float *logits, uint32_t n_experts)
{
    routed out = {{0}, {0}};
    dev *d = open_table(isa, 1);
    d->ops->router(d, &(router_args){.kind = kind,
                                     .logits = logits,
                                     .n_tokens = 1,
                                     .n_experts = n_experts,
                                     .top_k = n_experts > 1 ? 2 : 1,
                                     .scale = 0.5f,
                                     .jitter = 0.25f,
                                     .expert = out.expert,
                                     .weight = out.weight});
    dev_close(d);
    return out;
}

START_TEST(a_sigmoid_weighs_each_expert_by_itself)
{
    static const float logits[3] = {-1, 2, 0.5f};
    for (const dev_ops *const *t = dev_cpu_tables(); *t != NULL; t++) {
        const routed r = route_by((*t)->name, ROUTER_SIGMOID, logits, 3);
        ck_assert_uint_eq(r.expert[0], 1);
        ck_assert_uint_eq(r.expert[1], 2);
        ck_assert_double_eq_tol((double)r.weight[0], 0.5 / (1 + exp(-2)), 1e-7);
        ck_assert_double_eq_tol((double)r.weight[1], 0.5 / (1 + exp(-0.5)), 1e-7);
        const routed one = route_by((*t)->name, ROUTER_SIGMOID, logits, 1);
        ck_assert_uint_eq(one.expert[0], 0);
        ck_assert_double_eq_tol((double)one.weight[0], 0.5 / (1 + exp(1)), 1e-7);
    }
}
END_TEST

/* Near are those less than half of the larger magnitude below: of 4 itself, 3 and 2, of 3 itself and 2. */
START_TEST(sparsemixer_weighs_each_choice_among_its_rivals)
{
    static const float logits[5] = {1, 4, 3, -5, 2};
    for (const dev_ops *const *t = dev_cpu_tables(); *t != NULL; t++) {
        const routed r = route_by((*t)->name, ROUTER_SPARSEMIXER, logits, 5);
        ck_assert_uint_eq(r.expert[0], 1);
        ck_assert_uint_eq(r.expert[1], 2);
        ck_assert_double_eq_tol((double)r.weight[0], 0.5 / (1 + exp(-1) + exp(-2)), 1e-7);
        ck_assert_double_eq_tol((double)r.weight[1], 0.5 / (1 + exp(-1)), 1e-7);
    }
}
END_TEST

/* Eight experts in four groups, of which two count. */
static routed route_in_groups(const char *isa, router_kind kind, const float *logits,
                              const float *bias, uint32_t n_group_best)
{
    routed out = {{0}, {0}};
    dev *d = open_table(isa, 1);
    const router_args args = {.kind = kind,
                              .logits = logits,
                              .n_tokens = 1,
                              .n_experts = 8,
                              .top_k = 3,
                              .scale = 2.5f,
                              .choice_bias = bias,
                              .choice_bias_type = DTYPE_F32,
                              .n_groups = 4,
                              .top_groups = 2,
                              .n_group_best = n_group_best,
                              .expert = out.expert,
                              .weight = out.weight};
    d->ops->router(d, &args);
    dev_close(d);
    return out;
}

START_TEST(groups_are_chosen_before_experts)
{
    static const float logits[8] = {3, -9, 2, 1.9f, 2.5f, -9, 0, 0};
    static const uint32_t by_best[2] = {0, 4}, by_two[2] = {0, 2}; /* a group of two likely ones */
    double sum = 0;
    for (int e = 0; e < 8; e++)
        sum += exp((double)logits[e]);
    for (const dev_ops *const *t = dev_cpu_tables(); *t != NULL; t++) {
        const routed one = route_in_groups((*t)->name, ROUTER_SOFTMAX, logits, NULL, 1);
        const routed two = route_in_groups((*t)->name, ROUTER_SOFTMAX, logits, NULL, 2);
        ck_assert_mem_eq(one.expert, by_best, sizeof by_best);
        ck_assert_mem_eq(two.expert, by_two, sizeof by_two);
        for (int i = 0; i < 2; i++)
            ck_assert_double_eq_tol((double)one.weight[i],
                                    2.5 * exp((double)logits[by_best[i]]) / sum, 1e-6);
    }
}
END_TEST

START_TEST(a_bias_chooses_and_does_not_weigh)
{
    static const float logits[8] = {0, 1, 0, 0.5f, 2, 3, -1, 0};
    static const float bias[8] = {0, 0, 4, 4, 0, -2, 0, 0};
    /* Groups by their sums: 2 and 3 with 8 more, then 0 and 1 with 1.23; 4 and 5 have 0.88 - 1.05. */
    static const uint32_t want[3] = {3, 2, 1};
    for (const dev_ops *const *t = dev_cpu_tables(); *t != NULL; t++) {
        const routed r = route_in_groups((*t)->name, ROUTER_SIGMOID, logits, bias, 2);
        ck_assert_mem_eq(r.expert, want, sizeof want);
        for (int i = 0; i < 3; i++)
            ck_assert_double_eq_tol((double)r.weight[i], 2.5 / (1 + exp(-(double)logits[want[i]])),
                                    1e-6);
    }
}
END_TEST

START_TEST(broken_logits_still_choose_distinct_experts)
{
    const float logits[4] = {NAN, INFINITY, NAN, -INFINITY};
    for (const dev_ops *const *t = dev_cpu_tables(); *t != NULL; t++) {
        const routed r = route((*t)->name, logits, 4, 4, true);
        uint32_t seen = 0;
        for (size_t i = 0; i < 4; i++)
            seen |= 1u << r.expert[i];
        ck_assert_uint_eq(seen, 0xf);
    }
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE(every_table_agrees_with_the_reference),
    TEST_CASE(a_token_has_the_same_bits_alone_and_in_any_batch),
    TEST_CASE(choices_of_other_ranks_are_left_out),
    TEST_CASE(clamped_activation_and_biases_are_the_formula),
    TEST_CASE(a_scratch_that_does_not_fit_is_reported),
    TEST_CASE(a_tie_goes_to_the_lower_expert),
    TEST_CASE(weights_are_the_softmax_and_sum_to_one_when_renormalised),
    TEST_CASE(a_sigmoid_weighs_each_expert_by_itself),
    TEST_CASE(sparsemixer_weighs_each_choice_among_its_rivals),
    TEST_CASE(groups_are_chosen_before_experts),
    TEST_CASE(a_bias_chooses_and_does_not_weigh),
    TEST_CASE(broken_logits_still_choose_distinct_experts),
    TEST_CASES_END,
};
