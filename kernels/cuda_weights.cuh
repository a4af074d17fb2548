/* kernels/cuda_weights.cuh - weights as tensor cores take them: eight at a time, as bf16.
 *
 * Codes of fp8 and mxfp4 are exact in bf16. mxfp4's scale is in the weight; fp8's is for x (cuda_product.cuh). */
#ifndef KERNELS_CUDA_WEIGHTS_CUH
#define KERNELS_CUDA_WEIGHTS_CUH

#include "kernels/cuda_device.cuh"

/* Whether tensor cores take it, as bf16. */
static __host__ __device__ __forceinline__ bool is_tensor_type(dtype type)
{
    return type == DTYPE_BF16 || type == DTYPE_FP8 || type == DTYPE_MXFP4;
}

/* The place of a row among those of the storage. */
static __device__ __forceinline__ size_t stored_row(const matrix *w, uint32_t row)
{
    return static_cast<size_t>(row) * (w->row_step > 1 ? w->row_step : 1);
}

/* Whether eight values, as they are stored, can be loaded at once. */
static __device__ __forceinline__ bool is_vector_matrix(const matrix *w)
{
    const uintptr_t unit = w->type == DTYPE_MXFP4 ? 4 : w->type == DTYPE_FP8 ? 8 : 16;
    return (reinterpret_cast<uintptr_t>(w->data) & (unit - 1)) == 0 && w->cols % 8 == 0;
}

/* Two exact bf16 of two floats. */
static __device__ __forceinline__ uint32_t upper_halves(float low, float high)
{
    return __float_as_uint(low) >> 16 | (__float_as_uint(high) & 0xffff0000u);
}

static __device__ __forceinline__ uint4 bf16_of_fp8(uint64_t codes)
{
    uint32_t pair[4];
    for (int i = 0; i < 4; i++) {
        const uint32_t two = static_cast<uint32_t>(codes >> 16 * i) & 0xffffu;
        pair[i] = upper_halves(cuda_f32_from_fp8(two & 0xffu), cuda_f32_from_fp8(two >> 8));
    }
    return {pair[0], pair[1], pair[2], pair[3]};
}

static __device__ __forceinline__ uint4 bf16_of_mxfp4(uint32_t codes, uint32_t power)
{
    const float scale = __uint_as_float(power == 0 ? 0x00400000u : power << 23);
    uint32_t pair[4];
    for (int i = 0; i < 4; i++) {
        const float low = cuda_f32_from_fp4(codes >> 8 * i);
        const float high = cuda_f32_from_fp4(codes >> (8 * i + 4));
        pair[i] = upper_halves(low * scale, high * scale);
    }
    return {pair[0], pair[1], pair[2], pair[3]};
}

/* Eight bf16 of row `row` from column `column` on; zeros behind the end of the row or of the matrix. */
template <int TYPE>
static __device__ __forceinline__ uint4 load_weights8(const matrix *w, bool is_vector, uint32_t row,
                                                      uint32_t column)
{
    uint4 out = {0, 0, 0, 0};
    if (row >= w->rows || column >= w->cols) return out;
    const size_t at = stored_row(w, row) * w->cols + column; /* a multiple of 8 of mxfp4 */
    if (TYPE == DTYPE_MXFP4) {
        const uint8_t *codes = static_cast<const uint8_t *>(w->data) + at / 2;
        const uint32_t power = static_cast<const uint8_t *>(w->scale)[at / MX_BLOCK];
        if (is_vector) return bf16_of_mxfp4(*reinterpret_cast<const uint32_t *>(codes), power);
        const uint32_t low = codes[0] | static_cast<uint32_t>(codes[1]) << 8;
        const uint32_t high = codes[2] | static_cast<uint32_t>(codes[3]) << 8;
        return bf16_of_mxfp4(low | high << 16, power);
    }
    if (TYPE == DTYPE_FP8) {
        const uint8_t *codes = static_cast<const uint8_t *>(w->data) + at;
        if (is_vector) return bf16_of_fp8(*reinterpret_cast<const uint64_t *>(codes));
        uint64_t some = 0;
        for (uint32_t i = 0; i < 8 && column + i < w->cols; i++)
            some |= static_cast<uint64_t>(codes[i]) << 8 * i;
        return bf16_of_fp8(some);
    }
    const uint16_t *from = static_cast<const uint16_t *>(w->data) + at;
    if (is_vector) return cuda_load16(from);
    uint32_t pair[4] = {0, 0, 0, 0};
    for (uint32_t i = 0; i < 8 && column + i < w->cols; i++)
        pair[i / 2] |= static_cast<uint32_t>(from[i]) << 16 * (i % 2);
    out.x = pair[0], out.y = pair[1], out.z = pair[2], out.w = pair[3];
    return out;
}

/* What x is multiplied by beside the chunk at `column` of rows of a tile, which begins at a multiple of its rows behind
 * the matrix's first row: no block of scales ends within it. */
template <int TYPE>
static __device__ __forceinline__ float chunk_scale(const matrix *w, uint32_t first_row,
                                                    uint32_t column)
{
    if (TYPE != DTYPE_FP8 || first_row >= w->rows) return 1;
    const size_t block =
        (w->first_row + first_row) / w->block_rows * div_up(w->cols, w->block_cols);
    return static_cast<const float *>(w->scale)[block + column / w->block_cols];
}

#endif
