/* The whole model on a device whose memory the host cannot touch: it gives the bits that it gives on the host's, alone
 * and over ranks, and a device that fails is told of and crashes nothing. */
#include "tests/golden/rank_run.h"
#include "tests/kernels/dev_apart.h"
#include "tests/test_main.h"

#include <string.h>

static err_t open_apart(const dev_config *config, dev **out, err_info *info)
{
    return dev_apart_open(config, (size_t)64 << 20, out, info);
}

static void check_fixture(int fixture, const char *const *settings)
{
    golden_setup setup = setup_of(fixture, settings);
    rank_run host = run_alone(&setup, true);
    setup.open_dev = open_apart;
    rank_run apart = run_alone(&setup, true);
    check_same_bits(&host.out, &apart.out);
    forget(&host, 1);
    forget(&apart, 1);
}

START_TEST(a_device_with_memory_of_its_own_gives_the_bits_of_the_hosts)
{
    for (int f = 0; f < N_FIXTURES; f++)
        check_fixture(f, NULL);
}
END_TEST

static err_t open_attending(const dev_config *config, dev **out, err_info *info)
{
    return dev_apart_open_attending(config, (size_t)256 << 20, out, info);
}

/* Sums over more than ATTN_SPLIT_BLOCKS blocks are cut there, so longer prompts have other bits. */
START_TEST(one_that_attends_by_itself_gives_the_hosts_logits)
{
    static const char *const plain[] = {"kv-window", "8", "kv-page-tokens", "4", NULL};
    static const char *const coded[] = {
        "kv-compression", "int8", "kv-page-tokens", "16", "kv-window", "8", NULL};
    static const char *const *const settings[] = {
        NULL, plain, coded}; /* the third and the last are wide enough */
    for (int f = 0; f < N_FIXTURES; f++) {
        golden_setup setup = setup_of(f, settings[f % 3]);
        rank_run host = run_alone(&setup, true);
        setup.open_dev = open_attending;
        rank_run apart = run_alone(&setup, true);
        check_close(&host.out, &apart.out, 1e-5f);
        forget(&host, 1);
        forget(&apart, 1);
    }
}
END_TEST

/* What a step gives the host beside q, k and v: queries before they are turned, lengths of inputs. */
START_TEST(what_methods_of_the_cache_ask_for_comes_from_the_device)
{
    static const char *const expected[] = {"kv-scheduling", "expected_attention", "kv-budget",
                                           "0.5", NULL};
    static const char *const zip[] = {"kv-scheduling", "kvzip_plus", "kv-budget", "0.5", NULL};
    static const char *const placed[] = {"kv-placement", "expert", "kv-shards", "4", NULL};
    static const char *const *const settings[] = {expected, zip, placed};
    for (int i = 0; i < 3; i++)
        check_fixture(0, settings[i]);
}
END_TEST

static uint64_t check_ranks(const experts_config *experts)
{
    enum { N_RANKS = 3 };
    rank_run host[N_RANKS], apart[N_RANKS];
    golden_setup setup = setup_of(0, NULL);
    setup.experts = experts;
    run_ranks(&setup, true, N_RANKS, host);
    setup.open_dev = open_apart;
    run_ranks(&setup, true, N_RANKS, apart);
    for (int r = 0; r < N_RANKS; r++)
        check_same_bits(&host[r].out, &apart[r].out);
    forget(host, N_RANKS);
    forget(apart, N_RANKS);
    return apart[0].experts.n_rebalanced;
}

START_TEST(ranks_on_such_devices_give_the_bits_of_ranks_on_the_host)
{
    check_ranks(NULL);
}
END_TEST

/* Parts are merged there; under topk each rank chooses among its own pages, as on the host. */
START_TEST(ranks_that_attend_by_themselves_give_the_hosts_logits)
{
    static const char *const plain[] = {"kv-window", "8", "kv-page-tokens", "4", NULL};
    static const char *const coded[] = {
        "kv-compression", "int8", "kv-page-tokens", "16", "kv-window", "8", NULL};
    static const char *const chosen[] = {
        "kv-routing", "topk", "kv-routing-k", "5", "kv-page-tokens", "4", "kv-window", "8", NULL};
    static const struct {
        int fixture;
        uint32_t n_ranks;
        const char *const *settings;
    } cases[] = {{2, 2, plain}, {1, 4, plain}, {5, 4, coded}, {0, 2, chosen}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const uint32_t n = cases[i].n_ranks;
        rank_run host[RANKS_MAX], apart[RANKS_MAX];
        golden_setup setup = setup_of(cases[i].fixture, cases[i].settings);
        run_ranks(&setup, true, n, host);
        setup.open_dev = open_attending;
        run_ranks(&setup, true, n, apart);
        for (uint32_t r = 1; r < n; r++)
            check_same_bits(&apart[0].out, &apart[r].out);
        check_close(&host[0].out, &apart[0].out, 1e-5f);
        forget(host, n);
        forget(apart, n);
    }
}
END_TEST

/* A rank computes experts then that it did not have when its weights went up. */
START_TEST(experts_may_move_between_such_devices)
{
    const experts_config experts = {
        .strategy = EXPERTS_EPLB, .step_interval = 7, .imbalance_min = 1};
    ck_assert_uint_gt(check_ranks(&experts), 0);
}
END_TEST

/* Wherever it fails, the step comes to its end, and what is read of it is zeros. */
START_TEST(a_device_that_fails_is_told_of)
{
    golden_setup setup = setup_of(0, NULL);
    setup.open_dev = open_apart;
    for (uint32_t n_ops = 0; n_ops < 60; n_ops += 7) {
        golden g;
        track t;
        golden_open(&setup, &g);
        track_open(&g, g.n_prompts - 1, &t);
        ck_assert_int_eq(model_status(g.m, NULL), ERR_OK);
        dev_apart_fail_after(g.d, n_ops);
        track_run_prompt(&t, 4);
        ck_assert_int_eq(model_status(g.m, NULL), ERR_SYSTEM);
        for (uint32_t i = 0; i < g.n_vocab; i++)
            ck_assert(track_logits(&t, t.n_prompt - 1)[i] == 0);
        track_close(&t);
        golden_close(&g);
    }
}
END_TEST

START_TEST(a_model_that_does_not_fit_is_refused)
{
    dev *d;
    model *m;
    err_info info = {0};
    const dev_config config = {.isa = "auto", .n_threads = 1};
    const model_options options = {.n_step_tokens_max = 16};
    for (size_t bytes = 4096; bytes <= 64 << 10; bytes *= 4) {
        ck_assert_int_eq(dev_apart_open(&config, bytes, &d, NULL), ERR_OK);
        ck_assert_int_eq(model_open(d, "tests/golden/mixtral-base-f32", &options, &m, &info),
                         ERR_NO_MEMORY);
        ck_assert_ptr_nonnull(strstr(info.message, "bytes"));
        dev_close(d);
    }
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE_SECONDS(a_device_with_memory_of_its_own_gives_the_bits_of_the_hosts, 600),
    TEST_CASE_SECONDS(one_that_attends_by_itself_gives_the_hosts_logits, 600),
    TEST_CASE_SECONDS(what_methods_of_the_cache_ask_for_comes_from_the_device, 600),
    TEST_CASE_SECONDS(ranks_on_such_devices_give_the_bits_of_ranks_on_the_host, 600),
    TEST_CASE_SECONDS(ranks_that_attend_by_themselves_give_the_hosts_logits, 600),
    TEST_CASE_SECONDS(experts_may_move_between_such_devices, 600),
    TEST_CASE(a_device_that_fails_is_told_of),
    TEST_CASE(a_model_that_does_not_fit_is_refused),
    TEST_CASES_END,
};
