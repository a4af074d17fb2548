/* kernels/attention_cpu.c - attention over blocks: the definition.
 *
 * One (query, head) at a time, so that nothing can depend on the others. */
#include "base/check.h"
#include "kernels/ops_cpu.h"

#include <math.h>

/* Does a query at `position` see slot i of the span? Window w: keys at positions > position - w. */
static bool is_visible(const attn_span *span, uint32_t i, uint32_t position, uint32_t window)
{
    const uint32_t at = span->positions != NULL ? span->positions[i] : span->first_position + i;
    if ((span->live >> i & 1) == 0 || at > position) return false;
    return window == 0 || position - at < window;
}

/* The code at a place of a row; fp8 as the number that it means. */
static double load_code(const char *row, attn_coding coding, uint32_t place)
{
    const uint32_t bits = attn_code_bits(coding), at = place * bits;
    const uint8_t byte = (uint8_t)row[at / 8];
    if (coding == ATTN_FP8) return (double)f32_from_fp8(byte);
    return (double)(byte >> at % 8 & ((1u << bits) - 1));
}

/* The element at a place of a row of codes whose grid has n pairs, this one under pair `at`. */
static double load_coded(const char *row, attn_coding coding, uint32_t place, const void *grid,
                         uint32_t n, uint32_t at)
{
    const double code = load_code(row, coding, place);
    if (coding == ATTN_FP8) return code * (double)load_element(grid, DTYPE_F32, 0);
    const double scale = (double)load_element(grid, DTYPE_BF16, at);
    return code * scale + (double)load_element(grid, DTYPE_BF16, (size_t)n + at);
}

/* Element c of a row of kept channels. */
static double load_kept(const char *row, dtype type, uint32_t c, const void *grid)
{
    uint32_t n_before = 0;
    if (!attn_is_kept(grid, c)) return 0;
    for (uint32_t i = 0; i < c; i++)
        n_before += attn_is_kept(grid, i);
    return (double)load_element(row, type, n_before);
}

static double key_element(const attn_query *query, const attn_span *span, uint32_t i, uint32_t c)
{
    const char *k = (const char *)span->k + (size_t)i * span->k_stride_bytes;
    if (span->coding == ATTN_PLAIN) return (double)load_element(k, query->type, c);
    if (span->coding == ATTN_KEPT) return load_kept(k, query->type, c, span->k_grid);
    const uint32_t place = attn_code_place(span->coding, query->k_dim, c);
    return load_coded(k, span->coding, place, span->k_grid, query->k_dim, c);
}

static double value_element(const attn_query *query, const attn_span *span, uint32_t i, uint32_t c)
{
    const char *v = (const char *)span->v + (size_t)i * span->v_stride_bytes;
    if (span->coding == ATTN_PLAIN) return (double)load_element(v, query->type, c);
    if (span->coding == ATTN_KEPT) return load_kept(v, query->type, c, span->v_grid);
    const char *grid = (const char *)span->v_grid + (size_t)i * span->v_grid_stride_bytes;
    if (span->v_group == 0) return key_element(query, span, i, c);
    const uint32_t n_groups = (query->v_dim + span->v_group - 1) / span->v_group;
    const uint32_t place = attn_code_place(span->coding, query->v_dim, c);
    return load_coded(v, span->coding, place, grid, n_groups, c / span->v_group);
}

static double score(const attn_query *query, const attn_span *span, uint32_t i, const float *q)
{
    double sum = 0;
    for (uint32_t c = 0; c < query->k_dim; c++)
        sum += (double)q[c] * key_element(query, span, i, c);
    return sum * (double)query->scale + (span->bias != NULL ? (double)span->bias[i] : 0);
}

/* One row of the state, as the fold of attention.h needs it. */
typedef struct row {
    const float *q;
    uint32_t position;
    float *max, *sum, *acc;
} row;

/* Adds exp(s - max) and exp(s - max) v of every visible slot; `score_of` has the scores. */
static void fold_block(const attn_query *query, const attn_blocks *blocks, const attn_block *block,
                       row *r)
{
    double scores[ATTN_BLOCK_SLOTS_MAX], top = -INFINITY;
    uint32_t n = 0;
    for (uint32_t s = 0; s < block->n_spans; s++) {
        const attn_span *span = &blocks->spans[block->first_span + s];
        assert(n + span->n_slots <= ATTN_BLOCK_SLOTS_MAX);
        for (uint32_t i = 0; i < span->n_slots; i++, n++) {
            const bool sees = is_visible(span, i, r->position, query->window);
            scores[n] = sees ? score(query, span, i, r->q) : -INFINITY;
            if (scores[n] > top) top = scores[n];
        }
    }
    if (top == -INFINITY) return; /* nothing visible: the state keeps its bits */
    const double max = (double)*r->max > top ? (double)*r->max : top;
    const double kept = exp((double)*r->max - max), added = exp(top - max);
    double sum = 0;
    for (uint32_t i = 0; i < n; i++)
        sum += exp(scores[i] - top);
    for (uint32_t c = 0; c < query->v_dim; c++) {
        double acc = 0;
        n = 0;
        for (uint32_t s = 0; s < block->n_spans; s++) {
            const attn_span *span = &blocks->spans[block->first_span + s];
            for (uint32_t i = 0; i < span->n_slots; i++, n++) {
                if (scores[n] == -INFINITY) continue; /* an evicted value may be anything */
                acc += exp(scores[n] - top) * value_element(query, span, i, c);
            }
        }
        r->acc[c] = (float)((double)r->acc[c] * kept + acc * added);
    }
    *r->sum = (float)((double)*r->sum * kept + sum * added);
    *r->max = (float)max;
}

void attend_cpu(const attn_query *query, const attn_blocks *blocks, attn_state *state)
{
    assert(query->type != DTYPE_F16);
    for (uint32_t j = 0; j < query->n_queries; j++) {
        for (uint32_t g = 0; g < query->group; g++) {
            const size_t at = (size_t)j * query->group + g;
            row r = {.q = query->q + j * query->q_stride + (size_t)g * query->k_dim,
                     .position = query->positions[j],
                     .max = state->max + at,
                     .sum = state->sum + at,
                     .acc = state->acc + at * query->v_dim};
            for (uint32_t b = 0; b < blocks->n_blocks; b++)
                fold_block(query, blocks, &blocks->blocks[b], &r);
        }
    }
}

/* What one query adds to the slots of a span. */
static void add_mass(const attn_mass_args *args, const attn_span *span, uint32_t j)
{
    const attn_query *query = args->query;
    for (uint32_t i = 0; i < span->n_slots; i++) {
        double sum = 0;
        if (!is_visible(span, i, query->positions[j], query->window)) continue;
        for (uint32_t g = 0; g < query->group; g++) {
            const double lse = (double)args->lse[(size_t)j * query->group + g];
            const float *q = query->q + j * query->q_stride + (size_t)g * query->k_dim;
            if (lse > -INFINITY) sum += exp(score(query, span, i, q) - lse);
        }
        const uint32_t at = span->positions != NULL ? span->positions[i] : span->first_position + i;
        args->mass[at] += (float)(sum / query->group);
    }
}

void attend_mass_cpu(const attn_mass_args *args)
{
    const attn_blocks *blocks = args->blocks;
    for (uint32_t b = 0; b < blocks->n_blocks; b++) {
        const attn_block *block = &blocks->blocks[b];
        for (uint32_t s = 0; s < block->n_spans; s++) {
            for (uint32_t j = 0; j < args->query->n_queries; j++)
                add_mass(args, &blocks->spans[block->first_span + s], j);
        }
    }
}

/* Logarithms of the largest shares that one query gives to the slots of a span. */
static void raise_shares(const attn_max_args *args, const attn_span *span, uint32_t j)
{
    const attn_query *query = args->query;
    for (uint32_t i = 0; i < span->n_slots; i++) {
        if (!is_visible(span, i, query->positions[j], query->window)) continue;
        const uint32_t at = span->positions != NULL ? span->positions[i] : span->first_position + i;
        for (uint32_t g = 0; g < query->group; g++) {
            const double lse = (double)args->lse[(size_t)j * query->group + g];
            const float *q = query->q + j * query->q_stride + (size_t)g * query->k_dim;
            if (!(lse > -INFINITY)) continue;
            const float share = (float)(score(query, span, i, q) - lse);
            if (share > args->most[at]) args->most[at] = share;
        }
    }
}

void attend_max_cpu(const attn_max_args *args)
{
    const attn_blocks *blocks = args->blocks;
    for (uint32_t b = 0; b < blocks->n_blocks; b++) {
        const attn_block *block = &blocks->blocks[b];
        for (uint32_t s = 0; s < block->n_spans; s++) {
            for (uint32_t j = 0; j < args->query->n_queries; j++)
                raise_shares(args, &blocks->spans[block->first_span + s], j);
        }
    }
}
