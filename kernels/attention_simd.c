/* kernels/attention_simd.c - attention over blocks of keys, fast.
 *
 * A row is one (query, head). The slots of a block that any query sees are gathered as pointers;
 * then up to ATTN_ROWS rows share each key and each value that is loaded and converted:
 *
 *   p[slot][row]   first the score, a dot product of dots_simd.c; then exp(score - max of the
 *                  block), which is 0 where the row does not see the slot
 *   sum[row]       over slots, one after the other
 *   a[row][c]      sum of p v, one fused multiply-add after the other, lanes along c
 *
 * A masked slot adds an exact zero, in every sum. Therefore neither the slots that other rows see,
 * nor masked slots that are absent, nor the rows that share a load change a bit.
 *
 * Slots of encoded spans are in runs of their own, one per span; what differs for them is in
 * attention_coded_simd.c and attention_kept_simd.c. Plain spans that follow each other are one run. Each
 * run has its own a, and the runs of a block are added to the state one after the other. */
#ifndef KERNELS_ATTENTION_SIMD_H
#define KERNELS_ATTENTION_SIMD_H

#include "base/check.h"
#include "kernels/attention.h"
#include "kernels/dots_simd.c"
#include "kernels/simd_codes.h"
#include "kernels/simd_lots.h"

#include <math.h>

enum { ATTN_ROWS = 4 };
static_assert((int)ATTN_ROWS == (int)DIRECT_TOKENS_MAX, "one direct tile of scores");
typedef float four __attribute__((vector_size(16)));
static_assert(ATTN_BLOCK_SLOTS_MAX * ATTN_ROWS % LANES == 0, "whole vectors of scores");
static_assert(2 * ATTN_ROWS <= LANES, "one vector of fold factors");

/* Slots [first, first + n) of a set: of one encoded span, or of plain ones. */
typedef struct slot_run {
    const attn_span *coded; /* NULL: plain */
    uint32_t first, n;
} slot_run;

/* The slots of one block that at least one query may see, in order. */
typedef struct slot_set {
    const void *k[ATTN_BLOCK_SLOTS_MAX + 3]; /* fill_rows writes fours */
    const void *v[ATTN_BLOCK_SLOTS_MAX + 3];
    const void *v_grid[ATTN_BLOCK_SLOTS_MAX + 3]; /* valid in coded runs */
    slot_run runs[ATTN_BLOCK_SLOTS_MAX];
    uint32_t n_runs;
    const attn_span *next; /* to ask for while the last run, coded alike, is worked on; or NULL */
    uint32_t position[ATTN_BLOCK_SLOTS_MAX];
    float bias[ATTN_BLOCK_SLOTS_MAX];
    bool has_bias;
    uint32_t n;
    uint32_t position_min, position_max;
} slot_set;

/* Rows that are folded together. */
typedef struct row_set {
    const float *q[ATTN_ROWS];
    uint64_t visible[ATTN_ROWS]; /* bit i: sees slots[i] */
    size_t at[ATTN_ROWS];        /* index in the state */
    uint32_t n;
} row_set;

/* What one block gives to the rows. */
typedef struct partial {
    float p[ATTN_BLOCK_SLOTS_MAX * ATTN_ROWS]; /* [slot][row_width]; unused rows: 0 */
    float max[ATTN_ROWS], sum[ATTN_ROWS];
    float kept[ATTN_ROWS], added[ATTN_ROWS]; /* factors of the fold */
} partial;

/* Columns of scores of n rows: a power of two, so that lanes and rows go together. */
static inline uint32_t row_width(uint32_t n_rows)
{
    return n_rows == 3 ? 4 : n_rows;
}

static void prefetch_bytes(const void *from, size_t n_bytes)
{
    for (size_t i = 0; i < n_bytes; i += LINE_BYTES)
        _mm_prefetch((const char *)from + i, _MM_HINT_T0);
}

#include "kernels/attention_values_simd.c"

#include "kernels/attention_coded_simd.c"

#include "kernels/attention_kept_simd.c"

/* The run that the next slot of `span` belongs to. */
static slot_run *run_of(slot_set *s, const attn_span *span)
{
    const attn_span *coded = span->coding != ATTN_PLAIN ? span : NULL;
    if (s->n_runs == 0 || s->runs[s->n_runs - 1].coded != coded)
        s->runs[s->n_runs++] = (slot_run){.coded = coded, .first = s->n};
    return &s->runs[s->n_runs - 1];
}

/* out[i] = first + i stride for i < n, and up to three more. */
static void fill_rows(const void **out, const void *first, uint32_t stride_bytes, uint32_t n)
{
    typedef uint64_t fours __attribute__((vector_size(32)));
    const uint64_t at = (uintptr_t)first, stride = stride_bytes;
    fours rows = {at, at + stride, at + 2 * stride, at + 3 * stride};
    for (uint32_t i = 0; i < n; i += 4, rows += 4 * stride)
        memcpy(out + i, &rows, sizeof rows);
}

/* A span whose slots are all seen by some query, as most of a long context are: straight loops. False
 * if it is not one; nothing is gathered then. */
static bool gather_whole(const attn_query *query, const attn_span *span, slot_set *out)
{
    const uint32_t newest = query->positions[query->n_queries - 1], oldest = query->positions[0];
    const uint32_t n = span->n_slots, n_before = out->n, first = span->first_position;
    const uint64_t all = n < 64 ? (UINT64_C(1) << n) - 1 : UINT64_MAX;
    uint32_t *position = out->position + n_before, min = UINT32_MAX, max = 0;
    if ((span->live & all) != all) return false;
    for (uint32_t i = 0; i < n; i++)
        position[i] = span->positions != NULL ? span->positions[i] : first + i;
    for (uint32_t i = 0; i < n; i++) {
        min = position[i] < min ? position[i] : min;
        max = position[i] > max ? position[i] : max;
    }
    if (max > newest) return false;
    if (query->window != 0 && min < oldest && oldest - min >= query->window) return false;
    fill_rows(out->k + n_before, span->k, span->k_stride_bytes, n);
    fill_rows(out->v + n_before, span->v, span->v_stride_bytes, n);
    if (span->coding != ATTN_PLAIN)
        fill_rows(out->v_grid + n_before, span->v_grid, span->v_grid_stride_bytes, n);
    for (uint32_t i = 0; i < n; i++)
        out->bias[n_before + i] = span->bias != NULL ? span->bias[i] : 0;
    out->has_bias |= span->bias != NULL;
    out->position_min = min < out->position_min ? min : out->position_min;
    out->position_max = max > out->position_max ? max : out->position_max;
    run_of(out, span)->n += n;
    out->n += n;
    return true;
}

static void gather_span(const attn_query *query, const attn_span *span, slot_set *out)
{
    const uint32_t newest = query->positions[query->n_queries - 1];
    const uint32_t oldest = query->positions[0];
    uint64_t live = span->live;
    if (gather_whole(query, span, out)) return;
    if (span->n_slots < 64) live &= (UINT64_C(1) << span->n_slots) - 1;
    for (; live != 0; live &= live - 1) {
        const uint32_t i = (uint32_t)__builtin_ctzll(live);
        const uint32_t at = span->positions != NULL ? span->positions[i] : span->first_position + i;
        if (at > newest) continue;
        if (query->window != 0 && at < oldest && oldest - at >= query->window) continue;
        run_of(out, span)->n++;
        const uint32_t n = out->n++;
        out->k[n] = (const char *)span->k + (size_t)i * span->k_stride_bytes;
        out->v[n] = (const char *)span->v + (size_t)i * span->v_stride_bytes;
        if (span->coding != ATTN_PLAIN)
            out->v_grid[n] = (const char *)span->v_grid + (size_t)i * span->v_grid_stride_bytes;
        out->bias[n] = span->bias != NULL ? span->bias[i] : 0;
        out->has_bias |= span->bias != NULL;
        out->position[n] = at;
        if (at < out->position_min) out->position_min = at;
        if (at > out->position_max) out->position_max = at;
    }
}

static void gather_block(const attn_query *query, const attn_blocks *blocks,
                         const attn_block *block, slot_set *out)
{
    uint32_t n_slots = 0;
    out->n = out->n_runs = 0;
    out->has_bias = false;
    out->next = NULL;
    out->position_min = UINT32_MAX;
    out->position_max = 0;
    for (uint32_t s = 0; s < block->n_spans; s++) {
        const attn_span *span = &blocks->spans[block->first_span + s];
        n_slots += span->n_slots;
        assert(n_slots <= ATTN_BLOCK_SLOTS_MAX);
        gather_span(query, span, out);
    }
}

static uint64_t all_slots(const slot_set *s)
{
    return s->n < 64 ? (UINT64_C(1) << s->n) - 1 : UINT64_MAX;
}

static uint64_t visible_slots(const slot_set *s, uint32_t position, uint32_t window)
{
    const bool all_past = s->position_max <= position;
    if (all_past && (window == 0 || position - s->position_min < window)) return all_slots(s);
    uint64_t visible = 0;
    for (uint32_t i = 0; i < s->n; i++) {
        const uint32_t at = s->position[i];
        const bool sees = at <= position && (window == 0 || position - at < window);
        visible |= (uint64_t)sees << i;
    }
    return visible;
}

/* From 3 columns to 4, the new one zero; backwards, since it is done in place. */
static void spread_columns(float *p, uint32_t n_slots)
{
    for (uint32_t i = n_slots; i-- > 0;) {
        const float row[4] = {p[i * 3], p[i * 3 + 1], p[i * 3 + 2], 0};
        memcpy(p + (size_t)i * 4, row, sizeof row);
    }
}

/* Products of q and k of all runs, each in its way. */
static void score_rows(const attn_query *query, const slot_set *s, const row_set *r, partial *part)
{
    for (uint32_t i = 0; i < s->n_runs; i++) {
        const slot_run *run = &s->runs[i];
        float *out = part->p + (size_t)run->first * r->n;
        if (run->coded != NULL) {
            if (run->coded->coding == ATTN_KEPT) score_kept(query, s, run, r, out);
            if (run->coded->coding != ATTN_KEPT) score_coded(query, s, run, r, out);
            continue;
        }
        const dots d = {.w = s->k + run->first,
                        .x = r->q,
                        .out = out,
                        .ahead = s->next != NULL ? s->next->k : s->k[run->first],
                        .n_rows = run->n,
                        .n_x = r->n,
                        .cols = query->k_dim,
                        .type = query->type};
        dots_direct(&d);
    }
    if (row_width(r->n) != r->n) spread_columns(part->p, s->n);
}

/* score = scale * product + bias, -inf where masked. */
static void mask_rows(const attn_query *query, const slot_set *s, const row_set *r, partial *part)
{
    const vf scale = vf_set1(query->scale);
    const uint32_t width = row_width(r->n), n = s->n * width;
    uint64_t everywhere = all_slots(s);
    for (uint32_t i = n; i % LANES != 0; i++)
        part->p[i] = -INFINITY;
    for (uint32_t i = 0; i < n; i += LANES)
        vf_store(part->p + i, vf_mul(vf_load(part->p + i), scale));
    for (uint32_t i = 0; i < n && s->has_bias; i++)
        part->p[i] += s->bias[i / width];
    for (uint32_t j = 0; j < r->n; j++)
        everywhere &= r->visible[j];
    for (uint64_t some = all_slots(s) & ~everywhere; some != 0; some &= some - 1) {
        const uint32_t i = (uint32_t)__builtin_ctzll(some);
        for (uint32_t j = 0; j < r->n; j++) {
            if ((r->visible[j] >> i & 1) == 0) part->p[i * width + j] = -INFINITY;
        }
    }
}

/* The largest score of each row; which lane a score is in does not matter to a maximum. */
static void find_max(const slot_set *s, uint32_t width, partial *part)
{
    float lane[LANES];
    vf max = vf_set1(-INFINITY);
    for (uint32_t i = 0; i < s->n * width; i += LANES)
        max = vf_max(max, vf_load(part->p + i));
    vf_store(lane, max);
    for (uint32_t j = 0; j < width; j++) {
        part->max[j] = lane[j];
        for (uint32_t i = j + width; i < LANES; i += width)
            part->max[j] = lane[i] > part->max[j] ? lane[i] : part->max[j];
    }
}

/* p = exp(score - max), and sums of W columns, a constant: slot after slot. The chain of sums takes
 * longer than the exponentials, which go on beside it. */
static ALWAYS_INLINE void weigh_columns(const slot_set *s, vf max, partial *part, const uint32_t W)
{
    float sum[ATTN_ROWS] = {0};
    const uint32_t n = s->n * W;
    for (uint32_t i = 0; i < n; i += LANES) {
        float *p = part->p + i;
        vf_store(p, vf_exp(vf_sub(vf_load(p), max)));
        UNROLL
        for (uint32_t l = 0; l < LANES; l++) /* after the last slot: exp(-inf) */
            sum[l % W] += p[l];
    }
    for (uint32_t j = 0; j < W; j++)
        part->sum[j] = sum[j];
}

/* p and its sums. A row whose block is all -inf gets p = 0 and adds nothing. */
static void weigh_rows(const slot_set *s, uint32_t width, partial *part)
{
    float lane[LANES];
    for (uint32_t i = 0; i < LANES; i++) {
        const float max = part->max[i & (width - 1)];
        lane[i] = max == -INFINITY ? 0 : max;
    }
    const vf max = vf_load(lane);
    switch (width) {
    case 1: weigh_columns(s, max, part, 1); break;
    case 2: weigh_columns(s, max, part, 2); break;
    case 4: weigh_columns(s, max, part, 4); break;
    default: assert(false);
    }
}

/* m' = max(m, m_b), l' = l exp(m - m') + l_b exp(m_b - m'); the factors are kept for acc. */
static void fold_sums(const row_set *r, attn_state *state, partial *part)
{
    float exponent[LANES] = {0};
    for (uint32_t j = 0; j < r->n; j++) {
        const float max = state->max[r->at[j]];
        const float top = max > part->max[j] ? max : part->max[j];
        if (top == -INFINITY) continue;
        exponent[j] = max - top;
        exponent[ATTN_ROWS + j] = part->max[j] - top;
        state->max[r->at[j]] = top;
    }
    vf_store(exponent, vf_exp(vf_load(exponent)));
    for (uint32_t j = 0; j < r->n; j++) {
        part->kept[j] = exponent[j];
        part->added[j] = exponent[ATTN_ROWS + j];
        float *sum = &state->sum[r->at[j]];
        *sum = *sum * part->kept[j] + part->sum[j] * part->added[j];
    }
}

static void fold_rows(const attn_query *query, const slot_set *s, const row_set *r,
                      attn_state *state)
{
    partial part;
    score_rows(query, s, r, &part);
    mask_rows(query, s, r, &part);
    find_max(s, row_width(r->n), &part);
    weigh_rows(s, row_width(r->n), &part);
    fold_sums(r, state, &part);
    float *acc[ATTN_ROWS];
    for (uint32_t j = 0; j < r->n; j++)
        acc[j] = state->acc + r->at[j] * query->v_dim;
    for (uint32_t i = 0; i < s->n_runs; i++) {
        const attn_span *coded = s->runs[i].coded;
        if (coded == NULL) {
            fold_plain(query, s, &s->runs[i], r->n, &part, acc);
        } else if (coded->coding == ATTN_KEPT) {
            fold_kept(query, s, &s->runs[i], r->n, &part, acc);
        } else {
            fold_coded(query, s, &s->runs[i], r->n, &part, acc);
        }
        for (uint32_t j = 0; j < r->n; j++)
            part.kept[j] = 1; /* the state has met this block */
    }
}

static void attend_block(const attn_query *query, const slot_set *s, attn_state *state)
{
    row_set r = {.n = 0};
    for (uint32_t j = 0; j < query->n_queries; j++) {
        const uint64_t visible = visible_slots(s, query->positions[j], query->window);
        for (uint32_t g = 0; g < query->group && visible != 0; g++) {
            r.q[r.n] = query->q + j * query->q_stride + (size_t)g * query->k_dim;
            r.visible[r.n] = visible;
            r.at[r.n++] = (size_t)j * query->group + g;
            if (r.n < ATTN_ROWS) continue;
            fold_rows(query, s, &r, state);
            r.n = 0;
        }
    }
    if (r.n > 0) fold_rows(query, s, &r, state);
}

/* Asks for a block while the one before it, `s`, is worked on. Pages lie anywhere and are a few KiB
 * long, so the hardware sees each of their parts as something new. What follows its like is left to
 * the loops over the last run, line by line: asked for all at once they would wait for each
 * other. */
static void prefetch_block(const attn_query *query, const attn_blocks *blocks, uint32_t b,
                           slot_set *s)
{
    if (b >= blocks->n_blocks) return;
    const attn_block *block = &blocks->blocks[b];
    const slot_run *last = s->n_runs > 0 ? &s->runs[s->n_runs - 1] : NULL;
    const attn_coding coding = last == NULL          ? ATTN_KEPT
                               : last->coded == NULL ? ATTN_PLAIN
                                                     : last->coded->coding;
    for (uint32_t i = 0; i < block->n_spans; i++) {
        const attn_span *span = &blocks->spans[block->first_span + i];
        const size_t n_slots = span->n_slots;
        if (span->positions != NULL)
            prefetch_bytes(span->positions, n_slots * sizeof *span->positions);
        if (coding == span->coding && span->coding != ATTN_KEPT) {
            s->next = span;
            continue;
        }
        prefetch_bytes(span->k, n_slots * span->k_stride_bytes);
        prefetch_bytes(span->v, n_slots * span->v_stride_bytes);
        if (span->coding == ATTN_PLAIN || span->coding == ATTN_FP8) continue;
        prefetch_bytes(span->k_grid, (size_t)2 * query->k_dim * sizeof(uint16_t));
        prefetch_bytes(span->v_grid, n_slots * span->v_grid_stride_bytes);
    }
}

static void attend_simd(const attn_query *query, const attn_blocks *blocks, attn_state *state)
{
    assert(query->type != DTYPE_F16);
    if (query->n_queries == 0) return;
    slot_set s;
    for (uint32_t b = 0; b < blocks->n_blocks; b++) {
        gather_block(query, blocks, &blocks->blocks[b], &s);
        prefetch_block(query, blocks, b + 1, &s);
        if (s.n > 0) attend_block(query, &s, state);
    }
}

#include "kernels/attention_mass_simd.c"

#endif
