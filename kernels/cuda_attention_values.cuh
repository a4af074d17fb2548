/* kernels/cuda_attention_values.cuh - eight values of a slot, decoded. */
#ifndef KERNELS_CUDA_ATTENTION_VALUES_CUH
#define KERNELS_CUDA_ATTENTION_VALUES_CUH

#include "kernels/cuda_attention_rows.cuh"

/* What a thread knows of its unit of a span's values, whatever the slot. */
typedef struct value_unit {
    uint32_t unit, v_dim, k_dim;
    uint32_t kept, n_before; /* ATTN_KEPT: which of its channels, and the rank of the first */
    dtype type;
} value_unit;

static __device__ __forceinline__ value_unit find_value_unit(const attend_pages_args *args,
                                                             const attn_span *span, uint32_t v_dim,
                                                             uint32_t unit)
{
    value_unit out = {unit, v_dim, args->k_dim, 0, 0, args->type};
    if (span->coding == ATTN_KEPT) {
        out.kept = static_cast<const uint8_t *>(span->v_grid)[unit];
        out.n_before = n_kept_below(span->v_grid, UNIT * unit);
    }
    return out;
}

/* Of a latent: channels of its key, which have the keys' grid. It is read again for every slot, from the
 * nearest cache: kept in registers it would cost a block of those that run together. */
static __device__ __forceinline__ void load_latent8(const uint8_t *row, const uint8_t *grid,
                                                    attn_coding coding, const value_unit *u,
                                                    float out[UNIT])
{
    float scale[UNIT], low[UNIT];
    load_plain8(grid, DTYPE_BF16, UNIT * u->unit, u->k_dim, scale);
    load_plain8(grid + 2 * static_cast<size_t>(u->k_dim), DTYPE_BF16, UNIT * u->unit, u->k_dim,
                low);
    load_codes8(row, coding, u->k_dim, u->unit, out);
    for (uint32_t e = 0; e < UNIT; e++)
        out[e] = fmaf(out[e], scale[e], low[e]);
}

/* The eight values of slot i. */
static __device__ __forceinline__ void load_values8(const attn_span *span, uint32_t i,
                                                    const value_unit *u, float out[UNIT])
{
    const uint8_t *row =
        static_cast<const uint8_t *>(span->v) + static_cast<size_t>(i) * span->v_stride_bytes;
    const uint32_t first = UNIT * u->unit;
    if (span->coding == ATTN_PLAIN || span->coding == ATTN_LOW) {
        load_plain8(row, u->type, first, u->v_dim, out);
        return;
    }
    if (span->coding == ATTN_KEPT) {
        uint32_t at = u->n_before;
        for (uint32_t e = 0; e < UNIT; e++) {
            const bool is_here = (u->kept >> e & 1) != 0 && first + e < u->v_dim;
            out[e] = is_here ? cuda_load(row, u->type, at) : 0;
            at += is_here;
        }
        return;
    }
    const uint8_t *grid = static_cast<const uint8_t *>(span->v_grid) +
                          static_cast<size_t>(i) * span->v_grid_stride_bytes;
    if (span->coding != ATTN_FP8 && span->v_group == 0) {
        load_latent8(row, grid, span->coding, u, out);
        return;
    }
    float scale, low = 0;
    if (span->coding == ATTN_FP8) {
        scale = *reinterpret_cast<const float *>(grid);
    } else {
        const uint32_t n_groups = div_up(u->v_dim, span->v_group), g = first / span->v_group;
        scale = grid_at(grid, g);
        low = grid_at(grid, n_groups + g);
    }
    load_codes8(row, span->coding, u->v_dim, u->unit, out);
    for (uint32_t e = 0; e < UNIT; e++)
        out[e] = fmaf(out[e], scale, low);
}

#endif
