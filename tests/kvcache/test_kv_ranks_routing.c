/* tests/kvcache/test_kv_ranks_routing.c - what decode queries read over several ranks, and what they know about
 * the rest. */
#include "kvcache/ranks.h"
#include "tests/kvcache/rank_group.h"
#include "tests/kvcache/route_probe.h"
#include "tests/test_main.h"

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

const test_case test_cases[] = {
    TEST_CASE_SECONDS(no_query_misses_more_of_all_ranks_than_its_certificate, 600),
    TEST_CASE(routing_over_ranks_has_the_same_bits_on_all),
    TEST_CASE(what_reads_everything_over_ranks_is_right),
    TEST_CASE(ranks_read_together_about_what_one_would), TEST_CASES_END};
