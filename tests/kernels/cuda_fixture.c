#include "tests/kernels/cuda_fixture.h"

#include <stdlib.h>

gpu gpu_open(size_t scratch_bytes)
{
    gpu g = {.random = random_fresh(), .cpu = open_table("ref", 1)};
    const dev_cuda_config config = {
        .memory_share = 0.9f, .scratch_bytes = scratch_bytes, .has_graphs = true};
    err_info info = {.code = ERR_OK};
    ck_assert_msg(dev_cuda_open(&config, &g.d, &info) == ERR_OK, "%s", info.message);
    g.ops = dev_cuda_get_ops(g.d);
    gpu_shuffle(g.random.seed);
    return g;
}

void gpu_close(gpu *g)
{
    for (uint32_t i = 0; i < g->n_buffers; i++)
        dev_cuda_free(g->d, g->buffers[i]);
    dev_cuda_close(g->d);
    dev_close(g->cpu);
}

static void *alloc(gpu *g, size_t bytes)
{
    err_info info = {.code = ERR_OK};
    ck_assert_uint_lt(g->n_buffers, GPU_BUFFERS_MAX);
    void **data = &g->buffers[g->n_buffers++];
    ck_assert_msg(dev_cuda_alloc(g->d, bytes, data, &info) == ERR_OK, "%s", info.message);
    return *data;
}

static void upload(gpu *g, void *to, const void *from, size_t bytes)
{
    err_info info = {.code = ERR_OK};
    ck_assert_msg(dev_cuda_upload(g->d, to, from, bytes, &info) == ERR_OK, "%s (seed %llu)",
                  info.message, (unsigned long long)g->random.seed);
}

void *gpu_put(gpu *g, const void *data, size_t bytes)
{
    void *to = alloc(g, bytes);
    upload(g, to, data, bytes);
    return to;
}

float *gpu_poisoned(gpu *g, size_t n)
{
    float *poison = poisoned_floats(n);
    float *to = gpu_put(g, poison, n * sizeof *poison);
    free(poison);
    return to;
}

void gpu_get(gpu *g, void *to, const void *from, size_t bytes)
{
    err_info info = {.code = ERR_OK};
    ck_assert_msg(dev_cuda_download(g->d, to, from, bytes, &info) == ERR_OK, "%s (seed %llu)",
                  info.message, (unsigned long long)g->random.seed);
}

float *gpu_get_floats(gpu *g, const float *from, size_t n)
{
    float *x = test_alloc(n * sizeof *x);
    gpu_get(g, x, from, n * sizeof *x);
    return x;
}

static size_t stored_rows(const matrix *w)
{
    return ((size_t)w->rows - 1) * matrix_row_step(w) + 1;
}

/* The matrix with its scales there, and without data. */
static matrix put_scales(gpu *g, const matrix *w)
{
    matrix out = *w;
    const size_t n = matrix_scale_cols(w);
    if (w->type == DTYPE_MXFP4) out.scale = gpu_put(g, w->scale, stored_rows(w) * n);
    if (w->type == DTYPE_FP8) {
        const size_t rows = (w->rows + w->block_rows - 1) / w->block_rows;
        out.scale = gpu_put(g, w->scale, rows * n * sizeof(float));
    }
    return out;
}

matrix gpu_put_matrix(gpu *g, const matrix *w)
{
    matrix out = put_scales(g, w);
    out.data = gpu_put(g, w->data, stored_rows(w) * matrix_row_bytes(w));
    return out;
}

matrix gpu_put_matrix_unaligned(gpu *g, const matrix *w)
{
    const size_t bytes = stored_rows(w) * matrix_row_bytes(w);
    const size_t shift = w->type == DTYPE_MXFP4 ? 1 : dtype_bytes(w->type);
    matrix out = put_scales(g, w);
    char *to = (char *)alloc(g, bytes + shift) + shift;
    upload(g, to, w->data, bytes);
    out.data = to;
    return out;
}
