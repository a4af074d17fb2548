/* Promises of service/engine.h about sessions whose prompt is read again: they are fed what they must
 * be, get the tokens that they get alone, and leave nothing behind, wherever they end. */
#include "tests/service/engine_rig.h"
#include "tests/test_main.h"

#include "service/replay_text.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { TOKENS_MAX = 512 };

/* ---- what the cache was told ---------------------------------------------------------------------- */

static _Atomic uint32_t n_replayed, n_other; /* tokens of rows */

err_t __real_kv_step_begin(kv_cache *cache, const kv_row *rows, uint32_t n_rows);
err_t __wrap_kv_step_begin(kv_cache *cache, const kv_row *rows, uint32_t n_rows);
err_t __wrap_kv_step_begin(kv_cache *cache, const kv_row *rows, uint32_t n_rows)
{
    const err_t err = __real_kv_step_begin(cache, rows, n_rows);
    for (uint32_t r = 0; r < n_rows && err == ERR_OK; r++)
        atomic_fetch_add(rows[r].is_replay ? &n_replayed : &n_other, rows[r].n_tokens);
    return err;
}

static void forget_rows(void)
{
    atomic_store(&n_replayed, 0);
    atomic_store(&n_other, 0);
}

static void wait_until_replayed(uint32_t n_tokens)
{
    const struct timespec pause = {.tv_nsec = 50000};
    for (int i = 0; i < 400000 && atomic_load(&n_replayed) < n_tokens; i++)
        nanosleep(&pause, NULL);
    ck_assert_uint_ge(atomic_load(&n_replayed), n_tokens);
}

static uint32_t n_order(const rig *r)
{
    replay_text text;
    ck_assert_int_eq(replay_text_init(&text, r->t, model_get_config(r->m)->n_vocab), ERR_OK);
    return text.n_order;
}

/* ---- the text ------------------------------------------------------------------------------------- */

START_TEST(a_chunk_follows_the_instruction_and_the_end_of_the_one_before)
{
    rig r;
    replay_text text;
    uint32_t prompt[40];
    rig_open(&(rig_options){0}, &r);
    for (uint32_t i = 0; i < 40; i++)
        prompt[i] = 100 + i;
    ck_assert_int_eq(replay_text_init(&text, r.t, tokenizer_n_vocab(r.t)), ERR_OK);
    char *words;
    size_t n_bytes;
    ck_assert_int_eq(tokenizer_decode(r.t, text.order, text.n_order, false, &words, &n_bytes),
                     ERR_OK);
    ck_assert_ptr_nonnull(strstr(words, "Repeat the previous context:"));
    free(words);
    const kv_replay_chunk first = {0, 30}, second = {30, 40};
    const uint32_t n = text.n_order;
    ck_assert_uint_eq(replay_n_tokens(&text, &first), n + 30);
    ck_assert_uint_eq(replay_token(&text, prompt, &first, n - 1), text.order[n - 1]);
    ck_assert_uint_eq(replay_token(&text, prompt, &first, n), 100);
    ck_assert_uint_eq(replay_n_tokens(&text, &second), n + 8 + 10);
    ck_assert_uint_eq(replay_token(&text, prompt, &second, n), 122);
    ck_assert_uint_eq(replay_token(&text, prompt, &second, n + 8), 130);
    ck_assert_uint_eq(replay_token(&text, prompt, &second, n + 17), 139);
    ck_assert_int_eq(replay_text_init(&text, r.t, 1), ERR_OK); /* a model of one token */
    ck_assert_uint_eq(text.n_order, 0);
    ck_assert_int_eq(replay_text_init(&text, NULL, 1000), ERR_OK);
    ck_assert_uint_eq(replay_n_tokens(&text, &first), 30);
    rig_close(&r);
}
END_TEST

/* ---- results -------------------------------------------------------------------------------------- */

START_TEST(a_prompt_is_read_again_once)
{
    rig r;
    uint32_t plain[TOKENS_MAX], tokens[TOKENS_MAX];
    rig_open(&(rig_options){.request_methods = true, .no_prefix_caching = true}, &r);
    rig_run(&r, &(wish){.n_prompt = 201, .max_tokens = 20}, plain);
    forget_rows();
    rig_run(&r, &(wish){.n_prompt = 201, .max_tokens = 20, .scheduling = "kvzip", .budget = 0.5},
            tokens);
    ck_assert_uint_eq(atomic_load(&n_replayed), 201 + n_order(&r));
    ck_assert_uint_eq(atomic_load(&n_other), 201 + 19);
    ck_assert_uint_eq(tokens[0], plain[0]); /* drawn before anything has gone */
    ck_assert_uint_eq(metrics_read(r.counted, METRIC_PROMPT_TOKENS), 2 * 201);
    ck_assert_uint_eq(metrics_read(r.counted, METRIC_GENERATION_TOKENS), 2 * 20);
    forget_rows(); /* one token needs no choice, nor does a budget for everything */
    rig_run(&r, &(wish){.n_prompt = 201, .max_tokens = 1, .scheduling = "kvzip", .budget = 0.5},
            tokens);
    rig_run(&r, &(wish){.n_prompt = 201, .max_tokens = 20, .scheduling = "kvzip", .budget = 1},
            tokens);
    ck_assert_uint_eq(atomic_load(&n_replayed), 0);
    ck_assert_mem_eq(tokens, plain, 20 * sizeof *tokens);
    rig_close(&r);
}
END_TEST

/* A prompt of 600 in a context of 1024 is read again in two chunks. */
START_TEST(tokens_do_not_depend_on_how_prompt_and_replay_are_cut)
{
    static const uint32_t budgets[] = {8, 13, 64, 700};
    static const wish wishes[] = {
        {.n_prompt = 600, .max_tokens = 30, .seed = 5, .scheduling = "kvzip+adakv", .budget = 0.3},
        {.n_prompt = 301, .max_tokens = 30, .compression = "kvzip,int4", .budget = 0.5},
        {.n_prompt = 301, .max_tokens = 30, .scheduling = "kvzip_plus", .budget = 0.4}};
    for (size_t k = 0; k < 3; k++) {
        uint32_t first[TOKENS_MAX], tokens[TOKENS_MAX];
        for (int i = 0; i < 4; i++) {
            rig r;
            rig_open(&(rig_options){.n_batched_tokens_max = budgets[i], .request_methods = true},
                     &r);
            forget_rows();
            const uint32_t n = rig_run(&r, &wishes[k], i == 0 ? first : tokens);
            const uint32_t n_lead = k == 0 ? 2 * n_order(&r) + REPLAY_TAIL : n_order(&r);
            ck_assert_uint_eq(atomic_load(&n_replayed), wishes[k].n_prompt + n_lead);
            if (i > 0) ck_assert_mem_eq(first, tokens, n * sizeof *tokens);
            rig_close(&r);
        }
    }
}
END_TEST

enum { N_GUESTS = 10, N_DRAWN = 220 };

/* Prompts of several lengths under several methods. */
static wish crowd_wish(uint32_t i)
{
    static const char *const schedulings[] = {"kvzip",       "none", "snapkv",
                                              "kvzip+adakv", "none", "kvzip_plus+adakv",
                                              "non_causal",  "none", "simlayerkv"};
    static const char *const compressions[] = {"none", "kvzip,int4", "kvzip,none", "int8", "none",
                                               "none", "none",       "cap,int8",   "none"};
    return (wish){.n_prompt = 40 + 19 * i,
                  .max_tokens = N_DRAWN,
                  .prompt_kind = i,
                  .seed = i % 2 == 0 ? 0 : i,
                  .scheduling = schedulings[i % 9],
                  .compression = compressions[i % 9],
                  .budget = 0.5};
}

/* All at once in a cache of these bytes; each must get its tokens. */
static void run_crowd(const rig_options *options, uint32_t (*expected)[TOKENS_MAX],
                      uint64_t *n_preemptions)
{
    static guest guests[N_GUESTS];
    session *all[N_GUESTS];
    rig r;
    rig_open(options, &r);
    for (uint32_t i = 0; i < N_GUESTS; i++) {
        const wish w = crowd_wish(i);
        guest_make(&r, &w, &guests[i]);
        all[i] = guests[i].s;
    }
    ck_assert_int_eq(engine_submit(r.e, all, N_GUESTS, NULL), ERR_OK);
    for (uint32_t i = 0; i < N_GUESTS; i++) {
        ck_assert_int_eq(guest_wait(&guests[i]), FINISH_LENGTH);
        ck_assert_msg(
            memcmp(session_tokens(guests[i].s), expected[i], N_DRAWN * sizeof(uint32_t)) == 0,
            "guest %u", i);
        guest_leave(&guests[i]);
    }
    *n_preemptions = metrics_read(r.counted, METRIC_PREEMPTIONS);
    rig_close(&r);
}

START_TEST(tokens_are_the_same_alone_in_a_crowd_and_under_memory_pressure)
{
    static uint32_t expected[N_GUESTS][TOKENS_MAX];
    uint64_t n_preemptions;
    rig r;
    rig_open(&(rig_options){.request_methods = true, .no_prefix_caching = true}, &r);
    for (uint32_t i = 0; i < N_GUESTS; i++) {
        const wish w = crowd_wish(i);
        rig_run(&r, &w, expected[i]);
    }
    rig_close(&r);
    run_crowd(&(rig_options){.request_methods = true}, expected, &n_preemptions);
    ck_assert_uint_eq(n_preemptions, 0);
    run_crowd(&(rig_options){.request_methods = true, .memory_bytes = 192 << 10}, expected,
              &n_preemptions);
    ck_assert_uint_gt(n_preemptions, 0);
    ck_assert_uint_lt(n_preemptions, 100);
}
END_TEST

START_TEST(a_cached_prompt_and_siblings_give_the_same_tokens)
{
    enum { N_SIBLINGS = 3 };
    static guest guests[N_SIBLINGS];
    session *all[N_SIBLINGS];
    uint32_t first[TOKENS_MAX], again[TOKENS_MAX];
    const wish w = {
        .n_prompt = 160, .max_tokens = 40, .scheduling = "kvzip", .budget = 0.4, .group = 7};
    rig r;
    rig_open(&(rig_options){.request_methods = true}, &r);
    rig_run(&r, &w, first);
    kv_stats stats;
    kv_stats_read(r.cache, &stats);
    const uint64_t n_hit = stats.prefix_hit_tokens;
    rig_run(&r, &w, again);
    kv_stats_read(r.cache, &stats);
    ck_assert_uint_gt(stats.prefix_hit_tokens, n_hit);
    ck_assert_mem_eq(first, again, 40 * sizeof *first);
    rig_close(&r);
    rig_open(&(rig_options){.request_methods = true}, &r);
    for (uint32_t i = 0; i < N_SIBLINGS; i++) {
        guest_make(&r, &w, &guests[i]);
        all[i] = guests[i].s;
    }
    ck_assert_int_eq(engine_submit(r.e, all, N_SIBLINGS, NULL), ERR_OK);
    for (uint32_t i = 0; i < N_SIBLINGS; i++) {
        ck_assert_int_eq(guest_wait(&guests[i]), FINISH_LENGTH);
        ck_assert_mem_eq(session_tokens(guests[i].s), first, 40 * sizeof *first);
        guest_leave(&guests[i]);
    }
    kv_stats_read(r.cache, &stats);
    ck_assert_uint_ge(stats.prefix_hit_tokens, 2 * 136); /* the two that waited */
    rig_close(&r);
}
END_TEST

/* ---- ends ----------------------------------------------------------------------------------------- */

START_TEST(a_session_that_is_cancelled_within_its_replay_returns_its_pages)
{
    static const wish wishes[] = {
        {.n_prompt = 300, .max_tokens = 50, .scheduling = "kvzip", .budget = 0.5},
        {.n_prompt = 700, .max_tokens = 50, .compression = "kvzip,int4", .budget = 0.5}};
    for (size_t k = 0; k < 2; k++) {
        rig r;
        guest g, beside;
        rig_open(&(rig_options){.n_batched_tokens_max = 8, .request_methods = true}, &r);
        forget_rows();
        guest_make(&r, &(wish){.max_tokens = 900, .prompt_kind = 3}, &beside);
        guest_make(&r, &wishes[k], &g);
        guest_submit(&r, &beside);
        guest_wait_tokens(&beside, 2);
        guest_submit(&r, &g);
        wait_until_replayed(20);
        session_cancel(g.s);
        engine_poke(r.e);
        ck_assert_int_eq(guest_wait(&g), FINISH_ABORT);
        ck_assert_uint_eq(session_read(g.s).n_tokens, 1); /* drawn before the replay */
        ck_assert_uint_lt(atomic_load(&n_replayed), wishes[k].n_prompt);
        session_cancel(beside.s);
        (void)guest_wait(&beside);
        ck_assert_uint_eq(rig_pages_used(&r), 0);
        guest_leave(&g);
        guest_leave(&beside);
        rig_close(&r);
    }
}
END_TEST

START_TEST(a_prompt_that_the_context_does_not_hold_twice_is_refused)
{
    rig r;
    guest g;
    err_info info = {0};
    uint32_t tokens[TOKENS_MAX];
    rig_open(&(rig_options){.request_methods = true, .n_batched_tokens_max = 256}, &r);
    const uint32_t most = engine_context_max(r.e) - KV_REPLAY_LEAD - KV_REPLAY_CHUNK_LEAST;
    wish w = {.n_prompt = most + 1, .max_tokens = 5, .compression = "kvzip,int4", .budget = 0.5};
    guest_make(&r, &w, &g);
    ck_assert_int_eq(engine_submit(r.e, &g.s, 1, &info), ERR_BAD_REQUEST);
    ck_assert_str_eq(info.message,
                     "kv.compression: kvzip reads a prompt of 913 tokens again behind "
                     "it, and a context of 1024 tokens leaves less than 112 for it");
    guest_leave(&g);
    w.n_prompt = most; /* in chunks of 64 */
    ck_assert_uint_eq(rig_run(&r, &w, tokens), 5);
    w.n_prompt = most + 1;
    w.max_tokens = 1;
    ck_assert_uint_eq(rig_run(&r, &w, tokens), 1);
    rig_close(&r);
}
END_TEST

START_TEST(what_the_pool_holds_once_but_not_with_its_replay_is_refused)
{
    enum { N_NEW = 10 };
    rig r;
    guest g;
    err_info info = {0};
    uint32_t n_tokens = 1, tokens[TOKENS_MAX];
    wish w = {.max_tokens = N_NEW, .scheduling = "kvzip", .budget = 0.5};
    rig_open(&(rig_options){.request_methods = true, .memory_bytes = 128 << 10}, &r);
    guest_make(&r, &w, &g);
    const kv_methods *methods = session_get_spec(g.s)->methods;
    while (kv_cache_could_fit(r.cache, methods, n_tokens))
        n_tokens++;
    guest_leave(&g);
    ck_assert_uint_gt(n_tokens, 100);
    ck_assert(kv_cache_could_fit(r.cache, NULL, n_tokens));
    w.n_prompt = n_tokens - N_NEW;
    guest_make(&r, &w, &g);
    ck_assert_int_eq(engine_submit(r.e, &g.s, 1, &info), ERR_BAD_REQUEST);
    ck_assert_msg(strstr(info.message, "KV cache") != NULL, "%s", info.message);
    guest_leave(&g);
    forget_rows(); /* and the longest that is accepted runs to its end */
    w.n_prompt--;
    ck_assert_uint_eq(rig_run(&r, &w, tokens), N_NEW);
    ck_assert_uint_ge(atomic_load(&n_replayed), w.n_prompt + n_order(&r));
    w.scheduling = NULL;
    w.n_prompt++;
    ck_assert_uint_eq(rig_run(&r, &w, tokens), N_NEW);
    rig_close(&r);
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE(a_chunk_follows_the_instruction_and_the_end_of_the_one_before),
    TEST_CASE(a_prompt_is_read_again_once),
    TEST_CASE(tokens_do_not_depend_on_how_prompt_and_replay_are_cut),
    TEST_CASE(tokens_are_the_same_alone_in_a_crowd_and_under_memory_pressure),
    TEST_CASE(a_cached_prompt_and_siblings_give_the_same_tokens),
    TEST_CASE(a_session_that_is_cancelled_within_its_replay_returns_its_pages),
    TEST_CASE(a_prompt_that_the_context_does_not_hold_twice_is_refused),
    TEST_CASE(what_the_pool_holds_once_but_not_with_its_replay_is_refused),
    TEST_CASES_END,
};
