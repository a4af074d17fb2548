/* kernels/cuda_attention_low.cuh - pages of coefficients: queries into the space of a basis, and sums of values out of
 * it. `low` of cuda_attention.cu. */
#ifndef KERNELS_CUDA_ATTENTION_LOW_CUH
#define KERNELS_CUDA_ATTENTION_LOW_CUH

#include "kernels/cuda_attention_queries.cuh"

/* Queries in the space of the block's coefficients: as slots are scored, a row of the basis being a slot. */
template <int ROWS>
static __device__ void project_queries(const tile *t, const tile_block *b,
                                       const tile_shared<ROWS> *s, float *q)
{
    const uint32_t k_dim = t->args->k_dim, width = n_units_of(k_dim);
    const uint32_t lane = threadIdx.x % SLOT_LANES, end = n_units_of(b->key_dim) * UNIT;
    const size_t row_bytes = static_cast<size_t>(k_dim) * (b->basis_type == DTYPE_F32 ? 4 : 2);
    for (uint32_t first = 0; first < end; first += SLOTS_AT_ONCE) {
        const uint32_t j = first + threadIdx.x / SLOT_LANES;
        const uint8_t *up = static_cast<const uint8_t *>(b->span[0].k_grid) + j * row_bytes;
        float sum[ROWS] = {};
        for (uint32_t u = lane; j < b->key_dim && u < width; u += SLOT_LANES) {
            float x[UNIT];
            const uint32_t n = min_u32(UNIT, k_dim - UNIT * u);
            load_plain8(up, b->basis_type, UNIT * u, k_dim, x);
            for (uint32_t r = 0; r < t->n_rows; r++) {
                const float *from = t->args->q + s->token[r] * t->args->q_stride +
                                    static_cast<size_t>(head_of(t, r)) * k_dim + UNIT * u;
                for (uint32_t e = 0; e < n; e++)
                    sum[r] = fmaf(from[e], x[e], sum[r]);
            }
        }
        const float dot = sum_of_lanes<ROWS>(sum, lane);
        if (j >= end || lane % (SLOT_LANES / ROWS) != 0) continue;
        const uint32_t r = lane * ROWS / SLOT_LANES;
        q[r * width * UNIT + query_place(j, width)] = j < b->key_dim ? dot : 0;
    }
}

/* What the queries lie as: plain, or in the space of a basis, or as one block wanted them. */
typedef struct query_space {
    bool is_plain;
    const void *basis;
} query_space;

template <int ROWS, bool HAS_LOW>
static __device__ void turn_queries(const tile *t, const tile_block *b, tile_shared<ROWS> *s,
                                    float *q, query_space *space)
{
    const attn_coding coding = b->span[0].coding;
    const bool wants_plain = coding == ATTN_PLAIN || coding == ATTN_FP8;
    const void *basis = HAS_LOW && coding == ATTN_LOW ? b->span[0].k_grid : NULL;
    if (wants_plain && space->is_plain) return;
    if (HAS_LOW && basis != NULL && space->basis == basis) return;
    if (HAS_LOW && basis != NULL) {
        project_queries<ROWS>(t, b, s, q);
    } else {
        fill_queries<ROWS>(t, b, s, q);
    }
    __syncthreads();
    space->is_plain = wants_plain;
    space->basis = basis;
}

/* Of one row: sums of a space in `cells`, one per strand, are added to `folded`. A thread has the same channels of it
 * everywhere, so nobody waits for it. */
static __device__ void fold_back(const tile *t, const tile_block *space, float *cells,
                                 float *folded)
{
    const uint32_t v_dim = t->args->v_dim, dim = space != NULL ? space->value_dim : v_dim;
    const uint32_t n_units = n_units_of(dim), n_strands = ATTEND_THREADS / n_units;
    for (uint32_t c = threadIdx.x; c < dim; c += ATTEND_THREADS) {
        float sum = 0;
        for (uint32_t i = 0; i < n_strands; i++)
            sum += cells[i * n_units * UNIT + c];
        if (space == NULL) {
            folded[c] += sum;
        } else {
            cells[c] = sum; /* of the first strand, which this thread alone has read */
        }
    }
    if (space == NULL) return;
    __syncthreads();
    for (uint32_t c = threadIdx.x; c < v_dim; c += ATTEND_THREADS) {
        float sum = 0;
        for (uint32_t j = 0; j < dim; j++) {
            const size_t at = static_cast<size_t>(j) * v_dim + c;
            sum = fmaf(cells[j], cuda_load(space->span[0].v_grid, space->basis_type, at), sum);
        }
        folded[c] += sum;
    }
}

/* The values' space changes: the sums leave the one that they are in. */
template <int ROWS>
static __device__ void leave_space(const tile *t, const tile_block *space, tile_shared<ROWS> *s,
                                   float *folded, float acc[ROWS][UNIT])
{
    for (uint32_t r = 0; r < ROWS; r++) {
        float *cells = s->cells[r % 2];
        for (uint32_t e = 0; e < UNIT; e++) {
            cells[threadIdx.x * UNIT + e] = acc[r][e];
            acc[r][e] = 0;
        }
        __syncthreads();
        fold_back(t, space, cells, folded + r * t->args->v_dim);
    }
    __syncthreads();
}

template <int ROWS>
static __device__ void scale_folded(const tile *t, const float *kept, float *folded)
{
    for (uint32_t r = 0; r < ROWS; r++) {
        for (uint32_t c = threadIdx.x; c < t->args->v_dim; c += ATTEND_THREADS)
            folded[r * t->args->v_dim + c] *= kept[r];
    }
}

#endif
