/* service/rank_place.h - which rank of which group this process is.
 *
 *   --ranks N                         N ranks in this process, threads that share its memory
 *   RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT    one rank of WORLD_SIZE processes, over TCP: what torchrun
 *                                     sets (`torchrun --no-python ... pikv serve`), or a supervisor
 *   LWS_WORKER_INDEX, LWS_GROUP_SIZE, LWS_LEADER_ADDRESS    the same, as Kubernetes' LeaderWorkerSet names it
 *   mpirun -np N pikv serve           one rank of N, over MPI, in a build with MPI
 *
 * The first that says more than one rank holds; --ranks beside another is a mistake. Rank 0 has HTTP. */
#ifndef SERVICE_RANK_PLACE_H
#define SERVICE_RANK_PLACE_H

#include "base/config.h"
#include "kernels/dev_comm.h"

typedef struct ranks_config {
    uint32_t n_ranks;        /* --ranks */
    uint32_t timeout_s;      /* --rank-timeout: of one rank's wait for another */
    uint32_t open_timeout_s; /* --rank-open-timeout: until all have come */
    uint32_t collectives;    /* --rank-collectives: dev_comm_way, of what lies on GPUs */
} ranks_config;
extern const cfg_table ranks_config_table;

typedef struct rank_place {
    const comm_ops *transport; /* NULL: alone */
    uint32_t rank, n_ranks;    /* 0 of 1: alone */
    uint32_t n_here;           /* ranks that share this machine's processors and memory */
    const char *master_host;   /* borrowed from the environment; tcp */
    uint16_t master_port;
} rank_place;

/* ERR_BAD_CONFIG names the variable and its value; ERR_UNSUPPORTED: mpirun, and no MPI in this build. */
err_t rank_place_find(const ranks_config *config, char *const *environment, rank_place *out,
                      err_info *info) MUST_CHECK;

/* Is this a process that mpirun has started? */
bool rank_place_is_mpi(const rank_place *place);

/* Threads for one rank; n_threads 0: its share of the processors. */
uint32_t rank_place_threads(const rank_place *place, uint32_t n_threads);

#endif
