/* kernels/comm_nccl_absent.c - the table's entry in a build without NCCL: it says so. */
#include "kernels/comm_impl.h"

static err_t nccl_probe(const comm_config *config, err_info *info)
{
    (void)config;
    return err_set(info, ERR_UNSUPPORTED, "nccl: this binary was built without nccl.h");
}

static err_t nccl_open(const comm_config *config, comm **out, err_info *info)
{
    (void)out;
    return nccl_probe(config, info);
}

const comm_ops comm_ops_nccl = {.name = "nccl", .probe = nccl_probe, .open = nccl_open};
