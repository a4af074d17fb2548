/* The whole model against numbers that transformers computed, and against itself.
 *
 * Against the reference: logits to rounding and greedy tokens exactly, for every instruction set, for
 * default and tiny cache pages, however the prompt is cut and whatever shares the batch. Against itself:
 * none of those, nor the prefix cache, may change a single bit. */
#include "tests/golden/golden_check.h"
#include "tests/test_main.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const uint32_t chunks[] = {GOLDEN_STEP_TOKENS_MAX, 1, 7, 64};
enum { N_CHUNKS = sizeof chunks / sizeof chunks[0] };

static const char *const fixtures[] = {
    "mixtral-base-f32",    "mixtral-gqa-bf16", "mixtral-window-f16", "mixtral-tied-bf16",
    "mixtral-sharded-f16", "mixtral-odd-f32",  "mixtral-fp8-block",  "mixtral-fp8-tensor"};
enum { N_FIXTURES = sizeof fixtures / sizeof fixtures[0] };

/* Runs `body` for every instruction set and both page layouts. */
static void for_each_setup(int fixture, kv_dtype type, bool prefix_caching, void (*body)(golden *g))
{
    for (const dev_ops *const *table = dev_cpu_tables(); *table != NULL; table++) {
        for (int small = 0; small < 2; small++) {
            golden g;
            golden_open(&(golden_setup){.fixture = fixtures[fixture],
                                        .isa = (*table)->name,
                                        .n_threads = 2,
                                        .cache_type = type,
                                        .small_pages = small == 1,
                                        .prefix_caching = prefix_caching},
                        &g);
            body(&g);
            golden_close(&g);
        }
    }
}

/* ---- against the reference ----------------------------------------------------------------------- */

static void run_alone(golden *g)
{
    for (uint32_t p = 0; p < g->n_prompts; p++) {
        for (size_t i = 0; i < N_CHUNKS; i++) {
            track t;
            track_open(g, p, &t);
            track_run_prompt(&t, chunks[i]);
            golden_check_prompt_logits(&t);
            for (int j = 0; i == 0 && j < GOLDEN_GREEDY_TOKENS; j++) {
                if (j > 0) golden_step(&(track *){&t}, &(uint32_t){1}, 1);
                track_add_greedy(&t);
            }
            if (i == 0) golden_check_greedy(&t);
            track_close(&t);
        }
    }
}

static void run_together(golden *g)
{
    track tracks[GOLDEN_PROMPTS_MAX];
    kv_stats stats;
    uint32_t n_shards_used = 0;
    for (uint32_t p = 0; p < g->n_prompts; p++)
        track_open(g, p, &tracks[p]);
    golden_run_crowd(tracks, g->n_prompts);
    kv_stats_read(g->cache, &stats);
    for (uint32_t s = 0; s < stats.n_shards; s++)
        n_shards_used += stats.shards[s].slots > 0;
    ck_assert(n_shards_used > 1 || stats.n_shards == 1 || stats.slots_live == 0);
    for (uint32_t p = 0; p < g->n_prompts; p++) {
        golden_check_prompt_logits(&tracks[p]);
        golden_check_greedy(&tracks[p]);
        track_close(&tracks[p]);
    }
}

START_TEST(prompts_alone_match_the_reference_whole_or_cut)
{
    for (int f = 0; f < N_FIXTURES; f++)
        for_each_setup(f, KV_DTYPE_F32, false, run_alone);
}
END_TEST

START_TEST(prompts_in_one_batch_match_the_reference)
{
    for (int f = 0; f < N_FIXTURES; f++)
        for_each_setup(f, KV_DTYPE_F32, false, run_together);
}
END_TEST

/* ---- against itself ------------------------------------------------------------------------------ */

static void compare_chunks(golden *g)
{
    for (uint32_t p = 0; p < g->n_prompts; p++) {
        float *const kept = golden_keep_whole(g, p);
        for (size_t i = 1; i < N_CHUNKS; i++) {
            char how[32];
            track t;
            track_open(g, p, &t);
            track_run_prompt(&t, chunks[i]);
            (void)snprintf(how, sizeof how, "in chunks of %u", chunks[i]);
            golden_check_same_bits(&t, kept, how);
            track_close(&t);
        }
        free(kept);
    }
}

static void compare_crowd(golden *g)
{
    float *kept[GOLDEN_PROMPTS_MAX];
    track tracks[GOLDEN_PROMPTS_MAX];
    for (uint32_t p = 0; p < g->n_prompts; p++)
        kept[p] = golden_keep_whole(g, p);
    for (uint32_t p = 0; p < g->n_prompts; p++)
        track_open(g, p, &tracks[p]);
    golden_run_crowd(tracks, g->n_prompts);
    for (uint32_t p = 0; p < g->n_prompts; p++) {
        golden_check_same_bits(&tracks[p], kept[p], "in a crowd");
        track_close(&tracks[p]);
        free(kept[p]);
    }
}

static void compare_prefix(golden *g)
{
    uint32_t n_hits = 0;
    for (uint32_t p = 0; p < g->n_prompts; p++) {
        float *const kept = golden_keep_whole(g, p);
        track t;
        track_open(g, p, &t);
        track_run_prompt(&t, 64);
        kv_seq_share_prompt(t.seq, t.tokens, t.n_prompt);
        for (int again = 0; again < 2; again++) {
            track_restart(&t);
            n_hits += t.n_cached > 0;
            track_run_prompt(&t, 7);
            golden_check_same_bits(&t, kept, "with a cached prefix");
        }
        track_close(&t);
        kv_cache_drop_prefixes(g->cache);
        free(kept);
    }
    ck_assert_msg(n_hits > 0, "no prompt ever found its prefix");
}

START_TEST(cutting_a_prompt_changes_no_bit)
{
    for (int f = 0; f < N_FIXTURES; f++) {
        for_each_setup(f, KV_DTYPE_F32, false, compare_chunks);
        for_each_setup(f, KV_DTYPE_BF16, false, compare_chunks);
    }
}
END_TEST

START_TEST(neighbours_in_the_batch_change_no_bit)
{
    for (int f = 0; f < N_FIXTURES; f++) {
        for_each_setup(f, KV_DTYPE_F32, false, compare_crowd);
        for_each_setup(f, KV_DTYPE_BF16, false, compare_crowd);
    }
}
END_TEST

START_TEST(a_cached_prefix_changes_no_bit)
{
    for (int f = 0; f < N_FIXTURES; f++) {
        for_each_setup(f, KV_DTYPE_F32, true, compare_prefix);
        for_each_setup(f, KV_DTYPE_BF16, true, compare_prefix);
    }
}
END_TEST

static void run_threads(const char *fixture, const char *isa, uint32_t n_threads, track *t,
                        golden *g)
{
    golden_open(
        &(golden_setup){
            .fixture = fixture, .isa = isa, .n_threads = n_threads, .cache_type = KV_DTYPE_F32},
        g);
    track_open(g, g->n_prompts - 1, t);
    track_run_prompt(t, 64);
}

START_TEST(the_number_of_threads_changes_no_bit)
{
    for (const dev_ops *const *table = dev_cpu_tables(); *table != NULL; table++) {
        golden one, many;
        track a, b;
        run_threads("mixtral-gqa-bf16", (*table)->name, 1, &a, &one);
        run_threads("mixtral-gqa-bf16", (*table)->name, 5, &b, &many);
        golden_check_same_bits(&b, a.logits, "with five threads");
        track_close(&a);
        track_close(&b);
        golden_close(&one);
        golden_close(&many);
    }
}
END_TEST

/* ---- routing ------------------------------------------------------------------------------------- */

/* The prompt in chunks, then 64 greedy tokens in decode steps. */
static void run_greedy(track *t, uint32_t chunk)
{
    track_run_prompt(t, chunk);
    for (track_add_greedy(t); t->n_tokens < t->n_prompt + GOLDEN_GREEDY_TOKENS; track_add_greedy(t))
        golden_step(&t, &(uint32_t){1}, 1);
}

static void check_same_decode(const track *a, const track *b, const char *how)
{
    const size_t n_vocab = a->g->n_vocab;
    ck_assert(a->n_done == b->n_done);
    for (uint32_t t = a->n_prompt - 1; t < a->n_done; t++)
        ck_assert_msg(memcmp(track_logits(a, t), track_logits(b, t), n_vocab * sizeof(float)) == 0,
                      "prompt %u, position %u: %s differs", a->prompt, t, how);
}

/* Does a decode step of the longest prompt differ from the reference's last one? */
static bool is_lossy(const track *t)
{
    const float *const expected = golden_floats(t->g, t->prompt, "greedy_logits_last");
    float largest = 0, difference = 0;
    for (uint32_t i = 0; i < t->g->n_vocab; i++) {
        largest = fmaxf(largest, fabsf(expected[i]));
        difference = fmaxf(difference, fabsf(expected[i] - track_logits(t, t->n_done - 1)[i]));
    }
    return difference > 1e-3f * largest;
}

/* Decode steps that read only what routing chooses, behind prompts cut in every way, alone and not. */
static void compare_routed(golden *g, bool must_be_lossy)
{
    track kept[GOLDEN_PROMPTS_MAX], crowd[GOLDEN_PROMPTS_MAX];
    bool has_loss = false;
    for (uint32_t p = 0; p < g->n_prompts; p++) {
        track_open(g, p, &kept[p]);
        run_greedy(&kept[p], GOLDEN_STEP_TOKENS_MAX);
        has_loss = has_loss || is_lossy(&kept[p]);
        kv_seq_close(kept[p].seq, NULL);
    }
    ck_assert(has_loss == must_be_lossy);
    for (uint32_t p = 0; p < g->n_prompts; p++) {
        for (size_t i = 1; i < N_CHUNKS; i++) {
            track t;
            track_open(g, p, &t);
            run_greedy(&t, chunks[i]);
            check_same_decode(&t, &kept[p], "another cut of the prompt");
            track_close(&t);
        }
        track_open(g, p, &crowd[p]);
    }
    golden_run_crowd(crowd, g->n_prompts);
    for (uint32_t p = 0; p < g->n_prompts; p++) {
        check_same_decode(&crowd[p], &kept[p], "a crowd");
        track_close(&crowd[p]);
        free(kept[p].tokens);
        free(kept[p].logits);
    }
}

START_TEST(routing_chooses_the_same_however_a_prompt_is_cut)
{
    static const char *const settings[][5] = {
        {"kv-routing", "topk", "kv-routing-k", "0.2", NULL},
        {"kv-routing", "adaptive", "kv-routing-tau", "0.5", NULL},
        {"kv-routing", "certified", "kv-routing-eps", "0.4", NULL},
        {"kv-routing", "hierarchical", "kv-routing-k", "0.1", NULL},
        {"kv-routing", "topk", "kv-routing-k", "1", NULL},
        {"kv-routing", "topk", "kv-routing-k", "1000", NULL},
        {"kv-routing", "certified", "kv-routing-eps", "1e-300", NULL}};
    enum { N_LOSSY = 4, N_SETTINGS = sizeof settings / sizeof settings[0] };
    for (int i = 0; i < N_SETTINGS; i++) {
        golden g;
        golden_open(&(golden_setup){.fixture = "mixtral-gqa-bf16",
                                    .isa = "auto",
                                    .n_threads = 2,
                                    .cache_type = KV_DTYPE_F32,
                                    .small_pages = true,
                                    .settings = settings[i]},
                    &g);
        compare_routed(&g, i < N_LOSSY);
        golden_close(&g);
    }
}
END_TEST

/* ---- on several shards --------------------------------------------------------------------------- */

/* Against the reference, since another placement is another order of sums; greedy tokens exactly. */
START_TEST(entries_on_several_shards_match_the_reference)
{
    static const char *const settings[][7] = {
        {"kv-shards", "4", "kv-placement", "expert", NULL},
        {"kv-shards", "3", "kv-placement", "expert", "kv-eplb", "false", NULL},
        {"kv-shards", "4", "kv-placement", "hash", NULL},
        {"kv-shards", "4", "kv-placement", "block", NULL}};
    for (size_t i = 0; i < sizeof settings / sizeof settings[0]; i++) {
        for (int f = 0; f < N_FIXTURES; f++) {
            golden g;
            golden_open(&(golden_setup){.fixture = fixtures[f],
                                        .isa = "auto",
                                        .n_threads = 2,
                                        .cache_type = KV_DTYPE_F32,
                                        .small_pages = true,
                                        .prefix_caching = true,
                                        .settings = settings[i]},
                        &g);
            run_together(&g);
            golden_close(&g);
        }
    }
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE_SECONDS(prompts_alone_match_the_reference_whole_or_cut, 280),
    TEST_CASE_SECONDS(prompts_in_one_batch_match_the_reference, 280),
    TEST_CASE_SECONDS(cutting_a_prompt_changes_no_bit, 280),
    TEST_CASE_SECONDS(neighbours_in_the_batch_change_no_bit, 280),
    TEST_CASE_SECONDS(a_cached_prefix_changes_no_bit, 280),
    TEST_CASE(the_number_of_threads_changes_no_bit),
    TEST_CASE_SECONDS(routing_chooses_the_same_however_a_prompt_is_cut, 280),
    TEST_CASE_SECONDS(entries_on_several_shards_match_the_reference, 280),
    TEST_CASES_END,
};
