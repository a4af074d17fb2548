/* tests/golden/golden_ranks_test.c - the whole model over several ranks, which are threads here.
 *
 * Against the model alone: logits to rounding, greedy tokens exactly. Among ranks, and from run to run,
 * to the last bit. What the model alone returns is compared with transformers in golden_test.c. */
#include "tests/golden/golden_run.h"
#include "tests/test_main.h"

#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

static const char *const fixtures[] = {"mixtral-base-f32",    "mixtral-gqa-bf16",
                                       "mixtral-window-f16",  "mixtral-tied-bf16",
                                       "mixtral-sharded-f16", "mixtral-odd-f32"};
enum { N_FIXTURES = sizeof fixtures / sizeof fixtures[0], RANKS_MAX = 8, TIMEOUT_MS = 60000 };

/* What a script computed: one sequence after the other, in the order of positions. */
typedef struct record {
    float *logits;    /* [n_rows][n_vocab] */
    uint32_t *tokens; /* [n_rows]: at the position, chosen ones too */
    size_t n_rows, n_vocab;
} record;

typedef struct rank_run {
    golden_setup setup;
    bool is_short; /* leaves out prompts by themselves */
    record out;
    size_t weight_bytes;
    pthread_t thread;
} rank_run;

static void keep(record *out, const track *t)
{
    const size_t n = out->n_rows + t->n_done, n_vocab = t->g->n_vocab;
    out->logits = realloc(out->logits, n * n_vocab * sizeof *out->logits);
    out->tokens = realloc(out->tokens, n * sizeof *out->tokens);
    ck_assert_ptr_nonnull(out->logits);
    ck_assert_ptr_nonnull(out->tokens);
    memcpy(out->logits + out->n_rows * n_vocab, t->logits,
           t->n_done * n_vocab * sizeof *out->logits);
    memcpy(out->tokens + out->n_rows, t->tokens, t->n_done * sizeof *out->tokens);
    out->n_rows = n;
    out->n_vocab = n_vocab;
}

/* All prompts at once, each in chunks of its own, and one of a single token; 64 tokens of each are chosen. */
static void run_together(golden *g, record *out)
{
    track tracks[GOLDEN_PROMPTS_MAX], *pointers[GOLDEN_PROMPTS_MAX];
    const uint32_t n = g->n_prompts < GOLDEN_PROMPTS_MAX ? g->n_prompts + 1 : g->n_prompts;
    bool running = true;
    for (uint32_t i = 0; i < n; i++) {
        track_open(g, i % g->n_prompts, &tracks[i]);
        pointers[i] = &tracks[i];
    }
    tracks[n - 1].n_prompt = tracks[n - 1].n_tokens = 1;
    while (running) {
        uint32_t n_tokens[GOLDEN_PROMPTS_MAX] = {0};
        running = false;
        for (uint32_t i = 0; i < n; i++) {
            const track *const t = &tracks[i];
            const bool is_finished = t->n_tokens == t->n_prompt + GOLDEN_GREEDY_TOKENS;
            const uint32_t rest = is_finished ? 0 : t->n_tokens - t->n_done;
            n_tokens[i] = rest < 5 + 6 * i ? rest : 5 + 6 * i;
            running = running || n_tokens[i] > 0;
        }
        if (running) golden_step(pointers, n_tokens, n);
        for (uint32_t i = 0; i < n; i++) {
            if (n_tokens[i] > 0 && tracks[i].n_done == tracks[i].n_tokens)
                track_add_greedy(&tracks[i]);
        }
    }
    ck_assert(kv_cache_is_sane(g->cache));
    for (uint32_t i = 0; i < n; i++) {
        keep(out, &tracks[i]);
        track_close(&tracks[i]);
    }
}

static void *run_rank(void *ctx)
{
    rank_run *run = ctx;
    golden g;
    golden_open(&run->setup, &g);
    run_together(&g, &run->out);
    for (uint32_t p = 0; p < g.n_prompts && !run->is_short; p++) {
        track t;
        track_open(&g, p, &t);
        track_run_prompt(&t, GOLDEN_STEP_TOKENS_MAX);
        keep(&run->out, &t);
        track_close(&t);
    }
    run->weight_bytes = model_weight_bytes(g.m);
    golden_close(&g);
    return NULL;
}

static rank_run run_alone(const golden_setup *setup, bool is_short)
{
    rank_run run = {.setup = *setup, .is_short = is_short};
    (void)run_rank(&run);
    return run;
}

static void run_ranks(const golden_setup *setup, bool is_short, uint32_t n, rank_run *runs)
{
    comm *comms[RANKS_MAX];
    ck_assert_int_eq(comm_open_local(n, TIMEOUT_MS, comms, NULL), ERR_OK);
    for (uint32_t r = 0; r < n; r++) {
        runs[r] = (rank_run){.setup = *setup, .is_short = is_short};
        runs[r].setup.comm = comms[r];
        ck_assert_int_eq(pthread_create(&runs[r].thread, NULL, run_rank, &runs[r]), 0);
    }
    for (uint32_t r = 0; r < n; r++) {
        ck_assert_int_eq(pthread_join(runs[r].thread, NULL), 0);
        ck_assert_int_eq(comm_status(comms[r], NULL), ERR_OK);
    }
    for (uint32_t r = 0; r < n; r++)
        comm_close(comms[r]);
}

static void forget(rank_run *runs, uint32_t n)
{
    for (uint32_t r = 0; r < n; r++) {
        free(runs[r].out.logits);
        free(runs[r].out.tokens);
    }
}

static void check_same_bits(const record *a, const record *b)
{
    ck_assert_uint_eq(a->n_rows, b->n_rows);
    ck_assert(memcmp(a->tokens, b->tokens, a->n_rows * sizeof *a->tokens) == 0);
    ck_assert(memcmp(a->logits, b->logits, a->n_rows * a->n_vocab * sizeof *a->logits) == 0);
}

/* Tokens exactly, logits within `tolerance` of the row's largest. */
static void check_close(const record *a, const record *b, float tolerance)
{
    ck_assert_uint_eq(a->n_rows, b->n_rows);
    ck_assert(memcmp(a->tokens, b->tokens, a->n_rows * sizeof *a->tokens) == 0);
    for (size_t row = 0; row < a->n_rows; row++) {
        const float *x = a->logits + row * a->n_vocab, *y = b->logits + row * b->n_vocab;
        float largest = 0;
        for (size_t i = 0; i < a->n_vocab; i++)
            largest = fmaxf(largest, fabsf(x[i]));
        for (size_t i = 0; i < a->n_vocab; i++)
            ck_assert_msg(fabsf(x[i] - y[i]) <= tolerance * largest,
                          "row %zu, token %zu: %.8g is not %.8g", row, i, (double)y[i],
                          (double)x[i]);
    }
}

static golden_setup setup_of(int fixture, const char *const *settings)
{
    return (golden_setup){.fixture = fixtures[fixture],
                          .isa = "auto",
                          .n_threads = 1,
                          .cache_type = KV_DTYPE_F32,
                          .small_pages = true,
                          .settings = settings};
}

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
    static const char *const *const settings[] = {none, streaming, knorm};
    for (int i = 0; i < 3; i++) {
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
    TEST_CASE(one_rank_has_the_bits_of_none),
    TEST_CASE(ranks_have_the_same_bits_in_every_run),
    TEST_CASE(codecs_and_budgets_run_over_ranks),
    TEST_CASES_END};
