/* kvcache/compression/int2.c - 2 bits an element; see quant.h.
 *
 * Of a raw page of 32 slots, 128 channels and bf16 (16384 bytes): codes 2048, grids of keys 512, grids of
 * values in groups of 32 channels (KIVI's) 512; together 3072 bytes, 0.1875: a third of it is grids. */
#include "kvcache/compression/quant.h"

enum { V_GROUP = 32 };

static err_t layout_int2(const kv_head_shape *shape, uint32_t page_tokens, kv_page_layout *out)
{
    return kv_quant_layout(ATTN_INT2, V_GROUP, shape, page_tokens, out);
}

extern const kv_codec kv_codec_int2;
const kv_codec kv_codec_int2 = {
    .name = "int2",
    .is_exact = false,
    .layout = layout_int2,
    .seal = kv_quant_seal,
    .load = kv_quant_load,
};
