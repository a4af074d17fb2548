/* kernels/dev_cuda_absent.c - a build without the CUDA toolkit: opening says so, and nothing else is called. */
#include "base/check.h"
#include "kernels/dev_cuda.h"

err_t dev_cuda_open(const dev_cuda_config *config, dev_cuda **out, err_info *info)
{
    (void)config;
    *out = NULL;
    return err_set(info, ERR_UNSUPPORTED, "cuda: this binary was built without the CUDA toolkit");
}

void dev_cuda_close(dev_cuda *d)
{
    assert(d == NULL); /* there is no other */
}
