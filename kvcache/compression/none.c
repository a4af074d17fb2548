/* kvcache/compression/none.c - a page is a strip: the bits that were appended. */
#include "kvcache/compression/codec.h"

static err_t layout_strip(const kv_head_shape *shape, uint32_t page_tokens, kv_page_layout *out)
{
    *out = (kv_page_layout){.shape = *shape, .coding = ATTN_PLAIN};
    TRY(kv_strip_init(shape, page_tokens, &out->strip));
    out->page_bytes = out->strip.strip_bytes;
    return ERR_OK;
}

static void seal_strip(const kv_seal_args *args)
{
    uint32_t slot = 0;
    for (uint32_t s = 0; s < args->n_spans; s++) {
        kv_strip_write(&args->layout->strip, args->page, slot, &args->spans[s]);
        slot += args->spans[s].n_slots;
    }
}

static attn_span load_strip(const kv_load_args *args)
{
    return kv_strip_span(&args->layout->strip, args->page, 0, args->n_slots);
}

const kv_codec kv_codec_none = {
    .name = "none",
    .is_exact = true,
    .layout = layout_strip,
    .seal = seal_strip,
    .load = load_strip,
};
