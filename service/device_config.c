/* service/device_config.c - see device_config.h. */
#include "service/device_config.h"

const char *const device_kinds[] = {
    [DEV_CPU] = "cpu", [DEV_CUDA] = "cuda", [DEV_AUTO] = "auto", NULL};

err_t device_open(const device_config *config, const device_user *user, dev **out, err_info *info)
{
    const dev_config device = {.isa = config->isa,
                               .n_threads = user->n_threads,
                               .kind = (dev_kind)config->kind,
                               .gpu = user->rank,
                               .n_gpu_users = user->n_here,
                               .gpu_memory_share = (float)config->gpu_memory_share,
                               .gpu_graphs = config->gpu_graphs};
    return dev_open(&device, out, info);
}
