/* tests/kernels/test_cuda_emulated.cc - the emulator finds what it promises to find: kernels with one fault each. */
#include "tests/kernels/cuda_emulated.h"

extern "C" {
#include "tests/kernels/cuda_fixture.h"
}
#include "kernels/cuda_device.cuh"

#include <math.h>

#undef TEST_CASE
#define TEST_CASE(name)         \
    {                           \
#name, &name##_ttest, 0 \
    }

typedef void small_kernel(float *out);

/* Whether the launch is reported as broken. */
static bool breaks(small_kernel *kernel, uint32_t n_threads, size_t shared_bytes)
{
    gpu g = gpu_open(0);
    err_info info = {};
    float *out = gpu_poisoned(&g, 1024);
    cuda_launch(g.d, cuda_shape{dim3(2), n_threads, shared_bytes}, kernel, out);
    const bool has_failed = dev_cuda_wait(g.d, &info) != ERR_OK;
    gpu_close(&g);
    return has_failed;
}

static void half_at_barrier(float *out)
{
    if (threadIdx.x < 32) __syncthreads();
    out[threadIdx.x] = 0;
}

static void different_barriers(float *out)
{
    if (threadIdx.x < 32) {
        __syncthreads();
    } else {
        __syncthreads();
    }
    out[threadIdx.x] = 0;
}

static void ended_lane(float *out)
{
    if (threadIdx.x % 32 == 3) return;
    out[threadIdx.x] = warp_sum(1.0f);
}

static void outside_mask(float *out)
{
    if (threadIdx.x % 32 < 16) out[threadIdx.x] = __shfl_sync(0xffffu, 1.0f, 20);
}

static void not_in_mask(float *out)
{
    out[threadIdx.x] = __shfl_sync(0xffffu, 1.0f, 0);
}

static void behind_shared(float *out)
{
    CUDA_SHARED(volatile float, shared);
    shared[threadIdx.x + 1] = 1;
    out[threadIdx.x] = 0;
}

static void unaligned_load(float *out)
{
    out[threadIdx.x] = static_cast<float>(cuda_load16(out + 1).x);
}

static void fine(float *out)
{
    CUDA_SHARED(float, shared);
    shared[threadIdx.x] = static_cast<float>(threadIdx.x);
    __syncthreads();
    const float other = shared[blockDim.x - 1 - threadIdx.x];
    if (threadIdx.x % 32 < 8) out[threadIdx.x] = __shfl_sync(0xffu, other, 7);
    if (threadIdx.x >= 64) return;
    out[threadIdx.x] = warp_sum(other);
}

START_TEST(faults_of_divergence_are_found)
{
    ck_assert(breaks(half_at_barrier, 64, 0));
    ck_assert(breaks(different_barriers, 64, 0));
    ck_assert(breaks(ended_lane, 64, 0));
    ck_assert(breaks(outside_mask, 64, 0));
    ck_assert(breaks(not_in_mask, 64, 0));
}

START_TEST(faults_of_addresses_are_found)
{
    if (EMU_FINDS_OVERRUNS) ck_assert(breaks(behind_shared, 64, 64 * sizeof(float)));
    ck_assert(breaks(unaligned_load, 64, 0));
    ck_assert(breaks(fine, 64, 1u << 20));
    ck_assert(breaks(fine, 2048, 0));
}

START_TEST(a_sound_kernel_is_run)
{
    gpu g = gpu_open(0);
    float *out = gpu_poisoned(&g, 128);
    cuda_launch(g.d, cuda_shape{dim3(1), 128, 128 * sizeof(float)}, fine, out);
    float *got = gpu_get_floats(&g, out, 128);
    for (unsigned t = 0; t < 64; t++) { /* of a warp w: the sum of 127 - i over its i */
        const unsigned first = 127 - t / 32 * 32;
        ck_assert(got[t] == static_cast<float>(32 * first - 31 * 16));
    }
    for (unsigned t = 64; t < 128; t++)
        ck_assert(t % 32 < 8 ? got[t] == static_cast<float>(127 - (t / 32 * 32 + 7))
                             : isnan(got[t]));
    free(got);
    gpu_close(&g);
}

/* What thread 0 has written is taken by others without a barrier between. */
static void forgotten_barrier(float *out)
{
    CUDA_SHARED(float, shared);
    if (threadIdx.x == 0) shared[0] = 1;
    out[threadIdx.x] = shared[0];
}

START_TEST(a_forgotten_barrier_shows_in_some_order)
{
    gpu g = gpu_open(0);
    uint32_t n_wrong = 0;
    for (uint64_t seed = 1; seed <= 20; seed++) {
        float *out = gpu_poisoned(&g, 64);
        gpu_shuffle(seed);
        cuda_launch(g.d, cuda_shape{dim3(1), 64, sizeof(float)}, forgotten_barrier, out);
        float *got = gpu_get_floats(&g, out, 64);
        bool is_wrong = false;
        for (unsigned t = 0; t < 64; t++)
            is_wrong = is_wrong || isnan(got[t]);
        n_wrong += is_wrong;
        free(got);
    }
    ck_assert_uint_ge(n_wrong, 15);
    gpu_close(&g);
}

/* What a key stands for may not change behind its back. */
START_TEST(a_graph_that_its_key_does_not_tell_is_found)
{
    for (unsigned n_threads = 64; n_threads <= 128; n_threads *= 2) {
        for (unsigned n_launches = 0; n_launches <= 2; n_launches++) {
            gpu g = gpu_open(0);
            err_info info = {};
            float *out = gpu_poisoned(&g, 128);
            dev_cuda_begin_graph(g.d, 7);
            cuda_launch(g.d, cuda_shape{dim3(1), 128, 128 * sizeof(float)}, fine, out);
            dev_cuda_end_graph(g.d);
            ck_assert(dev_cuda_wait(g.d, &info) == ERR_OK);
            dev_cuda_begin_graph(g.d, 7);
            for (unsigned i = 0; i < n_launches; i++)
                cuda_launch(g.d, cuda_shape{dim3(1), n_threads, 128 * sizeof(float)}, fine, out);
            dev_cuda_end_graph(g.d);
            const bool is_same = n_launches == 1 && n_threads == 128;
            ck_assert((dev_cuda_wait(g.d, &info) == ERR_OK) == is_same);
            gpu_close(&g);
        }
    }
}

extern const test_case test_cases[] = {
    TEST_CASE(faults_of_divergence_are_found),
    TEST_CASE(faults_of_addresses_are_found),
    TEST_CASE(a_sound_kernel_is_run),
    TEST_CASE(a_forgotten_barrier_shows_in_some_order),
    TEST_CASE(a_graph_that_its_key_does_not_tell_is_found),
    TEST_CASES_END,
};
