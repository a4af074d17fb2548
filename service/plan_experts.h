/* service/plan_experts.h - how many experts a step reads if every token draws its own at random.
 *
 * A token of a step is routed to top_k different experts of n_experts, every set of that size being equally
 * likely and tokens independent. Real routers are skewed, and tokens of one sequence resemble each other:
 * then fewer experts are read in all, and more of them on one rank than on the others.
 *
 * Experts lie on ranks in equal parts, n_experts mod n_ranks ranks having one more; replicas are not used. */
#ifndef SERVICE_PLAN_EXPERTS_H
#define SERVICE_PLAN_EXPERTS_H

#include "base/error.h"

#include <stdint.h>

typedef struct plan_draw {
    uint32_t n_experts; /* [1, MOE_EXPERTS_MAX] */
    uint32_t top_k;     /* [1, min(n_experts, MOE_TOP_K_MAX)] */
    uint32_t n_tokens;  /* of the step, >= 1 */
    uint32_t n_ranks;   /* >= 1 */
} plan_draw;

/* Different experts that the step reads, expected: E (1 - (1 - k / E)^B). */
double plan_experts_read(const plan_draw *draw);

/* Those of the rank that reads most, expected: exact, not sampled. ERR_NO_MEMORY. */
err_t plan_experts_read_most(const plan_draw *draw, double *out) MUST_CHECK;

#endif
