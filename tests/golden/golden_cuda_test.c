/* tests/golden/golden_cuda_test.c - the whole model with its products on a GPU, over the tests' emulator or a real one
 * (then it is skipped where there is none), against the reference ops. */
#include "kernels/dev_cuda.h"
#include "tests/golden/rank_run.h"
#include "tests/test_main.h"

#include <math.h>
#include <string.h>

/* Sums of products differ in their order and, of bf16 weights, in the 16 digits that are kept of an input. */
static const float TOLERANCE = 1e-4f;

static err_t open_cuda(const dev_config *config, dev **out, err_info *info)
{
    dev_config cuda = *config;
    cuda.kind = DEV_CUDA;
    cuda.gpu_memory_share = 0.9f;
    cuda.gpu_graphs = true;
    return dev_open(&cuda, out, info);
}

enum { N_GREEDY = 2 };

static golden open_golden(int fixture, err_t (*open_dev)(const dev_config *, dev **, err_info *))
{
    golden g;
    golden_setup setup = setup_of(fixture, NULL);
    setup.isa = "ref";
    setup.open_dev = open_dev;
    golden_open(&setup, &g);
    return g;
}

/* The prompt in chunks, and a few tokens behind it, one by one. */
static void run(golden *g, uint32_t prompt, uint32_t chunk, track *out)
{
    track_open(g, prompt, out);
    track_run_prompt(out, chunk);
    for (int i = 0; i < N_GREEDY; i++) {
        track_add_greedy(out);
        golden_step((track *const[]){out}, &(uint32_t){1}, 1);
    }
}

static void check_close_to(const track *host, const track *cuda)
{
    ck_assert_mem_eq(host->tokens, cuda->tokens, host->n_done * sizeof *host->tokens);
    for (uint32_t t = 0; t < host->n_done; t++) {
        const float *x = track_logits(host, t), *y = track_logits(cuda, t);
        float largest = 0;
        for (uint32_t i = 0; i < host->g->n_vocab; i++)
            largest = fmaxf(largest, fabsf(x[i]));
        for (uint32_t i = 0; i < host->g->n_vocab; i++)
            ck_assert_msg(fabsf(x[i] - y[i]) <= TOLERANCE * largest,
                          "position %u, token %u: %.8g is not %.8g", t, i, (double)y[i],
                          (double)x[i]);
    }
}

/* The shortest: the emulator runs one thread after the other. */
static uint32_t pick_prompt(const golden *g)
{
    uint32_t best = 0, n_best = UINT32_MAX;
    for (uint32_t p = 0; p < g->n_prompts; p++) {
        uint32_t n;
        (void)golden_ids(g, p, "prompt", &n);
        if (n >= n_best || n < 8) continue;
        best = p;
        n_best = n;
    }
    return best;
}

START_TEST(a_gpu_gives_the_logits_and_tokens_of_the_reference)
{
    for (int f = 0; f < N_FIXTURES; f++) {
        golden host = open_golden(f, NULL), cuda = open_golden(f, open_cuda);
        track expected, whole;
        const uint32_t prompt = pick_prompt(&host);
        run(&host, prompt, GOLDEN_STEP_TOKENS_MAX, &expected);
        run(&cuda, prompt, GOLDEN_STEP_TOKENS_MAX, &whole);
        check_close_to(&expected, &whole);
        track_close(&expected);
        track_close(&whole);
        golden_close(&host);
        golden_close(&cuda);
    }
}
END_TEST

START_TEST(a_cut_of_the_prompt_changes_no_bit)
{
    golden cuda = open_golden(1, open_cuda);
    const uint32_t prompt = pick_prompt(&cuda);
    track whole, cut;
    run(&cuda, prompt, GOLDEN_STEP_TOKENS_MAX, &whole);
    run(&cuda, prompt, 7, &cut);
    ck_assert_mem_eq(whole.logits, cut.logits,
                     (size_t)whole.n_done * cuda.n_vocab * sizeof *whole.logits);
    track_close(&whole);
    track_close(&cut);
    golden_close(&cuda);
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE_SECONDS(a_gpu_gives_the_logits_and_tokens_of_the_reference, 900),
    TEST_CASE_SECONDS(a_cut_of_the_prompt_changes_no_bit, 900),
    TEST_CASES_END,
};
