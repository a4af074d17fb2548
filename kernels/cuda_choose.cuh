/* kernels/cuda_choose.cuh - what the kernels of a choice share. Contract: choose_pages.h. */
#ifndef KERNELS_CUDA_CHOOSE_CUH
#define KERNELS_CUDA_CHOOSE_CUH

#include "kernels/choose_pages.h"
#include "kernels/cuda_device.cuh"

/* One KV head of a choice. */
typedef struct head_choice {
    attn_row row;
    attn_choice choice;
    uint32_t kv_head;
    uint32_t first; /* entry that the window leaves */
    size_t at;      /* choice and KV head, flattened */
    float *bounds, *most;
} head_choice;

/* As attn_first_block, which is the host's. */
static __device__ __forceinline__ uint32_t first_block(const attend_pages_args *attend,
                                                       uint32_t position)
{
    const uint32_t window = attend->window;
    if (window == 0 || position < window) return 0;
    return (position - window + 1) / attend->block_tokens;
}

static __device__ head_choice find_choice(const choose_pages_args *args,
                                          const attend_pages_args *attend, uint32_t at)
{
    head_choice c;
    c.at = at;
    c.kv_head = at % attend->n_kv_heads;
    c.choice = args->choices[at / attend->n_kv_heads];
    c.row = attend->rows[c.choice.row];
    c.bounds = args->bounds + c.at * (attend->group + 1) * args->n_blocks_max;
    c.most = c.bounds + static_cast<size_t>(attend->group) * args->n_blocks_max;
    c.first = first_block(attend, c.row.length);
    return c;
}

static __device__ __forceinline__ const attn_page *
page_at(const head_choice *c, const attend_pages_args *attend, uint32_t block)
{
    return &c->row.pages[static_cast<size_t>(block) * attend->n_lists + attend->first_list +
                         c->kv_head];
}

/* Integers in the order of the floats; equal floats, zeros included, have equal ones. */
static __device__ __forceinline__ uint32_t key_of(float x)
{
    const uint32_t bits = x == 0 ? 0 : __float_as_uint(x);
    return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}

/* A sum of exponentials, as (its largest exponent, the sum over that). */
typedef struct mass {
    float max, sum;
} mass;

static __device__ __forceinline__ mass add_masses(mass a, mass b)
{
    mass out = {fmaxf(a.max, b.max), 0};
    if (out.max == -INFINITY) return out;
    out.sum = fmaf(a.sum, expf(a.max - out.max), b.sum * expf(b.max - out.max));
    return out;
}

/* NUCLEUS and CERTIFIED: behind the bounds, and before the choice. `most` becomes what comes first, and a note's
 * n_chosen how many are read. */
void choose_by_mass_cuda(dev_cuda *d, const choose_pages_args *args);

#endif
