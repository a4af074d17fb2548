/* tests/kernels/test_cuda_attention.c - attention over pages, rings and staging on CUDA: against the definition,
 * and the promises about bits, which are exact. */
#include "tests/kernels/attention_step.h"

#include <math.h>
#include <stdlib.h>

#define N_OF(array) (sizeof(array) / sizeof(array)[0])

/* Within 1e-5 of the largest output. */
static void assert_is_definition(const step *s, const float *got, const float *want, size_t n)
{
    double most = 0;
    for (size_t i = 0; i < n; i++) {
        ck_assert_msg(!isnan(want[i]), "element %zu has no output", i);
        if (fabs((double)want[i]) > most) most = fabs((double)want[i]);
    }
    assert_near(got, want, n, (tolerance){1e-5 * most, 1e-5}, s->g.random.seed);
}

static size_t n_outputs(const step *s, const step_row *rows, uint32_t n_rows)
{
    size_t n = 0;
    for (uint32_t r = 0; r < n_rows; r++)
        n += rows[r].n_tokens;
    return n * step_heads(s) * s->shape.v_dim;
}

/* A long decoding, a prompt behind a prefix, a row without tokens, a prompt from the start, a first token. */
static uint32_t make_rows(step *s, step_row rows[STEP_ROWS_MAX])
{
    test_random *random = &s->g.random;
    const uint32_t bt = s->shape.block_tokens, far = (8 + random_below(random, 5)) * bt;
    const uint32_t length = far + random_below(random, bt), n_prompt = 1 + random_below(random, 14);
    const step_sequence *deep = step_add_sequence(s, length + 1);
    const step_sequence *prompt = step_add_sequence(s, 3 * bt + n_prompt);
    rows[0] = step_make_row(s, deep, length, 1);
    rows[1] = step_make_row(s, prompt, random_below(random, 3 * bt), n_prompt);
    rows[2] = step_make_row(s, prompt, bt, 0);
    rows[3] = step_make_row(s, prompt, 0, n_prompt);
    rows[4] = step_make_row(s, deep, 0, 1);
    return 5;
}

/* All rows, and those that decode choose if one_in > 0. */
static uint32_t make_choosing_rows(step *s, step_row rows[STEP_ROWS_MAX], uint32_t one_in)
{
    const uint32_t n_rows = make_rows(s, rows);
    for (uint32_t r = 0; r < n_rows && one_in > 0; r++) {
        if (rows[r].n_tokens == 1) step_choose(s, &rows[r], one_in);
    }
    return n_rows;
}

static void check_choosing(const step_shape *shape, step_cut cut, uint32_t one_in)
{
    step *s = test_alloc(sizeof *s);
    step_row rows[STEP_ROWS_MAX];
    step_open(s, shape);
    const uint32_t n_rows = make_choosing_rows(s, rows, one_in);
    float *want, *got = step_run(s, rows, n_rows, cut, &want);
    assert_is_definition(s, got, want, n_outputs(s, rows, n_rows));
    free(got);
    free(want);
    step_close(s);
    free(s);
}

static void check_definition(const step_shape *shape, step_cut cut)
{
    check_choosing(shape, cut, 0);
}

static const attn_coding codings[] = {ATTN_PLAIN, ATTN_FP8,  ATTN_INT8, ATTN_INT4,
                                      ATTN_INT2,  ATTN_KEPT, ATTN_LOW};

/* Widths with tails of units and of lots; groups that fill tiles and that do not. */
static const step_shape shapes[] = {
    {.n_kv_heads = 2,
     .group = 4,
     .k_dim = 64,
     .v_dim = 64,
     .v_group = 32,
     .block_tokens = 16,
     .n_ring_blocks = 3},
    {.n_kv_heads = 1,
     .group = 5,
     .k_dim = 20,
     .v_dim = 20,
     .v_group = 16,
     .block_tokens = 8,
     .n_ring_blocks = 2,
     .n_sinks = 3,
     .has_dead = true,
     .pad = 1},
    {.n_kv_heads = 2,
     .group = 1,
     .k_dim = 128,
     .v_dim = 128,
     .v_group = 64,
     .block_tokens = 8,
     .n_ring_blocks = 4,
     .window = 50,
     .has_bias = true},
    {.n_kv_heads = 1,
     .group = 8,
     .k_dim = 80,
     .v_dim = 72,
     .v_group = 32,
     .block_tokens = 8,
     .n_ring_blocks = 2,
     .n_sinks = 4,
     .has_sink_logit = true,
     .has_positions = true},
    {.n_kv_heads = 3,
     .group = 2,
     .k_dim = 8,
     .v_dim = 16,
     .v_group = 16,
     .block_tokens = 64,
     .n_ring_blocks = 2,
     .n_sinks = 2,
     .window = 200,
     .has_dead = true,
     .has_bias = true},
    {.n_kv_heads = 1,
     .group = 1,
     .k_dim = 5,
     .v_dim = 3,
     .v_group = 16,
     .block_tokens = 4,
     .n_ring_blocks = 3,
     .n_sinks = 5, /* more than a block */
     .window = 9,
     .has_sink_logit = true,
     .pad = 3},
    {.n_kv_heads = 1, /* a latent */
     .group = 16,
     .k_dim = 576,
     .v_dim = 512,
     .v_group = 64,
     .block_tokens = 8,
     .n_ring_blocks = 2},
};

START_TEST(every_coding_is_read_as_the_definition_does)
{
    for (size_t i = 0; i < N_OF(shapes); i++) {
        for (size_t k = 0; k < N_OF(codings); k++) {
            step_shape shape = shapes[i];
            shape.coding = codings[k];
            shape.type = (i + k) % 2 == 0 ? DTYPE_BF16 : DTYPE_F32;
            check_definition(&shape, k % 2 == 0 ? CUT_RANDOM : CUT_ROWS);
            if (codings[k] == ATTN_PLAIN || codings[k] >= ATTN_KEPT) { /* elements */
                shape.type = shape.type == DTYPE_F32 ? DTYPE_BF16 : DTYPE_F32;
                check_definition(&shape, CUT_SPLITS);
            }
        }
    }
}

/* Values that are the first channels of keys, and rows of the widest kinds. */
START_TEST(wide_rows_and_shared_ones_are_read_as_the_definition_does)
{
    static const step_shape wide[] = {
        {.type = DTYPE_BF16, .group = 9, .k_dim = 576, .v_dim = 512, .is_shared = true},
        {.type = DTYPE_F32, .group = 3, .k_dim = 40, .v_dim = 24, .is_shared = true, .pad = 1},
        {.type = DTYPE_BF16, .group = 5, .k_dim = 1024, .v_dim = 1024},
        {.type = DTYPE_F32, .group = 1, .k_dim = 1024, .v_dim = 1001, .coding = ATTN_INT4},
        {.type = DTYPE_F32, .group = 3, .k_dim = 1017, .v_dim = 264, .coding = ATTN_KEPT},
    };
    for (size_t i = 0; i < N_OF(wide); i++) {
        step_shape shape = wide[i];
        shape.n_kv_heads = 1;
        shape.v_group = 64;
        shape.block_tokens = 4;
        shape.n_ring_blocks = 3;
        check_definition(&shape, i % 2 == 0 ? CUT_RANDOM : CUT_SPLITS);
    }
}

static step_shape random_shape(test_random *r)
{
    static const uint32_t dims[] = {8, 16, 20, 64, 33}, groups[] = {1, 2, 4, 5, 8};
    step_shape out = {.n_kv_heads = 1 + random_below(r, 2)};
    out.coding = codings[random_below(r, N_OF(codings))];
    out.type = random_below(r, 2) == 0 ? DTYPE_BF16 : DTYPE_F32;
    out.group = groups[random_below(r, N_OF(groups))];
    out.k_dim = dims[random_below(r, N_OF(dims))];
    out.v_dim = dims[random_below(r, N_OF(dims))];
    out.v_group = 16 * (1 + random_below(r, 3));
    out.block_tokens = 4 + random_below(r, 13);
    out.n_ring_blocks = 2 + random_below(r, 3);
    out.n_sinks = random_below(r, 2) * random_below(r, out.block_tokens);
    out.window = random_below(r, 2) * (1 + random_below(r, 80));
    out.has_sink_logit = random_below(r, 2) == 0;
    out.has_bias = random_below(r, 3) == 0;
    out.has_positions = random_below(r, 3) == 0;
    out.has_dead = random_below(r, 2) == 0;
    out.pad = random_below(r, 2);
    return out;
}

START_TEST(random_steps_are_those_of_the_definition)
{
    enum { N_STEPS = 16 };
    test_random random = random_fresh();
    for (uint32_t i = 0; i < N_STEPS; i++) {
        const step_shape shape = random_shape(&random);
        check_definition(&shape, CUT_RANDOM);
    }
}

/* Ring, staging and sink logits are another rank's; also of rows that choose, and of those without a page. */
START_TEST(rows_may_have_pages_only)
{
    static const step_cut cuts[] = {CUT_SPLITS, CUT_RANDOM, CUT_ROWS};
    for (size_t i = 0; i < N_OF(shapes); i++) {
        step *s = test_alloc(sizeof *s);
        step_row rows[STEP_ROWS_MAX];
        step_shape shape = shapes[i];
        shape.coding = codings[i % N_OF(codings)];
        step_open(s, &shape);
        const uint32_t n_rows = make_choosing_rows(s, rows, i % 2 == 0 ? 0 : 2);
        for (uint32_t r = 0; r < n_rows; r++)
            rows[r].has_pages_only = r != 1;
        float *want, *got = step_run(s, rows, n_rows, cuts[i % N_OF(cuts)], &want);
        assert_is_definition(s, got, want, n_outputs(s, rows, n_rows));
        free(got);
        free(want);
        step_close(s);
        free(s);
    }
}

START_TEST(chosen_pages_are_read_and_no_others)
{
    static const step_cut cuts[] = {CUT_SPLITS, CUT_RANDOM, CUT_ROWS};
    for (size_t i = 0; i < N_OF(shapes); i++) {
        for (size_t k = 0; k < N_OF(cuts); k++) {
            step_shape shape = shapes[i];
            shape.coding = codings[(i + k) % N_OF(codings)];
            shape.type = (i + k) % 2 == 0 ? DTYPE_BF16 : DTYPE_F32;
            check_choosing(&shape, cuts[k], k == 2 ? 50 : 2 + (uint32_t)k);
        }
    }
}

/* And so that a choice of everything is none. */
START_TEST(a_choice_of_all_pages_has_the_bits_of_none)
{
    for (size_t i = 0; i < N_OF(shapes); i++) {
        step *s = test_alloc(sizeof *s);
        step_row rows[STEP_ROWS_MAX];
        step_shape shape = shapes[i];
        shape.coding = codings[i % N_OF(codings)];
        step_open(s, &shape);
        const uint32_t n_rows = make_rows(s, rows);
        float *none = step_run(s, rows, n_rows, CUT_RANDOM, NULL);
        for (uint32_t r = 0; r < n_rows; r++) {
            if (rows[r].n_tokens == 1) step_choose(s, &rows[r], 1);
        }
        float *all = step_run(s, rows, n_rows, CUT_RANDOM, NULL);
        assert_same_bits(all, none, n_outputs(s, rows, n_rows), s->g.random.seed);
        free(none);
        free(all);
        step_close(s);
        free(s);
    }
}

/* Row by row, token by token, split by split, and however. A token alone also is in tiles of other sizes. */
START_TEST(tasks_and_tiles_change_no_bit)
{
    enum { N_LOW = 3 }; /* shapes again, with two bases between plain pages */
    for (size_t i = 0; i < N_OF(shapes) + N_LOW; i++) {
        step *s = test_alloc(sizeof *s);
        step_row rows[STEP_ROWS_MAX];
        step_shape shape = shapes[i % N_OF(shapes)];
        shape.type = i % 2 == 0 ? DTYPE_F32 : DTYPE_BF16;
        shape.coding = i < N_OF(shapes) ? codings[i % N_OF(codings)] : ATTN_LOW;
        step_open(s, &shape);
        const uint32_t n_rows = make_choosing_rows(s, rows, i % 2 == 0 ? 0 : 2);
        float *whole = step_run(s, rows, n_rows, CUT_ROWS, NULL);
        static const step_cut cuts[] = {CUT_TOKENS, CUT_SPLITS, CUT_RANDOM, CUT_RANDOM};
        for (size_t k = 0; k < N_OF(cuts); k++) {
            float *cut = step_run(s, rows, n_rows, cuts[k], NULL);
            assert_same_bits(cut, whole, n_outputs(s, rows, n_rows), s->g.random.seed);
            free(cut);
        }
        free(whole);
        step_close(s);
        free(s);
    }
}

START_TEST(neighbours_change_no_bit)
{
    for (size_t i = 0; i < N_OF(shapes); i++) {
        step *s = test_alloc(sizeof *s);
        step_row rows[STEP_ROWS_MAX];
        step_shape shape = shapes[i];
        shape.coding = codings[(i + 3) % N_OF(codings)];
        step_open(s, &shape);
        const uint32_t n_rows = make_choosing_rows(s, rows, i % 2 == 0 ? 3 : 0);
        float *together = step_run(s, rows, n_rows, CUT_RANDOM, NULL);
        size_t at = 0;
        for (uint32_t r = 0; r < n_rows; r++) {
            const size_t n = n_outputs(s, &rows[r], 1);
            if (n == 0) continue;
            float *alone = step_run(s, &rows[r], 1, CUT_RANDOM, NULL);
            assert_same_bits(alone, together + at, n, s->g.random.seed);
            free(alone);
            at += n;
        }
        free(together);
        step_close(s);
        free(s);
    }
}

/* A whole prompt in one step, or in steps of random sizes, each finding what came before in pages and its ring, cut
 * anywhere, and next to itself with another cut. */
static void check_prompt(const step_shape *shape)
{
    step *s = test_alloc(sizeof *s);
    step_open(s, shape);
    const uint32_t n_tokens = shape->block_tokens * 8 + 3; /* two splits */
    const size_t each = (size_t)step_heads(s) * shape->v_dim;
    const step_sequence *sequence = step_add_sequence(s, n_tokens);
    const step_row all = {.sequence = sequence, .n_tokens = n_tokens};
    float *whole = step_run(s, &all, 1, CUT_ROWS, NULL);
    for (uint32_t at = 0; at < n_tokens;) {
        const uint32_t left = n_tokens - at, n = 1 + random_below(&s->g.random, left);
        const step_row twice[2] = {step_make_row(s, sequence, at, n),
                                   step_make_row(s, sequence, at, n)};
        float *got = step_run(s, twice, 2, CUT_RANDOM, NULL);
        assert_same_bits(got, whole + at * each, n * each, s->g.random.seed);
        assert_same_bits(got + n * each, whole + at * each, n * each, s->g.random.seed);
        free(got);
        at += n;
    }
    free(whole);
    step_close(s);
    free(s);
}

START_TEST(chunks_of_a_prompt_have_the_bits_of_the_whole)
{
    for (size_t i = 0; i < N_OF(shapes); i++) {
        step_shape shape = shapes[i];
        if (shape.block_tokens > 8) shape.block_tokens = 7;
        shape.type = i % 2 == 0 ? DTYPE_BF16 : DTYPE_F32;
        shape.has_dead = shape.has_bias = shape.has_positions = false; /* pages know more */
        check_prompt(&shape);
    }
}

/* Rows of one tile see different slots: a value that is no number belongs to those that see it. */
START_TEST(a_value_that_is_no_number_is_only_of_queries_that_see_it)
{
    enum { N_TOKENS = 30, BAD = 17 };
    step *s = test_alloc(sizeof *s);
    step_open(s, &shapes[0]);
    step_sequence *sequence = &s->sequences[0];
    step_add_sequence(s, N_TOKENS);
    const step_row row = {.sequence = sequence, .n_tokens = N_TOKENS};
    const size_t each = (size_t)step_heads(s) * s->shape.v_dim;
    float *clean = step_run(s, &row, 1, CUT_ROWS, NULL);
    const attn_strip *strip = &s->args.strip;
    memset(sequence->tokens + BAD * strip->slot_bytes + strip->v_offset, 0xff,
           (size_t)2 * strip->v_head_bytes);
    float *got = step_run(s, &row, 1, CUT_ROWS, NULL);
    assert_same_bits(got, clean, BAD * each, s->g.random.seed);
    for (size_t i = BAD * each; i < N_TOKENS * each; i++)
        ck_assert(isnan(got[i]));
    free(clean);
    free(got);
    step_close(s);
    free(s);
}

/* All that the first split has is before the window; as a task of its own, and as a merge of nothing else. */
static void check_no_key(bool has_sink_logit)
{
    step_shape shape = shapes[0];
    shape.window = 10;
    shape.has_sink_logit = has_sink_logit;
    step *s = test_alloc(sizeof *s);
    step_tasks *tasks = test_alloc(sizeof *tasks);
    step_open(s, &shape);
    const uint32_t length = 10 * shape.block_tokens;
    const step_sequence *sequence = step_add_sequence(s, length + 1);
    const step_row rows[2] = {step_make_row(s, sequence, length, 1),
                              step_make_row(s, sequence, length, 1)};
    *tasks = (step_tasks){
        .tasks = {{.row = 0, .n_queries = 1, .n_splits = 1, .partial = ATTN_NO_PARTIAL},
                  {.row = 1, .n_queries = 1, .n_splits = 1, .partial = 1}},
        .merges = {{.token = 1, .first_partial = 1, .n_partials = 1}},
        .n_tasks = 2,
        .n_merges = 1,
        .n_partials = 2,
        .n_queries_max = 1};
    float *want, *got = step_run_tasks(s, rows, 2, tasks, &want);
    for (size_t i = 0; i < n_outputs(s, rows, 2); i++) {
        ck_assert(want[i] == 0);
        ck_assert(got[i] == 0);
    }
    free(want);
    free(got);
    free(tasks);
    step_close(s);
    free(s);
}

START_TEST(a_query_without_a_key_gives_zeros)
{
    check_no_key(false);
    check_no_key(true);
}

START_TEST(a_step_without_tasks_is_none)
{
    gpu g = gpu_open(0);
    const attend_pages_args nothing = {
        .n_kv_heads = 2, .group = 2, .k_dim = 8, .v_dim = 8, .block_tokens = 16};
    const float *untouched = gpu_poisoned(&g, 8);
    g.ops->attend_pages(g.d, &nothing);
    free(gpu_get_floats(&g, untouched, 8)); /* fails if anything was launched in vain */
    gpu_close(&g);
}

const test_case test_cases[] = {
    TEST_CASE(every_coding_is_read_as_the_definition_does),
    TEST_CASE(wide_rows_and_shared_ones_are_read_as_the_definition_does),
    TEST_CASE(random_steps_are_those_of_the_definition),
    TEST_CASE(rows_may_have_pages_only),
    TEST_CASE(chosen_pages_are_read_and_no_others),
    TEST_CASE(a_choice_of_all_pages_has_the_bits_of_none),
    TEST_CASE(tasks_and_tiles_change_no_bit),
    TEST_CASE(neighbours_change_no_bit),
    TEST_CASE(chunks_of_a_prompt_have_the_bits_of_the_whole),
    TEST_CASE(a_value_that_is_no_number_is_only_of_queries_that_see_it),
    TEST_CASE(a_query_without_a_key_gives_zeros),
    TEST_CASE(a_step_without_tasks_is_none),
    TEST_CASES_END,
};
