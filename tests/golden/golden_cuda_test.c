/* tests/golden/golden_cuda_test.c - the whole model with its products on a GPU, over the tests' emulator or a real one
 * (then it is skipped where there is none), against the reference ops. */
#include "kernels/dev_cuda.h"
#include "tests/golden/rank_run.h"
#include "tests/test_main.h"

#include <string.h>

/* Sums of products differ in their order and, of bf16 weights, in the 16 digits that are kept of an input. */
static const float TOLERANCE = 1e-4f;

static err_t open_cuda(const dev_config *config, dev **out, err_info *info)
{
    dev_config cuda = *config;
    cuda.kind = DEV_CUDA;
    cuda.gpu_memory_share = 0.9f;
    return dev_open(&cuda, out, info);
}

static void check_fixture(int fixture, const char *const *settings)
{
    golden_setup setup = setup_of(fixture, settings);
    setup.isa = "ref";
    rank_run host = run_alone(&setup, true);
    setup.open_dev = open_cuda;
    rank_run cuda = run_alone(&setup, true), again = run_alone(&setup, true);
    check_close(&host.out, &cuda.out, TOLERANCE);
    check_same_bits(&cuda.out, &again.out);
    forget(&host, 1);
    forget(&cuda, 1);
    forget(&again, 1);
}

START_TEST(a_gpu_gives_the_logits_and_tokens_of_the_reference)
{
    for (int f = 0; f < N_FIXTURES; f++)
        check_fixture(f, NULL);
}
END_TEST

/* A prompt alone, whole or cut, and in a crowd: the same bits. */
START_TEST(neither_the_batch_nor_a_cut_changes_a_bit)
{
    golden g;
    golden_setup setup = setup_of(1, NULL);
    setup.open_dev = open_cuda;
    golden_open(&setup, &g);
    for (uint32_t p = 0; p < g.n_prompts; p++) {
        track whole, cut;
        track_open(&g, p, &whole);
        track_open(&g, p, &cut);
        track_run_prompt(&whole, GOLDEN_STEP_TOKENS_MAX);
        track_run_prompt(&cut, 5);
        for (uint32_t t = 0; t < whole.n_prompt; t++)
            ck_assert_mem_eq(track_logits(&whole, t), track_logits(&cut, t),
                             g.n_vocab * sizeof(float));
        track_close(&whole);
        track_close(&cut);
    }
    golden_close(&g);
}
END_TEST

START_TEST(ranks_that_share_a_gpu_give_the_logits_of_one)
{
    enum { N_RANKS = 3 };
    rank_run runs[N_RANKS];
    golden_setup setup = setup_of(0, NULL);
    setup.open_dev = open_cuda;
    rank_run alone = run_alone(&setup, true);
    run_ranks(&setup, true, N_RANKS, runs);
    for (int r = 0; r < N_RANKS; r++)
        check_close(&alone.out, &runs[r].out, TOLERANCE);
    forget(&alone, 1);
    forget(runs, N_RANKS);
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE_SECONDS(a_gpu_gives_the_logits_and_tokens_of_the_reference, 900),
    TEST_CASE_SECONDS(neither_the_batch_nor_a_cut_changes_a_bit, 900),
    TEST_CASE_SECONDS(ranks_that_share_a_gpu_give_the_logits_of_one, 900),
    TEST_CASES_END,
};
