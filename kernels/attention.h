/* kernels/attention.h - attention over blocks of keys, with partial results that merge exactly.
 *
 * A block is the unit of summation: up to 64 slots in position order, gathered from one or more
 * spans of memory. For one query head and one block
 *     s_i = scale * q . k_i + bias_i   (masked slots: left out)
 *     m_b = max s_i,  l_b = sum exp(s_i - m_b),  a_b = sum exp(s_i - m_b) v_i
 * and blocks are folded in the order given:
 *     m' = max(m, m_b),  l' = l exp(m - m') + l_b exp(m_b - m'),  a' likewise.
 * The result is (o, lse) = (a / l, m + ln l). Which plain spans a block is cut into changes no bit,
 * nor does the number of queries handled together: that is what makes whole, chunked and cached
 * prompts identical.
 * A query that sees no key has o = 0, lse = -inf.
 *
 * Encoded spans are read as they are, no entry is decoded to memory. The definition is the same, over
 * the elements that attn_coding describes; fast tables may take the scales out of the sums.
 *
 * Merging partials of shards: see attn_merge. (Milakov and Gimelshein 2018; Dao et al. 2022.)
 * Functions here are serial: the cache runs them from its own parallel loop. */
#ifndef KERNELS_ATTENTION_H
#define KERNELS_ATTENTION_H

#include "kernels/attention_coding.h"
#include "kernels/dtype.h"

#include <stddef.h>

enum { ATTN_BLOCK_SLOTS_MAX = 64 };

/* Consecutive slots in memory. position[i] = first_position + i unless `positions` is given. */
typedef struct attn_span {
    const void *k; /* slot i at k + i * k_stride_bytes: [k_dim] of `type`, or codes */
    const void *v; /* slot i at v + i * v_stride_bytes: [v_dim]; plain: may point into k (MLA) */
    uint32_t k_stride_bytes, v_stride_bytes;
    uint32_t n_slots; /* 1 .. 64 */
    uint32_t first_position;
    const uint32_t *positions; /* [n_slots] or NULL */
    uint64_t live;             /* bit i: slot i is valid; evicted slots are 0 */
    const float *bias;         /* [n_slots] added to the score, or NULL */
    attn_coding coding;        /* of k and v; what follows is read only if it is not ATTN_PLAIN */
    uint32_t v_group, v_grid_stride_bytes;
    const void *k_grid, *v_grid;
} attn_span;

/* spans[first_span .. first_span + n_spans) of one block; together at most 64 slots. */
typedef struct attn_block {
    uint32_t first_span;
    uint32_t n_spans;
} attn_block;

typedef struct attn_query {
    const float *q;            /* query j, head g at q + j * q_stride + g * k_dim */
    size_t q_stride;           /* floats between queries */
    const uint32_t *positions; /* [n_queries], none below the one before */
    uint32_t n_queries;
    uint32_t group; /* query heads per KV head */
    uint32_t k_dim, v_dim;
    uint32_t window; /* sees key positions > position - window; 0: all up to its own */
    float scale;
    dtype type; /* of plain keys and values: f32 or bf16 */
} attn_query;

/* Running state of every (query, head): [n_queries][group] */
typedef struct attn_state {
    float *max; /* [n_queries][group], -inf at first */
    float *sum; /* [n_queries][group], 0 */
    float *acc; /* [n_queries][group][v_dim], 0 */
} attn_state;

typedef struct attn_blocks {
    const attn_span *spans;
    const attn_block *blocks;
    uint32_t n_blocks;
} attn_blocks;

void attn_state_reset(attn_state *state, size_t n_rows, uint32_t v_dim);

/* o[j][g] at o + j * o_stride + g * v_dim; lse [n_queries][group] or NULL. `sink_logit` [group] or
 * NULL: one more logit per head with a zero value, merged once here (gpt-oss). */
typedef struct attn_result {
    float *o;
    size_t o_stride;
    float *lse;
    const float *sink_logit;
} attn_result;
void attn_finish(const attn_query *query, const attn_state *state, const attn_result *result);

/* A second pass, once the first has given lse: every query in its order adds to the mass of each slot that
 * it sees, at position p,
 *     mass[p] += 1 / group * sum_g exp(s_pg - lse_g),
 * the attention that the slot got, a mean over the heads; a query without a key (lse -inf) adds nothing.
 * Neither blocks, spans nor the number of queries handled together change a bit. */
typedef struct attn_mass_args {
    const attn_query *query;
    const attn_blocks *blocks;
    const float *lse; /* [n_queries][group] */
    float *mass;      /* by position */
} attn_mass_args;

/* The same pass for the largest share instead of the sum, as a logarithm, so that no exponential is taken:
 *     most[p] = max(most[p], max_g (s_pg - lse_g)).
 * The blocks may be some of those that gave lse. A maximum knows no order: no bit depends on a cut. */
typedef struct attn_max_args {
    const attn_query *query;
    const attn_blocks *blocks;
    const float *lse; /* [n_queries][group] */
    float *most;      /* by position; -inf at first */
} attn_max_args;

/* Merge of n_parts partials of one row, in the order given:
 *     M = max lse_r, w_r = exp(lse_r - M), o = sum w_r o_r / sum w_r, lse = M + ln sum w_r.
 * part r: o + r * part_stride, lse[r]. All parts empty: o = 0, lse = -inf. */
typedef struct attn_merge_args {
    const float *o; /* [n_parts][part_stride] */
    size_t part_stride;
    const float *lse; /* [n_parts] */
    uint32_t n_parts;
    uint32_t v_dim;
    float *out;     /* [v_dim] */
    float *out_lse; /* or NULL */
} attn_merge_args;
void attn_merge(const attn_merge_args *args);

#endif
