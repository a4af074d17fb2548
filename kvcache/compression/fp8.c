/* kvcache/compression/fp8.c - E4M3, one scale for the keys of a page and one for its values.
 *
 *     scale = max |x| / 448 (1 if all are 0),  code = fp8(x / scale),  x^ = fp8 code * scale
 *
 * The largest element is the largest number of the format, so nothing saturates, and
 * |x - x^| <= max(|x| / 16, scale 2^-10): relative where int8's bound is one for the whole grid. At the
 * same bits int8 is the more precise for entries without outliers; fp8 costs nothing but the codes. Of a
 * raw page of 32 slots, 128 channels and bf16 (16384 bytes): codes 8192 and two f32 scales, 0.504.
 * A number that is NaN has no code of its own here and becomes 0. A latent, whose values are the first channels
 * of its keys, has its codes and their scale once. */
#include "kvcache/compression/quant.h"

static err_t layout_fp8(const kv_head_shape *shape, uint32_t page_tokens, kv_page_layout *out)
{
    return kv_quant_layout(ATTN_FP8, 0, shape, page_tokens, out);
}

static void load_row(const uint8_t *codes, const uint8_t *grid, uint32_t dim, dtype type, void *row)
{
    float scale;
    memcpy(&scale, grid, sizeof scale);
    for (uint32_t c = 0; c < dim; c++) {
        const float x = f32_from_fp8(codes[c]) * scale;
        kv_row_put(&x, type, c, 1, row);
    }
}

static attn_span load_fp8(const kv_load_args *args)
{
    const kv_page_layout *layout = args->layout;
    const kv_strip *strip = &layout->strip;
    const kv_head_shape *shape = &layout->shape;
    for (uint32_t i = 0; i < args->n_slots; i++) {
        load_row(args->page + layout->k_offset + (size_t)i * layout->k_row_bytes, args->page,
                 shape->k_dim, shape->type, args->scratch + (size_t)i * strip->k_stride_bytes);
        if (shape->v_in_k) continue;
        load_row(args->page + layout->v_offset + (size_t)i * layout->v_row_bytes,
                 args->page + layout->v_grid_offset, shape->v_dim, shape->type,
                 args->scratch + strip->v_offset_bytes + (size_t)i * strip->v_stride_bytes);
    }
    return kv_strip_span(strip, args->scratch, 0, args->n_slots);
}

extern const kv_codec kv_codec_fp8;
const kv_codec kv_codec_fp8 = {
    .name = "fp8",
    .is_exact = false,
    .layout = layout_fp8,
    .seal = kv_quant_seal,
    .load = load_fp8,
};
