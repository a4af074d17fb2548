/* kernels/matmul_simd.h - products with weight matrices, fast.
 *
 * The parts are cut into blocks of rows, the tokens into blocks; an item of the parallel loop is
 * (row block, token block). Token blocks of one row block are neighbours: its weights are read from
 * memory once and then from the cache. Rows of consecutive items are consecutive in memory. */
#ifndef KERNELS_MATMUL_SIMD_H
#define KERNELS_MATMUL_SIMD_H

#include "kernels/dots_simd.h"
#include "kernels/ops_cpu.h"

/* Rows of an item: few in decode, so that many threads get equal shares. */
static uint32_t rows_per_item(uint32_t n_tokens)
{
    return n_tokens <= DIRECT_TOKENS_MAX ? DIRECT_ROWS : ROW_BLOCK;
}

/* Items per chunk: enough work (in products) to pay for dealing it, yet several chunks a thread. */
static size_t grain_of(const dev *d, size_t n_items, size_t products_per_item)
{
    enum { PRODUCTS_PER_CHUNK = 32768, CHUNKS_PER_THREAD = 8 };
    const size_t wanted = PRODUCTS_PER_CHUNK / max_size(products_per_item, 1);
    const size_t fair = n_items / ((size_t)thread_pool_n_threads(d->pool) * CHUNKS_PER_THREAD);
    return max_size(1, min_size(wanted, fair));
}

/* Rows [row, row + n_rows) of w. `rows` is the caller's storage for the pointers. */
static void dots_set_rows(dots *d, const matrix *w, uint32_t row, uint32_t n_rows,
                          const void *rows[ROW_BLOCK])
{
    for (uint32_t r = 0; r < n_rows; r++)
        rows[r] = matrix_row(w, (size_t)row + r);
    d->w = rows;
    d->n_rows = n_rows;
    d->cols = w->cols;
    d->type = w->type;
    d->row_bytes = (size_t)w->cols * dtype_bytes(w->type);
}

typedef struct matmul_job {
    const matmul_args *args;
    uint32_t item_rows; /* rows of an item */
    uint32_t n_token_blocks;
    uint32_t first_row_block[MATMUL_PARTS_MAX + 1]; /* of each part, and the total */
} matmul_job;

static void matmul_item(const matmul_job *job, uint32_t row_block, uint32_t first_token)
{
    const matmul_args *args = job->args;
    uint32_t p = 0;
    while (row_block >= job->first_row_block[p + 1])
        p++;
    const matrix *w = &args->part[p].w;
    const uint32_t row = (row_block - job->first_row_block[p]) * job->item_rows;
    const uint32_t n_rows = w->rows - row < job->item_rows ? w->rows - row : job->item_rows;
    const uint32_t n_left = args->n_tokens - first_token;
    const void *rows[ROW_BLOCK];
    const float *x[TOKEN_BLOCK];
    float products[TOKEN_BLOCK * ROW_BLOCK];
    dots d = {.x = x, .out = products, .out_stride = ROW_BLOCK};
    d.n_x = n_left < TOKEN_BLOCK ? n_left : TOKEN_BLOCK;
    for (uint32_t t = 0; t < d.n_x; t++)
        x[t] = args->x + ((size_t)first_token + t) * args->x_stride;
    dots_set_rows(&d, w, row, n_rows, rows);
    dots_run(&d);
    for (uint32_t t = 0; t < d.n_x; t++) {
        float *out = args->part[p].out + ((size_t)first_token + t) * args->part[p].out_stride + row;
        const float *from = products + (size_t)t * ROW_BLOCK;
        for (uint32_t r = 0; r < n_rows; r++)
            out[r] = args->accumulate ? out[r] + from[r] : from[r];
    }
}

static void matmul_items(void *ctx, size_t begin, size_t end, uint32_t worker)
{
    (void)worker;
    const matmul_job *job = ctx;
    for (size_t i = begin; i < end; i++) {
        matmul_item(job, (uint32_t)(i / job->n_token_blocks),
                    (uint32_t)(i % job->n_token_blocks) * TOKEN_BLOCK);
    }
}

static void matmul_simd(dev *d, const matmul_args *args)
{
    assert(args->n_parts <= MATMUL_PARTS_MAX);
    if (args->n_tokens == 0 || args->n_parts == 0) return;
    matmul_job job = {.args = args,
                      .item_rows = rows_per_item(args->n_tokens),
                      .n_token_blocks = (args->n_tokens + TOKEN_BLOCK - 1) / TOKEN_BLOCK};
    for (uint32_t p = 0; p < args->n_parts; p++) {
        assert(args->part[p].w.cols == args->part[0].w.cols);
        const uint32_t n_blocks = (args->part[p].w.rows + job.item_rows - 1) / job.item_rows;
        job.first_row_block[p + 1] = job.first_row_block[p] + n_blocks;
    }
    const size_t n_items = (size_t)job.first_row_block[args->n_parts] * job.n_token_blocks;
    const size_t n_x = min_size(args->n_tokens, TOKEN_BLOCK);
    const size_t products = (size_t)job.item_rows * args->part[0].w.cols * n_x;
    parallel_for(d->pool, n_items, grain_of(d, n_items, products), matmul_items, &job);
}

#endif
