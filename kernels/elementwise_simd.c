/* kernels/elementwise_simd.c - embed, rms_norm, rope and store, fast.
 *
 * A token is handled by one thread, in the same way whatever the batch. Small batches run inline:
 * waking a thread costs more than normalising a vector. */
#ifndef KERNELS_ELEMENTWISE_SIMD_H
#define KERNELS_ELEMENTWISE_SIMD_H

#include "base/check.h"
#include "kernels/ops_cpu.h"
#include "kernels/simd.h"

#include <math.h>

/* Tokens per chunk: 32 Ki elements are a few microseconds. */
static size_t tokens_per_chunk(size_t elements_per_token)
{
    enum { ELEMENTS_PER_CHUNK = 32768 };
    return ELEMENTS_PER_CHUNK / max_size(elements_per_token, 1) + 1;
}

static ALWAYS_INLINE void widen_typed(const void *from, float *out, uint32_t n, const dtype type)
{
    const uint32_t each = dtype_bytes(type);
    uint32_t i = 0;
    for (; i + LANES <= n; i += LANES)
        vf_store(out + i, vf_load_as((const char *)from + (size_t)i * each, type));
    if (i == n) return;
    vf_store_part(out + i, vf_load_part((const char *)from + (size_t)i * each, type, n - i), n - i);
}

static void widen(const void *from, dtype type, float *out, uint32_t n)
{
    switch (type) {
    case DTYPE_F32: widen_typed(from, out, n, DTYPE_F32); break;
    case DTYPE_BF16: widen_typed(from, out, n, DTYPE_BF16); break;
    case DTYPE_F16: widen_typed(from, out, n, DTYPE_F16); break;
    default: assert(false);
    }
}

static void embed_items(void *ctx, size_t begin, size_t end, uint32_t worker)
{
    (void)worker;
    const embed_args *args = ctx;
    const uint32_t dim = args->table.cols;
    for (size_t t = begin; t < end; t++) {
        assert(args->id[t] < args->table.rows);
        widen(matrix_row(&args->table, args->id[t]), args->table.type, args->out + t * dim, dim);
    }
}

static void embed_simd(dev *d, const embed_args *args)
{
    embed_args copy = *args; /* parallel_for hands on a pointer that is not const */
    parallel_for(d->pool, args->n_tokens, tokens_per_chunk(args->table.cols), embed_items, &copy);
}

/* Four accumulators in turn, then ((0 + 1) + (2 + 3)). */
static float sum_of_squares(const float *x, uint32_t n)
{
    enum { N_SUMS = 4 };
    vf sum[N_SUMS] = {vf_set1(0), vf_set1(0), vf_set1(0), vf_set1(0)};
    uint32_t i = 0;
    for (; i + N_SUMS * LANES <= n; i += N_SUMS * LANES) {
        UNROLL
        for (uint32_t j = 0; j < N_SUMS; j++) {
            const vf v = vf_load(x + i + j * LANES);
            sum[j] = vf_fma(v, v, sum[j]);
        }
    }
    for (; i < n; i += LANES) {
        const vf v = n - i >= LANES ? vf_load(x + i) : vf_load_part(x + i, DTYPE_F32, n - i);
        sum[0] = vf_fma(v, v, sum[0]);
    }
    return vf_sum(vf_add(vf_add(sum[0], sum[1]), vf_add(sum[2], sum[3])));
}

static ALWAYS_INLINE void norm_typed(const rms_norm_args *args, size_t t, const dtype type)
{
    const uint32_t dim = args->dim, each = dtype_bytes(type);
    const size_t stride = args->stride > 0 ? args->stride : dim;
    const float *x = args->x + t * stride;
    const char *w = args->w;
    float *out = args->out + t * stride;
    const float mean = sum_of_squares(x, dim) / (float)dim;
    const vf scale = vf_set1(1 / sqrtf(mean + args->eps));
    uint32_t i = 0;
    for (; i + LANES <= dim; i += LANES) {
        const vf scaled = vf_mul(vf_load(x + i), scale);
        vf_store(out + i, vf_mul(vf_load_as(w + (size_t)i * each, type), scaled));
    }
    if (i == dim) return;
    const vf scaled = vf_mul(vf_load_part(x + i, DTYPE_F32, dim - i), scale);
    const vf last = vf_load_part(w + (size_t)i * each, type, dim - i);
    vf_store_part(out + i, vf_mul(last, scaled), dim - i);
}

static void norm_items(void *ctx, size_t begin, size_t end, uint32_t worker)
{
    (void)worker;
    const rms_norm_args *args = ctx;
    for (size_t t = begin; t < end; t++) {
        switch (args->w_type) {
        case DTYPE_F32: norm_typed(args, t, DTYPE_F32); break;
        case DTYPE_BF16: norm_typed(args, t, DTYPE_BF16); break;
        case DTYPE_F16: norm_typed(args, t, DTYPE_F16); break;
        default: assert(false);
        }
    }
}

static void rms_norm_simd(dev *d, const rms_norm_args *args)
{
    rms_norm_args copy = *args;
    parallel_for(d->pool, args->n_tokens, tokens_per_chunk(args->dim), norm_items, &copy);
}

/* The few models that have this norm, biases or multipliers spend no time in them: many threads, each with the
 * definition. */
static void layer_norm_items(void *ctx, size_t begin, size_t end, uint32_t worker)
{
    (void)worker;
    layer_norm_args part = *(const layer_norm_args *)ctx;
    part.norm.x += begin * part.norm.dim;
    part.norm.out += begin * part.norm.dim;
    part.norm.n_tokens = (uint32_t)(end - begin);
    layer_norm_cpu(NULL, &part);
}

static void layer_norm_simd(dev *d, const layer_norm_args *args)
{
    layer_norm_args copy = *args;
    parallel_for(d->pool, args->norm.n_tokens, tokens_per_chunk(args->norm.dim), layer_norm_items,
                 &copy);
}

static void adjust_items(void *ctx, size_t begin, size_t end, uint32_t worker)
{
    (void)worker;
    adjust_args part = *(const adjust_args *)ctx;
    part.x += begin * part.dim;
    part.n_tokens = (uint32_t)(end - begin);
    adjust_cpu(NULL, &part);
}

static void adjust_simd(dev *d, const adjust_args *args)
{
    adjust_args copy = *args;
    parallel_for(d->pool, args->n_tokens, tokens_per_chunk(args->dim), adjust_items, &copy);
}

static void rotate(float *x, const float *cos, const float *sin, uint32_t half)
{
    uint32_t c = 0;
    for (; c + LANES <= half; c += LANES) {
        const vf a = vf_load(x + c), b = vf_load(x + half + c);
        const vf cs = vf_load(cos + c), sn = vf_load(sin + c);
        vf_store(x + c, vf_sub(vf_mul(a, cs), vf_mul(b, sn)));
        vf_store(x + half + c, vf_add(vf_mul(b, cs), vf_mul(a, sn)));
    }
    for (; c < half; c++) {
        const float a = x[c], b = x[half + c];
        x[c] = a * cos[c] - b * sin[c];
        x[half + c] = b * cos[c] + a * sin[c];
    }
}

/* Few channels of a head are turned where pairs lie so. */
static void rotate_interleaved(float *x, const float *cos, const float *sin, uint32_t half)
{
    for (uint32_t c = 0; c < half; c++) {
        const float a = x[2 * c], b = x[2 * c + 1];
        x[2 * c] = a * cos[c] - b * sin[c];
        x[2 * c + 1] = b * cos[c] + a * sin[c];
    }
}

static void rope_items(void *ctx, size_t begin, size_t end, uint32_t worker)
{
    (void)worker;
    const rope_args *args = ctx;
    const uint32_t half = args->dim / 2;
    const size_t stride = args->stride > 0 ? args->stride : args->dim;
    for (size_t t = begin; t < end; t++) {
        for (size_t h = 0; h < args->n_heads; h++) {
            float *x = args->x + (t * args->n_heads + h) * stride;
            (args->is_interleaved ? rotate_interleaved : rotate)(x, args->cos + t * half,
                                                                 args->sin + t * half, half);
        }
    }
}

static void rope_simd(dev *d, const rope_args *args)
{
    assert(args->dim % 2 == 0);
    rope_args copy = *args;
    const size_t grain = tokens_per_chunk((size_t)args->n_heads * args->dim);
    parallel_for(d->pool, args->n_tokens, grain, rope_items, &copy);
}

static void store_simd(const float *x, size_t n, dtype type, void *out)
{
    if (type != DTYPE_BF16) {
        store_cpu(x, n, type, out);
        return;
    }
    size_t i = 0;
    for (; i + LANES <= n; i += LANES)
        vf_store_bf16((char *)out + 2 * i, vf_load(x + i));
    store_cpu(x + i, n - i, type, (char *)out + 2 * i);
}

#endif
