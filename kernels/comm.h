/* kernels/comm.h - collectives: what the ranks of a group do together.
 *
 * A group is n_ranks ranks; each holds one `comm`, and all of them call the same functions with the
 * same sizes in the same order. One table per transport:
 *
 *   local   ranks are threads of one process, buffers host memory; the reference
 *   tcp     processes, sockets of our own, host memory; heartbeats
 *   mpi     processes under mpirun, host memory; built with PIKV_MPI
 *   nccl    one GPU per rank, device memory; built where nccl.h is, loaded when opened
 *
 * Sums are taken in rank order, ((x0 + x1) + x2) ..., in f32; sums of bf16 are rounded once, at the
 * end. So `local`, `tcp` and `mpi` give the same bits, on every rank and in every run of a given
 * n_ranks, however a call is cut into messages; `nccl` keeps an order of its own.
 *
 * Failure is the group's: the first one on a rank - a lost peer, a deadline, an abort, a call that
 * differs from its peers' - is kept (comm_status), tells the others, and is what every later call
 * returns. There is no way back; close, and leave with a non-zero exit. ERR_PEER_LOST names the rank.
 *
 * Buffers: never NULL unless their size is 0. `in` and `out` are the same or apart where a function
 * says so, else apart; they may be changed or reused when it returns (nccl: when its stream gets
 * there; see comm_wait). No call allocates. Messages are plain bytes in the machine's own order, not
 * encrypted and authenticated only by where they come from: a group runs on a private network.
 *
 * Threads: one at a time per comm. comm_abort, comm_status and comm_get_stats: any. Who opens closes. */
#ifndef KERNELS_COMM_H
#define KERNELS_COMM_H

#include "base/error.h"
#include "kernels/dtype.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { COMM_RANKS_MAX = 1024 };

/* Bytes of one buffer, all ranks' parts together. More is ERR_OVERFLOW. */
#define COMM_BYTES_MAX ((size_t)1 << 30)

typedef struct comm comm;

typedef enum comm_kind {
    COMM_ALL_REDUCE,
    COMM_ALL_GATHER,
    COMM_ALL_TO_ALL,
    COMM_BROADCAST,
    COMM_BARRIER,
    COMM_KIND_COUNT
} comm_kind;

/* What a device tells nccl of its stream: 0 all done, 1 running (or being captured), -1 failed. */
typedef int comm_stream_query(void *ctx);

typedef struct comm_config {
    uint32_t rank, n_ranks;   /* mpi: n_ranks 0, both are mpirun's */
    uint32_t timeout_ms;      /* of a wait for the others in a call; 0: none */
    uint32_t open_timeout_ms; /* of opening: until everybody is there; 0: 300000 */
    uint32_t peer_timeout_ms; /* tcp: silence after which a rank is lost; 0: 5000 */
    uint64_t fingerprint;     /* of all that ranks must agree on; checked when opening */
    const char *master_host;  /* tcp: where rank 0 listens: a name or address that is its own */
    uint16_t master_port;     /* tcp */
    comm *bootstrap;          /* nccl: carries the unique id and bad news; outlives the comm */
    const char *nccl_library; /* nccl: NULL is libnccl.so.2 */
    void *stream;             /* nccl: a cudaStream_t, on which everything is queued */
    comm_stream_query *query; /* nccl: asked with stream_ctx, from two threads */
    void *stream_ctx;         /* nccl */
} comm_config;

/* What a transport is. Called by the functions below only, which have checked sizes, handle what has
 * failed already, and count. The contract of each is that of its function. */
typedef struct comm_ops {
    const char *name;
    bool is_on_device; /* buffers are device memory, and calls only queue */
    err_t (*probe)(const comm_config *config, err_info *info); /* NULL: can be opened anywhere */
    err_t (*open)(const comm_config *config, comm **out, err_info *info);
    err_t (*all_reduce)(comm *c, const void *in, void *out, size_t n, dtype type);
    err_t (*all_gather)(comm *c, const void *in, void *out, size_t bytes);
    err_t (*all_to_all)(comm *c, const void *in, void *out, size_t bytes);
    err_t (*broadcast)(comm *c, void *data, size_t bytes, uint32_t root);
    err_t (*barrier)(comm *c);
    err_t (*wait)(comm *c);                      /* NULL: nothing is ever queued */
    err_t (*note_queued)(comm *c, size_t bytes); /* NULL with `wait` */
    /* Tells the other ranks of the failure that was just kept; any thread. */
    void (*abort)(comm *c);
    void (*close)(comm *c);
} comm_ops;

extern const comm_ops *const comm_transports[]; /* ends with NULL */
const comm_ops *comm_find(const char *name);    /* may be NULL */
/* Opens this rank's end; returns when all ranks have. ERR_BAD_CONFIG: a field; ERR_TIMEOUT names the ranks that did
 * not come; ERR_UNSUPPORTED (which a probe tells alone): not built, or a library is missing; ERR_PEER_LOST; other
 * fingerprints are ERR_BAD_CONFIG on every rank. `local` makes a group of one rank this way. */
err_t comm_open(const comm_ops *transport, const comm_config *config, comm **out,
                err_info *info) MUST_CHECK;

err_t comm_probe(const comm_ops *transport, const comm_config *config, err_info *info) MUST_CHECK;

/* All ends of a `local` group, out[n_ranks], each for a thread of its own, which closes it. */
err_t comm_open_local(uint32_t n_ranks, uint32_t timeout_ms, comm **out, err_info *info) MUST_CHECK;

/* NULL is fine. Says goodbye if nothing has failed: a rank that others still wait for afterwards is
 * lost to them. */
void comm_close(comm *c);

/* out[i] = the sum over ranks of in[i], of n values of `type`: f32 or bf16. in == out is fine. */
err_t comm_all_reduce(comm *c, const void *in, void *out, size_t n, dtype type,
                      err_info *info) MUST_CHECK;

/* out[n_ranks][bytes]: the `bytes` of every rank's `in`. in == out + rank * bytes is fine. */
err_t comm_all_gather(comm *c, const void *in, void *out, size_t bytes, err_info *info) MUST_CHECK;

/* in and out are [n_ranks][bytes]: part r of `in` becomes part (own rank) of rank r's `out`. */
err_t comm_all_to_all(comm *c, const void *in, void *out, size_t bytes, err_info *info) MUST_CHECK;

/* `data` of rank `root` becomes everybody's. Root may return before the others have it. */
err_t comm_broadcast(comm *c, void *data, size_t bytes, uint32_t root, err_info *info) MUST_CHECK;

/* Returns when every rank has called it, and has got there in its stream. */
err_t comm_barrier(comm *c, err_info *info) MUST_CHECK;

/* Device: returns when all that was queued is done, on the deadline of a call. Host: comm_status. */
err_t comm_wait(comm *c, err_info *info) MUST_CHECK;

/* Ends the group: every rank's calls, those that wait included, return ERR_PEER_LOST with this rank
 * and `reason`, one line. mpi: the others learn it when this rank closes. */
void comm_abort(comm *c, const char *reason);

/* The failure, if there is one. Never waits; tcp sees a lost peer without being asked. */
err_t comm_status(comm *c, err_info *info) MUST_CHECK;

/* A comm of the same ranks over their devices' memory, whose bootstrap is `c`, is `c`'s from now on. */
void comm_take_device(comm *c, comm *on_device);
comm *comm_on_device(const comm *c); /* NULL: there is none */
/* Device: what a graph has recorded is queued again with it, and is watched like any call. */
err_t comm_note_queued(comm *c, comm_kind kind, size_t bytes) MUST_CHECK;

/* For callers whose peers may rightly be late: a rank that waits for work. From the next call on. */
void comm_set_timeout_ms(comm *c, uint32_t timeout_ms);

typedef struct comm_stats {
    uint64_t n_calls, bytes; /* that this rank received from others */
    double seconds;          /* from call to return, the waits for slower ranks included */
} comm_stats;

comm_stats comm_get_stats(const comm *c, comm_kind kind);
const char *comm_kind_name(comm_kind kind); /* "all_reduce" */
const char *comm_name(const comm *c);       /* the transport's */
uint32_t comm_rank(const comm *c), comm_n_ranks(const comm *c);

#endif
