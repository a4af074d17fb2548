/* kernels/matmul.h - products with weight matrices.
 *
 * out_p[t][r] (+)= sum_c x[t][c] * w_p[r][c]     for t < n_tokens, r < w_p.rows
 *
 * Batch invariance: every dot product adds its terms in one fixed order - lanes along c, one
 * accumulator per lane, one fixed horizontal sum - whatever n_tokens, the tile, or the thread. A
 * row computed alone has the same bits as the same row inside a prompt. This holds per instruction
 * set; across instruction sets results agree to rounding. The reference uses a double accumulator.
 *
 * Aliasing: outputs overlap neither inputs nor each other. All pointers are host memory here. */
#ifndef KERNELS_MATMUL_H
#define KERNELS_MATMUL_H

#include "kernels/dtype.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A weight matrix, row-major and contiguous, in its stored type. Borrowed. */
typedef struct matrix {
    const void *data; /* [rows][cols]; aligned to 2 bytes at least, NOT necessarily to the vector */
    dtype type;
    uint32_t rows, cols;
} matrix;

enum { MATMUL_PARTS_MAX = 3 };

typedef struct matmul_args {
    const float *x;  /* [n_tokens][x_stride] */
    size_t x_stride; /* floats, >= cols */
    uint32_t n_tokens;
    uint32_t n_parts; /* products that share x (q, k and v): one parallel loop for all */
    bool accumulate;  /* add to out instead of writing it */
    struct {
        matrix w;          /* w.cols is the same for every part */
        float *out;        /* [n_tokens][out_stride] */
        size_t out_stride; /* floats, >= w.rows */
    } part[MATMUL_PARTS_MAX];
} matmul_args;

/* A small matrix for every head (h < n_heads), one parallel loop for all:
 *
 * out[t][h][r] = sum_c x[t][h][c] * w_h[r][c]    for r < w.rows
 *
 * w_h is `w` moved down by h * w_head_rows rows, so that the heads may lie between rows of others. The order
 * of a dot product's terms is that of a product with the matrix alone. */
typedef struct matmul_heads_args {
    const float *x;
    size_t x_stride;      /* floats from token to token */
    size_t x_head_stride; /* from head to head; 0: all have the same input */
    uint32_t n_tokens, n_heads;
    matrix w; /* of the first head */
    uint32_t w_head_rows;
    float *out;
    size_t out_stride, out_head_stride;
} matmul_heads_args;

/* The matrix of head h. */
static inline matrix matmul_head(const matmul_heads_args *args, uint32_t h)
{
    matrix w = args->w;
    const size_t first = (size_t)h * args->w_head_rows * w.cols;
    w.data = (const char *)w.data + first * dtype_bytes(w.type);
    return w;
}

#endif
