/* base/threads.c - see threads.h.
 *
 * A loop is published in three steps: the caller fills `job`, opens the gate, and advances
 * `generation`, on which idle workers wait. A worker that wakes up passes the gate (one counted
 * entry), takes chunks until none is left, and leaves. The caller takes chunks too; when none is
 * left it closes the gate and waits only for the workers inside. So a worker that the system does
 * not schedule in time is simply not part of that loop, instead of holding it up; on a machine with
 * other work this is what bounds the cost of short loops.
 *
 *   gate = OPEN bit | CALLER_SLEEPS bit | number of workers inside
 *
 * `job` is written only while the gate is closed and empty, and read only from inside.
 *
 * Waiting: spin for SPIN_NS, then sleep on a futex. Spinning threads that outnumber the processors
 * would take the time slices of those that have work, so then nobody spins. */
#include "base/threads.h"

#include "base/check.h"
#include "base/clock.h"

#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { N_THREADS_MAX = 1024, LINE_BYTES = 64 };
static const uint64_t SPIN_NS = 50000; /* longer than the gaps between the ops of one step */

#define GATE_OPEN          0x80000000u
#define GATE_CALLER_SLEEPS 0x40000000u
#define GATE_INSIDE        0x3fffffffu

typedef struct worker {
    thread_pool *pool;
    uint32_t index; /* 1 .. n_threads - 1; the caller is 0 */
    pthread_t thread;
} worker;

struct thread_pool {
    uint32_t n_threads;
    uint32_t n_started; /* workers that exist */
    bool may_spin;
    worker *workers; /* [n_threads - 1] */
    struct {
        parallel_body *body;
        void *ctx;
        size_t n_items, grain;
    } job;
    _Alignas(LINE_BYTES) atomic_size_t next; /* first item not dealt yet */
    _Alignas(LINE_BYTES) _Atomic uint32_t gate;
    _Alignas(LINE_BYTES) _Atomic uint32_t generation; /* loops published so far */
    _Atomic uint32_t n_asleep;                        /* workers on the futex of generation */
    atomic_bool is_closing;
};

static void futex_wait(_Atomic uint32_t *word, uint32_t expected)
{
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, expected, NULL, NULL, 0);
}

static void futex_wake(_Atomic uint32_t *word, int n_threads)
{
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, n_threads, NULL, NULL, 0);
}

static void spin_pause(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Spins while (*word & mask) == value, for SPIN_NS at most. */
static void spin_while(const thread_pool *pool, const _Atomic uint32_t *word, uint32_t mask,
                       uint32_t value)
{
    enum { PAUSES_PER_LOOK = 16 }; /* the clock costs as much as a few pauses */
    if (!pool->may_spin) return;
    const uint64_t start_ns = clock_mono_ns();
    do {
        for (int i = 0; i < PAUSES_PER_LOOK; i++) {
            if ((atomic_load_explicit(word, memory_order_acquire) & mask) != value) return;
            spin_pause();
        }
    } while (clock_mono_ns() - start_ns < SPIN_NS);
}

static void run_chunks(thread_pool *pool, uint32_t index)
{
    const size_t n_items = pool->job.n_items, grain = pool->job.grain;
    for (;;) {
        const size_t begin = atomic_fetch_add_explicit(&pool->next, grain, memory_order_relaxed);
        if (begin >= n_items) return;
        const size_t end = grain < n_items - begin ? begin + grain : n_items;
        pool->job.body(pool->job.ctx, begin, end, index);
    }
}

static bool enter_gate(thread_pool *pool)
{
    uint32_t gate = atomic_load_explicit(&pool->gate, memory_order_relaxed);
    while (gate & GATE_OPEN) {
        if (atomic_compare_exchange_weak_explicit(&pool->gate, &gate, gate + 1,
                                                  memory_order_acquire, memory_order_relaxed)) {
            return true;
        }
    }
    return false;
}

static void leave_gate(thread_pool *pool)
{
    const uint32_t before = atomic_fetch_sub_explicit(&pool->gate, 1, memory_order_acq_rel);
    if (before == (GATE_CALLER_SLEEPS | 1)) futex_wake(&pool->gate, 1);
}

static void sleep_until_next(thread_pool *pool, uint32_t seen)
{
    /* Order matters: announced first, then the futex compares generation once more. The caller
     * advances generation first and then reads n_asleep, so one of the two sees the other. */
    atomic_fetch_add(&pool->n_asleep, 1);
    while (atomic_load(&pool->generation) == seen)
        futex_wait(&pool->generation, seen);
    atomic_fetch_sub(&pool->n_asleep, 1);
}

static void *worker_main(void *arg)
{
    const worker *self = arg;
    thread_pool *pool = self->pool;
    for (uint32_t seen = 0;;) {
        spin_while(pool, &pool->generation, UINT32_MAX, seen);
        if (atomic_load(&pool->generation) == seen) sleep_until_next(pool, seen);
        seen = atomic_load(&pool->generation);
        if (atomic_load(&pool->is_closing)) return NULL;
        if (!enter_gate(pool)) continue;
        run_chunks(pool, self->index);
        leave_gate(pool);
    }
}

/* Signals are the business of the thread that main chose for them, never of a worker. */
static err_t start_workers(thread_pool *pool)
{
    sigset_t all, before;
    sigfillset(&all);
    if (pthread_sigmask(SIG_SETMASK, &all, &before) != 0) return ERR_SYSTEM;
    err_t err = ERR_OK;
    while (err == ERR_OK && pool->n_started + 1 < pool->n_threads) {
        worker *w = &pool->workers[pool->n_started];
        *w = (worker){.pool = pool, .index = pool->n_started + 1};
        if (pthread_create(&w->thread, NULL, worker_main, w) != 0) {
            err = ERR_SYSTEM;
        } else {
            pool->n_started++;
        }
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return err;
}

err_t thread_pool_open(uint32_t n_threads, thread_pool **out)
{
    *out = NULL;
    assert(n_threads >= 1);
    assert(n_threads <= N_THREADS_MAX);
    thread_pool *pool = aligned_alloc(LINE_BYTES, sizeof *pool);
    if (pool == NULL) return ERR_NO_MEMORY;
    memset(pool, 0, sizeof *pool);
    pool->n_threads = n_threads;
    pool->may_spin = n_threads <= threads_available();
    pool->workers = calloc(n_threads, sizeof *pool->workers);
    const err_t err = pool->workers == NULL ? ERR_NO_MEMORY : start_workers(pool);
    if (err != ERR_OK) {
        thread_pool_close(pool);
        return err;
    }
    *out = pool;
    return ERR_OK;
}

void thread_pool_close(thread_pool *pool)
{
    if (pool == NULL) return;
    assert((atomic_load(&pool->gate) & GATE_OPEN) == 0);
    atomic_store(&pool->is_closing, true);
    atomic_fetch_add(&pool->generation, 1);
    futex_wake(&pool->generation, INT_MAX);
    for (uint32_t i = 0; i < pool->n_started; i++)
        pthread_join(pool->workers[i].thread, NULL);
    free(pool->workers);
    free(pool);
}

uint32_t thread_pool_n_threads(const thread_pool *pool)
{
    return pool->n_threads;
}

static void open_gate(thread_pool *pool)
{
    atomic_store_explicit(&pool->next, 0, memory_order_relaxed);
    atomic_store_explicit(&pool->gate, GATE_OPEN, memory_order_release);
    atomic_fetch_add(&pool->generation, 1);
    if (atomic_load(&pool->n_asleep) == 0) return;
    const size_t n_chunks = (pool->job.n_items - 1) / pool->job.grain + 1;
    futex_wake(&pool->generation, (int)min_size(n_chunks - 1, N_THREADS_MAX));
}

/* The acquire pairs with the release of leave_gate: the results of the workers are visible. */
static void close_gate(thread_pool *pool)
{
    uint32_t gate = atomic_fetch_and_explicit(&pool->gate, ~GATE_OPEN, memory_order_acq_rel);
    gate &= ~GATE_OPEN;
    if (gate == 0) return;
    spin_while(pool, &pool->gate, UINT32_MAX, gate);
    while ((atomic_load_explicit(&pool->gate, memory_order_acquire) & GATE_INSIDE) != 0) {
        gate = atomic_fetch_or(&pool->gate, GATE_CALLER_SLEEPS) | GATE_CALLER_SLEEPS;
        if ((gate & GATE_INSIDE) != 0) futex_wait(&pool->gate, gate);
    }
}

void parallel_for(thread_pool *pool, size_t n_items, size_t grain, parallel_body *body, void *ctx)
{
    assert(grain >= 1);
    if (n_items == 0) return;
    if (n_items <= grain) {
        body(ctx, 0, n_items, 0);
        return;
    }
    assert((atomic_load_explicit(&pool->gate, memory_order_relaxed) & GATE_OPEN) == 0);
    /* `next` may pass n_items by one grain per thread; that must not wrap. */
    assert(n_items <= SIZE_MAX - grain * (pool->n_threads + (size_t)1));
    pool->job.body = body;
    pool->job.ctx = ctx;
    pool->job.n_items = n_items;
    pool->job.grain = grain;
    if (pool->n_threads == 1) {
        atomic_store_explicit(&pool->next, 0, memory_order_relaxed);
        run_chunks(pool, 0);
        return;
    }
    open_gate(pool);
    run_chunks(pool, 0);
    close_gate(pool);
}
