/* kernels/rank_ops.h - what one of several ranks does by itself with what all of them know, where it lies.
 *
 * merge_parts   attention over ranks: the parts that a gathering has brought together, merged in rank order as attn_merge
 *               has it. Every rank has the same parts, so every rank gets the same bits
 * deal_choices  the experts that a rank computes: of an expert's n ranks in order, number (position + expert) mod n
 *               computes a token. What others compute is MOE_ELSEWHERE */
#ifndef KERNELS_RANK_OPS_H
#define KERNELS_RANK_OPS_H

#include <stddef.h>
#include <stdint.h>

typedef struct merge_parts_args {
    const float *parts; /* part r at parts + r * part_stride: o [n_tokens][n_heads][v_dim], then lse
                         * [n_tokens][n_heads]; where that is -inf, o is not read */
    size_t part_stride;
    uint32_t n_parts, n_tokens, n_heads, v_dim;
    float *out; /* [n_tokens][n_heads][v_dim]; zeros where all parts are empty */
} merge_parts_args;

/* The definition, over the host's memory. */
void merge_parts_cpu(const merge_parts_args *args);

/* Which ranks have an expert of the layer. */
typedef struct expert_ranks {
    const uint32_t *first; /* [n_experts + 1]: expert e has ranks [first[e], first[e + 1]) */
    const uint16_t *rank;  /* rising */
} expert_ranks;

typedef struct deal_choices_args {
    const uint32_t *chosen;    /* [n_tokens][top_k], below n_experts */
    const uint32_t *positions; /* [n_tokens] */
    uint32_t n_tokens, top_k;
    expert_ranks experts;
    uint32_t rank;
    uint32_t *served; /* [n_tokens][top_k]: of the choice what `rank` computes; may be `chosen` */
} deal_choices_args;

/* Who computes expert e of a token. */
static inline uint16_t deal_rank(const expert_ranks *experts, uint32_t e, uint32_t position)
{
    const uint32_t first = experts->first[e], n = experts->first[e + 1] - first;
    return experts->rank[first + (position + e) % n];
}

#endif
