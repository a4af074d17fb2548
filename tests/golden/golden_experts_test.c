/* tests/golden/golden_experts_test.c - experts that lie anywhere, several times, and move while sequences run.
 *
 * Over ranks that are threads, against the model alone: logits to rounding, greedy tokens exactly. */
#include "tests/golden/rank_run.h"
#include "tests/model/temp_dir.h"
#include "tests/test_main.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Every seventh step the experts move if that helps at all. */
static experts_config eplb(uint32_t n_redundant)
{
    return (experts_config){.strategy = EXPERTS_EPLB,
                            .n_redundant = n_redundant,
                            .step_interval = 7,
                            .imbalance_min = 1};
}

static experts_config linear(uint32_t n_redundant)
{
    experts_config config = eplb(n_redundant);
    config.strategy = EXPERTS_LINEAR;
    return config;
}

static golden_setup setup_with(int fixture, const experts_config *experts)
{
    golden_setup setup = setup_of(fixture, NULL);
    setup.experts = experts;
    return setup;
}

/* All ranks have the same bits and counters, together they read every slot's weights once and compute every
 * choice once, and what comes out is what the model alone computes. Returns how often experts moved. */
static uint64_t check_against(const rank_run *alone, const golden_setup *setup, uint32_t n_ranks,
                              rank_run *runs)
{
    size_t weight_bytes = 0;
    uint64_t n_choices = 0;
    run_ranks(setup, alone->is_short, n_ranks, runs);
    const expert_stats *const stats = &runs[0].experts;
    check_close(&alone->out, &runs[0].out, 1e-5f);
    for (uint32_t r = 0; r < n_ranks; r++) {
        check_same_bits(&runs[0].out, &runs[r].out);
        ck_assert_mem_eq(&runs[r].experts, stats, sizeof *stats);
        ck_assert_mem_eq(runs[r].rank_choices, runs[0].rank_choices, sizeof runs[0].rank_choices);
        weight_bytes += runs[r].weight_bytes;
        n_choices += runs[0].rank_choices[r];
    }
    const size_t n_slots = alone->n_experts + setup->experts->n_redundant;
    const size_t dense_bytes = alone->weight_bytes - alone->n_experts * alone->expert_bytes;
    ck_assert_uint_eq(weight_bytes, n_ranks * dense_bytes + n_slots * alone->expert_bytes);
    ck_assert_uint_eq(n_choices, alone->rank_choices[0]);
    ck_assert_uint_eq(stats->n_ranks, n_ranks);
    ck_assert(stats->imbalance >= 1);
    ck_assert(stats->imbalance <= n_ranks);
    return stats->n_rebalanced;
}

static uint64_t check_ranks(const rank_run *alone, int fixture, experts_config experts,
                            uint32_t n_ranks)
{
    rank_run runs[RANKS_MAX];
    const golden_setup setup = setup_with(fixture, &experts);
    const uint64_t n_rebalanced = check_against(alone, &setup, n_ranks, runs);
    ck_assert(experts.strategy == EXPERTS_EPLB || n_rebalanced == 0);
    forget(runs, n_ranks);
    return n_rebalanced;
}

static rank_run run_fixture_alone(int fixture)
{
    const golden_setup setup = setup_of(fixture, NULL);
    return run_alone(&setup, true);
}

/* ---- tests ---------------------------------------------------------------------------------------- */

START_TEST(replicas_return_the_logits_and_tokens_of_one)
{
    for (int f = 0; f < N_FIXTURES; f++) {
        rank_run alone = run_fixture_alone(f);
        const uint32_t n_experts = alone.n_experts;
        (void)check_ranks(&alone, f, linear(1), 2);
        (void)check_ranks(&alone, f, linear(n_experts), 2); /* everything everywhere */
        (void)check_ranks(&alone, f, linear(2), 3);
        (void)check_ranks(&alone, f, linear(4), 4);
        (void)check_ranks(&alone, f, linear(8), 8);
        forget(&alone, 1);
    }
}
END_TEST

/* They do, unless there is one rank, or each has all of them, or one each. */
static void check_moving(const rank_run *alone, int fixture, uint32_t n_redundant, uint32_t n_ranks)
{
    const uint32_t n_slots = alone->n_experts + n_redundant;
    const bool can_move = n_slots < n_ranks * alone->n_experts && n_slots > n_ranks;
    const uint64_t n_rebalanced = check_ranks(alone, fixture, eplb(n_redundant), n_ranks);
    ck_assert_msg((n_rebalanced > 0) == can_move, "%s, %u replicas, %u ranks: moved %u times",
                  fixtures[fixture], n_redundant, n_ranks, (uint32_t)n_rebalanced);
}

START_TEST(experts_that_move_return_the_logits_and_tokens_of_one)
{
    for (int f = 0; f < N_FIXTURES; f++) {
        rank_run alone = run_fixture_alone(f);
        check_moving(&alone, f, 0, 1);
        check_moving(&alone, f, alone.n_experts, 2);
        for (uint32_t n_ranks = 2; n_ranks <= 4; n_ranks++) {
            check_moving(&alone, f, 0, n_ranks);
            check_moving(&alone, f, 1, n_ranks);
            check_moving(&alone, f, n_ranks, n_ranks);
        }
        check_moving(&alone, f, 0, 8); /* with four or five experts: ranks without any */
        check_moving(&alone, f, 8, 8);
        forget(&alone, 1);
    }
}
END_TEST

START_TEST(experts_that_move_give_the_same_bits_in_every_run)
{
    const experts_config experts = eplb(2);
    const golden_setup setup = setup_with(1, &experts);
    rank_run a[3], b[3];
    run_ranks(&setup, false, 3, a);
    run_ranks(&setup, false, 3, b);
    ck_assert_uint_gt(a[0].experts.n_rebalanced, 0);
    for (uint32_t r = 0; r < 3; r++) {
        check_same_bits(&a[0].out, &b[r].out);
        ck_assert_mem_eq(&a[0].experts, &b[r].experts, sizeof a[0].experts);
    }
    forget(a, 3);
    forget(b, 3);
}
END_TEST

START_TEST(one_rank_has_the_bits_of_none_under_eplb)
{
    const experts_config experts = eplb(0);
    golden_setup setup = setup_with(0, &experts);
    rank_run alone = run_alone(&setup, true), run;
    run_ranks(&setup, true, 1, &run);
    check_same_bits(&alone.out, &run.out);
    ck_assert_uint_eq(alone.weight_bytes, run.weight_bytes);
    ck_assert_double_eq(run.experts.imbalance, 1);
    forget(&alone, 1);
    forget(&run, 1);
}
END_TEST

START_TEST(ranks_without_experts_compute_none)
{
    rank_run alone = run_fixture_alone(0), runs[RANKS_MAX];
    const experts_config experts = linear(0);
    const golden_setup setup = setup_with(0, &experts);
    ck_assert_uint_eq(alone.n_experts, 4);
    (void)check_against(&alone, &setup, 8, runs);
    for (uint32_t r = 0; r < 8; r++) {
        const bool has_one = r % 2 == 1; /* [4 r / 8, 4 (r + 1) / 8) */
        ck_assert((runs[0].rank_choices[r] > 0) == has_one);
        ck_assert_uint_eq(runs[r].weight_bytes,
                          alone.weight_bytes - (has_one ? 3 : 4) * alone.expert_bytes);
    }
    forget(runs, 8);
    forget(&alone, 1);
}
END_TEST

/* Which replica serves a token follows from its position: prompts in a crowd and in pieces have the bits that
 * they have by themselves. Three experts to a token, as of two the sum has but one order. Each rank has the
 * whole cache: merges over ranks would round otherwise. */
START_TEST(replicas_change_no_bit_with_the_batch)
{
    enum { FIXTURE = 2, N_RANKS = 3 };
    const experts_config experts = linear(5);
    golden_setup setup = setup_with(FIXTURE, &experts);
    rank_run runs[N_RANKS];
    golden g;
    uint32_t n[GOLDEN_PROMPTS_MAX];
    setup.whole_cache = true;
    run_ranks(&setup, false, N_RANKS, runs);
    setup = setup_of(FIXTURE, NULL);
    golden_open(&setup, &g);
    ck_assert_uint_ge(model_get_config(g.m)->top_k, 3);
    const record *const out = &runs[0].out;
    size_t together = 0, alone = out->n_rows;
    for (uint32_t p = 0; p < g.n_prompts; p++) {
        (void)golden_ids(&g, p, "prompt", &n[p]);
        alone -= n[p];
    }
    for (uint32_t p = 0; p < g.n_prompts; p++) {
        ck_assert_mem_eq(out->logits + together * out->n_vocab, out->logits + alone * out->n_vocab,
                         n[p] * out->n_vocab * sizeof *out->logits);
        together += n[p] + GOLDEN_GREEDY_TOKENS - 1; /* the last is not computed */
        alone += n[p];
    }
    ck_assert_uint_eq(alone, out->n_rows);
    golden_close(&g);
    forget(runs, N_RANKS);
}
END_TEST

/* ---- one expert for all ---------------------------------------------------------------------------- */

/* Copies a fixture whose routers know nothing: all logits are 0, and the lowest experts win every tie. */
static void copy_with_blind_routers(const char *fixture, const temp_dir *dir)
{
    static const char *const files[] = {"config.json", "model.safetensors"};
    char path[256];
    size_t n_bytes, n_blinded = 0;
    tensor_files *tensors;
    for (int i = 0; i < 2; i++) {
        (void)snprintf(path, sizeof path, "tests/golden/%s/%s", fixture, files[i]);
        char *const bytes = temp_read(path, &n_bytes);
        if (i == 1) {
            ck_assert(tensor_file_open(path, &tensors, NULL) == ERR_OK);
            for (size_t t = 0; t < tensor_count(tensors); t++) {
                const tensor *const router = tensor_at(tensors, t);
                if (strstr(router->name, "block_sparse_moe.gate.weight") == NULL) continue;
                char *const at = memmem(bytes, n_bytes, router->data, router->data_bytes);
                ck_assert_ptr_nonnull(at);
                memset(at, 0, router->data_bytes);
                n_blinded++;
            }
            tensor_files_close(tensors);
        }
        temp_write(dir, files[i], bytes, n_bytes);
        free(bytes);
    }
    ck_assert_uint_eq(n_blinded, 2);
}

/* top_k 1: expert 0 computes every token. Without replicas rank 0 does everything. By load it comes to have one
 * on each rank; the first of them is there from the start. */
START_TEST(one_expert_for_all_tokens_is_shared_by_the_ranks_that_have_it)
{
    enum { FIXTURE = 3, N_EXPERTS = 8 };
    temp_dir dir;
    temp_dir_open(&dir);
    copy_with_blind_routers(fixtures[FIXTURE], &dir);
    golden_setup setup = setup_of(FIXTURE, NULL);
    setup.model_dir = dir.path;
    rank_run alone = run_alone(&setup, true), runs[RANKS_MAX];
    ck_assert_uint_eq(alone.n_experts, N_EXPERTS);
    for (uint32_t n_ranks = 2; n_ranks <= 8; n_ranks += n_ranks < 4 ? 1 : 4) {
        const experts_config in_order = linear(0), by_load = eplb(n_ranks - 1);
        setup.experts = &in_order;
        (void)check_against(&alone, &setup, n_ranks, runs);
        ck_assert_uint_eq(runs[0].rank_choices[0], alone.rank_choices[0]);
        ck_assert_double_eq(runs[0].experts.imbalance, n_ranks);
        forget(runs, n_ranks);
        setup.experts = &by_load;
        ck_assert_uint_eq(check_against(&alone, &setup, n_ranks, runs), n_ranks > 2);
        for (uint32_t r = 0; r < n_ranks; r++)
            ck_assert_uint_gt(runs[0].rank_choices[r], 0);
        ck_assert(runs[0].experts.imbalance < 1.5);
        forget(runs, n_ranks);
    }
    forget(&alone, 1);
    temp_dir_close(&dir);
}
END_TEST

/* gpt-oss' lie turned in the file: they are copied, and copied anew by the rank that they come to. */
START_TEST(experts_that_are_copied_move_as_well)
{
    const experts_config experts = eplb(1);
    golden_setup setup = setup_of(0, NULL);
    setup.fixture = "gpt_oss-base-bf16";
    rank_run alone = run_alone(&setup, true), runs[RANKS_MAX];
    setup.experts = &experts;
    run_ranks(&setup, true, 2, runs);
    check_close(&alone.out, &runs[0].out, 1e-5f);
    check_same_bits(&runs[0].out, &runs[1].out);
    ck_assert_uint_gt(runs[0].experts.n_moved, 0);
    forget(runs, 2);
    forget(&alone, 1);
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE(experts_that_are_copied_move_as_well),
    TEST_CASE(replicas_return_the_logits_and_tokens_of_one),
    TEST_CASE(experts_that_move_return_the_logits_and_tokens_of_one),
    TEST_CASE(experts_that_move_give_the_same_bits_in_every_run),
    TEST_CASE(one_rank_has_the_bits_of_none_under_eplb),
    TEST_CASE(ranks_without_experts_compute_none),
    TEST_CASE(replicas_change_no_bit_with_the_batch),
    TEST_CASE(one_expert_for_all_tokens_is_shared_by_the_ranks_that_have_it),
    TEST_CASES_END};
