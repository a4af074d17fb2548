/* tests/kernels/test_attention_coded.c - attention over encoded spans: every table against the
 * definition, and the definition against plain attention over the decoded elements. */
#include "tests/kernels/fixture.h"

#include <math.h>
#include <stdlib.h>

enum { SLOTS = 32, N_PLAIN = 3 }; /* slots of a block; its first N_PLAIN are plain in block 0 */

/* One KV head: encoded blocks of SLOTS, then a plain block, and queries at the end. */
typedef struct problem {
    attn_coding coding;
    uint32_t n_coded; /* blocks */
    uint32_t k_dim, v_dim, v_group, group, n_queries, window;
    bool has_dead;
    bool is_latent; /* values are the first channels of keys */
} problem;

typedef struct page {
    uint8_t *k, *v;            /* [SLOTS][row bytes] */
    uint32_t k_bytes, v_bytes; /* of a row */
    void *k_grid, *v_grid;     /* see attn_coding */
    float *k_plain, *v_plain;  /* [SLOTS][dim]: the elements */
    uint64_t live;
} page;

typedef struct context {
    problem p;
    test_random random;
    page pages[8]; /* the last is not encoded */
    float *q;
    uint32_t *positions;
    attn_span spans[16];
    attn_block blocks[8];
} context;

static uint32_t row_bytes(attn_coding coding, uint32_t dim, const void *grid)
{
    uint32_t n_kept = 0;
    if (coding != ATTN_KEPT) return (dim * attn_code_bits(coding) + 7) / 8;
    for (uint32_t c = 0; c < dim; c++)
        n_kept += attn_is_kept(grid, c);
    return n_kept * (uint32_t)sizeof(float);
}

static uint32_t n_groups(const problem *p)
{
    return (p->v_dim + p->v_group - 1) / p->v_group;
}

/* Of values: one per slot. */
static bool has_grid_rows(const problem *p)
{
    return p->coding != ATTN_FP8 && p->coding != ATTN_KEPT;
}

static uint8_t *random_codes(test_random *r, attn_coding coding, size_t n_bytes)
{
    uint8_t *codes = test_alloc(n_bytes);
    for (size_t i = 0; coding == ATTN_KEPT && i < n_bytes; i += sizeof(float)) {
        const float x = 2 * random_signed(r);
        memcpy(codes + i, &x, sizeof x);
    }
    if (coding == ATTN_KEPT) return codes;
    for (size_t i = 0; i < n_bytes; i++) {
        codes[i] = (uint8_t)random_below(r, 256);
        if (coding == ATTN_FP8 && (codes[i] & 0x7f) == 0x7f) codes[i] = 0;
    }
    return codes;
}

/* Elements lie in [-2, 2]. */
static void *random_grid(test_random *r, attn_coding coding, uint32_t n_channels, uint32_t n_rows,
                         uint32_t n_pairs)
{
    if (coding == ATTN_FP8) {
        float *one = test_alloc(sizeof *one);
        *one = 2.0f / 448;
        return one;
    }
    if (coding == ATTN_KEPT) return random_codes(r, ATTN_INT8, (n_channels + 7) / 8);
    uint16_t *grid = test_alloc((size_t)2 * n_rows * n_pairs * sizeof *grid);
    const float levels = (float)(1u << attn_code_bits(coding));
    for (uint32_t i = 0; i < 2 * n_rows * n_pairs; i++) {
        const bool is_min = i / n_pairs % 2 == 1;
        grid[i] =
            bf16_from_f32(is_min ? -fabsf(random_signed(r)) : (1 + random_signed(r)) / levels);
    }
    return grid;
}

static float bf16_at(const void *grid, size_t i)
{
    uint16_t half;
    memcpy(&half, (const char *)grid + 2 * i, sizeof half);
    return f32_from_bf16(half);
}

/* Bit 0 of the code of channel c: the contract of attention_coding.h, once more. */
static uint32_t code_bit(attn_coding coding, uint32_t dim, uint32_t c)
{
    const uint32_t bits = attn_code_bits(coding), lot = c * bits / 256;
    if (coding == ATTN_FP8 || (lot + 1) * 256 > dim * bits) return c * bits;
    const uint32_t at = c - lot * 256 / bits;
    return lot * 256 + at % 8 * 32 + at / 8 * bits;
}

static float element(attn_coding coding, const uint8_t *row, uint32_t dim, uint32_t c,
                     const void *grid, uint32_t n_pairs, uint32_t pair)
{
    float scale;
    const uint32_t bits = attn_code_bits(coding);
    if (coding == ATTN_FP8) {
        memcpy(&scale, grid, sizeof scale);
        return f32_from_fp8(row[c]) * scale;
    }
    if (coding == ATTN_KEPT) {
        float x;
        if (!attn_is_kept(grid, c)) return 0;
        memcpy(&x, row + row_bytes(coding, c, grid), sizeof x);
        return x;
    }
    const uint32_t bit = code_bit(coding, dim, c);
    const uint32_t code = (uint32_t)row[bit / 8] >> bit % 8 & ((1u << bits) - 1);
    return (float)code * bf16_at(grid, pair) + bf16_at(grid, n_pairs + pair);
}

static void kill_some(context *c, page *out)
{
    out->live = UINT64_MAX >> 32;
    for (uint32_t i = 0; i < SLOTS && c->p.has_dead; i++) {
        if (random_below(&c->random, 3) == 0) out->live &= ~(UINT64_C(1) << i);
    }
}

/* A value has its key's codes and grid. */
static void fill_latent(context *c, page *out)
{
    const problem *p = &c->p;
    out->k_bytes = out->v_bytes = row_bytes(p->coding, p->k_dim, out->k_grid);
    out->k = random_codes(&c->random, p->coding, (size_t)SLOTS * out->k_bytes);
    out->k_plain = test_alloc((size_t)SLOTS * p->k_dim * sizeof(float));
    out->v_plain = test_alloc((size_t)SLOTS * p->v_dim * sizeof(float));
    for (uint32_t i = 0; i < SLOTS; i++) {
        float *k = out->k_plain + (size_t)i * p->k_dim;
        for (uint32_t d = 0; d < p->k_dim; d++)
            k[d] = element(p->coding, out->k + (size_t)i * out->k_bytes, p->k_dim, d, out->k_grid,
                           p->k_dim, d);
        memcpy(out->v_plain + (size_t)i * p->v_dim, k, p->v_dim * sizeof *k);
    }
    kill_some(c, out);
}

static void fill_page(context *c, page *out)
{
    const problem *p = &c->p;
    out->k_grid = random_grid(&c->random, p->coding, p->k_dim, 1, p->k_dim);
    if (p->is_latent) {
        fill_latent(c, out);
        return;
    }
    out->v_grid = random_grid(&c->random, p->coding, p->v_dim, SLOTS, n_groups(p));
    const uint32_t k_bytes = row_bytes(p->coding, p->k_dim, out->k_grid),
                   v_bytes = row_bytes(p->coding, p->v_dim, out->v_grid);
    out->k = random_codes(&c->random, p->coding, (size_t)SLOTS * k_bytes);
    out->v = random_codes(&c->random, p->coding, (size_t)SLOTS * v_bytes);
    out->k_bytes = k_bytes;
    out->v_bytes = v_bytes;
    out->k_plain = test_alloc((size_t)SLOTS * p->k_dim * sizeof(float));
    out->v_plain = test_alloc((size_t)SLOTS * p->v_dim * sizeof(float));
    for (uint32_t i = 0; i < SLOTS; i++) {
        const size_t pairs = has_grid_rows(p) ? (size_t)i * 2 * n_groups(p) * 2 : 0;
        for (uint32_t d = 0; d < p->k_dim; d++)
            out->k_plain[i * p->k_dim + d] =
                element(p->coding, out->k + i * k_bytes, p->k_dim, d, out->k_grid, p->k_dim, d);
        for (uint32_t d = 0; d < p->v_dim; d++)
            out->v_plain[i * p->v_dim + d] =
                element(p->coding, out->v + i * v_bytes, p->v_dim, d,
                        (const char *)out->v_grid + pairs, n_groups(p), d / p->v_group);
    }
    kill_some(c, out);
}

static context context_open(problem p)
{
    context c = {.p = p, .random = random_fresh()};
    for (uint32_t b = 0; b <= p.n_coded; b++)
        fill_page(&c, &c.pages[b]);
    c.q = random_floats(&c.random, (size_t)p.n_queries * p.group * p.k_dim);
    c.positions = test_alloc(p.n_queries * sizeof *c.positions);
    for (uint32_t j = 0; j < p.n_queries; j++)
        c.positions[j] = (p.n_coded + 1) * SLOTS - p.n_queries + j;
    return c;
}

static void context_close(context *c)
{
    for (uint32_t b = 0; b <= c->p.n_coded; b++) {
        page *g = &c->pages[b];
        free(g->k);
        free(g->v);
        free(g->k_grid);
        free(g->v_grid);
        free(g->k_plain);
        free(g->v_plain);
    }
    free(c->q);
    free(c->positions);
}

static attn_span plain_span(const context *c, uint32_t block, uint32_t first, uint32_t n)
{
    const problem *p = &c->p;
    return (attn_span){.k = c->pages[block].k_plain + (size_t)first * p->k_dim,
                       .v = c->pages[block].v_plain + (size_t)first * p->v_dim,
                       .k_stride_bytes = p->k_dim * 4,
                       .v_stride_bytes = p->v_dim * 4,
                       .n_slots = n,
                       .first_position = block * SLOTS + first,
                       .live = c->pages[block].live >> first};
}

static attn_span coded_span(const context *c, uint32_t block, uint32_t first, uint32_t n)
{
    const problem *p = &c->p;
    const page *g = &c->pages[block];
    attn_span s = plain_span(c, block, first, n);
    s.coding = p->coding;
    s.k_stride_bytes = g->k_bytes;
    s.v_stride_bytes = g->v_bytes;
    s.k = g->k + (size_t)first * s.k_stride_bytes;
    s.v = g->v + (size_t)first * s.v_stride_bytes;
    s.k_grid = g->k_grid;
    if (p->is_latent) {
        s.v_stride_bytes = s.k_stride_bytes;
        s.v = s.k;
        s.v_grid = s.k_grid;
        return s;
    }
    s.v_group = p->v_group;
    s.v_grid_stride_bytes = has_grid_rows(p) ? 4 * n_groups(p) : 0;
    s.v_grid = (const char *)g->v_grid + (size_t)first * s.v_grid_stride_bytes;
    return s;
}

/* Block 0 begins with plain slots, as sinks do; the last block is plain. */
static attn_blocks list_blocks(context *c, bool as_codes)
{
    uint32_t n = 0;
    for (uint32_t b = 0; b <= c->p.n_coded; b++) {
        const uint32_t first = b == 0 ? N_PLAIN : 0;
        c->blocks[b] = (attn_block){.first_span = n, .n_spans = b == 0 ? 2 : 1};
        if (b == 0) c->spans[n++] = plain_span(c, 0, 0, N_PLAIN);
        c->spans[n++] = as_codes && b < c->p.n_coded ? coded_span(c, b, first, SLOTS - first)
                                                     : plain_span(c, b, first, SLOTS - first);
    }
    return (attn_blocks){.spans = c->spans, .blocks = c->blocks, .n_blocks = c->p.n_coded + 1};
}

/* [n_queries][group][v_dim], queries `at_once` at a time. */
static float *attend(context *c, const dev_ops *ops, bool as_codes, uint32_t at_once)
{
    const problem *p = &c->p;
    const attn_blocks blocks = list_blocks(c, as_codes);
    const size_t row = (size_t)p->group * p->v_dim;
    float *o = poisoned_floats(p->n_queries * row);
    attn_state state = {.max = poisoned_floats((size_t)at_once * p->group),
                        .sum = poisoned_floats((size_t)at_once * p->group),
                        .acc = poisoned_floats(at_once * row)};
    for (uint32_t j = 0; j < p->n_queries; j += at_once) {
        const uint32_t left = p->n_queries - j;
        const attn_query query = {.q = c->q + (size_t)j * p->group * p->k_dim,
                                  .q_stride = (size_t)p->group * p->k_dim,
                                  .positions = c->positions + j,
                                  .n_queries = left < at_once ? left : at_once,
                                  .group = p->group,
                                  .k_dim = p->k_dim,
                                  .v_dim = p->v_dim,
                                  .window = p->window,
                                  .scale = 0.25f};
        attn_state_reset(&state, (size_t)query.n_queries * p->group, p->v_dim);
        ops->attend(&query, &blocks, &state);
        attn_finish(&query, &state, &(attn_result){.o = o + j * row, .o_stride = row});
    }
    free(state.max);
    free(state.sum);
    free(state.acc);
    return o;
}

/* Ragged widths, groups and rows; every coding takes its turn on each. */
static const problem shapes[] = {
    {.n_coded = 3, .k_dim = 128, .v_dim = 128, .v_group = 32, .group = 4, .n_queries = 1},
    {.n_coded = 2, .k_dim = 64, .v_dim = 80, .v_group = 64, .group = 8, .n_queries = 3},
    {.n_coded = 2,
     .k_dim = 24,
     .v_dim = 40,
     .v_group = 32,
     .group = 3,
     .n_queries = 5,
     .window = 45},
    {.n_coded = 1, .k_dim = 5, .v_dim = 3, .v_group = 16, .group = 1, .n_queries = 32},
    {.n_coded = 2,
     .k_dim = 71,
     .v_dim = 33,
     .v_group = 32,
     .group = 2,
     .n_queries = 17,
     .has_dead = true},
    {.n_coded = 1,
     .k_dim = 1024,
     .v_dim = 200,
     .v_group = 48,
     .group = 5,
     .n_queries = 1,
     .window = 40},
};

/* DeepSeek's; rows whose values end within a lot of the key's codes, before its codes in order, and among them. */
static const problem latents[] = {
    {.n_coded = 2, .k_dim = 576, .v_dim = 512, .group = 6, .n_queries = 1},
    {.n_coded = 2, .k_dim = 300, .v_dim = 205, .group = 3, .n_queries = 5, .has_dead = true},
    {.n_coded = 1, .k_dim = 40, .v_dim = 32, .group = 7, .n_queries = 3, .window = 45},
    {.n_coded = 2, .k_dim = 27, .v_dim = 21, .group = 4, .n_queries = 9, .has_dead = true},
};

static void check_latents(void (*check)(context *c))
{
    static const attn_coding codings[] = {ATTN_FP8, ATTN_INT8, ATTN_INT4, ATTN_INT2};
    for (size_t i = 0; i < sizeof latents / sizeof latents[0]; i++) {
        for (size_t k = 0; k < sizeof codings / sizeof codings[0]; k++) {
            problem p = latents[i];
            p.coding = codings[k];
            p.is_latent = true;
            context c = context_open(p);
            check(&c);
            context_close(&c);
        }
    }
}

static void for_each_problem(void (*check)(context *c))
{
    check_latents(check);
    static const attn_coding codings[] = {ATTN_FP8, ATTN_INT8, ATTN_INT4, ATTN_INT2, ATTN_KEPT};
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        for (size_t k = 0; k < 5; k++) {
            problem p = shapes[i];
            p.coding = codings[k];
            context c = context_open(p);
            check(&c);
            context_close(&c);
        }
    }
}

static void check_definition(context *c)
{
    const size_t n = (size_t)c->p.n_queries * c->p.group * c->p.v_dim;
    float *want = attend(c, dev_cpu_tables()[0], false, c->p.n_queries);
    for (const dev_ops *const *t = dev_cpu_tables(); *t != NULL; t++) {
        float *got = attend(c, *t, true, c->p.n_queries);
        assert_near(got, want, n, (tolerance){1e-5, 1e-5}, c->random.seed);
        free(got);
    }
    free(want);
}

START_TEST(codes_are_read_as_the_elements_they_stand_for)
{
    for_each_problem(check_definition);
}
END_TEST

static void check_tiles(context *c)
{
    const size_t n = (size_t)c->p.n_queries * c->p.group * c->p.v_dim;
    for (const dev_ops *const *t = dev_cpu_tables(); *t != NULL; t++) {
        float *whole = attend(c, *t, true, c->p.n_queries);
        for (uint32_t at_once = 1; at_once < 4; at_once++) {
            float *cut = attend(c, *t, true, at_once);
            assert_same_bits(cut, whole, n, c->random.seed);
            free(cut);
        }
        free(whole);
    }
}

START_TEST(queries_together_or_alone_have_the_same_bits)
{
    for_each_problem(check_tiles);
}
END_TEST

/* A block of codes that a query does not see may be there or not. */
START_TEST(codes_behind_a_query_change_nothing)
{
    for (const dev_ops *const *t = dev_cpu_tables(); *t != NULL; t++) {
        problem p = shapes[0];
        p.coding = ATTN_INT4;
        context c = context_open(p);
        c.positions[0] = SLOTS + 7; /* in the second block */
        float *all = attend(&c, *t, true, 1);
        c.pages[1].live = 0xff;
        c.pages[2].live = c.pages[3].live = 0;
        float *some = attend(&c, *t, true, 1);
        assert_same_bits(some, all, (size_t)p.group * p.v_dim, c.random.seed);
        free(all);
        free(some);
        context_close(&c);
    }
}
END_TEST

START_TEST(fp8_has_the_values_of_e4m3)
{
    ck_assert(f32_from_fp8(0x00) == 0);
    ck_assert(f32_from_fp8(0x01) == 0x1p-9f);
    ck_assert(f32_from_fp8(0x07) == 7 * 0x1p-9f);
    ck_assert(f32_from_fp8(0x08) == 0x1p-6f);
    ck_assert(f32_from_fp8(0x38) == 1);
    ck_assert(f32_from_fp8(0x3d) == 1.625f);
    ck_assert(f32_from_fp8(0x7e) == 448);
    ck_assert(f32_from_fp8(0xfe) == -448);
    ck_assert(isnan(f32_from_fp8(0x7f)));
    ck_assert(isnan(f32_from_fp8(0xff)));
    for (uint32_t code = 0; code < 256; code++) {
        const uint32_t e = code >> 3 & 15, m = code & 7;
        const double want = e == 0 ? ldexp(m, -9) : ldexp(8 + m, (int)e - 10);
        if ((code & 0x7f) == 0x7f) continue;
        ck_assert((double)f32_from_fp8((uint8_t)code) == (code < 128 ? want : -want));
        ck_assert_uint_eq(fp8_from_f32(f32_from_fp8((uint8_t)code)), code);
    }
}
END_TEST

START_TEST(fp8_rounds_to_the_nearest_and_saturates)
{
    ck_assert_uint_eq(fp8_from_f32(1e9f), 0x7e);
    ck_assert_uint_eq(fp8_from_f32(-INFINITY), 0xfe);
    ck_assert_uint_eq(fp8_from_f32(NAN) & 0x7f, 0x7f);
    ck_assert_uint_eq(fp8_from_f32(0x1p-10f), 0x00);      /* half of the smallest: to even */
    ck_assert_uint_eq(fp8_from_f32(3 * 0x1p-10f), 0x02);  /* to even, upwards */
    ck_assert_uint_eq(fp8_from_f32(15 * 0x1p-10f), 0x08); /* out of the subnormals */
    ck_assert_uint_eq(fp8_from_f32(1.0625f), 0x38);
    ck_assert_uint_eq(fp8_from_f32(1.1875f), 0x3a);
    for (uint32_t i = 0; i < 0x10000; i++) { /* every bf16 against a search */
        const float x = f32_from_bf16((uint16_t)i);
        if (isnan(x)) continue;
        const float got = f32_from_fp8(fp8_from_f32(x));
        const float least = x > 448 ? 448 : x < -448 ? -448 : x;
        float best = INFINITY;
        for (uint32_t code = 0; code < 256; code++) {
            const float distance = fabsf(f32_from_fp8((uint8_t)code) - least);
            if (distance < best) best = distance;
        }
        ck_assert(fabsf(got - least) == best);
    }
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE(codes_are_read_as_the_elements_they_stand_for),
    TEST_CASE(queries_together_or_alone_have_the_same_bits),
    TEST_CASE(codes_behind_a_query_change_nothing),
    TEST_CASE(fp8_has_the_values_of_e4m3),
    TEST_CASE(fp8_rounds_to_the_nearest_and_saturates),
    TEST_CASES_END,
};
