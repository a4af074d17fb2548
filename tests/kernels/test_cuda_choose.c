/* tests/kernels/test_cuda_choose.c - which pages decode rows read, chosen on CUDA: bounds against the definition, the
 * choice against the rule over the device's own bounds, and the definition against a sort. */
#include "tests/kernels/cuda_fixture.h"

#include <math.h>
#include <stdlib.h>

#define N_OF(array) (sizeof(array) / sizeof(array)[0])

enum { N_ROWS = 3, SPARE_LISTS = 2, FIRST_LIST = 1 };

typedef struct choose_shape {
    dtype type;
    uint32_t n_kv_heads, group, k_dim;
    uint32_t block_tokens, window;
    uint32_t n_blocks_max;
    bool has_bias, has_ties; /* boxes that are alike */
    uint32_t pad;            /* elements behind a box: alignment */
} choose_shape;

/* A made-up layer, in both places. */
typedef struct layer {
    gpu g;
    choose_shape shape;
    attend_pages_args attend, attend_there;
    choose_pages_args args, there;   /* of the host; of the device */
    uint32_t *chosen, *chosen_there; /* [N_ROWS][n_kv_heads][chosen_stride] */
    uint32_t n_boxes;
} layer;

static uint32_t n_heads(const layer *l)
{
    return l->shape.n_kv_heads * l->shape.group;
}

static void put(uint8_t *row, dtype type, size_t i, float x)
{
    const uint16_t half = bf16_from_f32(x);
    if (type == DTYPE_F32) memcpy(row + 4 * i, &x, 4);
    if (type == DTYPE_BF16) memcpy(row + 2 * i, &half, 2);
}

/* Behind a box lies what is no number. */
static void make_boxes(layer *l)
{
    const choose_shape *shape = &l->shape;
    const uint32_t k_dim = shape->k_dim;
    const size_t stride = (2 * (size_t)k_dim + shape->pad) * dtype_bytes(shape->type);
    uint8_t *boxes = test_alloc(l->n_boxes * stride);
    memset(boxes, 0xff, l->n_boxes * stride);
    for (uint32_t b = 0; b < l->n_boxes; b++) {
        uint8_t *box = boxes + b * stride;
        const bool is_copy = shape->has_ties && b > 0 && random_below(&l->g.random, 2) == 0;
        for (uint32_t c = 0; c < k_dim && !is_copy; c++) {
            const float x = random_signed(&l->g.random), y = random_signed(&l->g.random);
            put(box, shape->type, c, fminf(x, y));
            put(box, shape->type, k_dim + c, fmaxf(x, y));
        }
        if (is_copy) memcpy(box, boxes + random_below(&l->g.random, b) * stride, stride);
    }
    l->args.boxes = boxes;
    l->args.box_stride_bytes = l->there.box_stride_bytes = stride;
    l->there.boxes = gpu_put(&l->g, boxes, l->n_boxes * stride);
    if (!shape->has_bias) return;
    float *bias = test_alloc(l->n_boxes * sizeof *bias);
    for (uint32_t b = 0; b < l->n_boxes; b++)
        bias[b] = random_below(&l->g.random, 3) == 0 ? 3 * random_signed(&l->g.random) : -INFINITY;
    l->args.bias_most = bias;
    l->there.bias_most = gpu_put(&l->g, bias, l->n_boxes * sizeof *bias);
}

/* Lists of other layers hold nothing that may be read. */
static void make_rows(layer *l, const uint32_t n_blocks[N_ROWS])
{
    attn_row *rows = test_alloc(N_ROWS * sizeof *rows), there[N_ROWS];
    const uint32_t n_lists = l->attend.n_lists;
    const size_t n_chosen = (size_t)l->shape.n_kv_heads * l->attend.chosen_stride;
    l->chosen = test_alloc(N_ROWS * n_chosen * sizeof *l->chosen);
    l->chosen_there = (uint32_t *)(void *)gpu_poisoned(&l->g, N_ROWS * n_chosen);
    memset(rows, 0, N_ROWS * sizeof *rows);
    for (uint32_t r = 0; r < N_ROWS; r++) {
        const size_t n = (size_t)n_blocks[r] * n_lists;
        attn_page *pages = test_alloc(n * sizeof *pages);
        memset(pages, 0xff, n * sizeof *pages);
        for (size_t i = 0; i < n; i++) {
            const size_t list = i % n_lists;
            if (list < FIRST_LIST || list >= FIRST_LIST + l->shape.n_kv_heads) continue;
            pages[i] = (attn_page){.box = random_below(&l->g.random, l->n_boxes),
                                   .read_bytes = 1 + random_below(&l->g.random, 100)};
            pages[i].live = random_below(&l->g.random, 5) == 0
                                ? 0
                                : UINT64_MAX >> random_below(&l->g.random, 64);
        }
        rows[r] = (attn_row){.pages = pages,
                             .n_blocks = n_blocks[r],
                             .length = n_blocks[r] * l->shape.block_tokens + 5,
                             .first_token = N_ROWS - 1 - r,
                             .n_tokens = 1};
        rows[r].chosen = l->chosen + r * n_chosen;
        there[r] = rows[r];
        there[r].pages = gpu_put(&l->g, pages, n * sizeof *pages);
        there[r].chosen = l->chosen_there + r * n_chosen;
    }
    l->attend.rows = rows;
    l->attend_there = l->attend;
    l->attend_there.rows = gpu_put(&l->g, there, sizeof there);
}

static void make_choices(layer *l, double k)
{
    attn_choice *choices = test_alloc(N_ROWS * sizeof *choices);
    memset(choices, 0, N_ROWS * sizeof *choices);
    for (uint32_t i = 0; i < N_ROWS; i++) {
        const uint32_t row = (i + 1) % N_ROWS, n = l->attend.rows[row].n_blocks;
        choices[i] = (attn_choice){.row = row,
                                   .n_candidates = n - random_below(&l->g.random, n < 4 ? 1 : 4),
                                   .rule = ATTN_RULE_BEST,
                                   .n_shards = 1,
                                   .amount = k};
    }
    l->args.choices = choices;
    l->there.choices = gpu_put(&l->g, choices, N_ROWS * sizeof *choices);
    l->args.n_choices = l->there.n_choices = N_ROWS;
    l->args.n_blocks_max = l->there.n_blocks_max = l->shape.n_blocks_max;
}

static void make_queries(layer *l)
{
    const size_t stride = (size_t)n_heads(l) * l->shape.k_dim + l->shape.pad;
    float *q = test_alloc(N_ROWS * stride * sizeof *q);
    for (size_t i = 0; i < N_ROWS * stride; i++)
        q[i] = random_signed(&l->g.random);
    l->attend.q = q;
    l->attend.q_stride = l->attend_there.q_stride = stride;
    l->attend_there.q = gpu_put(&l->g, q, N_ROWS * stride * sizeof *q);
}

static size_t n_bounds(const layer *l)
{
    return (size_t)N_ROWS * (n_heads(l) + l->shape.n_kv_heads) * l->shape.n_blocks_max;
}

static size_t n_listed(const layer *l)
{
    return (size_t)N_ROWS * l->shape.n_kv_heads * l->attend.chosen_stride;
}

static void make_results(layer *l)
{
    const size_t n_notes = (size_t)N_ROWS * l->shape.n_kv_heads;
    l->args.bounds = poisoned_floats(n_bounds(l));
    l->args.log_unread = (void *)poisoned_floats(2 * (size_t)N_ROWS * n_heads(l));
    l->args.notes = test_alloc(n_notes * sizeof *l->args.notes);
    l->there.bounds = gpu_poisoned(&l->g, n_bounds(l));
    l->there.log_unread = (void *)gpu_poisoned(&l->g, 2 * (size_t)N_ROWS * n_heads(l));
    l->there.notes = (attn_choice_note *)(void *)gpu_poisoned(
        &l->g, n_notes * sizeof *l->args.notes / sizeof(float));
}

/* Opened, and chosen in both places. */
static layer *run(const choose_shape *shape, const uint32_t n_blocks[N_ROWS], double k)
{
    layer *l = test_alloc(sizeof *l);
    *l = (layer){.g = gpu_open(0), .shape = *shape, .n_boxes = shape->n_blocks_max + 3};
    l->attend = (attend_pages_args){.n_kv_heads = shape->n_kv_heads,
                                    .group = shape->group,
                                    .k_dim = shape->k_dim,
                                    .window = shape->window,
                                    .scale = 0.7f,
                                    .type = shape->type,
                                    .block_tokens = shape->block_tokens,
                                    .first_list = FIRST_LIST,
                                    .n_lists = shape->n_kv_heads + SPARE_LISTS,
                                    .chosen_stride = shape->n_blocks_max + 2};
    make_boxes(l);
    make_rows(l, n_blocks);
    make_queries(l);
    make_choices(l, k);
    make_results(l);
    l->args.attend = &l->attend;
    l->there.attend = &l->attend_there;
    l->g.ops->choose_pages(l->g.d, &l->there);
    choose_pages_cpu(&l->args);
    return l;
}

static void close_layer(layer *l)
{
    for (uint32_t r = 0; r < N_ROWS; r++)
        free((void *)(uintptr_t)l->attend.rows[r].pages);
    free((void *)(uintptr_t)l->attend.rows);
    free((void *)(uintptr_t)l->attend.q);
    free((void *)(uintptr_t)l->args.boxes);
    free((void *)(uintptr_t)l->args.bias_most);
    free((void *)(uintptr_t)l->args.choices);
    free(l->args.bounds);
    free(l->chosen);
    free(l->args.log_unread);
    free(l->args.notes);
    gpu_close(&l->g);
    free(l);
}

/* ---- the rule, over bounds that are given ---- */

typedef struct results {
    float *bounds;
    double *log_unread;
    uint32_t *chosen;
    attn_choice_note *notes;
} results;

static results get_results(layer *l)
{
    const size_t n_notes = (size_t)N_ROWS * l->shape.n_kv_heads;
    results out = {.bounds = gpu_get_floats(&l->g, l->there.bounds, n_bounds(l)),
                   .log_unread = test_alloc((size_t)N_ROWS * n_heads(l) * sizeof *out.log_unread),
                   .chosen = test_alloc(n_listed(l) * sizeof *out.chosen),
                   .notes = test_alloc(n_notes * sizeof *out.notes)};
    gpu_get(&l->g, out.chosen, l->chosen_there, n_listed(l) * sizeof *out.chosen);
    gpu_get(&l->g, out.notes, l->there.notes, n_notes * sizeof *out.notes);
    gpu_get(&l->g, out.log_unread, l->there.log_unread,
            (size_t)N_ROWS * n_heads(l) * sizeof *out.log_unread);
    return out;
}

/* One KV head of a choice, and what was found for it. */
typedef struct found {
    const layer *l;
    const attn_choice *choice;
    const attn_row *row;
    uint32_t kv_head, first;
    const float *bounds;
    double *log_unread;
    const uint32_t *chosen;
    const attn_choice_note *note;
} found;

static found find(const layer *l, const results *r, uint32_t choice, uint32_t kv_head)
{
    const size_t at = (size_t)choice * l->shape.n_kv_heads + kv_head;
    const attn_row *row = &l->attend.rows[l->args.choices[choice].row];
    const uint32_t first = attn_first_block(row->length, l->shape.window, l->shape.block_tokens);
    return (found){.l = l,
                   .choice = &l->args.choices[choice],
                   .row = row,
                   .kv_head = kv_head,
                   .first = first < row->n_blocks ? first : row->n_blocks,
                   .bounds = r->bounds + at * (l->shape.group + 1) * l->shape.n_blocks_max,
                   .log_unread = r->log_unread + at * l->shape.group,
                   .chosen = r->chosen +
                             (l->args.choices[choice].row * (size_t)l->shape.n_kv_heads + kv_head) *
                                 l->attend.chosen_stride,
                   .note = &r->notes[at]};
}

static const attn_page *page_of(const found *f, uint32_t block)
{
    return &f->row->pages[(size_t)block * f->l->attend.n_lists + FIRST_LIST + f->kv_head];
}

static bool is_candidate(const found *f, uint32_t block)
{
    return block >= f->first && block < f->choice->n_candidates && page_of(f, block)->live != 0;
}

static float most_of(const found *f, uint32_t block)
{
    float most = -INFINITY;
    for (uint32_t g = 0; g < f->l->shape.group; g++)
        most = fmaxf(most, f->bounds[(size_t)g * f->l->shape.n_blocks_max + block]);
    return most;
}

static bool has_chosen(const found *f, uint32_t block)
{
    for (uint32_t i = 0; i < f->chosen[0]; i++) {
        if (f->chosen[1 + i] == block) return true;
    }
    return false;
}

/* No candidate that was left out comes before one that was chosen, and there are as many as there may be. */
static void check_rule(const found *f)
{
    uint32_t n_open = 0, n_chosen = 0, n_read = 0;
    uint64_t bytes = 0;
    for (uint32_t b = 0; b < f->row->n_blocks; b++) {
        const bool is_chosen = has_chosen(f, b), is_open = is_candidate(f, b);
        n_open += is_open;
        n_chosen += is_open && is_chosen;
        n_read += is_chosen && page_of(f, b)->live != 0;
        bytes += is_chosen && page_of(f, b)->live != 0 ? page_of(f, b)->read_bytes : 0;
        if (!is_open) ck_assert(is_chosen == (b >= f->first && b >= f->choice->n_candidates));
        for (uint32_t c = 0; c < f->row->n_blocks && is_open && !is_chosen; c++) {
            if (!is_candidate(f, c) || !has_chosen(f, c)) continue;
            ck_assert(most_of(f, c) > most_of(f, b) || (most_of(f, c) == most_of(f, b) && c < b));
        }
    }
    for (uint32_t i = 1; i < f->chosen[0]; i++)
        ck_assert_uint_lt(f->chosen[i], f->chosen[i + 1]);
    ck_assert_uint_eq(n_chosen, attn_n_chosen(f->choice->amount, n_open));
    ck_assert_uint_eq(f->note->n_open, n_open);
    ck_assert_uint_eq(f->note->n_chosen, n_chosen);
    ck_assert_uint_eq(f->note->n_read, n_read);
    ck_assert_uint_eq(f->note->read_bytes, bytes);
}

static void check_unread(const found *f)
{
    for (uint32_t g = 0; g < f->l->shape.group; g++) {
        double sum = 0;
        for (uint32_t b = 0; b < f->row->n_blocks; b++) {
            if (!is_candidate(f, b) || has_chosen(f, b)) continue;
            const float bound = f->bounds[(size_t)g * f->l->shape.n_blocks_max + b];
            sum += __builtin_popcountll(page_of(f, b)->live) * exp((double)bound);
        }
        const double got = f->log_unread[g];
        if (sum == 0) ck_assert(got == -(double)INFINITY);
        if (sum > 0) ck_assert_msg(fabs(got - log(sum)) < 1e-5, "%.9g is not %.9g", got, log(sum));
    }
}

static void check_bounds(const found *device, const found *host)
{
    for (uint32_t b = 0; b < device->row->n_blocks; b++) {
        for (uint32_t g = 0; g < device->l->shape.group && is_candidate(device, b); g++) {
            const size_t at = (size_t)g * device->l->shape.n_blocks_max + b;
            assert_near(&device->bounds[at], &host->bounds[at], 1, (tolerance){1e-5, 1e-5},
                        device->l->g.random.seed);
        }
    }
}

static void check(const choose_shape *shape, const uint32_t n_blocks[N_ROWS], double k)
{
    layer *l = run(shape, n_blocks, k);
    const results device = get_results(l);
    const results host = {l->args.bounds, l->args.log_unread, l->chosen, l->args.notes};
    for (uint32_t i = 0; i < N_ROWS; i++) {
        for (uint32_t h = 0; h < shape->n_kv_heads; h++) {
            const found here = find(l, &host, i, h), there = find(l, &device, i, h);
            check_rule(&here);
            check_unread(&here);
            check_rule(&there);
            check_unread(&there);
            check_bounds(&there, &here);
        }
    }
    free(device.bounds);
    free(device.log_unread);
    free(device.chosen);
    free(device.notes);
    close_layer(l);
}

static const choose_shape shapes[] = {
    {.n_kv_heads = 2, .group = 4, .k_dim = 64, .block_tokens = 16, .n_blocks_max = 300},
    {.n_kv_heads = 1,
     .group = 1,
     .k_dim = 128,
     .block_tokens = 16,
     .n_blocks_max = 700,
     .has_ties = true},
    {.n_kv_heads = 3,
     .group = 2,
     .k_dim = 20,
     .block_tokens = 8,
     .n_blocks_max = 64,
     .has_bias = true,
     .pad = 1},
    {.n_kv_heads = 1,
     .group = 5,
     .k_dim = 5,
     .block_tokens = 4,
     .n_blocks_max = 70,
     .window = 100,
     .has_ties = true},
    {.n_kv_heads = 1,
     .group = 16,
     .k_dim = 576,
     .block_tokens = 64,
     .n_blocks_max = 40,
     .has_bias = true},
};

START_TEST(the_best_pages_are_chosen)
{
    static const double ks[] = {0.125, 1e-9, 2, 7, 40, 1e6};
    for (size_t i = 0; i < N_OF(shapes); i++) {
        for (int type = 0; type < 2; type++) {
            choose_shape shape = shapes[i];
            shape.type = type == 0 ? DTYPE_F32 : DTYPE_BF16;
            const uint32_t n_max = shape.n_blocks_max;
            check(&shape, (const uint32_t[N_ROWS]){n_max, 1, n_max / 2 + 1}, ks[2 * i % N_OF(ks)]);
            check(&shape, (const uint32_t[N_ROWS]){0, n_max - 1, 33}, ks[(2 * i + 1) % N_OF(ks)]);
        }
    }
}

START_TEST(random_choices_follow_the_rule)
{
    enum { N_CHOICES = 24 };
    test_random random = random_fresh();
    for (uint32_t i = 0; i < N_CHOICES; i++) {
        choose_shape shape = shapes[random_below(&random, N_OF(shapes))];
        shape.type = random_below(&random, 2) == 0 ? DTYPE_F32 : DTYPE_BF16;
        shape.n_blocks_max = 1 + random_below(&random, 400);
        shape.window = random_below(&random, 2) * (1 + random_below(&random, 1000));
        shape.has_ties = random_below(&random, 2) == 0;
        const uint32_t n_max = shape.n_blocks_max;
        const double k = random_below(&random, 2) == 0
                             ? (1 + random_below(&random, 100)) / 101.0
                             : 2 + (double)random_below(&random, n_max + 2);
        check(&shape,
              (const uint32_t[N_ROWS]){random_below(&random, n_max + 1),
                                       random_below(&random, n_max + 1), n_max},
              k);
    }
}

START_TEST(nothing_to_choose_is_nothing_to_do)
{
    gpu g = gpu_open(0);
    const attend_pages_args attend = {.n_kv_heads = 2, .group = 2, .k_dim = 8, .block_tokens = 16};
    const choose_pages_args nothing = {.attend = &attend, .n_blocks_max = 8};
    const float *untouched = gpu_poisoned(&g, 8);
    g.ops->choose_pages(g.d, &nothing);
    free(gpu_get_floats(&g, untouched, 8)); /* fails if anything was launched in vain */
    gpu_close(&g);
}

const test_case test_cases[] = {
    TEST_CASE(the_best_pages_are_chosen),
    TEST_CASE(random_choices_follow_the_rule),
    TEST_CASE(nothing_to_choose_is_nothing_to_do),
    TEST_CASES_END,
};
