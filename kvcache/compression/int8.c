/* kvcache/compression/int8.c - 8 bits an element; see quant.h.
 *
 * Of a raw page of 32 slots, 128 channels and bf16 (16384 bytes): codes 8192, grids of keys 512, grids of
 * values in groups of 64 channels 256; together 8960 bytes, 0.547. A step of a grid is 1/255 of its range:
 * larger groups would do, but 64 keep outliers of a value to themselves for little. */
#include "kvcache/compression/quant.h"

enum { V_GROUP = 64 };

static err_t layout_int8(const kv_head_shape *shape, uint32_t page_tokens, kv_page_layout *out)
{
    return kv_quant_layout(ATTN_INT8, V_GROUP, shape, page_tokens, out);
}

extern const kv_codec kv_codec_int8;
const kv_codec kv_codec_int8 = {
    .name = "int8",
    .is_exact = false,
    .layout = layout_int8,
    .seal = kv_quant_seal,
    .load = kv_quant_load,
};
