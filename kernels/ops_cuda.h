/* kernels/ops_cuda.h - the table of CUDA ops, and what only they have. See dev_cuda.h for how to call them.
 *
 * Order of sums: that of every output follows from the shape of its layer alone. Batch, chunk, neighbours and
 * the size of the grid change no bit; kernels/cuda_matmul.cu and cuda_attention.cu say how. */
#ifndef KERNELS_OPS_CUDA_H
#define KERNELS_OPS_CUDA_H

#include "kernels/attention.h"
#include "kernels/elementwise.h"
#include "kernels/key_bounds.h"
#include "kernels/moe.h"

typedef struct dev_cuda dev_cuda;

/* rope, and each rotated row rounded to `type` (nearest even) where it is kept, in the ring or staging. */
typedef struct rope_append_args {
    rope_args rope;  /* dim 0: no rotation, x is only stored (values) */
    uint32_t dim;    /* elements of a row */
    dtype type;      /* f32 or bf16 */
    void *const *to; /* [n_tokens][n_heads]: where the row goes, NULL: nowhere */
} rope_append_args;

/* x += add, then out = rms_norm(x): the residual stream and the norm behind it, in one pass. */
typedef struct add_norm_args {
    rms_norm_args norm; /* norm.x is written: x + add */
    const float *add;   /* [n_tokens][dim], or NULL: nothing is added */
} add_norm_args;

/* One problem of attention: the queries of one KV head of one sequence, and what they read. Tasks lie
 * in device memory, so that a graph can be replayed over new ones. */
typedef struct attn_task {
    attn_query query;
    attn_blocks blocks;
    attn_result result; /* written whole: attend, then attn_finish */
} attn_task;

typedef struct attn_batch {
    const attn_task *tasks; /* [n_tasks] */
    uint32_t n_tasks;
    /* The largest of any task; the grid is made of these, a task may have less. */
    uint32_t n_rows; /* n_queries * group */
    uint32_t n_blocks;
    uint32_t k_dim, v_dim; /* these are of all tasks */
} attn_batch;

/* attend_mass or attend_max of the same shape; positions of a task's slots differ from each other. */
typedef struct attn_shares_task {
    attn_query query;
    attn_blocks blocks;
    const float *lse; /* [n_queries][group] */
    float *out;       /* by position: mass or most */
} attn_shares_task;

typedef struct attn_shares_batch {
    const attn_shares_task *tasks; /* [n_tasks] */
    uint32_t n_tasks;
    uint32_t n_blocks, k_dim; /* as in attn_batch */
} attn_shares_batch;

/* attn_merge of many rows: row r of the parts at o + r * v_dim, lse + r; of the result likewise. */
typedef struct attn_merge_rows_args {
    const float *o, *lse; /* part p: + p * o_part_stride, + p * lse_part_stride */
    size_t o_part_stride, lse_part_stride;
    uint32_t n_parts, n_rows, v_dim;
    float *out;     /* [n_rows][v_dim] */
    float *out_lse; /* [n_rows] or NULL */
} attn_merge_rows_args;

typedef struct cuda_ops {
    void (*embed)(dev_cuda *d, const embed_args *args);
    void (*rms_norm)(dev_cuda *d, const rms_norm_args *args);
    void (*add_norm)(dev_cuda *d, const add_norm_args *args);
    void (*rope)(dev_cuda *d, const rope_args *args);
    void (*rope_append)(dev_cuda *d, const rope_append_args *args);
    void (*add)(dev_cuda *d, const add_args *args);
    void (*store)(dev_cuda *d, const float *x, size_t n, dtype type, void *out);
    void (*matmul)(dev_cuda *d, const matmul_args *args);
    void (*router)(dev_cuda *d, const router_args *args);
    void (*moe)(dev_cuda *d, const moe_args *args); /* scratch of cuda_moe_scratch_bytes */
    void (*attend)(dev_cuda *d, const attn_batch *batch);
    void (*attend_mass)(dev_cuda *d, const attn_shares_batch *batch);
    void (*attend_max)(dev_cuda *d, const attn_shares_batch *batch);
    void (*attn_merge)(dev_cuda *d, const attn_merge_rows_args *args);
    void (*key_bounds)(dev_cuda *d, const key_bounds_args *args);
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
