/* tests/kvcache/test_kv_stats.c - counters that any thread may read at any time. */
#include "tests/kvcache/fake_model.h"
#include "tests/test_main.h"

#include <pthread.h>
#include <stdatomic.h>

typedef struct watcher {
    const fake *f;
    atomic_bool stop;
    atomic_uint n_reads;
    bool is_wrong;
} watcher;

/* Every copy must be of one moment: sums agree, and what only grows has grown. */
static void *watch(void *arg)
{
    watcher *w = arg;
    kv_stats last = {0};
    while (!atomic_load(&w->stop)) {
        const kv_stats now = fake_stats(w->f);
        if (now.pages_used + now.pages_cached + now.pages_free != now.pages_total ||
            now.tokens_appended < last.tokens_appended || now.bytes_read < last.bytes_read ||
            now.slab_bytes > now.pool_budget_bytes)
            w->is_wrong = true;
        last = now;
        atomic_fetch_add(&w->n_reads, 1);
    }
    return NULL;
}

START_TEST(another_thread_reads_counters_of_one_moment)
{
    fake *f = fake_open(&(fake_options){0});
    watcher w = {.f = f};
    pthread_t thread;
    ck_assert_int_eq(pthread_create(&thread, NULL, watch, &w), 0);
    for (uint32_t i = 0; i < 30 || atomic_load(&w.n_reads) < 1000; i++) {
        fake_seq s = fake_seq_open(f, (fake_ids){.seed = i % 7});
        (void)kv_seq_take_prefix(s.seq, s.tokens, 60);
        fake_run(f, &s, 60, 9);
        fake_seq_close(f, &s, true);
    }
    atomic_store(&w.stop, true);
    pthread_join(thread, NULL);
    ck_assert(!w.is_wrong);
    fake_close(f);
}
END_TEST

START_TEST(counters_say_what_the_cache_holds)
{
    fake *f = fake_open(&(fake_options){.no_prefix_caching = true});
    const kv_stats empty = fake_stats(f);
    ck_assert_uint_eq(empty.pool_budget_bytes, 4 << 20);
    ck_assert_uint_eq(empty.slab_bytes, 0);
    ck_assert_uint_eq(empty.ring_bytes, 0);
    ck_assert_uint_gt(empty.staging_bytes, 0);
    fake_seq s = fake_seq_open(f, (fake_ids){.seed = 1});
    ck_assert_uint_eq(fake_stats(f).seqs_open, 1);
    ck_assert_uint_gt(fake_stats(f).ring_bytes, 0);
    fake_run(f, &s, 50, 50); /* 10 blocks leave the ring; a window of 10 keeps one of them */
    const kv_stats now = fake_stats(f);
    ck_assert_uint_eq(now.tokens_appended, 50);
    ck_assert_uint_eq(now.pages_used, 10 * 2 + 0 + 10);
    ck_assert_uint_eq(now.pages_committed, now.pages_used);
    ck_assert_uint_eq(now.slots_live, 4 * now.pages_used);
    ck_assert_uint_gt(now.table_bytes, empty.table_bytes);
    fake_seq_close(f, &s, false);
    fake_close(f);
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE(another_thread_reads_counters_of_one_moment),
    TEST_CASE(counters_say_what_the_cache_holds),
    TEST_CASES_END,
};
