/* kernels/matmul_simd.c - products with weight matrices, fast.
 *
 * The parts are cut into blocks of rows, the tokens into blocks; an item of the parallel loop is
 * (row block, token block). Token blocks of one row block are neighbours: its weights are read from
 * memory once and then from the cache. Rows of consecutive items are consecutive in memory. */
#ifndef KERNELS_MATMUL_SIMD_H
#define KERNELS_MATMUL_SIMD_H

#include "kernels/dots_simd.c"
#include "kernels/ops_cpu.h"

enum { ROWS_MAX = DIRECT_ROWS_MAX > ROW_BLOCK ? DIRECT_ROWS_MAX : ROW_BLOCK };

/* Rows of an item. In decode: long runs of memory, yet several items for each thread. */
static uint32_t rows_per_item(const dev *d, uint32_t n_tokens, size_t n_rows)
{
    enum { ITEMS_PER_THREAD = 8 };
    if (n_tokens > DIRECT_TOKENS_MAX) return ROW_BLOCK;
    const size_t fair = n_rows / (ITEMS_PER_THREAD * (size_t)thread_pool_n_threads(d->pool));
    const size_t whole_tiles = fair / DIRECT_TILE * DIRECT_TILE;
    return (uint32_t)max_size(DIRECT_TILE, min_size(whole_tiles, DIRECT_ROWS_MAX));
}

/* Items per chunk: enough work to pay for dealing it; one item if that alone is enough. */
static size_t grain_of(size_t products_per_item)
{
    enum { PRODUCTS_PER_CHUNK = 16384 };
    return PRODUCTS_PER_CHUNK / max_size(products_per_item, 1) + 1;
}

/* The caller's storage for the pointers of some rows. */
typedef struct row_list {
    const void *w[ROWS_MAX], *scale[ROWS_MAX];
} row_list;

/* Rows [row, row + n_rows) of w. What is asked for ahead is the matrix itself, and behind its end whatever
 * lies there: a hint that cannot fail. */
static void dots_set_rows(dots *d, const matrix *w, uint32_t row, uint32_t n_rows, row_list *rows)
{
    const size_t stride_bytes = matrix_row_bytes(w) * matrix_row_step(w);
    const char *at = (const char *)w->data + row * stride_bytes;
    d->ahead = at + AHEAD_BYTES;
    for (uint32_t i = 0; i < n_rows; i++, at += stride_bytes)
        rows->w[i] = at;
    for (uint32_t i = 0; dtype_has_scales(w->type) && i < n_rows; i++)
        rows->scale[i] = matrix_row_scale(w, row + i);
    d->w = rows->w;
    d->scale = rows->scale;
    d->block_cols = w->type == DTYPE_MXFP4 ? MX_BLOCK : w->block_cols;
    d->n_rows = n_rows;
    d->cols = w->cols;
    d->type = w->type;
}

/* out[r] = or += the product of row r and token t, for all rows of d. */
typedef struct product_sink {
    float *out;
    bool accumulate;
    float weight; /* of an added product */
} product_sink;

static void take_products(const dots *d, const float *products, uint32_t t, product_sink sink)
{
    const float *from = products + t;
    for (uint32_t i = 0; i < d->n_rows; i++, from += dots_stride(d->n_x)) {
        float *out = &sink.out[i];
        *out = sink.accumulate ? *out + sink.weight * *from : *from;
    }
}

typedef struct matmul_job {
    const matmul_args *args;
    uint32_t item_rows;
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
    row_list rows;
    const float *x[TOKEN_BLOCK];
    float products[DOTS_OUT_FLOATS];
    dots d = {.x = x, .out = products, .n_x = n_left < TOKEN_BLOCK ? n_left : TOKEN_BLOCK};
    for (uint32_t t = 0; t < d.n_x; t++)
        x[t] = args->x + ((size_t)first_token + t) * args->x_stride;
    dots_set_rows(&d, w, row, n_rows, &rows);
    dots_run(&d);
    for (uint32_t t = 0; t < d.n_x; t++) {
        float *out = args->part[p].out + ((size_t)first_token + t) * args->part[p].out_stride + row;
        take_products(&d, products, t, (product_sink){out, args->accumulate, 1});
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
    size_t n_rows = 0;
    for (uint32_t p = 0; p < args->n_parts; p++) {
        assert(args->part[p].w.cols == args->part[0].w.cols);
        n_rows += args->part[p].w.rows;
    }
    matmul_job job = {.args = args,
                      .item_rows = rows_per_item(d, args->n_tokens, n_rows),
                      .n_token_blocks = (args->n_tokens + TOKEN_BLOCK - 1) / TOKEN_BLOCK};
    for (uint32_t p = 0; p < args->n_parts; p++) {
        const uint32_t n_blocks = (args->part[p].w.rows + job.item_rows - 1) / job.item_rows;
        job.first_row_block[p + 1] = job.first_row_block[p] + n_blocks;
    }
    const size_t n_items = (size_t)job.first_row_block[args->n_parts] * job.n_token_blocks;
    const size_t n_x = min_size(args->n_tokens, TOKEN_BLOCK);
    const size_t products = (size_t)job.item_rows * args->part[0].w.cols * n_x;
    parallel_for(d->pool, n_items, grain_of(products), matmul_items, &job);
}

/* ---- a matrix for every head --------------------------------------------------------------------- */

typedef struct heads_job {
    const matmul_heads_args *args;
    uint32_t item_rows, n_row_blocks, n_token_blocks;
} heads_job;

static void heads_item(const heads_job *job, uint32_t head, uint32_t row, uint32_t first_token)
{
    const matmul_heads_args *args = job->args;
    const matrix w = matmul_head(args, head);
    const uint32_t n_rows = w.rows - row < job->item_rows ? w.rows - row : job->item_rows;
    const uint32_t n_left = args->n_tokens - first_token;
    row_list rows;
    const float *x[TOKEN_BLOCK];
    float products[DOTS_OUT_FLOATS];
    dots d = {.x = x, .out = products, .n_x = n_left < TOKEN_BLOCK ? n_left : TOKEN_BLOCK};
    for (uint32_t t = 0; t < d.n_x; t++)
        x[t] = args->x + ((size_t)first_token + t) * args->x_stride + head * args->x_head_stride;
    dots_set_rows(&d, &w, row, n_rows, &rows);
    dots_run(&d);
    for (uint32_t t = 0; t < d.n_x; t++) {
        float *out = args->out + ((size_t)first_token + t) * args->out_stride +
                     head * args->out_head_stride + row;
        take_products(&d, products, t, (product_sink){.out = out});
    }
}

/* Items: head x row block x token block, the last innermost. */
static void heads_items(void *ctx, size_t begin, size_t end, uint32_t worker)
{
    (void)worker;
    const heads_job *job = ctx;
    for (size_t i = begin; i < end; i++) {
        const size_t block = i / job->n_token_blocks;
        heads_item(job, (uint32_t)(block / job->n_row_blocks),
                   (uint32_t)(block % job->n_row_blocks) * job->item_rows,
                   (uint32_t)(i % job->n_token_blocks) * TOKEN_BLOCK);
    }
}

static void matmul_heads_simd(dev *d, const matmul_heads_args *args)
{
    assert(args->w.type != DTYPE_MXFP4);
    if (args->n_tokens == 0 || args->n_heads == 0) return;
    const uint32_t most = rows_per_item(d, args->n_tokens, (size_t)args->n_heads * args->w.rows);
    heads_job job = {.args = args,
                     .item_rows = most,
                     .n_row_blocks = (args->w.rows + most - 1) / most,
                     .n_token_blocks = (args->n_tokens + TOKEN_BLOCK - 1) / TOKEN_BLOCK};
    const size_t n_x = min_size(args->n_tokens, TOKEN_BLOCK);
    const size_t products = min_size(most, args->w.rows) * args->w.cols * n_x;
    parallel_for(d->pool, (size_t)args->n_heads * job.n_row_blocks * job.n_token_blocks,
                 grain_of(products), heads_items, &job);
}

#endif
