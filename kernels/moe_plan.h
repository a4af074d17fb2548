/* kernels/moe_plan.h - which tokens go to which expert, private to this folder.
 *
 * A counting sort of the (token, choice) pairs by expert, in the caller's scratch. Pairs of one
 * expert keep token order. Choices that others compute (MOE_ELSEWHERE) are no pairs.
 *
 *   pair       = token * top_k + choice
 *   pairs      [first[e] .. first[e + 1]) belong to expert e
 *   active     experts that have pairs, in rising order
 *   hidden     silu(gate x) * up x, one row per position in `pairs` */
#ifndef KERNELS_MOE_PLAN_H
#define KERNELS_MOE_PLAN_H

#include "kernels/moe.h"

typedef struct moe_plan {
    uint32_t *first;  /* [n_experts + 1] */
    uint32_t *active; /* [n_experts] */
    uint32_t *pairs;  /* [n_tokens * top_k] */
    float *hidden;    /* [n_tokens * top_k][ffn] */
    uint32_t n_active;
} moe_plan;

moe_plan moe_plan_make(const moe_args *args);

#endif
