/* tests/service/test_engine_tiers.c - an engine whose cache spills to host memory and to a disk: the same
 * tokens, also when the disk fails while it runs. */
#include "tests/kvcache/bad_disk.h"
#include "tests/service/engine_rig.h"
#include "tests/test_main.h"

#include <errno.h>
#include <string.h>

enum { N_GUESTS = 10, N_OUTPUT = 150 };

typedef struct crowd {
    wish wishes[N_GUESTS];
    uint32_t expected[N_GUESTS][N_OUTPUT];
} crowd;

/* What each would get alone, from a pool with room for everybody. */
static void expect(crowd *c, const char *compression)
{
    rig r;
    rig_open(&(rig_options){.compression = compression}, &r);
    for (uint32_t i = 0; i < N_GUESTS; i++) {
        c->wishes[i] = (wish){.n_prompt = 40 + 9 * i,
                              .max_tokens = N_OUTPUT,
                              .prompt_kind = i,
                              .seed = i,
                              .repetition_penalty = i % 2 == 0 ? 1.2f : 0};
        rig_run(&r, &c->wishes[i], c->expected[i]);
    }
    rig_close(&r);
}

static kv_stats run_crowd(const crowd *c, const rig *r)
{
    static guest guests[N_GUESTS];
    session *all[N_GUESTS];
    for (uint32_t i = 0; i < N_GUESTS; i++) {
        guest_make(r, &c->wishes[i], &guests[i]);
        all[i] = guests[i].s;
    }
    ck_assert_int_eq(engine_submit(r->e, all, N_GUESTS, NULL), ERR_OK);
    for (uint32_t i = 0; i < N_GUESTS; i++) {
        ck_assert_int_eq(guest_wait(&guests[i]), FINISH_LENGTH);
        ck_assert_mem_eq(session_tokens(guests[i].s), c->expected[i], sizeof c->expected[i]);
        guest_leave(&guests[i]);
    }
    kv_stats stats;
    kv_stats_read(r->cache, &stats);
    return stats;
}

static const uint64_t SLAB = 64 << 10;

START_TEST(tiers_give_the_same_tokens_without_preemption)
{
    static const char *const codecs[] = {"none", "int8"};
    static crowd c;
    bad_disk_mend();
    for (uint32_t i = 0; i < 2; i++) {
        const rig_options options[2] = {
            {.memory_bytes = 2 * SLAB, .compression = codecs[i], .host_bytes = 40 * SLAB},
            {.memory_bytes = 2 * SLAB,
             .compression = codecs[i],
             .host_bytes = SLAB,
             .disk_bytes = 40 * SLAB}};
        expect(&c, codecs[i]);
        for (uint32_t k = 0; k < 2; k++) {
            rig r;
            rig_open(&options[k], &r);
            const kv_stats stats = run_crowd(&c, &r);
            ck_assert_uint_gt(stats.pages_demoted, 0);
            ck_assert_uint_eq(metrics_read(r.counted, METRIC_PREEMPTIONS), 0);
            rig_close(&r);
        }
    }
}
END_TEST

START_TEST(a_session_may_be_longer_than_the_pool)
{
    static uint32_t expected[400], tokens[400];
    const wish w = {.n_prompt = 500, .max_tokens = 400, .seed = 3};
    rig r;
    guest g;
    bad_disk_mend();
    rig_open(&(rig_options){0}, &r);
    ck_assert_uint_eq(rig_run(&r, &w, expected), 400);
    rig_close(&r);
    rig_open(&(rig_options){.memory_bytes = SLAB}, &r);
    guest_make(&r, &w, &g);
    ck_assert_int_eq(engine_submit(r.e, &g.s, 1, NULL), ERR_BAD_REQUEST);
    guest_leave(&g);
    rig_close(&r);
    rig_open(&(rig_options){.memory_bytes = SLAB, .disk_bytes = 20 * SLAB}, &r);
    ck_assert_uint_eq(rig_run(&r, &w, tokens), 400);
    ck_assert_mem_eq(tokens, expected, sizeof tokens);
    rig_run(&r, &w, tokens); /* once more, from its prefix */
    ck_assert_mem_eq(tokens, expected, sizeof tokens);
    rig_close(&r);
}
END_TEST

START_TEST(a_disk_that_loses_bytes_changes_no_token)
{
    static crowd c;
    rig r;
    bad_disk_mend();
    expect(&c, "none");
    rig_open(&(rig_options){.memory_bytes = 2 * SLAB, .disk_bytes = 40 * SLAB}, &r);
    the_disk.flips_every = 401;
    const kv_stats stats = run_crowd(&c, &r);
    the_disk.flips_every = 0;
    ck_assert_uint_gt(stats.disk_read_failures, 0);
    ck_assert_uint_gt(stats.seqs_lost, 0);
    rig_close(&r);
}
END_TEST

START_TEST(a_disk_that_fails_while_it_is_used_changes_no_token)
{
    static const int errors[] = {EIO, 0};
    static crowd c;
    bad_disk_mend();
    expect(&c, "none");
    for (uint32_t i = 0; i < 2; i++) {
        rig r;
        rig_open(&(rig_options){.memory_bytes = 2 * SLAB, .disk_bytes = 40 * SLAB}, &r);
        the_disk.error = errors[i];
        the_disk.reads_until_failure = 500; /* from then on for ever */
        const kv_stats stats = run_crowd(&c, &r);
        bad_disk_mend();
        ck_assert_uint_gt(stats.seqs_lost, 0);
        ck_assert_uint_eq(stats.disk_budget_bytes, 0); /* it is left alone */
        rig_close(&r);
    }
}
END_TEST

START_TEST(a_full_disk_changes_no_token)
{
    static crowd c;
    rig r;
    bad_disk_mend();
    expect(&c, "none");
    rig_open(&(rig_options){.memory_bytes = 2 * SLAB, .disk_bytes = 40 * SLAB}, &r);
    the_disk.error = ENOSPC;
    the_disk.writes_until_failure = 60;
    const kv_stats stats = run_crowd(&c, &r);
    bad_disk_mend();
    ck_assert_uint_eq(stats.disk_write_failures, 3);
    ck_assert_uint_eq(stats.disk_budget_bytes, 0);
    ck_assert_uint_eq(stats.seqs_lost, 0);
    ck_assert_uint_gt(metrics_read(r.counted, METRIC_PREEMPTIONS), 0); /* as without a disk */
    rig_close(&r);
}
END_TEST

/* Scores are computed as the prompt is read; those of a step that was lost come again. */
START_TEST(scores_survive_a_lost_step)
{
    enum { N_PROMPT = 400 };
    float expected[N_PROMPT];
    const wish w = {.n_prompt = N_PROMPT, .score_only = true};
    for (uint32_t k = 0; k < 2; k++) {
        rig r;
        guest g, other;
        bad_disk_mend();
        rig_open(&(rig_options){.memory_bytes = k == 0 ? 0 : 2 * SLAB,
                                .disk_bytes = 40 * SLAB,
                                .n_batched_tokens_max = 16,
                                .no_prefix_caching = true},
                 &r);
        guest_make(&r, &(wish){.n_prompt = 850, .max_tokens = 100, .prompt_kind = 1}, &other);
        guest_make(&r, &w, &g);
        the_disk.flips_every = k == 0 ? 0 : 401;
        guest_submit(&r, &other);
        guest_submit(&r, &g);
        ck_assert_int_eq(guest_wait(&g), FINISH_LENGTH);
        ck_assert_int_eq(guest_wait(&other), FINISH_LENGTH);
        ck_assert_uint_eq(session_read(g.s).n_prompt_scored, N_PROMPT);
        for (uint32_t p = 1; p < N_PROMPT; p++) {
            const float logprob = session_prompt_logprob(g.s, p).logprob;
            if (k == 0) expected[p] = logprob;
            ck_assert_float_eq(logprob, expected[p]);
        }
        kv_stats stats;
        kv_stats_read(r.cache, &stats);
        ck_assert_int_eq(stats.seqs_lost > 0, k == 1);
        guest_leave(&g);
        guest_leave(&other);
        bad_disk_mend();
        rig_close(&r);
    }
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE_SECONDS(tiers_give_the_same_tokens_without_preemption, 120),
    TEST_CASE_SECONDS(a_session_may_be_longer_than_the_pool, 120),
    TEST_CASE_SECONDS(a_disk_that_loses_bytes_changes_no_token, 120),
    TEST_CASE_SECONDS(a_disk_that_fails_while_it_is_used_changes_no_token, 120),
    TEST_CASE_SECONDS(a_full_disk_changes_no_token, 120),
    TEST_CASE_SECONDS(scores_survive_a_lost_step, 120),
    TEST_CASES_END,
};
