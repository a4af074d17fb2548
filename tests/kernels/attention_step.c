#include "tests/kernels/attention_step.h"

#include <math.h>
#include <stdlib.h>

enum { FIRST_LIST = 1, SPARE_LISTS = 2 };

/* ---- memory that is in both places ---- */

static void *twin_alloc(step *s, size_t bytes)
{
    ck_assert_uint_lt(s->n_twins, GPU_BUFFERS_MAX);
    s->twins[s->n_twins] = (step_twin){.host = test_alloc(bytes), .bytes = bytes};
    memset(s->twins[s->n_twins].host, 0xff, bytes); /* NaN, of every type */
    return s->twins[s->n_twins++].host;
}

/* Where a byte of the host's memory is on the device: what its buffer holds goes there at first sight. */
static const void *there(step *s, const void *at)
{
    const uint8_t *p = at;
    if (p == NULL) return NULL;
    for (uint32_t i = 0; i < s->n_twins; i++) {
        step_twin *t = &s->twins[i];
        if (p < t->host || p >= t->host + t->bytes) continue;
        if (t->there == NULL) t->there = gpu_put(&s->g, t->host, t->bytes);
        return t->there + (p - t->host);
    }
    ck_abort_msg("a pointer from nowhere");
}

static void put_element(uint8_t *row, dtype type, size_t i, float x)
{
    const uint16_t half = bf16_from_f32(x);
    if (type == DTYPE_F32) memcpy(row + 4 * i, &x, 4);
    if (type == DTYPE_BF16) memcpy(row + 2 * i, &half, 2);
}

/* ---- shapes ---- */

static uint32_t k_rank(const step_shape *shape)
{
    return (shape->k_dim + 1) / 2;
}

static uint32_t v_rank(const step_shape *shape)
{
    return (shape->v_dim + 2) / 3;
}

/* `dim`: of coefficients their rank. */
static uint32_t row_bytes(const step_shape *shape, attn_coding coding, uint32_t dim)
{
    if (coding == ATTN_PLAIN || coding == ATTN_KEPT || coding == ATTN_LOW)
        return (dim + shape->pad) * dtype_bytes(shape->type);
    return (dim * attn_code_bits(coding) + 7) / 8;
}

static uint32_t n_groups(const step_shape *shape)
{
    return (shape->v_dim + shape->v_group - 1) / shape->v_group;
}

/* Bytes of a grid, and between those of values' slots. */
static uint32_t grid_bytes(attn_coding coding, uint32_t dim, uint32_t n_pairs)
{
    if (coding == ATTN_PLAIN || coding == ATTN_LOW) return 0;
    if (coding == ATTN_FP8) return 4;
    return coding == ATTN_KEPT ? (dim + 7) / 8 : 4 * n_pairs;
}

static bool is_integer(attn_coding coding)
{
    return coding == ATTN_INT8 || coding == ATTN_INT4 || coding == ATTN_INT2;
}

/* | k grid | k | v grid | v |, parts at multiples of 4, of 16 where nothing pads. */
static attn_layout make_layout(const step_shape *shape, attn_coding coding, size_t *page_bytes)
{
    const uint32_t unit = shape->pad > 0 ? 4 : 16, n = shape->block_tokens;
    attn_layout out = {.coding = coding, .v_group = shape->is_shared ? 0 : shape->v_group};
    size_t at = grid_bytes(coding, shape->k_dim, shape->k_dim);
    const bool is_low = coding == ATTN_LOW;
    out.k_stride_bytes = row_bytes(shape, coding, is_low ? k_rank(shape) : shape->k_dim);
    out.v_stride_bytes = row_bytes(shape, coding, is_low ? v_rank(shape) : shape->v_dim);
    out.k_offset = at = (at + unit - 1) / unit * unit;
    if (shape->is_shared && coding != ATTN_KEPT && !is_low) { /* grids as well are the keys' */
        out.v_offset = out.k_offset;
        out.v_stride_bytes = out.k_stride_bytes;
        *page_bytes = at + (size_t)n * out.k_stride_bytes;
        return out;
    }
    out.v_grid_offset = at = (at + (size_t)n * out.k_stride_bytes + 3) / 4 * 4;
    const uint32_t v_grid_bytes = grid_bytes(coding, shape->v_dim, n_groups(shape));
    out.v_grid_stride_bytes = is_integer(coding) ? v_grid_bytes : 0;
    at += (size_t)v_grid_bytes * (is_integer(coding) ? n : 1);
    out.v_offset = at = (at + unit - 1) / unit * unit;
    *page_bytes = at + (size_t)n * out.v_stride_bytes;
    if (!is_low) return out;
    out.basis_type = shape->pad > 0 ? DTYPE_F32 : shape->type;
    out.k_rank = k_rank(shape);
    out.v_rank = v_rank(shape);
    out.k_basis_offset = 4; /* something else comes first */
    out.v_basis_offset = out.k_basis_offset + (size_t)4 * out.k_rank * shape->k_dim;
    return out;
}

static attn_strip make_strip(const step_shape *shape)
{
    const uint32_t each = dtype_bytes(shape->type), front = 16; /* another layer's */
    attn_strip strip = {.k_offset = front,
                        .k_head_bytes = shape->k_dim * each,
                        .v_head_bytes = (shape->is_shared ? shape->k_dim : shape->v_dim) * each};
    const size_t k_end = front + (size_t)shape->n_kv_heads * strip.k_head_bytes;
    strip.v_offset = shape->is_shared ? front : k_end;
    strip.slot_bytes = strip.v_offset + (size_t)shape->n_kv_heads * strip.v_head_bytes;
    strip.slot_bytes += (size_t)shape->pad * each;
    return strip;
}

/* Rows are shorter than 1, so that entries are about as large as plain ones. */
static uint8_t *make_basis(step *s)
{
    const attn_layout *l = &s->layouts[1];
    const size_t n_k = (size_t)l->k_rank * s->shape.k_dim, n_v = (size_t)l->v_rank * s->shape.v_dim;
    uint8_t *basis = twin_alloc(s, l->v_basis_offset + n_v * dtype_bytes(l->basis_type));
    const float k_size = 2 / sqrtf((float)l->k_rank), v_size = 2 / sqrtf((float)l->v_rank);
    for (size_t i = 0; i < n_k; i++)
        put_element(basis + l->k_basis_offset, l->basis_type, i,
                    k_size * random_signed(&s->g.random));
    for (size_t i = 0; i < n_v; i++)
        put_element(basis + l->v_basis_offset, l->basis_type, i,
                    v_size * random_signed(&s->g.random));
    return basis;
}

void step_open(step *s, const step_shape *shape)
{
    *s = (step){.g = gpu_open(0), .shape = *shape};
    s->layouts[0] = make_layout(shape, ATTN_PLAIN, &s->page_bytes[0]);
    s->layouts[1] = make_layout(shape, shape->coding, &s->page_bytes[1]);
    s->args = (attend_pages_args){.n_kv_heads = shape->n_kv_heads,
                                  .group = shape->group,
                                  .k_dim = shape->k_dim,
                                  .v_dim = shape->v_dim,
                                  .window = shape->window,
                                  .scale = 2 / sqrtf((float)shape->k_dim),
                                  .type = shape->type,
                                  .block_tokens = shape->block_tokens,
                                  .n_sinks = shape->n_sinks,
                                  .n_ring_slots = shape->n_ring_blocks * shape->block_tokens,
                                  .first_list = FIRST_LIST,
                                  .n_lists = shape->n_kv_heads + SPARE_LISTS,
                                  .strip = make_strip(shape),
                                  .chosen_stride = 1 + STEP_CHOSEN_MAX,
                                  .has_low = shape->coding == ATTN_LOW};
    for (uint32_t i = 0; i < STEP_BASES && s->args.has_low; i++)
        s->bases[i] = make_basis(s);
    if (!shape->has_sink_logit) return;
    s->sink_logit = twin_alloc(s, step_heads(s) * sizeof(float));
    for (uint32_t h = 0; h < step_heads(s); h++)
        s->sink_logit[h] = 3 * random_signed(&s->g.random);
    s->args.sink_logit = s->sink_logit;
}

void step_close(step *s)
{
    for (uint32_t i = 0; i < s->n_twins; i++)
        free(s->twins[i].host);
    gpu_close(&s->g);
}

/* ---- sequences ---- */

static void fill_codes(step *s, attn_coding coding, uint8_t *row, uint32_t dim, uint32_t n_bytes)
{
    const dtype type = s->shape.type;
    const bool is_plain = coding == ATTN_KEPT || coding == ATTN_LOW;
    for (uint32_t c = 0; is_plain && c < dim; c++)
        put_element(row, type, c, random_signed(&s->g.random));
    for (uint32_t i = 0; !is_plain && i < n_bytes; i++) {
        row[i] = (uint8_t)random_below(&s->g.random, 256);
        if (coding == ATTN_FP8 && (row[i] & 0x7f) == 0x7f) row[i] = 0;
    }
}

/* Elements lie in about [-1, 1]. */
static void fill_grid(step *s, attn_coding coding, uint8_t *grid, uint32_t dim, uint32_t n_pairs)
{
    const float one = 1.0f / 448, levels = (float)(1u << attn_code_bits(coding));
    if (coding == ATTN_FP8) memcpy(grid, &one, sizeof one);
    for (uint32_t i = 0; coding == ATTN_KEPT && i < (dim + 7) / 8; i++)
        grid[i] = (uint8_t)random_below(&s->g.random, 256);
    for (uint32_t i = 0; is_integer(coding) && i < 2 * n_pairs; i++) {
        const float x = random_signed(&s->g.random);
        put_element(grid, DTYPE_BF16, i, i < n_pairs ? (1 + x) / levels : x - 0.5f);
    }
}

static void fill_coded_page(step *s, uint8_t *data, const attn_page *page)
{
    const step_shape *shape = &s->shape;
    const attn_layout *l = &s->layouts[1];
    fill_grid(s, l->coding, data + l->k_grid_offset, shape->k_dim, shape->k_dim);
    const bool has_values = l->v_offset != l->k_offset, is_low = l->coding == ATTN_LOW;
    if (!is_integer(l->coding) && has_values)
        fill_grid(s, l->coding, data + l->v_grid_offset, shape->v_dim, 0);
    for (uint32_t i = 0; i < page->n_slots; i++) {
        if ((page->live >> i & 1) == 0) continue;
        uint8_t *grid = data + l->v_grid_offset + (size_t)i * l->v_grid_stride_bytes;
        fill_codes(s, l->coding, data + l->k_offset + (size_t)i * l->k_stride_bytes,
                   is_low ? l->k_rank : shape->k_dim, l->k_stride_bytes);
        if (!has_values) continue;
        fill_codes(s, l->coding, data + l->v_offset + (size_t)i * l->v_stride_bytes,
                   is_low ? l->v_rank : shape->v_dim, l->v_stride_bytes);
        if (is_integer(l->coding)) fill_grid(s, l->coding, grid, shape->v_dim, n_groups(shape));
    }
}

static void copy_plain_page(step *s, uint8_t *data, const attn_page *page,
                            const step_sequence *sequence, uint32_t kv_head)
{
    const attn_layout *l = &s->layouts[0];
    const attn_strip *strip = &s->args.strip;
    for (uint32_t i = 0; i < page->n_slots; i++) {
        const uint8_t *token = sequence->tokens + (page->first_position + i) * strip->slot_bytes;
        if ((page->live >> i & 1) == 0) continue;
        memcpy(data + l->k_offset + (size_t)i * l->k_stride_bytes,
               token + strip->k_offset + (size_t)kv_head * strip->k_head_bytes,
               strip->k_head_bytes);
        memcpy(data + l->v_offset + (size_t)i * l->v_stride_bytes,
               token + strip->v_offset + (size_t)kv_head * strip->v_head_bytes,
               strip->v_head_bytes);
    }
}

static attn_page make_page(step *s, const step_sequence *sequence, uint32_t block, uint32_t kv_head)
{
    const step_shape *shape = &s->shape;
    test_random *random = &s->g.random;
    const uint32_t begin = block * shape->block_tokens, end = begin + shape->block_tokens;
    const bool is_coded = shape->coding != ATTN_PLAIN && random_below(random, 4) > 0;
    attn_page page = {.first_position = begin, .layout = is_coded};
    if (end <= shape->n_sinks || (shape->has_dead && random_below(random, 8) == 0)) return page;
    page.n_slots = (uint16_t)shape->block_tokens;
    page.live = UINT64_MAX >> (64 - page.n_slots);
    if (begin < shape->n_sinks) page.live &= UINT64_MAX << (shape->n_sinks - begin);
    for (uint32_t i = 0; shape->has_dead && i < page.n_slots; i++)
        page.live &= ~((uint64_t)(random_below(random, 3) == 0) << i);
    uint8_t *data = twin_alloc(s, s->page_bytes[is_coded]);
    page.data = data;
    if (is_coded) page.basis = s->bases[random_below(random, STEP_BASES)]; /* or NULL */
    if (is_coded) fill_coded_page(s, data, &page);
    if (!is_coded) copy_plain_page(s, data, &page, sequence, kv_head);
    uint32_t *positions = NULL;
    float *bias = NULL;
    if (shape->has_positions) page.positions = positions = twin_alloc(s, page.n_slots * 4u);
    if (shape->has_bias) page.bias = bias = twin_alloc(s, page.n_slots * sizeof *bias);
    for (uint32_t i = 0; i < page.n_slots; i++) {
        if (positions != NULL) positions[i] = (begin + i) * 3 / 2; /* some behind the query */
        if (bias != NULL) bias[i] = random_signed(random);
    }
    return page;
}

const step_sequence *step_add_sequence(step *s, uint32_t n_tokens)
{
    ck_assert_uint_lt(s->n_sequences, STEP_SEQUENCES_MAX);
    const step_shape *shape = &s->shape;
    step_sequence *out = &s->sequences[s->n_sequences++];
    const size_t n_q = (size_t)step_heads(s) * shape->k_dim;
    const size_t n_elements = s->args.strip.slot_bytes / dtype_bytes(shape->type);
    const uint32_t n_blocks = n_tokens / shape->block_tokens;
    out->n_tokens = n_tokens;
    out->tokens = twin_alloc(s, n_tokens * s->args.strip.slot_bytes);
    out->q = twin_alloc(s, n_tokens * n_q * sizeof *out->q);
    for (size_t i = 0; i < n_tokens * n_elements; i++)
        put_element(out->tokens, shape->type, i, random_signed(&s->g.random));
    for (size_t i = 0; i < n_tokens * n_q; i++)
        out->q[i] = 2 * random_signed(&s->g.random);
    out->pages = twin_alloc(s, (size_t)n_blocks * s->args.n_lists * sizeof *out->pages);
    for (uint32_t b = 0; b < n_blocks; b++) {
        for (uint32_t h = 0; h < shape->n_kv_heads; h++)
            out->pages[(size_t)b * s->args.n_lists + FIRST_LIST + h] = make_page(s, out, b, h);
    }
    return out;
}

step_row step_make_row(step *s, const step_sequence *sequence, uint32_t length, uint32_t n_tokens)
{
    const uint32_t n_whole = length / s->shape.block_tokens, n_ring = s->args.n_ring_slots;
    const uint32_t least =
        length > n_ring ? (length - n_ring + s->shape.block_tokens - 1) / s->shape.block_tokens : 0;
    ck_assert_uint_le(length + n_tokens, sequence->n_tokens);
    return (step_row){.sequence = sequence,
                      .length = length,
                      .n_blocks = least + random_below(&s->g.random, n_whole - least + 1),
                      .n_tokens = n_tokens};
}

void step_choose(step *s, step_row *row, uint32_t one_in)
{
    const uint32_t stride = s->args.chosen_stride;
    uint32_t *chosen = twin_alloc(s, s->shape.n_kv_heads * stride * sizeof *chosen);
    ck_assert_uint_eq(row->n_tokens, 1);
    ck_assert_uint_le(row->n_blocks, STEP_CHOSEN_MAX);
    for (uint32_t h = 0; h < s->shape.n_kv_heads; h++) {
        uint32_t n = 0;
        for (uint32_t b = 0; b < row->n_blocks; b++) {
            if (random_below(&s->g.random, one_in) == 0) chosen[h * stride + ++n] = b;
        }
        chosen[h * stride] = n;
    }
    row->chosen = chosen;
}

/* ---- steps ---- */

/* The ring of a row: tokens behind its pages, and sinks. */
static uint8_t *make_ring(step *s, const step_row *row)
{
    const size_t slot_bytes = s->args.strip.slot_bytes;
    const uint32_t n_ring = s->args.n_ring_slots;
    uint8_t *ring = twin_alloc(s, (n_ring + s->shape.n_sinks) * slot_bytes);
    for (uint32_t p = row->n_blocks * s->shape.block_tokens; p < row->length; p++)
        memcpy(ring + p % n_ring * slot_bytes, row->sequence->tokens + p * slot_bytes, slot_bytes);
    for (uint32_t p = 0; p < s->shape.n_sinks && row->n_blocks > 0; p++)
        memcpy(ring + (n_ring + p) * slot_bytes, row->sequence->tokens + p * slot_bytes,
               slot_bytes);
    return ring;
}

/* Its pages alone, so that a touch behind them is one behind the buffer. */
static attn_page *copy_pages(step *s, const step_row *row)
{
    const size_t bytes = (size_t)row->n_blocks * s->args.n_lists * sizeof(attn_page);
    attn_page *pages = twin_alloc(s, bytes);
    memcpy(pages, row->sequence->pages, bytes);
    return pages;
}

/* The host's arguments, all but tasks. Returns the number of tokens. */
static uint32_t lay_out(step *s, const step_row *rows, uint32_t n_rows, attend_pages_args *out)
{
    const size_t slot_bytes = s->args.strip.slot_bytes,
                 n_q = (size_t)step_heads(s) * s->shape.k_dim;
    uint32_t n_tokens = 0;
    for (uint32_t r = 0; r < n_rows; r++)
        n_tokens += rows[r].n_tokens;
    uint8_t *staging = twin_alloc(s, n_tokens * slot_bytes);
    attn_layout *layouts = twin_alloc(s, sizeof s->layouts);
    attn_row *all = twin_alloc(s, n_rows * sizeof *all);
    *out = s->args;
    out->q_stride = n_q + s->shape.pad;
    float *q = twin_alloc(s, n_tokens * out->q_stride * sizeof *q);
    memcpy(layouts, s->layouts, sizeof s->layouts);
    n_tokens = 0;
    for (uint32_t r = 0; r < n_rows; r++) {
        const step_row *row = &rows[r];
        all[r] = (attn_row){.pages = copy_pages(s, row),
                            .ring = make_ring(s, row),
                            .n_blocks = row->n_blocks,
                            .length = row->length,
                            .first_token = n_tokens,
                            .n_tokens = row->n_tokens,
                            .has_pages_only = row->has_pages_only,
                            .choice = r,
                            .chosen = row->chosen};
        for (uint32_t j = 0; j < row->n_tokens; j++, n_tokens++) {
            memcpy(staging + n_tokens * slot_bytes,
                   row->sequence->tokens + (row->length + j) * slot_bytes, slot_bytes);
            memcpy(q + n_tokens * out->q_stride, row->sequence->q + (row->length + j) * n_q,
                   n_q * sizeof *q);
        }
    }
    out->staging = staging;
    out->layouts = layouts;
    out->rows = all;
    out->q = q;
    return n_tokens;
}

static const void *page_pointers_there(step *s, const attn_row *row)
{
    const size_t n = (size_t)row->n_blocks * s->args.n_lists;
    attn_page *pages = twin_alloc(s, n * sizeof *pages);
    for (size_t i = 0; i < n; i++) {
        pages[i] = row->pages[i];
        if (i % s->args.n_lists < FIRST_LIST || i % s->args.n_lists == s->args.n_lists - 1)
            continue;
        pages[i].data = there(s, pages[i].data);
        pages[i].basis = there(s, pages[i].basis);
        pages[i].positions = there(s, pages[i].positions);
        pages[i].bias = there(s, pages[i].bias);
    }
    return n > 0 ? there(s, pages) : NULL;
}

/* The device's arguments. */
static attend_pages_args move_there(step *s, const attend_pages_args *host, uint32_t n_rows)
{
    attend_pages_args out = *host;
    attn_row *rows = twin_alloc(s, n_rows * sizeof *rows);
    for (uint32_t r = 0; r < n_rows; r++) {
        rows[r] = host->rows[r];
        rows[r].pages = page_pointers_there(s, &host->rows[r]);
        rows[r].ring = there(s, rows[r].ring);
        rows[r].chosen = (uint32_t *)(uintptr_t)there(s, rows[r].chosen);
    }
    out.rows = there(s, rows);
    out.layouts = there(s, host->layouts);
    out.q = there(s, host->q);
    out.staging = there(s, host->staging);
    out.sink_logit = there(s, host->sink_logit);
    out.tasks = host->n_tasks > 0 ? there(s, host->tasks) : NULL;
    out.merges = host->n_merges > 0 ? there(s, host->merges) : NULL;
    return out;
}

void step_place(step *s, const step_row *rows, uint32_t n_rows, attend_pages_args *host,
                attend_pages_args *device)
{
    (void)lay_out(s, rows, n_rows, host);
    *device = move_there(s, host, n_rows);
}

/* Takes out what is between rows of outputs, which must be as it was. */
static float *pack(const float *out, size_t n_tokens, size_t stride, size_t n)
{
    float *packed = test_alloc(n_tokens * n * sizeof *packed);
    for (size_t t = 0; t < n_tokens; t++) {
        memcpy(packed + t * n, out + t * stride, n * sizeof *packed);
        for (size_t i = n; i < stride; i++)
            ck_assert(isnan(out[t * stride + i]));
    }
    return packed;
}

/* What rows that choose have read; of others nothing is written. */
static void check_masses(step *s, const step_row *rows, uint32_t n_rows, const attn_mass *got,
                         const attn_mass *want)
{
    for (uint32_t r = 0; r < n_rows; r++) {
        for (uint32_t h = 0; h < step_heads(s); h++) {
            const attn_mass *x = &got[r * step_heads(s) + h], *y = &want[r * step_heads(s) + h];
            if (rows[r].chosen == NULL) {
                ck_assert(isnan(x->max) && isnan(y->max));
            } else if (y->max == -INFINITY) {
                ck_assert(x->max == -INFINITY && x->sum == 0 && y->sum == 0);
            } else {
                assert_near(&x->max, &y->max, 1, (tolerance){1e-5, 1e-5}, s->g.random.seed);
                assert_near(&x->sum, &y->sum, 1, (tolerance){1e-4, 1e-4}, s->g.random.seed);
            }
        }
    }
}

static void check_lses(const step *s, const float *got, const float *want, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (want[i] == -INFINITY) {
            ck_assert(got[i] == -INFINITY);
        } else {
            assert_near(&got[i], &want[i], 1, (tolerance){1e-5, 1e-5}, s->g.random.seed);
        }
    }
}

/* The lse of the device's call; freed. */
static void check_lse(step *s, const attend_pages_args *host, const float *there, size_t n)
{
    float *got = gpu_get_floats(&s->g, there, n);
    check_lses(s, got, host->lse, n);
    free(got);
    free(host->lse);
}

float *step_run_tasks(step *s, const step_row *rows, uint32_t n_rows, const step_tasks *tasks,
                      float **want)
{
    attend_pages_args host;
    const uint32_t n_tokens = lay_out(s, rows, n_rows, &host);
    const size_t n = (size_t)step_heads(s) * s->shape.v_dim, stride = n + s->shape.pad;
    const size_t n_partials =
        (size_t)tasks->n_partials * step_heads(s) * ((size_t)s->shape.v_dim + 2);
    attn_task *all = twin_alloc(s, tasks->n_tasks * sizeof *all);
    attn_merge_task *merges = twin_alloc(s, tasks->n_merges * sizeof *merges);
    memcpy(all, tasks->tasks, tasks->n_tasks * sizeof *all);
    memcpy(merges, tasks->merges, tasks->n_merges * sizeof *merges);
    host.tasks = all;
    host.merges = merges;
    host.n_tasks = tasks->n_tasks;
    host.n_merges = tasks->n_merges;
    host.n_queries_max = tasks->n_queries_max;
    host.out_stride = stride;
    attend_pages_args device = move_there(s, &host, n_rows);
    device.out = gpu_poisoned(&s->g, n_tokens * stride);
    device.partials = gpu_poisoned(&s->g, n_partials);
    const size_t n_masses = (size_t)n_rows * step_heads(s);
    device.masses = (attn_mass *)(void *)gpu_poisoned(&s->g, 2 * n_masses);
    if (want != NULL) device.lse = gpu_poisoned(&s->g, (size_t)n_tokens * step_heads(s));
    s->g.ops->attend_pages(s->g.d, &device);
    float *got = gpu_get_floats(&s->g, device.out, n_tokens * stride);
    float *packed = pack(got, n_tokens, stride, n);
    free(got);
    if (want == NULL) return packed;
    host.out = poisoned_floats(n_tokens * stride);
    host.partials = poisoned_floats(n_partials);
    host.masses = (attn_mass *)(void *)poisoned_floats(2 * n_masses);
    host.lse = poisoned_floats((size_t)n_tokens * step_heads(s));
    attend_pages_cpu(&host);
    check_lse(s, &host, device.lse, (size_t)n_tokens * step_heads(s));
    float *masses = gpu_get_floats(&s->g, &device.masses->max, 2 * n_masses);
    check_masses(s, rows, n_rows, (const attn_mass *)(void *)masses, host.masses);
    free(masses);
    free(host.masses);
    *want = pack(host.out, n_tokens, stride, n);
    free(host.out);
    free(host.partials);
    return packed;
}

/* A token's splits, in tasks of some of them, and their merge. */
static void cut_splits(step *s, step_tasks *out, const attn_task *token, uint32_t at, uint32_t most)
{
    out->merges[out->n_merges++] = (attn_merge_task){.token = at,
                                                     .row = token->row,
                                                     .first_partial = out->n_partials,
                                                     .n_partials = token->n_splits};
    for (uint32_t split = 0; split < token->n_splits;) {
        const uint32_t left = token->n_splits - split, n = 1 + random_below(&s->g.random, most);
        attn_task *task = &out->tasks[out->n_tasks++];
        *task = *token;
        task->first_split = split;
        task->n_splits = n < left ? n : left;
        task->partial = out->n_partials;
        out->n_partials += task->n_splits;
        split += task->n_splits;
    }
}

static void cut_row(step *s, const step_row *row, uint32_t r, uint32_t first_token, step_cut cut,
                    step_tasks *out)
{
    for (uint32_t j = 0; j < row->n_tokens;) {
        const uint32_t left = row->n_tokens - j;
        const uint32_t n = cut == CUT_ROWS     ? left
                           : cut == CUT_RANDOM ? 1 + random_below(&s->g.random, 12)
                                               : 1;
        attn_task task = {.row = r, .first_query = j, .partial = ATTN_NO_PARTIAL};
        task.n_queries = n < left ? n : left;
        j += task.n_queries;
        task.n_splits = attn_n_splits(row->length + j - 1, s->shape.block_tokens);
        const bool is_split = cut == CUT_SPLITS || (cut == CUT_RANDOM && task.n_queries == 1 &&
                                                    random_below(&s->g.random, 3) > 0);
        if (is_split) {
            cut_splits(s, out, &task, first_token + task.first_query, cut == CUT_SPLITS ? 1 : 3);
        } else {
            out->tasks[out->n_tasks++] = task;
        }
        if (task.n_queries > out->n_queries_max) out->n_queries_max = task.n_queries;
    }
}

float *step_run(step *s, const step_row *rows, uint32_t n_rows, step_cut cut, float **want)
{
    step_tasks *tasks = test_alloc(sizeof *tasks);
    uint32_t n_tokens = 0;
    memset(tasks, 0, sizeof *tasks);
    for (uint32_t r = 0; r < n_rows; r++) {
        cut_row(s, &rows[r], r, n_tokens, cut, tasks);
        n_tokens += rows[r].n_tokens;
    }
    if (cut == CUT_RANDOM) tasks->n_queries_max += random_below(&s->g.random, 9);
    float *got = step_run_tasks(s, rows, n_rows, tasks, want);
    free(tasks);
    return got;
}
