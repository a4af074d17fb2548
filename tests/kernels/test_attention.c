/* tests/kernels/test_attention.c - attention over blocks, its fold and its merge. */
#include "tests/kernels/fixture.h"

#include <math.h>
#include <stdlib.h>

/* One problem: a whole context of one KV head, and queries that look at it. */
typedef struct problem {
    uint32_t n_slots, block_slots, group, k_dim, v_dim, n_queries, window;
    uint32_t first_query; /* position of query 0 */
    dtype type;
    bool has_bias;
    uint64_t dead_seed; /* 0: all slots live; else about a third is dead */
} problem;

typedef struct context {
    problem p;
    test_random random;
    matrix k, v;
    float *q, *bias;
    uint64_t *live;      /* [n_blocks] */
    uint32_t *positions; /* of the queries */
    attn_span *spans;    /* [n_slots] at most */
    attn_block *blocks;
    uint32_t n_blocks;
} context;

static context context_open(problem p)
{
    context c = {.p = p, .random = random_fresh()};
    test_random *r = &c.random;
    c.n_blocks = (p.n_slots + p.block_slots - 1) / p.block_slots;
    c.k = random_matrix(r, p.type, p.n_slots, p.k_dim);
    c.v = random_matrix(r, p.type, p.n_slots, p.v_dim);
    c.q = random_floats(r, (size_t)p.n_queries * p.group * p.k_dim);
    c.bias = random_floats(r, p.n_slots);
    c.live = test_alloc(c.n_blocks * sizeof *c.live);
    c.positions = test_alloc(p.n_queries * sizeof *c.positions);
    c.spans = test_alloc(p.n_slots * sizeof *c.spans);
    c.blocks = test_alloc(c.n_blocks * sizeof *c.blocks);
    for (uint32_t b = 0; b < c.n_blocks; b++) {
        c.live[b] = UINT64_MAX;
        for (uint32_t i = 0; p.dead_seed != 0 && i < 64; i++) {
            if (random_below(r, 3) == 0) c.live[b] &= ~(UINT64_C(1) << i);
        }
    }
    for (uint32_t j = 0; j < p.n_queries; j++)
        c.positions[j] = p.first_query + j;
    return c;
}

static void context_close(context *c)
{
    matrix_free(&c->k);
    matrix_free(&c->v);
    free(c->q);
    free(c->bias);
    free(c->live);
    free(c->positions);
    free(c->spans);
    free(c->blocks);
}

/* Each block in spans of up to `span_slots`; returns the blocks. */
static attn_blocks cut(context *c, uint32_t span_slots)
{
    const problem *p = &c->p;
    uint32_t n_spans = 0;
    for (uint32_t b = 0; b < c->n_blocks; b++) {
        const uint32_t begin = b * p->block_slots;
        const uint32_t end =
            begin + p->block_slots < p->n_slots ? begin + p->block_slots : p->n_slots;
        c->blocks[b] = (attn_block){.first_span = n_spans};
        for (uint32_t slot = begin; slot < end; slot += span_slots) {
            const uint32_t n = end - slot < span_slots ? end - slot : span_slots;
            c->spans[n_spans++] = (attn_span){
                .k = (const char *)c->k.data + (size_t)slot * p->k_dim * dtype_bytes(p->type),
                .v = (const char *)c->v.data + (size_t)slot * p->v_dim * dtype_bytes(p->type),
                .k_stride_bytes = p->k_dim * dtype_bytes(p->type),
                .v_stride_bytes = p->v_dim * dtype_bytes(p->type),
                .n_slots = n,
                .first_position = slot,
                .live = c->live[b] >> (slot - begin),
                .bias = p->has_bias ? c->bias + slot : NULL};
        }
        c->blocks[b].n_spans = n_spans - c->blocks[b].first_span;
    }
    return (attn_blocks){.spans = c->spans, .blocks = c->blocks, .n_blocks = c->n_blocks};
}

typedef struct output {
    float *o, *lse;
    float *mass, *most; /* [n_slots] */
} output;

static void output_free(output *out)
{
    free(out->o);
    free(out->lse);
    free(out->mass);
    free(out->most);
}

/* With zeros for mass, and the least for the largest share. */
static output output_of(const problem *p)
{
    const size_t n_rows = (size_t)p->n_queries * p->group;
    output out = {.o = poisoned_floats(n_rows * p->v_dim), .lse = poisoned_floats(n_rows)};
    out.mass = calloc(p->n_slots, sizeof *out.mass);
    out.most = test_alloc(p->n_slots * sizeof *out.most);
    for (uint32_t i = 0; i < p->n_slots; i++)
        out.most[i] = -INFINITY;
    return out;
}

/* How one run is cut: queries and blocks per call, slots per span. */
typedef struct cutting {
    uint32_t queries, blocks, span_slots;
} cutting;

static void attend(const context *c, const dev_ops *ops, const attn_query *query,
                   const attn_blocks *all, uint32_t blocks_per_call, const output *out)
{
    const problem *p = &c->p;
    const size_t n_rows = (size_t)query->n_queries * p->group;
    attn_state state = {.max = poisoned_floats(n_rows),
                        .sum = poisoned_floats(n_rows),
                        .acc = poisoned_floats(n_rows * p->v_dim)};
    attn_state_reset(&state, n_rows, p->v_dim);
    for (uint32_t b = 0; b < all->n_blocks; b += blocks_per_call) {
        attn_blocks some = *all;
        some.blocks += b;
        some.n_blocks = all->n_blocks - b < blocks_per_call ? all->n_blocks - b : blocks_per_call;
        ops->attend(query, &some, &state);
    }
    const attn_result result = {
        .o = out->o, .o_stride = (size_t)p->group * p->v_dim, .lse = out->lse};
    attn_finish(query, &state, &result);
    for (uint32_t b = 0; b < all->n_blocks; b += blocks_per_call) {
        attn_blocks some = *all;
        some.blocks += b;
        some.n_blocks = all->n_blocks - b < blocks_per_call ? all->n_blocks - b : blocks_per_call;
        ops->attend_mass(&(attn_mass_args){query, &some, out->lse, out->mass});
        ops->attend_max(&(attn_max_args){query, &some, out->lse, out->most});
    }
    free(state.max);
    free(state.sum);
    free(state.acc);
}

static output run(context *c, const dev_ops *ops, cutting how)
{
    const problem *p = &c->p;
    const attn_blocks all = cut(c, how.span_slots);
    output out = output_of(p);
    for (uint32_t j = 0; j < p->n_queries; j += how.queries) {
        const uint32_t n_left = p->n_queries - j;
        const attn_query query = {.q = c->q + (size_t)j * p->group * p->k_dim,
                                  .q_stride = (size_t)p->group * p->k_dim,
                                  .positions = c->positions + j,
                                  .n_queries = n_left < how.queries ? n_left : how.queries,
                                  .group = p->group,
                                  .k_dim = p->k_dim,
                                  .v_dim = p->v_dim,
                                  .window = p->window,
                                  .scale = 0.125f,
                                  .type = p->type};
        const output part = {out.o + (size_t)j * p->group * p->v_dim, out.lse + j * p->group,
                             out.mass, out.most};
        attend(c, ops, &query, &all, how.blocks, &part);
    }
    return out;
}

static const cutting whole = {UINT32_MAX, UINT32_MAX, 64};

static double element(const matrix *m, uint32_t row, uint32_t i)
{
    const char *data = m->data;
    const size_t at = (size_t)row * m->cols + i;
    uint16_t half;
    float x;
    memcpy(&x, data + 4 * at * (m->type == DTYPE_F32), sizeof x);
    if (m->type == DTYPE_F32) return (double)x;
    memcpy(&half, data + 2 * at, sizeof half);
    return (double)f32_from_bf16(half);
}

/* softmax(q k) v over everything visible, in doubles, with no blocks at all. */
static output naive(const context *c)
{
    const problem *p = &c->p;
    const size_t n_rows = (size_t)p->n_queries * p->group;
    output out = output_of(p);
    double *s = test_alloc(p->n_slots * sizeof *s);
    for (size_t row = 0; row < n_rows; row++) {
        const uint32_t position = c->positions[row / p->group];
        double sum = 0;
        for (uint32_t i = 0; i < p->n_slots; i++) {
            const bool live = (c->live[i / p->block_slots] >> i % p->block_slots & 1) != 0;
            const bool inside = p->window == 0 || i + p->window > position;
            double dot = 0;
            for (uint32_t d = 0; d < p->k_dim; d++)
                dot += element(&c->k, i, d) * (double)c->q[row * p->k_dim + d];
            dot = dot * 0.125 + (p->has_bias ? (double)c->bias[i] : 0);
            s[i] = live && inside && i <= position ? exp(dot) : 0;
            sum += s[i];
        }
        out.lse[row] = (float)log(sum);
        for (uint32_t i = 0; i < p->n_slots && sum > 0; i++) {
            out.mass[i] += (float)(s[i] / sum / p->group);
            out.most[i] = fmaxf(out.most[i], (float)log(s[i] / sum));
        }
        for (uint32_t d = 0; d < p->v_dim; d++) {
            double acc = 0;
            for (uint32_t i = 0; i < p->n_slots; i++)
                acc += s[i] * element(&c->v, i, d);
            out.o[row * p->v_dim + d] = sum > 0 ? (float)(acc / sum) : 0;
        }
    }
    free(s);
    return out;
}

static const problem problems[] = {
    {.n_slots = 1, .block_slots = 32, .group = 1, .k_dim = 64, .v_dim = 64, .n_queries = 1},
    {.n_slots = 100,
     .block_slots = 32,
     .group = 4,
     .k_dim = 128,
     .v_dim = 128,
     .n_queries = 1,
     .first_query = 99,
     .type = DTYPE_BF16},
    {.n_slots = 200,
     .block_slots = 64,
     .group = 8,
     .k_dim = 128,
     .v_dim = 128,
     .n_queries = 3,
     .first_query = 150,
     .type = DTYPE_BF16,
     .window = 77,
     .has_bias = true},
    {.n_slots = 70,
     .block_slots = 16,
     .group = 3,
     .k_dim = 31,
     .v_dim = 17,
     .n_queries = 33,
     .first_query = 40,
     .dead_seed = 1,
     .has_bias = true},
    {.n_slots = 150,
     .block_slots = 32,
     .group = 1,
     .k_dim = 80,
     .v_dim = 48,
     .n_queries = 150,
     .type = DTYPE_BF16,
     .dead_seed = 1,
     .window = 20},
    {.n_slots = 90,
     .block_slots = 4,
     .group = 7,
     .k_dim = 24,
     .v_dim = 200,
     .n_queries = 5,
     .first_query = 80,
     .dead_seed = 1,
     .type = DTYPE_BF16},
};
enum { N_PROBLEMS = sizeof problems / sizeof problems[0] };

/* -inf where no query sees the slot. */
static void assert_near_or_absent(const float *got, const float *want, uint32_t n, uint64_t seed)
{
    for (uint32_t i = 0; i < n; i++) {
        if (isinf(want[i])) ck_assert_float_eq(got[i], want[i]);
        if (!isinf(want[i])) assert_near(got + i, want + i, 1, (tolerance){3e-6, 3e-6}, seed);
    }
}

START_TEST(every_table_is_the_softmax)
{
    for (size_t i = 0; i < N_PROBLEMS; i++) {
        context c = context_open(problems[i]);
        const problem *p = &c.p;
        const size_t n_rows = (size_t)p->n_queries * p->group;
        output want = naive(&c);
        for (const dev_ops *const *t = dev_cpu_tables(); *t != NULL; t++) {
            output got = run(&c, *t, whole);
            for (size_t row = 0; row < n_rows; row++) { /* differences of -inf are no numbers */
                if (isinf(want.lse[row])) ck_assert(got.lse[row] == want.lse[row]);
                if (isinf(want.lse[row])) continue;
                assert_near(got.lse + row, want.lse + row, 1, (tolerance){3e-6, 3e-6},
                            c.random.seed);
            }
            assert_near(got.o, want.o, n_rows * p->v_dim, (tolerance){2e-6, 1e-5}, c.random.seed);
            assert_near(got.mass, want.mass, p->n_slots, (tolerance){1e-5, 1e-5}, c.random.seed);
            assert_near_or_absent(got.most, want.most, p->n_slots, c.random.seed);
            output_free(&got);
        }
        output_free(&want);
        context_close(&c);
    }
}
END_TEST

START_TEST(no_cut_changes_a_bit)
{
    static const cutting cuts[] = {{1, UINT32_MAX, 64}, {UINT32_MAX, 1, 64}, {UINT32_MAX, 2, 1},
                                   {3, 1, 5},           {1, 1, 1},           {2, UINT32_MAX, 31}};
    for (size_t i = 0; i < N_PROBLEMS; i++) {
        context c = context_open(problems[i]);
        const size_t n_rows = (size_t)c.p.n_queries * c.p.group;
        for (const dev_ops *const *t = dev_cpu_tables(); *t != NULL; t++) {
            output want = run(&c, *t, whole);
            for (size_t j = 0; j < sizeof cuts / sizeof cuts[0]; j++) {
                output got = run(&c, *t, cuts[j]);
                assert_same_bits(got.o, want.o, n_rows * c.p.v_dim, c.random.seed);
                assert_same_bits(got.lse, want.lse, n_rows, c.random.seed);
                assert_same_bits(got.mass, want.mass, c.p.n_slots, c.random.seed);
                assert_same_bits(got.most, want.most, c.p.n_slots, c.random.seed);
                output_free(&got);
            }
            output_free(&want);
        }
        context_close(&c);
    }
}
END_TEST

/* A later key, or one before the window, may be there or not: it is not seen. */
START_TEST(masked_slots_may_be_absent)
{
    const problem p = {.n_slots = 60,
                       .block_slots = 60,
                       .group = 2,
                       .k_dim = 40,
                       .v_dim = 24,
                       .n_queries = 1,
                       .first_query = 50,
                       .window = 20,
                       .type = DTYPE_BF16};
    context c = context_open(p);
    for (const dev_ops *const *t = dev_cpu_tables(); *t != NULL; t++) {
        output all = run(&c, *t, whole);
        attn_blocks b = cut(&c, 1);
        c.blocks[0].first_span = 31; /* positions 31 .. 50 are in the window */
        c.blocks[0].n_spans = 20;
        const attn_query query = {.q = c.q,
                                  .q_stride = 80,
                                  .positions = c.positions,
                                  .n_queries = 1,
                                  .group = 2,
                                  .k_dim = 40,
                                  .v_dim = 24,
                                  .window = 20,
                                  .scale = 0.125f,
                                  .type = DTYPE_BF16};
        output some = output_of(&p);
        attend(&c, *t, &query, &b, 1, &some);
        assert_same_bits(some.o, all.o, 48, c.random.seed);
        assert_same_bits(some.lse, all.lse, 2, c.random.seed);
        output_free(&some);
        output_free(&all);
    }
    context_close(&c);
}
END_TEST

START_TEST(an_evicted_slot_may_hold_anything)
{
    const problem p = {.n_slots = 32,
                       .block_slots = 32,
                       .group = 1,
                       .k_dim = 16,
                       .v_dim = 16,
                       .n_queries = 1,
                       .first_query = 31};
    context c = context_open(p);
    c.live[0] = 0xfffffff0u;
    float *bad = poisoned_floats(16);
    memcpy((char *)(uintptr_t)c.k.data, bad, 64);
    memcpy((char *)(uintptr_t)c.v.data, bad, 64);
    for (const dev_ops *const *t = dev_cpu_tables(); *t != NULL; t++) {
        output out = run(&c, *t, whole);
        for (size_t i = 0; i < 16; i++)
            ck_assert(isfinite(out.o[i]));
        ck_assert(isfinite(out.lse[0]));
        output_free(&out);
    }
    free(bad);
    context_close(&c);
}
END_TEST

START_TEST(a_query_that_sees_nothing_has_zero_and_minus_infinity)
{
    problem p = {.n_slots = 40,
                 .block_slots = 8,
                 .group = 2,
                 .k_dim = 8,
                 .v_dim = 8,
                 .n_queries = 2,
                 .first_query = 100,
                 .window = 10};
    context c = context_open(p);
    for (const dev_ops *const *t = dev_cpu_tables(); *t != NULL; t++) {
        output out = run(&c, *t, whole);
        for (size_t row = 0; row < 4; row++)
            ck_assert(out.lse[row] == -INFINITY);
        for (size_t i = 0; i < 32; i++)
            ck_assert(out.o[i] == 0);
        output_free(&out);
    }
    context_close(&c);
}
END_TEST

START_TEST(a_slot_with_minus_infinite_bias_is_not_seen)
{
    problem p = {.n_slots = 8,
                 .block_slots = 4,
                 .group = 1,
                 .k_dim = 8,
                 .v_dim = 8,
                 .n_queries = 1,
                 .first_query = 7,
                 .has_bias = true};
    context c = context_open(p);
    for (const dev_ops *const *t = dev_cpu_tables(); *t != NULL; t++) {
        for (size_t i = 0; i < 8; i++)
            c.bias[i] = i < 4 ? -INFINITY : 0; /* all of the first block */
        output got = run(&c, *t, whole);
        c.live[0] = 0;
        output want = run(&c, *t, whole);
        c.live[0] = UINT64_MAX;
        assert_same_bits(got.o, want.o, 8, c.random.seed);
        output_free(&got);
        output_free(&want);
    }
    context_close(&c);
}
END_TEST

START_TEST(a_sink_takes_its_share_once)
{
    const float q[1] = {0};
    const uint32_t position = 0;
    const attn_query query = {
        .q = q, .positions = &position, .n_queries = 1, .group = 1, .k_dim = 1, .v_dim = 1};
    float max = 1, sum = 2, acc = 6, o, lse;
    const float sink = 2;
    attn_state state = {&max, &sum, &acc};
    const attn_result result = {.o = &o, .o_stride = 1, .lse = &lse, .sink_logit = &sink};
    attn_finish(&query, &state, &result);
    const double total = 2 * exp(1) + exp(2);
    ck_assert_double_eq_tol((double)o, 6 * exp(1) / total, 1e-6);
    ck_assert_double_eq_tol((double)lse, log(total), 1e-6);
    attn_state_reset(&state, 1, 1);
    attn_finish(&query, &state, &result);
    ck_assert(o == 0);
    ck_assert(lse == 2);
}
END_TEST

/* Attention over token ranges, merged, is attention over all of them. */
START_TEST(merged_parts_are_the_whole)
{
    const problem p = {.n_slots = 48,
                       .block_slots = 8,
                       .group = 4,
                       .k_dim = 16,
                       .v_dim = 16,
                       .n_queries = 1,
                       .first_query = 47};
    static const uint32_t first[] = {0, 2, 2, 5, 6}; /* blocks of the parts; the second is empty */
    context c = context_open(p);
    output all = run(&c, dev_cpu_tables()[0], whole);
    float o[4][4 * 16], lse[4][4];
    for (uint32_t r = 0; r < 4; r++) {
        for (uint32_t b = 0; b < 6; b++)
            c.live[b] = b >= first[r] && b < first[r + 1] ? UINT64_MAX : 0;
        output part = run(&c, dev_cpu_tables()[0], whole);
        memcpy(o[r], part.o, sizeof o[r]);
        memcpy(lse[r], part.lse, sizeof lse[r]);
        output_free(&part);
    }
    for (uint32_t g = 0; g < 4; g++) {
        float parts[4][16], part_lse[4], out[16], out_lse;
        for (uint32_t r = 0; r < 4; r++) {
            memcpy(parts[r], o[r] + g * 16, sizeof parts[r]);
            part_lse[r] = lse[r][g];
        }
        const attn_merge_args args = {.o = parts[0],
                                      .part_stride = 16,
                                      .lse = part_lse,
                                      .n_parts = 4,
                                      .v_dim = 16,
                                      .out = out,
                                      .out_lse = &out_lse};
        attn_merge(&args);
        assert_near(out, all.o + g * 16, 16, (tolerance){1e-6, 1e-6}, c.random.seed);
        assert_near(&out_lse, all.lse + g, 1, (tolerance){1e-6, 1e-6}, c.random.seed);
    }
    output_free(&all);
    context_close(&c);
}
END_TEST

START_TEST(a_merge_of_one_part_keeps_its_bits_and_of_none_is_zero)
{
    const float o[6] = {0.1f, -3, 7e-20f, NAN, NAN, NAN};
    const float lse[2] = {6.751950f, -INFINITY}, empty[2] = {-INFINITY, -INFINITY};
    float out[3], out_lse;
    attn_merge_args args = {.o = o,
                            .part_stride = 3,
                            .lse = lse,
                            .n_parts = 2,
                            .v_dim = 3,
                            .out = out,
                            .out_lse = &out_lse};
    attn_merge(&args);
    assert_same_bits(out, o, 3, 0);
    assert_same_bits(&out_lse, lse, 1, 0);
    args.lse = empty;
    attn_merge(&args);
    for (size_t i = 0; i < 3; i++)
        ck_assert(out[i] == 0);
    ck_assert(out_lse == -INFINITY);
    args.n_parts = 0;
    attn_merge(&args);
    ck_assert(out_lse == -INFINITY);
}
END_TEST

/* A merge of equal values is that value, and the masses exp(lse) add up. */
START_TEST(the_merge_adds_masses)
{
    const float lse[3] = {6.751950f, 6.307479f, 4.479743f}, o[3] = {1, 1, 1};
    float out, out_lse;
    const attn_merge_args args = {.o = o,
                                  .part_stride = 1,
                                  .lse = lse,
                                  .n_parts = 3,
                                  .v_dim = 1,
                                  .out = &out,
                                  .out_lse = &out_lse};
    attn_merge(&args);
    ck_assert_double_eq_tol((double)out, 1, 2e-7);
    const double mass = exp((double)lse[0]) + exp((double)lse[1]) + exp((double)lse[2]);
    ck_assert_double_eq_tol((double)out_lse, log(mass), 1e-6);
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE(every_table_is_the_softmax),
    TEST_CASE(no_cut_changes_a_bit),
    TEST_CASE(masked_slots_may_be_absent),
    TEST_CASE(an_evicted_slot_may_hold_anything),
    TEST_CASE(a_query_that_sees_nothing_has_zero_and_minus_infinity),
    TEST_CASE(a_slot_with_minus_infinite_bias_is_not_seen),
    TEST_CASE(a_sink_takes_its_share_once),
    TEST_CASE(merged_parts_are_the_whole),
    TEST_CASE(a_merge_of_one_part_keeps_its_bits_and_of_none_is_zero),
    TEST_CASE(the_merge_adds_masses),
    TEST_CASES_END,
};
