/* kernels/moe.h - router and expert products.
 *
 * router   the k largest of p[t], ties to the lower expert, in falling order of p; weight = scale * p, and p / sum of
 *          the k p instead of p when `renormalise`. By kind p[t] is, in f32,
 *          softmax      softmax(logits[t])
 *          sigmoid      1 / (1 + exp(-logits[t]))
 *          sparsemixer  of each choice another: softmax over those not taken yet whose logit l is near the largest m
 *                       of them, (m - l) / max(|l|, m) <= 2 jitter; never renormalised (Liu et al., arXiv
 *                       2310.00811, at inference)
 * experts  out[t] += sum over the chosen experts e of token t, in rising order of e:
 *              weight[t][e] * down_e( silu(gate_e x[t]) * up_e x[t] )
 *          One flat list of (expert, rows) work over all active experts for gate and up, one for
 *          down: a small expert does not leave threads idle. The order of the sum over experts is
 *          fixed by the expert's number, so the batch does not change a bit.
 *
 * Choices that are MOE_ELSEWHERE are skipped: that is how a rank leaves out what others compute, whole
 * experts or a part of one's tokens. Mixtral: Jiang et al., arXiv 2401.04088. */
#ifndef KERNELS_MOE_H
#define KERNELS_MOE_H

#include "kernels/matmul.h"

enum { MOE_TOP_K_MAX = 16, MOE_EXPERTS_MAX = 1024 };
#define MOE_ELSEWHERE UINT32_MAX

typedef enum router_kind { ROUTER_SOFTMAX, ROUTER_SIGMOID, ROUTER_SPARSEMIXER } router_kind;

typedef struct router_args {
    router_kind kind;
    const float *logits; /* [n_tokens][n_experts] */
    uint32_t n_tokens, n_experts;
    uint32_t top_k; /* 1 .. min(n_experts, MOE_TOP_K_MAX) */
    bool renormalise;
    float scale;
    float jitter;     /* of sparsemixer */
    uint32_t *expert; /* out [n_tokens][top_k] */
    float *weight;    /* out [n_tokens][top_k] */
} router_args;

typedef struct moe_expert {
    matrix gate, up; /* [ffn][dim] */
    matrix down;     /* [dim][ffn] */
} moe_expert;

typedef struct moe_args {
    const float *x; /* [n_tokens][dim] */
    uint32_t n_tokens, dim, ffn;
    uint32_t n_experts, top_k;
    const moe_expert *expert; /* [n_experts] */
    const uint32_t *chosen;   /* [n_tokens][top_k], the router's or MOE_ELSEWHERE */
    const float *weight;      /* [n_tokens][top_k] */
    float *out;               /* [n_tokens][dim]; added to */
    void *scratch;            /* moe_scratch_bytes(n_tokens max, ...), aligned to 64 */
} moe_args;

#ifdef __cplusplus
extern "C" {
#endif

/* Scratch for batches of up to n_tokens; 0 when the size overflows. */
size_t moe_scratch_bytes(uint32_t n_tokens, uint32_t dim, uint32_t ffn, uint32_t n_experts,
                         uint32_t top_k);

#ifdef __cplusplus
}
#endif

#endif
