/* kernels/cuda_matmul.cu - products with weight matrices. The order of their terms: cuda_product.cuh.
 *
 * bf16, up to SMALL items: a block of STRANDS warps per 16 rows, a strand a warp, weights straight from memory
 * to registers, 16 bytes a lane and four of them under way; the strands meet in shared memory. The rows of all
 * parts (q, k and v) are one grid.
 * bf16, more items: a block per 64 rows and 64 items, tiles of both in shared memory, all strands in turn.
 * f32, f16: a warp per LANE_ROWS rows and TILE_TOKENS items. Simple, for small models and exact comparisons. */
#include "kernels/cuda_product.cuh"

enum {
    SMALL = 4 * TILE_TOKENS, /* items that go through the strands of the small kernel, 8 a time */
    SMALL_THREADS = STRANDS * WARP,
    LANE_ROWS = 4,
    LANE_WARPS = 4,
    LANE_COLUMNS = 4 * WARP,
};

/* Which part of the args a tile of `tile_rows` belongs to; *tile becomes its number in the part. */
static __device__ __forceinline__ uint32_t find_part(const matmul_args *args, uint32_t tile_rows,
                                                     uint32_t *tile)
{
    uint32_t p = 0;
    while (p + 1 < args->n_parts && *tile >= div_up(args->part[p].w.rows, tile_rows)) {
        *tile -= div_up(args->part[p].w.rows, tile_rows);
        p++;
    }
    return p;
}

static __device__ __forceinline__ void put(const matmul_args *args, uint32_t p, uint32_t t,
                                           uint32_t row, float sum)
{
    float *out = args->part[p].out + t * args->part[p].out_stride + row;
    *out = args->accumulate ? *out + sum : sum;
}

static __global__ void __launch_bounds__(SMALL_THREADS) small_kernel(matmul_args args)
{
    CUDA_SHARED(float, sums); /* [STRANDS][TILE_ROWS * TILE_TOKENS] */
    enum { CELLS = TILE_ROWS * TILE_TOKENS };
    uint32_t tile = blockIdx.x;
    const uint32_t p = find_part(&args, TILE_ROWS, &tile), lane = threadIdx.x % WARP;
    const uint32_t strand = threadIdx.x / WARP, first_row = tile * TILE_ROWS;
    const matrix *const w[1] = {&args.part[p].w};
    product_tokens tokens = {args.x,       args.x_stride, NULL, 1, blockIdx.y * TILE_TOKENS,
                             args.n_tokens};
    float d[1][4];
    strand_tile<1>(w, first_row, &tokens, strand, d);
    for (int i = 0; i < 4; i++) {
        const uint32_t cell = fragment_row(lane, i) * TILE_TOKENS + fragment_item(lane, i);
        sums[strand * CELLS + cell] = d[0][i];
    }
    __syncthreads();
    if (threadIdx.x >= CELLS) return;
    const uint32_t row = first_row + threadIdx.x % TILE_ROWS;
    const uint32_t in_tile = threadIdx.x / TILE_ROWS, t = tokens.first + in_tile;
    if (row >= args.part[p].w.rows || t >= args.n_tokens) return;
    float sum = 0;
    for (uint32_t s = 0; s < STRANDS; s++)
        sum += sums[s * CELLS + threadIdx.x % TILE_ROWS * TILE_TOKENS + in_tile];
    put(&args, p, t, row, sum);
}

/* A chunk's tile in shared memory: [64 rows or items][CHUNK] bf16, 16-byte units exchanged within odd rows, so
 * that the eight lanes of a 16-byte access meet all banks. */
static __device__ __forceinline__ uint32_t unit_at(uint32_t row, uint32_t unit)
{
    return row * (CHUNK / 8) + (unit ^ (row % 2 * 4));
}

enum { PROMPT_TILE = 64, PROMPT_THREADS = 128, PROMPT_UNITS = PROMPT_TILE * CHUNK / 8 };

typedef struct prompt_tiles {
    uint4 w[PROMPT_UNITS], high[PROMPT_UNITS], low[PROMPT_UNITS];
} prompt_tiles;

static __device__ void load_tiles(prompt_tiles *tiles, const matrix *w, uint32_t first_row,
                                  const product_tokens *tokens, uint32_t column)
{
    const bool is_vector = is_vector_matrix(w);
    for (uint32_t i = threadIdx.x; i < PROMPT_UNITS; i += PROMPT_THREADS) {
        const uint32_t in_tile = i / (CHUNK / 8), unit = i % (CHUNK / 8), c = column + 8 * unit;
        const uint32_t item = tokens->first + in_tile, at = unit_at(in_tile, unit);
        float values[8] = {0, 0, 0, 0, 0, 0, 0, 0};
        tiles->w[at] = load_weights8(w, is_vector, first_row + in_tile, c);
        if (item < tokens->end && c < w->cols) {
            const float *x = token_row(tokens, item);
            load_x8(x, (reinterpret_cast<uintptr_t>(x) & 15) == 0, c, w->cols, values);
        }
        const halves8 h = split8(values);
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

static __global__ void __launch_bounds__(PROMPT_THREADS) prompt_kernel(matmul_args args)
{
    CUDA_SHARED(prompt_tiles, tiles);
    uint32_t tile = blockIdx.x;
    const uint32_t p = find_part(&args, PROMPT_TILE, &tile), lane = threadIdx.x % WARP;
    const matrix *w = &args.part[p].w;
    const uint32_t warp = threadIdx.x / WARP, row0 = warp / 2 * 32, item0 = warp % 2 * 32;
    const uint32_t first_row = tile * PROMPT_TILE;
    product_tokens tokens = {args.x,       args.x_stride, NULL, 1, blockIdx.y * PROMPT_TILE,
                             args.n_tokens};
    float total[2][4][4] = {}, d[2][4][4] = {};
    for (uint32_t strand = 0; strand < STRANDS; strand++) {
        for (uint32_t from = strand * CHUNK; from < w->cols; from += STRANDS * CHUNK) {
            load_tiles(tiles, w, first_row, &tokens, from);
            __syncthreads();
            multiply_tiles(tiles, row0, item0, d);
            __syncthreads();
        }
        end_strand(total, d);
    }
    for (int r = 0; r < 2; r++) {
        for (int n = 0; n < 4; n++) {
            for (int i = 0; i < 4; i++) {
                const uint32_t row = first_row + row0 + 16 * r + fragment_row(lane, i);
                const uint32_t t = tokens.first + item0 + 8 * n + fragment_item(lane, i);
                if (row < w->rows && t < args.n_tokens) put(&args, p, t, row, total[r][n][i]);
            }
        }
    }
}

/* Four weights of one row; zeros behind the end. */
static __device__ __forceinline__ void load_weights4(const matrix *w, uint32_t row, uint32_t column,
                                                     float out[4])
{
    const size_t at = static_cast<size_t>(row) * w->cols + column;
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

static __global__ void __launch_bounds__(LANE_WARPS *WARP) lanes_kernel(matmul_args args)
{
    uint32_t tile = blockIdx.x;
    const uint32_t p = find_part(&args, LANE_ROWS * LANE_WARPS, &tile), lane = threadIdx.x % WARP;
    const matrix *w = &args.part[p].w;
    const uint32_t first_row = (tile * LANE_WARPS + threadIdx.x / WARP) * LANE_ROWS;
    const uint32_t first = blockIdx.y * TILE_TOKENS, left = args.n_tokens - first;
    const uint32_t n = left < TILE_TOKENS ? left : uint32_t{TILE_TOKENS};
    float sums[LANE_ROWS][TILE_TOKENS] = {};
    for (uint32_t column = 4 * lane; column < w->cols; column += LANE_COLUMNS) {
        float weights[LANE_ROWS][4];
        for (uint32_t r = 0; r < LANE_ROWS; r++)
            load_weights4(w, first_row + r, column, weights[r]);
        for (uint32_t t = 0; t < TILE_TOKENS; t++) {
            const float *x = args.x + (first + t) * args.x_stride;
            for (uint32_t i = 0; i < 4 && t < n && column + i < w->cols; i++) {
                for (uint32_t r = 0; r < LANE_ROWS; r++)
                    sums[r][t] = fmaf(weights[r][i], x[column + i], sums[r][t]);
            }
        }
    }
    for (uint32_t r = 0; r < LANE_ROWS; r++) {
        for (uint32_t t = 0; t < TILE_TOKENS; t++) {
            if (t >= n) continue; /* of the whole warp */
            const float sum = warp_sum(sums[r][t]);
            if (lane == 0 && first_row + r < w->rows) put(&args, p, first + t, first_row + r, sum);
        }
    }
}

/* Tiles of all parts, `tile_rows` each. */
static uint32_t count_tiles(const matmul_args *args, uint32_t tile_rows)
{
    uint32_t n = 0;
    for (uint32_t p = 0; p < args->n_parts; p++)
        n += div_up(args->part[p].w.rows, tile_rows);
    return n;
}

/* Of parts of one type. */
static void launch(dev_cuda *d, const matmul_args *args)
{
    const bool is_bf16 = args->part[0].w.type == DTYPE_BF16;
    if (is_bf16 && args->n_tokens <= SMALL) {
        const dim3 grid(count_tiles(args, TILE_ROWS), div_up(args->n_tokens, TILE_TOKENS));
        const size_t bytes = STRANDS * TILE_ROWS * TILE_TOKENS * sizeof(float);
        cuda_launch(d, cuda_shape{grid, SMALL_THREADS, bytes}, small_kernel, *args);
    } else if (is_bf16) {
        const dim3 grid(count_tiles(args, PROMPT_TILE), div_up(args->n_tokens, PROMPT_TILE));
        cuda_launch(d, cuda_shape{grid, PROMPT_THREADS, sizeof(prompt_tiles)}, prompt_kernel,
                    *args);
    } else {
        const dim3 grid(count_tiles(args, LANE_ROWS * LANE_WARPS),
                        div_up(args->n_tokens, TILE_TOKENS));
        cuda_launch(d, cuda_shape{grid, LANE_WARPS * WARP, 0}, lanes_kernel, *args);
    }
}

void matmul_cuda(dev_cuda *d, const matmul_args *args)
{
    assert(args->n_parts <= MATMUL_PARTS_MAX);
    if (args->n_tokens == 0) return;
    for (uint32_t p = 0; p < args->n_parts;) { /* runs of parts of one type, mostly one */
        matmul_args some = *args;
        some.n_parts = 0;
        do {
            some.part[some.n_parts++] = args->part[p++];
        } while (p < args->n_parts && args->part[p].w.type == some.part[0].w.type);
        launch(d, &some);
    }
}
