/* tests/kernels/test_cuda_elementwise.c - embed, norms, rope and store of CUDA against the reference. */
#include "tests/kernels/cuda_fixture.h"

#include <math.h>
#include <stdlib.h>

static const uint32_t counts[] = {1, 2, 31};
static const uint32_t dims[] = {2, 30, 254, 2048};
#define N_OF(array) (sizeof(array) / sizeof(array)[0])

/* A few roundings of f32 in either. */
static const tolerance near_f32 = {1e-6, 1e-6};

static void check_embed(gpu *g, dtype type, uint32_t n_tokens, uint32_t dim)
{
    enum { VOCABULARY = 37 };
    const size_t n = (size_t)n_tokens * dim;
    matrix table = random_matrix(&g->random, type, VOCABULARY, dim);
    uint32_t id[64];
    for (uint32_t t = 0; t < n_tokens; t++)
        id[t] = random_below(&g->random, VOCABULARY);
    embed_args args = {.table = table, .id = id, .n_tokens = n_tokens, .out = poisoned_floats(n)};
    g->cpu->ops->embed(g->cpu, &args);
    float *want = args.out;
    args.table = gpu_put_matrix(g, &table);
    args.id = gpu_put(g, id, n_tokens * sizeof *id);
    args.out = gpu_poisoned(g, n);
    g->ops->embed(g->d, &args);
    float *got = gpu_get_floats(g, args.out, n);
    assert_same_bits(got, want, n, g->random.seed);
    matrix_free(&table);
    free(want);
    free(got);
}

START_TEST(embed_converts_its_rows_exactly)
{
    for (size_t i = 0; i < N_OF(counts); i++) {
        for (size_t j = 0; j < N_OF(dims); j++) {
            gpu g = gpu_open(0);
            for (size_t type = 0; type < N_OF(all_dtypes); type++)
                check_embed(&g, all_dtypes[type], counts[i], dims[j]);
            gpu_close(&g);
        }
    }
}

/* With `add`: of x + add, which replaces x. In place when is_in_place. */
static void check_norm(gpu *g, uint32_t n_tokens, uint32_t dim, bool has_add, bool is_in_place)
{
    const size_t n = (size_t)n_tokens * dim;
    const dtype type = all_dtypes[random_below(&g->random, 3)];
    matrix w = random_matrix(&g->random, type, 1, dim);
    float *x = random_floats(&g->random, n), *add = random_floats(&g->random, n);
    float *sum = test_alloc(n * sizeof *sum);
    for (size_t i = 0; i < n; i++)
        sum[i] = has_add ? x[i] + add[i] : x[i];
    rms_norm_args args = {.x = sum,
                          .w = w.data,
                          .w_type = type,
                          .n_tokens = n_tokens,
                          .dim = dim,
                          .eps = 1e-5f,
                          .out = poisoned_floats(n)};
    g->cpu->ops->rms_norm(g->cpu, &args);
    float *want = args.out;
    float *x_there = gpu_put(g, x, n * sizeof *x);
    args.x = x_there;
    args.w = gpu_put_matrix(g, &w).data;
    args.out = is_in_place ? x_there : gpu_poisoned(g, n);
    if (has_add) {
        const add_norm_args with = {.norm = args, .add = gpu_put(g, add, n * sizeof *add)};
        g->ops->add_norm(g->d, &with);
    } else {
        g->ops->rms_norm(g->d, &args);
    }
    float *got = gpu_get_floats(g, args.out, n), *x_after = gpu_get_floats(g, x_there, n);
    assert_near(got, want, n, near_f32, g->random.seed);
    if (!is_in_place) assert_same_bits(x_after, sum, n, g->random.seed);
    matrix_free(&w);
    free(x);
    free(add);
    free(sum);
    free(want);
    free(got);
    free(x_after);
}

START_TEST(norms_are_those_of_the_reference_with_and_without_a_sum)
{
    for (size_t i = 0; i < N_OF(counts); i++) {
        for (size_t j = 0; j < N_OF(dims); j++) {
            gpu g = gpu_open(0);
            check_norm(&g, counts[i], dims[j], false, false);
            check_norm(&g, counts[i], dims[j], false, true);
            check_norm(&g, counts[i], dims[j], true, false);
            gpu_close(&g);
        }
    }
}

typedef struct rope_problem {
    uint32_t n_tokens, n_heads, dim;
} rope_problem;

/* `to`: rows of `kept` (device), every third nowhere; the CPU's row rounded by its own store. */
static void check_kept(gpu *g, const rope_problem *p, const float *want, dtype type,
                       const char *kept)
{
    const size_t n_rows = (size_t)p->n_tokens * p->n_heads, row_bytes = p->dim * dtype_bytes(type);
    uint8_t *got = test_alloc(n_rows * row_bytes), *row = test_alloc(row_bytes);
    gpu_get(g, got, kept, n_rows * row_bytes);
    for (size_t r = 0; r < n_rows; r++) {
        g->cpu->ops->store(want + r * p->dim, p->dim, type, row);
        if (r % 3 == 2) memset(row, 0x55, row_bytes);
        ck_assert_mem_eq(got + r * row_bytes, row, row_bytes);
    }
    free(got);
    free(row);
}

static void check_rope(gpu *g, const rope_problem *p, dtype type, bool is_turned)
{
    const size_t n_rows = (size_t)p->n_tokens * p->n_heads, n = n_rows * p->dim;
    const size_t n_angles = (size_t)p->n_tokens * (p->dim / 2),
                 row_bytes = p->dim * dtype_bytes(type);
    float *x = random_floats(&g->random, n), *cos = random_floats(&g->random, n_angles);
    float *sin = random_floats(&g->random, n_angles);
    rope_args args = {.x = gpu_put(g, x, n * sizeof *x),
                      .cos = gpu_put(g, cos, n_angles * sizeof *cos),
                      .sin = gpu_put(g, sin, n_angles * sizeof *sin),
                      .n_tokens = p->n_tokens,
                      .n_heads = p->n_heads,
                      .dim = is_turned ? p->dim : 0};
    void **to = test_alloc(n_rows * sizeof *to);
    char *blank = test_alloc(n_rows * row_bytes);
    memset(blank, 0x55, n_rows * row_bytes);
    char *kept = gpu_put(g, blank, n_rows * row_bytes);
    for (size_t r = 0; r < n_rows; r++)
        to[r] = r % 3 == 2 ? NULL : kept + r * row_bytes;
    const rope_append_args append = {
        .rope = args, .dim = p->dim, .type = type, .to = gpu_put(g, to, n_rows * sizeof *to)};
    g->ops->rope_append(g->d, &append);
    float *got = gpu_get_floats(g, args.x, n);
    const rope_args here = {.x = x,
                            .cos = cos,
                            .sin = sin,
                            .n_tokens = p->n_tokens,
                            .n_heads = p->n_heads,
                            .dim = p->dim};
    if (is_turned) g->cpu->ops->rope(g->cpu, &here);
    assert_near(got, x, n, near_f32, g->random.seed);
    check_kept(g, p, got, type, kept); /* what is kept is what stands in x, rounded once */
    free(x);
    free(cos);
    free(sin);
    free(to);
    free(blank);
    free(got);
}

START_TEST(rope_turns_and_keeps_rows_where_they_belong)
{
    static const rope_problem problems[] = {{1, 1, 2}, {3, 5, 30}, {31, 2, 128}, {2, 16, 64}};
    for (size_t i = 0; i < N_OF(problems); i++) {
        gpu g = gpu_open(0);
        check_rope(&g, &problems[i], DTYPE_F32, true);
        check_rope(&g, &problems[i], DTYPE_BF16, true);
        check_rope(&g, &problems[i], DTYPE_BF16, false);
        gpu_close(&g);
    }
}

START_TEST(rope_alone_is_the_reference)
{
    gpu g = gpu_open(0);
    enum { TOKENS = 5, HEADS = 3, DIM = 34, N = TOKENS * HEADS * DIM, N_ANGLES = TOKENS * DIM / 2 };
    float *x = random_floats(&g.random, N), *angles = random_floats(&g.random, 2 * N_ANGLES);
    rope_args args = {.x = gpu_put(&g, x, N * sizeof *x),
                      .cos = gpu_put(&g, angles, N_ANGLES * sizeof *angles),
                      .sin = gpu_put(&g, angles + N_ANGLES, N_ANGLES * sizeof *angles),
                      .n_tokens = TOKENS,
                      .n_heads = HEADS,
                      .dim = DIM};
    g.ops->rope(g.d, &args);
    float *got = gpu_get_floats(&g, args.x, N);
    args.x = x;
    args.cos = angles;
    args.sin = angles + N_ANGLES;
    g.cpu->ops->rope(g.cpu, &args);
    assert_near(got, x, N, near_f32, g.random.seed);
    free(x);
    free(angles);
    free(got);
    gpu_close(&g);
}

START_TEST(store_rounds_every_kind_of_number_as_the_reference)
{
    enum { N = 4099 };
    gpu g = gpu_open(0);
    float *x = test_alloc(N * sizeof *x);
    for (uint32_t i = 0; i < N; i++) /* any bits: NaN, infinities, subnormals, ties */
        x[i] = f32_from_bits(random_below(&g.random, UINT32_MAX) &
                             (i % 4 == 0 ? 0xffff8000u : 0xffffffffu));
    x[0] = INFINITY;
    x[1] = NAN;
    x[2] = f32_from_bits(0x7f7fffffu); /* rounds to infinity */
    uint16_t want[N], got[N];
    void *out = gpu_poisoned(&g, N);
    const float *there = gpu_put(&g, x, N * sizeof *x);
    g.cpu->ops->store(x, N, DTYPE_BF16, want);
    g.ops->store(g.d, there, N, DTYPE_BF16, out);
    gpu_get(&g, got, out, sizeof got);
    ck_assert_mem_eq(got, want, sizeof want);
    g.ops->store(g.d, there, N, DTYPE_F32, out);
    float *same = gpu_get_floats(&g, out, N);
    ck_assert_mem_eq(same, x, N * sizeof *x);
    free(x);
    free(same);
    gpu_close(&g);
}

const test_case test_cases[] = {
    TEST_CASE(embed_converts_its_rows_exactly),
    TEST_CASE(norms_are_those_of_the_reference_with_and_without_a_sum),
    TEST_CASE(rope_turns_and_keeps_rows_where_they_belong),
    TEST_CASE(rope_alone_is_the_reference),
    TEST_CASE(store_rounds_every_kind_of_number_as_the_reference),
    TEST_CASES_END,
};
