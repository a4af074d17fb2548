/* kernels/elementwise_cpu.c - embed, the norms, adjust, rope, add and store: the definition. */
#include "base/check.h"
#include "kernels/ops_cpu.h"

#include <math.h>

void embed_cpu(dev *d, const embed_args *args)
{
    (void)d;
    const uint32_t dim = args->table.cols;
    for (uint32_t t = 0; t < args->n_tokens; t++) {
        assert(args->id[t] < args->table.rows);
        const void *row = matrix_row(&args->table, args->id[t]);
        for (uint32_t i = 0; i < dim; i++)
            args->out[(size_t)t * dim + i] = load_element(row, args->table.type, i);
    }
}

void rms_norm_cpu(dev *d, const rms_norm_args *args)
{
    (void)d;
    const size_t stride = args->stride > 0 ? args->stride : args->dim;
    for (uint32_t t = 0; t < args->n_tokens; t++) {
        const float *x = args->x + t * stride;
        float *out = args->out + t * stride;
        double sum = 0;
        for (uint32_t i = 0; i < args->dim; i++)
            sum += (double)x[i] * (double)x[i];
        const double scale = 1 / sqrt(sum / args->dim + (double)args->eps);
        for (uint32_t i = 0; i < args->dim; i++) {
            const double w = (double)load_element(args->w, args->w_type, i);
            out[i] = (float)(w * ((double)x[i] * scale));
        }
    }
}

void layer_norm_cpu(dev *d, const layer_norm_args *args)
{
    (void)d;
    const rms_norm_args *const n = &args->norm;
    for (uint32_t t = 0; t < n->n_tokens; t++) {
        const float *x = n->x + (size_t)t * n->dim;
        float *out = n->out + (size_t)t * n->dim;
        double sum = 0, squares = 0;
        for (uint32_t i = 0; i < n->dim; i++)
            sum += (double)x[i];
        const double mean = sum / n->dim;
        for (uint32_t i = 0; i < n->dim; i++)
            squares += ((double)x[i] - mean) * ((double)x[i] - mean);
        const double scale = 1 / sqrt(squares / n->dim + (double)n->eps);
        for (uint32_t i = 0; i < n->dim; i++) {
            const double w = (double)load_element(n->w, n->w_type, i);
            const double b = (double)load_element(args->b, n->w_type, i);
            out[i] = (float)(w * (((double)x[i] - mean) * scale) + b);
        }
    }
}

void adjust_cpu(dev *d, const adjust_args *args)
{
    (void)d;
    for (uint32_t t = 0; t < args->n_tokens; t++) {
        float *x = args->x + (size_t)t * args->dim;
        for (uint32_t i = 0; i < args->dim; i++) {
            const double b = args->b != NULL ? (double)load_element(args->b, args->b_type, i) : 0;
            const float y = (float)((double)args->scale * (double)x[i] + b);
            x[i] = y > args->limit ? args->limit : y < -args->limit ? -args->limit : y;
        }
    }
}

void rope_cpu(dev *d, const rope_args *args)
{
    (void)d;
    const uint32_t half = args->dim / 2;
    const size_t stride = args->stride > 0 ? args->stride : args->dim;
    assert(args->dim % 2 == 0);
    for (uint32_t t = 0; t < args->n_tokens; t++) {
        const float *cos = args->cos + (size_t)t * half;
        const float *sin = args->sin + (size_t)t * half;
        for (uint32_t h = 0; h < args->n_heads; h++) {
            float *x = args->x + ((size_t)t * args->n_heads + h) * stride;
            for (uint32_t c = 0; c < half; c++) {
                float *first = x + (args->is_interleaved ? 2 * c : c);
                float *second = args->is_interleaved ? first + 1 : first + half;
                const double a = (double)*first, b = (double)*second;
                *first = (float)(a * (double)cos[c] - b * (double)sin[c]);
                *second = (float)(b * (double)cos[c] + a * (double)sin[c]);
            }
        }
    }
}

void store_cpu(const float *x, size_t n, dtype type, void *out)
{
    assert(type == DTYPE_F32 || type == DTYPE_BF16);
    if (type == DTYPE_F32) {
        memcpy(out, x, n * sizeof *x);
        return;
    }
    for (size_t i = 0; i < n; i++) {
        const uint16_t half = bf16_from_f32(x[i]);
        memcpy((char *)out + 2 * i, &half, sizeof half);
    }
}

/* For all tables: it is bound by memory. */
static void add_part(void *ctx, size_t begin, size_t end, uint32_t worker)
{
    const add_args *args = ctx;
    (void)worker;
    for (size_t i = begin; i < end; i++)
        args->x[i] += args->y[i];
}

void add_cpu(dev *d, const add_args *args)
{
    enum { GRAIN = 16384 };
    parallel_for(d->pool, args->n, GRAIN, add_part, (void *)(uintptr_t)args);
}
