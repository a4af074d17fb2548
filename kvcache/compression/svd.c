/* kvcache/compression/svd.c - coefficients in a basis that the sequence has of its own; see svd.h.
 *
 *     c = V x,   x^ = V^T c
 *
 * Of a raw page of 32 slots, 128 channels and bf16 (16384 bytes): coefficients 8192, 0.5. A basis has
 * 33288 bytes beside them, and there is one for every doubling of the entries (kvcache/basis.h). */
#include "kvcache/compression/svd.h"

#include "base/check.h"
#include "kvcache/compression/low_rank.h"
#include "kvcache/compression/principal_axes.h"
#include "kvcache/compression/quant.h"

#include <math.h>
#include <string.h>

/* Directions with less than this share of the first one's energy are left out: they are rounding. */
static const double ENERGY_MIN = 1e-12;

typedef struct header {
    uint32_t n_entries, padding;
} header;

/* One side of a basis in memory. */
typedef struct side {
    uint32_t rank, dim;
    size_t rows_at, energy_at;
} side;

static size_t row_bytes(const kv_head_shape *shape, uint32_t dim)
{
    return dim * dtype_bytes(shape->type);
}

static side side_of(const kv_head_shape *shape, bool is_keys)
{
    const uint32_t k_rank = kv_svd_rank(shape->k_dim), v_rank = kv_svd_rank(shape->v_dim);
    const size_t k_bytes = round_up(k_rank * row_bytes(shape, shape->k_dim), sizeof(float));
    const size_t v_bytes = round_up(v_rank * row_bytes(shape, shape->v_dim), sizeof(float));
    const size_t rows = sizeof(header), energy = rows + k_bytes + v_bytes;
    if (is_keys) return (side){k_rank, shape->k_dim, rows, energy};
    return (side){v_rank, shape->v_dim, rows + k_bytes, energy + k_rank * sizeof(float)};
}

err_t kv_svd_basis_bytes(const kv_head_shape *shape, size_t *bytes)
{
    size_t numbers, least;
    const size_t dim = max_size(shape->k_dim, shape->v_dim);
    TRY(size_mul(dim, 2 * (dim + 1), &numbers)); /* so no product in side_of overflows */
    TRY(size_mul(numbers, sizeof(float), &least));
    const side v = side_of(shape, false);
    *bytes = round_up(v.energy_at + v.rank * sizeof(float), KV_STRIP_ALIGN);
    return ERR_OK;
}

/* ---- making one ---------------------------------------------------------------------------------- */

static void add_row(double *sum, uint32_t dim, double weight, const float *x)
{
    for (uint32_t r = 0; r < dim; r++, sum += dim) {
        const double w = weight * (double)x[r];
        for (uint32_t c = 0; c < dim; c++)
            sum[c] += w * (double)x[c];
    }
}

static void begin_side(const kv_head_shape *shape, const side *at, const uint8_t *before,
                       double *sum)
{
    float x[ATTN_CODED_DIM_MAX], energy;
    memset(sum, 0, (size_t)at->dim * at->dim * sizeof *sum);
    for (uint32_t r = 0; before != NULL && r < at->rank; r++) {
        memcpy(&energy, before + at->energy_at + r * sizeof energy, sizeof energy);
        kv_row_get(before + at->rows_at + r * row_bytes(shape, at->dim), shape->type, 0, at->dim,
                   x);
        add_row(sum, at->dim, (double)energy, x);
    }
}

void kv_svd_fit_begin(kv_svd_fit *fit, const uint8_t *before)
{
    const side k = side_of(fit->shape, true), v = side_of(fit->shape, false);
    begin_side(fit->shape, &k, before, fit->k);
    begin_side(fit->shape, &v, before, fit->v);
}

/* What is not a number in the cache must not spoil a basis that others share. */
static void get_finite(const void *row, dtype type, uint32_t dim, float *x)
{
    kv_row_get(row, type, 0, dim, x);
    for (uint32_t c = 0; c < dim; c++)
        x[c] = fabsf(x[c]) < 1e15f ? x[c] : 0;
}

void kv_svd_fit_add(kv_svd_fit *fit, const attn_span *span)
{
    const kv_head_shape *shape = fit->shape;
    const char *k = span->k, *v = span->v;
    float x[ATTN_CODED_DIM_MAX];
    for (uint32_t i = 0; i < span->n_slots; i++) {
        get_finite(k + (size_t)i * span->k_stride_bytes, shape->type, shape->k_dim, x);
        add_row(fit->k, shape->k_dim, 1, x);
        get_finite(v + (size_t)i * span->v_stride_bytes, shape->type, shape->v_dim, x);
        add_row(fit->v, shape->v_dim, 1, x);
    }
}

static double length_of(const double *row, uint32_t dim)
{
    double sum = 0;
    for (uint32_t c = 0; c < dim; c++)
        sum += row[c] * row[c];
    return sqrt(sum);
}

/* Directions without energy are zeros: they stand for nothing, and read as nothing. */
static void end_side(const kv_head_shape *shape, const side *at, double *sum, uint8_t *basis)
{
    float x[ATTN_CODED_DIM_MAX];
    principal_axes(sum, at->dim);
    const double least = ENERGY_MIN * length_of(sum, at->dim);
    for (uint32_t r = 0; r < at->rank; r++) {
        const double *axis = sum + (size_t)r * at->dim, energy = length_of(axis, at->dim);
        const bool is_left_out = !(energy > least);
        for (uint32_t c = 0; c < at->dim; c++)
            x[c] = is_left_out ? 0 : (float)(axis[c] / energy);
        kv_row_put(x, shape->type, 0, at->dim, basis + at->rows_at + r * row_bytes(shape, at->dim));
        const float stored = is_left_out ? 0 : (float)energy;
        memcpy(basis + at->energy_at + r * sizeof stored, &stored, sizeof stored);
    }
}

void kv_svd_fit_end(kv_svd_fit *fit, uint32_t n_entries, uint8_t *basis)
{
    const header head = {.n_entries = n_entries};
    const side k = side_of(fit->shape, true), v = side_of(fit->shape, false);
    memcpy(basis, &head, sizeof head);
    end_side(fit->shape, &k, fit->k, basis);
    end_side(fit->shape, &v, fit->v, basis);
}

/* ---- reading it ---------------------------------------------------------------------------------- */

kv_svd_rows kv_svd_find_rows(const kv_head_shape *shape)
{
    return (kv_svd_rows){side_of(shape, true).rows_at, side_of(shape, false).rows_at};
}

uint32_t kv_svd_n_entries(const uint8_t *basis)
{
    header head;
    memcpy(&head, basis, sizeof head);
    return head.n_entries;
}

static void read_side(const kv_head_shape *shape, const side *at, const uint8_t *basis, float *out)
{
    for (uint32_t r = 0; r < at->rank; r++)
        kv_row_get(basis + at->rows_at + r * row_bytes(shape, at->dim), shape->type, 0, at->dim,
                   out + (size_t)r * at->dim);
}

kv_head_bases kv_svd_read(const kv_head_shape *shape, const uint8_t *basis, float *floats)
{
    const side k = side_of(shape, true), v = side_of(shape, false);
    float *v_floats = floats + (size_t)k.rank * k.dim;
    read_side(shape, &k, basis, floats);
    read_side(shape, &v, basis, v_floats);
    return (kv_head_bases){.k_down = floats, .k_up = floats, .v_down = v_floats, .v_up = v_floats};
}

/* ---- the codec ----------------------------------------------------------------------------------- */

static err_t layout_svd(const kv_head_shape *shape, uint32_t page_tokens, kv_page_layout *out)
{
    kv_head_shape ranked = *shape;
    ranked.k_rank = kv_svd_rank(shape->k_dim);
    ranked.v_rank = kv_svd_rank(shape->v_dim);
    return kv_low_rank_layout(&ranked, page_tokens, out);
}

static void encode(const kv_low_rank_side *at, const float *x, float *c)
{
    kv_low_rank_down(at->down, at->rank, at->dim, x, c);
}

static void seal_svd(const kv_seal_args *args)
{
    kv_low_rank_seal(args, encode);
}

extern const kv_codec kv_codec_svd;
const kv_codec kv_codec_svd = {
    .name = "svd",
    .is_exact = false,
    .has_own_bases = true,
    .layout = layout_svd,
    .seal = seal_svd,
    .load = kv_low_rank_load,
};
