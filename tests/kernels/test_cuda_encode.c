/* tests/kernels/test_cuda_encode.c - pages encoded and slots moved on CUDA: every byte is that of the definition, of
 * pages, boxes and copies, and what is none of theirs stays as it was. */
#include "tests/kernels/cuda_fixture.h"

#include "base/check.h"

#include <math.h>
#include <stdlib.h>

#define N_OF(array) (sizeof(array) / sizeof(array)[0])

enum { N_TASKS = 4, POISON = 0xa5 };

typedef struct encode_shape {
    dtype type;
    attn_coding coding;
    uint32_t k_dim, v_dim, v_group; /* v_dim 0: values are in their keys */
    uint32_t n_slots_max;
    uint32_t pad; /* elements behind a row: alignment */
} encode_shape;

typedef struct pages {
    gpu g;
    encode_shape shape;
    encode_kind kind;
    uint32_t n_slots[N_TASKS];
    uint8_t *rows, *rows_there; /* [N_TASKS][n_slots_max][row_bytes]: a key, then a value */
    uint8_t *out, *out_there;   /* [N_TASKS][out_bytes]: page, copy, box */
    encode_task tasks[N_TASKS], there[N_TASKS];
    size_t row_bytes, out_bytes;
} pages;

/* ---- a problem ----------------------------------------------------------------------------------- */

static uint32_t add_part(encode_kind *kind, size_t bytes)
{
    const uint32_t at = kind->page_bytes;
    kind->page_bytes += (uint32_t)round_up(bytes, 4);
    return at;
}

static encode_kind kind_of(const encode_shape *s)
{
    encode_kind kind = {.k_dim = s->k_dim,
                        .v_dim = s->v_dim > 0 ? s->v_dim : s->k_dim / 2,
                        .has_values = s->v_dim > 0,
                        .type = s->type};
    attn_layout *l = &kind.layout;
    const uint32_t bits = attn_code_bits(s->coding), n = s->n_slots_max;
    const bool is_plain = s->coding == ATTN_PLAIN, is_fp8 = s->coding == ATTN_FP8;
    l->coding = s->coding;
    l->v_group = s->v_group;
    l->k_stride_bytes = is_plain ? s->k_dim * dtype_bytes(s->type) : (s->k_dim * bits + 7) / 8;
    l->v_stride_bytes = is_plain ? s->v_dim * dtype_bytes(s->type) : (s->v_dim * bits + 7) / 8;
    if (!is_plain) l->k_grid_offset = add_part(&kind, is_fp8 ? 4 : (size_t)s->k_dim * 4);
    l->k_offset = add_part(&kind, (size_t)n * l->k_stride_bytes);
    if (s->v_dim > 0) {
        if (!is_plain && !is_fp8)
            l->v_grid_stride_bytes = (s->v_dim + s->v_group - 1) / s->v_group * 4;
        if (!is_plain)
            l->v_grid_offset = add_part(&kind, is_fp8 ? 4 : n * (size_t)l->v_grid_stride_bytes);
        l->v_offset = add_part(&kind, (size_t)n * l->v_stride_bytes);
    }
    kind.page_bytes = (uint32_t)round_up(kind.page_bytes + 1, ENCODE_ALIGN);
    return kind;
}

/* Mostly numbers of one size, and some of what grids must cope with. */
static float random_entry(test_random *r, uint32_t channel)
{
    const uint32_t what = random_below(r, 64);
    if (what == 0) return 0;
    if (what == 1) return -0.0f;
    if (what == 2) return 1e-40f * random_signed(r);
    if (channel % 16 == 3) return 40 + random_signed(r); /* far from 0 */
    if (channel % 16 == 7) return 1 / 3.0f;              /* all alike */
    if (channel % 16 == 11 && what < 8) return what < 4 ? NAN : what < 6 ? INFINITY : -3e38f;
    return random_signed(r);
}

static void make_rows(pages *p)
{
    const uint32_t bytes = dtype_bytes(p->shape.type);
    const size_t n = N_TASKS * (size_t)p->shape.n_slots_max;
    p->row_bytes = (size_t)(p->shape.k_dim + p->shape.v_dim + p->shape.pad) * bytes;
    p->rows = test_alloc(n * p->row_bytes);
    for (size_t i = 0; i < n * (p->row_bytes / bytes); i++) {
        const float x = random_entry(&p->g.random, (uint32_t)(i % (p->row_bytes / bytes)));
        const uint16_t half = bf16_from_f32(x);
        if (bytes == 4) memcpy(p->rows + 4 * i, &x, 4);
        if (bytes == 2) memcpy(p->rows + 2 * i, &half, 2);
    }
    p->rows_there = gpu_put(&p->g, p->rows, n * p->row_bytes);
}

/* Slots [first, + n) of a task's. */
static encode_run run_of(const pages *p, const uint8_t *rows, uint32_t task, uint32_t first,
                         uint32_t n)
{
    const uint8_t *at = rows + ((size_t)task * p->shape.n_slots_max + first) * p->row_bytes;
    return (encode_run){.k = at,
                        .v = at + (size_t)p->shape.k_dim * dtype_bytes(p->shape.type),
                        .k_stride_bytes = (uint32_t)p->row_bytes,
                        .v_stride_bytes = (uint32_t)p->row_bytes,
                        .n_slots = n};
}

/* Task 0 has a full page in one run, 1 one slot; the others are cut at random, in the other order in memory. */
static encode_task make_task(const pages *p, uint32_t t, uint32_t cut, const uint8_t *rows,
                             uint8_t *out)
{
    const uint32_t n = p->n_slots[t];
    uint8_t *page = out + t * p->out_bytes;
    encode_task task = {.page = page, .kind = 1, .n_left_out = t == 1 ? n : t == 2 ? n / 2 : 0};
    task.run[0] = run_of(p, rows, t, n - cut, cut);
    task.run[1] = run_of(p, rows, t, 0, n - cut);
    if (t != 1) task.copy = page + p->kind.page_bytes;
    if (t < 3) task.box = page + 2 * (size_t)p->kind.page_bytes + encode_box_bytes(&p->kind);
    return task;
}

static pages open_pages(const encode_shape *shape)
{
    pages p = {.g = gpu_open(0), .shape = *shape, .kind = kind_of(shape)};
    p.out_bytes = round_up(2 * (p.kind.page_bytes + encode_box_bytes(&p.kind)), ENCODE_ALIGN);
    make_rows(&p);
    p.out = test_alloc(N_TASKS * p.out_bytes);
    memset(p.out, POISON, N_TASKS * p.out_bytes);
    p.out_there = gpu_put(&p.g, p.out, N_TASKS * p.out_bytes);
    for (uint32_t t = 0; t < N_TASKS; t++) {
        p.n_slots[t] = t == 0   ? shape->n_slots_max
                       : t == 1 ? 1
                                : 1 + random_below(&p.g.random, shape->n_slots_max);
        const uint32_t cut = t < 2 ? p.n_slots[t] : random_below(&p.g.random, p.n_slots[t] + 1);
        p.tasks[t] = make_task(&p, t, cut, p.rows, p.out);
        p.there[t] = make_task(&p, t, cut, p.rows_there, p.out_there);
    }
    return p;
}

static void check(const encode_shape *shape)
{
    pages p = open_pages(shape);
    const encode_kind kinds[2] = {{.type = DTYPE_F16}, p.kind}; /* the first is nobody's */
    encode_pages_cpu(&(encode_pages_args){kinds, p.tasks, N_TASKS});
    const encode_pages_args args = {.kinds = gpu_put(&p.g, kinds, sizeof kinds),
                                    .tasks = gpu_put(&p.g, p.there, sizeof p.there),
                                    .n_tasks = N_TASKS};
    p.g.ops->encode_pages(p.g.d, &args);
    uint8_t *got = test_alloc(N_TASKS * p.out_bytes);
    gpu_get(&p.g, got, p.out_there, N_TASKS * p.out_bytes);
    for (size_t i = 0; i < N_TASKS * p.out_bytes; i++)
        ck_assert_msg(
            got[i] == p.out[i],
            "coding %d, %u and %u channels: byte %zu of task %zu is %02x, not %02x (seed %llu)",
            (int)shape->coding, shape->k_dim, shape->v_dim, i % p.out_bytes, i / p.out_bytes,
            got[i], p.out[i], (unsigned long long)p.g.random.seed);
    free(got);
    free(p.out);
    free(p.rows);
    gpu_close(&p.g);
}

START_TEST(pages_have_the_bytes_of_the_definition)
{
    static const attn_coding codings[] = {ATTN_PLAIN, ATTN_FP8, ATTN_INT8, ATTN_INT4, ATTN_INT2};
    static const struct {
        uint32_t k_dim, v_dim, v_group, n_slots_max, pad;
    } sizes[] = {{1, 1, 16, 1, 0},      {31, 17, 16, 5, 3},   {64, 64, 64, 16, 0},
                 {128, 128, 64, 32, 0}, {72, 200, 32, 33, 1}, {130, 129, 32, 64, 8}};
    for (size_t i = 0; i < N_OF(codings) * N_OF(sizes) * 2; i++) {
        const size_t size = i / 2 % N_OF(sizes);
        check(&(encode_shape){.type = i % 2 == 0 ? DTYPE_F32 : DTYPE_BF16,
                              .coding = codings[i / 2 / N_OF(sizes)],
                              .k_dim = sizes[size].k_dim,
                              .v_dim = sizes[size].v_dim,
                              .v_group = sizes[size].v_group,
                              .n_slots_max = sizes[size].n_slots_max,
                              .pad = sizes[size].pad});
    }
}

START_TEST(latents_are_encoded_once)
{
    for (int i = 0; i < 2; i++)
        check(&(encode_shape){.type = DTYPE_BF16,
                              .coding = i == 0 ? ATTN_PLAIN : ATTN_FP8,
                              .k_dim = 576,
                              .v_group = 512,
                              .n_slots_max = 16});
}

static void check_moves(size_t bytes)
{
    enum { N = 5, N_SLOTS = 7 };
    gpu g = gpu_open(0);
    float *from = random_floats(&g.random, N_SLOTS * bytes / 4);
    const uint8_t *const from_there = gpu_put(&g, from, N_SLOTS * bytes);
    uint8_t *const to_there = (uint8_t *)(void *)gpu_poisoned(&g, N_SLOTS * bytes / 4);
    uint8_t *want = test_alloc(N_SLOTS * bytes), *got = test_alloc(N_SLOTS * bytes);
    gpu_get(&g, want, to_there, N_SLOTS * bytes);
    move_task tasks[N], there[N];
    for (uint32_t t = 0; t < N; t++) {
        const size_t slot = random_below(&g.random, N_SLOTS), to = (3 * t + 1) % N_SLOTS;
        tasks[t] = (move_task){(uint8_t *)from + slot * bytes, want + to * bytes};
        there[t] = (move_task){from_there + slot * bytes, to_there + to * bytes};
    }
    move_slots_cpu(&(move_slots_args){tasks, N, bytes});
    g.ops->move_slots(g.d, &(move_slots_args){gpu_put(&g, there, sizeof there), N, bytes});
    gpu_get(&g, got, to_there, N_SLOTS * bytes);
    ck_assert_int_eq(memcmp(got, want, N_SLOTS * bytes), 0);
    free(from);
    free(want);
    free(got);
    gpu_close(&g);
}

START_TEST(slots_are_moved_whole)
{
    static const size_t sizes[] = {64, 1984, 16384, 16448, 40000 / 64 * 64};
    for (size_t i = 0; i < N_OF(sizes); i++)
        check_moves(sizes[i]);
}

START_TEST(nothing_to_encode_is_nothing_to_do)
{
    gpu g = gpu_open(0);
    const float *untouched = gpu_poisoned(&g, 8);
    g.ops->encode_pages(g.d, &(encode_pages_args){0});
    g.ops->move_slots(g.d, &(move_slots_args){.bytes = 64});
    free(gpu_get_floats(&g, untouched, 8)); /* fails if anything was launched in vain */
    gpu_close(&g);
}

const test_case test_cases[] = {
    TEST_CASE(pages_have_the_bytes_of_the_definition),
    TEST_CASE(latents_are_encoded_once),
    TEST_CASE(slots_are_moved_whole),
    TEST_CASE(nothing_to_encode_is_nothing_to_do),
    TEST_CASES_END,
};
