/* tests/kernels/test_cuda_choose_mass.c - pages chosen by the mass of what is read (NUCLEUS, CERTIFIED) and by shards, on
 * CUDA and by the definition: both must keep what choose_pages.h promises of sums that are taken here. */
#include "tests/kernels/attention_step.h"

#include <math.h>
#include <stdlib.h>

#define N_OF(array) (sizeof(array) / sizeof(array)[0])

enum { N_ROWS = 3, N_BOXES = 97, FIRST_LIST = 1 };

/* A layer whose rows choose, in both places. */
typedef struct problem {
    step s;
    attend_pages_args host, device;
    choose_pages_args args, there;
    step_row rows[N_ROWS];
    attn_row *own;  /* the host's rows, to be changed */
    size_t n_lists; /* of uint32_t: chosen, all rows */
    uint32_t *chosen, *chosen_there;
} problem;

static uint32_t n_heads(const problem *p)
{
    return step_heads(&p->s);
}

static test_random *random_of(problem *p)
{
    return &p->s.g.random;
}

static void put(uint8_t *row, dtype type, size_t i, float x)
{
    const uint16_t half = bf16_from_f32(x);
    if (type == DTYPE_F32) memcpy(row + 4 * i, &x, 4);
    if (type == DTYPE_BF16) memcpy(row + 2 * i, &half, 2);
}

/* Some wide, some narrow. */
static void make_boxes(problem *p)
{
    const uint32_t k_dim = p->s.shape.k_dim;
    const dtype type = p->s.shape.type;
    const size_t stride = 2 * (size_t)k_dim * dtype_bytes(type);
    uint8_t *boxes = test_alloc(N_BOXES * stride);
    for (uint32_t b = 0; b < N_BOXES; b++) {
        const float size = 0.3f * fabsf(random_signed(random_of(p)));
        for (uint32_t c = 0; c < k_dim; c++) {
            const float x = size * random_signed(random_of(p)),
                        y = size * random_signed(random_of(p));
            put(boxes + b * stride, type, c, fminf(x, y));
            put(boxes + b * stride, type, k_dim + c, fmaxf(x, y));
        }
    }
    p->args.boxes = boxes;
    p->args.box_stride_bytes = stride;
    p->there = p->args;
    p->there.boxes = gpu_put(&p->s.g, boxes, N_BOXES * stride);
}

/* Rows with n_entries each, which are those of the sequence again and again: then nothing is in the ring. */
static void repeat_entries(problem *p, uint32_t n_entries)
{
    const uint32_t n_lists = p->host.n_lists;
    attn_row there[N_ROWS];
    gpu_get(&p->s.g, there, p->device.rows, sizeof there);
    for (uint32_t r = 0; r < N_ROWS; r++) {
        const uint32_t n = p->own[r].n_blocks, n_new = n == 0 ? 0 : n_entries > 0 ? n_entries : n;
        attn_page *here = test_alloc(((size_t)n_new * n_lists + 1) * sizeof *here);
        attn_page *on_device = test_alloc(((size_t)n_new * n_lists + 1) * sizeof *on_device);
        attn_page *first = test_alloc(((size_t)n * n_lists + 1) * sizeof *first);
        if (n > 0) gpu_get(&p->s.g, first, there[r].pages, (size_t)n * n_lists * sizeof *first);
        for (size_t i = 0; i < (size_t)n_new * n_lists; i++) {
            const size_t from = i % ((size_t)n * n_lists);
            here[i] = p->own[r].pages[from];
            on_device[i] = first[from];
            here[i].box = on_device[i].box = random_below(random_of(p), N_BOXES);
            here[i].read_bytes = on_device[i].read_bytes = 1 + random_below(random_of(p), 100);
        }
        p->own[r].pages = here;
        if (n_new > 0)
            there[r].pages = gpu_put(&p->s.g, on_device, (size_t)n_new * n_lists * sizeof *here);
        p->own[r].n_blocks = there[r].n_blocks = n_new;
        if (n_new > n) p->own[r].length = there[r].length = n_new * p->host.block_tokens;
        p->own[r].chosen = p->chosen + r * p->n_lists;
        there[r].chosen = p->chosen_there + r * p->n_lists;
        free(on_device);
        free(first);
    }
    p->device.rows = gpu_put(&p->s.g, there, sizeof there);
}

static void make_choices(problem *p, const attn_choice *like)
{
    attn_choice *choices = test_alloc(N_ROWS * sizeof *choices);
    memset(choices, 0, N_ROWS * sizeof *choices);
    for (uint32_t i = 0; i < N_ROWS; i++) {
        const uint32_t row = (i + 1) % N_ROWS, n = p->own[row].n_blocks;
        choices[i] = *like;
        choices[i].row = row;
        choices[i].n_candidates = n - random_below(random_of(p), n < 4 ? 1 : 4);
        p->own[row].choice = i;
    }
    p->args.choices = choices;
    p->there.choices = gpu_put(&p->s.g, choices, N_ROWS * sizeof *choices);
}

static size_t n_bounds(const problem *p)
{
    return (size_t)N_ROWS * (n_heads(p) + p->host.n_kv_heads) * p->args.n_blocks_max;
}

static void make_results(problem *p)
{
    const size_t n = (size_t)N_ROWS * p->host.n_kv_heads, n_max = p->args.n_blocks_max;
    const size_t n_order = n * attn_n_order((uint32_t)n_max),
                 n_rest = (size_t)N_ROWS * n_heads(p) * attn_n_rest((uint32_t)n_max);
    p->args.bounds = poisoned_floats(n_bounds(p));
    p->args.log_unread = (void *)poisoned_floats(2 * (size_t)N_ROWS * n_heads(p));
    p->args.notes = test_alloc(n * sizeof *p->args.notes);
    p->args.order = test_alloc(n_order * sizeof *p->args.order);
    p->args.rest = test_alloc(n_rest * sizeof *p->args.rest);
    p->there.bounds = gpu_poisoned(&p->s.g, n_bounds(p));
    p->there.log_unread = (void *)gpu_poisoned(&p->s.g, 2 * (size_t)N_ROWS * n_heads(p));
    p->there.notes = (void *)gpu_poisoned(&p->s.g, n * sizeof *p->args.notes / sizeof(float));
    p->there.order = (void *)gpu_poisoned(&p->s.g, 2 * n_order);
    p->there.rest = (void *)gpu_poisoned(&p->s.g, 2 * n_rest);
}

/* Opened, and chosen in both places. n_entries: see above; 0: those that the rows have. */
static problem *run(const step_shape *shape, const attn_choice *like, uint32_t n_entries)
{
    problem *p = test_alloc(sizeof *p);
    memset(p, 0, sizeof *p);
    step_open(&p->s, shape);
    const uint32_t most = n_entries > 0 ? n_entries : STEP_CHOSEN_MAX;
    p->s.args.chosen_stride = most + 2;
    const uint32_t lengths[N_ROWS] = {shape->block_tokens - 1, 11 * shape->block_tokens + 3,
                                      40 * shape->block_tokens};
    for (uint32_t r = 0; r < N_ROWS; r++)
        p->rows[r] = step_make_row(&p->s, step_add_sequence(&p->s, lengths[r] + 1), lengths[r], 1);
    step_place(&p->s, p->rows, N_ROWS, &p->host, &p->device);
    p->own = (attn_row *)(uintptr_t)p->host.rows;
    p->n_lists = (size_t)shape->n_kv_heads * p->s.args.chosen_stride;
    p->chosen = test_alloc(N_ROWS * p->n_lists * sizeof *p->chosen);
    p->chosen_there = (void *)gpu_poisoned(&p->s.g, N_ROWS * p->n_lists);
    make_boxes(p);
    repeat_entries(p, n_entries);
    make_choices(p, like);
    p->args.n_choices = p->there.n_choices = N_ROWS;
    p->args.n_blocks_max = p->there.n_blocks_max = most;
    make_results(p);
    p->args.attend = &p->host;
    p->there.attend = &p->device;
    p->s.g.ops->choose_pages(p->s.g.d, &p->there);
    choose_pages_cpu(&p->args);
    return p;
}

static void close_problem(problem *p)
{
    for (uint32_t r = 0; r < N_ROWS; r++)
        free((void *)(uintptr_t)p->own[r].pages);
    free((void *)(uintptr_t)p->args.boxes);
    free((void *)(uintptr_t)p->args.choices);
    free(p->args.bounds);
    free(p->args.log_unread);
    free(p->args.notes);
    free(p->args.order);
    free(p->args.rest);
    free(p->chosen);
    step_close(&p->s);
    free(p);
}

/* ---- what was found, in one place ---- */

typedef struct results {
    float *bounds;
    double *log_unread;
    uint32_t *chosen;
    attn_choice_note *notes;
} results;

static results get_results(problem *p)
{
    const size_t n = (size_t)N_ROWS * p->host.n_kv_heads;
    results out = {.bounds = gpu_get_floats(&p->s.g, p->there.bounds, n_bounds(p)),
                   .log_unread = test_alloc((size_t)N_ROWS * n_heads(p) * sizeof *out.log_unread),
                   .chosen = test_alloc(N_ROWS * p->n_lists * sizeof *out.chosen),
                   .notes = test_alloc(n * sizeof *out.notes)};
    gpu_get(&p->s.g, out.chosen, p->chosen_there, N_ROWS * p->n_lists * sizeof *out.chosen);
    gpu_get(&p->s.g, out.notes, p->there.notes, n * sizeof *out.notes);
    gpu_get(&p->s.g, out.log_unread, p->there.log_unread,
            (size_t)N_ROWS * n_heads(p) * sizeof *out.log_unread);
    return out;
}

/* One KV head of a choice. */
typedef struct found {
    const problem *p;
    const results *r;
    const attn_choice *choice;
    const attn_row *row;
    uint32_t kv_head, first;
    size_t at;
    const uint32_t *chosen;
    bool *is_chosen; /* [n_blocks] */
} found;

static const attn_page *page_of(const found *f, uint32_t block)
{
    return &f->row->pages[(size_t)block * f->p->host.n_lists + FIRST_LIST + f->kv_head];
}

static bool is_open(const found *f, uint32_t block)
{
    return block >= f->first && block < f->choice->n_candidates && page_of(f, block)->live != 0;
}

static double bound_of(const found *f, uint32_t g, uint32_t block)
{
    const size_t row = f->at * (f->p->host.group + 1) + g;
    return (double)f->r->bounds[row * f->p->args.n_blocks_max + block];
}

static double mass_of(const found *f, uint32_t g, uint32_t block)
{
    return __builtin_popcountll(page_of(f, block)->live) * exp(bound_of(f, g, block));
}

/* sum exp(score) of every head of the group over what is read with the entries of a list. */
static void masses_with(const found *f, const bool *is_listed, double *out)
{
    attend_pages_args args = f->p->host;
    const uint32_t group = args.group;
    const size_t n_out = (size_t)n_heads(f->p) * args.v_dim;
    uint32_t *list = test_alloc(f->p->n_lists * sizeof *list);
    memset(list, 0, f->p->n_lists * sizeof *list);
    uint32_t *mine = list + (size_t)f->kv_head * args.chosen_stride;
    for (uint32_t b = 0; b < f->row->n_blocks; b++) {
        if (is_listed[b]) mine[1 + mine[0]++] = b;
    }
    attn_row row = *f->row;
    row.choice = 0;
    row.chosen = list;
    const attn_task task = {.n_queries = 1,
                            .n_splits = row.length / args.block_tokens / ATTN_SPLIT_BLOCKS + 1,
                            .partial = ATTN_NO_PARTIAL};
    args.rows = &row;
    args.tasks = &task;
    args.n_tasks = 1;
    args.out = test_alloc((row.first_token + 1) * n_out * sizeof *args.out);
    args.out_stride = n_out;
    args.masses = test_alloc(n_heads(f->p) * sizeof *args.masses);
    attend_pages_cpu(&args);
    for (uint32_t g = 0; g < group; g++) {
        const attn_mass *mass = &args.masses[f->kv_head * group + g];
        out[g] = mass->sum > 0 ? (double)mass->sum * exp((double)mass->max) : 0;
    }
    free(list);
    free(args.out);
    free(args.masses);
}

static double unread_of(const found *f, uint32_t g)
{
    double sum = 0;
    for (uint32_t b = 0; b < f->row->n_blocks; b++)
        sum += is_open(f, b) && !f->is_chosen[b] ? mass_of(f, g, b) : 0;
    return sum;
}

static double all_of(const found *f, uint32_t g)
{
    double sum = 0;
    for (uint32_t b = 0; b < f->row->n_blocks; b++)
        sum += is_open(f, b) ? mass_of(f, g, b) : 0;
    return sum;
}

/* ---- what is promised ---- */

/* How much more than it may a head misses with what is chosen: at most 1 is right. */
static double excess(const found *f, const double *read_in_any_case)
{
    double read[ATTN_GROUP_MAX], most = 0;
    const double amount = f->choice->amount;
    masses_with(f, f->is_chosen, read);
    for (uint32_t g = 0; g < f->p->host.group; g++) {
        const double unread = unread_of(f, g);
        const double may = f->choice->rule == ATTN_RULE_NUCLEUS
                               ? (1 - amount) * (read_in_any_case[g] + all_of(f, g))
                               : amount * (read[g] + unread);
        if (unread > 0) most = fmax(most, unread / may);
    }
    return most;
}

static double priority_of(const found *f, const double *read, uint32_t block)
{
    double most = -(double)INFINITY;
    for (uint32_t g = 0; g < f->p->host.group; g++) {
        double base = read[g];
        for (uint32_t b = 0; b < f->row->n_blocks && read[g] == 0; b++)
            base = fmax(base, is_open(f, b) ? mass_of(f, g, b) : 0);
        most = fmax(most, log(mass_of(f, g, block)) - log(base));
    }
    return most;
}

/* The chosen come first, it is enough, and without the last of them it was not. */
static void check_mass(const found *f)
{
    double read[ATTN_GROUP_MAX], worst = INFINITY, best = -(double)INFINITY;
    uint32_t last = UINT32_MAX;
    bool *in_any_case = test_alloc(f->row->n_blocks + 1);
    for (uint32_t b = 0; b < f->row->n_blocks; b++)
        in_any_case[b] = f->is_chosen[b] && !is_open(f, b);
    masses_with(f, in_any_case, read);
    free(in_any_case);
    for (uint32_t b = 0; b < f->row->n_blocks; b++) {
        if (!is_open(f, b)) continue;
        const double priority = priority_of(f, read, b);
        if (f->is_chosen[b] && priority <= worst) {
            worst = priority;
            last = b;
        }
        if (!f->is_chosen[b]) best = fmax(best, priority);
    }
    ck_assert_msg(worst >= best - 1e-4, "%.9g was left out, and %.9g read", best, worst);
    const double found_excess = excess(f, read);
    ck_assert_msg(found_excess <= 1 + 1e-4, "misses %.9g of what it may", found_excess);
    if (last == UINT32_MAX) return;
    f->is_chosen[last] = false;
    ck_assert_msg(excess(f, read) > 1 - 1e-3, "reads a page that it need not");
    f->is_chosen[last] = true;
}

/* Whole shards; no shard that was left out comes before a chosen one. */
static void check_shards(const found *f)
{
    const uint32_t n_shards = f->choice->n_shards;
    double bound[ATTN_SHARDS_MAX], n_live[ATTN_SHARDS_MAX] = {0}, n_all = 0;
    uint32_t n[ATTN_SHARDS_MAX] = {0}, n_chosen[ATTN_SHARDS_MAX] = {0}, n_with = 0, n_taken = 0;
    for (uint32_t s = 0; s < n_shards; s++)
        bound[s] = -(double)INFINITY;
    for (uint32_t b = 0; b < f->row->n_blocks; b++) {
        const uint32_t s = b % n_shards;
        if (!is_open(f, b)) continue;
        n[s]++;
        n_chosen[s] += f->is_chosen[b];
        n_live[s] += __builtin_popcountll(page_of(f, b)->live);
        for (uint32_t g = 0; g < f->p->host.group; g++)
            bound[s] = fmax(bound[s], bound_of(f, g, b));
    }
    for (uint32_t s = 0; s < n_shards; s++) {
        ck_assert(n_chosen[s] == 0 || n_chosen[s] == n[s]);
        n_with += n[s] > 0;
        n_taken += n_chosen[s] > 0;
        n_all += n_live[s];
    }
    ck_assert_uint_eq(n_taken, attn_n_chosen(f->choice->amount, n_with));
    for (uint32_t s = 0; s < n_shards && f->choice->rule == ATTN_RULE_SHARDS_BALANCED; s++)
        bound[s] -= n[s] > 0 ? n_live[s] / (n_all / n_with) - 1 : 0;
    for (uint32_t s = 0; s < n_shards; s++) {
        for (uint32_t other = 0; other < n_shards; other++) {
            if (n_chosen[s] > 0 && n[other] > 0 && n_chosen[other] == 0)
                ck_assert_double_ge(bound[s], bound[other] - 1e-5);
        }
    }
}

static void check_list(found *f)
{
    const attn_choice_note *note = &f->r->notes[f->at];
    attn_choice_note want = {0};
    memset(f->is_chosen, 0, f->row->n_blocks);
    for (uint32_t i = 0; i < f->chosen[0]; i++) {
        ck_assert_uint_lt(f->chosen[1 + i], f->row->n_blocks);
        ck_assert(i == 0 || f->chosen[i] < f->chosen[1 + i]);
        f->is_chosen[f->chosen[1 + i]] = true;
    }
    for (uint32_t b = 0; b < f->row->n_blocks; b++) {
        const bool has_slots = page_of(f, b)->live != 0;
        if (!is_open(f, b))
            ck_assert(f->is_chosen[b] == (b >= f->first && b >= f->choice->n_candidates));
        want.n_open += is_open(f, b);
        want.n_chosen += is_open(f, b) && f->is_chosen[b];
        want.n_read += has_slots && f->is_chosen[b];
        want.read_bytes += has_slots && f->is_chosen[b] ? page_of(f, b)->read_bytes : 0;
    }
    ck_assert_uint_eq(note->n_open, want.n_open);
    ck_assert_uint_eq(note->n_chosen, want.n_chosen);
    ck_assert_uint_eq(note->n_read, want.n_read);
    ck_assert_uint_eq(note->read_bytes, want.read_bytes);
    for (uint32_t g = 0; g < f->p->host.group; g++) {
        const double unread = unread_of(f, g);
        const double got = f->r->log_unread[f->at * f->p->host.group + g];
        if (unread == 0) ck_assert(got == -(double)INFINITY);
        if (unread > 0) ck_assert_double_eq_tol(got, log(unread), 1e-5);
    }
}

/* Returns the candidates that are read, and all. */
static attn_choice_note check_results(const problem *p, const results *r)
{
    attn_choice_note sum = {0};
    for (uint32_t i = 0; i < N_ROWS; i++) {
        for (uint32_t h = 0; h < p->host.n_kv_heads; h++) {
            const attn_choice *choice = &p->args.choices[i];
            const attn_row *row = &p->own[choice->row];
            const uint32_t first =
                attn_first_block(row->length, p->host.window, p->host.block_tokens);
            found f = {.p = p,
                       .r = r,
                       .choice = choice,
                       .row = row,
                       .kv_head = h,
                       .first = first < row->n_blocks ? first : row->n_blocks,
                       .at = (size_t)i * p->host.n_kv_heads + h,
                       .chosen =
                           r->chosen + choice->row * p->n_lists + (size_t)h * p->host.chosen_stride,
                       .is_chosen = test_alloc(row->n_blocks + 1)};
            check_list(&f);
            if (r->notes[f.at].n_open > 0)
                (attn_reads_by_mass(choice->rule) ? check_mass : check_shards)(&f);
            sum.n_open += r->notes[f.at].n_open;
            sum.n_chosen += r->notes[f.at].n_chosen;
            free(f.is_chosen);
        }
    }
    return sum;
}

/* What both have read may differ where a sum is at its limit: not by much. */
static attn_choice_note check(const step_shape *shape, const attn_choice *like, uint32_t n_entries)
{
    problem *p = run(shape, like, n_entries);
    const results device = get_results(p);
    const results host = {p->args.bounds, p->args.log_unread, p->chosen, p->args.notes};
    const attn_choice_note of_host = check_results(p, &host), of_device = check_results(p, &device);
    ck_assert_uint_eq(of_device.n_open, of_host.n_open);
    if (attn_reads_by_mass(like->rule))
        ck_assert_int_le(abs((int)of_device.n_chosen - (int)of_host.n_chosen), 2);
    free(device.bounds);
    free(device.log_unread);
    free(device.chosen);
    free(device.notes);
    close_problem(p);
    return of_device;
}

static const step_shape shapes[] = {
    {.n_kv_heads = 2,
     .group = 3,
     .k_dim = 20,
     .v_dim = 4,
     .v_group = 4,
     .block_tokens = 8,
     .n_ring_blocks = 3,
     .n_sinks = 2,
     .has_dead = true},
    {.n_kv_heads = 1,
     .group = 9,
     .k_dim = 64,
     .v_dim = 8,
     .v_group = 8,
     .block_tokens = 16,
     .n_ring_blocks = 2,
     .n_sinks = 5,
     .has_bias = true,
     .has_sink_logit = true},
    {.n_kv_heads = 1,
     .group = 1,
     .k_dim = 37,
     .v_dim = 8,
     .v_group = 8,
     .block_tokens = 16,
     .n_ring_blocks = 4,
     .n_sinks = 7,
     .window = 200,
     .pad = 1},
    {.n_kv_heads = 1,
     .group = 4,
     .k_dim = 72,
     .v_dim = 8,
     .v_group = 8,
     .block_tokens = 5,
     .n_ring_blocks = 2,
     .has_positions = true,
     .has_dead = true},
};
static const attn_coding codings[] = {ATTN_PLAIN, ATTN_INT8, ATTN_INT4,
                                      ATTN_INT2,  ATTN_FP8,  ATTN_KEPT};

static step_shape shape_of(uint32_t i)
{
    step_shape shape = shapes[i % N_OF(shapes)];
    shape.coding = codings[i % N_OF(codings)];
    shape.type = i / 2 % 2 == 0 ? DTYPE_F32 : DTYPE_BF16;
    return shape;
}

static attn_choice choice_of(attn_rule rule, double amount)
{
    return (attn_choice){.rule = rule, .n_shards = 5, .amount = amount};
}

START_TEST(what_is_read_is_enough_and_no_more)
{
    static const double amounts[] = {0.7, 0.4, 0.2, 0.1, 0.02, 1e-3, 1e-6, 0};
    test_random random = random_fresh();
    attn_choice_note sum = {0};
    for (uint32_t i = 0; i < 12; i++) {
        const step_shape shape = shape_of(i);
        const double amount = amounts[(i + random_below(&random, 3)) % N_OF(amounts)];
        const attn_rule rule = i % 3 == 0 ? ATTN_RULE_NUCLEUS : ATTN_RULE_CERTIFIED;
        const attn_choice choice = choice_of(rule, rule == ATTN_RULE_NUCLEUS ? 1 - amount : amount);
        const attn_choice_note note = check(&shape, &choice, 0);
        sum.n_open += note.n_open;
        sum.n_chosen += note.n_chosen;
    }
    ck_assert_uint_gt(sum.n_chosen, 0);
    ck_assert_uint_lt(sum.n_chosen, sum.n_open);
}

/* Of the sinks as well, and of slots beside those that it shows. */
START_TEST(what_a_window_has_passed_is_not_read)
{
    static const double amounts[] = {0.7, 0.6, 0.5, 0.4, 0.35, 0.3, 0.25, 0.2};
    for (uint32_t i = 0; i < N_OF(amounts); i++) {
        const step_shape shape = shape_of(2);
        const attn_choice choice = choice_of(ATTN_RULE_CERTIFIED, amounts[i]);
        (void)check(&shape, &choice, 0);
    }
}

/* More than the keys that fit into shared memory. */
START_TEST(an_order_of_many_entries_is_one)
{
    const step_shape shape = shape_of(0);
    const attn_choice choice = choice_of(ATTN_RULE_CERTIFIED, 0.9);
    const attn_choice_note note = check(&shape, &choice, 1100);
    ck_assert_uint_lt(note.n_chosen, note.n_open);
}

START_TEST(the_best_shards_are_read_whole)
{
    static const double ks[] = {0.3, 2, 1e-9, 4, 64};
    for (uint32_t i = 0; i < N_OF(ks); i++) {
        const step_shape shape = shape_of(i);
        attn_choice choice = choice_of(ATTN_RULE_SHARDS, ks[i]);
        (void)check(&shape, &choice, 0);
        choice.rule = ATTN_RULE_SHARDS_BALANCED;
        choice.n_shards = i == 0 ? ATTN_SHARDS_MAX : 3;
        (void)check(&shape, &choice, 0);
    }
}

const test_case test_cases[] = {
    TEST_CASE(what_is_read_is_enough_and_no_more),
    TEST_CASE(what_a_window_has_passed_is_not_read),
    TEST_CASE(an_order_of_many_entries_is_one),
    TEST_CASE(the_best_shards_are_read_whole),
    TEST_CASES_END,
};
