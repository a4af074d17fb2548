/* kernels/encode_pages.c - see encode_pages.h. Plain loops: a page is encoded once and read often. */
#include "kernels/encode_pages.h"

#include "base/check.h"
#include "kernels/code_grid.h"
#include "kernels/key_box.h"
#include "kernels/ops_cpu.h"

#include <math.h>

enum { GRID_CHANNELS = 64 }; /* of keys at a time; a group of values has no more */

static const float FP8_MAX = 448;

/* Elements [first, first + n) of a row. */
static void get_row(const uint8_t *row, dtype type, uint32_t first, uint32_t n, float *out)
{
    for (uint32_t i = 0; i < n; i++)
        out[i] = load_element(row, type, first + i);
}

/* ---- plain pages --------------------------------------------------------------------------------- */

static void copy_rows(const encode_kind *kind, const encode_run *run, uint32_t slot, uint8_t *page)
{
    const attn_layout *to = &kind->layout;
    const size_t k_bytes = (size_t)kind->k_dim * dtype_bytes(kind->type),
                 v_bytes = (size_t)kind->v_dim * dtype_bytes(kind->type);
    for (uint32_t i = 0; i < run->n_slots; i++) {
        memcpy(page + to->k_offset + (size_t)(slot + i) * to->k_stride_bytes,
               run->k + (size_t)i * run->k_stride_bytes, k_bytes);
        if (kind->has_values)
            memcpy(page + to->v_offset + (size_t)(slot + i) * to->v_stride_bytes,
                   run->v + (size_t)i * run->v_stride_bytes, v_bytes);
    }
}

/* ---- integers ------------------------------------------------------------------------------------ */

static void store_bf16(uint8_t *grid, uint32_t i, float x)
{
    const uint16_t half = bf16_from_f32(x); /* it is one: no bit is lost */
    memcpy(grid + (size_t)2 * i, &half, sizeof half);
}

/* Channels [first, first + n) of all keys: a grid for each channel. */
static void encode_keys(const encode_kind *kind, const encode_run *runs, uint32_t n_runs,
                        uint32_t first, uint8_t *page)
{
    float x[ATTN_BLOCK_SLOTS_MAX][GRID_CHANNELS];
    const attn_layout *layout = &kind->layout;
    const uint32_t bits = attn_code_bits(layout->coding), k_dim = kind->k_dim;
    const uint32_t n = (uint32_t)min_size(GRID_CHANNELS, (size_t)k_dim - first);
    uint32_t n_slots = 0;
    for (uint32_t r = 0; r < n_runs; r++) {
        for (uint32_t i = 0; i < runs[r].n_slots; i++)
            get_row(runs[r].k + (size_t)i * runs[r].k_stride_bytes, kind->type, first, n,
                    x[n_slots++]);
    }
    for (uint32_t c = 0; c < n; c++) {
        const code_grid grid = code_grid_fit_stored(&x[0][c], n_slots, GRID_CHANNELS, bits);
        store_bf16(page + layout->k_grid_offset, first + c, grid.scale);
        store_bf16(page + layout->k_grid_offset, k_dim + first + c, grid.min);
        const uint32_t place = attn_code_place(layout->coding, k_dim, first + c);
        for (uint32_t i = 0; i < n_slots; i++)
            code_put(page + layout->k_offset + (size_t)i * layout->k_stride_bytes, bits, place,
                     code_grid_find(grid, x[i][c], bits));
    }
}

/* The value of one slot: a grid for each group of channels. */
static void encode_value(const encode_kind *kind, const uint8_t *row, uint32_t slot, uint8_t *page)
{
    float x[GRID_CHANNELS];
    const attn_layout *layout = &kind->layout;
    const uint32_t bits = attn_code_bits(layout->coding), v_dim = kind->v_dim;
    const uint32_t n_groups = (v_dim + layout->v_group - 1) / layout->v_group;
    uint8_t *grids = page + layout->v_grid_offset + (size_t)slot * layout->v_grid_stride_bytes;
    uint8_t *codes = page + layout->v_offset + (size_t)slot * layout->v_stride_bytes;
    assert(layout->v_group <= GRID_CHANNELS);
    for (uint32_t g = 0; g < n_groups; g++) {
        const uint32_t first = g * layout->v_group;
        const uint32_t n = (uint32_t)min_size(layout->v_group, (size_t)v_dim - first);
        get_row(row, kind->type, first, n, x);
        const code_grid grid = code_grid_fit_stored(x, n, 1, bits);
        store_bf16(grids, g, grid.scale);
        store_bf16(grids, n_groups + g, grid.min);
        for (uint32_t c = 0; c < n; c++)
            code_put(codes, bits, attn_code_place(layout->coding, v_dim, first + c),
                     code_grid_find(grid, x[c], bits));
    }
}

static void encode_integers(const encode_kind *kind, const encode_run *runs, uint32_t n_runs,
                            uint8_t *page)
{
    uint32_t slot = 0;
    for (uint32_t c = 0; c < kind->k_dim; c += GRID_CHANNELS)
        encode_keys(kind, runs, n_runs, c, page);
    for (uint32_t r = 0; kind->has_values && r < n_runs; r++) {
        for (uint32_t i = 0; i < runs[r].n_slots; i++)
            encode_value(kind, runs[r].v + (size_t)i * runs[r].v_stride_bytes, slot++, page);
    }
}

/* ---- fp8 ----------------------------------------------------------------------------------------- */

static const uint8_t *side_row(const encode_run *run, bool is_keys, uint32_t i)
{
    return is_keys ? run->k + (size_t)i * run->k_stride_bytes
                   : run->v + (size_t)i * run->v_stride_bytes;
}

static float fit_scale(const encode_run *runs, uint32_t n_runs, bool is_keys, dtype type,
                       uint32_t dim)
{
    float max = 0, x[ATTN_CODED_DIM_MAX];
    for (uint32_t r = 0; r < n_runs; r++) {
        for (uint32_t i = 0; i < runs[r].n_slots; i++) {
            get_row(side_row(&runs[r], is_keys, i), type, 0, dim, x);
            for (uint32_t c = 0; c < dim; c++)
                max = fabsf(x[c]) > max && fabsf(x[c]) <= 1e37f ? fabsf(x[c]) : max;
        }
    }
    return max / FP8_MAX > 0 ? max / FP8_MAX : 1;
}

static void encode_fp8(const encode_kind *kind, const encode_run *runs, uint32_t n_runs,
                       bool is_keys, uint8_t *page)
{
    float x[ATTN_CODED_DIM_MAX];
    const attn_layout *layout = &kind->layout;
    const uint32_t dim = is_keys ? kind->k_dim : kind->v_dim;
    const float scale = fit_scale(runs, n_runs, is_keys, kind->type, dim);
    uint8_t *codes = page + (is_keys ? layout->k_offset : layout->v_offset);
    memcpy(page + (is_keys ? layout->k_grid_offset : layout->v_grid_offset), &scale, sizeof scale);
    for (uint32_t r = 0; r < n_runs; r++) {
        for (uint32_t i = 0; i < runs[r].n_slots; i++) {
            get_row(side_row(&runs[r], is_keys, i), kind->type, 0, dim, x);
            for (uint32_t c = 0; c < dim; c++)
                codes[c] = isnan(x[c]) ? 0 : fp8_from_f32(x[c] / scale);
            codes += is_keys ? layout->k_stride_bytes : layout->v_stride_bytes;
        }
    }
}

/* ---- pages --------------------------------------------------------------------------------------- */

void encode_page_cpu(const encode_kind *kind, const encode_run *runs, uint32_t n_runs,
                     uint8_t *page)
{
    uint32_t slot = 0;
    assert(kind->layout.coding != ATTN_KEPT);
    for (uint32_t r = 0; kind->layout.coding == ATTN_PLAIN && r < n_runs; r++) {
        copy_rows(kind, &runs[r], slot, page);
        slot += runs[r].n_slots;
    }
    if (kind->layout.coding == ATTN_PLAIN) return;
    assert(kind->k_dim <= ATTN_CODED_DIM_MAX);
    assert(kind->v_dim <= ATTN_CODED_DIM_MAX);
    memset(page, 0, kind->page_bytes); /* slots that are not there, too */
    if (kind->layout.coding != ATTN_FP8) {
        encode_integers(kind, runs, n_runs, page);
        return;
    }
    encode_fp8(kind, runs, n_runs, true, page);
    if (kind->has_values) encode_fp8(kind, runs, n_runs, false, page);
}

/* Channel c of a coded key, as attention reads it. */
static float decode_key(const encode_kind *kind, const uint8_t *page, uint32_t slot, uint32_t c)
{
    const attn_layout *layout = &kind->layout;
    const uint8_t *codes = page + layout->k_offset + (size_t)slot * layout->k_stride_bytes;
    const uint8_t *grid = page + layout->k_grid_offset;
    float of_all, of_channel[2];
    if (layout->coding == ATTN_FP8) {
        memcpy(&of_all, grid, sizeof of_all);
        return f32_from_fp8(codes[c]) * of_all;
    }
    const uint32_t bits = attn_code_bits(layout->coding);
    const uint32_t code = code_get(codes, bits, attn_code_place(layout->coding, kind->k_dim, c));
    get_row(grid, DTYPE_BF16, c, 1, &of_channel[0]);
    get_row(grid, DTYPE_BF16, kind->k_dim + c, 1, &of_channel[1]);
    return (float)code * of_channel[0] + of_channel[1];
}

/* Channel by channel, of any number: a row of one element is a key of one channel. */
static void box_coded(const encode_kind *kind, const encode_task *task, uint32_t n_slots,
                      uint8_t *box)
{
    uint8_t keys[ATTN_BLOCK_SLOTS_MAX * sizeof(float)], of_channel[2 * sizeof(float)];
    const uint32_t bytes = dtype_bytes(kind->type);
    const attn_span span = {.k = keys, .k_stride_bytes = bytes, .n_slots = n_slots};
    const key_box_args args = {.spans = &span,
                               .n_spans = 1,
                               .n_left_out = task->n_left_out,
                               .k_dim = 1,
                               .type = kind->type,
                               .is_widened = true};
    for (uint32_t c = 0; c < kind->k_dim; c++) {
        for (uint32_t i = 0; i < n_slots; i++) {
            const float key = decode_key(kind, task->page, i, c);
            store_cpu(&key, 1, kind->type, keys + (size_t)i * bytes);
        }
        key_box_write(&args, of_channel);
        memcpy(box + (size_t)c * bytes, of_channel, bytes);
        memcpy(box + ((size_t)kind->k_dim + c) * bytes, of_channel + bytes, bytes);
    }
}

static void box_plain(const encode_kind *kind, const encode_task *task, uint8_t *box)
{
    attn_span spans[2];
    for (int r = 0; r < 2; r++)
        spans[r] = (attn_span){.k = task->run[r].k,
                               .k_stride_bytes = task->run[r].k_stride_bytes,
                               .n_slots = task->run[r].n_slots};
    key_box_write(&(key_box_args){.spans = spans,
                                  .n_spans = 2,
                                  .n_left_out = task->n_left_out,
                                  .k_dim = kind->k_dim,
                                  .type = kind->type},
                  box);
}

void encode_pages_cpu(const encode_pages_args *args)
{
    for (uint32_t t = 0; t < args->n_tasks; t++) {
        const encode_task *task = &args->tasks[t];
        const encode_kind *kind = &args->kinds[task->kind];
        const uint32_t n_slots = task->run[0].n_slots + task->run[1].n_slots;
        encode_page_cpu(kind, task->run, 2, task->page);
        if (task->copy != NULL) memcpy(task->copy, task->page, kind->page_bytes);
        if (task->box == NULL) continue;
        if (kind->layout.coding == ATTN_PLAIN) {
            box_plain(kind, task, task->box);
        } else {
            box_coded(kind, task, n_slots, task->box);
        }
        if (task->copy != NULL)
            memcpy(task->copy + kind->page_bytes, task->box, encode_box_bytes(kind));
    }
}

void move_slots_cpu(const move_slots_args *args)
{
    for (uint32_t t = 0; t < args->n_tasks; t++)
        memcpy(args->tasks[t].to, args->tasks[t].from, args->bytes);
}
