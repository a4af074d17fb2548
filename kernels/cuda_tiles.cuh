/* kernels/cuda_tiles.cuh - the tiles that products are made of, in the order of cuda_product.cuh.
 *
 *   strand_tile   one warp    a strand of 16 rows and 8 items; registers alone
 *   lanes_tile    one warp    2 rows and 8 items; f32 and f16
 *   small_tile    one block   16 rows and 8 items, all strands, or 2 rows a warp
 * and, in cuda_prompt_tile.cuh, prompt_tile: one block, 64 rows and 64 items. */
#ifndef KERNELS_CUDA_TILES_CUH
#define KERNELS_CUDA_TILES_CUH

#include "kernels/cuda_product.cuh"

enum {
    SMALL = 4 * TILE_TOKENS, /* items that go through strand tiles, 8 a time; more: prompt tiles */
    SMALL_THREADS = STRANDS * WARP,
    SMALL_CELLS = TILE_ROWS * TILE_TOKENS,
    LANE_ROWS = TILE_ROWS / STRANDS, /* of a warp */
    LANE_COLUMNS = 4 * WARP,
};

/* One strand of TILE_ROWS rows and up to TILE_TOKENS items, by one warp, into a fragment of each of N matrices
 * that share x (gate and up; or one). */
template <int N, int TYPE>
static __device__ void strand_tile(const matrix *const w[N], uint32_t first_row,
                                   const product_tokens *tokens, uint32_t strand, float d[N][4])
{
    const uint32_t lane = threadIdx.x % WARP, group = lane / 4, in_group = lane % 4;
    const uint32_t n_columns = w[0]->cols, item = tokens->first + group;
    const bool has_item = item < tokens->end;
    const float *x = has_item ? token_row(tokens, item) : tokens->x;
    const bool is_vector_x = (reinterpret_cast<uintptr_t>(x) & 15) == 0;
    bool is_vector[N];
    for (int m = 0; m < N; m++) {
        is_vector[m] = is_vector_matrix(w[m]);
        for (int i = 0; i < 4; i++)
            d[m][i] = 0;
    }
    for (uint32_t from = strand * CHUNK; from < n_columns; from += STRANDS * CHUNK) {
        uint4 weights[N][CHUNK / 32][2]; /* all loads of a chunk are under way together */
        for (int m = 0; m < N; m++) {
            for (uint32_t s = 0; s < CHUNK / 32; s++) {
                const uint32_t column = from + 32 * s + 8 * in_group, row = first_row + group;
                weights[m][s][0] = load_weights8<TYPE>(w[m], is_vector[m], row, column);
                weights[m][s][1] = load_weights8<TYPE>(w[m], is_vector[m], row + 8, column);
            }
        }
        for (uint32_t s = 0; s < CHUNK / 32; s++) {
            float values[8] = {0, 0, 0, 0, 0, 0, 0, 0};
            if (has_item) load_x8(x, is_vector_x, from + 32 * s + 8 * in_group, n_columns, values);
            halves8 halves = split8(values);
            for (int m = 0; m < N; m++) {
                if (TYPE == DTYPE_FP8)
                    halves = split8_scaled(values, chunk_scale<TYPE>(w[m], first_row, from));
                step32(d[m], weights[m][s][0], weights[m][s][1], &halves);
            }
        }
    }
}

/* Four weights of one row; zeros behind the end. */
static __device__ __forceinline__ void load_weights4(const matrix *w, uint32_t row, uint32_t column,
                                                     float out[4])
{
    const size_t at = stored_row(w, row) * w->cols + column;
    if (w->type == DTYPE_F32 && (reinterpret_cast<uintptr_t>(w->data) & 15) == 0 &&
        w->cols % 4 == 0 && row < w->rows && column < w->cols) {
        const uint4 bits = cuda_load16(static_cast<const float *>(w->data) + at);
        out[0] = __uint_as_float(bits.x), out[1] = __uint_as_float(bits.y);
        out[2] = __uint_as_float(bits.z), out[3] = __uint_as_float(bits.w);
        return;
    }
    for (uint32_t i = 0; i < 4; i++)
        out[i] = row < w->rows && column + i < w->cols ? cuda_load(w->data, w->type, at + i) : 0;
}

/* Four columns of LANE_ROWS rows at a time, in every lane; the sums of all lanes end in all of them. */
static __device__ void lanes_tile(const matrix *w, uint32_t first_row, const product_tokens *tokens,
                                  float sums[LANE_ROWS][TILE_TOKENS])
{
    for (uint32_t column = 4 * (threadIdx.x % WARP); column < w->cols; column += LANE_COLUMNS) {
        float weights[LANE_ROWS][4];
        for (uint32_t r = 0; r < LANE_ROWS; r++)
            load_weights4(w, first_row + r, column, weights[r]);
        for (uint32_t t = 0; t < TILE_TOKENS; t++) {
            if (tokens->first + t >= tokens->end) continue;
            const float *x = token_row(tokens, tokens->first + t);
            for (uint32_t i = 0; i < 4 && column + i < w->cols; i++) {
                for (uint32_t r = 0; r < LANE_ROWS; r++)
                    sums[r][t] = fmaf(weights[r][i], x[column + i], sums[r][t]);
            }
        }
    }
    for (uint32_t r = 0; r < LANE_ROWS; r++) {
        for (uint32_t t = 0; t < TILE_TOKENS; t++)
            sums[r][t] = warp_sum(sums[r][t]);
    }
}

/* A block of SMALL_THREADS: TILE_ROWS rows and TILE_TOKENS items of N matrices of one type. Thread i of the first
 * SMALL_CELLS gets those of row i % TILE_ROWS and item i / TILE_ROWS. `cells`: [N][STRANDS][SMALL_CELLS]. */
template <int N>
static __device__ void small_tile(const matrix *const w[N], uint32_t first_row,
                                  const product_tokens *tokens, float *cells, float out[N])
{
    const uint32_t lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const uint32_t n_strands = is_tensor_type(w[0]->type) ? STRANDS : 1;
    float d[N][4];
    if (w[0]->type == DTYPE_BF16)
        strand_tile<N, DTYPE_BF16>(w, first_row, tokens, warp, d);
    else if (w[0]->type == DTYPE_FP8)
        strand_tile<N, DTYPE_FP8>(w, first_row, tokens, warp, d);
    else if (w[0]->type == DTYPE_MXFP4)
        strand_tile<N, DTYPE_MXFP4>(w, first_row, tokens, warp, d);
    for (int m = 0; m < N; m++) {
        float *to = cells + m * STRANDS * SMALL_CELLS;
        float sums[LANE_ROWS][TILE_TOKENS] = {};
        if (n_strands == 1) lanes_tile(w[m], first_row + warp * LANE_ROWS, tokens, sums);
        for (int i = 0; n_strands == STRANDS && i < 4; i++)
            to[warp * SMALL_CELLS + fragment_item(lane, i) * TILE_ROWS + fragment_row(lane, i)] =
                d[m][i];
        for (uint32_t i = 0; n_strands == 1 && lane == 0 && i < LANE_ROWS * TILE_TOKENS; i++)
            to[i / LANE_ROWS * TILE_ROWS + warp * LANE_ROWS + i % LANE_ROWS] =
                sums[i % LANE_ROWS][i / LANE_ROWS];
    }
    __syncthreads();
    for (int m = 0; m < N; m++) {
        out[m] = 0;
        for (uint32_t s = 0; s < n_strands && threadIdx.x < SMALL_CELLS; s++)
            out[m] += cells[(m * STRANDS + s) * SMALL_CELLS + threadIdx.x];
    }
}

#endif
