/* tests/kernels/cuda_emulated_dev.h - the emulator as its tests see it. C and C++. */
#ifndef TESTS_KERNELS_CUDA_EMULATED_DEV_H
#define TESTS_KERNELS_CUDA_EMULATED_DEV_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* From here on threads and blocks run in orders made from `seed`; 0: first to last. */
void cuda_emulated_seed(uint64_t seed);

#ifdef __cplusplus
}
#endif

#endif
