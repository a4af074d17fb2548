/* kernels/comm_mpi_absent.c - the table's entry in a build without MPI: it says so. */
#include "kernels/comm_impl.h"

static err_t mpi_open(const comm_config *config, comm **out, err_info *info)
{
    (void)config;
    (void)out;
    return err_set(info, ERR_UNSUPPORTED, "mpi: this binary was built without it (PIKV_MPI)");
}

const comm_ops comm_ops_mpi = {.name = "mpi", .open = mpi_open};
