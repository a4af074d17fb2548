/* kvcache/compression/quant.c - see quant.h. Plain loops: a page is encoded once and read often. */
#include "kvcache/compression/quant.h"

#include "base/check.h"

#include <math.h>

/* ---- rows ---------------------------------------------------------------------------------------- */

void kv_row_get(const void *row, dtype type, uint32_t first, uint32_t n, float *out)
{
    uint16_t half;
    const char *at = (const char *)row + (size_t)first * dtype_bytes(type);
    if (type == DTYPE_F32) {
        memcpy(out, at, n * sizeof *out);
        return;
    }
    for (uint32_t i = 0; i < n; i++) {
        memcpy(&half, at + (size_t)2 * i, sizeof half);
        out[i] = f32_from_bf16(half);
    }
}

void kv_row_put(const float *x, dtype type, uint32_t first, uint32_t n, void *row)
{
    char *at = (char *)row + (size_t)first * dtype_bytes(type);
    if (type == DTYPE_F32) {
        memcpy(at, x, n * sizeof *x);
        return;
    }
    for (uint32_t i = 0; i < n; i++) {
        const uint16_t half = bf16_from_f32(x[i]);
        memcpy(at + (size_t)2 * i, &half, sizeof half);
    }
}

/* ---- grids --------------------------------------------------------------------------------------- */

/* bf16 next to x that is not above it. */
static float bf16_below(float x)
{
    const uint32_t bits = f32_bits(x);
    const uint32_t up = x < 0 ? 0xffffu : 0; /* away from 0 if negative */
    return f32_from_bits((bits + up) & 0xffff0000u);
}

static float bf16_above(float x)
{
    return -bf16_below(-x);
}

typedef struct range {
    float min, max;
} range;

static range find_range(const float *x, uint32_t n, uint32_t stride)
{
    const float limit = 1e37f;
    range r = {INFINITY, -INFINITY};
    for (uint32_t i = 0; i < n; i++) {
        float y = x[(size_t)i * stride];
        if (!(y >= -limit)) y = -limit;
        if (y > limit) y = limit;
        if (y < r.min) r.min = y;
        if (y > r.max) r.max = y;
    }
    return r;
}

static float step(float width, uint32_t bits)
{
    const float scale = width / (float)((1u << bits) - 1);
    return scale > 0 ? scale : 1;
}

kv_grid kv_grid_fit(const float *x, uint32_t n, uint32_t stride, uint32_t bits)
{
    const range r = find_range(x, n, stride);
    return (kv_grid){.scale = step(r.max - r.min, bits), .min = r.min};
}

kv_grid kv_grid_fit_stored(const float *x, uint32_t n, uint32_t stride, uint32_t bits)
{
    const range r = find_range(x, n, stride);
    const float min = bf16_below(r.min);
    return (kv_grid){.scale = bf16_above(step(r.max - min, bits)), .min = min};
}

uint32_t kv_grid_code(kv_grid grid, float x, uint32_t bits)
{
    const float last = (float)((1u << bits) - 1);
    const float at = (x - grid.min) / grid.scale;
    if (!(at > 0)) return 0; /* a NaN, too */
    return (uint32_t)rintf(at < last ? at : last);
}

/* ---- pages --------------------------------------------------------------------------------------- */

err_t kv_quant_layout(attn_coding coding, uint32_t v_group, const kv_head_shape *shape,
                      uint32_t page_tokens, kv_page_layout *out)
{
    const uint32_t bits = attn_code_bits(coding);
    *out = (kv_page_layout){.shape = *shape, .coding = coding};
    assert(v_group <= KV_QUANT_GROUP_MAX);
    if (shape->k_dim > ATTN_CODED_DIM_MAX || shape->v_dim > ATTN_CODED_DIM_MAX)
        return ERR_UNSUPPORTED;
    TRY(kv_strip_init(shape, page_tokens, &out->strip));
    const bool has_one = coding == ATTN_FP8;
    const uint32_t pair_bytes = 2 * sizeof(uint16_t);
    out->k_row_bytes = (shape->k_dim * bits + 7) / 8;
    out->v_row_bytes = (shape->v_dim * bits + 7) / 8;
    out->v_group = has_one         ? (uint32_t)round_up(shape->v_dim, ATTN_GROUP_MIN)
                   : shape->v_in_k ? 0
                                   : v_group;
    if (!has_one && !shape->v_in_k)
        out->v_grid_row_bytes = (shape->v_dim + v_group - 1) / v_group * pair_bytes;
    out->k_grid_bytes = has_one ? (uint32_t)sizeof(float) : shape->k_dim * pair_bytes;
    out->v_grid_bytes = has_one && !shape->v_in_k ? (uint32_t)sizeof(float) : 0;
    const size_t v_grid_bytes = out->v_grid_bytes + (size_t)page_tokens * out->v_grid_row_bytes;
    size_t k_grid_offset;
    TRY(kv_page_add_part(out, out->k_grid_bytes, &k_grid_offset));
    TRY(kv_page_add_part(out, (size_t)page_tokens * out->k_row_bytes, &out->k_offset));
    assert(k_grid_offset == 0);
    if (shape->v_in_k) { /* the same codes and grid, as many of each as a value has channels */
        out->v_row_bytes = out->k_row_bytes;
        out->v_grid_offset = k_grid_offset;
        out->v_offset = out->k_offset;
        return kv_page_finish(out);
    }
    TRY(kv_page_add_part(out, v_grid_bytes, &out->v_grid_offset));
    TRY(kv_page_add_part(out, (size_t)page_tokens * out->v_row_bytes, &out->v_offset));
    return kv_page_finish(out);
}

static void store_bf16(uint8_t *grid, uint32_t i, float x)
{
    const uint16_t half = bf16_from_f32(x); /* it is one: no bit is lost */
    memcpy(grid + (size_t)2 * i, &half, sizeof half);
}

static kv_grid read_grid(const uint8_t *grid, uint32_t n_pairs, uint32_t pair)
{
    uint16_t scale, min;
    memcpy(&scale, grid + (size_t)2 * pair, sizeof scale);
    memcpy(&min, grid + (size_t)2 * (n_pairs + pair), sizeof min);
    return (kv_grid){.scale = f32_from_bf16(scale), .min = f32_from_bf16(min)};
}

/* Channels [first, first + n) of all keys, n at most KV_QUANT_GROUP_MAX: a grid for each channel. */
static void seal_keys(const kv_seal_args *args, uint32_t first, uint32_t n)
{
    float x[ATTN_BLOCK_SLOTS_MAX][KV_QUANT_GROUP_MAX];
    const kv_page_layout *layout = args->layout;
    const uint32_t bits = attn_code_bits(layout->coding), k_dim = layout->shape.k_dim;
    uint32_t n_slots = 0;
    for (uint32_t s = 0; s < args->n_spans; s++) {
        const attn_span *span = &args->spans[s];
        const char *row = span->k;
        for (uint32_t i = 0; i < span->n_slots; i++, row += span->k_stride_bytes)
            kv_row_get(row, layout->shape.type, first, n, x[n_slots++]);
    }
    for (uint32_t c = 0; c < n; c++) {
        const kv_grid grid = kv_grid_fit_stored(&x[0][c], n_slots, KV_QUANT_GROUP_MAX, bits);
        store_bf16(args->page, first + c, grid.scale);
        store_bf16(args->page, k_dim + first + c, grid.min);
        const uint32_t place = attn_code_place(layout->coding, k_dim, first + c);
        for (uint32_t i = 0; i < n_slots; i++)
            kv_code_put(args->page + layout->k_offset + (size_t)i * layout->k_row_bytes, bits,
                        place, kv_grid_code(grid, x[i][c], bits));
    }
}

/* The value of one slot: a grid for each group of channels. */
static void seal_value(const kv_seal_args *args, uint32_t slot, const void *row)
{
    float x[KV_QUANT_GROUP_MAX];
    const kv_page_layout *layout = args->layout;
    const uint32_t bits = attn_code_bits(layout->coding), v_dim = layout->shape.v_dim;
    const uint32_t n_groups = (v_dim + layout->v_group - 1) / layout->v_group;
    uint8_t *grids = args->page + layout->v_grid_offset + (size_t)slot * layout->v_grid_row_bytes;
    uint8_t *codes = args->page + layout->v_offset + (size_t)slot * layout->v_row_bytes;
    for (uint32_t g = 0; g < n_groups; g++) {
        const uint32_t first = g * layout->v_group;
        const uint32_t n = (uint32_t)min_size(layout->v_group, (size_t)v_dim - first);
        kv_row_get(row, layout->shape.type, first, n, x);
        const kv_grid grid = kv_grid_fit_stored(x, n, 1, bits);
        store_bf16(grids, g, grid.scale);
        store_bf16(grids, n_groups + g, grid.min);
        for (uint32_t c = 0; c < n; c++)
            kv_code_put(codes, bits, attn_code_place(layout->coding, v_dim, first + c),
                        kv_grid_code(grid, x[c], bits));
    }
}

void kv_quant_seal(const kv_seal_args *args)
{
    const uint32_t k_dim = args->layout->shape.k_dim;
    uint32_t slot = 0;
    memset(args->page, 0, args->layout->page_bytes); /* slots that are not there, too */
    for (uint32_t c = 0; c < k_dim; c += KV_QUANT_GROUP_MAX)
        seal_keys(args, c, (uint32_t)min_size(KV_QUANT_GROUP_MAX, (size_t)k_dim - c));
    if (args->layout->shape.v_in_k) return;
    for (uint32_t s = 0; s < args->n_spans; s++) {
        const char *row = args->spans[s].v;
        for (uint32_t i = 0; i < args->spans[s].n_slots; i++, row += args->spans[s].v_stride_bytes)
            seal_value(args, slot++, row);
    }
}

/* Decodes a row of codes whose channel c has pair c / group of n_pairs. */
static void load_row(const kv_page_layout *layout, const uint8_t *codes, const uint8_t *grids,
                     uint32_t dim, uint32_t group, void *row)
{
    const uint32_t bits = attn_code_bits(layout->coding), n_pairs = (dim + group - 1) / group;
    for (uint32_t c = 0; c < dim; c++) {
        const kv_grid grid = read_grid(grids, n_pairs, c / group);
        const uint32_t code = kv_code_get(codes, bits, attn_code_place(layout->coding, dim, c));
        const float x = (float)code * grid.scale + grid.min;
        kv_row_put(&x, layout->shape.type, c, 1, row);
    }
}

attn_span kv_quant_load(const kv_load_args *args)
{
    const kv_page_layout *layout = args->layout;
    const kv_strip *strip = &layout->strip;
    for (uint32_t i = 0; i < args->n_slots; i++) {
        uint8_t *k = args->scratch + (size_t)i * strip->k_stride_bytes;
        uint8_t *v = args->scratch + strip->v_offset_bytes + (size_t)i * strip->v_stride_bytes;
        load_row(layout, args->page + layout->k_offset + (size_t)i * layout->k_row_bytes,
                 args->page, layout->shape.k_dim, 1, k);
        if (layout->shape.v_in_k) continue;
        load_row(layout, args->page + layout->v_offset + (size_t)i * layout->v_row_bytes,
                 args->page + layout->v_grid_offset + (size_t)i * layout->v_grid_row_bytes,
                 layout->shape.v_dim, layout->v_group, v);
    }
    return kv_strip_span(strip, args->scratch, 0, args->n_slots);
}
