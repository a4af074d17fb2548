/* The sampler against a naive one that sorts everything, and against numbers computed by hand. */
#include "base/random.h"
#include "model/sampler.h"
#include "tests/test_main.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { VOCAB = 300, N_DRAWS = 20000 };

static const sampler_params plain = {
    .temperature = 1.0f, .top_p = 1.0f, .repetition_penalty = 1.0f, .n_logprobs = -1};

static float random_logit(uint64_t seed, uint32_t i)
{
    return 8.0f * random_uniform(seed, 77, i) - 4.0f;
}

static void fill(float *logits, uint32_t n, uint64_t seed)
{
    for (uint32_t i = 0; i < n; i++)
        logits[i] = random_logit(seed, i);
}

/* One run over a copy of `logits`. */
static sampler_result run(const sampler_params *params, const sampler_state *state,
                          const float *logits, uint32_t n_vocab, uint64_t position)
{
    sampler_result result;
    float *const copy = malloc(n_vocab * sizeof *copy);
    void *const scratch = malloc(sampler_scratch_bytes(n_vocab));
    ck_assert_ptr_nonnull(copy);
    ck_assert_ptr_nonnull(scratch);
    memcpy(copy, logits, n_vocab * sizeof *copy);
    const sampler_input in = {
        .logits = copy, .n_vocab = n_vocab, .position = position, .scratch = scratch};
    sampler_run(params, state, &in, &result);
    free(scratch);
    free(copy);
    return result;
}

/* ---- the naive sampler --------------------------------------------------------------------------- */

typedef struct ranked {
    float logit;
    uint32_t token;
} ranked;

static int compare_ranked(const void *a, const void *b)
{
    const ranked *const x = a, *const y = b;
    if (x->logit != y->logit) return x->logit > y->logit ? -1 : 1;
    return x->token < y->token ? -1 : 1;
}

/* Probabilities after temperature, top-k, min-p and top-p, by sorting: p [n]. */
static void naive_distribution(const sampler_params *params, const float *logits, uint32_t n,
                               double *p)
{
    ranked r[VOCAB];
    double weight[VOCAB], total = 0, sum = 0;
    for (uint32_t i = 0; i < n; i++)
        r[i] = (ranked){logits[i], i};
    qsort(r, n, sizeof r[0], compare_ranked);
    uint32_t n_kept = params->top_k > 0 && params->top_k < n ? params->top_k : n;
    for (uint32_t i = 0; i < n_kept; i++)
        weight[i] = exp(((double)r[i].logit - (double)r[0].logit) / (double)params->temperature);
    while (weight[n_kept - 1] < (double)params->min_p)
        n_kept--;
    for (uint32_t i = 0; i < n_kept; i++)
        total += weight[i];
    for (uint32_t i = 0; i < n_kept; i++) {
        sum += weight[i];
        if (sum >= (double)params->top_p * total) n_kept = i + 1;
    }
    memset(p, 0, n * sizeof *p);
    for (uint32_t i = 0; i < n_kept; i++)
        p[r[i].token] = weight[i] / sum;
}

/* Every token with probability zero stays away, and the others come as often as they should: chi
 * square over the tokens with enough expected draws, against mean + 5 sigma. */
static void check_distribution(const sampler_params *base, uint64_t logits_seed)
{
    static float logits[VOCAB];
    static double p[VOCAB];
    static uint32_t count[VOCAB];
    sampler_params params = *base;
    fill(logits, VOCAB, logits_seed);
    naive_distribution(&params, logits, VOCAB, p);
    memset(count, 0, sizeof count);
    for (uint64_t i = 0; i < N_DRAWS; i++) {
        params.seed = 1000 + i / 100;
        count[run(&params, NULL, logits, VOCAB, i % 100).token]++;
    }
    double chi = 0, n_cells = 0, rest_expected = 0, rest_count = 0;
    for (uint32_t i = 0; i < VOCAB; i++) {
        const double expected = p[i] * N_DRAWS;
        ck_assert_msg(p[i] > 0 || count[i] == 0, "token %u is outside the kept set", i);
        if (expected < 10) {
            rest_expected += expected;
            rest_count += count[i];
            continue;
        }
        chi += (count[i] - expected) * (count[i] - expected) / expected;
        n_cells++;
    }
    if (rest_expected >= 10) {
        chi += (rest_count - rest_expected) * (rest_count - rest_expected) / rest_expected;
        n_cells++;
    }
    ck_assert_msg(chi < n_cells + 5 * sqrt(2 * n_cells), "chi square %g over %g cells", chi,
                  n_cells);
}

START_TEST(draws_follow_the_distribution)
{
    check_distribution(&plain, 1);
    sampler_params p = plain;
    p.temperature = 0.5f;
    check_distribution(&p, 2);
    p.temperature = 1.7f;
    p.top_k = 40;
    check_distribution(&p, 3);
    p.top_p = 0.8f;
    check_distribution(&p, 4);
    p.min_p = 0.1f;
    check_distribution(&p, 5);
    p = plain;
    p.top_p = 0.3f;
    check_distribution(&p, 6);
}
END_TEST

/* The kept set, found by banning what was drawn until nothing is new, would be slow; instead the set
 * of tokens over many draws must be inside the naive set, and small naive sets must be hit in full. */
START_TEST(the_kept_set_is_the_naive_one)
{
    static float logits[VOCAB];
    static double p[VOCAB];
    for (uint64_t seed = 0; seed < 60; seed++) {
        const random_block r = random_at(seed, 5, 0);
        sampler_params params = plain;
        params.temperature = 3.0f;
        params.top_k = r.word[0] % 3 == 0 ? 0 : 1 + r.word[0] % 20;
        params.top_p = r.word[1] % 3 == 0 ? 1.0f : 0.02f + 0.1f * random_uniform(seed, 6, 0);
        params.min_p = r.word[2] % 3 == 0 ? 0.0f : 0.5f * random_uniform(seed, 7, 0);
        fill(logits, VOCAB, seed);
        for (uint32_t i = 0; i < VOCAB; i += 3)
            logits[i] = roundf(logits[i]); /* ties */
        naive_distribution(&params, logits, VOCAB, p);
        bool hit[VOCAB] = {false};
        uint32_t n_kept = 0, n_hit = 0;
        for (uint64_t i = 0; i < 2000; i++) {
            params.seed = i;
            hit[run(&params, NULL, logits, VOCAB, 0).token] = true;
        }
        for (uint32_t i = 0; i < VOCAB; i++) {
            ck_assert_msg(!hit[i] || p[i] > 0, "seed %llu: token %u", (unsigned long long)seed, i);
            n_kept += p[i] > 0;
            n_hit += hit[i];
        }
        ck_assert_msg(n_kept > 20 || n_hit == n_kept, "seed %llu: %u of %u",
                      (unsigned long long)seed, n_hit, n_kept);
    }
}
END_TEST

START_TEST(a_large_vocabulary_is_cut_exactly)
{
    enum { LARGE = 150000 };
    float *const logits = malloc(LARGE * sizeof *logits);
    ck_assert_ptr_nonnull(logits);
    for (uint32_t i = 0; i < LARGE; i++)
        logits[i] =
            i % 1000 == 7 ? 10.0f + (float)(i / 1000) * 0.001f : -5.0f + random_uniform(1, 2, i);
    sampler_params params = plain;
    params.top_k = 150;
    params.temperature = 10.0f;
    for (uint64_t i = 0; i < 50; i++) {
        params.seed = i;
        ck_assert_uint_eq(run(&params, NULL, logits, LARGE, i).token % 1000, 7);
    }
    for (uint32_t i = 0; i < LARGE; i++)
        logits[i] =
            (float)(LARGE - i) * 1e-4f; /* already sorted: the worst case of a naive pivot */
    params.top_k = 3;
    for (uint64_t i = 0; i < 10; i++)
        ck_assert_uint_lt(run(&params, NULL, logits, LARGE, i).token, 3);
    for (uint32_t i = 0; i < LARGE; i++)
        logits[i] = 1.0f; /* all equal: the lowest ids are kept */
    for (uint64_t i = 0; i < 10; i++)
        ck_assert_uint_lt(run(&params, NULL, logits, LARGE, i).token, 3);
    free(logits);
}
END_TEST

/* ---- edges --------------------------------------------------------------------------------------- */

START_TEST(temperature_zero_takes_the_largest_and_the_lower_of_equals)
{
    const float logits[5] = {1, 3, 2, 3, 0};
    sampler_params params = plain;
    params.temperature = 0;
    ck_assert_uint_eq(run(&params, NULL, logits, 5, 9).token, 1);
    params.temperature = 1;
    params.top_k = 1;
    ck_assert_uint_eq(run(&params, NULL, logits, 5, 9).token, 1);
    params.top_k = 0;
    params.top_p = 1e-7f;
    ck_assert_uint_eq(run(&params, NULL, logits, 5, 9).token, 1);
    params.top_p = 1;
    params.min_p = 1;
    const uint32_t token = run(&params, NULL, logits, 5, 9).token;
    ck_assert(token == 1 || token == 3);
    params.min_p = 0;
    params.top_k = 500; /* more than there are */
    ck_assert_uint_lt(run(&params, NULL, logits, 5, 9).token, 5);
}
END_TEST

START_TEST(a_token_depends_on_seed_choice_and_position_alone)
{
    static float logits[VOCAB];
    fill(logits, VOCAB, 3);
    sampler_params a = plain;
    a.seed = 42;
    uint32_t n_seed = 0, n_choice = 0, n_position = 0;
    for (uint64_t position = 0; position < 50; position++) {
        sampler_params b = a, c = a;
        b.seed = 43;
        c.choice = 1;
        const uint32_t token = run(&a, NULL, logits, VOCAB, position).token;
        ck_assert_uint_eq(run(&a, NULL, logits, VOCAB, position).token, token);
        n_seed += run(&b, NULL, logits, VOCAB, position).token != token;
        n_choice += run(&c, NULL, logits, VOCAB, position).token != token;
        n_position += run(&a, NULL, logits, VOCAB, position + 1000).token != token;
    }
    ck_assert_uint_gt(n_seed, 40);
    ck_assert_uint_gt(n_choice, 40);
    ck_assert_uint_gt(n_position, 40);
}
END_TEST

START_TEST(bad_logits_are_reported_not_sampled)
{
    const float nan_in[3] = {1, NAN, 2}, inf_in[3] = {1, INFINITY, 2},
                none[3] = {-INFINITY, -INFINITY, -INFINITY};
    const float some[3] = {-INFINITY, 0, -INFINITY};
    for (int i = 0; i < 4; i++) {
        sampler_params params = plain;
        params.temperature = i % 2 == 0 ? 0.0f : 1.0f;
        params.n_logprobs = i / 2 == 0 ? -1 : 2;
        ck_assert(run(&params, NULL, nan_in, 3, 0).is_bad);
        ck_assert(run(&params, NULL, inf_in, 3, 0).is_bad);
        ck_assert(run(&params, NULL, none, 3, 0).is_bad);
        ck_assert(!run(&params, NULL, some, 3, 0).is_bad);
        ck_assert_uint_eq(run(&params, NULL, some, 3, 0).token, 1);
    }
    sampler_result scored;
    sampler_score(nan_in, 3, 0, 0, &scored);
    ck_assert(scored.is_bad);
}
END_TEST

START_TEST(banned_and_disallowed_tokens_are_never_drawn)
{
    float logits[4] = {5, 4, 3, 2};
    char scratch[256];
    sampler_result result;
    const uint32_t banned[] = {0, 9};
    const uint64_t allowed[] = {0xd}; /* 0, 2, 3 */
    sampler_params params = plain;
    params.temperature = 0;
    params.allowed = allowed;
    ck_assert_uint_le(sampler_scratch_bytes(4), sizeof scratch);
    const sampler_input in = {
        .logits = logits, .n_vocab = 4, .banned = banned, .n_banned = 2, .scratch = scratch};
    sampler_run(&params, NULL, &in, &result);
    ck_assert(!result.is_bad);
    ck_assert_uint_eq(result.token, 2);
    const uint64_t nothing[] = {0};
    params.allowed = nothing;
    sampler_run(&params, NULL, &in, &result);
    ck_assert(result.is_bad);
}
END_TEST

START_TEST(bias_moves_the_choice_but_not_the_logprob)
{
    const float logits[3] = {2, 1, 0};
    const sampler_bias bias[] = {{2, 100}, {0, -100}, {77, 5}};
    sampler_params params = plain;
    params.temperature = 0;
    params.bias = bias;
    params.n_bias = 3;
    params.n_logprobs = 1;
    const sampler_result r = run(&params, NULL, logits, 3, 0);
    ck_assert_uint_eq(r.token, 2);
    ck_assert_float_eq_tol(r.logprob, -2.40760596f, 1e-6f); /* ln(1 / (e^2 + e + 1)) */
    ck_assert_uint_eq(r.n_top, 1);
    ck_assert_uint_eq(r.top[0].token, 0);
    ck_assert_float_eq_tol(r.top[0].logprob, -0.40760596f, 1e-6f);
}
END_TEST

/* ---- penalties ----------------------------------------------------------------------------------- */

/* The adjusted logits: sampler_run leaves them where the raw ones were. */
static void read_adjusted(const sampler_params *params, const sampler_state *state,
                          const float *logits, uint32_t n, float *out)
{
    char scratch[1024];
    sampler_result result;
    memcpy(out, logits, n * sizeof *out);
    ck_assert_uint_le(sampler_scratch_bytes(n), sizeof scratch);
    const sampler_input in = {.logits = out, .n_vocab = n, .scratch = scratch};
    sampler_run(params, state, &in, &result);
}

START_TEST(penalties_are_those_computed_by_hand)
{
    const float logits[6] = {2.0f, -1.0f, 3.0f, 0.5f, -2.0f, 1.0f};
    sampler_params params = plain;
    params.temperature = 0;
    params.repetition_penalty = 2.0f;
    params.presence_penalty = 0.25f;
    params.frequency_penalty = 0.5f;
    sampler_state *s;
    float x[6];
    ck_assert(sampler_state_open(&params, 6, &s) == ERR_OK);
    sampler_note_prompt(s, (const uint32_t[]){0, 1, 1, 1}, 4);
    sampler_note_output(s, 1);
    sampler_note_output(s, 2);
    sampler_note_output(s, 2);
    sampler_note_output(s, 4);
    read_adjusted(&params, s, logits, 6, x);
    ck_assert_float_eq(x[0], 1.0f);                 /* prompt only: 2 / 2 */
    ck_assert_float_eq(x[1], -2.0f - 0.5f - 0.25f); /* both: -1 * 2, once in the output */
    ck_assert_float_eq(x[2], 1.5f - 1.0f - 0.25f);  /* output twice: 3 / 2 */
    ck_assert_float_eq(x[3], 0.5f);                 /* never */
    ck_assert_float_eq(x[4], -4.0f - 0.5f - 0.25f);
    ck_assert_float_eq(x[5], 1.0f);
    sampler_state_reset_output(s);
    read_adjusted(&params, s, logits, 6, x);
    ck_assert_float_eq(x[1], -2.0f);
    ck_assert_float_eq(x[2], 3.0f);
    sampler_state_close(s);
}
END_TEST

START_TEST(a_state_holds_as_many_tokens_as_promised)
{
    sampler_params params = plain;
    params.frequency_penalty = 1.0f;
    sampler_state *s;
    enum { N = 1000 };
    ck_assert(sampler_state_open(&params, N, &s) == ERR_OK);
    for (int round = 0; round < 3; round++) {
        for (uint32_t i = 0; i < N; i++)
            sampler_note_output(s, i * 4096); /* ids that collide under a poor hash */
    }
    sampler_state_close(s);
    ck_assert(sampler_state_open(&plain, 1, &s) ==
              ERR_OK); /* no penalty: nothing is kept, nothing overflows */
    for (uint32_t i = 0; i < N; i++)
        sampler_note_output(s, i);
    sampler_note_prompt(s, (const uint32_t[]){5, 6, 7}, 3);
    sampler_state_close(s);
    sampler_state_close(NULL);
}
END_TEST

/* ---- log-probabilities --------------------------------------------------------------------------- */

static void check_logprobs(const float *logits, uint32_t n, const sampler_result *r, uint32_t n_top)
{
    double sum = 0;
    ranked all[VOCAB];
    for (uint32_t i = 0; i < n; i++) {
        sum += exp((double)logits[i]);
        all[i] = (ranked){logits[i], i};
    }
    qsort(all, n, sizeof all[0], compare_ranked);
    ck_assert_uint_eq(r->n_top, n_top < n ? n_top : n);
    ck_assert_float_eq_tol(r->logprob, (float)((double)logits[r->token] - log(sum)), 1e-5f);
    for (uint32_t i = 0; i < r->n_top; i++) {
        ck_assert_uint_eq(r->top[i].token, all[i].token);
        ck_assert_float_eq_tol(r->top[i].logprob, (float)((double)all[i].logit - log(sum)), 1e-5f);
        if (r->top[i].token == r->token)
            ck_assert(memcmp(&r->top[i].logprob, &r->logprob, sizeof(float)) == 0);
    }
}

START_TEST(logprobs_are_raw_sorted_and_equal_where_they_name_one_token)
{
    static float logits[VOCAB];
    for (uint64_t seed = 0; seed < 200; seed++) {
        const int32_t n_top = (int32_t)(seed % (SAMPLER_LOGPROBS_MAX + 1));
        sampler_params params = plain;
        fill(logits, VOCAB, seed);
        for (uint32_t i = 0; i < VOCAB; i += 2)
            logits[i] = roundf(2 * logits[i]) / 2; /* ties */
        params.n_logprobs = n_top;
        params.seed = seed;
        params.temperature = seed % 3 == 0 ? 0.0f : 0.7f;
        const sampler_result r = run(&params, NULL, logits, VOCAB, seed);
        check_logprobs(logits, VOCAB, &r, (uint32_t)n_top);
        sampler_result scored;
        sampler_score(logits, VOCAB, r.token, n_top, &scored);
        ck_assert(memcmp(&scored.logprob, &r.logprob, sizeof(float)) == 0);
        ck_assert(memcmp(scored.top, r.top, r.n_top * sizeof r.top[0]) == 0);
    }
    const float two[2] = {1, 2}; /* fewer tokens than entries wanted */
    sampler_result small;
    sampler_score(two, 2, 0, 5, &small);
    check_logprobs(two, 2, &small, 5);
}
END_TEST

/* ---- for devices ---------------------------------------------------------------------------------- */

typedef struct lowered {
    sample_row row;
    sample_edit edits[64];
} lowered;

/* What a device with the same logits makes of it. */
static sampler_result run_lowered(lowered *l, const float *logits)
{
    static float copy[VOCAB];
    static char scratch[VOCAB * 64];
    sampler_result out;
    memcpy(copy, logits, sizeof copy);
    ck_assert_uint_le(sampler_scratch_bytes(VOCAB), sizeof scratch);
    const sample_args args = {.logits = copy,
                              .n_vocab = VOCAB,
                              .n_rows = 1,
                              .rows = &l->row,
                              .edits = l->edits,
                              .results = &out};
    sample_cpu(&args, scratch);
    return out;
}

static void check_lowered(const sampler_params *params, const sampler_state *state,
                          const float *logits, uint64_t position)
{
    static const uint32_t banned[] = {7, 5, VOCAB + 9, 5};
    static float copy[VOCAB];
    static char scratch[VOCAB * 64];
    sampler_result want;
    lowered l = {0};
    memcpy(copy, logits, sizeof copy);
    const sampler_input in = {.logits = copy,
                              .n_vocab = VOCAB,
                              .position = position,
                              .banned = banned,
                              .n_banned = 4,
                              .scratch = scratch};
    ck_assert(sampler_lower(params, state, &in, 64, &l.row, l.edits));
    sampler_run(params, state, &in, &want);
    const sampler_result got = run_lowered(&l, logits);
    ck_assert(!want.is_bad);
    ck_assert_uint_eq(got.token, want.token);
    ck_assert_mem_eq(&got.logprob, &want.logprob, sizeof got.logprob);
    ck_assert_uint_eq(got.n_top, want.n_top);
    ck_assert_mem_eq(got.top, want.top, sizeof got.top);
}

START_TEST(a_draw_that_is_lowered_to_edits_is_the_same)
{
    static float logits[VOCAB];
    const sampler_bias bias[] = {{2, 3.5f}, {VOCAB + 77, 5}, {11, -4}, {5, 60}, {20, 2}};
    for (uint64_t seed = 0; seed < 100; seed++) {
        sampler_params params = plain;
        sampler_state *s;
        fill(logits, VOCAB, seed);
        params.temperature = seed % 5 == 0 ? 0 : 0.9f;
        params.top_p = seed % 2 == 0 ? 1 : 0.7f;
        params.n_logprobs = (int32_t)(seed % 7) - 1;
        params.bias = bias;
        params.n_bias = seed % 3 == 0 ? 0 : 5;
        params.seed = seed;
        if (seed % 4 != 0) params.repetition_penalty = 1.4f;
        if (seed % 4 == 1) params.presence_penalty = 0.7f, params.frequency_penalty = -0.3f;
        ck_assert(sampler_state_open(&params, 20, &s) == ERR_OK);
        sampler_note_prompt(s, (const uint32_t[]){1, 2, 20, VOCAB + 3}, 4);
        sampler_note_output(s, 2);
        sampler_note_output(s, 2);
        sampler_note_output(s, 90);
        check_lowered(&params, s, logits, seed);
        check_lowered(&params, NULL, logits, seed);
        sampler_state_close(s);
    }
}
END_TEST

START_TEST(a_mask_or_too_many_edits_are_left_to_the_host)
{
    static const sampler_bias bias[] = {{2, 3}, {4, 1}};
    static const uint32_t banned[] = {7};
    static const uint64_t allowed[] = {UINT64_MAX};
    lowered l;
    sampler_params params = plain;
    sampler_state *s;
    const sampler_input in = {.n_vocab = 64, .banned = banned, .n_banned = 1};
    params.bias = bias;
    params.n_bias = 2;
    params.presence_penalty = 1;
    ck_assert(sampler_state_open(&params, 4, &s) == ERR_OK);
    sampler_note_output(s, 3);
    ck_assert(!sampler_lower(&params, s, &in, 3, &l.row, l.edits));
    ck_assert(sampler_lower(&params, s, &in, 4, &l.row, l.edits));
    ck_assert_uint_eq(l.row.n_edits, 4);
    params.allowed = allowed;
    ck_assert(!sampler_lower(&params, s, &in, 4, &l.row, l.edits));
    sampler_state_close(s);
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE(draws_follow_the_distribution),
    TEST_CASE(the_kept_set_is_the_naive_one),
    TEST_CASE(a_large_vocabulary_is_cut_exactly),
    TEST_CASE(temperature_zero_takes_the_largest_and_the_lower_of_equals),
    TEST_CASE(a_token_depends_on_seed_choice_and_position_alone),
    TEST_CASE(bad_logits_are_reported_not_sampled),
    TEST_CASE(banned_and_disallowed_tokens_are_never_drawn),
    TEST_CASE(bias_moves_the_choice_but_not_the_logprob),
    TEST_CASE(penalties_are_those_computed_by_hand),
    TEST_CASE(a_state_holds_as_many_tokens_as_promised),
    TEST_CASE(logprobs_are_raw_sorted_and_equal_where_they_name_one_token),
    TEST_CASE(a_draw_that_is_lowered_to_edits_is_the_same),
    TEST_CASE(a_mask_or_too_many_edits_are_left_to_the_host),
    TEST_CASES_END,
};
