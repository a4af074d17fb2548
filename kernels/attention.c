/* kernels/attention.c - what all tables share: the ends of attention and the merge.
 *
 * -inf stands for "no key". exp(-inf - M) is 0 for a finite M, but -inf - -inf is NaN, so the case
 * M = -inf is taken out first, everywhere. Weights and their sum are double: they are few, and a
 * merge of one part then returns that part's bits. */
#include "kernels/attention.h"

#include <math.h>

void attn_state_reset(attn_state *state, size_t n_rows, uint32_t v_dim)
{
    for (size_t row = 0; row < n_rows; row++) {
        state->max[row] = -INFINITY;
        state->sum[row] = 0;
    }
    memset(state->acc, 0, n_rows * v_dim * sizeof *state->acc);
}

/* o = acc exp(m - M) / L, lse = M + ln L, with L = sum exp(m - M) + exp(sink - M). */
static float finish_row(const attn_query *query, const attn_state *state, size_t row,
                        const float *sink_logit, float *o)
{
    const float *acc = state->acc + row * query->v_dim;
    const double max = state->max[row];
    const double sink = sink_logit != NULL ? (double)*sink_logit : -INFINITY;
    const double top = max > sink ? max : sink;
    if (top == -INFINITY) {
        memset(o, 0, query->v_dim * sizeof *o);
        return -INFINITY;
    }
    const double weight = exp(max - top);
    const double sum = (double)state->sum[row] * weight + exp(sink - top);
    const float factor = (float)(weight / sum);
    for (uint32_t i = 0; i < query->v_dim; i++)
        o[i] = acc[i] * factor;
    return (float)(top + log(sum));
}

void attn_finish(const attn_query *query, const attn_state *state, const attn_result *result)
{
    for (uint32_t j = 0; j < query->n_queries; j++) {
        for (uint32_t g = 0; g < query->group; g++) {
            const size_t row = (size_t)j * query->group + g;
            float *o = result->o + j * result->o_stride + (size_t)g * query->v_dim;
            const float *sink = result->sink_logit != NULL ? result->sink_logit + g : NULL;
            const float lse = finish_row(query, state, row, sink, o);
            if (result->lse != NULL) result->lse[row] = lse;
        }
    }
}

void attn_merge(const attn_merge_args *args)
{
    double top = -INFINITY, sum = 0;
    for (uint32_t r = 0; r < args->n_parts; r++) {
        if ((double)args->lse[r] > top) top = (double)args->lse[r];
    }
    memset(args->out, 0, args->v_dim * sizeof *args->out);
    if (args->out_lse != NULL) *args->out_lse = -INFINITY;
    if (top == -INFINITY) return;
    for (uint32_t r = 0; r < args->n_parts; r++)
        sum += exp((double)args->lse[r] - top);
    for (uint32_t r = 0; r < args->n_parts; r++) {
        const float weight = (float)(exp((double)args->lse[r] - top) / sum);
        const float *o = args->o + r * args->part_stride;
        if (weight == 0) continue; /* an empty part's o is never read */
        for (uint32_t i = 0; i < args->v_dim; i++)
            args->out[i] += weight * o[i];
    }
    if (args->out_lse != NULL) *args->out_lse = (float)(top + log(sum));
}
