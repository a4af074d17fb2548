/* tests/kvcache/test_kv_ranks_routing.c - what decode queries read over several ranks, and what they know about
 * the rest. */
#include "kvcache/device_view.h"
#include "kvcache/ranks.h"
#include "tests/kvcache/rank_group.h"
#include "tests/kvcache/route_probe.h"
#include "tests/test_main.h"

#include <stdlib.h>
#include <string.h>

static const char *const METHODS[] = {"topk",         "adaptive", "certified",
                                      "hierarchical", "pikv",     "topk_balanced"};
enum { N_METHODS = sizeof METHODS / sizeof METHODS[0] };

/* ---- the certificate ------------------------------------------------------------------------------ */

typedef struct probe_rank {
    kv_config config;
    comm *comm;
    pthread_t thread;
} probe_rank;

static void *check_rank(void *ctx)
{
    probe_rank *rank = ctx;
    rank->config.comm = rank->comm;
    for (int kind = 0; kind < N_KEY_KINDS; kind++) {
        probe_check_certificates(&rank->config, 1, (key_kind)kind, DTYPE_F32);
        probe_check_certificates(&rank->config, GROUP_MAX, (key_kind)kind, DTYPE_BF16);
    }
    return NULL;
}

static void check_over_ranks(const kv_config *config, uint32_t n)
{
    probe_rank ranks[RANKS_MAX];
    comm *comms[RANKS_MAX];
    ck_assert_int_eq(comm_open_local(n, RANKS_TIMEOUT_MS, comms, NULL), ERR_OK);
    for (uint32_t r = 0; r < n; r++) {
        ranks[r] = (probe_rank){.config = *config, .comm = comms[r]};
        ck_assert_int_eq(pthread_create(&ranks[r].thread, NULL, check_rank, &ranks[r]), 0);
    }
    for (uint32_t r = 0; r < n; r++) {
        ck_assert_int_eq(pthread_join(ranks[r].thread, NULL), 0);
        comm_close(comms[r]);
    }
}

/* Every rank knows what all of them have missed together. */
START_TEST(no_query_misses_more_of_all_ranks_than_its_certificate)
{
    static const kv_route_settings settings[] = {{0.1, 0.3, 0.3}, {4, 0.0001, 0.999}};
    static const uint32_t n_ranks[] = {2, 3, 8};
    for (int method = 0; method < N_METHODS; method++) {
        for (int i = 0; i < 6; i++) {
            kv_config config = probe_config(METHODS[method], settings[i % 2]);
            config.n_shards = 8;
            check_over_ranks(&config, n_ranks[i / 2]);
        }
    }
}
END_TEST

/* ---- what is read --------------------------------------------------------------------------------- */

static void run_routed(rank_test *t)
{
    fake_seq *const seqs[2] = {&t->seqs[0], &t->seqs[1]};
    t->seqs[0] = fake_seq_open(t->f, (fake_ids){.seed = 1, .n_prompt = 200});
    t->seqs[1] = fake_seq_open(t->f, (fake_ids){.seed = 2, .n_prompt = 30});
    t->seqs[0].n_prompt = 200;
    t->seqs[1].n_prompt = 30;
    fake_run(t->f, &t->seqs[0], 200, 23);
    fake_run(t->f, &t->seqs[1], 30, 64);
    for (uint32_t i = 0; i < 60; i++)
        ck_assert_int_eq(fake_step(t->f, seqs, (const uint32_t[]){1, 1}, 2), ERR_OK);
}

static fake_options routed(const char *method, kv_route_settings settings, const char *placement,
                           const kv_layer_shape *layers)
{
    kv_config config = probe_config(method, settings);
    config.prefix_caching = false;
    return rank_options(placement, 8, layers, 2, config);
}

START_TEST(routing_over_ranks_has_the_same_bits_on_all)
{
    static const char *const placements[] = {"block", "expert", "hash"};
    const kv_layer_shape layers[2] = {fake_layers[0], fake_layers[2]};
    for (int i = 0; i < 3 * N_METHODS; i++) {
        rank_test ranks[3];
        const fake_options options =
            routed(METHODS[i / 3], (kv_route_settings){0.3, 0.2, 0.3}, placements[i % 3], layers);
        run_ranks(ranks, 3, &options, run_routed);
        const kv_stats first = fake_stats(ranks[0].f);
        for (int r = 0; r < 3; r++) {
            const kv_stats stats = fake_stats(ranks[r].f);
            for (int s = 0; s < 2; s++)
                ck_assert(fake_same(ranks[0].f, &ranks[0].seqs[s], &ranks[r].seqs[s], 0,
                                    kv_seq_length(ranks[r].seqs[s].seq)));
            ck_assert_uint_eq(stats.certificates, first.certificates);
            ck_assert_double_eq(stats.certificate_sum, first.certificate_sum);
            ck_assert_double_eq(stats.certificate_max, first.certificate_max);
            ck_assert_uint_lt(stats.pages_read, stats.pages_open);
            ck_assert_uint_gt(stats.pages_open, 0);
        }
        ck_assert_double_gt(first.certificate_max, 0);
        ck_assert(strcmp(METHODS[i / 3], "certified") != 0 || first.certificate_max <= 0.2);
        close_ranks(ranks, 3);
    }
}
END_TEST

/* Settings that leave nothing out, and prompts under those that do. */
START_TEST(what_reads_everything_over_ranks_is_right)
{
    static const kv_route_settings settings[] = {{1, 0, 1}, {1e6, 1e-12, 1 - 1e-15}};
    const kv_layer_shape layers[2] = {fake_layers[0], fake_layers[2]};
    for (int i = 0; i < 2 * N_METHODS; i++) {
        rank_test ranks[4];
        const fake_options options =
            routed(METHODS[i / 2], settings[i % 2], i % 2 == 0 ? "expert" : "block", layers);
        run_ranks(ranks, 4, &options, run_routed);
        for (int s = 0; s < 2; s++)
            ck_assert_double_le(
                fake_error(ranks[1].f, &ranks[1].seqs[s], 0, kv_seq_length(ranks[1].seqs[s].seq)),
                1);
        close_ranks(ranks, 4);
    }
}
END_TEST

/* Pages that decode queries have read on all ranks of n. */
static uint64_t n_read(const char *method, double k, uint32_t n)
{
    rank_test ranks[RANKS_MAX];
    uint64_t n_pages = 0;
    const kv_layer_shape layers[2] = {fake_layers[0], fake_layers[2]};
    const fake_options options = routed(method, (kv_route_settings){.k = k}, "block", layers);
    run_ranks(ranks, n, &options, run_routed);
    for (uint32_t r = 0; r < n; r++)
        n_pages += fake_stats(ranks[r].f).pages_read;
    close_ranks(ranks, n);
    return n_pages;
}

/* A share is every rank's share of its own pages, a number is dealt; both are rounded up on each. */
START_TEST(ranks_read_together_about_what_one_would)
{
    static const char *const methods[] = {"topk", "hierarchical"};
    static const uint32_t n_ranks[] = {2, 4, 8};
    const uint64_t n_choices = (uint64_t)2 * 60 * 3; /* of decode queries, by KV heads */
    for (int m = 0; m < 2; m++) {
        const uint64_t share = n_read(methods[m], 0.25, 1), number = n_read(methods[m], 8, 1);
        for (int i = 0; i < 3; i++) {
            const uint64_t of_ranks = n_read(methods[m], 0.25, n_ranks[i]);
            ck_assert_uint_ge(of_ranks * 20, share * 19);
            ck_assert_uint_le(of_ranks, share + n_choices * n_ranks[i]);
            ck_assert_uint_le(n_read(methods[m], 8, n_ranks[i]), number);
        }
        ck_assert_uint_le(n_read(methods[m], 3, 8), n_choices * 8);
    }
}
END_TEST

/* ---- where it is read ------------------------------------------------------------------------------ */

enum { N_MIXED = 4, N_MIXED_RANKS = 3, N_MIXED_TOKENS = 150 };

/* What a rank had read before the steps that are compared: prompts are cut in another way on a device. */
static uint64_t read_before[N_MIXED_RANKS];

/* Rows that a device attends to, some of which choose, and one that needs the host, in every step. */
static void run_mixed(rank_test *t)
{
    static const char *const routings[N_MIXED] = {"topk", "full", "topk", "certified"};
    static const kv_route_settings settings[N_MIXED] = {
        {.k = 0.2}, {.k = 1}, {.k = 3}, {.eps = 0.4}};
    fake_seq *rows[N_MIXED];
    for (uint32_t i = 0; i < N_MIXED; i++) {
        kv_methods methods;
        const kv_config own = probe_config(routings[i], settings[i]);
        ck_assert_int_eq(kv_methods_resolve(&own, &methods, NULL), ERR_OK);
        rows[i] = &t->seqs[i];
        t->seqs[i] = fake_seq_open(t->f, (fake_ids){.seed = 20 + i, .methods = &methods});
        t->seqs[i].n_prompt = 90 + 7 * i;
        fake_run(t->f, rows[i], 90 + 7 * i, 64);
    }
    read_before[t->rank] = fake_stats(t->f).bytes_read;
    for (uint32_t n = 90; n < N_MIXED_TOKENS; n++)
        ck_assert_int_eq(fake_step(t->f, rows, (const uint32_t[N_MIXED]){1, 1, 1, 1}, N_MIXED),
                         ERR_OK);
}

static void run_mixed_on(const char *device, rank_test *ranks, uint64_t *read)
{
    const kv_layer_shape layers[2] = {fake_layers[0], fake_layers[2]};
    fake_options options = routed("full", (kv_route_settings){.k = 1}, "block", layers);
    options.config.request_methods = true;
    ck_assert_int_eq(setenv("PIKV_TEST_DEVICE", device, 1), 0);
    run_ranks(ranks, N_MIXED_RANKS, &options, run_mixed);
    for (int r = 0; r < N_MIXED_RANKS; r++)
        read[r] = fake_stats(ranks[r].f).bytes_read - read_before[r];
}

/* What a rank reads, chooses and misses, and the outputs of all. */
static void check_mixed(rank_test *host, rank_test *apart)
{
    const kv_stats want = fake_stats(host->f), got = fake_stats(apart->f);
    for (uint32_t i = 0; i < N_MIXED; i++) {
        kv_usage x, y;
        kv_seq_usage(host->seqs[i].seq, &x);
        kv_seq_usage(apart->seqs[i].seq, &y);
        for (size_t at = 0; at < (size_t)N_MIXED_TOKENS * host->f->n_out; at++)
            ck_assert_float_eq_tol(apart->seqs[i].out[at], host->seqs[i].out[at], 2e-6f);
        ck_assert_uint_eq(x.certificates, y.certificates);
        ck_assert_double_eq_tol(x.certificate_sum, y.certificate_sum,
                                1e-9 + 1e-5 * x.certificate_sum);
    }
    ck_assert_uint_eq(got.pages_open, want.pages_open);
    ck_assert_uint_eq(got.pages_read, want.pages_read);
    ck_assert_uint_lt(got.pages_read, got.pages_open);
    ck_assert_double_eq_tol(got.certificate_max, want.certificate_max, 1e-5);
}

START_TEST(ranks_on_devices_choose_and_read_what_ranks_on_the_host_do)
{
    rank_test host[N_MIXED_RANKS], apart[N_MIXED_RANKS];
    uint64_t read[2][N_MIXED_RANKS];
    run_mixed_on("cpu", host, read[0]);
    run_mixed_on("apart", apart, read[1]);
    ck_assert_uint_eq(apart[0].f->cache->view->n_hosts, 1); /* certified asks for keys */
    for (int r = 0; r < N_MIXED_RANKS; r++) {
        check_mixed(&host[r], &apart[r]);
        ck_assert_double_eq_tol((double)read[1][r], (double)read[0][r], 0.005 * (double)read[0][r]);
        for (int s = 0; s < N_MIXED; s++)
            ck_assert(fake_same(apart[0].f, &apart[0].seqs[s], &apart[r].seqs[s], 0,
                                kv_seq_length(apart[r].seqs[s].seq)));
    }
    close_ranks(host, N_MIXED_RANKS);
    close_ranks(apart, N_MIXED_RANKS);
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE_SECONDS(no_query_misses_more_of_all_ranks_than_its_certificate, 600),
    TEST_CASE(routing_over_ranks_has_the_same_bits_on_all),
    TEST_CASE(what_reads_everything_over_ranks_is_right),
    TEST_CASE(ranks_read_together_about_what_one_would),
    TEST_CASE(ranks_on_devices_choose_and_read_what_ranks_on_the_host_do),
    TEST_CASES_END};
