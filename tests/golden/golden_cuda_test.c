/* tests/golden/golden_cuda_test.c - the whole model with its products on a GPU, over the tests' emulator or a real one
 * (then it is skipped where there is none), against the reference ops. */
#include "kernels/dev_cuda.h"
#include "tests/golden/family_fixtures.h"
#include "tests/golden/rank_run.h"
#include "tests/test_main.h"

#include <math.h>
#include <stdlib.h>
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

static golden open_fixture(const char *fixture,
                           err_t (*open_dev)(const dev_config *, dev **, err_info *))
{
    golden g;
    golden_setup setup = setup_of(0, NULL);
    setup.fixture = fixture;
    setup.isa = "ref";
    setup.open_dev = open_dev;
    golden_open(&setup, &g);
    return g;
}

static golden open_golden(int fixture, err_t (*open_dev)(const dev_config *, dev **, err_info *))
{
    return open_fixture(fixtures[fixture], open_dev);
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

static void check_fixture(const char *fixture)
{
    golden host = open_fixture(fixture, NULL), cuda = open_fixture(fixture, open_cuda);
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

START_TEST(a_gpu_gives_the_logits_and_tokens_of_the_reference)
{
    for (int f = 0; f < N_FIXTURES; f++)
        check_fixture(fixtures[f]);
}
END_TEST

START_TEST(a_gpu_gives_those_of_every_family)
{
    for (int f = 0; f < N_FAMILY_FIXTURES; f++)
        check_fixture(family_fixtures[f]);
}
END_TEST

/* Pages are chosen by their bounds in both, which are far enough from each other here. */
static void check_choices(const char *const *settings)
{
    enum { N_STEPS = 4 };
    golden both[2];
    track runs[2];
    kv_stats stats[2];
    for (int i = 0; i < 2; i++) {
        golden_setup setup = setup_of(0, NULL);
        setup.isa = "ref";
        setup.open_dev = i == 0 ? NULL : open_cuda;
        setup.small_pages = true;
        setup.settings = settings;
        golden_open(&setup, &both[i]);
        track_open(&both[i], pick_prompt(&both[i]), &runs[i]);
        track_run_prompt(&runs[i], GOLDEN_STEP_TOKENS_MAX);
        for (int t = 0; t < N_STEPS; t++) {
            track_add_greedy(&runs[i]);
            golden_step((track *const[]){&runs[i]}, &(uint32_t){1}, 1);
        }
        kv_stats_read(both[i].cache, &stats[i]);
    }
    check_close_to(&runs[0], &runs[1]);
    ck_assert_uint_gt(stats[1].pages_open, stats[1].pages_read);
    ck_assert_uint_eq(stats[1].pages_open, stats[0].pages_open);
    ck_assert_uint_eq(stats[1].pages_read, stats[0].pages_read);
    ck_assert_double_gt(stats[0].certificate_sum, 0);
    ck_assert_double_eq_tol(stats[1].certificate_sum, stats[0].certificate_sum,
                            1e-4 * stats[0].certificate_sum);
    for (int i = 0; i < 2; i++) {
        track_close(&runs[i]);
        golden_close(&both[i]);
    }
}

START_TEST(a_gpu_chooses_the_pages_of_the_reference)
{
    check_choices((const char *const[]){"kv-routing", "topk", "kv-routing-k", "0.4", NULL});
    check_choices((const char *const[]){"kv-routing", "certified", "kv-routing-eps", "0.2", NULL});
}
END_TEST

enum { N_RANKS = 2 };

typedef struct gpu_rank {
    comm *comm;
    golden g;
    track t;
    pthread_t thread;
} gpu_rank;

static void *run_gpu_rank(void *ctx)
{
    gpu_rank *rank = ctx;
    golden_setup setup = setup_of(0, NULL);
    setup.isa = "ref";
    setup.open_dev = open_cuda;
    setup.small_pages = true;
    setup.comm = rank->comm;
    golden_open(&setup, &rank->g);
    run(&rank->g, pick_prompt(&rank->g), GOLDEN_STEP_TOKENS_MAX, &rank->t);
    return NULL;
}

static void *close_gpu_rank(void *ctx)
{
    gpu_rank *rank = ctx;
    track_close(&rank->t);
    golden_close(&rank->g);
    return NULL;
}

/* Logical ones, on one GPU: they attend, merge and deal there, and what they exchange passes through the host. */
START_TEST(ranks_on_a_gpu_give_the_logits_and_tokens_of_the_reference)
{
    comm *comms[N_RANKS];
    gpu_rank ranks[N_RANKS];
    golden host = open_golden(0, NULL);
    track expected;
    run(&host, pick_prompt(&host), GOLDEN_STEP_TOKENS_MAX, &expected);
    ck_assert_int_eq(comm_open_local(N_RANKS, 600000, comms, NULL), ERR_OK);
    for (int r = 0; r < N_RANKS; r++) {
        ranks[r] = (gpu_rank){.comm = comms[r]};
        ck_assert_int_eq(pthread_create(&ranks[r].thread, NULL, run_gpu_rank, &ranks[r]), 0);
    }
    for (int r = 0; r < N_RANKS; r++)
        ck_assert_int_eq(pthread_join(ranks[r].thread, NULL), 0);
    for (int r = 0; r < N_RANKS; r++) {
        ck_assert_int_eq(comm_status(comms[r], NULL), ERR_OK);
        check_close_to(&expected, &ranks[r].t);
        ck_assert_int_eq(pthread_create(&ranks[r].thread, NULL, close_gpu_rank, &ranks[r]), 0);
    }
    for (int r = 0; r < N_RANKS; r++) {
        ck_assert_int_eq(pthread_join(ranks[r].thread, NULL), 0);
        comm_close(comms[r]);
    }
    track_close(&expected);
    golden_close(&host);
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

enum { N_DRAWS = 6 };

/* The host's draw from the same logits. */
static void check_draw(const model_draw *draw, const float *logits, uint32_t n_vocab,
                       const sampler_result *got)
{
    sampler_result want;
    sampler_input in = draw->in;
    in.logits = malloc(n_vocab * sizeof *logits);
    in.scratch = malloc(sampler_scratch_bytes(n_vocab));
    ck_assert_ptr_nonnull(in.logits);
    ck_assert_ptr_nonnull(in.scratch);
    in.n_vocab = n_vocab;
    memcpy(in.logits, logits, n_vocab * sizeof *logits);
    sampler_run(draw->params, draw->state, &in, &want);
    ck_assert(!got->is_bad);
    ck_assert_uint_eq(got->token, want.token);
    ck_assert_uint_eq(got->n_top, want.n_top);
    for (uint32_t i = 0; i < want.n_top; i++) {
        ck_assert_uint_eq(got->top[i].token, want.top[i].token);
        ck_assert_float_eq_tol(got->top[i].logprob, want.top[i].logprob, 1e-5f);
    }
    ck_assert_float_eq_tol(got->logprob, want.logprob, 1e-5f);
    free(in.logits);
    free(in.scratch);
}

/* One row of the last step, drawn from in several ways, and once as it is. */
START_TEST(a_gpu_draws_from_its_own_logits)
{
    static const sampler_bias bias[] = {{3, 2.5f}, {9, -1}};
    static const uint32_t banned[] = {4, 8};
    golden cuda = open_golden(1, open_cuda);
    track t;
    run(&cuda, pick_prompt(&cuda), GOLDEN_STEP_TOKENS_MAX, &t);
    const float *logits = track_logits(&t, t.n_done - 1);
    sampler_params params[N_DRAWS];
    model_draw draws[N_DRAWS + 1] = {0};
    sampler_result results[N_DRAWS + 1];
    const uint32_t rows[N_DRAWS + 1] = {0};
    float *came = malloc((N_DRAWS + 1) * (size_t)cuda.n_vocab * sizeof *came);
    ck_assert_ptr_nonnull(came);
    for (uint32_t i = 0; i < N_DRAWS; i++) {
        params[i] = (sampler_params){.temperature = i == 0 ? 0.0f : 1.5f,
                                     .top_p = i % 2 == 0 ? 1.0f : 0.6f,
                                     .top_k = i % 3 == 0 ? 0 : 12,
                                     .repetition_penalty = 1,
                                     .bias = bias,
                                     .n_bias = i < 4 ? 2 : 0,
                                     .seed = 17 + i,
                                     .n_logprobs = (int32_t)(4 * i) - 1};
        draws[i] = (model_draw){.params = &params[i],
                                .in = {.position = i, .banned = banned, .n_banned = 2}};
    }
    model_sample(cuda.m, rows, N_DRAWS + 1, draws, came, results);
    ck_assert(model_status(cuda.m, NULL) == ERR_OK);
    for (uint32_t i = 0; i < N_DRAWS; i++) {
        ck_assert(draws[i].is_drawn);
        check_draw(&draws[i], logits, cuda.n_vocab, &results[i]);
    }
    ck_assert(!draws[N_DRAWS].is_drawn);
    ck_assert_mem_eq(came + (size_t)N_DRAWS * cuda.n_vocab, logits, cuda.n_vocab * sizeof *came);
    free(came);
    track_close(&t);
    golden_close(&cuda);
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE_SECONDS(a_gpu_gives_the_logits_and_tokens_of_the_reference, 900),
    TEST_CASE_SECONDS(a_gpu_gives_those_of_every_family, 900),
    TEST_CASE_SECONDS(a_gpu_chooses_the_pages_of_the_reference, 900),
    TEST_CASE_SECONDS(ranks_on_a_gpu_give_the_logits_and_tokens_of_the_reference, 900),
    TEST_CASE_SECONDS(a_cut_of_the_prompt_changes_no_bit, 900),
    TEST_CASE_SECONDS(a_gpu_draws_from_its_own_logits, 900),
    TEST_CASES_END,
};
