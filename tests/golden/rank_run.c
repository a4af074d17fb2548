/* tests/golden/rank_run.c - see rank_run.h. */
#include "tests/golden/rank_run.h"

#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

const char *const fixtures[N_FIXTURES] = {
    "mixtral-base-f32",    "mixtral-gqa-bf16", "mixtral-window-f16", "mixtral-tied-bf16",
    "mixtral-sharded-f16", "mixtral-odd-f32",  "mixtral-fp8-block",  "mixtral-fp8-tensor"};
enum { TIMEOUT_MS = 60000 };

static void keep(record *out, const track *t)
{
    const size_t n = out->n_rows + t->n_done, n_vocab = t->g->n_vocab;
    out->logits = realloc(out->logits, n * n_vocab * sizeof *out->logits);
    out->tokens = realloc(out->tokens, n * sizeof *out->tokens);
    ck_assert_ptr_nonnull(out->logits);
    ck_assert_ptr_nonnull(out->tokens);
    memcpy(out->logits + out->n_rows * n_vocab, t->logits,
           t->n_done * n_vocab * sizeof *out->logits);
    for (size_t i = 0; i < t->n_cached * n_vocab; i++)
        out->logits[out->n_rows * n_vocab + i] = NAN;
    out->n_cached += t->n_cached;
    memcpy(out->tokens + out->n_rows, t->tokens, t->n_done * sizeof *out->tokens);
    out->n_rows = n;
    out->n_vocab = n_vocab;
}

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

/* Of one matrix of an expert, with its scales. */
static size_t coded_bytes(const model_config *c, uint32_t rows, uint32_t cols)
{
    const quantisation *const q = &c->quantisation;
    if (q->method == QUANTISATION_NONE) return (size_t)rows * cols * dtype_bytes(c->stored_type);
    const size_t n_scales = q->block_rows == 0 ? 1
                                               : (size_t)((rows - 1) / q->block_rows + 1) *
                                                     ((cols - 1) / q->block_cols + 1);
    return (size_t)rows * cols + n_scales * sizeof(float);
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
    const model_config *const c = model_get_config(g.m);
    run->n_experts = c->n_experts;
    run->expert_bytes = c->n_layers * (2 * coded_bytes(c, c->d_ffn, c->d_model) +
                                       coded_bytes(c, c->d_model, c->d_ffn));
    run->weight_bytes = model_weight_bytes(g.m);
    model_expert_stats(g.m, &run->experts);
    ck_assert_uint_le(run->experts.n_ranks, RANKS_MAX);
    memcpy(run->rank_choices, run->experts.rank_choices,
           run->experts.n_ranks * sizeof *run->rank_choices);
    run->experts.rank_choices = NULL; /* ends with the model */
    golden_close(&g);
    return NULL;
}

rank_run run_alone(const golden_setup *setup, bool is_short)
{
    rank_run run = {.setup = *setup, .is_short = is_short};
    (void)run_rank(&run);
    return run;
}

void run_ranks(const golden_setup *setup, bool is_short, uint32_t n, rank_run *runs)
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

void forget(rank_run *runs, uint32_t n)
{
    for (uint32_t r = 0; r < n; r++) {
        free(runs[r].out.logits);
        free(runs[r].out.tokens);
    }
}

void check_same_bits(const record *a, const record *b)
{
    ck_assert_uint_eq(a->n_rows, b->n_rows);
    ck_assert(memcmp(a->tokens, b->tokens, a->n_rows * sizeof *a->tokens) == 0);
    ck_assert(memcmp(a->logits, b->logits, a->n_rows * a->n_vocab * sizeof *a->logits) == 0);
}

void check_close(const record *a, const record *b, float tolerance)
{
    ck_assert_uint_eq(a->n_rows, b->n_rows);
    ck_assert(memcmp(a->tokens, b->tokens, a->n_rows * sizeof *a->tokens) == 0);
    for (size_t row = 0; row < a->n_rows; row++) {
        const float *x = a->logits + row * a->n_vocab, *y = b->logits + row * b->n_vocab;
        float largest = 0;
        if (isnan(y[0])) continue;
        for (size_t i = 0; i < a->n_vocab; i++)
            largest = fmaxf(largest, fabsf(x[i]));
        for (size_t i = 0; i < a->n_vocab; i++)
            ck_assert_msg(fabsf(x[i] - y[i]) <= tolerance * largest,
                          "row %zu, token %zu: %.8g is not %.8g", row, i, (double)y[i],
                          (double)x[i]);
    }
}

golden_setup setup_of(int fixture, const char *const *settings)
{
    return (golden_setup){.fixture = fixtures[fixture],
                          .isa = "auto",
                          .n_threads = 1,
                          .cache_type = KV_DTYPE_F32,
                          .small_pages = true,
                          .settings = settings};
}
