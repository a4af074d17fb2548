/* kvcache/compression/quant.c - see quant.h. */
#include "kvcache/compression/quant.h"

#include "base/check.h"

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

static code_grid read_grid(const uint8_t *grid, uint32_t n_pairs, uint32_t pair)
{
    uint16_t scale, min;
    memcpy(&scale, grid + (size_t)2 * pair, sizeof scale);
    memcpy(&min, grid + (size_t)2 * (n_pairs + pair), sizeof min);
    return (code_grid){.scale = f32_from_bf16(scale), .min = f32_from_bf16(min)};
}

void kv_quant_seal(const kv_seal_args *args)
{
    encode_run runs[ATTN_BLOCK_SLOTS_MAX];
    const encode_kind kind = kv_page_kind(args->layout);
    assert(args->n_spans <= ATTN_BLOCK_SLOTS_MAX);
    for (uint32_t s = 0; s < args->n_spans; s++) {
        const attn_span *span = &args->spans[s];
        runs[s] = (encode_run){.k = span->k,
                               .v = span->v,
                               .k_stride_bytes = span->k_stride_bytes,
                               .v_stride_bytes = span->v_stride_bytes,
                               .n_slots = span->n_slots};
    }
    encode_page_cpu(&kind, runs, args->n_spans, args->page);
}

/* Decodes a row of codes whose channel c has pair c / group of n_pairs. */
static void load_row(const kv_page_layout *layout, const uint8_t *codes, const uint8_t *grids,
                     uint32_t dim, uint32_t group, void *row)
{
    const uint32_t bits = attn_code_bits(layout->coding), n_pairs = (dim + group - 1) / group;
    for (uint32_t c = 0; c < dim; c++) {
        const code_grid grid = read_grid(grids, n_pairs, c / group);
        const uint32_t code = code_get(codes, bits, attn_code_place(layout->coding, dim, c));
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
