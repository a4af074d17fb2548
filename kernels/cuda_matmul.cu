/* kernels/cuda_matmul.cu - products with weight matrices. The order of their terms: cuda_product.cuh.
 *
 * Up to SMALL tokens on tensor cores (bf16, fp8, mxfp4), and f32 and f16 always: a block per 16 rows and 8 tokens. The former: a strand a warp,
 * weights straight from memory to registers, 16 bytes a lane and four of them under way; the strands meet in
 * shared memory. The rows of all parts (q, k and v) are one grid.
 * More tokens on tensor cores: a block per 64 rows and 64 tokens, through shared memory, with the same bits. */
#include "kernels/cuda_prompt_tile.cuh"
#include "kernels/cuda_tiles.cuh"

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

/* Behind the last row or token: nothing. */
static __device__ __forceinline__ void put(const matmul_args *args, uint32_t p, uint32_t t,
                                           uint32_t row, float sum)
{
    if (row >= args->part[p].w.rows || t >= args->n_tokens) return;
    float *out = args->part[p].out + t * args->part[p].out_stride + row;
    *out = args->accumulate ? *out + sum : sum;
}

static __global__ void __launch_bounds__(SMALL_THREADS) small_kernel(matmul_args args)
{
    CUDA_SHARED(float, cells);
    uint32_t tile = blockIdx.x;
    const uint32_t p = find_part(&args, TILE_ROWS, &tile), first = blockIdx.y * TILE_TOKENS;
    const matrix *const w[1] = {&args.part[p].w};
    const product_tokens tokens = {args.x, args.x_stride, NULL, 1, first, args.n_tokens};
    float sum[1];
    small_tile<1>(w, tile * TILE_ROWS, &tokens, cells, sum);
    if (threadIdx.x >= SMALL_CELLS) return;
    put(&args, p, first + threadIdx.x / TILE_ROWS, tile * TILE_ROWS + threadIdx.x % TILE_ROWS,
        sum[0]);
}

static __global__ void __launch_bounds__(PROMPT_THREADS) prompt_kernel(matmul_args args)
{
    CUDA_SHARED(prompt_tiles, tiles);
    uint32_t tile = blockIdx.x;
    const uint32_t p = find_part(&args, PROMPT_TILE, &tile), first = blockIdx.y * PROMPT_TILE;
    const product_tokens tokens = {args.x, args.x_stride, NULL, 1, first, args.n_tokens};
    float total[2][4][4] = {};
    prompt_tile(tiles, &args.part[p].w, tile * PROMPT_TILE, &tokens, total);
    for (int r = 0; r < 2; r++) {
        for (int n = 0; n < 4; n++) {
            for (int i = 0; i < 4; i++)
                put(&args, p, first + prompt_item(n, i), tile * PROMPT_TILE + prompt_row(r, i),
                    total[r][n][i]);
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
    if (is_tensor_type(args->part[0].w.type) && args->n_tokens > SMALL) {
        const dim3 grid(count_tiles(args, PROMPT_TILE), div_up(args->n_tokens, PROMPT_TILE));
        cuda_launch(d, cuda_shape{grid, PROMPT_THREADS, sizeof(prompt_tiles)}, prompt_kernel,
                    *args);
    } else {
        const dim3 grid(count_tiles(args, TILE_ROWS), div_up(args->n_tokens, TILE_TOKENS));
        const size_t bytes = STRANDS * SMALL_CELLS * sizeof(float);
        cuda_launch(d, cuda_shape{grid, SMALL_THREADS, bytes}, small_kernel, *args);
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

/* ---- a matrix for every head: the same tiles, a head per blockIdx.z ---- */

static __device__ __forceinline__ product_tokens head_tokens(const matmul_heads_args *args,
                                                             uint32_t first)
{
    const float *x = args->x + blockIdx.z * args->x_head_stride;
    return {x, args->x_stride, NULL, 1, first, args->n_tokens};
}

static __device__ __forceinline__ void put_head(const matmul_heads_args *args, uint32_t t,
                                                uint32_t row, float sum)
{
    if (row >= args->w.rows || t >= args->n_tokens) return;
    args->out[t * args->out_stride + blockIdx.z * args->out_head_stride + row] = sum;
}

static __device__ __forceinline__ matrix head_matrix(const matmul_heads_args *args)
{
    matrix w = args->w;
    const uint32_t first = blockIdx.z * args->w_head_rows;
    const size_t each = w.type == DTYPE_FP8 ? 1 : w.type == DTYPE_F32 ? 4 : 2;
    w.data = static_cast<const char *>(w.data) + static_cast<size_t>(first) * w.cols * each;
    w.first_row += w.type == DTYPE_FP8 ? first : 0;
    return w;
}

static __global__ void __launch_bounds__(SMALL_THREADS) small_heads_kernel(matmul_heads_args args)
{
    CUDA_SHARED(float, cells);
    const uint32_t row = blockIdx.x * TILE_ROWS, first = blockIdx.y * TILE_TOKENS;
    const matrix head = head_matrix(&args);
    const matrix *const w[1] = {&head};
    const product_tokens tokens = head_tokens(&args, first);
    float sum[1];
    small_tile<1>(w, row, &tokens, cells, sum);
    if (threadIdx.x >= SMALL_CELLS) return;
    put_head(&args, first + threadIdx.x / TILE_ROWS, row + threadIdx.x % TILE_ROWS, sum[0]);
}

static __global__ void __launch_bounds__(PROMPT_THREADS) prompt_heads_kernel(matmul_heads_args args)
{
    CUDA_SHARED(prompt_tiles, tiles);
    const uint32_t row = blockIdx.x * PROMPT_TILE, first = blockIdx.y * PROMPT_TILE;
    const matrix head = head_matrix(&args);
    const product_tokens tokens = head_tokens(&args, first);
    float total[2][4][4] = {};
    prompt_tile(tiles, &head, row, &tokens, total);
    for (int r = 0; r < 2; r++) {
        for (int n = 0; n < 4; n++) {
            for (int i = 0; i < 4; i++)
                put_head(&args, first + prompt_item(n, i), row + prompt_row(r, i), total[r][n][i]);
        }
    }
}

void matmul_heads_cuda(dev_cuda *d, const matmul_heads_args *args)
{
    assert(args->w.type != DTYPE_MXFP4);
    if (args->n_tokens == 0 || args->n_heads == 0) return;
    const bool is_small = !is_tensor_type(args->w.type) || args->n_tokens <= SMALL;
    const uint32_t rows = is_small ? uint32_t{TILE_ROWS} : uint32_t{PROMPT_TILE};
    const uint32_t items = is_small ? uint32_t{TILE_TOKENS} : uint32_t{PROMPT_TILE};
    const dim3 grid(div_up(args->w.rows, rows), div_up(args->n_tokens, items), args->n_heads);
    if (is_small) {
        const size_t bytes = STRANDS * SMALL_CELLS * sizeof(float);
        cuda_launch(d, cuda_shape{grid, SMALL_THREADS, bytes}, small_heads_kernel, *args);
    } else {
        cuda_launch(d, cuda_shape{grid, PROMPT_THREADS, sizeof(prompt_tiles)}, prompt_heads_kernel,
                    *args);
    }
}
