/* kernels/dev_cuda_absent.c - a build without the CUDA toolkit: opening says so, and nothing else is of use. */
#include "kernels/dev_cuda.h"

#include "base/check.h"

#include <stdlib.h>

uint32_t dev_cuda_count(void)
{
    return 0;
}

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

/* The rest has no device to be called with. */

const dev_cuda_about *dev_cuda_get_about(const dev_cuda *d)
{
    (void)d;
    abort();
}

const cuda_ops *dev_cuda_get_ops(const dev_cuda *d)
{
    (void)d;
    abort();
}

err_t dev_cuda_alloc(dev_cuda *d, size_t bytes, void **out, err_info *info)
{
    (void)d;
    (void)bytes;
    (void)out;
    (void)info;
    abort();
}

size_t dev_cuda_room(const dev_cuda *d)
{
    (void)d;
    abort();
}

void dev_cuda_free(dev_cuda *d, void *data)
{
    (void)d;
    (void)data;
    abort();
}

err_t dev_cuda_upload(dev_cuda *d, void *to, const void *from, size_t bytes, err_info *info)
{
    (void)d;
    (void)to;
    (void)from;
    (void)bytes;
    (void)info;
    abort();
}

err_t dev_cuda_download(dev_cuda *d, void *to, const void *from, size_t bytes, err_info *info)
{
    return dev_cuda_upload(d, to, from, bytes, info);
}

err_t dev_cuda_zero(dev_cuda *d, void *data, size_t bytes, err_info *info)
{
    return dev_cuda_upload(d, data, NULL, bytes, info);
}

void dev_cuda_begin_graph(dev_cuda *d, uint64_t key)
{
    (void)d;
    (void)key;
    abort();
}

void dev_cuda_end_graph(dev_cuda *d)
{
    (void)d;
    abort();
}

bool dev_cuda_is_replaying(const dev_cuda *d)
{
    (void)d;
    abort();
}

void *dev_cuda_stream(const dev_cuda *d)
{
    (void)d;
    abort();
}

int dev_cuda_query(dev_cuda *d)
{
    (void)d;
    abort();
}
