/* model/weights_scaled.c - see weights_scaled.h. */
#include "model/weights_scaled.h"

#include "base/check.h"

#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

static const char *const fp8_scales[] = {"_scale_inv", "_scale"};

/* NULL if the name does not fit. */
static const tensor *find_beside(const tensor_files *files, const char *name, const char *ending)
{
    char whole[WEIGHT_NAME_BYTES];
    const int n = snprintf(whole, sizeof whole, "%s%s", name, ending);
    return n > 0 && (size_t)n < sizeof whole ? tensor_find(files, whole) : NULL;
}

const tensor *scaled_find_blocks(const scaled_source *from, const model_weight *weight)
{
    if (from->config->quantisation.method != QUANTISATION_MXFP4) return NULL;
    return find_beside(from->files, weight->name, "_blocks");
}

static const tensor *find_scale(const scaled_source *from, const model_weight *weight)
{
    if (weight->into->type == DTYPE_MXFP4) return find_beside(from->files, weight->name, "_scales");
    const tensor *const t = find_beside(from->files, weight->name, fp8_scales[0]);
    return t != NULL ? t : find_beside(from->files, weight->name, fp8_scales[1]);
}

/* ---- shapes -------------------------------------------------------------------------------------- */

/* Rows of the stored tensor, of one item. */
static uint64_t stored_rows(const model_weight *weight)
{
    return weight->part.n_rows > 0 ? weight->part.n_rows : weight->rows;
}

/* First row of the part, counted through all items in units of `unit` rows; each item begins a unit. */
static size_t first_unit(const model_weight *weight, uint32_t unit)
{
    const uint64_t units = (stored_rows(weight) + unit - 1) / unit;
    return (size_t)(weight->part.item * units + weight->part.first_row / unit);
}

/* Dimensions `want` behind the one of items, if there is one. */
static bool has_shape(const tensor *t, const model_weight *weight, const uint64_t *want,
                      uint32_t n_want)
{
    const uint32_t n_before = weight->part.n_items > 0 ? 1 : 0;
    if (t->n_dims != n_before + n_want) return false;
    if (n_before > 0 && t->shape[0] != weight->part.n_items) return false;
    for (uint32_t i = 0; i < n_want; i++) {
        if (t->shape[n_before + i] != want[i]) return false;
    }
    return true;
}

static err_t refuse_shape(const scaled_source *from, const tensor *t, const uint64_t *want,
                          uint32_t n_want)
{
    char text[64] = "", *at = text;
    for (uint32_t i = 0; i < n_want; i++)
        at += snprintf(at, (size_t)(text + sizeof text - at), "%s%llu", i > 0 ? ", " : "",
                       (unsigned long long)want[i]);
    return err_set(from->info, ERR_BAD_MODEL,
                   "tensor %.100s: its shape, %u dimensions, does not end in [%s]", t->name,
                   t->n_dims, text);
}

static err_t check_shape(const scaled_source *from, const tensor *t, const model_weight *weight,
                         const uint64_t *want, uint32_t n_want)
{
    return has_shape(t, weight, want, n_want) ? ERR_OK : refuse_shape(from, t, want, n_want);
}

/* ---- fp8 ----------------------------------------------------------------------------------------- */

static err_t check_fp8(const scaled_source *from, const tensor *codes, const model_weight *weight)
{
    if (from->config->quantisation.method != QUANTISATION_FP8)
        return err_set(from->info, ERR_UNSUPPORTED,
                       "tensor %.100s: type F8_E4M3, of which quantization_config says nothing",
                       codes->name);
    if (weight->is_vector || weight->into == &from->weights->embedding)
        return err_set(from->info, ERR_UNSUPPORTED,
                       "tensor %.100s: type F8_E4M3 is for the matrices of products alone",
                       codes->name);
    return check_shape(from, codes, weight, (const uint64_t[]){stored_rows(weight), weight->cols},
                       2);
}

static uint32_t round_to_block(uint32_t n)
{
    return (n + SCALE_BLOCK - 1) / SCALE_BLOCK * SCALE_BLOCK;
}

/* The scales begin where the first row's does. */
static err_t view_fp8_scales(const scaled_source *from, const tensor *t, const model_weight *weight,
                             matrix *w)
{
    const quantisation *const q = &from->config->quantisation;
    if (t->type != TENSOR_F32 && t->type != TENSOR_BF16)
        return err_set(from->info, ERR_UNSUPPORTED,
                       "tensor %.100s: type %s is not one of F32, BF16", t->name,
                       tensor_type_name(t->type));
    size_t first;
    if (q->block_rows == 0) {
        const bool is_one = t->n_dims == 0 || (t->n_dims == 1 && t->shape[0] == 1);
        if (!is_one || weight->part.n_rows > 0) return refuse_shape(from, t, NULL, 0);
        w->block_rows = round_to_block(weight->rows);
        w->block_cols = round_to_block(weight->cols);
        first = 0;
    } else {
        w->block_rows = q->block_rows;
        w->block_cols = q->block_cols;
        const uint64_t rows = (stored_rows(weight) + q->block_rows - 1) / q->block_rows;
        const uint32_t cols = matrix_scale_cols(w);
        TRY(check_shape(from, t, weight, (const uint64_t[]){rows, cols}, 2));
        if (weight->part.first_row % q->block_rows != 0 || weight->part.row_step > 1)
            return err_set(from->info, ERR_UNSUPPORTED,
                           "tensor %.100s: row %u of a part is not the first of a block", t->name,
                           weight->part.first_row);
        first = first_unit(weight, q->block_rows) * cols;
    }
    w->scale = (const uint8_t *)t->data + first * tensor_type_bytes(t->type);
    return ERR_OK;
}

static size_t n_fp8_scales(const matrix *w)
{
    return (size_t)((w->rows + w->block_rows - 1) / w->block_rows) * matrix_scale_cols(w);
}

static bool must_copy(const tensor *t, const matrix *w)
{
    return t->type != TENSOR_F32 || (uintptr_t)w->scale % sizeof(float) != 0;
}

size_t scaled_copy_bytes(const scaled_source *from, const model_weight *weight)
{
    const matrix *const w = weight->into;
    if (w->type != DTYPE_FP8 || !must_copy(find_scale(from, weight), w)) return 0;
    return n_fp8_scales(w) * sizeof(float);
}

void scaled_copy(const scaled_source *from, const model_weight *weight, float *to)
{
    matrix *const w = weight->into;
    const uint8_t *const raw = w->scale;
    const bool is_wide = find_scale(from, weight)->type == TENSOR_F32;
    for (size_t i = 0; i < n_fp8_scales(w); i++) {
        uint16_t half;
        memcpy(&half, raw + 2 * i, sizeof half);
        if (is_wide)
            memcpy(&to[i], raw + 4 * i, sizeof to[i]);
        else
            to[i] = f32_from_bf16(half);
    }
    w->scale = to;
}

/* ---- mxfp4 --------------------------------------------------------------------------------------- */

enum { BLOCK_BYTES = MX_BLOCK / 2 };

static err_t check_mxfp4(const scaled_source *from, const tensor *codes, const model_weight *weight)
{
    if (weight->is_vector || weight->cols % MX_BLOCK != 0)
        return err_set(from->info, ERR_UNSUPPORTED,
                       "tensor %.100s: rows of %u values are not blocks of %d", codes->name,
                       weight->cols, MX_BLOCK);
    if (codes->type != TENSOR_U8)
        return err_set(from->info, ERR_UNSUPPORTED, "tensor %.100s: type %s is not U8", codes->name,
                       tensor_type_name(codes->type));
    const uint64_t want[] = {stored_rows(weight), weight->cols / MX_BLOCK, BLOCK_BYTES};
    return check_shape(from, codes, weight, want, 3);
}

static err_t view_mxfp4_scales(const scaled_source *from, const tensor *t,
                               const model_weight *weight, matrix *w)
{
    const uint32_t cols = weight->cols / MX_BLOCK;
    if (t->type != TENSOR_U8)
        return err_set(from->info, ERR_UNSUPPORTED, "tensor %.100s: type %s is not U8", t->name,
                       tensor_type_name(t->type));
    TRY(check_shape(from, t, weight, (const uint64_t[]){stored_rows(weight), cols}, 2));
    w->row_step = weight->part.row_step;
    w->scale = (const uint8_t *)t->data + first_unit(weight, 1) * cols;
    return ERR_OK;
}

/* ---- all ----------------------------------------------------------------------------------------- */

err_t scaled_view(const scaled_source *from, const tensor *codes, const model_weight *weight,
                  matrix *out)
{
    const bool is_fp8 = codes->type == TENSOR_F8_E4M3;
    *out = (matrix){
        .type = is_fp8 ? DTYPE_FP8 : DTYPE_MXFP4, .rows = weight->rows, .cols = weight->cols};
    TRY(is_fp8 ? check_fp8(from, codes, weight) : check_mxfp4(from, codes, weight));
    out->data = (const uint8_t *)codes->data + first_unit(weight, 1) * matrix_row_bytes(out);
    const tensor *const scale = find_scale(from, weight);
    if (scale == NULL)
        return err_set(from->info, ERR_BAD_MODEL,
                       "tensor %.100s: its scales, %.100s%s, are missing", codes->name,
                       weight->name, is_fp8 ? fp8_scales[0] : "_scales");
    return is_fp8 ? view_fp8_scales(from, scale, weight, out)
                  : view_mxfp4_scales(from, scale, weight, out);
}

bool scaled_name(const model_config *config, const model_weight *weight, uint32_t i,
                 char out[WEIGHT_NAME_BYTES])
{
    static const char *const of_fp8[] = {"_scale_inv", "_scale", ".input_scale",
                                         ".activation_scale"};
    static const char *const of_mxfp4[] = {"_blocks", "_scales"};
    const bool is_fp8 = config->quantisation.method == QUANTISATION_FP8;
    const uint32_t n = config->quantisation.method == QUANTISATION_NONE ? 0 : is_fp8 ? 4 : 2;
    if (i >= n) return false;
    const char *const ending = is_fp8 ? of_fp8[i] : of_mxfp4[i];
    int n_stem = (int)strlen(weight->name);
    if (ending[0] == '.' && n_stem > 7 && strcmp(weight->name + n_stem - 7, ".weight") == 0)
        n_stem -= 7;
    (void)snprintf(out, WEIGHT_NAME_BYTES, "%.*s%s", n_stem, weight->name, ending);
    return true;
}

/* Embedding, head, routers and gates stay as they are. */
static bool is_linear(const model_config *c, const model_weights *w, const model_weight *weight)
{
    const uintptr_t first = (uintptr_t)w->layer, at = (uintptr_t)weight->into - first;
    const size_t field = at % sizeof *w->layer;
    if (weight->is_vector || weight->into == &w->embedding || weight->into == &w->head)
        return false;
    if ((uintptr_t)weight->into < first || at >= c->n_layers * sizeof *w->layer) return true;
    return field != offsetof(model_layer, router) && field != offsetof(model_layer, shared_gate);
}

matrix scaled_expect(const model_config *c, const model_weights *w, const model_weight *weight)
{
    const quantisation *const q = &c->quantisation;
    matrix out = {.type = c->stored_type, .rows = weight->rows, .cols = weight->cols};
    if (q->method == QUANTISATION_FP8 && weight->arrange != NULL) {
        out.type = DTYPE_F32; /* expanded: weights_copies.h */
    } else if (q->method == QUANTISATION_FP8 && is_linear(c, w, weight)) {
        out.type = DTYPE_FP8;
        out.block_rows = q->block_rows > 0 ? q->block_rows : round_to_block(out.rows);
        out.block_cols = q->block_rows > 0 ? q->block_cols : round_to_block(out.cols);
    }
    if (q->method == QUANTISATION_MXFP4 && out.cols % MX_BLOCK == 0 && !weight->is_vector &&
        model_weights_expert_of(c, w, weight->into) != SIZE_MAX)
        out.type = DTYPE_MXFP4;
    return out;
}

/* ---- values -------------------------------------------------------------------------------------- */

typedef struct scale_scan {
    const matrix *m;
    atomic_size_t first_bad; /* a row; SIZE_MAX: none */
} scale_scan;

/* The largest E8M0 with which no E2M1 becomes infinite: 6 * 2^125 is below 2^128. */
enum { POWER_MAX = 252, ROWS_GRAIN = 256 };

static bool is_bad_scale(const matrix *m, const void *scales, size_t i)
{
    if (m->type == DTYPE_MXFP4) return ((const uint8_t *)scales)[i] > POWER_MAX;
    return !(fabsf(((const float *)scales)[i]) < SCALE_BELOW);
}

static void scan_scales(void *ctx, size_t begin, size_t end, uint32_t worker)
{
    (void)worker;
    scale_scan *const scan = ctx;
    const matrix *const m = scan->m;
    const uint32_t n = matrix_scale_cols(m);
    for (size_t r = begin; r < end; r++) {
        if (m->type == DTYPE_FP8 && r != begin && r % m->block_rows != 0) continue; /* seen */
        const void *const scales = matrix_row_scale(m, r);
        for (uint32_t i = 0; i < n; i++) {
            size_t known = atomic_load(&scan->first_bad);
            if (!is_bad_scale(m, scales, i)) continue;
            while (r < known && !atomic_compare_exchange_weak(&scan->first_bad, &known, r)) {
            }
            return;
        }
    }
}

err_t scaled_check(dev *d, const model_weight *weight, err_info *info)
{
    scale_scan scan = {.m = weight->into, .first_bad = SIZE_MAX};
    if (!dtype_has_scales(weight->into->type)) return ERR_OK;
    parallel_for(d->pool, weight->rows, ROWS_GRAIN, scan_scales, &scan);
    const size_t first = atomic_load(&scan.first_bad);
    if (first == SIZE_MAX) return ERR_OK;
    return err_set(info, ERR_BAD_MODEL, "tensor %.100s: a scale of row %zu is NaN or too large",
                   weight->name, first);
}
