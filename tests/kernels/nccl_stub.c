/* tests/kernels/nccl_stub.c - a stand-in for libnccl.so.2, whose buffers are host memory.
 *
 * Of one rank it copies where NCCL would, and goes wrong on request: a test sets nccl_stub_trouble (found by its
 * name) before it opens a comm. Work that "never ends" is what a dead peer looks like: the stream
 * stays busy until ncclCommAbort.
 *
 * Of several, which are threads of one process and one group at a time, it adds and gathers while it is called; none of
 * them goes wrong. */
#include <nccl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "tests/kernels/nccl_stub.h"

nccl_stub_trouble nccl_stub;

ncclResult_t ncclGroupStart(void); /* nccl.h declares them without parameters */
ncclResult_t ncclGroupEnd(void);

enum { N_RANKS_MAX = 8 };

/* The ranks of the group, and what each has brought to a call. */
static struct {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    unsigned n_met, n_rounds;
    const void *in[N_RANKS_MAX];
} others = {.mutex = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

struct ncclComm {
    unsigned rank, n_ranks;
    int n_looks; /* at an asynchronous state, so far */
    ncclResult_t state;
};

ncclResult_t ncclGetVersion(int *version)
{
    *version = nccl_stub.is_old ? 21000 : NCCL_VERSION_CODE;
    return ncclSuccess;
}

ncclResult_t ncclGetUniqueId(ncclUniqueId *id)
{
    memset(id, 7, sizeof *id);
    return nccl_stub.has_no_id ? ncclSystemError : ncclSuccess;
}

const char *ncclGetErrorString(ncclResult_t result)
{
    return result == ncclRemoteError ? "remote process exited" : "stub error";
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t *comm, int n_ranks, ncclUniqueId id, int rank,
                                    ncclConfig_t *config)
{
    static const char want[4] = {7, 7, 7, 7};
    if (n_ranks < 1 || n_ranks > N_RANKS_MAX || rank < 0 || rank >= n_ranks ||
        config->blocking != 0)
        return ncclInvalidArgument;
    if (memcmp(id.internal, want, sizeof want) != 0) return ncclInvalidArgument;
    *comm = calloc(1, sizeof **comm);
    if (*comm == NULL) return ncclSystemError;
    (*comm)->state = ncclInProgress;
    (*comm)->rank = (unsigned)rank;
    (*comm)->n_ranks = (unsigned)n_ranks;
    atomic_fetch_add(&nccl_stub.n_open, 1);
    return ncclInProgress;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t *state)
{
    const int n_looks_needed = nccl_stub.never_gets_ready ? 1 << 30 : 3;
    if (comm->state == ncclInProgress && ++comm->n_looks >= n_looks_needed) {
        comm->state = ncclSuccess;
        comm->n_looks = 0;
    }
    if (atomic_load(&nccl_stub.is_busy) && nccl_stub.peer_exits) comm->state = ncclRemoteError;
    *state = comm->state;
    return ncclSuccess;
}

ncclResult_t ncclCommFinalize(ncclComm_t comm)
{
    comm->state = ncclInProgress;
    return ncclInProgress;
}

ncclResult_t ncclCommDestroy(ncclComm_t comm)
{
    free(comm);
    atomic_fetch_sub(&nccl_stub.n_open, 1);
    return ncclSuccess;
}

ncclResult_t ncclCommAbort(ncclComm_t comm)
{
    atomic_store(&nccl_stub.is_busy, 0);
    atomic_fetch_add(&nccl_stub.n_aborts, 1);
    return ncclCommDestroy(comm);
}

/* Every call ends here: queues a copy, or trouble. */
static ncclResult_t queue(const void *in, void *out, size_t bytes, ncclComm_t comm)
{
    if (nccl_stub.call_fails) return ncclSystemError;
    atomic_store(&nccl_stub.is_busy, nccl_stub.never_ends || nccl_stub.peer_exits ? 2 : 1);
    if (in != out) memcpy(out, in, bytes);
    if (!nccl_stub.is_slow_to_queue) return ncclSuccess;
    comm->state = ncclInProgress;
    return ncclInProgress;
}

/* Until all ranks are here. */
static void meet(ncclComm_t comm)
{
    pthread_mutex_lock(&others.mutex);
    const unsigned round = others.n_rounds;
    if (++others.n_met == comm->n_ranks) {
        others.n_met = 0;
        others.n_rounds++;
        pthread_cond_broadcast(&others.changed);
    }
    while (others.n_rounds == round)
        pthread_cond_wait(&others.changed, &others.mutex);
    pthread_mutex_unlock(&others.mutex);
}

static ncclResult_t add_all(const float *in, float *out, size_t n, ncclComm_t comm)
{
    float *sum = calloc(n, sizeof *sum);
    if (sum == NULL) return ncclSystemError;
    others.in[comm->rank] = in;
    meet(comm);
    for (size_t i = 0; i < n; i++) {
        sum[i] = ((const float *)others.in[0])[i];
        for (unsigned r = 1; r < comm->n_ranks; r++)
            sum[i] += ((const float *)others.in[r])[i];
    }
    meet(comm);
    memcpy(out, sum, n * sizeof *sum);
    free(sum);
    return ncclSuccess;
}

static ncclResult_t gather_all(const char *in, char *out, size_t n, ncclComm_t comm)
{
    others.in[comm->rank] = in;
    meet(comm);
    for (unsigned r = 0; r < comm->n_ranks; r++) {
        if (out + r * n != others.in[r]) memcpy(out + r * n, others.in[r], n);
    }
    meet(comm);
    return ncclSuccess;
}

ncclResult_t ncclAllReduce(const void *in, void *out, size_t n, ncclDataType_t type, ncclRedOp_t op,
                           ncclComm_t comm, cudaStream_t stream)
{
    (void)stream;
    if (op != ncclSum || (type != ncclFloat32 && type != ncclBfloat16)) return ncclInvalidArgument;
    if (comm->n_ranks > 1)
        return type == ncclFloat32 ? add_all(in, out, n, comm) : ncclInvalidArgument;
    return queue(in, out, n * (type == ncclFloat32 ? 4 : 2), comm);
}

ncclResult_t ncclAllGather(const void *in, void *out, size_t n, ncclDataType_t type,
                           ncclComm_t comm, cudaStream_t stream)
{
    (void)stream;
    if (type == ncclUint8 && comm->n_ranks > 1) return gather_all(in, out, n, comm);
    return type == ncclUint8 ? queue(in, out, n, comm) : ncclInvalidArgument;
}

ncclResult_t ncclBroadcast(const void *in, void *out, size_t n, ncclDataType_t type, int root,
                           ncclComm_t comm, cudaStream_t stream)
{
    (void)stream;
    return type == ncclUint8 && root == 0 ? queue(in, out, n, comm) : ncclInvalidArgument;
}

/* One rank sends to itself: the send waits for the receive of the same group. */
static struct {
    int depth;
    const void *sent;
    size_t n_sent;
} group;

ncclResult_t ncclGroupStart(void)
{
    group.depth++;
    return ncclSuccess;
}

ncclResult_t ncclGroupEnd(void)
{
    return --group.depth == 0 ? ncclSuccess : ncclInvalidUsage;
}

ncclResult_t ncclSend(const void *in, size_t n, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream)
{
    (void)stream;
    (void)comm;
    if (group.depth != 1 || peer != 0 || type != ncclUint8) return ncclInvalidUsage;
    group.sent = in;
    group.n_sent = n;
    return ncclSuccess;
}

ncclResult_t ncclRecv(void *out, size_t n, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream)
{
    (void)stream;
    if (group.depth != 1 || peer != 0 || type != ncclUint8 || n != group.n_sent)
        return ncclInvalidUsage;
    const ncclResult_t result = queue(group.sent, out, n, comm);
    return result == ncclInProgress ? ncclSuccess : result;
}
