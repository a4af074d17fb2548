/* tests/kernels/comm_nccl_gpu.c - the real NCCL with the one rank that one GPU allows: it is loaded, a
 * communicator opens, every collective goes through the GPU's memory, and it closes. Skipped where
 * there is no GPU or no library. The CUDA runtime is loaded, too, so that the test links anywhere. */
#include "base/check.h"
#include "kernels/comm.h"

#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

enum { N = 100003, SKIPPED = 77 };

#define CUDA_FUNCTIONS(X) \
    X(cudaGetDeviceCount) \
    X(cudaMalloc)         \
    X(cudaFree)           \
    X(cudaMemcpy)         \
    X(cudaStreamCreate)   \
    X(cudaStreamQuery)    \
    X(cudaStreamDestroy)

static struct {
#define X(name) __typeof__(&name) name;
    CUDA_FUNCTIONS(X)
#undef X
} cuda;

static bool load_cuda(void)
{
    static const char *const names[] = {"libcudart.so", "libcudart.so.13", "libcudart.so.12"};
    void *handle = NULL;
    for (size_t i = 0; i < sizeof names / sizeof names[0] && handle == NULL; i++)
        handle = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
    if (handle == NULL) return false;
#define X(name)                                  \
    *(void **)&cuda.name = dlsym(handle, #name); \
    if (cuda.name == NULL) return false;
    CUDA_FUNCTIONS(X)
#undef X
    return true;
}

static int ask_stream(void *ctx)
{
    const cudaError_t state = cuda.cudaStreamQuery(ctx);
    if (state == cudaSuccess) return 0;
    return state == cudaErrorNotReady ? 1 : -1;
}

typedef err_t queue_fn(comm *c, void *in, void *out, err_info *info);

static err_t all_reduce(comm *c, void *in, void *out, err_info *info)
{
    return comm_all_reduce(c, in, out, N, DTYPE_F32, info);
}

static err_t all_reduce_in_place(comm *c, void *in, void *out, err_info *info)
{
    (void)in;
    return comm_all_reduce(c, out, out, 2 * (size_t)N, DTYPE_BF16, info);
}

static err_t all_gather(comm *c, void *in, void *out, err_info *info)
{
    return comm_all_gather(c, in, out, N * sizeof(float), info);
}

static err_t all_to_all(comm *c, void *in, void *out, err_info *info)
{
    return comm_all_to_all(c, in, out, N * sizeof(float), info);
}

static err_t broadcast(comm *c, void *in, void *out, err_info *info)
{
    (void)in;
    return comm_broadcast(c, out, N * sizeof(float), 0, info);
}

/* Of one rank every collective leaves `out` as `in` was, or as it was itself, which is the same here
 * from the second one on. */
static bool goes_through(comm *c, queue_fn *queue, const float *want)
{
    static float got[N];
    err_info info = {.code = ERR_OK};
    float *in = NULL, *out = NULL;
    assert(cuda.cudaMalloc((void **)&in, sizeof got) == cudaSuccess);
    assert(cuda.cudaMalloc((void **)&out, sizeof got) == cudaSuccess);
    assert(cuda.cudaMemcpy(in, want, sizeof got, cudaMemcpyHostToDevice) == cudaSuccess);
    const float *start = queue == all_reduce_in_place || queue == broadcast ? want : got;
    memset(got, 0, sizeof got);
    assert(cuda.cudaMemcpy(out, start, sizeof got, cudaMemcpyHostToDevice) == cudaSuccess);
    err_t err = queue(c, in, out, &info);
    if (err == ERR_OK) err = comm_wait(c, &info);
    if (err == ERR_OK) err = comm_barrier(c, &info);
    if (err != ERR_OK) fprintf(stderr, "%s\n", info.message);
    assert(cuda.cudaMemcpy(got, out, sizeof got, cudaMemcpyDeviceToHost) == cudaSuccess);
    assert(cuda.cudaFree(in) == cudaSuccess);
    assert(cuda.cudaFree(out) == cudaSuccess);
    return err == ERR_OK && memcmp(got, want, sizeof got) == 0;
}

static int run(comm *c)
{
    static queue_fn *const queues[] = {all_reduce, all_reduce_in_place, all_gather, all_to_all,
                                       broadcast};
    static float want[N];
    int status = EXIT_SUCCESS;
    for (uint32_t i = 0; i < N; i++)
        want[i] = f32_from_bits(0x3f803f80u + (i % 97 << 16)); /* finite as two bf16, too */
    for (size_t k = 0; k < sizeof queues / sizeof queues[0]; k++) {
        if (goes_through(c, queues[k], want)) continue;
        fprintf(stderr, "collective %zu of the list went wrong\n", k);
        status = EXIT_FAILURE;
    }
    return status;
}

int main(void)
{
    int n_devices = 0;
    cudaStream_t stream = NULL;
    if (!load_cuda() || cuda.cudaGetDeviceCount(&n_devices) != cudaSuccess || n_devices < 1) {
        printf("no GPU here\n");
        return SKIPPED;
    }
    assert(cuda.cudaStreamCreate(&stream) == cudaSuccess);
    comm *bootstrap = NULL, *c = NULL;
    err_info info = {.code = ERR_OK};
    const comm_config one = {.n_ranks = 1};
    if (comm_open(comm_find("local"), &one, &bootstrap, &info) != ERR_OK) return EXIT_FAILURE;
    const comm_config config = {.timeout_ms = 60000,
                                .open_timeout_ms = 120000,
                                .bootstrap = bootstrap,
                                .stream = stream,
                                .query = ask_stream,
                                .stream_ctx = stream};
    const err_t err = comm_open(comm_find("nccl"), &config, &c, &info);
    if (err != ERR_OK) fprintf(stderr, "%s\n", info.message);
    const int failed = err == ERR_UNSUPPORTED ? SKIPPED : EXIT_FAILURE;
    const int status = err == ERR_OK ? run(c) : failed;
    comm_close(c);
    comm_close(bootstrap);
    assert(cuda.cudaStreamDestroy(stream) == cudaSuccess);
    return status;
}
