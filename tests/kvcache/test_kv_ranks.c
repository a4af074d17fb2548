/* tests/kvcache/test_kv_ranks.c - one cache over several ranks, which are threads here.
 *
 * What attention returns is compared with the reference, which knows nothing of ranks, and among ranks to
 * the last bit. */
#include "kvcache/ranks.h"
#include "tests/kvcache/rank_group.h"
#include "tests/test_main.h"

#include <string.h>

static fake_options options_of(const char *placement, uint32_t n_shards,
                               const kv_layer_shape *layers, uint32_t n_layers, kv_config config)
{
    config.prefix_caching = false;
    return rank_options(placement, n_shards, layers, n_layers, config);
}

/* Three sequences, so that there are several homes: one is cut into chunks, one short, one of one token; they
 * decode beside each other. */
static void run_three(rank_test *t)
{
    static const uint32_t n_prompt[3] = {150, 30, 1};
    fake_seq *const seqs[3] = {&t->seqs[0], &t->seqs[1], &t->seqs[2]};
    for (uint32_t s = 0; s < 3; s++) {
        t->seqs[s] = fake_seq_open(t->f, (fake_ids){.seed = s + 1, .n_prompt = n_prompt[s]});
        t->seqs[s].n_prompt = n_prompt[s];
        fake_run(t->f, &t->seqs[s], n_prompt[s], s == 0 ? 11 : 64);
    }
    for (uint32_t i = 0; i < 80; i++)
        ck_assert_int_eq(fake_step(t->f, seqs, (const uint32_t[]){1, 1, 1}, 3), ERR_OK);
}

static const uint32_t N_HELD[3] = {230, 110, 81}; /* after run_three */

static void check_ranks_agree(const rank_test *ranks, uint32_t n)
{
    for (uint32_t r = 1; r < n; r++) {
        for (int s = 0; s < 3; s++)
            ck_assert(fake_same(ranks[0].f, &ranks[0].seqs[s], &ranks[r].seqs[s], 0, N_HELD[s]));
    }
}

/* Every page lies on the rank that owns its shard. */
static void check_owners(const rank_test *ranks, uint32_t n)
{
    uint32_t n_with_pages = 0;
    for (uint32_t r = 0; r < n; r++) {
        const kv_stats stats = fake_stats(ranks[r].f);
        for (uint32_t s = 0; s < stats.n_shards; s++)
            ck_assert(stats.shards[s].pages == 0 || s % n == r);
        n_with_pages += stats.pages_used > 0;
    }
    ck_assert_uint_eq(n_with_pages, n);
}

/* ---- attention ------------------------------------------------------------------------------------ */

START_TEST(every_rank_returns_what_the_reference_does)
{
    static const uint32_t n_ranks[] = {1, 2, 3, 4, 8};
    static const char *const placements[] = {"block", "expert", "hash"};
    for (int i = 0; i < 5; i++) {
        for (int p = 0; p < 3; p++) {
            const uint32_t n = n_ranks[i];
            rank_test ranks[RANKS_MAX];
            const fake_options options =
                options_of(placements[p], p == 0 ? 1 : 8, fake_layers, 3, fake_defaults());
            run_ranks(ranks, n, &options, run_three);
            check_ranks_agree(ranks, n);
            check_owners(ranks, n);
            for (int s = 0; s < 3; s++)
                ck_assert_double_le(fake_error(ranks[0].f, &ranks[0].seqs[s], 0, N_HELD[s]), 1);
            close_ranks(ranks, n);
        }
    }
}
END_TEST

START_TEST(a_rank_alone_with_a_comm_has_the_bits_of_one_without)
{
    rank_test with, without = {.body = run_three};
    const fake_options options = options_of("expert", 3, fake_layers, 3, fake_defaults());
    run_ranks(&with, 1, &options, run_three);
    without.options = options;
    run_rank(&without);
    for (int s = 0; s < 3; s++)
        ck_assert(fake_same(with.f, &with.seqs[s], &without.seqs[s], 0, N_HELD[s]));
    close_ranks(&with, 1);
    close_ranks(&without, 1);
}
END_TEST

START_TEST(a_number_of_ranks_gives_the_same_bits_in_every_run)
{
    rank_test a[RANKS_MAX], b[RANKS_MAX];
    const fake_options options = options_of("expert", 5, fake_layers, 3, fake_defaults());
    run_ranks(a, 3, &options, run_three);
    run_ranks(b, 3, &options, run_three);
    for (int s = 0; s < 3; s++)
        ck_assert(fake_same(a[0].f, &a[0].seqs[s], &b[2].seqs[s], 0, N_HELD[s]));
    close_ranks(a, 3);
    close_ranks(b, 3);
}
END_TEST

/* ---- memory --------------------------------------------------------------------------------------- */

static void run_long(rank_test *t)
{
    t->seqs[0] = fake_seq_open(t->f, (fake_ids){.seed = 1, .n_prompt = 2000});
    t->seqs[0].n_prompt = 2000;
    fake_run(t->f, &t->seqs[0], 2000, 64);
}

START_TEST(four_ranks_hold_a_quarter_of_the_pages_each)
{
    rank_test alone, ranks[4];
    fake_options options = options_of("block", 1, fake_coded_layers, 1, fake_coded("none"));
    options.limits.n_seq_tokens_max = 2048;
    run_ranks(&alone, 1, &options, run_long);
    run_ranks(ranks, 4, &options, run_long);
    for (int r = 0; r < 4; r++) {
        const double share = (double)ranks[r].bytes / (double)alone.bytes;
        ck_assert_double_ge(share, 0.25 * 0.95);
        ck_assert_double_le(share, 0.25 * 1.05);
    }
    close_ranks(&alone, 1);
    close_ranks(ranks, 4);
}
END_TEST

/* Rank 1 has a pool that is too small for its part of the sequence. */
static void run_until_full(rank_test *t)
{
    const uint32_t n = 32;
    fake_seq *s = &t->seqs[0];
    err_t err = ERR_OK;
    *s = fake_seq_open(t->f, (fake_ids){.seed = 1});
    while (err == ERR_OK) {
        ck_assert_uint_le(kv_seq_length(s->seq), 1900); /* it must come to an end before */
        err = fake_step(t->f, &s, &n, 1);
    }
    ck_assert_int_eq(err, ERR_KV_FULL);
    *(uint32_t *)(uintptr_t)t->ctx = kv_seq_length(s->seq);
    fake_seq_close(t->f, s, false);
    *s = fake_seq_open(t->f, (fake_ids){.seed = 2});
    fake_run(t->f, s, 40, 40); /* all go on together */
}

static void make_small(rank_test *t)
{
    uint32_t *lengths = (uint32_t *)(uintptr_t)t->ctx;
    t->ctx = &lengths[t->rank];
    if (t->rank == 1) t->options.config.memory_bytes = 192 << 10;
}

START_TEST(a_pool_that_is_full_on_one_rank_ends_the_step_on_all)
{
    rank_test ranks[3];
    uint32_t length[3] = {0};
    fake_options options = options_of("block", 1, fake_layers, 3, fake_defaults());
    options.limits.n_seq_tokens_max = 2048;
    run_group(ranks, &(rank_run){3, options, run_until_full, make_small, length});
    ck_assert_uint_gt(length[0], 0);
    ck_assert_uint_eq(length[0], length[1]);
    ck_assert_uint_eq(length[0], length[2]);
    close_ranks(ranks, 3);
}
END_TEST

/* ---- cutting -------------------------------------------------------------------------------------- */

static void run_and_cut(rank_test *t)
{
    fake_seq *s = &t->seqs[0];
    *s = fake_seq_open(t->f, (fake_ids){.seed = 1});
    fake_run(t->f, s, 50, 50);
    ck_assert_uint_eq(kv_seq_truncate(s->seq, 45), 45); /* blocks [0, 10) are in pages, of 4 */
    fake_run(t->f, s, 60, 1);
    ck_assert_uint_eq(kv_seq_truncate(s->seq, 20), 0); /* computed again */
    fake_run(t->f, s, 60, 7);
}

START_TEST(a_cut_is_the_same_on_all_ranks)
{
    rank_test ranks[3];
    const fake_options options = options_of("block", 1, fake_layers, 1, fake_defaults());
    run_ranks(ranks, 3, &options, run_and_cut);
    for (int r = 0; r < 3; r++)
        ck_assert_double_le(fake_error(ranks[r].f, &ranks[r].seqs[0], 0, 60), 1);
    close_ranks(ranks, 3);
}
END_TEST

/* ---- methods -------------------------------------------------------------------------------------- */

START_TEST(codecs_have_the_same_bits_on_all_ranks_and_of_their_pages)
{
    static const char *const codecs[] = {"fp8",   "int8",        "int4", "int2",
                                         "prune", "think",       "lora", "lora_plus",
                                         "pikv",  "paper_fastv", "svd"};
    static const char *const placements[] = {"block", "expert"};
    for (int c = 0; c < 11; c++) {
        for (int p = 0; p < 2; p++) {
            rank_test ranks[3];
            fake_options options =
                options_of(placements[p], 1, fake_coded_layers, 2, fake_coded(codecs[c]));
            options.config.request_methods = c == 0;
            run_ranks(ranks, 3, &options, run_three);
            check_ranks_agree(ranks, 3);
            check_owners(ranks, 3);
            for (int r = 0; r < 3; r++)
                ck_assert_uint_gt(fake_stats(ranks[r].f).pages_encoded, 0);
            close_ranks(ranks, 3);
        }
    }
}
END_TEST

START_TEST(a_budget_is_dealt_to_the_ranks)
{
    static const char *const policies[] = {"streaming_llm", "snapkv", "h2o+adakv"};
    static const char *const placements[] = {"block", "expert", "hash"};
    for (int i = 0; i < 9; i++) {
        rank_test alone, ranks[4];
        uint64_t live = 0;
        fake_options options =
            options_of(placements[i % 3], 4, fake_coded_layers, 1, fake_coded("int8"));
        options.config.scheduling = (char *)(uintptr_t)policies[i / 3];
        options.config.budget = 0.5;
        run_ranks(&alone, 1, &options, run_three);
        run_ranks(ranks, 4, &options, run_three);
        check_ranks_agree(ranks, 4);
        for (int r = 0; r < 4; r++) {
            ck_assert_uint_gt(ranks[r].evicted, 0);
            live += ranks[r].live;
        }
        ck_assert_uint_le(live, alone.live); /* what a rank may keep is rounded, */
        ck_assert_uint_ge(live, alone.live * 19 / 20);
        close_ranks(&alone, 1);
        close_ranks(ranks, 4);
    }
}
END_TEST

/* Little room in memory: each rank moves pages of its own to its host memory. */
START_TEST(tiers_work_on_every_rank)
{
    rank_test ranks[3];
    fake_options options = options_of("block", 1, fake_layers, 3, fake_defaults());
    options.config.memory_bytes = 192 << 10;
    options.config.host_bytes = 2 << 20;
    options.limits.n_seq_tokens_max = 2048;
    run_ranks(ranks, 3, &options, run_long);
    for (int r = 0; r < 3; r++) {
        ck_assert_uint_gt(fake_stats(ranks[r].f).pages_demoted, 0);
        ck_assert(fake_same(ranks[0].f, &ranks[0].seqs[0], &ranks[r].seqs[0], 0, 2000));
    }
    ck_assert_double_le(fake_error(ranks[0].f, &ranks[0].seqs[0], 1900, 2000), 1);
    close_ranks(ranks, 3);
}
END_TEST

/* ---- what is refused ------------------------------------------------------------------------------ */

static void check_refused(const kv_limits *limits, kv_config config, err_t expected,
                          const char *message)
{
    const kv_shape shape = {
        .n_layers = 1, .layer = fake_coded_layers, .n_experts = 8, .model_type = DTYPE_F32};
    dev *d;
    kv_cache *cache;
    err_info info = {0};
    ck_assert_int_eq(dev_open_cpu(&(dev_config){.isa = "ref", .n_threads = 1}, &d, NULL), ERR_OK);
    ck_assert_int_eq(kv_cache_open(d, &config, &shape, limits, &cache, &info), expected);
    ck_assert_msg(strstr(info.message, message) != NULL, "'%s' is not in '%s'", message,
                  info.message);
    dev_close(d);
}

static void *open_refused(void *ctx)
{
    const kv_limits limits = {.n_seqs_max = 2, .n_step_tokens_max = 8, .n_seq_tokens_max = 64};
    kv_config config = fake_coded("none");
    config.comm = ctx;
    config.n_shards = 2;
    check_refused(&limits, config, ERR_BAD_CONFIG, "kv-shards: 2");
    config.n_shards = 1;
    config.placement = (char *)(uintptr_t) "hash"; /* 3 shards */
    check_refused(&limits, config, ERR_BAD_CONFIG, "power of two");
    config.placement = (char *)(uintptr_t) "block";
    if (comm_rank(ctx) == 1) config.memory_bytes = 1; /* what one cannot do, none does */
    check_refused(&limits, config, ERR_BAD_CONFIG, comm_rank(ctx) == 1 ? "kv-cache" : "rank 1");
    return NULL;
}

START_TEST(what_one_rank_cannot_open_none_does)
{
    comm *comms[3];
    pthread_t threads[3];
    ck_assert_int_eq(comm_open_local(3, RANKS_TIMEOUT_MS, comms, NULL), ERR_OK);
    for (int r = 0; r < 3; r++)
        ck_assert_int_eq(pthread_create(&threads[r], NULL, open_refused, comms[r]), 0);
    for (int r = 0; r < 3; r++) {
        ck_assert_int_eq(pthread_join(threads[r], NULL), 0);
        comm_close(comms[r]);
    }
}
END_TEST

/* ---- a rank that is lost -------------------------------------------------------------------------- */

static void run_and_leave(rank_test *t)
{
    fake_seq *s = &t->seqs[0];
    err_t err = ERR_OK;
    *s = fake_seq_open(t->f, (fake_ids){.seed = 1});
    fake_run(t->f, s, 50, 50);
    if (t->rank == 2) comm_abort(t->comm, "a test");
    for (int i = 0; i < 2 && err == ERR_OK; i++) /* one may have begun */
        err = fake_step(t->f, &s, &(uint32_t){1}, 1);
    ck_assert_int_eq(err, ERR_PEER_LOST);
    ck_assert_int_eq(comm_status(t->comm, NULL), ERR_PEER_LOST);
}

START_TEST(a_lost_rank_ends_the_steps_of_all)
{
    rank_test ranks[3];
    const fake_options options = options_of("block", 1, fake_layers, 3, fake_defaults());
    run_ranks(ranks, 3, &options, run_and_leave);
    close_ranks(ranks, 3);
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE(every_rank_returns_what_the_reference_does),
    TEST_CASE(a_rank_alone_with_a_comm_has_the_bits_of_one_without),
    TEST_CASE(a_number_of_ranks_gives_the_same_bits_in_every_run),
    TEST_CASE(four_ranks_hold_a_quarter_of_the_pages_each),
    TEST_CASE(a_pool_that_is_full_on_one_rank_ends_the_step_on_all),
    TEST_CASE(a_cut_is_the_same_on_all_ranks),
    TEST_CASE(codecs_have_the_same_bits_on_all_ranks_and_of_their_pages),
    TEST_CASE(a_budget_is_dealt_to_the_ranks),
    TEST_CASE(tiers_work_on_every_rank),
    TEST_CASE(what_one_rank_cannot_open_none_does),
    TEST_CASE(a_lost_rank_ends_the_steps_of_all),
    TEST_CASES_END};
