/* kernels/dev_cuda.c - one GPU through the CUDA runtime: see dev_cuda.h.
 *
 * An upload waits for nothing that was queued before it: the runtime copies what is small, and what is large goes
 * through two buffers of pinned memory in turn, one being filled while the GPU reads the other. A download is the
 * one place where a step waits.
 *
 * In C, as everything of the runtime that is no kernel. The order in open is that of what can be missing:
 * a driver, a GPU, that GPU, a recent one, memory. Errors of the runtime are sticky or not as it likes; what
 * went wrong first is kept here, so that the cause is reported and not its consequences. */
#include "kernels/dev_cuda.h"

#include "base/check.h"
#include "kernels/cuda_sizes.h"
#include "kernels/dev_cuda_impl.h"

#include <cuda_runtime_api.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    COMPUTE_MAJOR_MIN = 8, /* bf16 products and 16-byte asynchronous copies */
    N_PINNED = 2,
    PINNED_BYTES = 16 << 20,
    PINNED_FROM_BYTES = 1 << 20 /* below it two copies on the host cost more than they save */
};

typedef struct pinned {
    void *data; /* [PINNED_BYTES]; NULL: there was no memory to pin, and the runtime copies all */
    cudaEvent_t sent;
    bool is_on_its_way; /* until `sent` */
} pinned;

/* One allocation, so that its bytes can be given back; in front of nothing, in a list of its own. */
typedef struct allocation {
    void *data;
    size_t bytes;
    struct allocation *next;
} allocation;

struct dev_cuda {
    cuda_queue queue; /* first: cuda_queue_of */
    dev_cuda_about about;
    allocation *allocations;
    size_t allocated_bytes;
    int index;
    pinned pinned[N_PINNED];
    uint32_t next_pinned;
};

static err_t fail(err_info *info, err_t code, const char *what, cudaError_t error)
{
    (void)cudaGetLastError(); /* reported: not to be found again by a later launch */
    return err_set(info, code, "cuda: %s: %s", what, cudaGetErrorString(error));
}

static err_t find_gpu(const dev_cuda_config *config, dev_cuda_about *about, err_info *info)
{
    int n_gpus = 0;
    struct cudaDeviceProp properties;
    cudaError_t error = cudaGetDeviceCount(&n_gpus);
    if (error != cudaSuccess) return fail(info, ERR_UNSUPPORTED, "no usable GPU", error);
    if (config->index >= (uint32_t)n_gpus) {
        return err_set(info, ERR_UNSUPPORTED, "cuda: there is no GPU %u, the driver knows %d",
                       config->index, n_gpus);
    }
    error = cudaGetDeviceProperties(&properties, (int)config->index);
    if (error != cudaSuccess) return fail(info, ERR_SYSTEM, "properties", error);
    if (properties.major < COMPUTE_MAJOR_MIN) {
        return err_set(info, ERR_UNSUPPORTED,
                       "cuda: %.64s has compute capability %d.%d, 8.0 is needed", properties.name,
                       properties.major, properties.minor);
    }
    snprintf(about->name, sizeof about->name, "%.63s", properties.name);
    about->compute_major = (uint32_t)properties.major;
    about->compute_minor = (uint32_t)properties.minor;
    memcpy(about->uuid, properties.uuid.bytes, sizeof about->uuid);
    about->n_multiprocessors = (uint32_t)properties.multiProcessorCount;
    return ERR_OK;
}

/* What others use is taken off first: the share is of the whole GPU. */
static err_t measure_memory(const dev_cuda_config *config, dev_cuda_about *about, err_info *info)
{
    const cudaError_t error = cudaMemGetInfo(&about->memory_free, &about->memory_total);
    if (error != cudaSuccess) return fail(info, ERR_SYSTEM, "memory", error);
    const size_t used = about->memory_total - about->memory_free;
    about->memory_parts = config->memory_parts > 0 ? config->memory_parts : 1;
    about->memory_limit = dev_cuda_limit(about->memory_total, used, (double)config->memory_share) /
                          about->memory_parts;
    return ERR_OK;
}

/* What cannot be had is done without. */
static void open_pinned(dev_cuda *d)
{
    for (uint32_t i = 0; i < N_PINNED; i++) {
        pinned *p = &d->pinned[i];
        if (cudaEventCreateWithFlags(&p->sent, cudaEventDisableTiming) != cudaSuccess)
            p->sent = NULL;
        if (p->sent != NULL && cudaMallocHost(&p->data, PINNED_BYTES) != cudaSuccess)
            p->data = NULL;
        (void)cudaGetLastError();
    }
}

static void close_pinned(dev_cuda *d)
{
    for (uint32_t i = 0; i < N_PINNED; i++) {
        if (d->pinned[i].data != NULL) (void)cudaFreeHost(d->pinned[i].data);
        if (d->pinned[i].sent != NULL) (void)cudaEventDestroy(d->pinned[i].sent);
    }
}

static err_t open_queue(dev_cuda *d, const dev_cuda_config *config, err_info *info)
{
    cudaStream_t stream;
    cudaError_t error = cudaSetDevice(d->index);
    if (error != cudaSuccess) return fail(info, ERR_SYSTEM, "cannot use the GPU", error);
    error = cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
    if (error != cudaSuccess) return fail(info, ERR_SYSTEM, "cannot make a stream", error);
    d->queue.stream = stream;
    d->queue.n_multiprocessors = d->about.n_multiprocessors;
    open_pinned(d);
    if (config->has_graphs) d->queue.graphs = cuda_graphs_open();
    TRY(measure_memory(config, &d->about, info));
    if (config->scratch_bytes == 0) return ERR_OK;
    TRY(dev_cuda_alloc(d, config->scratch_bytes, &d->queue.scratch, info));
    d->queue.scratch_bytes = config->scratch_bytes;
    return ERR_OK;
}

uint32_t dev_cuda_count(void)
{
    int n = 0;
    if (cudaGetDeviceCount(&n) == cudaSuccess) return (uint32_t)n;
    (void)cudaGetLastError();
    return 0;
}

err_t dev_cuda_open(const dev_cuda_config *config, dev_cuda **out, err_info *info)
{
    *out = NULL;
    if (!(config->memory_share > 0 && config->memory_share <= 1)) {
        return err_set(info, ERR_BAD_CONFIG, "cuda: a memory share of %g is outside (0, 1]",
                       (double)config->memory_share);
    }
    dev_cuda *d = calloc(1, sizeof *d);
    if (d == NULL) return err_set(info, ERR_NO_MEMORY, "cuda: out of memory");
    d->index = (int)config->index;
    if (pthread_mutex_init(&d->queue.recording, NULL) != 0) {
        free(d);
        return err_set(info, ERR_NO_MEMORY, "cuda: no mutex");
    }
    err_t err = find_gpu(config, &d->about, info);
    if (err == ERR_OK) err = open_queue(d, config, info);
    if (err != ERR_OK) {
        dev_cuda_close(d);
        return err;
    }
    *out = d;
    return ERR_OK;
}

void dev_cuda_close(dev_cuda *d)
{
    if (d == NULL) return;
    if (d->queue.stream != NULL) (void)cudaStreamSynchronize(d->queue.stream);
    while (d->allocations != NULL)
        dev_cuda_free(d, d->allocations->data);
    close_pinned(d);
    cuda_graphs_close(d->queue.graphs);
    if (d->queue.stream != NULL) (void)cudaStreamDestroy(d->queue.stream);
    pthread_mutex_destroy(&d->queue.recording);
    free(d);
}

const dev_cuda_about *dev_cuda_get_about(const dev_cuda *d)
{
    return &d->about;
}

const cuda_ops *dev_cuda_get_ops(const dev_cuda *d)
{
    (void)d; /* one table for all GPUs; kernels choose by shape */
    return &cuda_ops_table;
}

err_t dev_cuda_alloc(dev_cuda *d, size_t bytes, void **out, err_info *info)
{
    *out = NULL;
    const size_t wanted = bytes > 0 ? bytes : 1;
    TRY(dev_cuda_check_room(wanted, d->allocated_bytes, d->about.memory_limit,
                            d->about.memory_parts, info));
    allocation *a = calloc(1, sizeof *a);
    if (a == NULL) return err_set(info, ERR_NO_MEMORY, "cuda: out of memory");
    cudaError_t error = cudaSetDevice(d->index); /* of this thread, which may have opened others */
    if (error == cudaSuccess) error = cudaMalloc(&a->data, wanted);
    if (error != cudaSuccess) {
        free(a);
        return fail(info, ERR_NO_MEMORY, "cannot allocate", error);
    }
    a->bytes = wanted;
    a->next = d->allocations;
    d->allocations = a;
    d->allocated_bytes += wanted;
    *out = a->data;
    return ERR_OK;
}

void dev_cuda_free(dev_cuda *d, void *data)
{
    if (data == NULL) return;
    allocation **link = &d->allocations;
    while (*link != NULL && (*link)->data != data)
        link = &(*link)->next;
    assert(*link != NULL); /* of another device, or freed before */
    allocation *a = *link;
    *link = a->next;
    d->allocated_bytes -= a->bytes;
    (void)cudaFree(a->data); /* a failure is an earlier kernel's, which dev_cuda_wait reports */
    free(a);
}

size_t dev_cuda_room(const dev_cuda *d)
{
    return d->about.memory_limit - d->allocated_bytes;
}

static err_t keep(dev_cuda *d, cudaError_t error, err_info *info)
{
    if (error == cudaSuccess) return ERR_OK;
    if (d->queue.failure == 0) d->queue.failure = (int)error;
    return fail(info, ERR_SYSTEM, "a copy failed", error);
}

/* One part, through the buffer whose turn it is. */
static cudaError_t send_pinned(dev_cuda *d, void *to, const void *from, size_t bytes)
{
    pinned *p = &d->pinned[d->next_pinned++ % N_PINNED];
    cudaError_t error = p->is_on_its_way ? cudaEventSynchronize(p->sent) : cudaSuccess;
    if (error != cudaSuccess) return error;
    memcpy(p->data, from, bytes);
    error = cudaMemcpyAsync(to, p->data, bytes, cudaMemcpyHostToDevice, d->queue.stream);
    if (error == cudaSuccess) error = cudaEventRecord(p->sent, d->queue.stream);
    p->is_on_its_way = error == cudaSuccess;
    return error;
}

err_t dev_cuda_upload(dev_cuda *d, void *to, const void *from, size_t bytes, err_info *info)
{
    const bool is_pinned =
        bytes >= PINNED_FROM_BYTES && d->pinned[0].data != NULL && d->pinned[1].data != NULL;
    cudaError_t error = cudaSetDevice(d->index);
    if (error == cudaSuccess && !is_pinned)
        error = cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, d->queue.stream);
    for (size_t at = 0; at < bytes && is_pinned && error == cudaSuccess; at += PINNED_BYTES) {
        const size_t n = bytes - at < PINNED_BYTES ? bytes - at : PINNED_BYTES;
        error = send_pinned(d, (char *)to + at, (const char *)from + at, n);
    }
    return keep(d, error, info);
}

err_t dev_cuda_download(dev_cuda *d, void *to, const void *from, size_t bytes, err_info *info)
{
    cudaError_t error = cudaSetDevice(d->index);
    if (error == cudaSuccess)
        error = cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, d->queue.stream);
    if (error != cudaSuccess) return keep(d, error, info);
    return dev_cuda_wait(d, info);
}

err_t dev_cuda_zero(dev_cuda *d, void *data, size_t bytes, err_info *info)
{
    if (d->queue.run == CUDA_RUN_REPLAYS) return ERR_OK; /* the graph has it */
    cudaError_t error = cudaSetDevice(d->index);
    if (error == cudaSuccess) error = cudaMemsetAsync(data, 0, bytes, d->queue.stream);
    return keep(d, error, info);
}

bool dev_cuda_is_replaying(const dev_cuda *d)
{
    return d->queue.run == CUDA_RUN_REPLAYS;
}

void *dev_cuda_stream(const dev_cuda *d)
{
    (void)cudaSetDevice(d->index); /* a failure is the next upload's, which tells */
    return d->queue.stream;
}

int dev_cuda_query(dev_cuda *d)
{
    if (pthread_mutex_trylock(&d->queue.recording) != 0) return 1;
    const cudaError_t error = cudaStreamQuery(d->queue.stream);
    pthread_mutex_unlock(&d->queue.recording);
    return error == cudaSuccess ? 0 : error == cudaErrorNotReady ? 1 : -1;
}

err_t dev_cuda_wait(dev_cuda *d, err_info *info)
{
    const cudaError_t error = cudaStreamSynchronize(d->queue.stream);
    if (error != cudaSuccess && d->queue.failure == 0) d->queue.failure = (int)error;
    if (d->queue.failure == 0) return ERR_OK;
    return fail(info, ERR_SYSTEM, "the GPU failed", (cudaError_t)d->queue.failure);
}
