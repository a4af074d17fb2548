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
