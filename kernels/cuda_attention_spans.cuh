/* kernels/cuda_attention_spans.cuh - the spans of a split as a tile of rows meets them.
 *
 * The spans are those of the definition (attention_pages.c), but for the last position of the tile instead of
 * the query's: what a row must not see is masked. A block none of whose slots a row of the tile can see by its
 * position is left out. It is all or nothing: a sum's order goes by the index of a slot in its block, which must
 * not depend on the window, nor on how much of the block is in the ring and how much in staging. */
#ifndef KERNELS_CUDA_ATTENTION_SPANS_CUH
#define KERNELS_CUDA_ATTENTION_SPANS_CUH

#include "kernels/cuda_attention_tile.cuh"

static __device__ __forceinline__ uint32_t min_u32(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

static __device__ __forceinline__ attn_span strip_span(const tile *t, const uint8_t *base,
                                                       uint32_t slot, uint32_t first,
                                                       uint32_t n_slots)
{
    const attn_strip *strip = &t->args->strip;
    const uint8_t *at = base + slot * strip->slot_bytes;
    attn_span out = {};
    out.k = at + strip->k_offset + static_cast<size_t>(t->kv_head) * strip->k_head_bytes;
    out.v = at + strip->v_offset + static_cast<size_t>(t->kv_head) * strip->v_head_bytes;
    out.k_stride_bytes = static_cast<uint32_t>(strip->slot_bytes);
    out.v_stride_bytes = static_cast<uint32_t>(strip->slot_bytes);
    out.n_slots = n_slots;
    out.first_position = first;
    out.live = UINT64_MAX;
    return out;
}

/* Positions [first, end) of one block. */
static __device__ void find_recent(const tile *t, uint32_t first, uint32_t end, attn_span span[2])
{
    uint32_t n = 0;
    if (first < end && first < t->row.length) {
        const uint32_t n_slots = min_u32(end, t->row.length) - first;
        span[n++] = strip_span(t, t->row.ring, first % t->args->n_ring_slots, first, n_slots);
        first += n_slots;
    }
    if (first < end)
        span[n] = strip_span(t, t->args->staging, t->row.first_token + (first - t->row.length),
                             first, end - first);
}

static __device__ void find_page(const tile *t, uint32_t block, tile_block *to)
{
    attn_span *out = &to->span[0];
    const attend_pages_args *args = t->args;
    const size_t at = t->chosen != NULL ? t->chosen[block] : block;
    const attn_page page = t->row.pages[at * args->n_lists + args->first_list + t->kv_head];
    if (page.live == 0) return;
    const attn_layout layout = args->layouts[page.layout];
    out->k = page.data + layout.k_offset;
    out->v = page.data + layout.v_offset;
    out->k_stride_bytes = layout.k_stride_bytes;
    out->v_stride_bytes = layout.v_stride_bytes;
    out->n_slots = page.n_slots;
    out->first_position = page.first_position;
    out->positions = page.positions;
    out->live = page.live;
    out->bias = page.bias;
    out->coding = layout.coding;
    out->v_group = layout.v_group;
    out->v_grid_stride_bytes = layout.v_grid_stride_bytes;
    out->k_grid = page.data + layout.k_grid_offset;
    out->v_grid = page.data + layout.v_grid_offset;
    if (layout.coding != ATTN_LOW) return;
    out->k_grid = page.basis + layout.k_basis_offset;
    out->v_grid = page.basis + layout.v_basis_offset;
    to->key_dim = layout.k_rank;
    to->value_dim = layout.v_rank;
    to->basis_type = layout.basis_type;
}

static __device__ void find_sinks(const tile *t, attn_span span[2])
{
    const attend_pages_args *args = t->args;
    if (args->n_sinks == 0 || t->row.has_pages_only) return;
    if (t->row.n_blocks == 0) {
        find_recent(t, 0, min_u32(args->n_sinks, t->last_position + 1), span);
    } else {
        span[0] = strip_span(t, t->row.ring, args->n_ring_slots, 0, args->n_sinks);
    }
}

/* They keep their slots in block 0 and are not live there: a page has them, too. */
static __device__ __forceinline__ void hide_sinks(const attend_pages_args *args, attn_span *span)
{
    if (span->first_position >= args->n_sinks) return;
    const uint32_t n = args->n_sinks - span->first_position;
    span->live = n < ATTN_BLOCK_SLOTS_MAX ? span->live & UINT64_MAX << n : 0;
}

/* Do all slots lie behind the last query, or before the window of the first? Thinned pages are not asked. */
static __device__ __forceinline__ bool is_out_of_sight(const tile *t, const attn_span span[2])
{
    const attn_span *last = &span[span[1].n_slots > 0];
    const uint32_t end = last->first_position + last->n_slots, window = t->args->window;
    if (last->positions != NULL) return false;
    if (span[0].first_position > t->last_position) return true;
    return window > 0 && end <= t->first_position && t->first_position - end + 1 >= window;
}

/* Block `at` of SPLIT_BLOCKS of a split. */
static __device__ void find_block(const tile *t, uint32_t split, uint32_t at, tile_block *out)
{
    const attend_pages_args *args = t->args;
    const uint32_t block = split * ATTN_SPLIT_BLOCKS + at - 1;
    const uint32_t n_before = block - t->n_listed, n_paged = t->row.n_blocks;
    attn_span *span = out->span;
    span[0] = span[1] = {};
    out->key_dim = args->k_dim;
    out->value_dim = args->v_dim;
    out->basis_type = DTYPE_F32;
    if (at == 0) {
        if (split == 0) find_sinks(t, span);
    } else if (block < t->n_listed) {
        find_page(t, block, out);
    } else if (!t->row.has_pages_only &&
               n_paged + n_before <= t->last_position / args->block_tokens) {
        const uint32_t begin = (n_paged + n_before) * args->block_tokens;
        find_recent(t, begin, min_u32(begin + args->block_tokens, t->last_position + 1), span);
        hide_sinks(args, &span[0]);
        hide_sinks(args, &span[1]);
    }
    if (span[0].n_slots > 0 && is_out_of_sight(t, span)) span[0].n_slots = span[1].n_slots = 0;
    out->n_slots = span[0].n_slots + span[1].n_slots;
    out->key_scale = 1;
    if (out->n_slots == 0) return;
    if (span[0].coding == ATTN_KEPT) out->key_dim = n_kept_below(span[0].k_grid, args->k_dim);
    if (span[0].coding == ATTN_FP8) out->key_scale = *static_cast<const float *>(span[0].k_grid);
}

#endif
