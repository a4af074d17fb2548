/* kernels/comm_mesh.h - the collectives of a transport that can do one thing: exchange messages.
 *
 * `tcp` and `mpi` differ in how a message travels. Everything else - which messages a collective is
 * made of, how it is cut, what is added where - is here once, so that the two agree. */
#ifndef KERNELS_COMM_MESH_H
#define KERNELS_COMM_MESH_H

#include "kernels/comm_impl.h"

/* One message each way between this rank and another. Neither: has_send, has_receive false; a message
 * of 0 bytes travels. */
typedef struct comm_parcel {
    bool has_send, has_receive;
    const void *send;
    void *receive;
    size_t send_bytes, receive_bytes;
} comm_parcel;

typedef struct comm_mesh comm_mesh;
struct comm_mesh {
    comm base;
    /* Moves all parcels; returns when those to receive are there, and those to send may be changed.
     * Fails as comm_fail says. */
    err_t (*exchange)(comm_mesh *m);
    comm_parcel *parcels; /* [n_ranks]; the own one is left empty */
    const void **parts;   /* [n_ranks], of comm_sum */
    uint8_t *scratch;     /* [n_ranks][slice_bytes]: parts of others, to be added */
    size_t slice_bytes;
};

err_t comm_mesh_init(comm_mesh *m, const comm_ops *ops, const comm_config *config,
                     err_info *info) MUST_CHECK;
void comm_mesh_deinit(comm_mesh *m); /* a zeroed one is fine */

err_t comm_mesh_all_reduce(comm *c, const void *in, void *out, size_t n, dtype type);
err_t comm_mesh_all_gather(comm *c, const void *in, void *out, size_t bytes);
err_t comm_mesh_all_to_all(comm *c, const void *in, void *out, size_t bytes);
err_t comm_mesh_broadcast(comm *c, void *data, size_t bytes, uint32_t root);
err_t comm_mesh_barrier(comm *c);

#endif
