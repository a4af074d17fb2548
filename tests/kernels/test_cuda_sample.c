/* tests/kernels/test_cuda_sample.c - CUDA's draws against the definition.
 *
 * Sums differ in their last digits between the two, so a token may differ where a border is within rounding: it
 * must then be the definition's for a slightly larger or smaller uniform number, or cut. */
#include "tests/kernels/cuda_fixture.h"

#include <math.h>
#include <stdlib.h>

#define N_OF(array) (sizeof(array) / sizeof(array)[0])

enum { EDITS_PER_ROW = 24 };

/* Rows of a call, on the host. */
typedef struct step {
    uint32_t n_vocab, n_rows;
    float *logits;        /* [n_rows][n_vocab] */
    sample_row *rows;     /* [n_rows] */
    sample_edit *edits;   /* [n_rows][EDITS_PER_ROW] */
    sample_result *wants; /* [n_rows]: the definition's */
} step;

static double uniform(test_random *r)
{
    return ((double)random_signed(r) + 1) / 2;
}

typedef enum shape { NORMAL, TIES, EQUAL, FEW, ONE, NONE, HAS_NAN, HAS_INFINITY, N_SHAPES } shape;

static void fill_logits(test_random *r, shape of, uint32_t n, float *x)
{
    const float width = random_below(r, 2) == 0 ? 3.0f : 25.0f;
    for (uint32_t i = 0; i < n; i++) {
        x[i] = width * (random_signed(r) + random_signed(r));
        if (of == TIES) x[i] = -fabsf(roundf(x[i] / 4));
        if (of == TIES && x[i] == 0 && random_below(r, 2) == 0) x[i] = 0; /* of both signs */
        if (of == EQUAL) x[i] = -1.5f;
        if (of == FEW && random_below(r, 4) != 0) x[i] = -INFINITY;
        if (of == ONE || of == NONE) x[i] = -INFINITY;
    }
    const uint32_t at = random_below(r, n);
    if (of == FEW || of == ONE) x[at] = 2;
    if (of == HAS_NAN) x[at] = NAN;
    if (of == HAS_INFINITY) x[at] = INFINITY;
}

/* By kind, rising; in one kind no token twice. */
static uint32_t fill_edits(test_random *r, uint32_t n_vocab, sample_edit *edits)
{
    uint32_t n = 0;
    for (uint32_t kind = SAMPLE_ADD; kind <= SAMPLE_PENALIZE; kind++) {
        const uint32_t n_most = EDITS_PER_ROW / 3 < n_vocab ? EDITS_PER_ROW / 3 : n_vocab;
        const uint32_t first = random_below(r, n_vocab);
        /* Bans leave one. */
        const uint32_t n_of_kind =
            random_below(r, kind == SAMPLE_BAN && n_most == n_vocab ? n_most : n_most + 1);
        for (uint32_t i = 0; i < n_of_kind; i++)
            edits[n++] = (sample_edit){.token = (first + i) % n_vocab,
                                       .kind = kind,
                                       .by = kind == SAMPLE_ADD ? 9 * random_signed(r)
                                                                : 1.5f + random_signed(r),
                                       .minus = random_signed(r),
                                       .was = NAN};
    }
    return n;
}

/* Every combination of what may be on or off comes with some number. */
static sample_row make_row(test_random *r, uint32_t number, uint32_t n_vocab)
{
    static const float temperatures[] = {1, 0, 0.3f, 2.5f};
    static const int32_t n_logprobs[] = {-1, 0, 1, 5, 20};
    return (sample_row){
        .uniform = uniform(r),
        .temperature = temperatures[number / 8 % 4],
        .top_k = number % 2 == 0 ? 0 : random_below(r, n_vocab + 2),
        .min_p = number / 2 % 2 == 0       ? 0
                 : random_below(r, 4) == 0 ? 1
                                           : (float)uniform(r) * 0.3f,
        .top_p = number / 4 % 2 == 0 ? 1 : (float)uniform(r) * 0.999f + 1e-6f,
        .n_logprobs = n_logprobs[random_below(r, N_OF(n_logprobs))],
    };
}

static sample_result define(const step *s, uint32_t r, const sample_row *row)
{
    const size_t bytes = s->n_vocab * sizeof(float);
    sample_result out;
    sample_row alone = *row;
    float *x = test_alloc(bytes);
    void *scratch = test_alloc(sample_scratch_bytes(s->n_vocab));
    memcpy(x, s->logits + (size_t)r * s->n_vocab, bytes);
    alone.logits_row = 0;
    const sample_args args = {.logits = x,
                              .n_vocab = s->n_vocab,
                              .n_rows = 1,
                              .rows = &alone,
                              .edits = s->edits,
                              .results = &out};
    sample_cpu(&args, scratch);
    free(scratch);
    free(x);
    return out;
}

static step step_open(test_random *random, uint32_t n_vocab, uint32_t n_rows)
{
    step s = {.n_vocab = n_vocab, .n_rows = n_rows};
    s.logits = test_alloc((size_t)n_rows * n_vocab * sizeof *s.logits);
    s.rows = test_alloc(n_rows * sizeof *s.rows);
    s.edits = test_alloc((size_t)n_rows * EDITS_PER_ROW * sizeof *s.edits);
    s.wants = test_alloc(n_rows * sizeof *s.wants);
    memset(s.edits, 0, (size_t)n_rows * EDITS_PER_ROW * sizeof *s.edits);
    for (uint32_t r = 0; r < n_rows; r++) {
        sample_row *row = &s.rows[r];
        fill_logits(random, random_below(random, 2) == 0 ? NORMAL : random_below(random, N_SHAPES),
                    n_vocab, s.logits + (size_t)r * n_vocab);
        *row = make_row(random, r, n_vocab);
        row->logits_row = r;
        row->first_edit = r * EDITS_PER_ROW;
        if (random_below(random, 2) == 0)
            row->n_edits = fill_edits(random, n_vocab, s.edits + row->first_edit);
        s.wants[r] = define(&s, r, row);
    }
    return s;
}

static void step_close(step *s)
{
    free(s->logits);
    free(s->rows);
    free(s->edits);
    free(s->wants);
}

/* Rows [first, first + n) on the GPU, in one call. */
static void run(gpu *g, const step *s, uint32_t first, uint32_t n, sample_result *out)
{
    sample_result *poison = test_alloc(n * sizeof *poison);
    memset(poison, 0x7f, n * sizeof *poison);
    const size_t n_edits = (size_t)s->n_rows * EDITS_PER_ROW;
    const sample_args args = {
        .logits = gpu_put(g, s->logits, (size_t)s->n_rows * s->n_vocab * sizeof *s->logits),
        .n_vocab = s->n_vocab,
        .n_rows = n,
        .rows = gpu_put(g, s->rows + first, n * sizeof *s->rows),
        .edits = gpu_put(g, s->edits, n_edits * sizeof *s->edits),
        .results = gpu_put(g, poison, n * sizeof *poison)};
    g->ops->sample(g->d, &args);
    gpu_get(g, out, args.results, n * sizeof *out);
    free(poison);
}

/* Would the definition draw `token` if the borders were a little elsewhere? */
static bool is_at_a_border(const step *s, uint32_t r, uint32_t token)
{
    static const double nudges[] = {0, -3e-6, 3e-6};
    for (uint32_t i = 0; i < 27; i++) {
        sample_row row = s->rows[r];
        row.uniform = fmin(fmax(row.uniform + nudges[i % 3], 0), 1 - 1e-9);
        if (row.top_p < 1) row.top_p *= (float)(1 + nudges[i / 3 % 3]);
        row.min_p = fminf(row.min_p * (float)(1 + nudges[i / 9]), 1);
        if (define(s, r, &row).token == token) return true;
    }
    return false;
}

static void check_logprobs(const sample_result *got, const sample_result *want, uint64_t seed)
{
    ck_assert_msg(got->n_top == want->n_top, "n_top is %u, not %u (seed %llu)", got->n_top,
                  want->n_top, (unsigned long long)seed);
    for (uint32_t i = 0; i < SAMPLE_LOGPROBS_MAX; i++) {
        ck_assert_msg(got->top[i].token == want->top[i].token, "entry %u is %u, not %u (seed %llu)",
                      i, got->top[i].token, want->top[i].token, (unsigned long long)seed);
        if (isinf(want->top[i].logprob)) {
            ck_assert(got->top[i].logprob == want->top[i].logprob);
        } else {
            assert_near(&got->top[i].logprob, &want->top[i].logprob, 1, (tolerance){3e-6, 3e-7},
                        seed);
        }
        if (i < got->n_top && got->top[i].token == got->token)
            ck_assert(memcmp(&got->top[i].logprob, &got->logprob, sizeof(float)) == 0);
    }
    if (got->token != want->token) return;
    if (isinf(want->logprob)) {
        ck_assert(got->logprob == want->logprob);
    } else {
        assert_near(&got->logprob, &want->logprob, 1, (tolerance){3e-6, 3e-7}, seed);
    }
}

/* Returns whether its token is not the definition's. */
static bool check_row(const step *s, uint32_t r, const sample_result *got, uint64_t seed)
{
    const sample_result *want = &s->wants[r];
    const sample_row *row = &s->rows[r];
    const bool is_other = got->token != want->token;
    ck_assert_msg(got->is_bad == want->is_bad, "row %u of %u: is_bad is %d (seed %llu)", r,
                  s->n_vocab, got->is_bad, (unsigned long long)seed);
    if (is_other)
        ck_assert_msg(
            row->temperature > 0 && is_at_a_border(s, r, got->token),
            "row %u of %u: token %u, not %u; t %g k %u min_p %g top_p %g edits %u (seed %llu)", r,
            s->n_vocab, got->token, want->token, (double)row->temperature, row->top_k,
            (double)row->min_p, (double)row->top_p, row->n_edits, (unsigned long long)seed);
    check_logprobs(got, want, seed);
    return is_other;
}

static void check_step(uint32_t n_vocab, uint32_t n_rows)
{
    gpu g = gpu_open(0);
    step s = step_open(&g.random, n_vocab, n_rows);
    sample_result *got = test_alloc(n_rows * sizeof *got);
    uint32_t n_other = 0;
    run(&g, &s, 0, n_rows, got);
    for (uint32_t r = 0; r < n_rows; r++)
        n_other += check_row(&s, r, &got[r], g.random.seed);
    ck_assert_uint_le(n_other, 1 + n_rows / 50);
    free(got);
    step_close(&s);
    gpu_close(&g);
}

START_TEST(tokens_and_logprobs_are_those_of_the_definition)
{
    check_step(1, 32);
    check_step(2, 32);
    check_step(31, 48);
    check_step(257, 48);
    check_step(2049, 16);
}
END_TEST

START_TEST(a_large_vocabulary_is_no_different)
{
    check_step(32000, 8);
}
END_TEST

/* Everything of a row, but the padding. */
static void assert_same(const sample_result *a, const sample_result *b, uint64_t seed)
{
    assert_same_bits(&a->logprob, &b->logprob, 1, seed);
    ck_assert_uint_eq(a->token, b->token);
    ck_assert_uint_eq(a->n_top, b->n_top);
    ck_assert_int_eq(a->is_bad, b->is_bad);
    ck_assert_mem_eq(a->top, b->top, sizeof a->top);
}

START_TEST(a_row_has_the_same_bits_in_every_batch)
{
    gpu g = gpu_open(0);
    step s = step_open(&g.random, 1000, 24);
    sample_result whole[24], part[24];
    run(&g, &s, 0, 24, whole);
    for (uint32_t first = 0; first < 24; first += 5) {
        const uint32_t n = first % 2 == 0 ? 1 : 24 - first;
        run(&g, &s, first, n, part);
        for (uint32_t r = 0; r < n; r++)
            assert_same(&part[r], &whole[first + r], g.random.seed);
    }
    step_close(&s);
    gpu_close(&g);
}
END_TEST

/* The uniform numbers (i + 1/2) / n hit every token as often as its share says, but for one at each of its ends. */
START_TEST(draws_follow_the_distribution)
{
    enum { VOCAB = 5, DRAWS = 64 };
    static const float logits[VOCAB] = {0, 1.6094379f, -INFINITY, 0.6931472f, 0};
    static const uint32_t shares[VOCAB] = {1, 5, 0, 2, 1}; /* ninths */
    gpu g = gpu_open(0);
    step s = step_open(&g.random, VOCAB, DRAWS);
    sample_result got[DRAWS];
    uint32_t count[VOCAB] = {0};
    for (uint32_t r = 0; r < DRAWS; r++) {
        memcpy(s.logits + (size_t)r * VOCAB, logits, sizeof logits);
        s.rows[r] = (sample_row){.uniform = (r + 0.5) / DRAWS,
                                 .temperature = 1,
                                 .top_p = 1,
                                 .n_logprobs = -1,
                                 .logits_row = r};
    }
    run(&g, &s, 0, DRAWS, got);
    for (uint32_t r = 0; r < DRAWS; r++) {
        ck_assert(!got[r].is_bad);
        ck_assert_uint_ge(got[r].token, r > 0 ? got[r - 1].token : 0);
        ck_assert_uint_lt(got[r].token, VOCAB);
        count[got[r].token]++;
    }
    for (uint32_t i = 0; i < VOCAB; i++)
        ck_assert(fabs(count[i] - shares[i] * DRAWS / 9.0) <= 1);
    ck_assert_uint_eq(count[2], 0);
    step_close(&s);
    gpu_close(&g);
}
END_TEST

/* Of a hundred ways to cut, all are found to keep the definition's tokens: the first and last id that any uniform
 * number draws are the same. */
START_TEST(cuts_keep_what_the_definition_keeps)
{
    enum { ROWS = 48 };
    gpu g = gpu_open(0);
    step s = step_open(&g.random, 300, ROWS);
    sample_result got[ROWS];
    for (uint32_t r = 0; r < ROWS; r++) {
        sample_row *row = &s.rows[r];
        *row = (sample_row){.uniform = r % 2 == 0 ? 0 : 1 - 0x1p-53,
                            .temperature = 3,
                            .top_k = r / 2 % 3 == 0 ? 0 : 1 + random_below(&g.random, 20),
                            .top_p = r / 2 % 3 == 1 ? 1 : 0.02f + 0.2f * (float)uniform(&g.random),
                            .n_logprobs = -1,
                            .logits_row = r};
        fill_logits(&g.random, r % 4 < 2 ? TIES : NORMAL, 300, s.logits + (size_t)r * 300);
        s.wants[r] = define(&s, r, row);
    }
    run(&g, &s, 0, ROWS, got);
    for (uint32_t r = 0; r < ROWS; r++)
        (void)check_row(&s, r, &got[r], g.random.seed);
    step_close(&s);
    gpu_close(&g);
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE(tokens_and_logprobs_are_those_of_the_definition),
    TEST_CASE(a_large_vocabulary_is_no_different),
    TEST_CASE(a_row_has_the_same_bits_in_every_batch),
    TEST_CASE(draws_follow_the_distribution),
    TEST_CASE(cuts_keep_what_the_definition_keeps),
    TEST_CASES_END,
};
