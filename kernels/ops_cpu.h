/* kernels/ops_cpu.h - the reference ops, private to this folder.
 *
 * Plain loops over double accumulators, one thread: they are the definition that every other table
 * is compared with. Contracts are in the ops' public headers. */
#ifndef KERNELS_OPS_CPU_H
#define KERNELS_OPS_CPU_H

#include "kernels/dev.h"

/* Element i of a stored array. */
static inline float load_element(const void *data, dtype type, size_t i)
{
    uint16_t half;
    if (type == DTYPE_F32) {
        float x;
        memcpy(&x, (const char *)data + 4 * i, sizeof x); /* weights may be unaligned */
        return x;
    }
    memcpy(&half, (const char *)data + 2 * i, sizeof half);
    return type == DTYPE_BF16 ? f32_from_bf16(half) : f32_from_f16(half);
}

/* First element of row r. */
static inline const void *matrix_row(const matrix *w, size_t r)
{
    return (const char *)w->data + r * matrix_row_step(w) * matrix_row_bytes(w);
}

void embed_cpu(dev *d, const embed_args *args);
void rms_norm_cpu(dev *d, const rms_norm_args *args);
void layer_norm_cpu(dev *d, const layer_norm_args *args);
void adjust_cpu(dev *d, const adjust_args *args);
void rope_cpu(dev *d, const rope_args *args);
void store_cpu(const float *x, size_t n, dtype type, void *out);
double matrix_dot(const matrix *w, size_t r, const float *x); /* row r times x */
void matmul_cpu(dev *d, const matmul_args *args);
void matmul_heads_cpu(dev *d, const matmul_heads_args *args);
void add_cpu(dev *d, const add_args *args);
void router_cpu(dev *d, const router_args *args);
void router_token(const router_args *args, size_t t); /* one token; shared by all tables */
void moe_cpu(dev *d, const moe_args *args);
void deal_choices_cpu(dev *d, const deal_choices_args *args);
void key_bounds_cpu(const key_bounds_args *args);
void attend_cpu(const attn_query *query, const attn_blocks *blocks, attn_state *state);
void attend_mass_cpu(const attn_mass_args *args);
void attend_max_cpu(const attn_max_args *args);

extern const dev_ops dev_ops_ref;
extern const dev_ops dev_ops_avx2_wide; /* 16 lanes as two AVX2 registers: tests AVX-512's logic */
extern const dev_ops dev_ops_avx2;
extern const dev_ops dev_ops_avx512;

#endif
