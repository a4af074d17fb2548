/* tests/kernels/comm_mpi_rank.c - one rank of mpirun: keeps the promises of comm_promises.h, all of the
 * lasting ones, or the one ending that is its argument. Says "kept" once for a promise on rank 0, or once
 * on every rank for an ending; comm_mpi.sh counts them. */
#include "tests/kernels/comm_promises.h"

static int keep(comm *c, const char *ending)
{
    for (const comm_promise *p = ending == NULL ? comm_promises : comm_endings; p->name != NULL;
         p++) {
        if (ending != NULL && strcmp(p->name, ending) != 0) continue;
        if (!p->is_kept(c)) {
            fprintf(stderr, "rank %u: not kept: %s\n", comm_rank(c), p->name);
            comm_abort(c, "a promise was not kept");
            return 1;
        }
        if (comm_rank(c) == 0 || ending != NULL) printf("kept %s\n", p->name);
    }
    fflush(stdout);
    return 0;
}

int main(int argc, char **argv)
{
    const char *ending = argc > 1 ? argv[1] : NULL;
    const comm_config config = {.timeout_ms = ending != NULL ? COMM_ENDING_TIMEOUT_MS : 120000,
                                .fingerprint = 42};
    comm *c = NULL;
    err_info info = {.code = ERR_OK};
    if (comm_open(comm_find("mpi"), &config, &c, &info) != ERR_OK) {
        fprintf(stderr, "%s\n", info.message);
        return 1;
    }
    const int status = keep(c, ending);
    comm_close(c);
    return status;
}
