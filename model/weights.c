/* model/weights.c - see weights.h.
 *
 * Loading is one walk over the family's list of tensors. Each is looked up by name, compared with the
 * shape that the config implies, and becomes a view. The rest of the program relies on these shapes
 * without looking again. */
#include "model/weights.h"

#include "base/check.h"
#include "base/log.h"
#include "model/family.h"
#include "model/weights_copies.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { PAGE_BYTES = 4096, CHECK_GRAIN = 1 << 16, COPY_ALIGN_BYTES = 64 };

err_t model_weights_alloc(const model_config *config, model_weights *w, err_info *info)
{
    const size_t n_experts = (size_t)config->n_layers * config->n_experts;
    w->layer = calloc(config->n_layers, sizeof *w->layer);
    w->experts = calloc(n_experts, sizeof *w->experts);
    w->commons = calloc(config->n_layers, sizeof *w->commons);
    w->is_read = malloc(n_experts * sizeof *w->is_read);
    w->is_held = calloc(n_experts, sizeof *w->is_held);
    if (w->layer == NULL || w->experts == NULL || w->commons == NULL || w->is_read == NULL ||
        w->is_held == NULL)
        return err_set(info, ERR_NO_MEMORY, "weights: out of memory");
    for (uint32_t l = 0; l < config->n_layers; l++) {
        w->layer[l].expert = &w->experts[(size_t)l * config->n_experts];
        w->layer[l].common = &w->commons[l];
    }
    for (size_t i = 0; i < n_experts; i++)
        w->is_read[i] = true;
    return ERR_OK;
}

size_t model_weights_expert_of(const model_config *config, const model_weights *w,
                               const matrix *into)
{
    const size_t n_experts = (size_t)config->n_layers * config->n_experts;
    const uintptr_t at = (uintptr_t)into, first = (uintptr_t)w->experts;
    if (at < first || at >= first + n_experts * sizeof *w->experts) return SIZE_MAX;
    return (at - first) / sizeof *w->experts;
}

size_t model_weights_read_bytes(const model_config *config, const model_weights *w)
{
    const size_t n_experts = (size_t)config->n_layers * config->n_experts;
    size_t bytes = w->bytes;
    for (size_t i = 0; i < n_experts; i++) {
        const moe_expert *const e = &w->experts[i];
        const matrix *const parts[] = {&e->gate,      &e->up,      &e->down,
                                       &e->gate_bias, &e->up_bias, &e->down_bias};
        for (size_t p = 0; !w->is_read[i] && p < sizeof parts / sizeof parts[0]; p++)
            bytes -= matrix_bytes(parts[p]) + matrix_scale_bytes(parts[p]);
    }
    return bytes;
}

static float float_at(const matrix *m, size_t i)
{
    if (m->type == DTYPE_F32) return ((const float *)m->data)[i];
    const uint16_t bits = ((const uint16_t *)m->data)[i];
    return m->type == DTYPE_BF16 ? f32_from_bf16(bits) : f32_from_f16(bits);
}

err_t model_weights_widen_sinks(const model_config *config, model_weights *w, err_info *info)
{
    const size_t n_heads = config->n_heads;
    if (w->layer[0].sinks.data == NULL) return ERR_OK;
    w->sinks = calloc(config->n_layers * n_heads, sizeof *w->sinks);
    if (w->sinks == NULL) return err_set(info, ERR_NO_MEMORY, "weights: out of memory");
    for (size_t i = 0; i < config->n_layers * n_heads; i++)
        w->sinks[i] = float_at(&w->layer[i / n_heads].sinks, i % n_heads);
    return ERR_OK;
}

/* ---- finding tensors ----------------------------------------------------------------------------- */

typedef struct finder {
    err_info *info;
    const scaled_source *scaled;
    model_weights *w;
    char first_missing[128];
    size_t n_missing, n_found;
    size_t type_bytes[DTYPE_COUNT];
    uint64_t n_params;
} finder;

static err_t type_of(const scaled_source *f, const tensor *t, dtype *out)
{
    switch (t->type) {
    case TENSOR_F32: *out = DTYPE_F32; return ERR_OK;
    case TENSOR_BF16: *out = DTYPE_BF16; return ERR_OK;
    case TENSOR_F16: *out = DTYPE_F16; return ERR_OK;
    default:
        return err_set(f->info, ERR_UNSUPPORTED,
                       "tensor %.100s: type %s is not one of F32, BF16, F16", t->name,
                       tensor_type_name(t->type));
    }
}

/* The shape that a tensor of parts must have; returns its dimensions. */
static uint32_t part_shape(const model_weight *weight, uint32_t out[3])
{
    const uint32_t n_rows = weight->part.n_rows;
    const bool is_turned = weight->part.is_turned;
    uint32_t n = 0;
    if (weight->part.n_items > 0) out[n++] = weight->part.n_items;
    if (!is_turned || !weight->is_vector) out[n++] = is_turned ? weight->cols : n_rows;
    out[n++] = is_turned ? n_rows : weight->cols;
    return n;
}

static bool has_part(const tensor *t, const model_weight *weight)
{
    uint32_t want[3];
    const uint32_t n_dims = part_shape(weight, want);
    if (t->n_dims != n_dims) return false;
    for (uint32_t i = 0; i < n_dims; i++) {
        if (t->shape[i] != want[i]) return false;
    }
    return true;
}

static err_t refuse_part(const scaled_source *f, const tensor *t, const model_weight *weight)
{
    char text[64] = "", *at = text;
    uint32_t want[3];
    const uint32_t n_dims = part_shape(weight, want);
    for (uint32_t i = 0; i < n_dims; i++)
        at += snprintf(at, (size_t)(text + sizeof text - at), "%s%u", i > 0 ? ", " : "", want[i]);
    return err_set(f->info, ERR_BAD_MODEL,
                   "tensor %.100s: %u dimensions of first size %llu are not [%s]", t->name,
                   t->n_dims, t->n_dims > 0 ? (unsigned long long)t->shape[0] : 0ULL, text);
}

static err_t check_shape(const scaled_source *f, const tensor *t, const model_weight *weight)
{
    const bool is_right = weight->part.n_rows > 0 ? has_part(t, weight)
                          : weight->is_vector     ? t->n_dims == 1 && t->shape[0] == weight->cols
                                                  : t->n_dims == 2 && t->shape[0] == weight->rows &&
                                                    t->shape[1] == weight->cols;
    if (is_right) return ERR_OK;
    if (weight->part.n_rows > 0) return refuse_part(f, t, weight);
    if (t->n_dims == 2 && !weight->is_vector)
        return err_set(f->info, ERR_BAD_MODEL, "tensor %.100s: shape [%llu, %llu] is not [%u, %u]",
                       t->name, (unsigned long long)t->shape[0], (unsigned long long)t->shape[1],
                       weight->rows, weight->cols);
    return err_set(f->info, ERR_BAD_MODEL,
                   "tensor %.100s: %u dimensions of first size %llu are not [%u%s%u]", t->name,
                   t->n_dims, t->n_dims > 0 ? (unsigned long long)t->shape[0] : 0ULL,
                   weight->is_vector ? weight->cols : weight->rows,
                   weight->is_vector ? "] = 1 x [" : ", ", weight->cols);
}

/* Where the part begins, in values. */
static size_t first_value(const model_weight *weight)
{
    const size_t rows_before = (size_t)weight->part.item * weight->part.n_rows;
    if (!weight->part.is_turned) return (rows_before + weight->part.first_row) * weight->cols;
    return rows_before * (weight->is_vector ? 1 : weight->cols) + weight->part.first_row;
}

/* The matrix of a tensor without scales; of a turned one only `data` is right before it is copied. */
static err_t view_plain(const scaled_source *f, const tensor *t, const model_weight *weight,
                        matrix *out)
{
    dtype type = DTYPE_F32;
    TRY(type_of(f, t, &type));
    TRY(check_shape(f, t, weight));
    if (weight->part.row_step > 1 && !weight->part.is_turned)
        return err_set(f->info, ERR_UNSUPPORTED, "tensor %.100s: type %s, where blocks are known",
                       t->name, tensor_type_name(t->type));
    *out = (matrix){.data = (const uint8_t *)t->data + first_value(weight) * dtype_bytes(type),
                    .type = type,
                    .rows = weight->rows,
                    .cols = weight->cols};
    return ERR_OK;
}

err_t weight_view(const scaled_source *from, const model_weight *weight, matrix *out, bool *found)
{
    const tensor *const plain = tensor_find(from->files, weight->name);
    const tensor *const blocks = plain == NULL ? scaled_find_blocks(from, weight) : NULL;
    const tensor *const t = blocks != NULL ? blocks : plain;
    *found = t != NULL;
    if (t == NULL) return ERR_OK;
    if (blocks != NULL || t->type == TENSOR_F8_E4M3) return scaled_view(from, t, weight, out);
    return view_plain(from, t, weight, out);
}

static err_t find_weight(void *ctx, const model_weight *weight)
{
    finder *const f = ctx;
    bool found;
    TRY(weight_view(f->scaled, weight, weight->into, &found));
    if (!found) {
        if (f->n_missing++ == 0) memcpy(f->first_missing, weight->name, sizeof f->first_missing);
        return ERR_OK;
    }
    const matrix *const m = weight->into;
    const size_t copy_bytes = weight_copy_bytes(weight);
    f->n_found += weight->part.item == 0 && weight->part.first_row == 0;
    f->n_params += (uint64_t)weight->rows * weight->cols;
    if (weight_is_expanded(weight)) {
        f->w->notes.n_expanded++;
        f->w->notes.expanded_bytes += copy_bytes;
    } else {
        f->type_bytes[m->type] += matrix_bytes(m) + matrix_scale_bytes(m);
        f->w->notes.copied_bytes += copy_bytes;
    }
    f->w->copies_bytes += round_up(copy_bytes, COPY_ALIGN_BYTES);
    f->w->copies_bytes += round_up(scaled_copy_bytes(f->scaled, weight), COPY_ALIGN_BYTES);
    return ERR_OK;
}

/* ---- loading ------------------------------------------------------------------------------------- */

typedef struct name_list {
    const model_config *config;
    char (*name)[WEIGHT_NAME_BYTES]; /* [n], or NULL while only counting */
    size_t n;
} name_list;

/* The names that a weight's tensors may have. */
static err_t note_names(void *ctx, const model_weight *weight)
{
    name_list *const list = ctx;
    char name[WEIGHT_NAME_BYTES];
    (void)snprintf(name, sizeof name, "%s", weight->name);
    uint32_t i = 0;
    do {
        if (list->name != NULL) memcpy(list->name[list->n], name, sizeof name);
        list->n++;
    } while (scaled_name(list->config, weight, i++, name));
    return ERR_OK;
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(a, b);
}

/* Of a layer behind the last one that the model has, which is for several tokens at once (DeepSeek-V3's MTP). */
static bool is_unused_layer(const model_config *c, const char *name)
{
    static const char prefix[] = "model.layers.";
    char *end;
    if (c->n_unused_layers == 0 || strncmp(name, prefix, sizeof prefix - 1) != 0) return false;
    const unsigned long l = strtoul(name + sizeof prefix - 1, &end, 10);
    return *end == '.' && l >= c->n_layers && l - c->n_layers < c->n_unused_layers;
}

/* The tensors of the files that nobody asked for. */
static void note_extra(const finder *f, name_list *list, weights_notes *notes)
{
    qsort(list->name, list->n, sizeof list->name[0], compare_names);
    for (size_t i = tensor_count(f->scaled->files); i-- > 0;) {
        const tensor *const t = tensor_at(f->scaled->files, i);
        if (bsearch(t->name, list->name, list->n, sizeof list->name[0], compare_names) != NULL)
            continue;
        if (is_unused_layer(f->scaled->config, t->name)) {
            notes->n_unused++;
            notes->unused_bytes += t->data_bytes;
            continue;
        }
        notes->first_unknown = t->name;
        notes->n_unknown++;
    }
}

/* Extra tensors do no harm (old checkpoints store inv_freq), but silence would hide a wrong config. */
static void find_extra(const model_family *family, model_weights *w, const finder *f)
{
    const model_config *const config = f->scaled->config;
    const bool has_scales = config->quantisation.method != QUANTISATION_NONE;
    if (!has_scales && tensor_count(f->scaled->files) == f->n_found) return;
    name_list list = {.config = config};
    if (family->each_weight(config, w, note_names, &list) != ERR_OK) return;
    list.name = calloc(list.n, sizeof list.name[0]);
    if (list.name == NULL) return;
    list.n = 0;
    if (family->each_weight(config, w, note_names, &list) == ERR_OK)
        note_extra(f, &list, &w->notes);
    free(list.name);
}

static void log_notes(const weights_notes *n)
{
    if (n->copied_bytes > 0)
        log_warn("model", "tensors that kernels cannot read in place are copied bytes=%zu",
                 n->copied_bytes);
    if (n->n_expanded > 0)
        log_info("model",
                 "fp8 tensors that are cut by heads are expanded to f32 count=%zu bytes=%zu",
                 n->n_expanded, n->expanded_bytes);
    if (n->n_unused > 0)
        log_info("model",
                 "layers behind the last one, for several tokens at once, are not used tensors=%zu "
                 "bytes=%zu",
                 n->n_unused, n->unused_bytes);
    if (n->n_unknown > 0)
        log_warn("model", "unknown tensors are ignored count=%zu first=%s", n->n_unknown,
                 n->first_unknown);
}

static void count_weights(const finder *f, const model_config *config, model_weights *w)
{
    w->bytes = w->notes.expanded_bytes;
    w->main_type = config->stored_type;
    for (dtype type = 0; type < DTYPE_COUNT; type++) {
        w->bytes += f->type_bytes[type];
        if (!dtype_has_scales(type) && f->type_bytes[type] > f->type_bytes[w->main_type])
            w->main_type = type;
    }
    w->n_params = f->n_params;
    if (config->tied_embeddings) w->head = w->embedding;
}

err_t model_weights_find(const char *dir, const model_family *family, const model_config *config,
                         model_weights *out, err_info *info)
{
    *out = (model_weights){0};
    scaled_source scaled = {.config = config, .weights = out, .info = info};
    finder f = {.info = info, .scaled = &scaled, .w = out};
    err_t err = tensor_files_open(dir, &out->files, info);
    if (err != ERR_OK) goto fail;
    scaled.files = out->files;
    err = model_weights_alloc(config, out, info);
    if (err != ERR_OK) goto fail;
    err = family->each_weight(config, out, find_weight, &f);
    if (err != ERR_OK) goto fail;
    if (f.n_missing > 0) {
        err = err_set(info, ERR_BAD_MODEL, "%zu tensors are missing, the first is %s", f.n_missing,
                      f.first_missing);
        goto fail;
    }
    count_weights(&f, config, out);
    find_extra(family, out, &f);
    return ERR_OK;
fail:
    model_weights_deinit(out);
    return err;
}

err_t model_weights_copy(const model_family *family, const model_config *config, model_weights *w,
                         err_info *info)
{
    const scaled_source from = {.files = w->files, .config = config, .weights = w, .info = info};
    log_notes(&w->notes);
    TRY(weights_copy(&from, family, w));
    if (config->tied_embeddings) w->head = w->embedding; /* which may have moved */
    return model_weights_widen_sinks(config, w, info);
}

err_t model_weights_load(const char *dir, const model_family *family, const model_config *config,
                         model_weights *out, err_info *info)
{
    TRY(model_weights_find(dir, family, config, out, info));
    const err_t err = model_weights_copy(family, config, out, info);
    if (err != ERR_OK) model_weights_deinit(out);
    return err;
}

void model_weights_deinit(model_weights *w)
{
    tensor_files_close(w->files);
    if (w->dummy != NULL) munmap(w->dummy, w->dummy_bytes);
    if (w->copies != NULL) munmap(w->copies, w->copies_bytes);
    free(w->is_held);
    free(w->is_read);
    free(w->sinks);
    free(w->experts);
    free(w->commons);
    free(w->layer);
    *w = (model_weights){0};
}

/* ---- scans --------------------------------------------------------------------------------------- */

typedef struct value_scan {
    const matrix *m;
    atomic_size_t first_bad; /* smallest index found, SIZE_MAX: none */
} value_scan;

/* The exponent is all ones in a NaN and in an infinity, whatever the format; of fp8, in which it may be, the whole
 * code. E2M1 has neither. */
static bool is_bad_value(const matrix *m, size_t i)
{
    if (m->type == DTYPE_FP8) return (((const uint8_t *)m->data)[i] & 0x7f) == 0x7f;
    if (m->type == DTYPE_F32) return (((const uint32_t *)m->data)[i] & 0x7f800000u) == 0x7f800000u;
    const uint16_t bits = ((const uint16_t *)m->data)[i];
    const uint16_t exponent = m->type == DTYPE_BF16 ? 0x7f80 : 0x7c00;
    return (bits & exponent) == exponent;
}

static void scan_values(void *ctx, size_t begin, size_t end, uint32_t worker)
{
    (void)worker;
    value_scan *const scan = ctx;
    for (size_t i = begin; i < end; i++) {
        if (!is_bad_value(scan->m, i)) continue;
        size_t known = atomic_load(&scan->first_bad);
        while (i < known && !atomic_compare_exchange_weak(&scan->first_bad, &known, i)) {
        }
        return;
    }
}

/* One walk over what is read. */
typedef struct reading {
    dev *d;
    const model_config *config;
    const model_weights *w;
    err_info *info;
} reading;

static bool is_read(const reading *r, const model_weight *weight)
{
    const size_t expert = model_weights_expert_of(r->config, r->w, weight->into);
    return expert == SIZE_MAX || r->w->is_read[expert];
}

static err_t check_weight(void *ctx, const model_weight *weight)
{
    const reading *const r = ctx;
    if (!is_read(r, weight)) return ERR_OK;
    value_scan scan = {.m = weight->into, .first_bad = SIZE_MAX};
    const size_t n = weight->into->type == DTYPE_MXFP4 ? 0 : (size_t)weight->rows * weight->cols;
    TRY(scaled_check(r->d, weight, r->info));
    parallel_for(r->d->pool, n, CHECK_GRAIN, scan_values, &scan);
    const size_t first = atomic_load(&scan.first_bad);
    if (first == SIZE_MAX) return ERR_OK;
    return err_set(r->info, ERR_BAD_MODEL, "tensor %.100s: row %zu, column %zu is NaN or infinite",
                   weight->name, first / weight->cols, first % weight->cols);
}

err_t model_weights_check_values(dev *d, const model_family *family, const model_config *config,
                                 model_weights *w, err_info *info)
{
    reading r = {d, config, w, info};
    return family->each_weight(config, w, check_weight, &r);
}

static void touch_pages(void *ctx, size_t begin, size_t end, uint32_t worker)
{
    (void)worker;
    const volatile uint8_t *const bytes = ctx;
    for (size_t page = begin; page < end; page++)
        (void)bytes[page * PAGE_BYTES];
}

static void touch_bytes(const reading *r, const void *data, size_t n_bytes)
{
    const size_t n_pages = (n_bytes + PAGE_BYTES - 1) / PAGE_BYTES;
    parallel_for(r->d->pool, n_pages, 64, touch_pages, (void *)(uintptr_t)data);
}

static err_t touch_weight(void *ctx, const model_weight *weight)
{
    const reading *const r = ctx;
    if (!is_read(r, weight)) return ERR_OK;
    const matrix *const m = weight->into;
    const size_t stride = matrix_row_step(m),
                 n_rows = m->rows == 0 ? 0 : (m->rows - 1) * stride + 1;
    touch_bytes(r, m->data, n_rows * matrix_row_bytes(m));
    if (m->type == DTYPE_MXFP4) touch_bytes(r, m->scale, n_rows * matrix_scale_cols(m));
    return ERR_OK;
}

void model_weights_touch(dev *d, const model_family *family, const model_config *config,
                         model_weights *w)
{
    reading r = {d, config, w, NULL};
    const err_t err = family->each_weight(config, w, touch_weight, &r);
    assert(err == ERR_OK);
}
