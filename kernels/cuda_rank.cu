/* kernels/cuda_rank.cu - what a rank does with parts and choices of all. Contract: rank_ops.h.
 *
 *   merge_parts    a block per (token, head): a thread per part finds its weight, in double as the definition does, then
 *                  a thread per channel adds parts in their order. A layer's parts are read once
 *   deal_choices   a thread per choice
 * Shared memory: a double for each part. */
#include "kernels/cuda_device.cuh"

enum { MERGE_THREADS = 64, DEAL_THREADS = 128 };

static __device__ __forceinline__ const float *lse_of(const merge_parts_args *args, uint32_t part)
{
    const size_t n_rows = static_cast<size_t>(args->n_tokens) * args->n_heads;
    return args->parts + part * args->part_stride + n_rows * args->v_dim + blockIdx.x;
}

static __global__ void __launch_bounds__(MERGE_THREADS) merge_parts_kernel(merge_parts_args args)
{
    CUDA_SHARED(double, share);
    const size_t row = static_cast<size_t>(blockIdx.x) * args.v_dim;
    float top = -INFINITY;
    double sum = 0;
    for (uint32_t r = 0; r < args.n_parts; r++)
        top = fmaxf(top, *lse_of(&args, r));
    const bool is_empty = top == -INFINITY;
    for (uint32_t r = threadIdx.x; r < args.n_parts; r += MERGE_THREADS)
        share[r] =
            is_empty ? 0 : exp(static_cast<double>(*lse_of(&args, r)) - static_cast<double>(top));
    __syncthreads();
    for (uint32_t r = 0; r < args.n_parts; r++)
        sum += share[r];
    for (uint32_t c = threadIdx.x; c < args.v_dim; c += MERGE_THREADS) {
        float out = 0;
        for (uint32_t r = 0; r < args.n_parts && !is_empty; r++) {
            const float weight = static_cast<float>(share[r] / sum);
            if (weight == 0) continue; /* an empty part's o is anything */
            out = fmaf(weight, args.parts[r * args.part_stride + row + c], out);
        }
        args.out[row + c] = out;
    }
}

void merge_parts_cuda(dev_cuda *d, const merge_parts_args *args)
{
    const size_t n_rows = static_cast<size_t>(args->n_tokens) * args->n_heads;
    assert(n_rows <= INT32_MAX);
    const cuda_shape shape = {dim3(static_cast<unsigned>(n_rows)), MERGE_THREADS,
                              args->n_parts * sizeof(double)};
    if (n_rows > 0) cuda_launch(d, shape, merge_parts_kernel, *args);
}

static __global__ void deal_choices_kernel(deal_choices_args args)
{
    const uint32_t i = blockIdx.x * DEAL_THREADS + threadIdx.x;
    if (i >= args.n_tokens * args.top_k) return;
    const uint32_t e = args.chosen[i], first = args.experts.first[e];
    const uint32_t n = args.experts.first[e + 1] - first;
    const uint32_t at = first + (args.positions[i / args.top_k] + e) % n;
    args.served[i] = args.experts.rank[at] == args.rank ? e : MOE_ELSEWHERE;
}

void deal_choices_cuda(dev_cuda *d, const deal_choices_args *args)
{
    const uint32_t n = args->n_tokens * args->top_k;
    const cuda_shape shape = {dim3((n + DEAL_THREADS - 1) / DEAL_THREADS), DEAL_THREADS, 0};
    if (n > 0) cuda_launch(d, shape, deal_choices_kernel, *args);
}
