/* tests/kvcache/test_matching.c - attention matching against errors that others measured.
 *
 * Inputs are those of golden_layer.h; the errors were measured with the published code
 * (compaction/algorithms/highest_attention_keys.py and omp.py of adamzweiger/compaction): both
 * query heads of a group, hidden states 0..47 again as queries at positions 48..95; the selection
 * by mean square, and eviction of the same. Published settings take the smallest solution, so here
 * they have next to no ridge. */
#include "tests/kernels/golden_layer.h"
#include "tests/kvcache/match_problem.h"
#include "tests/test_main.h"

#include <math.h>
#include <string.h>

static const kv_match_options published = {
    .ridge_bias = 1e-9, .ridge_value = 1e-9, .beta_min = -3, .beta_max = 3, .n_steps = 2};
static const kv_match_options published_omp = {
    .ridge_bias = 1e-9, .ridge_value = 1e-9, .beta_min = -27.6310211, .beta_max = 7};

/* ---- published numbers ----------------------------------------------------------------------- */

static void check_near(double value, double truth, double share)
{
    ck_assert_double_eq_tol(value, truth, share * truth);
}

static void check_errors(errors e, const double truth[2], double share)
{
    check_near(e.output, truth[0], share);
    check_near(e.lse, truth[1], share);
}

static const uint32_t golden_keep[] = {6, 12, 24};

START_TEST(the_generator_makes_the_published_inputs)
{
    static block b;
    static queries q;
    match_make_block(0, 48, &b);
    ck_assert_double_eq_tol((double)b.k[0][0], -1.46190044, 1e-7);
    match_make_block(1, 48, &b);
    ck_assert_double_eq_tol((double)b.k[47][7], 0.81181883, 1e-7);
    ck_assert_double_eq_tol((double)b.v[5][2], -1.60029002, 1e-7);
    match_make_queries(1, 0, 48, 0, &q);
    ck_assert_double_eq_tol((double)q.q[95][0], -2.04719038, 1e-6);
}
END_TEST

START_TEST(the_highest_attention_keys_err_as_published)
{
    static const double evict[2][3][2] = {{{1.3291, 1.4142}, {.9451, .7461}, {.4330, .3220}},
                                          {{1.5515, 1.5915}, {.7983, .7852}, {.3482, .3267}}};
    static const double hak[2][3][2] = {{{.6512, .7038}, {.4138, .2676}, {.1962, .1143}},
                                        {{.6032, .7116}, {.3879, .2882}, {.1490, .1119}}};
    static block b;
    static queries q;
    static matched kept;
    for (uint32_t h = 0; h < 2; h++) {
        match_make_block(h, 48, &b);
        match_make_queries(h, 0, 48, 48, &q);
        for (uint32_t i = 0; i < 3; i++) {
            match_run(&b, &q, golden_keep[i], HAK, &published, 0, &kept);
            check_errors(match_measure_eviction(&b, &kept, &q), evict[h][i], 0.001);
            check_errors(match_measure(&b, &kept, &q), hak[h][i], 0.003);
        }
    }
}
END_TEST

START_TEST(matching_pursuit_errs_as_published)
{
    static const double omp[2][3][2] = {{{.6099, .4700}, {.3733, .2429}, {.1742, .0759}},
                                        {{.6055, .5518}, {.3789, .2209}, {.1521, .0653}}};
    static block b;
    static queries q;
    static matched kept;
    for (uint32_t h = 0; h < 2; h++) {
        match_make_block(h, 48, &b);
        match_make_queries(h, 0, 48, 48, &q);
        for (uint32_t i = 0; i < 3; i++) {
            match_run(&b, &q, golden_keep[i], OMP, &published_omp, 0, &kept);
            check_errors(match_measure(&b, &kept, &q), omp[h][i], 0.003);
        }
    }
}
END_TEST

START_TEST(unseen_queries_err_as_published)
{
    static block b;
    static queries q, unseen;
    static matched kept;
    match_make_block(0, 48, &b);
    match_make_queries(0, 0, 48, 48, &q);
    match_make_queries(0, 0, 48, 96, &unseen);
    match_run(&b, &q, 24, HAK, &published, 0, &kept);
    check_near(match_measure_eviction(&b, &kept, &unseen).output, 0.384, 0.003);
    check_near(match_measure(&b, &kept, &unseen).output, 0.257, 0.003);
    match_run(&b, &q, 24, OMP, &published_omp, 0, &kept);
    check_near(match_measure(&b, &kept, &unseen).output, 0.255, 0.003);
}
END_TEST

START_TEST(pursuit_of_one_more_key_never_makes_it_worse)
{
    static block b;
    static queries q;
    static matched kept;
    for (uint32_t h = 0; h < 2; h++) {
        double last = INFINITY;
        match_make_block(h, 48, &b);
        match_make_queries(h, 0, 48, 48, &q);
        for (uint32_t n_keep = 1; n_keep <= 48; n_keep++) {
            match_run(&b, &q, n_keep, OMP, &published_omp, 0, &kept);
            const double error = match_measure(&b, &kept, &q).output;
            ck_assert_double_le(error, last);
            last = error;
        }
        ck_assert_double_lt(last, 1e-6);
    }
}
END_TEST

/* ---- queries that were not seen -------------------------------------------------------------- */

START_TEST(unseen_queries_are_served_better_than_by_eviction)
{
    static const uint32_t cases[][3] = {/* n, window, n_keep */
                                        {48, 48, 6},    {48, 48, 12},   {48, 48, 24},
                                        {512, 64, 128}, {512, 64, 256}, {512, 16, 128}};
    static block b;
    static queries q, unseen;
    static matched kept;
    for (uint32_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const uint32_t n = cases[i][0], window = cases[i][1];
        for (uint32_t h = 0; h < 2; h++) {
            match_make_block(h, n, &b);
            match_make_queries(h, n, window, n,
                               &q); /* what follows in the stream, and what follows that */
            match_make_queries(h, n + window, 2 * window, n + window, &unseen);
            match_run(&b, &q, cases[i][2], HAK, &kv_match_defaults, 0, &kept);
            const errors e = match_measure(&b, &kept, &unseen);
            const errors evicted = match_measure_eviction(&b, &kept, &unseen);
            ck_assert_double_lt(e.output, 0.9 * evicted.output);
            ck_assert_double_lt(e.lse, 0.9 * evicted.lse);
        }
    }
}
END_TEST

START_TEST(what_few_queries_leave_open_is_not_fitted_to_noise)
{
    static block b;
    static queries q, unseen;
    static matched kept;
    match_make_block(0, 512, &b);
    match_make_queries(0, 512, 64, 512, &q);
    match_make_queries(0, 576, 128, 576, &unseen);
    match_run(&b, &q, 128, HAK, &published, 0, &kept);
    const double loose = match_measure(&b, &kept, &unseen).output;
    ck_assert_double_gt(loose, match_measure_eviction(&b, &kept, &unseen).output);
    match_run(&b, &q, 128, HAK, &kv_match_defaults, 0, &kept);
    ck_assert_double_lt(match_measure(&b, &kept, &unseen).output, loose / 2);
}
END_TEST

/* ---- ends ------------------------------------------------------------------------------------ */

START_TEST(keeping_all_changes_no_bit)
{
    static const uint32_t sizes[] = {1, 48, 64, 65, 200};
    static block b;
    static queries q;
    static matched kept;
    match_make_queries(0, 0, 48, 200, &q);
    for (uint32_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        match_make_block(0, sizes[i], &b);
        for (selection how = HAK; how <= OMP; how++) {
            match_run(&b, &q, b.n, how, &kv_match_defaults, 0, &kept);
            for (uint32_t t = 0; t < b.n; t++) {
                ck_assert_uint_eq(kept.kept[t], t);
                ck_assert_float_eq(kept.beta[t], 0);
                ck_assert_mem_eq(kept.values[t], b.v[t], sizeof b.v[t]);
            }
        }
    }
}
END_TEST

/* ---- what was matched before ----------------------------------------------------------------- */

/* Every fifth entry weighs twice: it is there twice, or has a bias of ln 2. None of them has a query's
 * largest score, by which its row is scaled. */
START_TEST(a_bias_is_as_good_as_copies)
{
    static block once, twice;
    static queries q;
    static matched kept, other;
    match_make_queries(0, 300, 48, 300, &q);
    match_make_block(0, 200, &once);
    twice.n = 0;
    for (uint32_t t = 0; t < once.n; t++) {
        if (t % 5 == 0) once.bias[t] = logf(2);
        for (uint32_t c = 0; c < D && t % 5 == 0; c++)
            once.k[t][c] *= 0.1f;
        for (uint32_t copy = 0; copy < (t % 5 == 0 ? 2 : 1); copy++, twice.n++) {
            memcpy(twice.k[twice.n], once.k[t], sizeof once.k[t]);
            memcpy(twice.v[twice.n], once.v[t], sizeof once.v[t]);
            if (t % 2 == 1 && t % 5 != 0) kept.kept[kept.n++] = t;
            if (t % 2 == 1 && t % 5 != 0) other.kept[other.n++] = twice.n;
        }
    }
    match_run(&once, &q, kept.n, GIVEN, &kv_match_defaults, 0, &kept);
    match_run(&twice, &q, other.n, GIVEN, &kv_match_defaults, 0, &other);
    for (uint32_t i = 0; i < kept.n; i++) {
        ck_assert_double_eq_tol((double)kept.beta[i], (double)other.beta[i], 1e-5);
        for (uint32_t c = 0; c < D; c++)
            ck_assert_double_eq_tol((double)kept.values[i][c], (double)other.values[i][c], 1e-4);
    }
}
END_TEST

START_TEST(a_bias_that_stays_keeps_its_bits)
{
    static block b;
    static queries q;
    static matched kept;
    match_make_queries(0, 0, 48, 200, &q);
    match_make_block(0, 150, &b);
    for (uint32_t t = 0; t < b.n; t++)
        b.bias[t] = (float)golden_uniform(9, t, 3);
    match_run(&b, &q, b.n, HAK, &kv_match_defaults, 0, &kept);
    ck_assert_mem_eq(kept.beta, b.bias, b.n * sizeof *b.bias);
    ck_assert_mem_eq(kept.values, b.v, b.n * sizeof *b.v);
}
END_TEST

START_TEST(fixed_entries_stay_and_the_others_make_up_for_them)
{
    static block b;
    static queries q, unseen;
    static matched kept, all_fixed;
    match_make_block(0, 200, &b);
    match_make_queries(0, 300, 64, 300, &q);
    match_make_queries(0, 400, 64, 400, &unseen);
    for (uint32_t t = 0; t < b.n; t++) {
        b.is_fixed[t] = t < 60;
        b.bias[t] = t < 60 ? (float)golden_uniform(9, t, 1) : 0;
    }
    match_run(&b, &q, 100, HAK, &kv_match_defaults, 0, &kept);
    for (uint32_t i = 0; i < kept.n && kept.kept[i] < 60; i++) {
        ck_assert_float_eq(kept.beta[i], b.bias[kept.kept[i]]);
        ck_assert_mem_eq(kept.values[i], b.v[kept.kept[i]], sizeof b.v[0]);
    }
    ck_assert_double_lt(match_measure(&b, &kept, &unseen).output,
                        match_measure_eviction(&b, &kept, &unseen).output);
    memset(b.is_fixed, 1, sizeof b.is_fixed);
    match_run(&b, &q, 100, HAK, &kv_match_defaults, 0, &all_fixed);
    ck_assert_double_eq(match_measure(&b, &all_fixed, &unseen).output,
                        match_measure_eviction(&b, &kept, &unseen).output);
}
END_TEST

START_TEST(losing_what_nobody_looks_at_changes_nothing)
{
    static block b;
    static queries q;
    static matched kept;
    match_make_block(0, 100, &b);
    match_make_queries(0, 0, 48, 100, &q);
    for (uint32_t i = 0; i < q.n; i++)
        q.q[i][0] = 1;
    for (uint32_t t = 0; t < b.n; t++)
        b.k[t][0] = t % 3 == 0 ? -1000 : 0;
    match_run(&b, &q, 66, HAK, &kv_match_defaults, 0, &kept);
    for (uint32_t i = 0; i < 66; i++) {
        ck_assert_uint_ne(kept.kept[i] % 3, 0);
        ck_assert_double_eq_tol((double)kept.beta[i], 0, 1e-6);
        for (uint32_t c = 0; c < D; c++)
            ck_assert_double_eq_tol((double)kept.values[i][c], (double)b.v[kept.kept[i]][c], 1e-5);
    }
}
END_TEST

START_TEST(a_large_ridge_is_eviction)
{
    const kv_match_options stiff = {
        .ridge_bias = 1e9, .ridge_value = 1e9, .beta_min = -3, .beta_max = 3, .n_steps = 2};
    static block b;
    static queries q;
    static matched kept;
    match_make_block(1, 48, &b);
    match_make_queries(1, 0, 48, 48, &q);
    match_run(&b, &q, 12, HAK, &stiff, 0, &kept);
    for (uint32_t i = 0; i < kept.n; i++) {
        ck_assert_double_eq_tol((double)kept.beta[i], 0, 1e-6);
        for (uint32_t c = 0; c < D; c++)
            ck_assert_double_eq_tol((double)kept.values[i][c], (double)b.v[kept.kept[i]][c], 1e-6);
    }
}
END_TEST

START_TEST(beta_stays_in_its_limits)
{
    kv_match_options narrow = published;
    static block b;
    static queries q;
    static matched kept;
    narrow.beta_min = -0.25;
    narrow.beta_max = 0.5;
    match_make_block(0, 48, &b);
    match_make_queries(0, 0, 48, 48, &q);
    match_run(&b, &q, 6, HAK, &narrow, 0, &kept);
    uint32_t n_at_limit = 0;
    for (uint32_t i = 0; i < kept.n; i++) {
        ck_assert_double_ge((double)kept.beta[i], -0.25 - 1e-6);
        ck_assert_double_le((double)kept.beta[i], 0.5 + 1e-6);
        n_at_limit += (double)kept.beta[i] > 0.5 - 1e-6;
    }
    ck_assert_uint_ge(n_at_limit, 1); /* six keys would rather weigh more */
}
END_TEST

static void check_finite(const block *b, const queries *q, uint32_t n_keep)
{
    static matched kept;
    const kv_match_options *const options[] = {&kv_match_defaults, &published, &published_omp};
    for (uint32_t i = 0; i < 3; i++) {
        for (selection how = HAK; how <= OMP; how++) {
            match_run(b, q, n_keep, how, options[i], 0, &kept);
            for (uint32_t t = 0; t < n_keep; t++) {
                ck_assert_double_ge((double)kept.beta[t], options[i]->beta_min - 1e-5);
                ck_assert_double_le((double)kept.beta[t], options[i]->beta_max + 1e-5);
                for (uint32_t c = 0; c < D; c++)
                    ck_assert(isfinite(kept.values[t][c]));
            }
        }
    }
}

START_TEST(degenerate_blocks_stay_finite)
{
    static block good, b;
    static queries good_q, q;
    match_make_block(0, 80, &good);
    match_make_queries(0, 0, 40, 80, &good_q);
    check_finite(&good, &good_q, 1);
    q = good_q;
    q.n = 1;
    check_finite(&good, &q, 1);
    check_finite(&good, &q, 40);
    b = good;
    for (uint32_t t = 0; t < b.n; t++)
        memcpy(b.k[t], good.k[3], sizeof b.k[t]); /* all keys are the same */
    check_finite(&b, &good_q, 20);
    b = good;
    memset(b.v, 0, sizeof b.v);
    check_finite(&b, &good_q, 20);
    q = good_q;
    memset(q.q, 0, sizeof q.q);
    check_finite(&good, &q, 20);
}
END_TEST

START_TEST(huge_numbers_stay_finite)
{
    static block good, b;
    static queries q;
    const float factors[] = {1e3f, 1e6f, 1e19f, 1e30f, 1e38f};
    match_make_block(0, 80, &good);
    match_make_queries(0, 0, 40, 80, &q);
    for (uint32_t i = 0; i < sizeof factors / sizeof *factors; i++) {
        b = good;
        for (uint32_t t = 0; t < b.n; t++) {
            for (uint32_t c = 0; c < D; c++)
                b.k[t][c] *= factors[i];
        }
        check_finite(&b, &q, 20);
        b = good;
        for (uint32_t t = 0; t < b.n; t++) {
            for (uint32_t c = 0; c < D; c++)
                b.v[t][c] *= factors[i];
        }
        check_finite(&b, &q, 20);
    }
}
END_TEST

START_TEST(of_equal_keys_the_earlier_are_kept)
{
    static block b;
    static queries q;
    static matched kept;
    match_make_block(0, 150, &b);
    match_make_queries(0, 0, 48, 150, &q);
    for (uint32_t t = 1; t < b.n; t++)
        memcpy(b.k[t], b.k[0], sizeof b.k[t]);
    for (selection how = HAK; how <= OMP; how++) {
        match_run(&b, &q, 70, how, &kv_match_defaults, 0, &kept);
        for (uint32_t i = 0; i < 70; i++)
            ck_assert_uint_eq(kept.kept[i], i);
    }
}
END_TEST

START_TEST(the_same_arguments_give_the_same_bits)
{
    static block b;
    static queries q;
    static matched one, other;
    match_make_block(0, 200, &b);
    match_make_queries(0, 0, 48, 200, &q);
    for (selection how = HAK; how <= OMP; how++) {
        match_run(&b, &q, 50, how, &kv_match_defaults, 0, &one);
        match_run(&b, &q, 50, how, &kv_match_defaults, 33, &other); /* in more memory */
        ck_assert_mem_eq(one.kept, other.kept, 50 * sizeof one.kept[0]);
        ck_assert_mem_eq(one.beta, other.beta, 50 * sizeof one.beta[0]);
        ck_assert_mem_eq(one.values, other.values, 50 * sizeof one.values[0]);
    }
}
END_TEST

START_TEST(memory_for_a_long_context_is_what_the_header_says)
{
    const kv_match_shape shape = {
        .n_max = 131072, .t_max = 65536, .n_queries_max = 128, .k_dim = 128, .v_dim = 128};
    kv_match match;
    arena a;
    arena_init_measure(&a);
    kv_match_place(&a, &shape, &match);
    ck_assert_int_eq(a.err, ERR_OK);
    ck_assert_uint_le(a.used_bytes, 2 << 20);
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE(the_generator_makes_the_published_inputs),
    TEST_CASE(the_highest_attention_keys_err_as_published),
    TEST_CASE(matching_pursuit_errs_as_published),
    TEST_CASE(unseen_queries_err_as_published),
    TEST_CASE(pursuit_of_one_more_key_never_makes_it_worse),
    TEST_CASE(unseen_queries_are_served_better_than_by_eviction),
    TEST_CASE(what_few_queries_leave_open_is_not_fitted_to_noise),
    TEST_CASE(keeping_all_changes_no_bit),
    TEST_CASE(a_bias_is_as_good_as_copies),
    TEST_CASE(a_bias_that_stays_keeps_its_bits),
    TEST_CASE(fixed_entries_stay_and_the_others_make_up_for_them),
    TEST_CASE(losing_what_nobody_looks_at_changes_nothing),
    TEST_CASE(a_large_ridge_is_eviction),
    TEST_CASE(beta_stays_in_its_limits),
    TEST_CASE(degenerate_blocks_stay_finite),
    TEST_CASE(huge_numbers_stay_finite),
    TEST_CASE(of_equal_keys_the_earlier_are_kept),
    TEST_CASE(the_same_arguments_give_the_same_bits),
    TEST_CASE(memory_for_a_long_context_is_what_the_header_says),
    TEST_CASES_END,
};
