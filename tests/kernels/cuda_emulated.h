/* tests/kernels/cuda_emulated.h - the part of CUDA that our kernels use, on the host, with its rules checked.
 *
 * Each thread of a block is a fiber; they run one at a time, in an order that differs from launch to launch
 * (cuda_emulated_seed), and change only where they wait for each other. So a missing barrier shows as a
 * wrong result in some order. Errors that end the launch, and are reported by dev_cuda_wait:
 *   - a barrier that not all threads of a block reach, or at which they come to different places;
 *   - a warp's exchange whose mask names an ended lane, a lane elsewhere, or not the caller;
 *   - a value taken from a lane outside the mask;
 *   - shared memory written behind its end (under ASan: touched behind its end);
 *   - a 16-byte load from an address that is not a multiple of 16; more threads or shared memory than a GPU has.
 * Shared memory is all ones, a NaN, when a block starts. Blocks run in an order of their own, too. */
#ifndef TESTS_KERNELS_CUDA_EMULATED_H
#define TESTS_KERNELS_CUDA_EMULATED_H

#include "kernels/dtype.h"

#include <functional>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((unused))
#define __launch_bounds__(...)

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_)
    {
    }
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(8) uint2 {
    unsigned x, y;
};

extern dim3 threadIdx, blockIdx, blockDim, gridDim;

#include "tests/kernels/cuda_emulated_waits.h"

#define __syncthreads()                      emu_barrier(EMU_SITE)
#define __syncwarp(...)                      emu_warp(EMU_SITE, 0xffffffffu, nullptr, nullptr)
#define __shfl_sync(mask, value, from)       emu_shfl(EMU_SITE, mask, value, from)
#define __shfl_xor_sync(mask, value, across) emu_shfl(EMU_SITE, mask, value, emu_lane() ^ (across))
#define __ballot_sync(mask, is_set)          emu_ballot(EMU_SITE, mask, is_set)

static inline int __popc(unsigned x)
{
    return __builtin_popcount(x);
}

static inline int __popcll(unsigned long long x)
{
    return __builtin_popcountll(x);
}

static inline float __uint_as_float(unsigned bits)
{
    return f32_from_bits(bits);
}

static inline unsigned __float_as_uint(float x)
{
    return f32_bits(x);
}

/* Threads run one at a time. */
template <typename T> static inline T atomicAdd(T *at, T by)
{
    const T was = *at;
    *at += by;
    return was;
}

/* A sum that is no part of a multiply-add. */
static inline float __fadd_rn(float a, float b)
{
    return a + b;
}

/* A product and a quotient, likewise. */
static inline float __fmul_rn(float a, float b)
{
    return a * b;
}

static inline float __fdiv_rn(float a, float b)
{
    return a / b;
}

/* Under ASan a touch behind shared memory ends the process, elsewhere the launch. */
#if defined(__SANITIZE_ADDRESS__)
#define EMU_FINDS_OVERRUNS false
#else
#define EMU_FINDS_OVERRUNS true
#endif

/* The emulator's side of cuda_device.cuh. */
#define CUDA_SHARED(type, name) type *const name = static_cast<type *>(emu_shared())

static inline void emu_check_address(const void *from, size_t unit)
{
    if (reinterpret_cast<uintptr_t>(from) % unit != 0)
        emu_fail("%p is no multiple of %zu", from, unit);
}

static inline uint4 cuda_load16(const void *from)
{
    uint4 out;
    emu_check_address(from, 16);
    memcpy(&out, from, sizeof out);
    return out;
}

static inline uint32_t cuda_pack_bf16(float low, float high)
{
    return bf16_from_f32(low) | static_cast<uint32_t>(bf16_from_f32(high)) << 16;
}

static inline float cuda_f32_from_f16(uint16_t half)
{
    return f32_from_f16(half);
}

void emu_mma_bf16(emu_site site, float d[4], const uint32_t a[4], uint32_t b0, uint32_t b1);
#define cuda_mma_bf16(d, a, b0, b1) emu_mma_bf16(EMU_SITE, d, a, b0, b1)

template <typename Shape, typename Dev, typename... P, typename... A>
static void cuda_launch(Dev *d, Shape shape, void (*kernel)(P...), A... args)
{
    emu_queue(d,
              {shape.grid, shape.n_threads, shape.shared_bytes,
               reinterpret_cast<const void *>(kernel), [=]() { kernel(static_cast<P>(args)...); }});
}

#endif
