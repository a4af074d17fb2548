/* kernels/cuda_device.cuh - what all kernels use: launching, loads, number formats, sums over a warp.
 *
 * Every .cu file compiles with nvcc, for a GPU, and with the host's C++ compiler over
 * tests/kernels/cuda_emulated.h, which runs the threads of a block one after the other and is given on its
 * command line. Nothing outside this header knows which of the two it is. Therefore no <<<>>>, no
 * __shared__ arrays and no bare intrinsics of number formats elsewhere:
 *   CUDA_SHARED(T, name)   the block's shared memory, as a T: as many bytes as the launch gives
 *   cuda_launch            queues a kernel on the device's stream and keeps its failure */
#ifndef KERNELS_CUDA_DEVICE_CUH
#define KERNELS_CUDA_DEVICE_CUH

#include "base/check.h"
#include "kernels/dev_cuda_impl.h"

#include <math.h>

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#elif !defined(PIKV_CUDA_EMULATED)
#error "a .cu file is compiled by nvcc, or over the emulator of the tests"
#endif

enum { WARP = 32 };
#define WARP_ALL 0xffffffffu

typedef struct cuda_shape {
    dim3 grid;
    uint32_t n_threads;
    size_t shared_bytes;
} cuda_shape;

#if defined(__CUDACC__)
#define CUDA_SHARED(type, name)                                        \
    extern __shared__ __align__(16) unsigned char cuda_shared_bytes[]; \
    type *const name = reinterpret_cast<type *>(cuda_shared_bytes)

template <typename... P, typename... A>
static void cuda_launch(dev_cuda *d, cuda_shape shape, void (*kernel)(P...), A... args)
{
    cuda_queue *queue = cuda_queue_of(d);
    if (queue->run == CUDA_RUN_REPLAYS) return;
    kernel<<<shape.grid, shape.n_threads, shape.shared_bytes,
             static_cast<cudaStream_t>(queue->stream)>>>(static_cast<P>(args)...);
    const cudaError_t error = cudaGetLastError();
    if (error != cudaSuccess && queue->failure == 0) queue->failure = static_cast<int>(error);
}

/* 16 bytes that no kernel writes while this one runs. */
static __device__ __forceinline__ uint4 cuda_load16(const void *from)
{
    return __ldg(static_cast<const uint4 *>(from));
}

/* Two floats to bf16, nearest even: `low` in bits 0 .. 15. */
static __device__ __forceinline__ uint32_t cuda_pack_bf16(float low, float high)
{
    uint32_t out;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
    return out;
}

static __device__ __forceinline__ float cuda_f32_from_f16(uint16_t half)
{
    float out;
    asm("cvt.f32.f16 %0, %1;" : "=f"(out) : "h"(half));
    return out;
}

/* d += a b of one warp: a 16x16 (row-major) and b 16x8 (column-major) in bf16, d 16x8 in f32. Where an
 * element lies is in the PTX manual under mma.m16n8k16; with g = lane / 4, t = lane % 4, a register
 * holding two neighbours in k:  a[0] row g k 2t, a[1] row g + 8 k 2t, a[2] row g k 2t + 8, a[3] row g + 8
 * k 2t + 8;  b[0] k 2t, b[1] k 2t + 8, both column g;  d[0..1] row g, d[2..3] row g + 8, columns 2t, 2t + 1. */
static __device__ __forceinline__ void cuda_mma_bf16(float d[4], const uint32_t a[4], uint32_t b0,
                                                     uint32_t b1)
{
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
#endif

static __device__ __forceinline__ float cuda_f32_from_bf16(uint32_t half)
{
    return __uint_as_float(half << 16);
}

/* As bf16_from_f32, NaN included. */
static __device__ __forceinline__ uint16_t cuda_bf16_from_f32(float x)
{
    const uint32_t bits = __float_as_uint(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
    return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

/* Of a code that is no NaN: its digits as a tiny f32, whose exponent is 120 too low. */
static __device__ __forceinline__ float cuda_f32_from_fp8(uint32_t code)
{
    return __uint_as_float((code & 0x80u) << 24 | (code & 0x7fu) << 20) * 0x1p120f;
}

/* E2M1 of the low four bits, likewise: an exponent that is 126 too low. */
static __device__ __forceinline__ float cuda_f32_from_fp4(uint32_t code)
{
    return __uint_as_float((code & 8u) << 28 | (code & 7u) << 22) * 0x1p126f;
}

/* Element i of a stored array that is aligned to its elements. */
static __device__ __forceinline__ float cuda_load(const void *data, dtype type, size_t i)
{
    if (type == DTYPE_F32) return static_cast<const float *>(data)[i];
    const uint16_t half = static_cast<const uint16_t *>(data)[i];
    return type == DTYPE_BF16 ? cuda_f32_from_bf16(half) : cuda_f32_from_f16(half);
}

/* The sum over a warp, the same bits in all lanes: a + b is b + a, so partners agree at every level. */
template <typename T> static __device__ __forceinline__ T warp_sum(T x)
{
    for (int distance = WARP / 2; distance > 0; distance /= 2)
        x += __shfl_xor_sync(WARP_ALL, x, distance);
    return x;
}

static __host__ __device__ __forceinline__ uint32_t div_up(uint32_t a, uint32_t b)
{
    return (a + b - 1) / b;
}

#endif
