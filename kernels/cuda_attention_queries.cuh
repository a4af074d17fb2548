/* kernels/cuda_attention_queries.cuh - the queries of a tile in shared memory, as the keys of a block want them.
 *
 * Plain, or with the scales of channels, or packed to those that are kept: `fill` of cuda_attention.cu. Projected to the
 * space of a basis: cuda_attention_low.cuh. */
#ifndef KERNELS_CUDA_ATTENTION_QUERIES_CUH
#define KERNELS_CUDA_ATTENTION_QUERIES_CUH

#include "kernels/cuda_attention_spans.cuh"

enum {
    ATTEND_THREADS = 128,
    ATTEND_WARPS = ATTEND_THREADS / WARP,
    SLOT_LANES = 8,
    SLOTS_AT_ONCE = ATTEND_THREADS / SLOT_LANES
};

template <int ROWS> struct alignas(16) tile_shared {
    float scores[2][ATTN_BLOCK_SLOTS_MAX * ROWS]; /* [slot][row], then weights; blocks take turns */
    float cells[2][ATTEND_THREADS * UNIT];        /* rows take turns */
    float offset[ATTEND_WARPS][ROWS];             /* sum q_c m_c, a part of each warp */
    float max[ROWS], sum[ROWS];                   /* of the split so far */
    float kept[ROWS]; /* what the latest block leaves of sums; at the end: attn_finish's factor */
    float total_max[ROWS], total_sum[ROWS];
    uint32_t token[ROWS];
    tile_block block[SPLIT_BLOCKS];
};

static __host__ __device__ __forceinline__ uint32_t n_units_of(uint32_t dim)
{
    return div_up(dim, UNIT);
}

static __device__ __forceinline__ uint32_t head_of(const tile *t, uint32_t r)
{
    return t->kv_head * t->args->group + (t->first + r) % t->args->group;
}

/* Where channel c of a row of queries lies: in halves of units, so that lanes with neighbouring units read all
 * banks of shared memory at once. */
static __device__ __forceinline__ uint32_t query_place(uint32_t c, uint32_t n_units)
{
    return c % UNIT / 4 * (4 * n_units) + c / UNIT * 4 + c % 4;
}

static __device__ __forceinline__ bool has_channel_grid(attn_coding coding)
{
    return coding == ATTN_INT8 || coding == ATTN_INT4 || coding == ATTN_INT2;
}

/* The queries as the block's keys want them: see `fill` above. */
template <int ROWS>
static __device__ void fill_queries(const tile *t, const tile_block *b, tile_shared<ROWS> *s,
                                    float *q)
{
    const uint32_t k_dim = t->args->k_dim, n_units = n_units_of(k_dim);
    const void *grid = b->span[0].k_grid;
    const attn_coding coding = b->span[0].coding;
    const float *from[ROWS];
    float offset[ROWS] = {};
    for (uint32_t r = 0; r < ROWS; r++)
        from[r] = r < t->n_rows ? t->args->q + s->token[r] * t->args->q_stride +
                                      static_cast<size_t>(head_of(t, r)) * k_dim
                                : NULL;
    for (uint32_t c = threadIdx.x; c < n_units * UNIT; c += ATTEND_THREADS) {
        bool is_there = c < k_dim;
        float scale = 1, low = 0;
        uint32_t to = c;
        if (has_channel_grid(coding) && is_there) {
            scale = grid_at(grid, c);
            low = grid_at(grid, static_cast<size_t>(k_dim) + c);
        }
        if (coding == ATTN_KEPT && is_there) {
            const uint32_t n_before = n_kept_below(grid, c);
            is_there = (static_cast<const uint8_t *>(grid)[c / 8] >> c % 8 & 1) != 0;
            to = is_there ? n_before : b->key_dim + c - n_before; /* all others behind, as zeros */
        }
        for (uint32_t r = 0; r < ROWS; r++) {
            const float x = is_there && from[r] != NULL ? from[r][c] : 0;
            offset[r] = fmaf(x, low, offset[r]);
            q[r * n_units * UNIT + query_place(to, n_units)] = x * scale;
        }
    }
    if (!has_channel_grid(coding)) return;
    for (uint32_t r = 0; r < ROWS; r++) {
        const float of_warp = warp_sum(offset[r]);
        if (threadIdx.x % WARP == 0) s->offset[threadIdx.x / WARP][r] = of_warp;
    }
}

/* Adds `distance` lanes apart until a lane has one row, then to the end. The same tree for every ROWS: which of two
 * lanes adds them does not matter. */
template <int ROWS>
static __device__ __forceinline__ float sum_of_lanes(const float sum[ROWS], uint32_t lane)
{
    if constexpr (ROWS == 8) {
        float half[4];
        for (int i = 0; i < 4; i++) {
            const float mine = (lane & 4) != 0 ? sum[i + 4] : sum[i];
            const float theirs = (lane & 4) != 0 ? sum[i] : sum[i + 4];
            half[i] = mine + __shfl_xor_sync(WARP_ALL, theirs, 4);
        }
        float two[2];
        for (int i = 0; i < 2; i++) {
            const float mine = (lane & 2) != 0 ? half[i + 2] : half[i];
            const float theirs = (lane & 2) != 0 ? half[i] : half[i + 2];
            two[i] = mine + __shfl_xor_sync(WARP_ALL, theirs, 2);
        }
        const float mine = (lane & 1) != 0 ? two[1] : two[0];
        const float theirs = (lane & 1) != 0 ? two[0] : two[1];
        return mine + __shfl_xor_sync(WARP_ALL, theirs, 1);
    } else if constexpr (ROWS == 4) {
        float two[2];
        for (int i = 0; i < 2; i++) {
            const float mine = (lane & 4) != 0 ? sum[i + 2] : sum[i];
            const float theirs = (lane & 4) != 0 ? sum[i] : sum[i + 2];
            two[i] = mine + __shfl_xor_sync(WARP_ALL, theirs, 4);
        }
        const float mine = (lane & 2) != 0 ? two[1] : two[0];
        const float theirs = (lane & 2) != 0 ? two[0] : two[1];
        const float one = mine + __shfl_xor_sync(WARP_ALL, theirs, 2);
        return one + __shfl_xor_sync(WARP_ALL, one, 1);
    } else {
        float one = sum[0];
        for (int distance = SLOT_LANES / 2; distance > 0; distance /= 2)
            one += __shfl_xor_sync(WARP_ALL, one, distance);
        return one;
    }
}

#endif
