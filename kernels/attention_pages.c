/* kernels/attention_pages.c - see attention_pages.h. */
#include "kernels/attention_pages.h"

#include "base/check.h"
#include "kernels/ops_cpu.h"

#include <math.h>

/* One query head of a row, and the running state of its splits. */
typedef struct head_query {
    const attend_pages_args *args;
    const attn_row *row;
    uint32_t kv_head, head;
    uint32_t position, token;
    const uint32_t *chosen; /* entries; NULL: all */
    uint32_t n_listed;      /* of them */
} head_query;

static float *partial_at(const attend_pages_args *args, uint32_t partial, uint32_t head)
{
    const size_t n_heads = (size_t)args->n_kv_heads * args->group;
    return args->partials + (partial * n_heads + head) * ((size_t)args->v_dim + 2);
}

/* Positions [first, + n_slots) at a slot of a ring or of staging. */
static attn_span strip_span(const head_query *q, const uint8_t *base, uint32_t slot, uint32_t first,
                            uint32_t n_slots)
{
    const attn_strip *strip = &q->args->strip;
    const uint8_t *at = base + slot * strip->slot_bytes;
    assert(strip->slot_bytes <= UINT32_MAX);
    return (attn_span){
        .k = at + strip->k_offset + (size_t)q->kv_head * strip->k_head_bytes,
        .v = at + strip->v_offset + (size_t)q->kv_head * strip->v_head_bytes,
        .k_stride_bytes = (uint32_t)strip->slot_bytes,
        .v_stride_bytes = (uint32_t)strip->slot_bytes,
        .n_slots = n_slots,
        .first_position = first,
        .live = UINT64_MAX >> (ATTN_BLOCK_SLOTS_MAX - n_slots),
    };
}

/* Positions [first, end) of one block, in ring and staging: up to two spans. */
static uint32_t recent_spans(const head_query *q, uint32_t first, uint32_t end, attn_span *out)
{
    const attn_row *row = q->row;
    uint32_t n = 0;
    if (first < end && first < row->length) {
        const uint32_t n_slots = (uint32_t)min_size(end, row->length) - first;
        out[n++] = strip_span(q, row->ring, first % q->args->n_ring_slots, first, n_slots);
        first += n_slots;
    }
    if (first < end)
        out[n++] = strip_span(q, q->args->staging, row->first_token + (first - row->length), first,
                              end - first);
    return n;
}

static const attn_page *page_at(const head_query *q, uint32_t block)
{
    const attend_pages_args *args = q->args;
    const size_t at = q->chosen != NULL ? q->chosen[block] : block;
    return &q->row->pages[at * args->n_lists + args->first_list + q->kv_head];
}

static uint32_t page_spans(const head_query *q, uint32_t block, attn_span *out)
{
    const attend_pages_args *args = q->args;
    const attn_page *page = page_at(q, block);
    if (page->live == 0) return 0;
    const attn_layout *layout = &args->layouts[page->layout];
    *out = (attn_span){
        .k = page->data + layout->k_offset,
        .v = page->data + layout->v_offset,
        .k_stride_bytes = layout->k_stride_bytes,
        .v_stride_bytes = layout->v_stride_bytes,
        .n_slots = page->n_slots,
        .first_position = page->first_position,
        .positions = page->positions,
        .live = page->live,
        .bias = page->bias,
        .coding = layout->coding == ATTN_LOW ? ATTN_PLAIN : layout->coding,
        .v_group = layout->v_group,
        .v_grid_stride_bytes = layout->v_grid_stride_bytes,
        .k_grid = page->data + layout->k_grid_offset,
        .v_grid = page->data + layout->v_grid_offset,
    };
    return 1;
}

static uint32_t sink_spans(const head_query *q, attn_span *out)
{
    const attend_pages_args *args = q->args;
    const uint32_t end = (uint32_t)min_size(args->n_sinks, (size_t)q->position + 1);
    if (args->n_sinks == 0 || q->row->has_pages_only) return 0;
    if (q->row->n_blocks == 0) return recent_spans(q, 0, end, out);
    *out = strip_span(q, q->row->ring, args->n_ring_slots, 0, args->n_sinks);
    return 1;
}

/* How many blocks there are, the query's own included. */
static uint32_t n_blocks_of(const head_query *q)
{
    return q->n_listed + q->position / q->args->block_tokens + 1 - q->row->n_blocks;
}

/* Sinks keep their slots in block 0, and are not live there: a page has them, too. */
static uint32_t block_spans(const head_query *q, uint32_t block, attn_span *out)
{
    const attend_pages_args *args = q->args;
    if (block < q->n_listed) return page_spans(q, block, out);
    if (q->row->has_pages_only) return 0;
    const uint32_t begin = (q->row->n_blocks + block - q->n_listed) * args->block_tokens;
    const uint32_t end = (uint32_t)min_size(begin + args->block_tokens, (size_t)q->position + 1);
    const uint32_t n = recent_spans(q, begin, end, out);
    for (uint32_t s = 0; s < n; s++) {
        for (uint32_t i = 0; i < out[s].n_slots && out[s].first_position + i < args->n_sinks; i++)
            out[s].live &= ~((uint64_t)1 << i);
    }
    return n;
}

static attn_query query_of(const head_query *q)
{
    const attend_pages_args *args = q->args;
    return (attn_query){.q = args->q + q->token * args->q_stride + (size_t)q->head * args->k_dim,
                        .positions = &q->position,
                        .n_queries = 1,
                        .group = 1,
                        .k_dim = args->k_dim,
                        .v_dim = args->v_dim,
                        .window = args->window,
                        .scale = args->scale,
                        .type = args->type};
}

static void fold_spans(const attn_query *query, const attn_span *spans, uint32_t n_spans,
                       attn_state *state)
{
    const attn_block block = {.n_spans = n_spans};
    const attn_blocks blocks = {.spans = spans, .blocks = &block, .n_blocks = 1};
    if (n_spans > 0) attend_cpu(query, &blocks, state);
}

/* total = total folded with part. An empty one changes no bit. */
static void fold_part(const attn_state *part, attn_state *total, uint32_t v_dim)
{
    if (*part->max == -INFINITY) return;
    const float max = fmaxf(*total->max, *part->max);
    const float kept = expf(*total->max - max), added = expf(*part->max - max);
    *total->sum = *total->sum * kept + *part->sum * added;
    *total->max = max;
    for (uint32_t c = 0; c < v_dim; c++)
        total->acc[c] = total->acc[c] * kept + part->acc[c] * added;
}

/* A page of coefficients: q in their space, a state of its own, and back. */
static void fold_low(const head_query *q, const attn_page *page, const attn_span *span,
                     attn_state *state)
{
    float in[ATTN_PAGES_DIM_MAX], max, sum, acc[ATTN_PAGES_DIM_MAX], back[ATTN_PAGES_DIM_MAX];
    const attn_layout *layout = &q->args->layouts[page->layout];
    const uint32_t k_dim = q->args->k_dim, v_dim = q->args->v_dim;
    const attn_query full = query_of(q);
    attn_query query = full;
    attn_state low = {&max, &sum, acc};
    query.q = in;
    query.k_dim = layout->k_rank;
    query.v_dim = layout->v_rank;
    for (uint32_t j = 0; j < layout->k_rank; j++) {
        const uint8_t *up = page->basis + layout->k_basis_offset;
        double dot = 0;
        for (uint32_t c = 0; c < k_dim; c++)
            dot += (double)full.q[c] *
                   (double)load_element(up, layout->basis_type, (size_t)j * k_dim + c);
        in[j] = (float)dot;
    }
    attn_state_reset(&low, 1, layout->v_rank);
    fold_spans(&query, span, 1, &low);
    for (uint32_t c = 0; c < v_dim; c++) {
        const uint8_t *up = page->basis + layout->v_basis_offset;
        double value = 0;
        for (uint32_t j = 0; j < layout->v_rank; j++)
            value += (double)acc[j] *
                     (double)load_element(up, layout->basis_type, (size_t)j * v_dim + c);
        back[c] = (float)value;
    }
    fold_part(&(attn_state){&max, &sum, back}, state, v_dim);
}

/* The partial result of one split. */
static void fold_split(const head_query *q, uint32_t split, attn_state *state)
{
    attn_span spans[2];
    const attn_query query = query_of(q);
    attn_state_reset(state, 1, q->args->v_dim);
    if (split == 0) fold_spans(&query, spans, sink_spans(q, spans), state);
    for (uint32_t i = 0; i < ATTN_SPLIT_BLOCKS; i++) {
        const uint32_t block = split * ATTN_SPLIT_BLOCKS + i;
        if (block >= n_blocks_of(q)) break;
        const uint32_t n = block_spans(q, block, spans);
        const attn_page *page = block < q->n_listed ? page_at(q, block) : NULL;
        if (n > 0 && page != NULL && q->args->layouts[page->layout].coding == ATTN_LOW) {
            fold_low(q, page, spans, state);
        } else {
            fold_spans(&query, spans, n, state);
        }
    }
}

static void finish(const attend_pages_args *args, const attn_state *state, const attn_row *row,
                   uint32_t token, uint32_t head)
{
    const size_t n_heads = (size_t)args->n_kv_heads * args->group;
    if (row->chosen != NULL)
        args->masses[row->choice * n_heads + head] = (attn_mass){*state->max, *state->sum};
    const bool has_sink = args->sink_logit != NULL && !row->has_pages_only;
    const attn_query query = {.n_queries = 1, .group = 1, .v_dim = args->v_dim};
    const attn_result result = {
        .o = args->out + token * args->out_stride + (size_t)head * args->v_dim,
        .o_stride = args->out_stride,
        .lse = args->lse != NULL ? args->lse + token * n_heads + head : NULL,
        .sink_logit = has_sink ? args->sink_logit + head : NULL};
    attn_finish(&query, state, &result);
}

static void run_head(const head_query *q, const attn_task *task)
{
    const attend_pages_args *args = q->args;
    float max, sum, acc[ATTN_PAGES_DIM_MAX], total_max, total_sum, total_acc[ATTN_PAGES_DIM_MAX];
    attn_state total = {&total_max, &total_sum, total_acc};
    attn_state_reset(&total, 1, args->v_dim);
    for (uint32_t i = 0; i < task->n_splits; i++) {
        attn_state part = {&max, &sum, acc};
        if (task->partial != ATTN_NO_PARTIAL) {
            float *at = partial_at(args, task->partial + i, q->head);
            part = (attn_state){at, at + 1, at + 2};
        }
        fold_split(q, task->first_split + i, &part);
        fold_part(&part, &total, args->v_dim);
    }
    if (task->partial == ATTN_NO_PARTIAL) finish(args, &total, q->row, q->token, q->head);
}

static void run_merge(const attend_pages_args *args, const attn_merge_task *merge, uint32_t head)
{
    float max, sum, acc[ATTN_PAGES_DIM_MAX];
    attn_state total = {&max, &sum, acc};
    attn_state_reset(&total, 1, args->v_dim);
    for (uint32_t i = 0; i < merge->n_partials; i++) {
        float *at = partial_at(args, merge->first_partial + i, head);
        fold_part(&(attn_state){at, at + 1, at + 2}, &total, args->v_dim);
    }
    finish(args, &total, &args->rows[merge->row], merge->token, head);
}

static head_query make_query(const attend_pages_args *args, const attn_row *row, uint32_t head,
                             uint32_t query)
{
    const uint32_t kv_head = head / args->group;
    head_query q = {.args = args,
                    .row = row,
                    .kv_head = kv_head,
                    .head = head,
                    .position = row->length + query,
                    .token = row->first_token + query,
                    .n_listed = row->n_blocks};
    if (row->chosen == NULL) return q;
    const uint32_t *list = row->chosen + (size_t)kv_head * args->chosen_stride;
    assert(list[0] <= row->n_blocks);
    q.n_listed = list[0];
    q.chosen = list + 1;
    return q;
}

void attend_pages_cpu(const attend_pages_args *args)
{
    assert(args->k_dim <= ATTN_PAGES_DIM_MAX);
    assert(args->v_dim <= ATTN_PAGES_DIM_MAX);
    assert(args->type != DTYPE_F16);
    for (uint32_t t = 0; t < args->n_tasks; t++) {
        const attn_task *task = &args->tasks[t];
        assert(task->partial == ATTN_NO_PARTIAL || task->n_queries == 1);
        const attn_row *row = &args->rows[task->row];
        for (uint32_t j = task->first_query; j < task->first_query + task->n_queries; j++) {
            for (uint32_t head = 0; head < args->n_kv_heads * args->group; head++) {
                const head_query q = make_query(args, row, head, j);
                run_head(&q, task);
            }
        }
    }
    for (uint32_t m = 0; m < args->n_merges; m++) {
        for (uint32_t head = 0; head < args->n_kv_heads * args->group; head++)
            run_merge(args, &args->merges[m], head);
    }
}

void put_rows_cpu(const put_rows_args *args)
{
    for (uint32_t r = 0; r < args->n_rows; r++)
        store_cpu(args->x + (size_t)r * args->n, args->n, args->type,
                  args->to + r * args->stride_bytes);
}
