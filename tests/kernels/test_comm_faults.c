/* tests/kernels/test_comm_faults.c - opening a group when memory runs out: allocation N fails, for N = 0,
 * 1, 2 ... until all succeed; and calls, which allocate nothing. The linker sends the allocations of
 * kernels/ through the functions below (--wrap). */
#include "tests/kernels/comm_ranks.h"
#include "tests/test_main.h"

#include "base/check.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

enum { N_RANKS = 2 };

static atomic_int n_until_failure = -1; /* < 0: never */
static _Thread_local int n_allocations; /* of a rank: the test itself allocates meanwhile */

static bool fails(void)
{
    n_allocations++;
    return atomic_load(&n_until_failure) >= 0 && atomic_fetch_sub(&n_until_failure, 1) == 0;
}

void *__real_malloc(size_t bytes);
void *__real_calloc(size_t n, size_t bytes);
void *__wrap_malloc(size_t bytes);
void *__wrap_calloc(size_t n, size_t bytes);

void *__wrap_malloc(size_t bytes)
{
    return fails() ? NULL : __real_malloc(bytes);
}

void *__wrap_calloc(size_t n, size_t bytes)
{
    return fails() ? NULL : __real_calloc(n, bytes);
}

START_TEST(local_opens_or_says_that_memory_is_short)
{
    comm *ranks[3];
    err_t err = ERR_NO_MEMORY;
    for (int n = 0; err != ERR_OK; n++) {
        err_info info = {.code = ERR_OK};
        ck_assert_int_lt(n, 20);
        atomic_store(&n_until_failure, n);
        err = comm_open_local(3, 0, ranks, &info);
        atomic_store(&n_until_failure, -1);
        ck_assert_int_eq(err, info.code);
        ck_assert(err == ERR_OK || err == ERR_NO_MEMORY);
    }
    for (int r = 0; r < 3; r++)
        comm_close(ranks[r]);
}
END_TEST

typedef struct opening {
    pthread_t thread;
    comm_config config;
    comm *c;
    err_t err;
    err_info info;
} opening;

static void *open_one(void *ctx)
{
    opening *o = ctx;
    o->err = comm_open(comm_find("tcp"), &o->config, &o->c, &o->info);
    return NULL;
}

static void *close_one(void *ctx)
{
    comm_close(((opening *)ctx)->c);
    return NULL;
}

/* Check's own assertions allocate, and would fail here. */
static void on_threads(opening *o, void *(*run)(void *))
{
    for (int r = 0; r < N_RANKS; r++) {
        const int failed = pthread_create(&o[r].thread, NULL, run, &o[r]);
        assert(!failed);
    }
    for (int r = 0; r < N_RANKS; r++)
        pthread_join(o[r].thread, NULL);
}

START_TEST(tcp_opens_or_says_that_memory_is_short)
{
    bool have_opened = false;
    for (int n = 0; !have_opened; n++) {
        const uint16_t port = free_port();
        opening o[N_RANKS];
        ck_assert_int_lt(n, 60);
        for (uint32_t r = 0; r < N_RANKS; r++) {
            o[r] = (opening){.config = tcp_config(r, N_RANKS, port)};
            o[r].config.open_timeout_ms = 1000;
        }
        atomic_store(&n_until_failure, n);
        on_threads(o, open_one);
        have_opened = atomic_exchange(&n_until_failure, -1) >= 0; /* nothing has failed */
        int n_opened = 0;
        for (int r = 0; r < N_RANKS; r++) {
            ck_assert_int_eq(o[r].err, o[r].info.code);
            ck_assert((o[r].err == ERR_OK) == (o[r].c != NULL));
            n_opened += o[r].err == ERR_OK;
        }
        ck_assert_int_eq(n_opened == N_RANKS, have_opened);
        on_threads(o, close_one);
    }
}
END_TEST

/* Everything but the opening. */
static bool calls_allocate_nothing(comm *c)
{
    static float in[N_RANKS][2][100000], out[N_RANKS][2][100000];
    float *own = in[comm_rank(c)][0], *all = out[comm_rank(c)][0];
    EXPECT_OK(comm_barrier(c, info));
    const int n_before = n_allocations;
    for (size_t n = 10; n <= 100000; n *= 100) {
        EXPECT_OK(comm_all_reduce(c, own, all, n, DTYPE_F32, info));
        EXPECT_OK(comm_all_gather(c, own, all, n * 4, info));
        EXPECT_OK(comm_all_to_all(c, own, all, n * 4, info));
        EXPECT_OK(comm_broadcast(c, own, n * 4, 1, info));
    }
    EXPECT_OK(comm_barrier(c, info));
    EXPECT(n_allocations == n_before);
    return true;
}

START_TEST(no_call_allocates)
{
    static const comm_promise promise = {"calls_allocate_nothing", calls_allocate_nothing};
    keep_on_threads("local", N_RANKS, &promise, 1, 60000);
    keep_on_threads("tcp", N_RANKS, &promise, 1, 60000);
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE(local_opens_or_says_that_memory_is_short),
    TEST_CASE(tcp_opens_or_says_that_memory_is_short),
    TEST_CASE(no_call_allocates),
    TEST_CASES_END,
};
