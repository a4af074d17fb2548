/* kernels/dev_comm.h - collectives on what lies in a device's memory.
 *
 * A group's comm takes the host's memory (local, tcp, mpi). What it is given of a device goes one of three ways, chosen
 * when this is made:
 *
 *   here      the device's memory is the host's: the comm is called with it
 *   hosted    through the host: the rank's own part comes down, the comm is called, what all have goes up
 *   queued    the group has a comm over its devices' memory as well (comm_on_device: nccl): calls go to the device's
 *             stream in the order of the ops around them, wait for nobody, and may be part of a graph
 *
 * A group gets its second comm by dev_comm_join, once every rank has opened its device.
 *
 * Floats alone. Failures are the group's, and its comm keeps them. Threads: the device's caller. */
#ifndef KERNELS_DEV_COMM_H
#define KERNELS_DEV_COMM_H

#include "kernels/comm.h"
#include "kernels/dev.h"

typedef struct dev_comm_ops dev_comm_ops;

typedef struct dev_comm {
    const dev_comm_ops *ops;
    dev *d;
    comm *group;
    float *host; /* of the host: as large as the largest buffer of a call; used by `hosted` alone */
} dev_comm;

typedef enum dev_comm_way {
    DEV_COMM_AUTO, /* nccl where every rank has it and a GPU of its own; a line in the log says why not */
    DEV_COMM_HOST,
    DEV_COMM_NCCL
} dev_comm_way;

typedef struct dev_comm_options {
    dev_comm_way way;
    uint32_t timeout_ms;      /* as in comm_config */
    const char *nccl_library; /* as in comm_config */
} dev_comm_options;

/* All ranks of `group` together, whose devices are of one kind. None comes back before all are there: ranks that share a GPU
 * have measured its memory by then, and may take theirs. ERR_UNSUPPORTED on all of them: nccl, and a rank without; or
 * as comm_open. The group has the comm, and ends it. */
err_t dev_comm_join(dev *d, comm *group, const dev_comm_options *options,
                    err_info *info) MUST_CHECK;

/* All are borrowed. */
dev_comm dev_comm_make(dev *d, comm *group, float *host);

/* x[n] becomes the sum over ranks. */
err_t dev_comm_sum(const dev_comm *c, float *x, size_t n) MUST_CHECK;

/* parts[n_ranks][n]: every rank has filled its own. */
err_t dev_comm_gather(const dev_comm *c, float *parts, size_t n) MUST_CHECK;

/* Do calls stay on the device's stream? */
bool dev_comm_is_queued(const dev_comm *c);

#endif
