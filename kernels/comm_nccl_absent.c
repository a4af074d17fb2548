/* kernels/comm_nccl_absent.c - the table's entry in a build without NCCL: it says so. */
#include "kernels/comm_impl.h"

static err_t nccl_open(const comm_config *config, comm **out, err_info *info)
{
    (void)config;
    (void)out;
    return err_set(info, ERR_UNSUPPORTED, "nccl: this binary was built without nccl.h");
}

const comm_ops comm_ops_nccl = {.name = "nccl", .open = nccl_open};
