/* kvcache/compression/codec.c - the list of page codecs, and what all pages have in common. */
#include "kvcache/compression/codec.h"

#include "base/check.h"

#include <string.h>

#define X(name) extern const kv_codec kv_codec_##name;
KV_CODEC_LIST(X)
#undef X

const kv_codec *const kv_codecs[] = {
#define X(name) &kv_codec_##name,
    KV_CODEC_LIST(X) NULL
#undef X
};

#define X(name) " " #name
const char kv_codec_names[] = KV_CODEC_LIST(X);
#undef X

const kv_codec *kv_codec_find(const char *name)
{
    for (size_t i = 0; kv_codecs[i] != NULL; i++) {
        if (strcmp(kv_codecs[i]->name, name) == 0) return kv_codecs[i];
    }
    return NULL;
}

attn_span kv_page_span(const kv_page_layout *layout, const uint8_t *page, uint32_t n_slots)
{
    if (layout->coefficients.n_slots > 0)
        return kv_strip_span(&layout->coefficients, page, 0, n_slots);
    if (layout->coding == ATTN_PLAIN) return kv_strip_span(&layout->strip, page, 0, n_slots);
    assert(n_slots >= 1);
    assert(n_slots <= layout->strip.n_slots);
    return (attn_span){
        .k = page + layout->k_offset,
        .v = page + layout->v_offset,
        .k_stride_bytes = layout->k_row_bytes,
        .v_stride_bytes = layout->v_row_bytes,
        .n_slots = n_slots,
        .live = UINT64_MAX >> (ATTN_BLOCK_SLOTS_MAX - n_slots),
        .coding = layout->coding,
        .v_group = layout->v_group,
        .v_grid_stride_bytes = layout->v_grid_row_bytes,
        .k_grid = page,
        .v_grid = page + layout->v_grid_offset,
    };
}

attn_layout kv_page_attn_layout(const kv_page_layout *layout)
{
    const kv_strip *low = &layout->coefficients;
    if (low->n_slots > 0)
        return (attn_layout){.v_offset = low->v_offset_bytes,
                             .k_stride_bytes = low->k_stride_bytes,
                             .v_stride_bytes = low->v_stride_bytes,
                             .coding = ATTN_LOW,
                             .k_rank = layout->shape.k_rank,
                             .v_rank = layout->shape.v_rank};
    if (layout->coding == ATTN_PLAIN)
        return (attn_layout){.v_offset = layout->strip.v_offset_bytes,
                             .k_stride_bytes = layout->strip.k_stride_bytes,
                             .v_stride_bytes = layout->strip.v_stride_bytes};
    return (attn_layout){.k_offset = layout->k_offset,
                         .v_offset = layout->v_offset,
                         .v_grid_offset = layout->v_grid_offset,
                         .k_stride_bytes = layout->k_row_bytes,
                         .v_stride_bytes = layout->v_row_bytes,
                         .v_group = layout->v_group,
                         .v_grid_stride_bytes = layout->v_grid_row_bytes,
                         .coding = layout->coding};
}

bool kv_has_kind(const kv_page_layout *layout)
{
    return layout->strip.n_slots > 0 && layout->coefficients.n_slots == 0 &&
           layout->coding != ATTN_KEPT;
}

encode_kind kv_page_kind(const kv_page_layout *layout)
{
    assert(kv_has_kind(layout));
    assert(layout->page_bytes <= UINT32_MAX);
    return (encode_kind){.layout = kv_page_attn_layout(layout),
                         .page_bytes = (uint32_t)layout->page_bytes,
                         .k_dim = layout->shape.k_dim,
                         .v_dim = layout->shape.v_dim,
                         .has_values = !layout->shape.v_in_k,
                         .type = layout->shape.type};
}

uint64_t kv_page_read_bytes(const kv_page_layout *layout, uint32_t n_slots)
{
    const kv_strip *strip =
        layout->coefficients.n_slots > 0 ? &layout->coefficients : &layout->strip;
    if (layout->coding == ATTN_PLAIN)
        return n_slots * ((uint64_t)strip->k_stride_bytes + strip->v_copy_bytes);
    const uint64_t row_bytes = (uint64_t)layout->k_row_bytes + layout->v_grid_row_bytes +
                               (layout->shape.v_in_k ? 0 : layout->v_row_bytes);
    return n_slots * row_bytes + layout->k_grid_bytes + layout->v_grid_bytes;
}

err_t kv_page_add_part(kv_page_layout *layout, size_t bytes, size_t *offset)
{
    *offset = layout->page_bytes;
    TRY(size_add(layout->page_bytes, bytes, &layout->page_bytes));
    TRY(size_add(layout->page_bytes, 3, &layout->page_bytes));
    layout->page_bytes -= layout->page_bytes % 4;
    return ERR_OK;
}

err_t kv_page_finish(kv_page_layout *layout)
{
    layout->page_bytes = round_up(layout->page_bytes, KV_STRIP_ALIGN);
    return layout->page_bytes < layout->strip.strip_bytes ? ERR_OK : ERR_UNSUPPORTED;
}
