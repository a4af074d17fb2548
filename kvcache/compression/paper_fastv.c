/* kvcache/compression/paper_fastv.c - the first half of the channels of keys and values: FastV by the formula
 * of the PiKV paper (arXiv 2508.06526), which crops to the first r dimensions.
 *
 * FastV as published drops tokens, not channels (scoring/fastv.c). Nothing is asked of the entries: under
 * half-split RoPE what stays is one channel of each pair. r is a half here; the paper names none.
 *
 * Of a raw page of 32 slots, 128 channels and bf16 (16384 bytes): keys and values 4096 each, a bit per
 * channel of both 32; together 8256 with the rounding to cache lines, 0.504. */
#include "kvcache/compression/kept.h"

static const kv_kept_shares SHARES = {.k_dropped = 0.5, .v_dropped = 0.5};

static err_t layout_crop(const kv_head_shape *shape, uint32_t page_tokens, kv_page_layout *out)
{
    return kv_kept_layout(&SHARES, shape, page_tokens, out);
}

static void seal_crop(const kv_seal_args *args)
{
    static const double all[ATTN_CODED_DIM_MAX] = {0}; /* of equal channels the lower ones stay */
    kv_kept_seal(args, all, all);
}

extern const kv_codec kv_codec_paper_fastv;
const kv_codec kv_codec_paper_fastv = {
    .name = "paper_fastv",
    .is_exact = false,
    .layout = layout_crop,
    .seal = seal_crop,
    .load = kv_kept_load,
};
