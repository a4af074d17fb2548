/* kernels/rank_ops_cpu.c - see rank_ops.h. */
#include "kernels/rank_ops.h"

#include "base/check.h"
#include "kernels/attention.h"
#include "kernels/ops_cpu.h"

enum { MERGE_PARTS_MAX = 1024 };

void merge_parts_cpu(const merge_parts_args *args)
{
    const size_t n_rows = (size_t)args->n_tokens * args->n_heads;
    assert(args->n_parts <= MERGE_PARTS_MAX);
    for (size_t i = 0; i < n_rows; i++) {
        float lse[MERGE_PARTS_MAX];
        for (uint32_t r = 0; r < args->n_parts; r++)
            lse[r] = args->parts[r * args->part_stride + n_rows * args->v_dim + i];
        attn_merge(&(attn_merge_args){.o = args->parts + i * args->v_dim,
                                      .part_stride = args->part_stride,
                                      .lse = lse,
                                      .n_parts = args->n_parts,
                                      .v_dim = args->v_dim,
                                      .out = args->out + i * args->v_dim});
    }
}

void deal_choices_cpu(dev *d, const deal_choices_args *args)
{
    (void)d;
    for (size_t i = 0; i < (size_t)args->n_tokens * args->top_k; i++) {
        const uint32_t e = args->chosen[i];
        const uint16_t rank = deal_rank(&args->experts, e, args->positions[i / args->top_k]);
        args->served[i] = rank == args->rank ? e : MOE_ELSEWHERE;
    }
}
