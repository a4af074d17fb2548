/* kernels/moe.h - router and expert products.
 *
 * router   the k largest of p[t], ties to the lower expert, in falling order of p; weight = scale * p, and p / (1e-20 + sum
 *          of the k p) instead of p when `renormalise`. By kind p[t] is, in f32,
 *          softmax      softmax(logits[t])
 *          sigmoid      1 / (1 + exp(-logits[t]))
 *          sparsemixer  of each choice another: softmax over those not taken yet whose logit l is near the largest m
 *                       of them, (m - l) / max(|l|, m) <= 2 jitter; never renormalised (Liu et al., arXiv
 *                       2310.00811, at inference)
 *          With a choice_bias, or n_groups, the k largest of p[t] + choice_bias are taken, of the experts of the top_groups
 *          groups alone that have the largest sums of their n_group_best best; weights are p's (DeepSeek-V2, arXiv
 *          2405.04434; V3, arXiv 2412.19437). Not with sparsemixer.
 * experts  out[t] += sum over the chosen experts e of token t, in rising order of e:
 *              weight[t][e] * down_e( act(gate_e x[t], up_e x[t]) )
 *          with the biases that an expert has, each added to its product. By activation act(g, u) is
 *          silu      silu(g) * u
 *          clamped   g' sigmoid(alpha g') * (u' + 1), g' = min(g, limit), u' = u clipped to +-limit (gpt-oss)
 *          One flat list of (expert, rows) work over all active experts for gate and up, one for
 *          down: a small expert does not leave threads idle. The order of the sum over experts is
 *          fixed by the expert's number, so the batch does not change a bit.
 *
 * Choices that are MOE_ELSEWHERE are skipped: that is how a rank leaves out what others compute, whole
 * experts or a part of one's tokens. Mixtral: Jiang et al., arXiv 2401.04088. */
#ifndef KERNELS_MOE_H
#define KERNELS_MOE_H

#include "kernels/matmul.h"

enum { MOE_TOP_K_MAX = 16, MOE_EXPERTS_MAX = 1024, MOE_GROUPS_MAX = 32 };
#define MOE_ELSEWHERE UINT32_MAX

typedef enum router_kind { ROUTER_SOFTMAX, ROUTER_SIGMOID, ROUTER_SPARSEMIXER } router_kind;

typedef struct router_args {
    router_kind kind;
    const float *logits; /* [n_tokens][n_experts] */
    uint32_t n_tokens, n_experts;
    uint32_t top_k; /* 1 .. min(n_experts, MOE_TOP_K_MAX) */
    bool renormalise;
    float scale;
    float jitter;            /* of sparsemixer */
    const void *choice_bias; /* [n_experts] or NULL: none */
    dtype choice_bias_type;
    uint32_t n_groups; /* of experts in a row, of one size; at most MOE_GROUPS_MAX; 0: none */
    uint32_t top_groups,
        n_group_best; /* n_group_best 1 or 2; top_groups have top_k experts at least */
    uint32_t *expert; /* out [n_tokens][top_k] */
    float *weight;    /* out [n_tokens][top_k] */
} router_args;

typedef struct moe_expert {
    matrix gate, up;                      /* [ffn][dim] */
    matrix down;                          /* [dim][ffn] */
    matrix gate_bias, up_bias, down_bias; /* [1][ffn], [1][ffn], [1][dim]; without data: none */
} moe_expert;

typedef enum moe_activation { MOE_SILU, MOE_CLAMPED } moe_activation;

typedef struct moe_args {
    const float *x; /* [n_tokens][dim] */
    uint32_t n_tokens, dim, ffn;
    uint32_t n_experts, top_k;
    moe_activation activation;
    float alpha, limit;       /* of clamped */
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
