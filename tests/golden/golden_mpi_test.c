/* tests/golden/golden_mpi_test.c - the whole model over the ranks of mpirun: what golden_ranks_test.c asks of threads is
 * asked of processes. golden_mpi.sh runs it; every rank is one run of this program. */
#include "tests/golden/rank_run.h"
#include "tests/test_main.h"

#include <stdio.h>

static const char *const by_block[] = {"kv-placement", "block", NULL};
static const char *const by_expert[] = {"kv-placement", "expert", "kv-shards", "8", NULL};
static const char *const by_hash[] = {"kv-placement", "hash", "kv-shards", "8", NULL};

/* Every rank computes the model alone as well, and compares; twice over ranks gives the same bits. */
static void check_fixture(int fixture, comm *c)
{
    static const char *const *const placements[] = {by_block, by_expert, by_hash};
    const golden_setup one = setup_of(fixture, by_block);
    rank_run alone = run_alone(&one, fixture > 0);
    for (int i = 0; i < 3; i++) {
        golden_setup setup = setup_of(fixture, placements[i]);
        setup.comm = c;
        rank_run first = run_alone(&setup, fixture > 0), again = run_alone(&setup, fixture > 0);
        check_close(&alone.out, &first.out, 1e-5f);
        check_same_bits(&first.out, &again.out);
        ck_assert_uint_lt(first.weight_bytes, alone.weight_bytes);
        forget(&first, 1);
        forget(&again, 1);
    }
    forget(&alone, 1);
}

START_TEST(processes_return_the_logits_and_tokens_of_one)
{
    comm *c = NULL;
    err_info info = {0};
    const comm_config config = {.timeout_ms = 120000, .fingerprint = 1};
    ck_assert_msg(comm_open(comm_find("mpi"), &config, &c, &info) == ERR_OK, "%s", info.message);
    ck_assert_uint_gt(comm_n_ranks(c), 1);
    for (int f = 0; f < N_FIXTURES; f++)
        check_fixture(f, c);
    ck_assert_int_eq(comm_status(c, NULL), ERR_OK);
    printf("rank %u of %u is done\n", comm_rank(c), comm_n_ranks(c));
    comm_close(c);
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE_SECONDS(processes_return_the_logits_and_tokens_of_one, 900),
    TEST_CASES_END,
};
