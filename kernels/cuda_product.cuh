/* kernels/cuda_product.cuh - the order of the terms in a product with a weight matrix, and its inner loops.
 *
 * bf16 weights: tensor cores. A row's columns are cut into chunks of CHUNK; chunk c belongs to strand
 * c % STRANDS. A strand adds its chunks in rising order in one f32 accumulator of the tensor core, 16 columns
 * a time, first the upper and then the lower half of x, and the strands are added in order. Small batches give
 * each strand to a warp (split over columns, so that few rows fill the GPU), prompts go through the strands one
 * after the other. Both feed column c of x to the same input of the tensor core, so a row has the same bits
 * in both, whatever else is in the batch.
 *
 * x in two halves: x = h + l + r, h = bf16(x), l = bf16(x - h), |r| <= 2^-17 |x|. So bf16 weights meet nearly
 * the f32 activations that the CPU uses, at twice the (otherwise idle) tensor work of rounding them.
 *
 * fp8 and mxfp4 weights go the way of bf16, in which their codes are exact. mxfp4's scales are powers of two and
 * go into the bf16 weight; fp8's scale of a block stands for all rows of a tile and all columns of a chunk
 * (SCALE_BLOCK) and is multiplied into x before that is split.
 *
 * f32 and f16 weights: fused multiply-adds. Lane i of a warp takes columns 4 i .. 4 i + 3 of every 128, one
 * accumulator each row and token, and the lanes are added by a fixed tree.
 *
 * A lane of the tensor core's fragments (see cuda_mma_bf16) wants columns 2t, 2t + 1, 2t + 8, 2t + 9 of 16. Which
 * column sits where is free as long as w and x agree; here lane t holds columns 8t .. 8t + 7 of 32, 16 bytes
 * in one load, that are inputs of two steps. No weight goes through shared memory in small batches. */
#ifndef KERNELS_CUDA_PRODUCT_CUH
#define KERNELS_CUDA_PRODUCT_CUH

#include "kernels/cuda_weights.cuh"

enum { CHUNK = 64, STRANDS = 8, TILE_ROWS = 16, TILE_TOKENS = 8 };

/* Which rows of x a product reads, and where its results go. */
typedef struct product_tokens {
    const float *x;
    size_t x_stride;
    const uint32_t *pairs; /* token of item i: pairs[i] / per; NULL: i */
    uint32_t per;
    uint32_t first, end; /* items */
} product_tokens;

static __device__ __forceinline__ const float *token_row(const product_tokens *tokens,
                                                         uint32_t item)
{
    const uint32_t t = tokens->pairs != NULL ? tokens->pairs[item] / tokens->per : item;
    return tokens->x + t * tokens->x_stride;
}

static_assert(int{SCALE_BLOCK} == int{CHUNK}, "a chunk has one scale");

/* Eight values of x as upper and lower halves. */
typedef struct halves8 {
    uint32_t high[4], low[4];
} halves8;

static __device__ __forceinline__ halves8 split8(const float x[8])
{
    halves8 out;
    for (int i = 0; i < 4; i++) {
        const uint32_t high = cuda_pack_bf16(x[2 * i], x[2 * i + 1]);
        out.high[i] = high;
        out.low[i] = cuda_pack_bf16(x[2 * i] - cuda_f32_from_bf16(high & 0xffffu),
                                    x[2 * i + 1] - cuda_f32_from_bf16(high >> 16));
    }
    return out;
}

static __device__ __forceinline__ halves8 split8_scaled(const float x[8], float scale)
{
    float scaled[8];
    for (int i = 0; i < 8; i++)
        scaled[i] = x[i] * scale;
    return split8(scaled);
}

static __device__ __forceinline__ void load_x8(const float *x, bool is_vector, uint32_t column,
                                               uint32_t n_columns, float out[8])
{
    if (is_vector && column + 8 <= n_columns) {
        const uint4 a = cuda_load16(x + column), b = cuda_load16(x + column + 4);
        out[0] = __uint_as_float(a.x), out[1] = __uint_as_float(a.y);
        out[2] = __uint_as_float(a.z), out[3] = __uint_as_float(a.w);
        out[4] = __uint_as_float(b.x), out[5] = __uint_as_float(b.y);
        out[6] = __uint_as_float(b.z), out[7] = __uint_as_float(b.w);
        return;
    }
    for (uint32_t i = 0; i < 8; i++)
        out[i] = column + i < n_columns ? x[column + i] : 0;
}

/* 32 columns: two steps of 16, each with the upper and then the lower half of x. w0 is row g of the tile, w1
 * row g + 8. */
static __device__ __forceinline__ void step32(float d[4], uint4 w0, uint4 w1, const halves8 *x)
{
    const uint32_t a[4] = {w0.x, w1.x, w0.y, w1.y}, b[4] = {w0.z, w1.z, w0.w, w1.w};
    cuda_mma_bf16(d, a, x->high[0], x->high[1]);
    cuda_mma_bf16(d, a, x->low[0], x->low[1]);
    cuda_mma_bf16(d, b, x->high[2], x->high[3]);
    cuda_mma_bf16(d, b, x->low[2], x->low[3]);
}

/* Row and item, both counted from the tile's first, of element i of a lane's fragment. */
static __device__ __forceinline__ uint32_t fragment_row(uint32_t lane, int i)
{
    return lane / 4 + (i < 2 ? 0 : 8);
}

static __device__ __forceinline__ uint32_t fragment_item(uint32_t lane, int i)
{
    return lane % 4 * 2 + static_cast<uint32_t>(i) % 2;
}

#endif
