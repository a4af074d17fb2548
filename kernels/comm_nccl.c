/* kernels/comm_nccl.c - one GPU per rank, over NCCL.
 *
 * The library is loaded when a comm is opened, all its functions into one table; so one binary runs
 * with and without it. The unique id travels over another comm, the bootstrap, which also carries bad
 * news: NCCL has no deadline, and the kernels of those that wait for a dead peer spin for ever.
 *
 * Communicators are non-blocking: a call returns ncclInProgress instead of waiting for a peer, and is
 * asked after. What is queued is watched, by the thread that waits (comm_wait) and by a thread of its
 * own for a caller that waits elsewhere, e.g. in a copy from the device: if NCCL or the stream reports
 * an error, the bootstrap has failed, or a call's deadline passes before the stream is done, the
 * communicator is aborted - which ends its kernels - and the bootstrap told. NCCL wants one thread at a
 * time inside a communicator: `nccl_mutex`.
 *
 * All to all is grouped sends and receives, which every NCCL has. */
#include "kernels/comm_impl.h"

#include "base/check.h"
#include "base/clock.h"

#include <dlfcn.h>
#include <nccl.h>
#include <stdlib.h>
#include <time.h>

enum {
    VERSION_MIN = 21800, /* 2.18: what non-blocking communicators need to be trusted with */
    WATCH_MS = 50,       /* between looks of the watch thread */
    LOOK_US = 20         /* between looks of a waiting one */
};

/* The functions of the library, by name. */
#define NCCL_FUNCTIONS(X)     \
    X(ncclGetVersion)         \
    X(ncclGetUniqueId)        \
    X(ncclGetErrorString)     \
    X(ncclCommInitRankConfig) \
    X(ncclCommGetAsyncError)  \
    X(ncclCommFinalize)       \
    X(ncclCommDestroy)        \
    X(ncclCommAbort)          \
    X(ncclAllReduce)          \
    X(ncclAllGather)          \
    X(ncclBroadcast)          \
    X(ncclSend)               \
    X(ncclRecv)               \
    X(ncclGroupStart)         \
    X(ncclGroupEnd)

typedef struct nccl_library {
    void *handle;
#define X(name) __typeof__(&name) name;
    NCCL_FUNCTIONS(X)
#undef X
} nccl_library;

typedef struct nccl_comm {
    comm base;
    nccl_library lib;
    comm *bootstrap;
    cudaStream_t stream;
    comm_stream_query *query;
    void *stream_ctx;
    pthread_mutex_t nccl_mutex; /* of all below, and of calls into NCCL */
    pthread_cond_t changed;
    ncclComm_t nccl;      /* NULL: none, or aborted */
    bool is_busy;         /* something may be queued */
    uint64_t deadline_ns; /* of what is queued */
    bool is_closing;
    bool has_mutex, is_watched;
    pthread_t watch;
} nccl_comm;

static nccl_comm *nccl_of(comm *c)
{
    return (nccl_comm *)c;
}

static err_t load(nccl_library *lib, const char *path, err_info *info)
{
    lib->handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (lib->handle == NULL) return err_set(info, ERR_UNSUPPORTED, "nccl: %s", dlerror());
#define X(name)                                       \
    *(void **)&lib->name = dlsym(lib->handle, #name); \
    if (lib->name == NULL) return err_set(info, ERR_UNSUPPORTED, "nccl: %s has no %s", path, #name);
    NCCL_FUNCTIONS(X)
#undef X
    int version = 0;
    if (lib->ncclGetVersion(&version) != ncclSuccess || version < VERSION_MIN) {
        return err_set(info, ERR_UNSUPPORTED, "nccl: version %d of %s is older than %d", version,
                       path, VERSION_MIN);
    }
    return ERR_OK;
}

/* With the mutex. Ends the communicator, its kernels included, and tells the other ranks why. */
static err_t give_up(nccl_comm *c, err_t err)
{
    const err_info failure = comm_failure(&c->base);
    if (c->nccl != NULL) (void)c->lib.ncclCommAbort(c->nccl);
    c->nccl = NULL;
    c->is_busy = false;
    if (comm_status(c->bootstrap, NULL) == ERR_OK) comm_abort(c->bootstrap, failure.message);
    return err;
}

static err_t give_up_nccl(nccl_comm *c, ncclResult_t result)
{
    return give_up(c, comm_fail(&c->base, ERR_PEER_LOST, "nccl failed on rank %u: %s", c->base.rank,
                                c->lib.ncclGetErrorString(result)));
}

/* With the mutex: anything that ends the group, but for the stream. */
static err_t look(nccl_comm *c, uint64_t deadline_ns, ncclResult_t *result)
{
    err_info news = {.code = ERR_OK};
    *result = ncclSuccess;
    if (c->nccl == NULL || atomic_load(&c->base.has_failed))
        return give_up(c, comm_failure(&c->base).code);
    if (comm_status(c->bootstrap, &news) != ERR_OK)
        return give_up(c, comm_fail(&c->base, news.code, "%s", news.message));
    const ncclResult_t asked = c->lib.ncclCommGetAsyncError(c->nccl, result);
    if (asked != ncclSuccess) return give_up_nccl(c, asked);
    if (*result != ncclSuccess && *result != ncclInProgress) return give_up_nccl(c, *result);
    if (clock_mono_ns() < deadline_ns) return ERR_OK;
    return give_up(c, comm_fail(&c->base, ERR_PEER_LOST,
                                "a rank did not come to %s of rank %u on the device in time",
                                comm_kind_name(c->base.call.kind), c->base.rank));
}

static void pause_between_looks(void)
{
    nanosleep(&(struct timespec){.tv_nsec = LOOK_US * 1000L}, NULL);
}

/* With the mutex: until what NCCL does besides the stream is done. */
static err_t finish_call(nccl_comm *c, ncclResult_t result, uint64_t deadline_ns)
{
    if (result != ncclSuccess && result != ncclInProgress) return give_up_nccl(c, result);
    while (result == ncclInProgress) {
        TRY(look(c, deadline_ns, &result));
        if (result == ncclInProgress) pause_between_looks();
    }
    return ERR_OK;
}

/* Returns with the mutex and ERR_OK, or without and the failure. */
static err_t begin(nccl_comm *c, uint64_t *deadline_ns)
{
    pthread_mutex_lock(&c->nccl_mutex);
    *deadline_ns = comm_deadline_ns(atomic_load(&c->base.timeout_ms));
    ncclResult_t result;
    const err_t err = look(c, *deadline_ns, &result);
    if (err != ERR_OK) pthread_mutex_unlock(&c->nccl_mutex);
    return err;
}

static err_t end(nccl_comm *c, ncclResult_t result, uint64_t deadline_ns, size_t bytes)
{
    const err_t err = finish_call(c, result, deadline_ns);
    if (err == ERR_OK) {
        c->is_busy = true;
        c->deadline_ns = deadline_ns;
        comm_count(&c->base, bytes);
    }
    pthread_mutex_unlock(&c->nccl_mutex);
    return err;
}

static err_t nccl_note_queued(comm *base, size_t bytes)
{
    nccl_comm *c = nccl_of(base);
    uint64_t deadline_ns;
    TRY(begin(c, &deadline_ns));
    return end(c, ncclSuccess, deadline_ns, bytes);
}

static err_t nccl_all_reduce(comm *base, const void *in, void *out, size_t n, dtype type)
{
    nccl_comm *c = nccl_of(base);
    uint64_t deadline_ns;
    if (n == 0) return ERR_OK;
    TRY(begin(c, &deadline_ns));
    const ncclResult_t result = c->lib.ncclAllReduce(
        in, out, n, type == DTYPE_F32 ? ncclFloat32 : ncclBfloat16, ncclSum, c->nccl, c->stream);
    return end(c, result, deadline_ns, n * dtype_bytes(type) * (base->n_ranks - 1));
}

static err_t nccl_all_gather(comm *base, const void *in, void *out, size_t bytes)
{
    nccl_comm *c = nccl_of(base);
    uint64_t deadline_ns;
    if (bytes == 0) return ERR_OK;
    TRY(begin(c, &deadline_ns));
    const ncclResult_t result = c->lib.ncclAllGather(in, out, bytes, ncclUint8, c->nccl, c->stream);
    return end(c, result, deadline_ns, bytes * (base->n_ranks - 1));
}

static ncclResult_t swap_parts(nccl_comm *c, const uint8_t *in, uint8_t *out, size_t bytes)
{
    ncclResult_t result = c->lib.ncclGroupStart();
    for (uint32_t r = 0; r < c->base.n_ranks && result == ncclSuccess; r++) {
        result = c->lib.ncclSend(in + r * bytes, bytes, ncclUint8, (int)r, c->nccl, c->stream);
        if (result != ncclSuccess) break;
        result = c->lib.ncclRecv(out + r * bytes, bytes, ncclUint8, (int)r, c->nccl, c->stream);
    }
    const ncclResult_t ended = c->lib.ncclGroupEnd();
    return result != ncclSuccess ? result : ended;
}

static err_t nccl_all_to_all(comm *base, const void *in, void *out, size_t bytes)
{
    nccl_comm *c = nccl_of(base);
    uint64_t deadline_ns;
    if (bytes == 0) return ERR_OK;
    TRY(begin(c, &deadline_ns));
    return end(c, swap_parts(c, in, out, bytes), deadline_ns, bytes * (base->n_ranks - 1));
}

static err_t nccl_broadcast(comm *base, void *data, size_t bytes, uint32_t root)
{
    nccl_comm *c = nccl_of(base);
    uint64_t deadline_ns;
    if (bytes == 0) return ERR_OK;
    TRY(begin(c, &deadline_ns));
    const ncclResult_t result =
        c->lib.ncclBroadcast(data, data, bytes, ncclUint8, (int)root, c->nccl, c->stream);
    return end(c, result, deadline_ns, base->rank == root ? 0 : bytes);
}

/* With the mutex. *is_done: nothing is queued any more. */
static err_t look_at_stream(nccl_comm *c, bool *is_done)
{
    ncclResult_t result;
    *is_done = true;
    if (!c->is_busy) return comm_status(&c->base, NULL);
    const int state = c->query(c->stream_ctx);
    if (state < 0) {
        return give_up(c, comm_fail(&c->base, ERR_SYSTEM, "the device of rank %u failed in %s",
                                    c->base.rank, comm_kind_name(c->base.call.kind)));
    }
    c->is_busy = state > 0;
    *is_done = !c->is_busy;
    return c->is_busy ? look(c, c->deadline_ns, &result) : ERR_OK;
}

static err_t nccl_wait(comm *base)
{
    nccl_comm *c = nccl_of(base);
    for (;;) {
        bool is_done = false;
        pthread_mutex_lock(&c->nccl_mutex);
        const err_t err = look_at_stream(c, &is_done);
        pthread_mutex_unlock(&c->nccl_mutex);
        if (err != ERR_OK || is_done) return err;
        pause_between_looks();
    }
}

/* The bootstrap's barrier, behind the stream: needs no buffer on the device. */
static err_t nccl_barrier(comm *base)
{
    nccl_comm *c = nccl_of(base);
    err_info failure = {.code = ERR_OK};
    TRY(nccl_wait(base));
    if (comm_barrier(c->bootstrap, &failure) == ERR_OK) return ERR_OK;
    pthread_mutex_lock(&c->nccl_mutex);
    const err_t err = give_up(c, comm_fail(base, failure.code, "%s", failure.message));
    pthread_mutex_unlock(&c->nccl_mutex);
    return err;
}

static void *watch(void *ctx)
{
    nccl_comm *c = ctx;
    pthread_mutex_lock(&c->nccl_mutex);
    while (!c->is_closing) {
        bool is_done;
        (void)look_at_stream(c, &is_done);
        struct timespec until;
        clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_nsec += WATCH_MS * 1000000L;
        until.tv_sec += until.tv_nsec / 1000000000L;
        until.tv_nsec %= 1000000000L;
        (void)pthread_cond_timedwait(&c->changed, &c->nccl_mutex, &until);
    }
    pthread_mutex_unlock(&c->nccl_mutex);
    return NULL;
}

static void nccl_abort(comm *base)
{
    nccl_comm *c = nccl_of(base);
    pthread_mutex_lock(&c->nccl_mutex);
    (void)give_up(c, comm_failure(base).code);
    pthread_mutex_unlock(&c->nccl_mutex);
}

/* With the mutex. In good order if all is done, else by force. */
static void end_communicator(nccl_comm *c)
{
    if (c->nccl == NULL) return;
    const uint64_t deadline_ns = comm_deadline_ns(COMM_PEER_TIMEOUT_MS);
    bool is_done = false;
    (void)look_at_stream(c, &is_done);
    if (c->nccl == NULL) return;
    if (!is_done) {
        (void)c->lib.ncclCommAbort(c->nccl);
    } else if (finish_call(c, c->lib.ncclCommFinalize(c->nccl), deadline_ns) == ERR_OK) {
        (void)c->lib.ncclCommDestroy(c->nccl);
    }
    c->nccl = NULL;
}

static void nccl_close(comm *base)
{
    nccl_comm *c = nccl_of(base);
    if (c->has_mutex) {
        pthread_mutex_lock(&c->nccl_mutex);
        c->is_closing = true;
        pthread_cond_signal(&c->changed);
        end_communicator(c);
        pthread_mutex_unlock(&c->nccl_mutex);
        if (c->is_watched) pthread_join(c->watch, NULL);
        pthread_cond_destroy(&c->changed);
        pthread_mutex_destroy(&c->nccl_mutex);
    }
    /* Kept loaded: threads of the library outlive its communicators. */
    comm_deinit(&c->base);
    free(c);
}

static err_t connect_ranks(nccl_comm *c, const comm_config *config, err_info *info)
{
    ncclUniqueId id = {0};
    if (c->base.rank == 0) {
        const ncclResult_t result = c->lib.ncclGetUniqueId(&id);
        if (result != ncclSuccess) {
            const char *cause = c->lib.ncclGetErrorString(result);
            comm_abort(c->bootstrap, cause);
            return err_set(info, ERR_SYSTEM, "nccl: no unique id: %s", cause);
        }
    }
    TRY(comm_broadcast(c->bootstrap, &id, sizeof id, 0, info));
    const uint32_t timeout_ms =
        config->open_timeout_ms != 0 ? config->open_timeout_ms : COMM_OPEN_TIMEOUT_MS;
    const uint64_t deadline_ns = comm_deadline_ns(timeout_ms);
    ncclConfig_t own = NCCL_CONFIG_INITIALIZER;
    own.blocking = 0;
    pthread_mutex_lock(&c->nccl_mutex);
    const ncclResult_t result =
        c->lib.ncclCommInitRankConfig(&c->nccl, (int)c->base.n_ranks, id, (int)c->base.rank, &own);
    err_t err = finish_call(c, result, deadline_ns);
    pthread_mutex_unlock(&c->nccl_mutex);
    if (err != ERR_OK) return comm_status(&c->base, info);
    return comm_barrier(c->bootstrap, info);
}

static const char *library_of(const comm_config *config)
{
    return config->nccl_library != NULL ? config->nccl_library : "libnccl.so.2";
}

/* Kept loaded, as open does. */
static err_t nccl_probe(const comm_config *config, err_info *info)
{
    nccl_library lib = {0};
    return load(&lib, library_of(config), info);
}

static err_t start(nccl_comm *c, const comm_config *config, err_info *info)
{
    comm_config own = *config;
    own.rank = c->bootstrap->rank;
    own.n_ranks = c->bootstrap->n_ranks;
    TRY(comm_init(&c->base, &comm_ops_nccl, &own, info));
    pthread_condattr_t clock;
    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
    c->has_mutex = pthread_mutex_init(&c->nccl_mutex, NULL) == 0 &&
                   pthread_cond_init(&c->changed, &clock) == 0;
    pthread_condattr_destroy(&clock);
    if (!c->has_mutex) return err_set(info, ERR_NO_MEMORY, "nccl: no mutex");
    TRY(load(&c->lib, library_of(config), info));
    TRY(connect_ranks(c, config, info));
    if (pthread_create(&c->watch, NULL, watch, c) != 0)
        return err_set(info, ERR_SYSTEM, "nccl: cannot start the watch thread");
    c->is_watched = true;
    return ERR_OK;
}

static err_t nccl_open(const comm_config *config, comm **out, err_info *info)
{
    if (config->bootstrap == NULL || config->query == NULL)
        return err_set(info, ERR_BAD_CONFIG,
                       "nccl: a bootstrap and a query of the stream are missing");
    nccl_comm *c = calloc(1, sizeof *c);
    if (c == NULL) return err_set(info, ERR_NO_MEMORY, "nccl: out of memory");
    c->bootstrap = config->bootstrap;
    c->stream = config->stream;
    c->query = config->query;
    c->stream_ctx = config->stream_ctx;
    err_info failure = {.code = ERR_OK};
    if (start(c, config, &failure) != ERR_OK) {
        if (comm_status(c->bootstrap, NULL) == ERR_OK) comm_abort(c->bootstrap, failure.message);
        nccl_close(&c->base);
        return err_set(info, failure.code, "%s", failure.message);
    }
    *out = &c->base;
    return ERR_OK;
}

const comm_ops comm_ops_nccl = {.name = "nccl",
                                .is_on_device = true,
                                .probe = nccl_probe,
                                .open = nccl_open,
                                .all_reduce = nccl_all_reduce,
                                .all_gather = nccl_all_gather,
                                .all_to_all = nccl_all_to_all,
                                .broadcast = nccl_broadcast,
                                .barrier = nccl_barrier,
                                .wait = nccl_wait,
                                .note_queued = nccl_note_queued,
                                .abort = nccl_abort,
                                .close = nccl_close};
