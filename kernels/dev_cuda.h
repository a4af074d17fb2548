/* kernels/dev_cuda.h - one NVIDIA GPU: its memory, its stream, and its table of ops.
 *
 * A build without the CUDA toolkit has dev_cuda_open all the same, which says so; with it, the runtime is
 * linked statically, so the binary starts where no driver is, and open says what is missing.
 *
 * Ops are queued on the device's one stream, in order; none waits, allocates or looks at a result. The
 * structs are those of the CPU's ops (contracts in their headers), with every pointer into the GPU's memory,
 * arrays of descriptors (moe_args.expert) included; the args themselves are read before
 * the call returns. A failed launch is kept, and returned by the next dev_cuda_wait.
 *
 * Threads: one caller at a time. */
#ifndef KERNELS_DEV_CUDA_H
#define KERNELS_DEV_CUDA_H

#include "base/error.h"
#include "kernels/ops_cuda.h"

#include <stdbool.h>

typedef struct dev_cuda_config {
    uint32_t index; /* which GPU, as the driver counts them */
    float
        memory_share; /* (0, 1]: of its memory, what this process and all others may use together */
    uint32_t memory_parts; /* devices of the same GPU that divide what is free of that; 0: one */
    size_t scratch_bytes;  /* for ops that need room: see ops_cuda.h; 0 is allowed */
    bool has_graphs;       /* runs of ops are recorded: dev_cuda_begin_graph */
} dev_cuda_config;

/* What there is; measured when the device was opened. */
typedef struct dev_cuda_about {
    char name[64];
    uint8_t uuid[16]; /* the same in all processes */
    uint32_t compute_major, compute_minor;
    uint32_t n_multiprocessors;
    size_t memory_total, memory_free;
    size_t memory_limit;   /* bytes that dev_cuda_alloc gives, all together */
    uint32_t memory_parts; /* of how many that is one */
} dev_cuda_about;

#ifdef __cplusplus
extern "C" {
#endif

/* GPUs that the driver shows; 0 without toolkit or driver. */
uint32_t dev_cuda_count(void);

/* ERR_UNSUPPORTED: no toolkit in this build, no driver, no such GPU, or one older than sm_80.
 * ERR_BAD_CONFIG: memory_share. ERR_NO_MEMORY: scratch does not fit. */
err_t dev_cuda_open(const dev_cuda_config *config, dev_cuda **out, err_info *info) MUST_CHECK;
void dev_cuda_close(dev_cuda *d); /* NULL is fine; frees what was allocated through it */

const dev_cuda_about *dev_cuda_get_about(const dev_cuda *d);
const cuda_ops *dev_cuda_get_ops(const dev_cuda *d);

/* Aligned to 256. ERR_NO_MEMORY names the bytes wanted, in use and allowed, and how many share the GPU. Waits: not inside a step. */
err_t dev_cuda_alloc(dev_cuda *d, size_t bytes, void **out, err_info *info) MUST_CHECK;
void dev_cuda_free(dev_cuda *d, void *data); /* NULL is fine */
size_t dev_cuda_room(const dev_cuda *d);     /* bytes that dev_cuda_alloc may still give */

/* In stream order. When they return, `from` may be reused, and `to` of a download is filled; an upload does not wait
 * for what was queued before it. It also makes the GPU the calling thread's: a step begins with one. */
err_t dev_cuda_upload(dev_cuda *d, void *to, const void *from, size_t bytes,
                      err_info *info) MUST_CHECK;
err_t dev_cuda_download(dev_cuda *d, void *to, const void *from, size_t bytes,
                        err_info *info) MUST_CHECK;

/* Queued like an op. */
err_t dev_cuda_zero(dev_cuda *d, void *data, size_t bytes, err_info *info) MUST_CHECK;

/* Ops between the two are queued as one. When a key comes again they are those that it had the first time, with the
 * same arguments, whatever is called: only what the arguments lead to may have changed. No uploads, downloads or
 * allocations in between. */
void dev_cuda_begin_graph(dev_cuda *d, uint64_t key);
void dev_cuda_end_graph(dev_cuda *d);
bool dev_cuda_is_replaying(const dev_cuda *d); /* between the two: the graph is one of before */

/* For libraries that queue on the same stream, from a thread whose GPU this makes it. Of a query any thread: 0 all done,
 * 1 running or being recorded, when the stream may not be asked, -1 failed. */
void *dev_cuda_stream(const dev_cuda *d); /* cudaStream_t */
int dev_cuda_query(dev_cuda *d);

/* Until all that was queued is done; the first failure of any of it, now and ever after. */
err_t dev_cuda_wait(dev_cuda *d, err_info *info) MUST_CHECK;

#ifdef __cplusplus
}
#endif

#endif
