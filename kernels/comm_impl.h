/* kernels/comm_impl.h - what transports share; only comm*.c include it.
 *
 * A transport's own struct begins with a `comm`. Its functions return the code that comm_fail gave
 * them, or ERR_OK; messages stay in the comm, and comm.c hands them to the caller. */
#ifndef KERNELS_COMM_IMPL_H
#define KERNELS_COMM_IMPL_H

#include "kernels/comm.h"

#include <pthread.h>
#include <stdatomic.h>

extern const comm_ops comm_ops_local, comm_ops_tcp, comm_ops_mpi, comm_ops_nccl;

enum { COMM_OPEN_TIMEOUT_MS = 300000, COMM_PEER_TIMEOUT_MS = 5000 };

typedef struct comm_counter {
    _Atomic uint64_t n_calls, bytes, nanoseconds;
} comm_counter;

struct comm {
    const comm_ops *ops;
    uint32_t rank, n_ranks;
    _Atomic uint32_t timeout_ms;
    struct {
        comm_kind kind;
        size_t bytes;    /* of the caller's block */
        uint32_t number; /* of calls before it, the same on every rank */
    } call;              /* the running one; of the calling thread */
    pthread_mutex_t mutex;
    err_info failure; /* under mutex; valid once has_failed */
    atomic_bool has_failed;
    comm_counter counters[COMM_KIND_COUNT];
    comm *on_device; /* or NULL: comm_take_device */
};

/* Of a zeroed struct; after a failure nothing is to be undone. */
err_t comm_init(comm *c, const comm_ops *ops, const comm_config *config, err_info *info) MUST_CHECK;
void comm_deinit(comm *c); /* a zeroed one is fine */

/* Keeps the first failure, and returns it: the cause, whatever the consequences are called. Tells
 * nobody. Any thread. */
err_t comm_fail(comm *c, err_t code, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* What was kept; code ERR_OK: nothing has failed. Any thread. */
err_info comm_failure(comm *c);

/* Counts payload that came from another rank, for the running call. */
void comm_count(comm *c, size_t bytes);

/* On clock_mono_ns; UINT64_MAX: never. */
uint64_t comm_deadline_ns(uint32_t timeout_ms);
int comm_poll_ms(uint64_t deadline_ns); /* from now, rounded up, as poll() takes it */

/* out[i] = ((parts[0][i] + parts[1][i]) + ...), in f32, rounded once to `type`. `out` may be one of
 * the parts. */
void comm_sum(const void *const *parts, uint32_t n_parts, size_t n, dtype type, void *out);

/* Where slice `rank` of [0, n), cut evenly into n_ranks, begins; it ends where the next one begins. */
static inline size_t comm_slice_begin(size_t n, uint32_t rank, uint32_t n_ranks)
{
    return (size_t)((unsigned __int128)n * rank / n_ranks);
}

#endif
