/* kernels/moe_simd.c - router and experts, fast.
 *
 * Two parallel loops. The first runs over (expert, rows of gate and up) and writes the hidden
 * vectors; the second over rows of the output, where one thread adds the experts of its rows in
 * rising order, so the sum needs no buffer and no third loop. The dot products are those of
 * matmul_simd.c. */
#ifndef KERNELS_MOE_SIMD_H
#define KERNELS_MOE_SIMD_H

#include "kernels/matmul_simd.c"
#include "kernels/moe_plan.h"

#include <math.h>

typedef struct moe_job {
    const moe_args *args;
    moe_plan plan;
    uint32_t item_rows;    /* of the loop that runs */
    uint32_t n_row_blocks; /* of ffn, in the first loop */
} moe_job;

/* One block of work: tokens [first, first + n) of the plan's pairs, all of one expert. */
typedef struct moe_block {
    uint32_t expert;
    uint32_t row, n_rows;
    uint32_t first, n;
} moe_block;

/* gate = silu(gate) * up, for n values; both arrays reach to the next whole vector. */
static void gate_values(float *gate, const float *up, uint32_t n)
{
    for (uint32_t i = 0; i < n; i += LANES)
        vf_store(gate + i, vf_mul(vf_silu(vf_load(gate + i)), vf_load(up + i)));
}

/* The same of the clamped activation; x sigmoid(alpha x) = silu(alpha x) / alpha. */
static void clamp_values(const moe_args *args, float *gate, const float *up, uint32_t n)
{
    const float limit = args->limit;
    const vf alpha = vf_set1(args->alpha), part = vf_set1(1 / args->alpha), one = vf_set1(1);
    for (uint32_t i = 0; i < n; i += LANES) {
        const vf g = vf_mul(vf_clamp(-INFINITY, vf_load(gate + i), limit), alpha);
        const vf u = vf_clamp(-limit, vf_load(up + i), limit);
        vf_store(gate + i, vf_mul(vf_mul(vf_silu(g), part), vf_add(u, one)));
    }
}

/* Of a block's rows [row, row + n_rows), `stride` products each. */
static void add_bias(float *products, const matrix *bias, uint32_t row, uint32_t n_rows,
                     uint32_t stride)
{
    if (bias->data == NULL) return;
    for (uint32_t r = 0; r < n_rows; r++) {
        const float b = load_element(bias->data, bias->type, row + r);
        for (uint32_t i = 0; i < stride; i++)
            products[r * stride + i] += b;
    }
}

static void activate(const moe_args *args, float *gate, const float *up, uint32_t n)
{
    if (args->activation == MOE_SILU)
        gate_values(gate, up, n);
    else
        clamp_values(args, gate, up, n);
}

static void moe_hidden_block(const moe_job *job, const moe_block *b)
{
    const moe_args *args = job->args;
    const moe_expert *expert = &args->expert[b->expert];
    row_list rows;
    const float *x[TOKEN_BLOCK];
    float gate[DOTS_OUT_FLOATS + LANES], up[DOTS_OUT_FLOATS + LANES];
    for (uint32_t i = 0; i < b->n; i++)
        x[i] = args->x + (size_t)(job->plan.pairs[b->first + i] / args->top_k) * args->dim;
    dots d = {.x = x, .n_x = b->n, .out = gate};
    dots_set_rows(&d, &expert->gate, b->row, b->n_rows, &rows);
    dots_run(&d);
    d.out = up;
    dots_set_rows(&d, &expert->up, b->row, b->n_rows, &rows);
    dots_run(&d);
    const uint32_t stride = dots_stride(b->n);
    add_bias(gate, &expert->gate_bias, b->row, b->n_rows, stride);
    add_bias(up, &expert->up_bias, b->row, b->n_rows, stride);
    if (stride == b->n) {
        activate(args, gate, up, b->n_rows * b->n);
    } else {
        for (uint32_t r = 0; r < b->n_rows; r++)
            activate(args, gate + r * stride, up + r * stride, b->n);
    }
    for (uint32_t i = 0; i < b->n; i++) {
        float *hidden = job->plan.hidden + (size_t)(b->first + i) * args->ffn + b->row;
        take_products(&d, gate, i, (product_sink){.out = hidden});
    }
}

/* Items: expert (of the active ones) x row block of ffn, row blocks innermost. */
static void moe_hidden_items(void *ctx, size_t begin, size_t end, uint32_t worker)
{
    (void)worker;
    const moe_job *job = ctx;
    for (size_t i = begin; i < end; i++) {
        const uint32_t expert = job->plan.active[i / job->n_row_blocks];
        const uint32_t row = (uint32_t)(i % job->n_row_blocks) * job->item_rows;
        const uint32_t n_left = job->args->ffn - row, last = job->plan.first[expert + 1];
        moe_block b = {.expert = expert, .row = row};
        b.n_rows = n_left < job->item_rows ? n_left : job->item_rows;
        for (b.first = job->plan.first[expert]; b.first < last; b.first += TOKEN_BLOCK) {
            b.n = last - b.first < TOKEN_BLOCK ? last - b.first : TOKEN_BLOCK;
            moe_hidden_block(job, &b);
        }
    }
}

static void moe_output_block(const moe_job *job, const moe_block *b)
{
    const moe_args *args = job->args;
    row_list rows;
    const float *x[TOKEN_BLOCK];
    float products[DOTS_OUT_FLOATS];
    for (uint32_t i = 0; i < b->n; i++)
        x[i] = job->plan.hidden + (size_t)(b->first + i) * args->ffn;
    dots d = {.x = x, .n_x = b->n, .out = products};
    const moe_expert *expert = &args->expert[b->expert];
    dots_set_rows(&d, &expert->down, b->row, b->n_rows, &rows);
    dots_run(&d);
    add_bias(products, &expert->down_bias, b->row, b->n_rows, dots_stride(b->n));
    for (uint32_t i = 0; i < b->n; i++) {
        const uint32_t pair = job->plan.pairs[b->first + i];
        float *out = args->out + (size_t)(pair / args->top_k) * args->dim + b->row;
        take_products(&d, products, i, (product_sink){out, true, args->weight[pair]});
    }
}

/* Items: row blocks of the output. */
static void moe_output_items(void *ctx, size_t begin, size_t end, uint32_t worker)
{
    (void)worker;
    const moe_job *job = ctx;
    for (size_t i = begin; i < end; i++) {
        const uint32_t row = (uint32_t)i * job->item_rows, n_left = job->args->dim - row;
        moe_block b = {.row = row};
        b.n_rows = n_left < job->item_rows ? n_left : job->item_rows;
        for (uint32_t a = 0; a < job->plan.n_active; a++) {
            b.expert = job->plan.active[a];
            const uint32_t last = job->plan.first[b.expert + 1];
            for (b.first = job->plan.first[b.expert]; b.first < last; b.first += TOKEN_BLOCK) {
                b.n = last - b.first < TOKEN_BLOCK ? last - b.first : TOKEN_BLOCK;
                moe_output_block(job, &b);
            }
        }
    }
}

static void moe_simd(dev *d, const moe_args *args)
{
    moe_job job = {.args = args, .plan = moe_plan_make(args)};
    if (job.plan.n_active == 0) return;
    uint32_t n_most = 0;
    for (uint32_t e = 0; e < args->n_experts; e++) {
        const uint32_t n = job.plan.first[e + 1] - job.plan.first[e];
        if (n > n_most) n_most = n;
    }
    const size_t n_pairs = job.plan.first[args->n_experts];
    const size_t n_mean = (n_pairs - 1) / job.plan.n_active + 1;
    job.item_rows = rows_per_item(d, n_most, (size_t)job.plan.n_active * args->ffn);
    job.n_row_blocks = (args->ffn + job.item_rows - 1) / job.item_rows;
    parallel_for(d->pool, (size_t)job.plan.n_active * job.n_row_blocks,
                 grain_of((size_t)2 * job.item_rows * args->dim * n_mean), moe_hidden_items, &job);
    job.item_rows = rows_per_item(d, n_most, args->dim);
    parallel_for(d->pool, (args->dim + job.item_rows - 1) / job.item_rows,
                 grain_of((size_t)job.item_rows * args->ffn * n_pairs), moe_output_items, &job);
}

static void router_items(void *ctx, size_t begin, size_t end, uint32_t worker)
{
    (void)worker;
    for (size_t t = begin; t < end; t++)
        router_token(ctx, t);
}

static void router_simd(dev *d, const router_args *args)
{
    enum { LOGITS_PER_CHUNK = 1024 };
    const size_t grain = LOGITS_PER_CHUNK / max_size(args->n_experts, 1) + 1;
    router_args copy = *args; /* parallel_for hands on a pointer that is not const */
    parallel_for(d->pool, args->n_tokens, grain, router_items, &copy);
}

#endif
