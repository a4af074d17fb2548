/* kernels/comm_mpi.c - messages over MPI, for ranks that mpirun starts.
 *
 * Only point-to-point calls that return at once: MPI's own collectives would add in an order of their
 * choice, and its blocking calls know no deadline. So an exchange is posted, and then tested until it
 * is done, a deadline has passed, or another rank's failure has arrived as a message of its own
 * communicator. After a failure what was posted and never done is left as it is: MPI writes to buffers
 * only while it is called, and it is not called again. Nor is it finalized, because that would wait for
 * those that are lost; mpirun ends the group when a rank leaves without.
 *
 * One thread at a time calls (MPI_THREAD_SERIALIZED), so nothing watches between calls: a killed peer is mpirun's
 * to see, a stopped one is seen on the deadline of a call. Use `tcp` where that is not enough. While a
 * message is awaited MPI has to be asked for it; this rank gives its processor away at once where
 * others may need it, and from SPIN_LOOKS on sleeps between looks. */
#include "kernels/comm_mesh.h"

#include "base/check.h"
#include "base/clock.h"

#include <mpi.h>
#include <sched.h>
#include <stdlib.h>
#include <time.h>

enum {
    TAG = 1,             /* of all messages of collectives; + comm_kind */
    SPIN_LOOKS = 2000,   /* about a millisecond */
    NAP_NS = 50000,      /* between looks later on */
    LAST_WORDS_MS = 1000 /* for a failure to get out */
};

typedef struct mpi_comm {
    comm_mesh mesh;
    MPI_Comm data, control;
    MPI_Request *requests; /* [2][n_ranks] */
    MPI_Status *statuses;  /* the same */
    uint32_t *ranks;       /* the same: of the peer */
    int n_receives;        /* of the posted requests, the first ones */
    bool has_begun_mpi;    /* by this comm, which ends it */
    bool has_told;
} mpi_comm;

static mpi_comm *mpi_of(comm *c)
{
    return (mpi_comm *)c;
}

static bool has_failed(const mpi_comm *c)
{
    return atomic_load_explicit(&c->mesh.base.has_failed, memory_order_acquire);
}

static err_t fail_mpi(mpi_comm *c, int code)
{
    char text[MPI_MAX_ERROR_STRING] = "";
    int text_bytes = 0;
    (void)MPI_Error_string(code, text, &text_bytes);
    return comm_fail(&c->mesh.base, ERR_PEER_LOST, "mpi failed in %s of rank %u: %s",
                     comm_kind_name(c->mesh.base.call.kind), c->mesh.base.rank, text);
}

/* Sends this rank's failure to all that listen. */
static void tell(mpi_comm *c)
{
    const err_info failure = comm_failure(&c->mesh.base);
    if (c->has_told || failure.code == ERR_OK) return;
    c->has_told = true;
    const uint64_t deadline_ns = comm_deadline_ns(LAST_WORDS_MS);
    int n = 0, is_done = 0;
    for (uint32_t r = 0; r < c->mesh.base.n_ranks; r++) {
        if (r == c->mesh.base.rank) continue;
        (void)MPI_Isend(&failure, sizeof failure, MPI_BYTE, (int)r, TAG, c->control,
                        &c->requests[n++]);
    }
    while (!is_done && clock_mono_ns() < deadline_ns)
        (void)MPI_Testall(n, c->requests, &is_done, MPI_STATUSES_IGNORE);
}

/* Another rank's failure, if one has arrived. */
static void listen_for_failure(mpi_comm *c)
{
    int is_there = 0;
    if (MPI_Iprobe(MPI_ANY_SOURCE, TAG, c->control, &is_there, MPI_STATUS_IGNORE) != MPI_SUCCESS ||
        !is_there)
        return;
    err_info failure = {.code = ERR_OK};
    if (MPI_Recv(&failure, sizeof failure, MPI_BYTE, MPI_ANY_SOURCE, TAG, c->control,
                 MPI_STATUS_IGNORE) != MPI_SUCCESS)
        return;
    failure.message[sizeof failure.message - 1] = '\0';
    const bool is_known = failure.code > ERR_OK && failure.code < ERR_COUNT;
    (void)comm_fail(&c->mesh.base, is_known ? failure.code : ERR_PEER_LOST, "%s", failure.message);
}

/* Returns the number of requests, or -1 with the failure kept. */
static int post(mpi_comm *c)
{
    const int tag = TAG + (int)c->mesh.base.call.kind;
    int n = 0;
    for (uint32_t r = 0; r < c->mesh.base.n_ranks;
         r++) { /* receives first: messages find their place */
        const comm_parcel *p = &c->mesh.parcels[r];
        if (!p->has_receive) continue;
        c->ranks[n] = r;
        const int code = MPI_Irecv(p->receive, (int)p->receive_bytes, MPI_BYTE, (int)r, tag,
                                   c->data, &c->requests[n++]);
        if (code != MPI_SUCCESS) return (void)fail_mpi(c, code), -1;
    }
    c->n_receives = n;
    for (uint32_t r = 0; r < c->mesh.base.n_ranks; r++) {
        const comm_parcel *p = &c->mesh.parcels[r];
        if (!p->has_send) continue;
        c->ranks[n] = r;
        const int code = MPI_Isend(p->send, (int)p->send_bytes, MPI_BYTE, (int)r, tag, c->data,
                                   &c->requests[n++]);
        if (code != MPI_SUCCESS) return (void)fail_mpi(c, code), -1;
    }
    return n;
}

static err_t fail_late(mpi_comm *c, int n)
{
    uint32_t rank = 0;
    for (int i = 0, is_done = 1; i < n && is_done; i++) {
        if (MPI_Test(&c->requests[i], &is_done, MPI_STATUS_IGNORE) != MPI_SUCCESS) is_done = 0;
        rank = c->ranks[i];
    }
    return comm_fail(&c->mesh.base, ERR_PEER_LOST,
                     "rank %u is lost: it did not come to %s within %u ms", rank,
                     comm_kind_name(c->mesh.base.call.kind), atomic_load(&c->mesh.base.timeout_ms));
}

/* A message of another size than expected is a call that differs. Longer ones are MPI's to refuse. */
static err_t check_sizes(mpi_comm *c, int code)
{
    for (int i = 0; i < c->n_receives; i++) {
        const comm_parcel *p = &c->mesh.parcels[c->ranks[i]];
        int n_bytes = 0;
        (void)MPI_Get_count(&c->statuses[i], MPI_BYTE, &n_bytes);
        const bool is_longer =
            code == MPI_ERR_IN_STATUS && c->statuses[i].MPI_ERROR == MPI_ERR_TRUNCATE;
        if (!is_longer && (size_t)n_bytes == p->receive_bytes) continue;
        return comm_fail(
            &c->mesh.base, ERR_BAD_ARGUMENT, "rank %u sent %s %zu bytes of %s, rank %u expects %zu",
            c->ranks[i],
            is_longer ? "more than" : "less:", is_longer ? p->receive_bytes : (size_t)n_bytes,
            comm_kind_name(c->mesh.base.call.kind), c->mesh.base.rank, p->receive_bytes);
    }
    return code == MPI_SUCCESS ? ERR_OK : fail_mpi(c, code);
}

static err_t mpi_exchange(comm_mesh *m)
{
    mpi_comm *c = (mpi_comm *)m;
    const uint64_t deadline_ns = comm_deadline_ns(atomic_load(&m->base.timeout_ms));
    const int n = post(c);
    err_t err = n < 0 ? comm_status(&m->base, NULL) : ERR_OK;
    int is_done = 0;
    for (uint32_t look = 0; err == ERR_OK && !is_done; look++) {
        const int code = MPI_Testall(n, c->requests, &is_done, c->statuses);
        if (is_done || code != MPI_SUCCESS) {
            err = check_sizes(c, code);
            break;
        }
        if (clock_mono_ns() >= deadline_ns) err = fail_late(c, n);
        listen_for_failure(c);
        if (has_failed(c)) err = comm_status(&m->base, NULL);
        if (look < SPIN_LOOKS) {
            (void)sched_yield();
        } else {
            nanosleep(&(struct timespec){.tv_nsec = NAP_NS}, NULL);
        }
    }
    if (err != ERR_OK) tell(c);
    return err;
}

static void mpi_abort(comm *base)
{
    (void)
        base; /* may be another thread: the caller's next call returns, and closing tells the others */
}

static void mpi_close(comm *base)
{
    mpi_comm *c = mpi_of(base);
    tell(c);
    if (has_failed(c)) { /* mpirun ends the others when this one leaves: time for their own words */
        nanosleep(&(struct timespec){.tv_sec = LAST_WORDS_MS / 1000}, NULL);
    } else {
        if (c->data != MPI_COMM_NULL) (void)MPI_Comm_free(&c->data);
        if (c->control != MPI_COMM_NULL) (void)MPI_Comm_free(&c->control);
        if (c->has_begun_mpi) (void)MPI_Finalize();
    }
    free(c->requests);
    free(c->statuses);
    free(c->ranks);
    comm_mesh_deinit(&c->mesh);
    free(c);
}

static err_t begin_mpi(mpi_comm *c, err_info *info)
{
    int is_begun = 0, level = MPI_THREAD_SINGLE;
    (void)MPI_Initialized(&is_begun);
    if (!is_begun) {
        if (MPI_Init_thread(NULL, NULL, MPI_THREAD_SERIALIZED, &level) != MPI_SUCCESS)
            return err_set(info, ERR_SYSTEM, "mpi: cannot begin");
        c->has_begun_mpi = true;
    } else {
        (void)MPI_Query_thread(&level);
    }
    if (level < MPI_THREAD_SERIALIZED)
        return err_set(info, ERR_UNSUPPORTED, "mpi: this MPI allows only the thread that began it");
    return ERR_OK;
}

static err_t open_comms(mpi_comm *c, err_info *info)
{
    if (MPI_Comm_dup(MPI_COMM_WORLD, &c->data) != MPI_SUCCESS ||
        MPI_Comm_dup(MPI_COMM_WORLD, &c->control) != MPI_SUCCESS)
        return err_set(info, ERR_SYSTEM, "mpi: cannot make communicators");
    (void)MPI_Comm_set_errhandler(c->data, MPI_ERRORS_RETURN);
    (void)MPI_Comm_set_errhandler(c->control, MPI_ERRORS_RETURN);
    return ERR_OK;
}

static err_t init(mpi_comm *c, const comm_config *config, err_info *info)
{
    int rank = 0, n_ranks = 0;
    TRY(begin_mpi(c, info));
    (void)MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    (void)MPI_Comm_size(MPI_COMM_WORLD, &n_ranks);
    if (config->n_ranks != 0 &&
        (config->n_ranks != (uint32_t)n_ranks || config->rank != (uint32_t)rank)) {
        return err_set(info, ERR_BAD_CONFIG, "mpi: rank %u of %u is rank %d of %d to mpirun",
                       config->rank, config->n_ranks, rank, n_ranks);
    }
    comm_config own = *config;
    own.rank = (uint32_t)rank;
    own.n_ranks = (uint32_t)n_ranks;
    TRY(comm_mesh_init(&c->mesh, &comm_ops_mpi, &own, info));
    const size_t n_requests = 2 * (size_t)n_ranks;
    c->requests = calloc(n_requests, sizeof(MPI_Request));
    c->statuses = calloc(n_requests, sizeof(MPI_Status));
    c->ranks = calloc(n_requests, sizeof *c->ranks);
    if (c->requests == NULL || c->statuses == NULL || c->ranks == NULL)
        return err_set(info, ERR_NO_MEMORY, "mpi: no memory for %d ranks", n_ranks);
    return open_comms(c, info);
}

static err_t mpi_open(const comm_config *config, comm **out, err_info *info)
{
    mpi_comm *c = calloc(1, sizeof *c);
    if (c == NULL) return err_set(info, ERR_NO_MEMORY, "mpi: out of memory");
    c->data = c->control = MPI_COMM_NULL;
    c->mesh.exchange = mpi_exchange;
    const err_t err = init(c, config, info);
    if (err != ERR_OK) {
        mpi_close(&c->mesh.base);
        return err;
    }
    *out = &c->mesh.base;
    return ERR_OK;
}

const comm_ops comm_ops_mpi = {.name = "mpi",
                               .open = mpi_open,
                               .all_reduce = comm_mesh_all_reduce,
                               .all_gather = comm_mesh_all_gather,
                               .all_to_all = comm_mesh_all_to_all,
                               .broadcast = comm_mesh_broadcast,
                               .barrier = comm_mesh_barrier,
                               .abort = mpi_abort,
                               .close = mpi_close};
