/* kernels/cuda_elementwise.cu - embed, the norms, adjust, rope, add and put_rows.
 *
 * All move bytes and hardly compute: a thread per element, or per four of them where rows allow it, and one
 * block per token where there is a sum. Formulas and rounding are those of elementwise_cpu.c; the norm's
 * sum is of double, as there, in an order that follows from `dim` alone. */
#include "kernels/cuda_device.cuh"

enum { THREADS = 256, N_WARPS = THREADS / WARP };

/* Blocks of THREADS for n items, each thread striding by the grid: a grid's size is limited. */
static cuda_shape shape_for(size_t n)
{
    const size_t n_blocks = (n + THREADS - 1) / THREADS, most = 1u << 20;
    return {dim3(static_cast<unsigned>(n_blocks < most ? n_blocks : most)), THREADS, 0};
}

static __device__ __forceinline__ size_t first_item()
{
    return static_cast<size_t>(blockIdx.x) * THREADS + threadIdx.x;
}

static __device__ __forceinline__ size_t item_stride()
{
    return static_cast<size_t>(gridDim.x) * THREADS;
}

static __global__ void embed_kernel(embed_args args)
{
    const size_t dim = args.table.cols, n = args.n_tokens * dim;
    for (size_t i = first_item(); i < n; i += item_stride())
        args.out[i] = cuda_load(args.table.data, args.table.type, args.id[i / dim] * dim + i % dim);
}

void embed_cuda(dev_cuda *d, const embed_args *args)
{
    const size_t n = static_cast<size_t>(args->n_tokens) * args->table.cols;
    if (n > 0) cuda_launch(d, shape_for(n), embed_kernel, *args);
}

static __global__ void add_kernel(add_args args)
{
    for (size_t i = first_item(); i < args.n; i += item_stride())
        args.x[i] += args.y[i];
}

void add_cuda(dev_cuda *d, const add_args *args)
{
    if (args->n > 0) cuda_launch(d, shape_for(args->n), add_kernel, *args);
}

/* One block per token. Threads own channels, so the second pass reads what the same thread wrote. */
static __global__ void norm_kernel(rms_norm_args args, const float *add)
{
    CUDA_SHARED(double, sums); /* [N_WARPS] */
    const size_t stride = args.stride > 0 ? args.stride : args.dim;
    const size_t row = static_cast<size_t>(blockIdx.x) * stride;
    float *x = const_cast<float *>(args.x) + row; /* written only where something is added */
    float *out = args.out + row;
    double sum = 0;
    for (uint32_t i = threadIdx.x; i < args.dim; i += THREADS) {
        const float value = add != NULL ? x[i] + add[row + i] : x[i];
        if (add != NULL) x[i] = value;
        sum = fma(static_cast<double>(value), static_cast<double>(value), sum);
    }
    sum = warp_sum(sum);
    if (threadIdx.x % WARP == 0) sums[threadIdx.x / WARP] = sum;
    __syncthreads();
    double total = 0;
    for (int w = 0; w < N_WARPS; w++)
        total += sums[w];
    const double scale = 1 / sqrt(total / args.dim + static_cast<double>(args.eps));
    for (uint32_t i = threadIdx.x; i < args.dim; i += THREADS) {
        const double w = static_cast<double>(cuda_load(args.w, args.w_type, i));
        out[i] = static_cast<float>(w * (static_cast<double>(x[i]) * scale));
    }
}

void add_norm_cuda(dev_cuda *d, const add_norm_args *args)
{
    if (args->norm.n_tokens == 0) return;
    const cuda_shape shape = {dim3(args->norm.n_tokens), THREADS, N_WARPS * sizeof(double)};
    cuda_launch(d, shape, norm_kernel, args->norm, args->add);
}

void rms_norm_cuda(dev_cuda *d, const rms_norm_args *args)
{
    const add_norm_args alone = {*args, NULL};
    add_norm_cuda(d, &alone);
}

/* The sum over the block of one number per thread, the same bits in all of them; `sums` [N_WARPS] may be used again. */
static __device__ double block_sum(double mine, double *sums)
{
    const double of_warp = warp_sum(mine);
    double total = 0;
    if (threadIdx.x % WARP == 0) sums[threadIdx.x / WARP] = of_warp;
    __syncthreads();
    for (int w = 0; w < N_WARPS; w++)
        total += sums[w];
    __syncthreads();
    return total;
}

/* One block per token. */
static __global__ void layer_norm_kernel(layer_norm_args args)
{
    CUDA_SHARED(double, sums); /* [N_WARPS] */
    const rms_norm_args &n = args.norm;
    const float *x = n.x + static_cast<size_t>(blockIdx.x) * n.dim;
    float *out = n.out + static_cast<size_t>(blockIdx.x) * n.dim;
    double sum = 0, squares = 0;
    for (uint32_t i = threadIdx.x; i < n.dim; i += THREADS)
        sum += static_cast<double>(x[i]);
    const double mean = block_sum(sum, sums) / n.dim;
    for (uint32_t i = threadIdx.x; i < n.dim; i += THREADS) {
        const double apart = static_cast<double>(x[i]) - mean;
        squares = fma(apart, apart, squares);
    }
    const double scale = 1 / sqrt(block_sum(squares, sums) / n.dim + static_cast<double>(n.eps));
    for (uint32_t i = threadIdx.x; i < n.dim; i += THREADS) {
        const double w = static_cast<double>(cuda_load(n.w, n.w_type, i));
        const double b = static_cast<double>(cuda_load(args.b, n.w_type, i));
        out[i] = static_cast<float>(w * ((static_cast<double>(x[i]) - mean) * scale) + b);
    }
}

void layer_norm_cuda(dev_cuda *d, const layer_norm_args *args)
{
    if (args->norm.n_tokens == 0) return;
    const cuda_shape shape = {dim3(args->norm.n_tokens), THREADS, N_WARPS * sizeof(double)};
    cuda_launch(d, shape, layer_norm_kernel, *args);
}

static __global__ void adjust_kernel(adjust_args args)
{
    const size_t n = static_cast<size_t>(args.n_tokens) * args.dim;
    for (size_t i = first_item(); i < n; i += item_stride()) {
        const double b =
            args.b != NULL ? static_cast<double>(cuda_load(args.b, args.b_type, i % args.dim)) : 0;
        const float y = static_cast<float>(
            static_cast<double>(args.scale) * static_cast<double>(args.x[i]) + b);
        args.x[i] = y > args.limit ? args.limit : y < -args.limit ? -args.limit : y;
    }
}

void adjust_cuda(dev_cuda *d, const adjust_args *args)
{
    const size_t n = static_cast<size_t>(args->n_tokens) * args->dim;
    if (n > 0) cuda_launch(d, shape_for(n), adjust_kernel, *args);
}

/* A thread per pair. Products in double, as the definition's. */
static __global__ void rope_kernel(rope_args args)
{
    const size_t half = args.dim / 2, n = static_cast<size_t>(args.n_tokens) * args.n_heads * half;
    const size_t stride = args.stride > 0 ? args.stride : args.dim;
    for (size_t i = first_item(); i < n; i += item_stride()) {
        const size_t c = i % half, row = i / half, t = row / args.n_heads;
        const double cos = static_cast<double>(args.cos[t * half + c]);
        const double sin = static_cast<double>(args.sin[t * half + c]);
        float *first = args.x + row * stride + (args.is_interleaved ? 2 * c : c);
        float *second = first + (args.is_interleaved ? 1 : half);
        const double a = static_cast<double>(*first), b = static_cast<double>(*second);
        *first = static_cast<float>(a * cos - b * sin);
        *second = static_cast<float>(b * cos + a * sin);
    }
}

void rope_cuda(dev_cuda *d, const rope_args *args)
{
    assert(args->dim % 2 == 0);
    const size_t n = static_cast<size_t>(args->n_tokens) * args->n_heads * (args->dim / 2);
    if (n > 0) cuda_launch(d, shape_for(n), rope_kernel, *args);
}

static __global__ void put_rows_kernel(put_rows_args args)
{
    const size_t n = static_cast<size_t>(args.n_rows) * args.n;
    for (size_t i = first_item(); i < n; i += item_stride()) {
        uint8_t *row = args.to + i / args.n * args.stride_bytes;
        if (args.type == DTYPE_F32) {
            reinterpret_cast<float *>(row)[i % args.n] = args.x[i];
        } else {
            reinterpret_cast<uint16_t *>(row)[i % args.n] = cuda_bf16_from_f32(args.x[i]);
        }
    }
}

void put_rows_cuda(dev_cuda *d, const put_rows_args *args)
{
    const size_t n = static_cast<size_t>(args->n_rows) * args->n;
    assert(args->type != DTYPE_F16);
    if (n > 0) cuda_launch(d, shape_for(n), put_rows_kernel, *args);
}
