/* kernels/key_bounds_cpu.c - bounds of scores: the definition. */
#include "base/check.h"
#include "kernels/ops_cpu.h"

#include <math.h>

static double bound(const key_bounds_args *args, const float *q, const uint8_t *box)
{
    double sum = 0, magnitude = 0;
    for (uint32_t c = 0; c < args->k_dim; c++) {
        const double lo = (double)q[c] * (double)load_element(box, args->type, c);
        const double hi = (double)q[c] * (double)load_element(box, args->type, args->k_dim + c);
        const double largest = lo > hi ? lo : hi;
        sum += largest;
        magnitude += fabs(largest);
    }
    return (double)args->scale * (sum + ldexp(args->k_dim + 2, -23) * magnitude);
}

void key_bounds_cpu(const key_bounds_args *args)
{
    assert(args->type != DTYPE_F16);
    for (uint32_t g = 0; g < args->group; g++) {
        const float *q = args->q + (size_t)g * args->k_dim;
        for (uint32_t i = 0; i < args->n_boxes; i++) {
            const uint8_t *box = args->boxes + args->index[i] * args->box_stride_bytes;
            args->out[g * args->out_stride + i] = (float)bound(args, q, box);
        }
    }
}
