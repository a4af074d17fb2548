/* base/threads.h - a pool of workers that run one loop together.
 *
 * A pool of n threads is n - 1 workers plus the caller. parallel_for deals [0, n_items) in chunks
 * from one atomic counter, so a slow core does not hold the others; which thread runs an item is
 * therefore not fixed, and an item's result must not depend on it. Workers spin briefly between
 * loops and then sleep, so that an idle server costs nothing.
 *
 * Threads: one caller at a time per pool. A body must not call parallel_for on the same pool. */
#ifndef BASE_THREADS_H
#define BASE_THREADS_H

#include "base/error.h"

#include <stddef.h>
#include <stdint.h>

typedef struct thread_pool thread_pool;

/* Runs items [begin, end). `worker` is in [0, n_threads): index of per-thread scratch. */
typedef void parallel_body(void *ctx, size_t begin, size_t end, uint32_t worker);

/* n_threads in [1, 1024]; 1 starts no thread. */
err_t thread_pool_open(uint32_t n_threads, thread_pool **out) MUST_CHECK;
void thread_pool_close(thread_pool *pool); /* NULL is fine */
uint32_t thread_pool_n_threads(const thread_pool *pool);

/* Returns when all items are done. Chunks hold up to `grain` items (>= 1). No allocation. */
void parallel_for(thread_pool *pool, size_t n_items, size_t grain, parallel_body *body, void *ctx);

/* Processors that this process may use (affinity and cgroup quota), at least 1. */
uint32_t threads_available(void);

#endif
