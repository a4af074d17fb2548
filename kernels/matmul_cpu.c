/* kernels/matmul_cpu.c - products with weight matrices: the definition. */
#include "base/check.h"
#include "kernels/ops_cpu.h"

float matrix_element(const matrix *w, size_t r, size_t c)
{
    const uint8_t *const row = matrix_row(w, r);
    if (w->type == DTYPE_FP8) {
        const float *const scale = matrix_row_scale(w, r);
        return f32_from_fp8(row[c]) * scale[c / w->block_cols];
    }
    if (w->type == DTYPE_MXFP4) {
        const uint8_t *const scale = matrix_row_scale(w, r);
        const uint8_t code = (uint8_t)(row[c / 2] >> (c % 2 * 4));
        return f32_from_fp4(code) * f32_from_e8m0(scale[c / MX_BLOCK]);
    }
    return load_element(row, w->type, c);
}

double matrix_dot(const matrix *w, size_t r, const float *x)
{
    const void *const row = matrix_row(w, r);
    double sum = 0;
    for (uint32_t i = 0; i < w->cols; i++) {
        const float value =
            dtype_has_scales(w->type) ? matrix_element(w, r, i) : load_element(row, w->type, i);
        sum += (double)value * (double)x[i];
    }
    return sum;
}

void matmul_cpu(dev *d, const matmul_args *args)
{
    (void)d;
    assert(args->n_parts <= MATMUL_PARTS_MAX);
    for (uint32_t p = 0; p < args->n_parts; p++) {
        const matrix *w = &args->part[p].w;
        for (uint32_t t = 0; t < args->n_tokens; t++) {
            const float *x = args->x + t * args->x_stride;
            float *out = args->part[p].out + t * args->part[p].out_stride;
            for (uint32_t r = 0; r < w->rows; r++) {
                const double product = matrix_dot(w, r, x);
                out[r] = (float)(args->accumulate ? (double)out[r] + product : product);
            }
        }
    }
}

/* Head after head, each as a product of its own. */
void matmul_heads_cpu(dev *d, const matmul_heads_args *args)
{
    assert(args->w.type != DTYPE_MXFP4);
    for (uint32_t h = 0; h < args->n_heads; h++) {
        matmul_cpu(
            d, &(matmul_args){.x = args->x + h * args->x_head_stride,
                              .x_stride = args->x_stride,
                              .n_tokens = args->n_tokens,
                              .n_parts = 1,
                              .part = {{matmul_head(args, h), args->out + h * args->out_head_stride,
                                        args->out_stride}}});
    }
}
