/* tests/kernels/dev_cuda_emulated.cc - kernels/dev_cuda.h over the emulator: its memory is the host's, poisoned
 * when it is new, and of exact sizes, so that a sanitizer sees every touch beside it. */
#include "base/check.h"
#include "tests/kernels/cuda_emulated.h"

extern "C" {
#include "kernels/dev_cuda.h"
}
#include "kernels/dev_cuda_impl.h"

#include <new>
#include <stdlib.h>

struct dev_cuda {
    cuda_queue queue;
    dev_cuda_about about;
};

err_t dev_cuda_open(const dev_cuda_config *config, dev_cuda **out, err_info *info)
{
    dev_cuda *d = static_cast<dev_cuda *>(calloc(1, sizeof(dev_cuda)));
    *out = nullptr;
    if (d == nullptr) return err_set(info, ERR_NO_MEMORY, "cuda: out of memory");
    d->about.memory_limit = SIZE_MAX;
    d->queue.n_multiprocessors = d->about.n_multiprocessors = 2;
    if (config->scratch_bytes > 0) {
        const err_t err = dev_cuda_alloc(d, config->scratch_bytes, &d->queue.scratch, info);
        if (err != ERR_OK) {
            free(d);
            return err;
        }
        d->queue.scratch_bytes = config->scratch_bytes;
    }
    if (config->has_graphs) d->queue.graphs = cuda_graphs_open();
    *out = d;
    return ERR_OK;
}

void dev_cuda_close(dev_cuda *d)
{
    if (d == nullptr) return;
    cuda_graphs_close(d->queue.graphs);
    free(d->queue.scratch);
    free(d);
}

const dev_cuda_about *dev_cuda_get_about(const dev_cuda *d)
{
    return &d->about;
}

const cuda_ops *dev_cuda_get_ops(const dev_cuda *)
{
    return &cuda_ops_table;
}

err_t dev_cuda_alloc(dev_cuda *, size_t bytes, void **out, err_info *info)
{
    *out = nullptr;
    if (posix_memalign(out, 256, bytes > 0 ? bytes : 1) != 0)
        return err_set(info, ERR_NO_MEMORY, "cuda: out of memory");
    memset(*out, 0xff, bytes);
    return ERR_OK;
}

size_t dev_cuda_room(const dev_cuda *d)
{
    return d->about.memory_limit;
}

void dev_cuda_free(dev_cuda *, void *data)
{
    free(data);
}

/* Memory is not moved while a graph is made or runs. */
static void check_no_graph(dev_cuda *d)
{
    if (d->queue.run != CUDA_RUN_AT_ONCE) d->queue.failure = 1;
}

err_t dev_cuda_upload(dev_cuda *d, void *to, const void *from, size_t bytes, err_info *info)
{
    check_no_graph(d);
    memcpy(to, from, bytes);
    return dev_cuda_wait(d, info);
}

err_t dev_cuda_download(dev_cuda *d, void *to, const void *from, size_t bytes, err_info *info)
{
    check_no_graph(d);
    memcpy(to, from, bytes);
    return dev_cuda_wait(d, info);
}

err_t dev_cuda_zero(dev_cuda *d, void *data, size_t bytes, err_info *info)
{
    emu_launched zero = {};
    zero.kernel = reinterpret_cast<const void *>(&dev_cuda_zero);
    zero.body = [=] { memset(data, 0, bytes); };
    zero.grid = dim3(1);
    zero.n_threads = 1;
    emu_queue(d, zero);
    return dev_cuda_wait(d, info);
}

uint32_t dev_cuda_count(void)
{
    return 1;
}

bool dev_cuda_is_replaying(const dev_cuda *d)
{
    return d->queue.run == CUDA_RUN_REPLAYS;
}

void *dev_cuda_stream(const dev_cuda *)
{
    return nullptr;
}

int dev_cuda_query(dev_cuda *)
{
    return 0;
}

err_t dev_cuda_wait(dev_cuda *d, err_info *info)
{
    if (d->queue.failure == 0) return ERR_OK;
    return err_set(info, ERR_SYSTEM, "cuda: a kernel broke a rule, see above");
}
