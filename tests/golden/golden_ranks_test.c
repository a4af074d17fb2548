/* tests/golden/golden_ranks_test.c - the whole model over several ranks, which are threads here.
 *
 * Against the model alone: logits to rounding, greedy tokens exactly. Among ranks, and from run to run,
 * to the last bit. What the model alone returns is compared with transformers in golden_test.c. */
#include "tests/golden/rank_run.h"
#include "tests/test_main.h"

static const char *const by_block[] = {"kv-placement", "block", NULL};
static const char *const by_expert[] = {"kv-placement", "expert", "kv-shards", "8", NULL};
static const char *const by_hash[] = {"kv-placement", "hash", "kv-shards", "8", NULL};

/* ---- tests ---------------------------------------------------------------------------------------- */

static void check_fixture(int fixture, uint32_t n_ranks, const char *const *settings,
                          const rank_run *alone)
{
    rank_run runs[RANKS_MAX];
    size_t weight_bytes = 0;
    const golden_setup setup = setup_of(fixture, settings);
    run_ranks(&setup, alone->is_short, n_ranks, runs);
    for (uint32_t r = 1; r < n_ranks; r++)
        check_same_bits(&runs[0].out, &runs[r].out);
    check_close(&alone->out, &runs[0].out, 1e-5f);
    for (uint32_t r = 0; r < n_ranks; r++)
        weight_bytes += runs[r].weight_bytes;
    ck_assert(n_ranks == 1 || weight_bytes < n_ranks * alone->weight_bytes);
    forget(runs, n_ranks);
}

START_TEST(ranks_return_the_logits_and_tokens_of_one)
{
    static const uint32_t n_ranks[] = {2, 3, 4, 8};
    for (int f = 0; f < N_FIXTURES; f++) {
        const golden_setup setup = setup_of(f, by_block);
        rank_run alone = run_alone(&setup, false);
        for (int i = 0; i < 4; i++)
            check_fixture(f, n_ranks[i], by_block, &alone);
        forget(&alone, 1);
    }
}
END_TEST

START_TEST(placements_over_ranks_return_the_logits_and_tokens_of_one)
{
    static const uint32_t n_ranks[] = {1, 2, 3, 4, 8};
    for (int f = 0; f < N_FIXTURES; f++) {
        const golden_setup setup = setup_of(f, by_block);
        rank_run alone = run_alone(&setup, true);
        for (int i = 0; i < 5; i++) {
            check_fixture(f, n_ranks[i], by_expert, &alone);
            check_fixture(f, n_ranks[i], by_hash, &alone);
        }
        forget(&alone, 1);
    }
}
END_TEST

/* Prompts by themselves are in the cache by then, but for their last tokens. */
START_TEST(prefixes_over_ranks_return_the_logits_and_tokens_of_one)
{
    static const char *const *const placements[] = {by_block, by_expert, by_hash};
    size_t n_cached = 0; /* none where windows have freed what a shorter prefix needs */
    for (int f = 0; f < N_FIXTURES; f++) {
        const golden_setup one = setup_of(f, by_block);
        rank_run alone = run_alone(&one, false);
        for (int i = 0; i < 3; i++) {
            rank_run runs[RANKS_MAX];
            golden_setup setup = setup_of(f, placements[i]);
            const uint32_t n = 2 + (uint32_t)i % 2;
            setup.prefix_caching = true;
            run_ranks(&setup, false, n, runs);
            n_cached += runs[0].out.n_cached;
            for (uint32_t r = 1; r < n; r++)
                check_same_bits(&runs[0].out, &runs[r].out);
            check_close(&alone.out, &runs[0].out, 1e-5f);
            forget(runs, n);
        }
        forget(&alone, 1);
    }
    ck_assert_uint_gt(n_cached, 3000);
}
END_TEST

START_TEST(one_rank_has_the_bits_of_none)
{
    const golden_setup setup = setup_of(0, by_expert);
    rank_run alone = run_alone(&setup, false), run;
    run_ranks(&setup, false, 1, &run);
    check_same_bits(&alone.out, &run.out);
    ck_assert_uint_eq(alone.weight_bytes, run.weight_bytes);
    forget(&alone, 1);
    forget(&run, 1);
}
END_TEST

START_TEST(ranks_have_the_same_bits_in_every_run)
{
    rank_run a[3], b[3];
    const golden_setup setup = setup_of(0, by_hash);
    run_ranks(&setup, false, 3, a);
    run_ranks(&setup, false, 3, b);
    check_same_bits(&a[0].out, &b[1].out);
    forget(a, 3);
    forget(b, 3);
}
END_TEST

START_TEST(codecs_and_budgets_run_over_ranks)
{
    static const char *const none[] = {"kv-placement", "expert", NULL};
    static const char *const streaming[] = {"kv-scheduling", "streaming_llm", "kv-budget", "0.5",
                                            NULL};
    static const char *const knorm[] = {"kv-scheduling", "knorm", "kv-budget", "0.5", NULL};
    static const char *const snapkv[] = {"kv-scheduling", "snapkv+adakv", "kv-budget", "0.5", NULL};
    static const char *const h2o[] = {"kv-scheduling",  "h2o", "kv-budget", "0.5", "kv-rewrite",
                                      "merge,rerotate", NULL};
    static const char *const *const settings[] = {none, streaming, knorm, snapkv, h2o};
    for (int i = 0; i < 5; i++) {
        rank_run runs[3];
        golden_setup setup = setup_of(0, settings[i]);
        setup.compression = "int8";
        run_ranks(&setup, false, 3, runs);
        check_same_bits(&runs[0].out, &runs[1].out);
        check_same_bits(&runs[0].out, &runs[2].out);
        forget(runs, 3);
    }
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE(ranks_return_the_logits_and_tokens_of_one),
    TEST_CASE(placements_over_ranks_return_the_logits_and_tokens_of_one),
    TEST_CASE(prefixes_over_ranks_return_the_logits_and_tokens_of_one),
    TEST_CASE(one_rank_has_the_bits_of_none),
    TEST_CASE(ranks_have_the_same_bits_in_every_run),
    TEST_CASE(codecs_and_budgets_run_over_ranks),
    TEST_CASES_END};
