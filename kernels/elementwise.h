/* kernels/elementwise.h - the small ops between the products.
 *
 * embed     out[t][i] = table[id[t]][i]                      (converted to f32)
 * rms_norm  out[t][i] = w[i] * (x[t][i] / sqrt(mean_i x[t][i]^2 + eps))      (Zhang, Sennrich 2019)
 * rope      pairs (a, b) rotated by angle[t][c]: a' = a cos - b sin, b' = b cos + a sin. Half-split pairs
 *           are (c, c + dim/2), as Hugging Face's Llama and Mixtral have them, interleaved ones
 *           (2c, 2c + 1), as DeepSeek's checkpoints do
 * layer_norm out[t][i] = w[i] * (x[t][i] - mean) / sqrt(variance + eps) + b[i]   (Ba, Kiros, Hinton 2016)
 * adjust    x[t][i] = clip(scale * x[t][i] + b[i]) to +-limit: biases and multipliers
 * add       x[i] += y[i]
 * Sums run in a fixed order per row, so results do not depend on the batch. */
#ifndef KERNELS_ELEMENTWISE_H
#define KERNELS_ELEMENTWISE_H

#include "kernels/matmul.h"

typedef struct embed_args {
    matrix table;       /* [vocab][dim] */
    const uint32_t *id; /* [n_tokens], each < table.rows */
    uint32_t n_tokens;
    float *out; /* [n_tokens][table.cols] */
} embed_args;

typedef struct rms_norm_args {
    const float *x; /* [n_tokens][dim] */
    const void *w;  /* [dim] */
    dtype w_type;
    uint32_t n_tokens;
    uint32_t dim;
    float eps;
    float *out;    /* [n_tokens][dim]; may be x */
    size_t stride; /* floats from row to row of x and of out, >= dim; 0: dim, as layer norms have */
} rms_norm_args;

typedef struct layer_norm_args {
    rms_norm_args norm;
    const void *b; /* [dim], of w_type */
} layer_norm_args;

typedef struct adjust_args {
    float *x;      /* [n_tokens][dim], in place */
    const void *b; /* [dim] or NULL: 0 */
    dtype b_type;
    uint32_t n_tokens, dim;
    float scale, limit; /* limit > 0; INFINITY: none */
} adjust_args;

typedef struct rope_args {
    float *x;         /* [n_tokens][n_heads][dim], rotated in place */
    const float *cos; /* [n_tokens][dim / 2] */
    const float *sin; /* [n_tokens][dim / 2] */
    uint32_t n_tokens, n_heads, dim;
    size_t stride; /* floats from head to head, >= dim: others are left alone; 0: dim */
    bool is_interleaved;
} rope_args;

typedef struct add_args {
    float *x;
    const float *y;
    size_t n;
} add_args;

#endif
