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

/* A weight matrix, row-major, in its stored type. Borrowed. What is behind `cols` may be left zero but by
 * types with scales.
 *
 * fp8     w[r][c] = code * scale[(first_row + r) / block_rows][c / block_cols], rounded to f32. A block's sides
 *         are multiples of SCALE_BLOCK or reach to the end; DeepSeek-V3 (arXiv 2412.19437) has 128 x 128
 * mxfp4   w[r][c] = code * 2^(scale[r][c / 32] - 127), exact; the even column is in the lower four bits.
 *         cols is a multiple of 32. OCP Microscaling Formats (MX) 1.0
 *
 * Codes become floats in registers, where a product wants them; they are never expanded in memory. */
typedef struct matrix {
    const void *data; /* [rows][cols]; aligned to 2 bytes at least, NOT necessarily to the vector */
    dtype type;
    uint32_t rows, cols;
    uint32_t
        row_step; /* rows of the storage from one row to the next, of data and of mxfp4's scales
                          alike; 0 is 1. For matrices whose rows take turns (gate and up) */
    uint32_t block_rows, block_cols; /* of fp8 */
    uint32_t
        first_row; /* of fp8: rows of its scales' first blocks that belong to a matrix before this one; a multiple
                           of SCALE_BLOCK */
    const void
        *scale; /* fp8: f32 [blocks of rows][blocks of cols]; mxfp4: E8M0 [rows][cols / 32] */
} matrix;

enum { SCALE_BLOCK = 64, SCALE_BELOW = 256 /* what the magnitude of a scale of fp8 is below */ };

static inline size_t matrix_row_step(const matrix *w)
{
    return w->row_step > 1 ? w->row_step : 1;
}

/* Of one row's codes or values. */
static inline size_t matrix_row_bytes(const matrix *w)
{
    return dtype_row_bytes(w->type, w->cols);
}

/* Scales of a row's columns. */
static inline uint32_t matrix_scale_cols(const matrix *w)
{
    if (w->type == DTYPE_MXFP4) return w->cols / MX_BLOCK;
    return w->type == DTYPE_FP8 ? (w->cols + w->block_cols - 1) / w->block_cols : 0;
}

/* The first scale of row r; NULL of types without. */
static inline const void *matrix_row_scale(const matrix *w, size_t r)
{
    const size_t n = matrix_scale_cols(w);
    if (w->type == DTYPE_MXFP4) return (const uint8_t *)w->scale + r * matrix_row_step(w) * n;
    return w->type == DTYPE_FP8 ? (const float *)w->scale + (w->first_row + r) / w->block_rows * n
                                : NULL;
}

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
 * of a dot product's terms is that of a product with the matrix alone. Not of mxfp4; of fp8 w_head_rows is a
 * multiple of SCALE_BLOCK. */
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

/* `n` rows from `first` on. Not of mxfp4; of fp8 `first` is a multiple of SCALE_BLOCK. */
static inline matrix matrix_rows(const matrix *w, size_t first, uint32_t n)
{
    matrix part = *w;
    part.data = (const char *)w->data + first * matrix_row_bytes(w);
    part.rows = n;
    if (w->type == DTYPE_FP8) part.first_row += (uint32_t)first;
    return part;
}

/* The matrix of head h. */
static inline matrix matmul_head(const matmul_heads_args *args, uint32_t h)
{
    return matrix_rows(&args->w, (size_t)h * args->w_head_rows, args->w.rows);
}

#ifdef __cplusplus
extern "C" {
#endif

/* One value, for whoever looks at single ones. */
float matrix_element(const matrix *w, size_t r, size_t c);

#ifdef __cplusplus
}
#endif

#endif
