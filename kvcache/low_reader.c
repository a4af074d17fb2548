/* kvcache/low_reader.c - see low_reader.h. */
#include "kvcache/low_reader.h"

#include "base/check.h"
#include "kvcache/compression/low_rank.h"

#include <math.h>

void kv_low_place(arena *a, const kv_low_sizes *sizes, kv_low_reader *out)
{
    *out = (kv_low_reader){
        .spans = arena_take(a, KV_LOW_BLOCKS, sizeof *out->spans),
        .blocks = arena_take(a, KV_LOW_BLOCKS, sizeof *out->blocks),
        .q = arena_take(a, sizes->n_rows, sizes->k_rank * sizeof *out->q),
        .up = arena_take(a, sizes->v_dim, sizeof *out->up),
        .floats = arena_take(a, sizes->n_floats, sizeof *out->floats),
        .state.max = arena_take(a, sizes->n_rows, sizeof *out->state.max),
        .state.sum = arena_take(a, sizes->n_rows, sizeof *out->state.sum),
        .state.acc = arena_take(a, sizes->n_rows, sizes->v_rank * sizeof *out->state.acc),
    };
}

static size_t n_rows(const attn_query *query)
{
    return (size_t)query->n_queries * query->group;
}

void kv_low_begin(kv_low_reader *low, const kv_head_shape *shape, const kv_head_bases *bases,
                  const attn_query *query)
{
    low->query = *query;
    low->query.q = low->q;
    low->query.q_stride = (size_t)query->group * shape->k_rank;
    low->query.k_dim = shape->k_rank;
    low->query.v_dim = query->v_dim == 0 ? 0 : shape->v_rank;
    low->v_up = bases->v_up;
    low->n_blocks = 0;
    for (uint32_t j = 0; j < query->n_queries; j++) {
        for (uint32_t g = 0; g < query->group; g++)
            kv_low_rank_down(bases->k_up, shape->k_rank, query->k_dim,
                             query->q + j * query->q_stride + (size_t)g * query->k_dim,
                             low->q + j * low->query.q_stride + (size_t)g * shape->k_rank);
    }
    attn_state_reset(&low->state, n_rows(query), low->query.v_dim);
}

void kv_low_add(kv_low_reader *low, const attn_span *span)
{
    assert(low->n_blocks < KV_LOW_BLOCKS);
    low->spans[low->n_blocks] = *span;
    low->blocks[low->n_blocks] = (attn_block){.first_span = low->n_blocks, .n_spans = 1};
    low->n_blocks++;
}

void kv_low_fold(kv_low_reader *low, const dev_ops *ops)
{
    const attn_blocks blocks = {
        .spans = low->spans, .blocks = low->blocks, .n_blocks = low->n_blocks};
    ops->attend(&low->query, &blocks, &low->state);
    low->n_blocks = 0;
}

void kv_low_add_mass(kv_low_reader *low, const dev_ops *ops, const float *lse, float *mass)
{
    const attn_blocks blocks = {
        .spans = low->spans, .blocks = low->blocks, .n_blocks = low->n_blocks};
    ops->attend_mass(
        &(attn_mass_args){.query = &low->query, .blocks = &blocks, .lse = lse, .mass = mass});
    low->n_blocks = 0;
}

/* Like a fold of one more block. */
static void merge_row(const kv_low_reader *low, size_t row, uint32_t v_dim, attn_state *into)
{
    const float max = into->max[row], own = low->state.max[row];
    if (own == -INFINITY) return; /* nothing seen: the state keeps its bits */
    const float top = max > own ? max : own;
    const float kept = expf(max - top), added = expf(own - top);
    float *acc = into->acc + row * v_dim;
    memset(low->up, 0, v_dim * sizeof *low->up);
    kv_low_rank_add_up(low->v_up, low->query.v_dim, v_dim, low->state.acc + row * low->query.v_dim,
                       low->up);
    for (uint32_t c = 0; c < v_dim; c++)
        acc[c] = acc[c] * kept + low->up[c] * added;
    into->sum[row] = into->sum[row] * kept + low->state.sum[row] * added;
    into->max[row] = top;
}

void kv_low_merge(kv_low_reader *low, const attn_query *query, attn_state *into)
{
    assert(low->n_blocks == 0);
    for (size_t row = 0; row < n_rows(query); row++)
        merge_row(low, row, query->v_dim, into);
    attn_state_reset(&low->state, n_rows(query), low->query.v_dim);
}
