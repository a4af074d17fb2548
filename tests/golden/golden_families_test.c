/* Every family but Mixtral, whose fixtures have longer tests: against numbers that transformers computed, prompts whole
 * and cut, alone and together, on one rank and four, with cached prefixes, with coded pages, and on a device with memory
 * of its own. A fixture is tested by all of it as soon as it is listed. */
#include "tests/golden/family_fixtures.h"
#include "tests/golden/golden_check.h"
#include "tests/golden/rank_run.h"
#include "tests/kernels/dev_apart.h"
#include "tests/test_main.h"

#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const uint32_t cuts[] = {GOLDEN_STEP_TOKENS_MAX, 1, 7};
enum { N_CUTS = sizeof cuts / sizeof cuts[0] };

static void with_setup(golden_setup wanted, void (*body)(golden *g))
{
    golden_setup setup = wanted;
    for (int f = 0; f < N_FAMILY_FIXTURES; f++) {
        golden g;
        setup.fixture = family_fixtures[f];
        setup.n_threads = 2;
        golden_open(&setup, &g);
        body(&g);
        golden_close(&g);
    }
}

static void match_alone(golden *g)
{
    for (uint32_t p = 0; p < g->n_prompts; p++) {
        for (size_t i = 0; i < N_CUTS; i++) {
            track t;
            track_open(g, p, &t);
            track_run_prompt(&t, cuts[i]);
            golden_check_prompt_logits(&t);
            track_close(&t);
        }
    }
}

static void match_together(golden *g)
{
    track tracks[GOLDEN_PROMPTS_MAX];
    for (uint32_t p = 0; p < g->n_prompts; p++)
        track_open(g, p, &tracks[p]);
    golden_run_crowd(tracks, g->n_prompts);
    for (uint32_t p = 0; p < g->n_prompts; p++) {
        golden_check_prompt_logits(&tracks[p]);
        golden_check_greedy(&tracks[p]);
        track_close(&tracks[p]);
    }
}

START_TEST(prompts_whole_or_cut_match_the_reference)
{
    for (const dev_ops *const *table = dev_cpu_tables(); *table != NULL; table++)
        with_setup((golden_setup){.isa = (*table)->name, .cache_type = KV_DTYPE_F32}, match_alone);
}
END_TEST

START_TEST(greedy_tokens_in_one_batch_match_the_reference)
{
    with_setup((golden_setup){.isa = "auto", .cache_type = KV_DTYPE_F32, .small_pages = true},
               match_together);
}
END_TEST

static void compare_cuts(golden *g)
{
    for (uint32_t p = 0; p < g->n_prompts; p++) {
        float *const kept = golden_keep_whole(g, p);
        for (size_t i = 1; i < N_CUTS; i++) {
            track t;
            track_open(g, p, &t);
            track_run_prompt(&t, cuts[i]);
            golden_check_same_bits(&t, kept, "cut");
            track_close(&t);
        }
        free(kept);
    }
}

START_TEST(cutting_a_prompt_changes_no_bit)
{
    with_setup((golden_setup){.isa = "auto", .cache_type = KV_DTYPE_BF16, .small_pages = true},
               compare_cuts);
    with_setup((golden_setup){.isa = "auto", .cache_type = KV_DTYPE_BF16, .compression = "int8"},
               compare_cuts);
}
END_TEST

/* The longest prompt, whose pages have been coded: near the reference, not at it. */
static void check_coded(golden *g)
{
    uint32_t n;
    track t;
    track_open(g, g->n_prompts - 1, &t);
    track_run_prompt(&t, 64);
    const int32_t *const positions = golden_ids(g, t.prompt, "logits_pos", &n);
    const float *const expected =
        golden_floats(g, t.prompt, "logits") + (size_t)(n - 1) * g->n_vocab;
    const float *const logits = track_logits(&t, (uint32_t)positions[n - 1]);
    double apart = 0, all = 0;
    for (uint32_t i = 0; i < g->n_vocab; i++) {
        apart += pow((double)(logits[i] - expected[i]), 2);
        all += pow((double)expected[i], 2);
    }
    ck_assert_msg(apart < 0.01 * all, "coded pages are %g away", sqrt(apart / all));
    ck_assert_msg(apart > 0, "nothing was coded");
    track_close(&t);
}

START_TEST(coded_pages_stay_near_the_reference)
{
    with_setup((golden_setup){.isa = "auto", .cache_type = KV_DTYPE_BF16, .compression = "int8"},
               check_coded);
}
END_TEST

static void compare_prefix(golden *g)
{
    uint32_t n_hits = 0;
    for (uint32_t p = 0; p < g->n_prompts; p++) {
        float *const kept = golden_keep_whole(g, p);
        track t;
        track_open(g, p, &t);
        track_run_prompt(&t, 64);
        kv_seq_share_prompt(t.seq, t.tokens, t.n_prompt);
        track_restart(&t);
        n_hits += t.n_cached > 0;
        track_run_prompt(&t, 7);
        golden_check_same_bits(&t, kept, "with a cached prefix");
        track_close(&t);
        kv_cache_drop_prefixes(g->cache);
        free(kept);
    }
    ck_assert_msg(n_hits > 0, "no prompt ever found its prefix");
}

START_TEST(a_cached_prefix_changes_no_bit)
{
    with_setup((golden_setup){.isa = "auto",
                              .cache_type = KV_DTYPE_BF16,
                              .small_pages = true,
                              .prefix_caching = true},
               compare_prefix);
}
END_TEST

static golden_setup setup_for(int fixture, const char *const *settings)
{
    golden_setup setup = setup_of(0, settings);
    setup.fixture = family_fixtures[fixture];
    return setup;
}

START_TEST(four_ranks_return_the_logits_and_tokens_of_one)
{
    static const char *const by_block[] = {"kv-placement", "block", NULL};
    static const char *const by_expert[] = {"kv-placement", "expert", "kv-shards", "8", NULL};
    enum { N_RANKS = 4 };
    for (int f = 0; f < N_FAMILY_FIXTURES; f++) {
        golden_setup setup = setup_for(f, by_block);
        rank_run alone = run_alone(&setup, true), runs[RANKS_MAX];
        for (int i = 0; i < 2; i++) {
            setup.settings = i == 0 ? by_block : by_expert;
            run_ranks(&setup, true, N_RANKS, runs);
            for (uint32_t r = 1; r < N_RANKS; r++)
                check_same_bits(&runs[0].out, &runs[r].out);
            check_close(&alone.out, &runs[0].out, 1e-5f);
            forget(runs, N_RANKS);
        }
        forget(&alone, 1);
    }
}
END_TEST

static err_t open_apart(const dev_config *config, dev **out, err_info *info)
{
    return dev_apart_open(config, (size_t)64 << 20, out, info);
}

START_TEST(a_device_with_memory_of_its_own_gives_the_bits_of_the_hosts)
{
    for (int f = 0; f < N_FAMILY_FIXTURES; f++) {
        golden_setup setup = setup_for(f, NULL);
        rank_run host = run_alone(&setup, true);
        setup.open_dev = open_apart;
        rank_run apart = run_alone(&setup, true);
        check_same_bits(&host.out, &apart.out);
        forget(&host, 1);
        forget(&apart, 1);
    }
}
END_TEST

static err_t open_attending(const dev_config *config, dev **out, err_info *info)
{
    return dev_apart_open_attending(config, (size_t)256 << 20, out, info);
}

/* Latents, whose coded pages are read as keys and as values; Mixtral's pages have golden_apart_test.c. A sum that is cut
 * elsewhere may move an entry of the next layer to another code, and that a token to another expert: not in these. */
START_TEST(a_device_that_attends_reads_coded_latents_as_the_host_does)
{
    static const char *const names[] = {"deepseek_v2-groups-f32", "deepseek_v3-base-bf16",
                                        "deepseek_v3-odd-f16"};
    static const char *const int8[] = {
        "kv-compression", "int8", "kv-page-tokens", "16", "kv-window", "8", NULL};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        golden_setup setup = setup_for(0, int8);
        setup.fixture = names[i];
        rank_run host = run_alone(&setup, true);
        setup.open_dev = open_attending;
        rank_run apart = run_alone(&setup, true);
        check_close(&host.out, &apart.out, 1e-3f);
        forget(&host, 1);
        forget(&apart, 1);
    }
}
END_TEST

/* Ones where norms multiply, zeros where biases add: nothing vanishes and nothing overflows. */
static void check_dummy(golden *g)
{
    track t;
    const model_config *const c = model_get_config(g->m);
    const size_t plain_bytes = c->n_params * dtype_bytes(c->stored_type);
    if (c->quantisation.method == QUANTISATION_NONE)
        ck_assert_uint_eq(model_weight_bytes(g->m), plain_bytes);
    else /* some may be f32, for heads that scales do not fit */
        ck_assert_uint_lt(model_weight_bytes(g->m), c->n_params * sizeof(float));
    ck_assert_uint_lt(c->n_params_active, c->n_params);
    track_open(g, g->n_prompts - 1, &t);
    track_run_prompt(&t, 64);
    for (uint32_t p = 0; p < t.n_done; p++) {
        float largest = 0;
        for (uint32_t i = 0; i < g->n_vocab; i++)
            largest = fmaxf(largest, fabsf(track_logits(&t, p)[i]));
        ck_assert_float_gt(largest, 1e-3f);
        ck_assert_float_lt(largest, 1e4f);
    }
    track_close(&t);
}

START_TEST(dummy_weights_are_counted_and_run)
{
    with_setup((golden_setup){.isa = "auto", .cache_type = KV_DTYPE_F32, .load = MODEL_LOAD_DUMMY},
               check_dummy);
}
END_TEST

/* A folder that nobody listed would be tested by nothing. */
START_TEST(every_fixture_of_a_family_is_listed)
{
    DIR *const dir = opendir("tests/golden");
    ck_assert_ptr_nonnull(dir);
    uint32_t n_found = 0;
    for (const struct dirent *e; (e = readdir(dir)) != NULL;) {
        char path[512];
        (void)snprintf(path, sizeof path, "tests/golden/%s/reference.safetensors", e->d_name);
        FILE *const file = strncmp(e->d_name, "mixtral-", 8) == 0 ? NULL : fopen(path, "r");
        if (file == NULL) continue;
        (void)fclose(file);
        bool is_listed = false;
        for (int f = 0; f < N_FAMILY_FIXTURES; f++)
            is_listed = is_listed || strcmp(family_fixtures[f], e->d_name) == 0;
        ck_assert_msg(is_listed, "%s is not listed", e->d_name);
        n_found++;
    }
    (void)closedir(dir);
    ck_assert_uint_eq(n_found, N_FAMILY_FIXTURES);
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE_SECONDS(prompts_whole_or_cut_match_the_reference, 280),
    TEST_CASE_SECONDS(greedy_tokens_in_one_batch_match_the_reference, 280),
    TEST_CASE_SECONDS(cutting_a_prompt_changes_no_bit, 280),
    TEST_CASE_SECONDS(coded_pages_stay_near_the_reference, 280),
    TEST_CASE_SECONDS(a_cached_prefix_changes_no_bit, 280),
    TEST_CASE_SECONDS(four_ranks_return_the_logits_and_tokens_of_one, 280),
    TEST_CASE_SECONDS(a_device_with_memory_of_its_own_gives_the_bits_of_the_hosts, 280),
    TEST_CASE_SECONDS(a_device_that_attends_reads_coded_latents_as_the_host_does, 280),
    TEST_CASE_SECONDS(dummy_weights_are_counted_and_run, 280),
    TEST_CASE(every_fixture_of_a_family_is_listed),
    TEST_CASES_END,
};
