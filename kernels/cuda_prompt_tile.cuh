/* kernels/cuda_prompt_tile.cuh - prompt_tile: 64 rows and 64 items of a product on tensor cores, by one block.
 *
 * The order of terms is that of cuda_product.cuh: strands one after the other. Shared memory: prompt_tiles. */
#ifndef KERNELS_CUDA_PROMPT_TILE_CUH
#define KERNELS_CUDA_PROMPT_TILE_CUH

#include "kernels/cuda_product.cuh"

enum { PROMPT_TILE = 64, PROMPT_THREADS = 128, PROMPT_UNITS = PROMPT_TILE * CHUNK / 8 };

/* A chunk's tile in shared memory: [64 rows or items][CHUNK] bf16, 16-byte units exchanged within odd rows, so
 * that the eight lanes of a 16-byte access meet all banks. */
static __device__ __forceinline__ uint32_t unit_at(uint32_t row, uint32_t unit)
{
    return row * (CHUNK / 8) + (unit ^ (row % 2 * 4));
}

typedef struct prompt_tiles {
    uint4 w[PROMPT_UNITS], high[PROMPT_UNITS], low[PROMPT_UNITS];
} prompt_tiles;

template <int TYPE>
static __device__ void load_tiles(prompt_tiles *tiles, const matrix *w, uint32_t first_row,
                                  const product_tokens *tokens, uint32_t column)
{
    const bool is_vector = is_vector_matrix(w);
    const float scale = chunk_scale<TYPE>(w, first_row, column);
    for (uint32_t i = threadIdx.x; i < PROMPT_UNITS; i += PROMPT_THREADS) {
        const uint32_t in_tile = i / (CHUNK / 8), unit = i % (CHUNK / 8), c = column + 8 * unit;
        const uint32_t item = tokens->first + in_tile, at = unit_at(in_tile, unit);
        float values[8] = {0, 0, 0, 0, 0, 0, 0, 0};
        tiles->w[at] = load_weights8<TYPE>(w, is_vector, first_row + in_tile, c);
        if (item < tokens->end && c < w->cols) {
            const float *x = token_row(tokens, item);
            load_x8(x, (reinterpret_cast<uintptr_t>(x) & 15) == 0, c, w->cols, values);
        }
        const halves8 h = TYPE == DTYPE_FP8 ? split8_scaled(values, scale) : split8(values);
        tiles->high[at] = {h.high[0], h.high[1], h.high[2], h.high[3]};
        tiles->low[at] = {h.low[0], h.low[1], h.low[2], h.low[3]};
    }
}

/* One chunk for a warp's 32 rows and 32 items: 2 x 4 fragments. */
static __device__ void multiply_tiles(const prompt_tiles *tiles, uint32_t row0, uint32_t item0,
                                      float d[2][4][4])
{
    const uint32_t lane = threadIdx.x % WARP, group = lane / 4, in_group = lane % 4;
    for (uint32_t s = 0; s < CHUNK / 32; s++) {
        uint4 w[2][2];
        for (uint32_t r = 0; r < 2; r++) {
            w[r][0] = tiles->w[unit_at(row0 + 16 * r + group, 4 * s + in_group)];
            w[r][1] = tiles->w[unit_at(row0 + 16 * r + group + 8, 4 * s + in_group)];
        }
        for (uint32_t n = 0; n < 4; n++) {
            const uint32_t at = unit_at(item0 + 8 * n + group, 4 * s + in_group);
            const uint4 high = tiles->high[at], low = tiles->low[at];
            const halves8 x = {{high.x, high.y, high.z, high.w}, {low.x, low.y, low.z, low.w}};
            for (uint32_t r = 0; r < 2; r++)
                step32(d[r][n], w[r][0], w[r][1], &x);
        }
    }
}

/* total += d, d = 0: the end of a strand. */
static __device__ void end_strand(float total[2][4][4], float d[2][4][4])
{
    for (int r = 0; r < 2; r++) {
        for (int n = 0; n < 4; n++) {
            for (int i = 0; i < 4; i++) {
                total[r][n][i] += d[r][n][i];
                d[r][n][i] = 0;
            }
        }
    }
}

/* A block of PROMPT_THREADS, whose four warps have 32 rows and items each; element i of fragment (r, n) of a lane is
 * at prompt_row, prompt_item. */
static __device__ void prompt_tile(prompt_tiles *tiles, const matrix *w, uint32_t first_row,
                                   const product_tokens *tokens, float total[2][4][4])
{
    const uint32_t warp = threadIdx.x / WARP;
    float d[2][4][4] = {};
    for (uint32_t strand = 0; strand < STRANDS; strand++) {
        for (uint32_t from = strand * CHUNK; from < w->cols; from += STRANDS * CHUNK) {
            if (w->type == DTYPE_FP8)
                load_tiles<DTYPE_FP8>(tiles, w, first_row, tokens, from);
            else if (w->type == DTYPE_MXFP4)
                load_tiles<DTYPE_MXFP4>(tiles, w, first_row, tokens, from);
            else
                load_tiles<DTYPE_BF16>(tiles, w, first_row, tokens, from);
            __syncthreads();
            multiply_tiles(tiles, warp / 2 * 32, warp % 2 * 32, d);
            __syncthreads();
        }
        end_strand(total, d);
    }
}

static __device__ __forceinline__ uint32_t prompt_row(int r, int i)
{
    return threadIdx.x / WARP / 2 * 32 + 16 * r + fragment_row(threadIdx.x % WARP, i);
}

static __device__ __forceinline__ uint32_t prompt_item(int n, int i)
{
    return threadIdx.x / WARP % 2 * 32 + 8 * n + fragment_item(threadIdx.x % WARP, i);
}

#endif
