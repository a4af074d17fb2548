/* bench/comm.c - microseconds per collective, by transport, ranks and bytes.
 *
 *   bench_comm local|tcp N_RANKS          mpirun -np N bench_comm mpi 0
 *
 * Each case runs for CASE_MS, all ranks behind a barrier; rank 0 prints a line per case: transport,
 * ranks, collective, bytes of a rank's block, microseconds per call. Ranks are threads (local) or
 * processes (tcp, mpi) of this machine, so more ranks than processors measure the scheduler, too.
 * bench/comm.sh takes the best of several runs, in turn. */
#include "kernels/comm.h"
#include "base/clock.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { CASE_MS = 60, N_RANKS_MAX = 64, BLOCK_BYTES_MAX = 1 << 20 };

typedef struct buffers {
    uint8_t *in, *out; /* [n_ranks][BLOCK_BYTES_MAX] */
} buffers;

static err_t call(comm *c, comm_kind kind, const buffers *b, size_t bytes, err_info *info)
{
    switch (kind) {
    case COMM_ALL_REDUCE: return comm_all_reduce(c, b->in, b->out, bytes / 4, DTYPE_F32, info);
    case COMM_ALL_GATHER: return comm_all_gather(c, b->in, b->out, bytes, info);
    case COMM_ALL_TO_ALL: return comm_all_to_all(c, b->in, b->out, bytes, info);
    case COMM_BROADCAST: return comm_broadcast(c, b->in, bytes, 0, info);
    default: return comm_barrier(c, info);
    }
}

/* Seconds of n calls, all ranks together from the first to the last. */
static err_t time_calls(comm *c, comm_kind kind, const buffers *b, size_t bytes, uint32_t n,
                        double *seconds, err_info *info)
{
    err_t err = comm_barrier(c, info);
    const uint64_t start_ns = clock_mono_ns();
    for (uint32_t k = 0; k < n && err == ERR_OK; k++)
        err = call(c, kind, b, bytes, info);
    if (err == ERR_OK) err = comm_barrier(c, info);
    *seconds = clock_seconds_since(start_ns);
    return err;
}

static err_t run_case(comm *c, comm_kind kind, const buffers *b, size_t bytes, err_info *info)
{
    enum { N_TRIAL = 20 };
    double seconds = 0;
    TRY(time_calls(c, kind, b, bytes, N_TRIAL, &seconds, info));
    uint32_t n = (uint32_t)(CASE_MS * 1e-3 / (seconds / N_TRIAL)) + 1;
    TRY(comm_broadcast(c, &n, sizeof n, 0, info));
    TRY(time_calls(c, kind, b, bytes, n, &seconds, info));
    if (comm_rank(c) != 0) return ERR_OK;
    printf("%s %u %s %zu %.2f\n", comm_name(c), comm_n_ranks(c), comm_kind_name(kind), bytes,
           seconds / n * 1e6);
    fflush(stdout);
    return ERR_OK;
}

static err_t run_cases(comm *c, err_info *info)
{
    static const size_t sizes[] = {4096, 16384, 65536, BLOCK_BYTES_MAX};
    const buffers b = {calloc(comm_n_ranks(c), BLOCK_BYTES_MAX),
                       calloc(comm_n_ranks(c), BLOCK_BYTES_MAX)};
    err_t err = b.in == NULL || b.out == NULL ? err_set(info, ERR_NO_MEMORY, "no memory") : ERR_OK;
    for (comm_kind kind = COMM_ALL_REDUCE; kind < COMM_BARRIER; kind++) {
        for (size_t k = 0; k < sizeof sizes / sizeof sizes[0] && err == ERR_OK; k++)
            err = run_case(c, kind, &b, sizes[k], info);
    }
    if (err == ERR_OK) err = run_case(c, COMM_BARRIER, &b, 0, info);
    free(b.in);
    free(b.out);
    return err;
}

/* Returns an exit code. `c` is closed. */
static int run(comm *c)
{
    err_info info = {.code = ERR_OK};
    const err_t err = run_cases(c, &info);
    if (err != ERR_OK) fprintf(stderr, "rank %u: %s\n", comm_rank(c), info.message);
    comm_close(c);
    return err == ERR_OK ? EXIT_SUCCESS : EXIT_FAILURE;
}

static int open_and_run(const char *transport, const comm_config *config)
{
    comm *c = NULL;
    err_info info = {.code = ERR_OK};
    if (comm_open(comm_find(transport), config, &c, &info) == ERR_OK) return run(c);
    fprintf(stderr, "%s\n", info.message);
    return EXIT_FAILURE;
}

static void *run_thread(void *ctx)
{
    return run(ctx) == EXIT_SUCCESS ? NULL : ctx;
}

static int run_local(uint32_t n_ranks)
{
    comm *ranks[N_RANKS_MAX];
    pthread_t threads[N_RANKS_MAX];
    if (comm_open_local(n_ranks, 60000, ranks, NULL) != ERR_OK) return EXIT_FAILURE;
    for (uint32_t r = 1; r < n_ranks; r++) {
        if (pthread_create(&threads[r], NULL, run_thread, ranks[r]) != 0) return EXIT_FAILURE;
    }
    const int status = run(ranks[0]);
    for (uint32_t r = 1; r < n_ranks; r++)
        pthread_join(threads[r], NULL);
    return status;
}

static int run_tcp(uint32_t n_ranks)
{
    comm_config config = {.n_ranks = n_ranks,
                          .timeout_ms = 60000,
                          .master_host = "127.0.0.1",
                          .master_port = (uint16_t)(20000 + getpid() % 10000)};
    for (uint32_t r = 1; r < n_ranks; r++) {
        config.rank = r;
        if (fork() == 0) return open_and_run("tcp", &config);
    }
    config.rank = 0;
    const int status = open_and_run("tcp", &config);
    while (wait(NULL) > 0)
        continue;
    return status;
}

int main(int argc, char **argv)
{
    const char *transport = argc > 1 ? argv[1] : "";
    const long n_ranks = argc > 2 ? strtol(argv[2], NULL, 10) : 0;
    if (strcmp(transport, "mpi") == 0)
        return open_and_run("mpi", &(comm_config){.timeout_ms = 60000});
    if (n_ranks >= 1 && n_ranks <= N_RANKS_MAX) {
        if (strcmp(transport, "local") == 0) return run_local((uint32_t)n_ranks);
        if (strcmp(transport, "tcp") == 0) return run_tcp((uint32_t)n_ranks);
    }
    fprintf(stderr, "usage: %s local|tcp N_RANKS; mpirun -np N %s mpi\n", argv[0], argv[0]);
    return 2;
}
