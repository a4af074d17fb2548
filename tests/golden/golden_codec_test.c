/* The whole model under lossy page codecs, and under policies that evict: what is encoded and what stays
 * depends on positions alone, so neither the cut of the prompt, nor the batch, nor computing again what
 * was decoded changes a bit. How far they are from exact is measured on text by `pikv eval`, not here. */
#include "tests/golden/golden_run.h"
#include "tests/test_main.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const fixtures[] = {"mixtral-base-f32", "mixtral-gqa-bf16",
                                       "mixtral-window-f16"};
static const char *const codecs[] = {"fp8", "int8", "int4", "int2", "prune", "svd", "pikv"};
enum { N_CODECS = sizeof codecs / sizeof codecs[0] };

/* Codecs that need bases, and the fixture that has some. */
static const char *const codecs_with_bases[] = {"lora", "lora_plus"};
static const char *const fixture_with_bases = "mixtral-gqa-bf16";

static void run_setup(const char *isa, const char *fixture, const char *codec,
                      void (*body)(golden *g))
{
    golden g;
    golden_open(&(golden_setup){.fixture = fixture,
                                .isa = isa,
                                .n_threads = 2,
                                .cache_type = KV_DTYPE_BF16,
                                .compression = codec},
                &g);
    body(&g);
    golden_close(&g);
}

static void for_each_setup(void (*body)(golden *g))
{
    for (const dev_ops *const *table = dev_cpu_tables(); *table != NULL; table++) {
        for (size_t i = 0; i < 3 * N_CODECS; i++)
            run_setup((*table)->name, fixtures[i / N_CODECS], codecs[i % N_CODECS], body);
        for (size_t i = 0; i < 2; i++)
            run_setup((*table)->name, fixture_with_bases, codecs_with_bases[i], body);
        run_setup((*table)->name, "mixtral-fp8-block", "int8", body);
    }
}

static void for_each_policy(void (*body)(golden *g))
{
    static const char *const policies[] = {"h2o",  "snapkv+pyramid", "adakv", "tova",
                                           "none", "none",           "h2o"};
    static const char *const rewrites[] = {"none", "merge", "rerotate", "merge,rerotate"};
    static const char *const selections[] = {"", "", "", "", "chunkkv,", "pyramidkv,", "fastv,"};
    for (size_t i = 0; i < 3 * 7; i++) {
        char compression[32];
        snprintf(compression, sizeof compression, "%s%s", selections[i % 7],
                 i % 3 == 0 ? "int8" : "none");
        golden g;
        golden_open(
            &(golden_setup){.fixture = fixtures[i / 7],
                            .isa = "auto",
                            .n_threads = 2,
                            .cache_type = KV_DTYPE_BF16,
                            .compression = compression,
                            .settings =
                                (const char *const[]){"kv-scheduling", policies[i % 7], "kv-budget",
                                                      "0.4", "kv-rewrite", rewrites[i % 4], NULL}},
            &g);
        body(&g);
        kv_stats stats;
        kv_stats_read(g.cache, &stats);
        ck_assert_uint_gt(stats.entries_evicted, 0);
        ck_assert_int_eq(stats.entries_rewritten > 0, i % 4 > 0);
        golden_close(&g);
    }
}

/* Everything greedy, one token at a time behind the prompt. */
static void run_to_end(track *t)
{
    track_run_prompt(t, GOLDEN_STEP_TOKENS_MAX);
    track_add_greedy(t);
    while (t->n_tokens < t->n_prompt + GOLDEN_GREEDY_TOKENS) {
        golden_step(&t, &(uint32_t){1}, 1);
        track_add_greedy(t);
    }
}

static void check_same(const track *a, const track *b, const char *how)
{
    const size_t n = a->g->n_vocab;
    ck_assert_uint_eq(a->n_done, b->n_done);
    for (uint32_t p = 0; p < a->n_done; p++)
        ck_assert_msg(memcmp(track_logits(a, p), track_logits(b, p), n * sizeof(float)) == 0,
                      "%s: prompt %u of %u tokens, position %u: %s differs", a->g->d->ops->name,
                      a->prompt, a->n_prompt, p, how);
}

/* The same tokens, known from the beginning, `chunk` at a time. */
static void run_again(golden *g, const track *done, uint32_t chunk)
{
    track t;
    track_open(g, done->prompt, &t);
    memcpy(t.tokens, done->tokens, done->n_tokens * sizeof *t.tokens);
    t.n_tokens = done->n_tokens;
    while (t.n_done < done->n_done) {
        const uint32_t rest = done->n_done - t.n_done;
        golden_step(&(track *){&t}, &(uint32_t){rest < chunk ? rest : chunk}, 1);
    }
    check_same(&t, done, "computed again");
    track_close(&t);
}

static void compare_cuts(golden *g)
{
    for (uint32_t p = 0; p < g->n_prompts; p++) {
        track t;
        track_open(g, p, &t);
        run_to_end(&t);
        run_again(g, &t, 7);
        run_again(g, &t, GOLDEN_STEP_TOKENS_MAX);
        track_close(&t);
    }
    kv_stats stats;
    kv_stats_read(g->cache, &stats);
    ck_assert_uint_gt(stats.pages_encoded + stats.entries_evicted, 0);
}

START_TEST(no_cut_changes_a_bit_even_of_what_was_decoded)
{
    for_each_setup(compare_cuts);
    for_each_policy(compare_cuts);
}
END_TEST

/* All prompts beside each other, each at its own pace. */
static void compare_crowd(golden *g)
{
    track alone[GOLDEN_PROMPTS_MAX], crowd[GOLDEN_PROMPTS_MAX], *pointers[GOLDEN_PROMPTS_MAX];
    for (uint32_t p = 0; p < g->n_prompts; p++) {
        track_open(g, p, &alone[p]);
        run_to_end(&alone[p]);
        kv_seq_close(alone[p].seq, NULL);
    }
    for (uint32_t p = 0; p < g->n_prompts; p++) {
        pointers[p] = &crowd[p];
        track_open(g, p, &crowd[p]);
        memcpy(crowd[p].tokens, alone[p].tokens, alone[p].n_tokens * sizeof *crowd[p].tokens);
        crowd[p].n_tokens = alone[p].n_tokens;
    }
    for (bool is_running = true; is_running;) {
        uint32_t n_tokens[GOLDEN_PROMPTS_MAX];
        is_running = false;
        for (uint32_t p = 0; p < g->n_prompts; p++) {
            const uint32_t rest = alone[p].n_done - crowd[p].n_done;
            n_tokens[p] = rest < 3 + 5 * p ? rest : 3 + 5 * p;
            is_running = is_running || rest > 0;
        }
        if (is_running) golden_step(pointers, n_tokens, g->n_prompts);
    }
    for (uint32_t p = 0; p < g->n_prompts; p++) {
        check_same(&crowd[p], &alone[p], "in a crowd");
        track_close(&crowd[p]);
        free(alone[p].tokens);
        free(alone[p].logits);
    }
}

START_TEST(neighbours_in_the_batch_change_no_bit)
{
    for_each_setup(compare_crowd);
    for_each_policy(compare_crowd);
}
END_TEST

/* Before anything is encoded a codec makes no difference; afterwards int8 is near. */
START_TEST(raw_pages_are_exact_and_int8_is_near)
{
    golden g, exact;
    golden_setup setup = {.fixture = "mixtral-gqa-bf16",
                          .isa = "auto",
                          .n_threads = 2,
                          .cache_type = KV_DTYPE_BF16,
                          .compression = "int8"};
    golden_open(&setup, &g);
    setup.compression = "none";
    golden_open(&setup, &exact);
    track a, b;
    track_open(&g, g.n_prompts - 1, &a);
    track_open(&exact, g.n_prompts - 1, &b);
    track_run_prompt(&a, 16);
    track_run_prompt(&b, 16);
    ck_assert_uint_gt(a.n_prompt, 64);
    double worst = 0, largest = 0;
    for (uint32_t p = 0; p < a.n_prompt; p++) {
        const float *x = track_logits(&a, p), *y = track_logits(&b, p);
        if (p < 32) ck_assert_mem_eq(x, y, g.n_vocab * sizeof *x);
        for (uint32_t i = 0; i < g.n_vocab; i++) {
            worst = fmax(worst, fabs((double)x[i] - (double)y[i]));
            largest = fmax(largest, fabs((double)y[i]));
        }
    }
    ck_assert_double_gt(worst, 0);
    ck_assert_double_lt(worst, 0.05 * largest);
    track_close(&a);
    track_close(&b);
    golden_close(&g);
    golden_close(&exact);
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE_SECONDS(no_cut_changes_a_bit_even_of_what_was_decoded, 280),
    TEST_CASE_SECONDS(neighbours_in_the_batch_change_no_bit, 280),
    TEST_CASE(raw_pages_are_exact_and_int8_is_near),
    TEST_CASES_END,
};
