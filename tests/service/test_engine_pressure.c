/* Promises of service/engine.h under pressure: full queues, small pools, cancellation, deadlines,
 * shutdown, and all of them at once. */
#include "tests/service/engine_rig.h"
#include "tests/test_main.h"

#include "base/clock.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { TOKENS_MAX = 512 };

static void pause_us(long us)
{
    const struct timespec pause = {.tv_nsec = us * 1000};
    nanosleep(&pause, NULL);
}

START_TEST(what_can_never_fit_is_refused_with_both_numbers)
{
    rig r;
    guest g;
    err_info info = {0};
    rig_open(&(rig_options){0}, &r);
    ck_assert_uint_gt(engine_context_max(r.e), 100);
    guest_make(&r, &(wish){.n_prompt = 30, .max_tokens = engine_context_max(r.e)}, &g);
    ck_assert_int_eq(engine_submit(r.e, &g.s, 1, &info), ERR_BAD_REQUEST);
    char number[16];
    snprintf(number, sizeof number, "%u", engine_context_max(r.e));
    ck_assert_msg(strstr(info.message, "30") != NULL, "%s", info.message);
    ck_assert_msg(strstr(info.message, number) != NULL, "%s", info.message);
    guest_leave(&g);
    const uint32_t beyond[] = {model_get_config(r.m)->n_vocab};
    guest_make(&r, &(wish){.n_prompt = 1, .prompt = beyond}, &g);
    ck_assert_int_eq(engine_submit(r.e, &g.s, 1, NULL), ERR_BAD_REQUEST);
    guest_leave(&g);
    rig_close(&r);
}
END_TEST

START_TEST(what_exceeds_the_pool_is_refused)
{
    rig r;
    guest g;
    err_info info = {0};
    rig_open(&(rig_options){.memory_bytes = 64 << 10}, &r);
    uint32_t n_tokens = 1;
    while (n_tokens < engine_context_max(r.e) && kv_cache_could_fit(r.cache, NULL, n_tokens))
        n_tokens++;
    ck_assert_uint_lt(n_tokens, engine_context_max(r.e));
    guest_make(&r, &(wish){.n_prompt = n_tokens - 10, .max_tokens = 10}, &g);
    ck_assert_int_eq(engine_submit(r.e, &g.s, 1, &info), ERR_BAD_REQUEST);
    ck_assert_msg(strstr(info.message, "KV cache") != NULL, "%s", info.message);
    guest_leave(&g);
    uint32_t tokens[TOKENS_MAX]; /* and the longest that is accepted does run to its end */
    ck_assert_uint_eq(rig_run(&r, &(wish){.n_prompt = n_tokens - 11, .max_tokens = 10}, tokens),
                      10);
    rig_close(&r);
}
END_TEST

START_TEST(a_full_queue_takes_all_or_none)
{
    enum { N_GUESTS = 8 };
    rig r;
    static guest guests[N_GUESTS];
    session *sessions[N_GUESTS];
    rig_open(&(rig_options){.n_seqs_max = 2, .n_queued_max = 3}, &r);
    for (uint32_t i = 0; i < N_GUESTS; i++) {
        guest_make(&r, &(wish){.max_tokens = 400, .prompt_kind = i}, &guests[i]);
        sessions[i] = guests[i].s;
    }
    ck_assert_int_eq(engine_submit(r.e, sessions, 6, NULL), ERR_BAD_REQUEST); /* never */
    ck_assert_int_eq(engine_submit(r.e, sessions, 4, NULL), ERR_OK);
    ck_assert_int_eq(engine_submit(r.e, sessions + 4, 2, NULL), ERR_QUEUE_FULL);
    ck_assert_int_eq(engine_submit(r.e, sessions + 4, 1, NULL), ERR_OK);
    ck_assert_int_eq(engine_submit(r.e, sessions + 5, 1, NULL), ERR_QUEUE_FULL);
    for (uint32_t i = 0; i < N_GUESTS; i++)
        session_cancel(guests[i].s);
    engine_poke(r.e);
    for (uint32_t i = 0; i < 5; i++)
        guest_wait(&guests[i]);
    ck_assert_int_eq(engine_submit(r.e, sessions + 5, 3, NULL),
                     ERR_OK); /* cancelled before it came */
    for (uint32_t i = 5; i < 8; i++)
        ck_assert_int_eq(guest_wait(&guests[i]), FINISH_ABORT);
    for (uint32_t i = 0; i < N_GUESTS; i++)
        guest_leave(&guests[i]);
    rig_close(&r);
}
END_TEST

START_TEST(a_cancelled_session_returns_its_pages)
{
    rig r;
    guest decoding, prefilling, queued;
    rig_open(&(rig_options){.n_seqs_max = 2, .n_batched_tokens_max = 4}, &r);
    guest_make(&r, &(wish){.max_tokens = 900}, &decoding);
    guest_make(&r, &(wish){.n_prompt = 900, .prompt_kind = 1}, &prefilling);
    guest_make(&r, &(wish){.prompt_kind = 2}, &queued);
    guest_submit(&r, &decoding);
    guest_wait_tokens(&decoding, 3);
    guest_submit(&r, &prefilling);
    guest_submit(&r, &queued);
    const uint64_t steps = metrics_read(r.counted, METRIC_STEPS);
    while (metrics_read(r.counted, METRIC_STEPS) < steps + 5)
        pause_us(100);
    session_cancel(queued.s);
    ck_assert_int_eq(guest_wait(&queued), FINISH_ABORT);
    ck_assert_uint_eq(session_read(queued.s).n_tokens, 0);
    ck_assert_int_eq(session_read(prefilling.s).finish, FINISH_NONE);
    session_cancel(prefilling.s);
    ck_assert_int_eq(guest_wait(&prefilling), FINISH_ABORT);
    session_cancel(decoding.s);
    ck_assert_int_eq(guest_wait(&decoding), FINISH_ABORT);
    ck_assert_uint_eq(rig_pages_used(&r), 0); /* at once: pages return before the finish is seen */
    guest_leave(&queued);
    guest_leave(&prefilling);
    guest_leave(&decoding);
    rig_close(&r);
}
END_TEST

START_TEST(a_deadline_ends_a_session_wherever_it_is)
{
    rig r;
    guest first, second;
    rig_open(&(rig_options){.n_seqs_max = 1}, &r);
    const uint64_t deadline_ns = clock_mono_ns() + 30000000;
    guest_make(&r, &(wish){.max_tokens = 1000, .deadline_ns = deadline_ns}, &first);
    guest_make(&r, &(wish){.max_tokens = 1000, .deadline_ns = deadline_ns - 20000000}, &second);
    guest_submit(&r, &first);
    guest_submit(&r, &second);
    ck_assert_int_eq(guest_wait(&second), FINISH_ABORT);
    const session_finish finish = guest_wait(&first); /* a fast machine may be done in time */
    ck_assert(finish == FINISH_ABORT || finish == FINISH_LENGTH);
    guest_leave(&first);
    guest_leave(&second);
    rig_close(&r);
}
END_TEST

/* Preempted sessions get what they would have got, whatever their methods and those of the cache. */
static void check_small_pool(const rig_options *small, const wish *like)
{
    enum { N_GUESTS = 10 };
    static guest guests[N_GUESTS];
    static uint32_t expected[N_GUESTS][TOKENS_MAX];
    wish wishes[N_GUESTS];
    rig r;
    for (uint32_t i = 0; i < N_GUESTS; i++) {
        wishes[i] = *like;
        wishes[i].n_prompt = 40 + 9 * i;
        wishes[i].max_tokens = 150;
        wishes[i].prompt_kind = i;
        wishes[i].seed = i;
        wishes[i].repetition_penalty = i % 2 == 0 ? 1.2f : 0;
    }
    rig_options large = *small;
    large.memory_bytes = 0;
    rig_open(&large, &r);
    for (uint32_t i = 0; i < N_GUESTS; i++)
        rig_run(&r, &wishes[i], expected[i]);
    ck_assert_uint_eq(metrics_read(r.counted, METRIC_PREEMPTIONS), 0);
    rig_close(&r);
    rig_open(small, &r);
    for (uint32_t i = 0; i < N_GUESTS; i++)
        guest_make(&r, &wishes[i], &guests[i]);
    session
        *all[N_GUESTS]; /* in one call: one by one, the first might be done before the last comes */
    for (uint32_t i = 0; i < N_GUESTS; i++)
        all[i] = guests[i].s;
    ck_assert_int_eq(engine_submit(r.e, all, N_GUESTS, NULL), ERR_OK);
    for (uint32_t i = 0; i < N_GUESTS; i++) {
        ck_assert_int_eq(guest_wait(&guests[i]), FINISH_LENGTH);
        ck_assert_mem_eq(session_tokens(guests[i].s), expected[i], 150 * sizeof(uint32_t));
        guest_leave(&guests[i]);
    }
    ck_assert_uint_gt(metrics_read(r.counted, METRIC_PREEMPTIONS), 0);
    ck_assert_uint_lt(metrics_read(r.counted, METRIC_PREEMPTIONS), 100);
    rig_close(&r);
}

START_TEST(a_small_pool_gives_the_same_tokens_as_a_large_one)
{
    check_small_pool(&(rig_options){.memory_bytes = 192 << 10}, &(wish){0});
}
END_TEST

START_TEST(a_small_pool_of_codes_gives_the_same_tokens_as_a_large_one)
{
    check_small_pool(&(rig_options){.memory_bytes = 128 << 10, .compression = "int8"}, &(wish){0});
    check_small_pool(&(rig_options){.memory_bytes = 128 << 10, .compression = "int2"}, &(wish){0});
}
END_TEST

START_TEST(a_small_pool_gives_lossy_sessions_of_an_exact_cache_the_same_tokens)
{
    const rig_options small = {.memory_bytes = 160 << 10, .request_methods = true};
    check_small_pool(&small, &(wish){.compression = "int2"});
}
END_TEST

START_TEST(a_small_pool_gives_sessions_that_read_a_part_the_same_tokens)
{
    const rig_options small = {.memory_bytes = 192 << 10, .request_methods = true};
    check_small_pool(&small, &(wish){.routing = "topk"});
}
END_TEST

START_TEST(a_drain_lets_sessions_finish)
{
    rig r;
    guest g, late;
    rig_open(&(rig_options){0}, &r);
    guest_make(&r, &(wish){.max_tokens = 20}, &g);
    guest_submit(&r, &g);
    engine_drain(r.e, 60000);
    ck_assert_int_eq(session_read(g.s).finish, FINISH_LENGTH);
    guest_make(&r, &(wish){0}, &late);
    ck_assert_int_eq(engine_submit(r.e, &late.s, 1, NULL), ERR_CLOSED);
    guest_leave(&g);
    guest_leave(&late);
    rig_close(&r);
}
END_TEST

START_TEST(a_drain_out_of_time_cancels_the_rest)
{
    rig r;
    guest running, waiting;
    rig_open(&(rig_options){.n_seqs_max = 1}, &r);
    guest_make(&r, &(wish){.max_tokens = 1000}, &running);
    guest_make(&r, &(wish){.max_tokens = 1000}, &waiting);
    guest_submit(&r, &running);
    guest_submit(&r, &waiting);
    guest_wait_tokens(&running, 1);
    engine_drain(r.e, 1);
    ck_assert_int_ne(session_read(running.s).finish, FINISH_NONE);
    ck_assert_int_eq(session_read(waiting.s).finish, FINISH_ABORT);
    guest_leave(&running);
    guest_leave(&waiting);
    rig_close(&r);
}
END_TEST

START_TEST(an_idle_engine_sleeps)
{
    rig r;
    uint32_t tokens[TOKENS_MAX];
    rig_open(&(rig_options){0}, &r);
    rig_run(&r, &(wish){0}, tokens);
    pause_us(50000); /* the pool's workers spin for a moment after a step */
    struct timespec before, after;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &before);
    pause_us(300000);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &after);
    const double seconds =
        (double)(after.tv_sec - before.tv_sec) + (double)(after.tv_nsec - before.tv_nsec) * 1e-9;
    ck_assert_msg(seconds < 0.05, "%.3f s of processor time in 0.3 s of idling", seconds);
    rig_run(&r, &(wish){0}, tokens); /* and wakes up */
    rig_close(&r);
}
END_TEST

/* ---- looks ---------------------------------------------------------------------------------------- */

/* What the engine does with a look: it says that it has come, and stays until it is let go. */
typedef struct watcher {
    sem_t taken, may_go;
    atomic_uint n_released;
} watcher;

static void hold_engine(void *ctx)
{
    watcher *w = ctx;
    sem_post(&w->taken);
    sem_wait(&w->may_go);
}

static void count_release(void *ctx)
{
    watcher *w = ctx;
    atomic_fetch_add(&w->n_released, 1);
}

START_TEST(looks_are_taken_between_steps_and_few_of_them_wait)
{
    enum { N_LOOKS = 6 };
    rig r;
    guest g;
    watcher w = {.n_released = 0};
    kv_look *looks[N_LOOKS];
    sem_init(&w.taken, 0, 0);
    sem_init(&w.may_go, 0, 0);
    rig_open(&(rig_options){0}, &r);
    const kv_look_spec spec = {.on_taken = hold_engine, .on_release = count_release, .ctx = &w};
    for (uint32_t i = 0; i < N_LOOKS; i++)
        ck_assert_int_eq(kv_look_open(r.cache, &spec, &looks[i]), ERR_OK);
    ck_assert_int_eq(engine_look(r.e, looks[0]), ERR_OK); /* idle: at once */
    sem_wait(&w.taken);
    guest_make(&r, &(wish){.n_prompt = 40}, &g);
    guest_submit(&r, &g);
    for (uint32_t i = 1; i < N_LOOKS - 1; i++) /* the engine is busy with the first */
        ck_assert_int_eq(engine_look(r.e, looks[i]), ERR_OK);
    ck_assert_int_eq(engine_look(r.e, looks[N_LOOKS - 1]), ERR_QUEUE_FULL);
    ck_assert_ptr_null(kv_look_map(looks[1]));
    for (uint32_t i = 0; i < N_LOOKS; i++) { /* nobody waits for them any more */
        if (i != 1) kv_look_release(looks[i]);
        sem_post(&w.may_go);
    }
    ck_assert_int_eq(guest_wait(&g), FINISH_LENGTH);
    ck_assert_ptr_nonnull(kv_look_map(looks[1]));
    ck_assert_uint_eq(atomic_load(&w.n_released), N_LOOKS - 1);
    kv_look_release(looks[1]);
    ck_assert_uint_eq(atomic_load(&w.n_released), N_LOOKS);
    guest_leave(&g);
    rig_close(&r);
}
END_TEST

typedef struct storm {
    const rig *r;
    guest *guests; /* [n_guests] */
    uint32_t n_guests, seed;
} storm;

static uint32_t draw(uint32_t *state, uint32_t n)
{
    *state = *state * 1664525u + 1013904223u;
    return (*state >> 8) % n;
}

/* Submits its guests one after the other, cancels some of them at any time, and waits for all. */
static void *storm_main(void *arg)
{
    const storm *st = arg;
    uint32_t state = st->seed;
    for (uint32_t i = 0; i < st->n_guests; i++) {
        guest *g = &st->guests[i];
        guest_make(st->r,
                   &(wish){.n_prompt = 1 + draw(&state, 120),
                           .max_tokens = 1 + draw(&state, 60),
                           .prompt_kind = draw(&state, 5),
                           .seed = draw(&state, 100)},
                   g);
        while (engine_submit(st->r->e, &g->s, 1, NULL) == ERR_QUEUE_FULL)
            pause_us(500);
        if (draw(&state, 3) == 0) {
            pause_us(draw(&state, 3000));
            session_cancel(st->guests[draw(&state, i + 1)].s);
            engine_poke(st->r->e);
        }
    }
    for (uint32_t i = 0; i < st->n_guests; i++) {
        const session_finish finish = guest_wait(&st->guests[i]);
        ck_assert(finish == FINISH_LENGTH || finish == FINISH_ABORT);
    }
    return NULL;
}

static void run_storms(const rig_options *options)
{
    enum { N_STORMS = 4, N_GUESTS = 50 };
    static guest guests[N_STORMS][N_GUESTS];
    storm storms[N_STORMS];
    pthread_t threads[N_STORMS];
    rig r;
    rig_open(options, &r);
    for (uint32_t i = 0; i < N_STORMS; i++) {
        storms[i] = (storm){.r = &r, .guests = guests[i], .n_guests = N_GUESTS, .seed = i + 1};
        ck_assert_int_eq(pthread_create(&threads[i], NULL, storm_main, &storms[i]), 0);
    }
    for (uint32_t i = 0; i < N_STORMS; i++)
        pthread_join(threads[i], NULL);
    rig_wait_idle(&r);
    ck_assert_uint_eq(rig_pages_used(&r), 0);
    for (uint32_t i = 0; i < N_STORMS; i++) {
        for (uint32_t k = 0; k < N_GUESTS; k++)
            guest_leave(&guests[i][k]);
    }
    rig_close(&r);
}

START_TEST(a_storm_of_sessions_leaves_nothing_behind)
{
    run_storms(&(rig_options){.memory_bytes = 192 << 10, .n_queued_max = 20});
}
END_TEST

START_TEST(a_storm_of_sessions_under_int4_leaves_nothing_behind)
{
    run_storms(
        &(rig_options){.memory_bytes = 192 << 10, .n_queued_max = 20, .compression = "int4"});
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE(what_can_never_fit_is_refused_with_both_numbers),
    TEST_CASE(what_exceeds_the_pool_is_refused),
    TEST_CASE(a_full_queue_takes_all_or_none),
    TEST_CASE(a_cancelled_session_returns_its_pages),
    TEST_CASE(a_deadline_ends_a_session_wherever_it_is),
    TEST_CASE(a_small_pool_gives_the_same_tokens_as_a_large_one),
    TEST_CASE(a_small_pool_of_codes_gives_the_same_tokens_as_a_large_one),
    TEST_CASE(a_small_pool_gives_lossy_sessions_of_an_exact_cache_the_same_tokens),
    TEST_CASE(a_small_pool_gives_sessions_that_read_a_part_the_same_tokens),
    TEST_CASE(a_drain_lets_sessions_finish),
    TEST_CASE(a_drain_out_of_time_cancels_the_rest),
    TEST_CASE(an_idle_engine_sleeps),
    TEST_CASE(looks_are_taken_between_steps_and_few_of_them_wait),
    TEST_CASE_SECONDS(a_storm_of_sessions_leaves_nothing_behind, 120),
    TEST_CASE_SECONDS(a_storm_of_sessions_under_int4_leaves_nothing_behind, 120),
    TEST_CASES_END};
