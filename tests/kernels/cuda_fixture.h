/* tests/kernels/cuda_fixture.h - what the tests of CUDA's twins share: a device, and data on it.
 *
 * The same tests run over the emulator (cuda_fixture_emulated.c) and on a GPU (cuda_fixture_gpu.c). Data goes up
 * by gpu_put, results start poisoned and come down by gpu_get. What was put is given back by gpu_close. */
#ifndef TESTS_KERNELS_CUDA_FIXTURE_H
#define TESTS_KERNELS_CUDA_FIXTURE_H

#include "kernels/dev_cuda.h"
#include "tests/kernels/fixture.h"

enum { GPU_BUFFERS_MAX = 1024 };

typedef struct gpu {
    dev_cuda *d;
    const cuda_ops *ops;
    dev *cpu; /* the reference */
    test_random random;
    void *buffers[GPU_BUFFERS_MAX];
    uint32_t n_buffers;
} gpu;

/* With a fresh seed, which also orders the emulator's threads. */
gpu gpu_open(size_t scratch_bytes);
void gpu_close(gpu *g);

void *gpu_put(gpu *g, const void *data, size_t bytes);
float *gpu_poisoned(gpu *g, size_t n);
void gpu_get(gpu *g, void *to, const void *from,
             size_t bytes);                                 /* waits; fails if a kernel failed */
float *gpu_get_floats(gpu *g, const float *from, size_t n); /* free() it */

matrix gpu_put_matrix(gpu *g, const matrix *w); /* aligned, as a loader does it */
/* At an address and with rows that no 16-byte load may touch. */
matrix gpu_put_matrix_unaligned(gpu *g, const matrix *w);

/* Threads of the emulator in an order made from the seed; nothing on a GPU. */
void gpu_shuffle(uint64_t seed);

#endif
