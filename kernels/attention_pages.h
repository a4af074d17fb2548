/* kernels/attention_pages.h - attention of a step in one call, over pages, rings and staging of a device.
 *
 * Of a device that has the cache's bytes in its own memory, all pointers lead there. The host says once a
 * step what there is to do (rows, tasks, merges); every layer is one call.
 *
 * Blocks of one query head, in this order: the sinks, then block b = 0, 1, ... of block_tokens positions. What
 * lies in pages is the row's list of entries, an entry being a block (of what scheduling has left, if it has
 * thinned the sequence out); what comes behind is in its ring, below position `length`, and in staging.
 * Sinks are no part of block 0, but keep their slots in it.
 *
 * Blocks are folded as in attention.h, ATTN_SPLIT_BLOCKS of them (the sinks are of the first ones) to a partial
 * result of their own, and partial results in their order to the whole. So a sum's order follows from positions
 * alone: neither the cut of a prompt, nor neighbours, nor how tasks are cut changes a bit. Of a row that chooses
 * (choose_pages.h) the blocks are those that were chosen and, behind them, what is in ring and staging: they are
 * counted as if nothing lay between them.
 *
 * Over ranks each has some of a row's pages. One of them has its ring and staging, too, and adds the sink logit; on the
 * others the row reads its list alone (has_pages_only). What a rank finds is merged by its lse: see rank_ops.h.
 *
 * A task is some queries of one row. One that has all of the row's splits writes the output; others have one query
 * and write a partial result for each of their splits, which a merge of that query then folds. One without queries
 * does nothing. */
#ifndef KERNELS_ATTENTION_PAGES_H
#define KERNELS_ATTENTION_PAGES_H

#include "kernels/attention.h"

enum { ATTN_SPLIT_BLOCKS = 8, ATTN_PAGES_DIM_MAX = 1024 };
#define ATTN_NO_PARTIAL UINT32_MAX

/* Where keys, values and grids lie behind the first byte of a page of some kind: see attn_span.
 *
 * ATTN_LOW: rows are plain, of k_rank and v_rank coefficients, and the page names the basis that they are of, which is
 * up_k [k_rank][k_dim] and up_v [v_rank][v_dim]. An entry is k = up_k^T c, v = up_v^T e, and none is ever rebuilt:
 *     q . k = (up_k q) . c         sum_t p_t v_t = up_v^T sum_t p_t e_t */
typedef struct attn_layout {
    uint64_t k_offset, v_offset, k_grid_offset, v_grid_offset;
    uint32_t k_stride_bytes, v_stride_bytes;
    uint32_t v_group, v_grid_stride_bytes;
    attn_coding coding;
    dtype basis_type;                        /* f32 or bf16; this and what follows: of ATTN_LOW */
    uint32_t k_rank, v_rank;                 /* at most k_dim and v_dim */
    uint64_t k_basis_offset, v_basis_offset; /* behind attn_page.basis; at elements */
} attn_layout;

/* What a row sees of a page. Slot i is at first_position + i, or positions[i] if there are some. */
typedef struct attn_page {
    const uint8_t *data;
    const uint32_t *positions; /* or NULL */
    const float *bias;         /* of slots, added to their scores; or NULL */
    const uint8_t *basis;      /* of ATTN_LOW */
    uint64_t live;             /* bit i: slot i; 0: there is no page */
    uint32_t first_position;
    uint16_t layout; /* index */
    uint16_t n_slots;
    uint32_t box;        /* index, for choices; see choose_pages.h */
    uint32_t read_bytes; /* what attention reads of it, for who counts that */
} attn_page;

/* Slots of tokens, each with the keys and values of all layers and heads. In a ring the token of position p
 * is at slot p mod n_ring_slots, and as a sink at n_ring_slots + p; in staging the batch's token t is at t. */
typedef struct attn_strip {
    size_t slot_bytes;
    size_t k_offset, v_offset;           /* of the layer's first head; plain: may overlap (MLA) */
    uint32_t k_head_bytes, v_head_bytes; /* between heads */
} attn_strip;

/* One sequence's share of the step. */
typedef struct attn_row {
    const attn_page *pages; /* entry b of list i at pages[b * n_lists + i] */
    const uint8_t *ring;
    uint32_t
        n_blocks; /* entries; positions from n_blocks * block_tokens on are in ring and staging */
    uint32_t length;      /* positions below are in pages or the ring */
    uint32_t first_token; /* of its tokens in the batch: that of position `length` */
    uint32_t n_tokens;
    bool has_pages_only; /* ring, staging and sink logit are another rank's */
    uint32_t choice;     /* which; valid with `chosen` */
    uint32_t *chosen;    /* [n_kv_heads][chosen_stride]: how many entries its one token reads in a
                       * head, then which, rising; NULL: all */
} attn_row;

typedef struct attn_task {
    uint32_t row;
    uint32_t first_query, n_queries; /* of the row's tokens */
    uint32_t first_split, n_splits;
    uint32_t partial; /* of its first split; ATTN_NO_PARTIAL: it has all splits */
} attn_task;

/* Folds partials [first, first + n) of a row's token to its output. */
typedef struct attn_merge_task {
    uint32_t token, row;
    uint32_t first_partial, n_partials;
} attn_merge_task;

/* What a query head has read, as in attn_state, without a sink logit. */
typedef struct attn_mass {
    float max, sum;
} attn_mass;

typedef struct attend_pages_args {
    const float *q; /* token t, head g at q + t * q_stride + g * k_dim */
    float *out;     /* at out + t * out_stride + g * v_dim */
    float *lse;     /* [tokens][n_kv_heads * group] as in attn_result, or NULL */
    size_t q_stride, out_stride;
    uint32_t n_kv_heads, group; /* heads g in [h * group, (h + 1) * group) read KV head h */
    uint32_t k_dim, v_dim;      /* at most ATTN_PAGES_DIM_MAX */
    uint32_t window;            /* see attn_query */
    float scale;
    dtype type;              /* of plain keys and values: f32 or bf16 */
    const float *sink_logit; /* [n_kv_heads * group] as in attn_result, or NULL */
    uint32_t block_tokens, n_sinks, n_ring_slots;
    uint32_t first_list, n_lists; /* KV head h has list first_list + h of n_lists */
    attn_strip strip;             /* of rings and staging */
    const uint8_t *staging;
    const attn_layout *layouts;
    bool
        has_low; /* one of them is ATTN_LOW: the same in all steps, as it may change which zero is the output */
    const attn_row *rows;
    const attn_task *tasks;
    const attn_merge_task *merges;
    uint32_t n_tasks, n_merges;
    uint32_t n_queries_max; /* of a task */
    float *partials; /* [n][n_kv_heads * group][v_dim + 2]: max, sum, then acc of attn_state */
    uint32_t chosen_stride;
    attn_mass *masses; /* [choices][n_kv_heads * group]: written of rows that choose */
} attend_pages_args;

/* The definition, over the host's memory: one query head after the other, through attend of the reference. */
void attend_pages_cpu(const attend_pages_args *args);

/* Splits of a row whose last token is at position `last`. */
static inline uint32_t attn_n_splits(uint32_t last, uint32_t block_tokens)
{
    return last / block_tokens / ATTN_SPLIT_BLOCKS + 1;
}

/* Rounds rows to `type` (f32 or bf16, nearest even) where the cache keeps them: row r of n elements at
 * x + r * n goes to `to` + r * stride_bytes. */
typedef struct put_rows_args {
    const float *x;
    uint32_t n_rows, n;
    dtype type;
    uint8_t *to;
    size_t stride_bytes;
} put_rows_args;
void put_rows_cpu(const put_rows_args *args);

#endif
