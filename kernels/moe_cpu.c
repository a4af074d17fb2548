/* kernels/moe_cpu.c - router and experts: the definition. */
#include "base/check.h"
#include "kernels/moe_plan.h"
#include "kernels/ops_cpu.h"

#include <float.h>
#include <math.h>

/* p = softmax(logits). Double inside, so that the f32 result is the correctly rounded one almost
 * always, and the same in every table. */
static void softmax(const float *logits, uint32_t n, float *p)
{
    double max = (double)logits[0], sum = 0;
    for (uint32_t e = 1; e < n; e++) {
        if ((double)logits[e] > max) max = (double)logits[e];
    }
    for (uint32_t e = 0; e < n; e++)
        sum += exp((double)logits[e] - max);
    for (uint32_t e = 0; e < n; e++)
        p[e] = (float)(exp((double)logits[e] - max) / sum);
}

/* The largest of those not taken; the lower number wins a tie. A NaN is never larger, but the first
 * one left stands, so that the answer is an expert whatever the logits are. */
static uint32_t take_largest(const float *p, uint32_t n, bool *is_taken)
{
    uint32_t best = n;
    for (uint32_t e = 0; e < n; e++) {
        if (is_taken[e]) continue;
        if (best == n || p[e] > p[best]) best = e;
    }
    assert(best < n);
    is_taken[best] = true;
    return best;
}

static void sigmoid(const float *logits, uint32_t n, float *p)
{
    for (uint32_t e = 0; e < n; e++)
        p[e] = (float)(1 / (1 + exp(-(double)logits[e])));
}

/* The next choice of sparsemixer: the largest logit m of those not taken, with its share among all of them that are
 * near to it. */
static uint32_t take_mixed(const router_args *args, const float *logits, bool *is_taken,
                           float *share)
{
    const uint32_t best = take_largest(logits, args->n_experts, is_taken);
    const double m = (double)logits[best];
    double sum = 1;
    for (uint32_t e = 0; e < args->n_experts; e++) {
        const double l = (double)logits[e], scale = fabs(l) > m ? fabs(l) : m;
        if (is_taken[e] || (m - l) / scale > 2 * (double)args->jitter) continue;
        sum += exp(l - m);
    }
    *share = (float)(1 / sum);
    return best;
}

/* The sum of the one or two largest of choice[0 .. n). */
static float group_worth(const float *choice, uint32_t n, uint32_t n_best)
{
    float best = choice[0], second = -INFINITY;
    for (uint32_t e = 1; e < n; e++) {
        second = choice[e] > best ? best : choice[e] > second ? choice[e] : second;
        best = choice[e] > best ? choice[e] : best;
    }
    return n_best == 1 || n == 1 ? best : best + second;
}

/* Experts of all but the best groups count as taken. */
static void leave_groups(const router_args *args, const float *choice, bool *is_taken)
{
    float worth[MOE_GROUPS_MAX];
    bool is_best[MOE_GROUPS_MAX] = {false};
    const uint32_t n = args->n_experts / args->n_groups;
    assert(args->n_groups <= MOE_GROUPS_MAX);
    assert(n * args->n_groups == args->n_experts);
    assert(args->top_groups * n >= args->top_k);
    for (uint32_t g = 0; g < args->n_groups; g++)
        worth[g] = group_worth(choice + (size_t)g * n, n, args->n_group_best);
    for (uint32_t i = 0; i < args->top_groups; i++)
        (void)take_largest(worth, args->n_groups, is_best);
    for (uint32_t e = 0; e < args->n_experts; e++)
        is_taken[e] = !is_best[e / n];
}

/* What experts are chosen by, where it is not p: a number for each, whatever the logits are. */
static void fill_choice(const router_args *args, const float *p, float *choice, bool *is_taken)
{
    for (uint32_t e = 0; e < args->n_experts; e++) {
        const float bias = args->choice_bias != NULL
                               ? load_element(args->choice_bias, args->choice_bias_type, e)
                               : 0;
        const float sum = p[e] + bias;
        choice[e] = sum > -FLT_MAX ? sum : -FLT_MAX;
    }
    if (args->n_groups > 0) leave_groups(args, choice, is_taken);
}

void router_token(const router_args *args, size_t t)
{
    float p[MOE_EXPERTS_MAX], biased[MOE_EXPERTS_MAX], chosen[MOE_TOP_K_MAX];
    bool is_taken[MOE_EXPERTS_MAX] = {false};
    const float *const logits = args->logits + t * args->n_experts;
    uint32_t *expert = args->expert + t * args->top_k;
    float *weight = args->weight + t * args->top_k;
    assert(args->n_experts <= MOE_EXPERTS_MAX);
    assert(args->top_k >= 1);
    assert(args->top_k <= args->n_experts);
    if (args->kind == ROUTER_SOFTMAX) softmax(logits, args->n_experts, p);
    if (args->kind == ROUTER_SIGMOID) sigmoid(logits, args->n_experts, p);
    const bool is_plain = args->choice_bias == NULL && args->n_groups == 0;
    if (!is_plain) fill_choice(args, p, biased, is_taken);
    double sum = 0;
    for (uint32_t i = 0; i < args->top_k; i++) {
        if (args->kind == ROUTER_SPARSEMIXER) {
            expert[i] = take_mixed(args, logits, is_taken, &chosen[i]);
        } else {
            expert[i] = take_largest(is_plain ? p : biased, args->n_experts, is_taken);
            chosen[i] = p[expert[i]];
        }
        sum += (double)chosen[i];
    }
    for (uint32_t i = 0; i < args->top_k; i++) {
        const double share = (double)chosen[i] * (double)args->scale;
        weight[i] = (float)(args->renormalise ? share / (sum + 1e-20) : share);
    }
}

void router_cpu(dev *d, const router_args *args)
{
    (void)d;
    for (uint32_t t = 0; t < args->n_tokens; t++)
        router_token(args, t);
}

/* x / (1 + exp(-alpha x)) */
static double gated(double x, double alpha)
{
    return x / (1 + exp(-alpha * x));
}

static double activation(const moe_args *args, double gate, double up)
{
    const double limit = (double)args->limit;
    if (args->activation == MOE_SILU) return gated(gate, 1) * up;
    return gated(fmin(gate, limit), (double)args->alpha) * (fmax(fmin(up, limit), -limit) + 1);
}

static double biased(const matrix *w, const matrix *bias, size_t r, const float *x)
{
    const double sum = matrix_dot(w, r, x);
    return bias->data == NULL ? sum : sum + (double)load_element(bias->data, bias->type, r);
}

void moe_cpu(dev *d, const moe_args *args)
{
    (void)d;
    const moe_plan plan = moe_plan_make(args);
    for (uint32_t a = 0; a < plan.n_active; a++) { /* rising experts: the order of the sum */
        const uint32_t e = plan.active[a];
        const moe_expert *expert = &args->expert[e];
        for (uint32_t i = plan.first[e]; i < plan.first[e + 1]; i++) {
            const size_t t = plan.pairs[i] / args->top_k;
            const float *x = args->x + t * args->dim;
            float *hidden = plan.hidden + (size_t)i * args->ffn;
            for (uint32_t r = 0; r < args->ffn; r++) {
                const double gate = biased(&expert->gate, &expert->gate_bias, r, x);
                const double up = biased(&expert->up, &expert->up_bias, r, x);
                hidden[r] = (float)activation(args, gate, up);
            }
            for (uint32_t r = 0; r < args->dim; r++) {
                float *out = args->out + t * args->dim + r;
                const double weight = (double)args->weight[plan.pairs[i]];
                *out = (float)((double)*out +
                               weight * biased(&expert->down, &expert->down_bias, r, hidden));
            }
        }
    }
}
