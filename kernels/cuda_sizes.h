/* kernels/cuda_sizes.h - arithmetic of a GPU's memory, which builds without one have as well: plans ask. */
#ifndef KERNELS_CUDA_SIZES_H
#define KERNELS_CUDA_SIZES_H

#include "base/error.h"

#include <stddef.h>
#include <stdint.h>

/* The arrays of cuda_moe.cu's device_plan, in its order, and the end. */
enum { CUDA_MOE_ARRAYS = 7 };

#ifdef __cplusplus
extern "C" {
#endif

/* Byte offsets of the arrays, then of their end. ERR_OVERFLOW. */
err_t cuda_moe_lay_out(size_t n_pairs, size_t dim, size_t ffn, size_t n_experts,
                       size_t at[CUDA_MOE_ARRAYS + 1]) MUST_CHECK;

/* Of a GPU with so many bytes, of which others use some: what may be had under --gpu-memory-utilization. */
size_t dev_cuda_limit(size_t total_bytes, size_t used_bytes, double share);

/* ERR_NO_MEMORY names the bytes wanted, in use and allowed, and among how many devices the GPU is divided. */
err_t dev_cuda_check_room(size_t wanted_bytes, size_t in_use_bytes, size_t allowed_bytes,
                          uint32_t n_parts, err_info *info) MUST_CHECK;

#ifdef __cplusplus
}
#endif

#endif
