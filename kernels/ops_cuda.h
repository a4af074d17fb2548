/* kernels/ops_cuda.h - the table of CUDA ops, and what only they have. See dev_cuda.h for how to call them.
 *
 * Order of sums: that of every output follows from the shape of its layer alone. Batch, chunk, neighbours and
 * the size of the grid change no bit; kernels/cuda_product.cuh says how, and of attention attention_pages.h. */
#ifndef KERNELS_OPS_CUDA_H
#define KERNELS_OPS_CUDA_H

#include "kernels/choose_pages.h"
#include "kernels/elementwise.h"
#include "kernels/encode_pages.h"
#include "kernels/moe.h"
#include "kernels/rank_ops.h"
#include "kernels/sample.h"

typedef struct dev_cuda dev_cuda;

/* x += add, then out = rms_norm(x): the residual stream and the norm behind it, in one pass. */
typedef struct add_norm_args {
    rms_norm_args norm; /* norm.x is written: x + add */
    const float *add;   /* [n_tokens][dim], or NULL: nothing is added */
} add_norm_args;

typedef struct cuda_ops {
    void (*embed)(dev_cuda *d, const embed_args *args);
    void (*rms_norm)(dev_cuda *d, const rms_norm_args *args);
    void (*add_norm)(dev_cuda *d, const add_norm_args *args);
    void (*layer_norm)(dev_cuda *d, const layer_norm_args *args);
    void (*adjust)(dev_cuda *d, const adjust_args *args);
    void (*rope)(dev_cuda *d, const rope_args *args);
    void (*add)(dev_cuda *d, const add_args *args);
    void (*matmul)(dev_cuda *d, const matmul_args *args);
    void (*matmul_heads)(dev_cuda *d, const matmul_heads_args *args);
    void (*router)(dev_cuda *d, const router_args *args);
    void (*moe)(dev_cuda *d, const moe_args *args); /* scratch of cuda_moe_scratch_bytes */
    void (*deal_choices)(dev_cuda *d, const deal_choices_args *args);
    /* All pointers below args, and what they lead to, in the device's memory; the four are the twins of attend_pages_cpu,
     * choose_pages_cpu, put_rows_cpu and merge_parts_cpu, with rows and boxes aligned to their elements. */
    void (*attend_pages)(dev_cuda *d, const attend_pages_args *args);
    void (*choose_pages)(dev_cuda *d, const choose_pages_args *args);
    void (*put_rows)(dev_cuda *d, const put_rows_args *args);
    /* Likewise the twins of encode_pages_cpu and move_slots_cpu. */
    void (*encode_pages)(dev_cuda *d, const encode_pages_args *args);
    void (*move_slots)(dev_cuda *d, const move_slots_args *args);
    void (*merge_parts)(dev_cuda *d, const merge_parts_args *args);
    void (*sample)(dev_cuda *d, const sample_args *args);
} cuda_ops;

#ifdef __cplusplus
extern "C" {
#endif

/* moe_args.scratch on a GPU; 0 when the size overflows. */
size_t cuda_moe_scratch_bytes(uint32_t n_tokens, uint32_t dim, uint32_t ffn, uint32_t n_experts,
                              uint32_t top_k);

#ifdef __cplusplus
}
#endif

#endif
