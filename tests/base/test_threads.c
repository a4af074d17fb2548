/* tests/base/test_threads.c - the pool, alone and under load. */
#include "base/threads.h"

#include "base/check.h"
#include "base/clock.h"
#include "tests/test_main.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>

enum { N_ITEMS = 1000 };

typedef struct tally {
    uint32_t n_threads;
    size_t grain;
    int count[N_ITEMS]; /* written by whoever runs the item, read after the loop: no atomics */
    atomic_int n_broken;
} tally;

static void count_items(void *ctx, size_t begin, size_t end, uint32_t worker)
{
    tally *t = ctx;
    if (worker >= t->n_threads || end - begin > t->grain) atomic_fetch_add(&t->n_broken, 1);
    for (size_t i = begin; i < end; i++)
        t->count[i]++;
}

static void check_loops(uint32_t n_threads, int n_loops)
{
    thread_pool *pool;
    tally t = {.n_threads = n_threads};
    ck_assert_int_eq(thread_pool_open(n_threads, &pool), ERR_OK);
    ck_assert_uint_eq(thread_pool_n_threads(pool), n_threads);
    int n_expected[N_ITEMS] = {0};
    for (int loop = 0; loop < n_loops; loop++) {
        const size_t n = (size_t)loop % N_ITEMS;
        t.grain = (size_t)loop % 7 + 1;
        parallel_for(pool, n, t.grain, count_items, &t);
        for (size_t i = 0; i < n; i++)
            n_expected[i]++;
    }
    ck_assert_int_eq(atomic_load(&t.n_broken), 0);
    for (size_t i = 0; i < N_ITEMS; i++)
        ck_assert_int_eq(t.count[i], n_expected[i]);
    thread_pool_close(pool);
}

START_TEST(every_item_runs_exactly_once)
{
    static const uint32_t sizes[] = {1, 2, 3, 8, 33};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++)
        check_loops(sizes[i], 3000);
}
END_TEST

/* Workers that went to sleep between loops are woken. */
START_TEST(sleeping_workers_take_part_again)
{
    thread_pool *pool;
    tally t = {.n_threads = 4, .grain = 1};
    ck_assert_int_eq(thread_pool_open(4, &pool), ERR_OK);
    for (int loop = 0; loop < 50; loop++) {
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
        parallel_for(pool, N_ITEMS, 1, count_items, &t);
    }
    for (size_t i = 0; i < N_ITEMS; i++)
        ck_assert_int_eq(t.count[i], 50);
    thread_pool_close(pool);
}
END_TEST

typedef struct meeting {
    atomic_int n_here;
} meeting;

/* Each of the two items waits for the other: only two threads can finish them. */
static void meet(void *ctx, size_t begin, size_t end, uint32_t worker)
{
    (void)begin;
    (void)end;
    (void)worker;
    meeting *m = ctx;
    atomic_fetch_add(&m->n_here, 1);
    while (atomic_load(&m->n_here) < 2)
        nanosleep(&(struct timespec){.tv_nsec = 1000}, NULL);
}

START_TEST(two_items_run_at_the_same_time)
{
    thread_pool *pool;
    ck_assert_int_eq(thread_pool_open(2, &pool), ERR_OK);
    for (int loop = 0; loop < 200; loop++) {
        meeting m = {0};
        parallel_for(pool, 2, 1, meet, &m);
        ck_assert_int_eq(atomic_load(&m.n_here), 2);
    }
    thread_pool_close(pool);
}
END_TEST

static void note_worker(void *ctx, size_t begin, size_t end, uint32_t worker)
{
    *(uint32_t *)ctx = worker + (uint32_t)(end - begin);
}

START_TEST(a_single_chunk_runs_in_the_caller)
{
    thread_pool *pool;
    ck_assert_int_eq(thread_pool_open(3, &pool), ERR_OK);
    for (int loop = 0; loop < 1000; loop++) {
        uint32_t seen = 99;
        parallel_for(pool, 5, 5, note_worker, &seen);
        ck_assert_uint_eq(seen, 5);
    }
    parallel_for(pool, 0, 1, note_worker, NULL);
    thread_pool_close(pool);
    thread_pool_close(NULL);
}
END_TEST

START_TEST(a_pool_that_is_never_used_closes)
{
    for (int i = 0; i < 100; i++) {
        thread_pool *pool;
        ck_assert_int_eq(thread_pool_open(5, &pool), ERR_OK);
        thread_pool_close(pool);
    }
}
END_TEST

/* Far more threads than processors: nobody may starve anybody by spinning. */
START_TEST(an_oversubscribed_pool_makes_progress)
{
    const uint64_t start_ns = clock_mono_ns();
    check_loops(4 * threads_available() + 3, 2000);
    ck_assert_double_lt(clock_seconds_since(start_ns), 30);
}
END_TEST

START_TEST(an_idle_pool_uses_no_processor)
{
    thread_pool *pool;
    tally t = {.n_threads = 2, .grain = 1};
    ck_assert_int_eq(thread_pool_open(2, &pool), ERR_OK);
    parallel_for(pool, N_ITEMS, 1, count_items, &t);
    const clock_t before = clock();
    nanosleep(&(struct timespec){.tv_nsec = 300000000}, NULL);
    ck_assert_double_lt((double)(clock() - before) / CLOCKS_PER_SEC, 0.1);
    thread_pool_close(pool);
}
END_TEST

START_TEST(a_machine_has_a_processor)
{
    ck_assert_uint_ge(threads_available(), 1);
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE(every_item_runs_exactly_once),
    TEST_CASE(sleeping_workers_take_part_again),
    TEST_CASE(two_items_run_at_the_same_time),
    TEST_CASE(a_single_chunk_runs_in_the_caller),
    TEST_CASE(a_pool_that_is_never_used_closes),
    TEST_CASE(an_oversubscribed_pool_makes_progress),
    TEST_CASE(an_idle_pool_uses_no_processor),
    TEST_CASE(a_machine_has_a_processor),
    TEST_CASES_END,
};
