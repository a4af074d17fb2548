/* kernels/comm.c - see comm.h: the list of transports, and what every call does around them.
 *
 * Sizes are checked here, once. A failure is kept here, once: whichever thread sees the first, that is
 * the one which every call returns from then on, so that a rank's one line in the log is the cause. */
#include "kernels/comm_impl.h"

#include "base/check.h"
#include "base/clock.h"

#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define COMM_LIST(X) \
    X(local)         \
    X(tcp)           \
    X(mpi)           \
    X(nccl)
const comm_ops *const comm_transports[] = {
#define X(name) &comm_ops_##name,
    COMM_LIST(X) NULL,
#undef X
};

const comm_ops *comm_find(const char *name)
{
    for (size_t i = 0; comm_transports[i] != NULL; i++) {
        if (strcmp(comm_transports[i]->name, name) == 0) return comm_transports[i];
    }
    return NULL;
}

const char *comm_kind_name(comm_kind kind)
{
    static const char *const names[COMM_KIND_COUNT] = {[COMM_ALL_REDUCE] = "all_reduce",
                                                       [COMM_ALL_GATHER] = "all_gather",
                                                       [COMM_ALL_TO_ALL] = "all_to_all",
                                                       [COMM_BROADCAST] = "broadcast",
                                                       [COMM_BARRIER] = "barrier"};
    return (unsigned)kind < COMM_KIND_COUNT ? names[kind] : "unknown collective";
}

err_t comm_init(comm *c, const comm_ops *ops, const comm_config *config, err_info *info)
{
    if (config->n_ranks < 1 || config->n_ranks > COMM_RANKS_MAX) {
        return err_set(info, ERR_BAD_CONFIG, "%s: %u ranks are outside [1, %d]", ops->name,
                       config->n_ranks, COMM_RANKS_MAX);
    }
    if (config->rank >= config->n_ranks) {
        return err_set(info, ERR_BAD_CONFIG, "%s: rank %u is outside [0, %u)", ops->name,
                       config->rank, config->n_ranks);
    }
    if (pthread_mutex_init(&c->mutex, NULL) != 0) {
        return err_set(info, ERR_NO_MEMORY, "%s: no mutex", ops->name);
    }
    c->ops = ops;
    c->rank = config->rank;
    c->n_ranks = config->n_ranks;
    atomic_init(&c->timeout_ms, config->timeout_ms);
    return ERR_OK;
}

void comm_deinit(comm *c)
{
    if (c->ops != NULL) pthread_mutex_destroy(&c->mutex);
}

err_t comm_fail(comm *c, err_t code, const char *format, ...)
{
    char message[ERR_MESSAGE_BYTES];
    va_list values;
    va_start(values, format);
    if (vsnprintf(message, sizeof message, format, values) < 0) message[0] = '\0';
    va_end(values);
    pthread_mutex_lock(&c->mutex);
    err_set(&c->failure, code, "%s", message);
    atomic_store_explicit(&c->has_failed, true, memory_order_release);
    const err_t first = c->failure.code;
    pthread_mutex_unlock(&c->mutex);
    return first;
}

void comm_count(comm *c, size_t bytes)
{
    atomic_fetch_add_explicit(&c->counters[c->call.kind].bytes, bytes, memory_order_relaxed);
}

uint64_t comm_deadline_ns(uint32_t timeout_ms)
{
    return timeout_ms == 0 ? UINT64_MAX : clock_mono_ns() + (uint64_t)timeout_ms * 1000000;
}

int comm_poll_ms(uint64_t deadline_ns)
{
    if (deadline_ns == UINT64_MAX) return -1;
    const uint64_t now_ns = clock_mono_ns();
    if (now_ns >= deadline_ns) return 0;
    const uint64_t ms = (deadline_ns - now_ns + 999999) / 1000000;
    return ms < INT_MAX ? (int)ms : INT_MAX;
}

err_info comm_failure(comm *c)
{
    err_info failure = {.code = ERR_OK};
    if (!atomic_load_explicit(&c->has_failed, memory_order_acquire)) return failure;
    pthread_mutex_lock(&c->mutex);
    failure = c->failure;
    pthread_mutex_unlock(&c->mutex);
    return failure;
}

err_t comm_status(comm *c, err_info *info)
{
    const err_info failure = comm_failure(c);
    if (failure.code == ERR_OK) return ERR_OK;
    return err_set(info, failure.code, "%s", failure.message);
}

/* `bytes` times `n_blocks` is the larger of the call's buffers. */
static err_t begin(comm *c, comm_kind kind, size_t bytes, size_t n_blocks, err_info *info)
{
    TRY(comm_status(c, info));
    size_t total;
    if (size_mul(bytes, n_blocks, &total) != ERR_OK || total > COMM_BYTES_MAX) {
        return err_set(info, ERR_OVERFLOW, "%s: %zu times %zu bytes are more than %zu",
                       comm_kind_name(kind), n_blocks, bytes, COMM_BYTES_MAX);
    }
    c->call.kind = kind;
    c->call.bytes = bytes;
    return ERR_OK;
}

static err_t end(comm *c, uint64_t start_ns, err_t err, err_info *info)
{
    comm_counter *counter = &c->counters[c->call.kind];
    c->call.number++;
    atomic_fetch_add_explicit(&counter->n_calls, 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&counter->nanoseconds, clock_mono_ns() - start_ns,
                              memory_order_relaxed);
    if (err == ERR_OK) return ERR_OK;
    return comm_status(c, info);
}

err_t comm_all_reduce(comm *c, const void *in, void *out, size_t n, dtype type, err_info *info)
{
    assert(type == DTYPE_F32 || type == DTYPE_BF16);
    assert((in != NULL && out != NULL) || n == 0);
    size_t bytes;
    if (size_mul(n, dtype_bytes(type), &bytes) != ERR_OK) bytes = SIZE_MAX;
    TRY(begin(c, COMM_ALL_REDUCE, bytes, 1, info));
    const uint64_t start_ns = clock_mono_ns();
    return end(c, start_ns, c->ops->all_reduce(c, in, out, n, type), info);
}

err_t comm_all_gather(comm *c, const void *in, void *out, size_t bytes, err_info *info)
{
    assert((in != NULL && out != NULL) || bytes == 0);
    TRY(begin(c, COMM_ALL_GATHER, bytes, c->n_ranks, info));
    const uint64_t start_ns = clock_mono_ns();
    return end(c, start_ns, c->ops->all_gather(c, in, out, bytes), info);
}

err_t comm_all_to_all(comm *c, const void *in, void *out, size_t bytes, err_info *info)
{
    assert((in != NULL && out != NULL && in != out) || bytes == 0);
    TRY(begin(c, COMM_ALL_TO_ALL, bytes, c->n_ranks, info));
    const uint64_t start_ns = clock_mono_ns();
    return end(c, start_ns, c->ops->all_to_all(c, in, out, bytes), info);
}

err_t comm_broadcast(comm *c, void *data, size_t bytes, uint32_t root, err_info *info)
{
    assert(data != NULL || bytes == 0);
    assert(root < c->n_ranks);
    TRY(begin(c, COMM_BROADCAST, bytes, 1, info));
    const uint64_t start_ns = clock_mono_ns();
    return end(c, start_ns, c->ops->broadcast(c, data, bytes, root), info);
}

err_t comm_barrier(comm *c, err_info *info)
{
    TRY(begin(c, COMM_BARRIER, 0, 1, info));
    const uint64_t start_ns = clock_mono_ns();
    return end(c, start_ns, c->ops->barrier(c), info);
}

err_t comm_wait(comm *c, err_info *info)
{
    if (c->ops->wait != NULL && c->ops->wait(c) != ERR_OK) return comm_status(c, info);
    return comm_status(c, info);
}

void comm_abort(comm *c, const char *reason)
{
    (void)comm_fail(c, ERR_PEER_LOST, "rank %u gave up: %s", c->rank, reason);
    c->ops->abort(c);
}

/* Every rank sees the same values, so every rank comes to the same answer. */
static err_t check_fingerprints(comm *c, uint64_t own, err_info *info)
{
    uint64_t *all = calloc(c->n_ranks, sizeof *all);
    if (all == NULL) return err_set(info, ERR_NO_MEMORY, "%s: out of memory", c->ops->name);
    err_t err = comm_all_gather(c, &own, all, sizeof own, info);
    for (uint32_t r = 1; r < c->n_ranks && err == ERR_OK; r++) {
        if (all[r] == all[0]) continue;
        err = err_set(info, ERR_BAD_CONFIG,
                      "rank %u and rank 0 differ in version, settings or model: %016llx, %016llx",
                      r, (unsigned long long)all[r], (unsigned long long)all[0]);
    }
    free(all);
    return err;
}

err_t comm_probe(const comm_ops *transport, const comm_config *config, err_info *info)
{
    return transport->probe != NULL ? transport->probe(config, info) : ERR_OK;
}

err_t comm_open(const comm_ops *transport, const comm_config *config, comm **out, err_info *info)
{
    *out = NULL;
    comm *c = NULL;
    TRY(transport->open(config, &c, info));
    if (!transport->is_on_device) { /* of nccl the bootstrap was checked */
        const err_t err = check_fingerprints(c, config->fingerprint, info);
        if (err != ERR_OK) {
            comm_close(c);
            return err;
        }
        for (int kind = 0; kind < COMM_KIND_COUNT; kind++) /* counts are the caller's */
            memset(&c->counters[kind], 0, sizeof c->counters[kind]);
    }
    *out = c;
    return ERR_OK;
}

void comm_close(comm *c)
{
    if (c == NULL) return;
    comm_close(c->on_device); /* which has c as its bootstrap */
    c->ops->close(c);
}

void comm_take_device(comm *c, comm *on_device)
{
    assert(c->on_device == NULL);
    assert(on_device->n_ranks == c->n_ranks && on_device->rank == c->rank);
    c->on_device = on_device;
}

comm *comm_on_device(const comm *c)
{
    return c->on_device;
}

err_t comm_note_queued(comm *c, comm_kind kind, size_t bytes)
{
    assert(c->ops->note_queued != NULL);
    TRY(begin(c, kind, bytes, kind == COMM_ALL_GATHER ? c->n_ranks : 1, NULL));
    const uint64_t start_ns = clock_mono_ns();
    return end(c, start_ns, c->ops->note_queued(c, bytes * (c->n_ranks - 1)), NULL);
}

void comm_set_timeout_ms(comm *c, uint32_t timeout_ms)
{
    atomic_store_explicit(&c->timeout_ms, timeout_ms, memory_order_relaxed);
    if (c->on_device != NULL) comm_set_timeout_ms(c->on_device, timeout_ms);
}

comm_stats comm_get_stats(const comm *c, comm_kind kind)
{
    assert((unsigned)kind < COMM_KIND_COUNT);
    const comm_counter *counter = &c->counters[kind];
    comm_stats stats = {
        .n_calls = atomic_load_explicit(&counter->n_calls, memory_order_relaxed),
        .bytes = atomic_load_explicit(&counter->bytes, memory_order_relaxed),
        .seconds =
            (double)atomic_load_explicit(&counter->nanoseconds, memory_order_relaxed) * 1e-9};
    if (c->on_device == NULL) return stats;
    const comm_stats queued = comm_get_stats(c->on_device, kind);
    stats.n_calls += queued.n_calls;
    stats.bytes += queued.bytes;
    stats.seconds += queued.seconds;
    return stats;
}

const char *comm_name(const comm *c)
{
    return c->ops->name;
}

uint32_t comm_rank(const comm *c)
{
    return c->rank;
}

uint32_t comm_n_ranks(const comm *c)
{
    return c->n_ranks;
}
