/* kernels/cuda_attention_tile.cuh - what a block of threads works on: some rows, and the blocks of a split. */
#ifndef KERNELS_CUDA_ATTENTION_TILE_CUH
#define KERNELS_CUDA_ATTENTION_TILE_CUH

#include "kernels/cuda_attention_rows.cuh"

enum { SPLIT_BLOCKS = 1 + ATTN_SPLIT_BLOCKS }; /* the sinks first, in split 0 */

/* A block's spans; those that are not there have no slots. Two only in ring and staging, both plain. */
typedef struct tile_block {
    attn_span span[2];
    uint32_t n_slots;
    uint32_t key_dim,
        value_dim;    /* elements of a row of keys, of values; coefficients, if it is of low rank */
    dtype basis_type; /* of bases, which are k_grid and v_grid of the span */
    float key_scale;  /* of all codes: fp8's, or 1 */
} tile_block;

/* Up to ROWS query heads of a task that read one KV head: flattened rows query * group + g. */
typedef struct tile {
    const attend_pages_args *args;
    attn_row row;
    attn_task task;
    uint32_t kv_head;
    uint32_t first, n_rows;                 /* flattened, of the task */
    uint32_t first_position, last_position; /* of its queries */
    const uint32_t *chosen;                 /* entries of the list; NULL: all */
    uint32_t n_listed;                      /* of them */
} tile;

#endif
