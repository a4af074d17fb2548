/* kernels/matmul_cpu.c - products with weight matrices: the definition. */
#include "base/check.h"
#include "kernels/ops_cpu.h"

static double dot(const void *w, dtype type, const float *x, uint32_t n)
{
    double sum = 0;
    for (uint32_t i = 0; i < n; i++)
        sum += (double)load_element(w, type, i) * (double)x[i];
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
                const double product = dot(matrix_row(w, r), w->type, x, w->cols);
                out[r] = (float)(args->accumulate ? (double)out[r] + product : product);
            }
        }
    }
}

/* Head after head, each as a product of its own. */
void matmul_heads_cpu(dev *d, const matmul_heads_args *args)
{
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
