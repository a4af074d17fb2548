/* model/weights_device.c - see weights_device.h. */
#include "model/weights_device.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"

#include <stdlib.h>
#include <string.h>

enum { ALIGN_BYTES = 256 };
static const size_t PROGRESS_BYTES = (size_t)8 << 30; /* a line in the log for so many */

/* One walk over all tensors, in the family's order. */
typedef struct mover {
    dev *d;
    const device_weights_args *args;
    const matrix **from; /* [n] the host's matrices, in that order */
    size_t n, at;
    size_t used_bytes, moved_bytes, told_bytes;
    uint8_t *base;
    uint64_t start_ns;
    model_weights *copy;
} mover;

static err_t note_matrix(void *ctx, const model_weight *weight)
{
    mover *const to = ctx;
    if (to->from != NULL) to->from[to->n] = weight->into;
    to->n++;
    return ERR_OK;
}

static bool is_read(const mover *to, const matrix *m)
{
    const model_weights *host = to->args->host;
    const size_t expert = model_weights_expert_of(to->args->config, host, m);
    return expert == SIZE_MAX || to->args->all_experts || host->is_read[expert];
}

static err_t add_aligned(size_t bytes, size_t *sum)
{
    size_t rounded;
    TRY(size_add(bytes, ALIGN_BYTES - 1, &rounded));
    return size_add(*sum, rounded / ALIGN_BYTES * ALIGN_BYTES, sum);
}

err_t model_device_matrix_bytes(const matrix *m, size_t *out)
{
    *out = 0;
    TRY(add_aligned(matrix_bytes(m), out));
    return add_aligned(matrix_scale_bytes(m), out);
}

err_t model_device_experts_bytes(const model_config *config, size_t *out)
{
    *out = 0;
    TRY(add_aligned((size_t)config->n_layers * config->n_experts * sizeof(moe_expert), out));
    return add_aligned(config->n_layers * sizeof(moe_expert), out);
}

static err_t take(mover *to, size_t bytes, size_t *offset)
{
    *offset = to->used_bytes;
    return add_aligned(bytes, &to->used_bytes);
}

static void tell_progress(mover *to, size_t bytes)
{
    to->moved_bytes += bytes;
    if (to->moved_bytes - to->told_bytes < PROGRESS_BYTES) return;
    to->told_bytes = to->moved_bytes;
    log_info("model", "weights to the device gib=%.1f seconds=%.1f",
             (double)to->moved_bytes / (1 << 30), (double)(clock_mono_ns() - to->start_ns) * 1e-9);
}

/* Rows that take turns with another matrix's are brought together: [n_rows] of `bytes`, `stride_bytes` apart. */
static err_t upload_rows(mover *to, uint8_t *at, const void *from, size_t n_rows, size_t bytes,
                         size_t stride_bytes)
{
    if (bytes == stride_bytes) {
        dev_upload(to->d, at, from, n_rows * bytes);
        return ERR_OK;
    }
    uint8_t *const rows = malloc(n_rows * bytes);
    if (rows == NULL) return ERR_NO_MEMORY;
    for (size_t r = 0; r < n_rows; r++)
        memcpy(rows + r * bytes, (const uint8_t *)from + r * stride_bytes, bytes);
    dev_upload(to->d, at, rows, n_rows * bytes);
    free(rows);
    return ERR_OK;
}

/* What is not read keeps its shape and has no data. */
static err_t move_matrix(void *ctx, const model_weight *weight)
{
    mover *const to = ctx;
    const matrix *const from = to->from[to->at++];
    const size_t bytes = matrix_bytes(from), scale_bytes = matrix_scale_bytes(from);
    matrix *const into = weight->into;
    *into = *from;
    into->data = into->scale = NULL;
    into->row_step = 0;
    if (!is_read(to, from)) return ERR_OK;
    size_t offset, scale_offset;
    TRY(take(to, bytes, &offset));
    TRY(take(to, scale_bytes, &scale_offset));
    if (to->base == NULL) return ERR_OK; /* measuring */
    const size_t step = matrix_row_step(from), row_bytes = matrix_row_bytes(from);
    into->data = to->base + offset;
    TRY(upload_rows(to, to->base + offset, from->data, from->rows, row_bytes, step * row_bytes));
    tell_progress(to, bytes + scale_bytes);
    if (scale_bytes == 0) return ERR_OK;
    into->scale = to->base + scale_offset;
    const size_t n_rows = from->type == DTYPE_MXFP4 ? from->rows : 1; /* fp8's are in one piece */
    return upload_rows(to, to->base + scale_offset, from->scale, n_rows, scale_bytes / n_rows,
                       n_rows > 1 ? step * scale_bytes / n_rows : scale_bytes);
}

/* Tensors, and behind them the arrays of experts; measures without a base. */
static err_t move_all(mover *to)
{
    size_t offset, commons;
    const model_config *const c = to->args->config;
    to->used_bytes = to->at = 0;
    TRY(to->args->family->each_weight(c, to->copy, move_matrix, to));
    const size_t n_experts = (size_t)c->n_layers * c->n_experts;
    TRY(take(to, n_experts * sizeof(moe_expert), &offset));
    TRY(take(to, c->n_layers * sizeof(moe_expert), &commons));
    if (to->base == NULL) return ERR_OK;
    dev_upload(to->d, to->base + offset, to->copy->experts, n_experts * sizeof(moe_expert));
    dev_upload(to->d, to->base + commons, to->copy->commons, c->n_layers * sizeof(moe_expert));
    if (c->tied_embeddings) to->copy->head = to->copy->embedding;
    for (uint32_t l = 0; l < c->n_layers; l++) {
        to->copy->layer[l].expert =
            (moe_expert *)(void *)(to->base + offset) + (size_t)l * c->n_experts;
        to->copy->layer[l].common = (moe_expert *)(void *)(to->base + commons) + l;
    }
    return ERR_OK;
}

static err_t list_matrices(mover *to, err_info *info)
{
    const device_weights_args *const args = to->args;
    TRY(args->family->each_weight(args->config, args->host, note_matrix, to));
    to->from = calloc(to->n, sizeof(const matrix *));
    if (to->from == NULL) return err_set(info, ERR_NO_MEMORY, "weights: out of memory");
    to->n = 0;
    return args->family->each_weight(args->config, args->host, note_matrix, to);
}

static err_t copy_weights(mover *to, model_device_weights *out, err_info *info)
{
    TRY(list_matrices(to, info));
    TRY(model_weights_alloc(to->args->config, to->copy, info));
    TRY(move_all(to));
    TRY(dev_alloc(to->d, to->used_bytes, &out->block, info));
    to->base = out->block;
    const err_t err = move_all(to);
    if (err != ERR_OK) return err_set(info, err, "weights: %s", err_sentence(err));
    return dev_status(to->d, info);
}

err_t model_weights_to_device(dev *d, const device_weights_args *args, model_device_weights *out,
                              err_info *info)
{
    *out = (model_device_weights){0};
    if (d->memory != NULL) {
        mover to = {.d = d, .args = args, .copy = &out->copy, .start_ns = clock_mono_ns()};
        const err_t err = copy_weights(&to, out, info);
        free((void *)to.from);
        if (err != ERR_OK) return err;
    }
    const model_weights *w = d->memory != NULL ? &out->copy : args->host;
    out->embedding = w->embedding;
    out->head = w->head;
    out->head_bias = w->head_bias;
    out->final_norm_bias = w->final_norm_bias;
    out->final_norm = w->final_norm;
    out->layer = w->layer;
    return ERR_OK;
}

void model_weights_leave_device(dev *d, model_device_weights *w)
{
    dev_free(d, w->block);
    model_weights_deinit(&w->copy);
    *w = (model_device_weights){0};
}
