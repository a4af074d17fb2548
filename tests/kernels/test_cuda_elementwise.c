/* tests/kernels/test_cuda_elementwise.c - embed, norms, rope and put_rows of CUDA against the reference. */
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

/* In place, in rows with gaps. */
static void check_norm_gaps(gpu *g, uint32_t n_tokens, uint32_t dim)
{
    const size_t stride = dim + 7, n = n_tokens * stride;
    float *x = random_floats(&g->random, n);
    matrix w = random_matrix(&g->random, DTYPE_F32, 1, dim);
    rms_norm_args args = {.x = gpu_put(g, x, n * sizeof *x),
                          .w = gpu_put_matrix(g, &w).data,
                          .w_type = DTYPE_F32,
                          .n_tokens = n_tokens,
                          .dim = dim,
                          .eps = 1e-6f,
                          .stride = stride};
    args.out = (float *)(uintptr_t)args.x;
    g->ops->rms_norm(g->d, &args);
    float *got = gpu_get_floats(g, args.x, n);
    args.x = args.out = x;
    args.w = w.data;
    g->cpu->ops->rms_norm(g->cpu, &args);
    assert_near(got, x, n, near_f32, g->random.seed);
    free(x);
    free(got);
    matrix_free(&w);
}

START_TEST(norms_are_those_of_the_reference_with_and_without_a_sum)
{
    for (size_t i = 0; i < N_OF(counts); i++) {
        for (size_t j = 0; j < N_OF(dims); j++) {
            gpu g = gpu_open(0);
            check_norm(&g, counts[i], dims[j], false, false);
            check_norm(&g, counts[i], dims[j], false, true);
            check_norm(&g, counts[i], dims[j], true, false);
            check_norm_gaps(&g, counts[i], dims[j]);
            gpu_close(&g);
        }
    }
}

static void check_layer_norm(gpu *g, uint32_t n_tokens, uint32_t dim, dtype type)
{
    const size_t n = (size_t)n_tokens * dim;
    matrix w = random_matrix(&g->random, type, 1, dim), b = random_matrix(&g->random, type, 1, dim);
    float *x = random_floats(&g->random, n);
    layer_norm_args args = {.norm = {.x = x,
                                     .w = w.data,
                                     .w_type = type,
                                     .n_tokens = n_tokens,
                                     .dim = dim,
                                     .eps = 1e-5f,
                                     .out = poisoned_floats(n)},
                            .b = b.data};
    g->cpu->ops->layer_norm(g->cpu, &args);
    float *want = args.norm.out;
    args.norm.x = gpu_put(g, x, n * sizeof *x);
    args.norm.w = gpu_put_matrix(g, &w).data;
    args.b = gpu_put_matrix(g, &b).data;
    args.norm.out = gpu_poisoned(g, n);
    g->ops->layer_norm(g->d, &args);
    float *got = gpu_get_floats(g, args.norm.out, n);
    assert_near(got, want, n, near_f32, g->random.seed);
    matrix_free(&w);
    matrix_free(&b);
    free(x);
    free(want);
    free(got);
}

static void check_adjust(gpu *g, uint32_t n_tokens, uint32_t dim, dtype type, float limit)
{
    const size_t n = (size_t)n_tokens * dim;
    matrix b = random_matrix(&g->random, type, 1, dim);
    float *x = random_floats(&g->random, n);
    adjust_args args = {.x = gpu_put(g, x, n * sizeof *x),
                        .b = limit < 1 ? NULL : gpu_put_matrix(g, &b).data,
                        .b_type = type,
                        .n_tokens = n_tokens,
                        .dim = dim,
                        .scale = 1.5f,
                        .limit = limit};
    g->ops->adjust(g->d, &args);
    float *got = gpu_get_floats(g, args.x, n);
    args.x = x;
    args.b = args.b == NULL ? NULL : b.data;
    g->cpu->ops->adjust(g->cpu, &args);
    assert_near(got, x, n, near_f32, g->random.seed);
    matrix_free(&b);
    free(x);
    free(got);
}

START_TEST(layer_norms_biases_and_limits_are_those_of_the_reference)
{
    for (size_t i = 0; i < N_OF(counts); i++) {
        for (size_t j = 0; j < N_OF(dims); j++) {
            gpu g = gpu_open(0);
            check_layer_norm(&g, counts[i], dims[j], all_dtypes[(i + j) % 3]);
            check_adjust(&g, counts[i], dims[j], all_dtypes[(i + j) % 3], INFINITY);
            check_adjust(&g, counts[i], dims[j], all_dtypes[(i + j) % 3], 0.5f);
            gpu_close(&g);
        }
    }
}

static void check_rope(gpu *g, uint32_t n_tokens, uint32_t n_heads, uint32_t dim, size_t stride,
                       bool is_interleaved)
{
    const size_t each = stride > 0 ? stride : dim, n = (size_t)n_tokens * n_heads * each,
                 n_angles = (size_t)n_tokens * (dim / 2);
    float *x = random_floats(&g->random, n), *angles = random_floats(&g->random, 2 * n_angles);
    rope_args args = {.x = gpu_put(g, x, n * sizeof *x),
                      .cos = gpu_put(g, angles, n_angles * sizeof *angles),
                      .sin = gpu_put(g, angles + n_angles, n_angles * sizeof *angles),
                      .n_tokens = n_tokens,
                      .n_heads = n_heads,
                      .dim = dim,
                      .stride = stride,
                      .is_interleaved = is_interleaved};
    g->ops->rope(g->d, &args);
    float *got = gpu_get_floats(g, args.x, n);
    args.x = x;
    args.cos = angles;
    args.sin = angles + n_angles;
    g->cpu->ops->rope(g->cpu, &args);
    assert_near(got, x, n, near_f32, g->random.seed);
    free(x);
    free(angles);
    free(got);
}

START_TEST(rope_is_the_reference)
{
    gpu g = gpu_open(0);
    check_rope(&g, 1, 1, 2, 0, false);
    check_rope(&g, 3, 5, 30, 0, false);
    check_rope(&g, 5, 3, 34, 0, true);
    check_rope(&g, 31, 2, 128, 0, false);
    check_rope(&g, 2, 16, 64, 100, true);
    check_rope(&g, 4, 3, 16, 17, false);
    gpu_close(&g);
}

/* Any bits: NaN, infinities, subnormals, ties. */
static float *strange_floats(test_random *r, uint32_t n)
{
    float *x = test_alloc(n * sizeof *x);
    for (uint32_t i = 0; i < n; i++)
        x[i] =
            f32_from_bits(random_below(r, UINT32_MAX) & (i % 4 == 0 ? 0xffff8000u : 0xffffffffu));
    x[0] = INFINITY;
    x[1] = NAN;
    x[2] = f32_from_bits(0x7f7fffffu); /* rounds to infinity */
    return x;
}

/* Of rows that begin at the second element of a slot, which may have one more behind the row. */
static void check_put_rows(gpu *g, uint32_t n_rows, uint32_t n, dtype type, bool has_gaps)
{
    const size_t each = dtype_bytes(type), stride = (n + 2 * has_gaps) * each,
                 bytes = n_rows * stride;
    float *x = strange_floats(&g->random, n_rows * n);
    uint8_t *want = test_alloc(bytes), *got = test_alloc(bytes);
    memset(want, 0x55, bytes);
    put_rows_args args = {.n_rows = n_rows, .n = n, .type = type, .stride_bytes = stride};
    uint8_t *out = gpu_put(g, want, bytes);
    args.x = x;
    args.to = want + has_gaps * each;
    put_rows_cpu(&args);
    args.x = gpu_put(g, x, (size_t)n_rows * n * sizeof *x);
    args.to = out + has_gaps * each;
    g->ops->put_rows(g->d, &args);
    gpu_get(g, got, out, bytes);
    ck_assert_msg(memcmp(got, want, bytes) == 0, "%u rows of %u (seed %llu)", n_rows, n,
                  (unsigned long long)g->random.seed);
    free(x);
    free(want);
    free(got);
}

START_TEST(put_rows_rounds_every_kind_of_number_as_the_reference)
{
    gpu g = gpu_open(0);
    for (size_t i = 0; i < 2; i++) {
        check_put_rows(&g, 1, 4099, all_dtypes[i], false);
        check_put_rows(&g, 1, 7, all_dtypes[i], true);
        check_put_rows(&g, 33, 64, all_dtypes[i], true);
        check_put_rows(&g, 5, 35, all_dtypes[i], false);
    }
    const put_rows_args nothing = {.type = DTYPE_BF16, .n = 8};
    g.ops->put_rows(g.d, &nothing);
    gpu_close(&g);
}

START_TEST(a_graph_runs_again_over_what_its_arguments_lead_to)
{
    enum { N = 300, N_RUNS = 3, N_KEYS = 2 };
    gpu g = gpu_open(0);
    float *x = random_floats(&g.random, N), *y = random_floats(&g.random, N);
    add_args args = {.x = gpu_put(&g, x, N * sizeof *x), .n = N};
    float *there = gpu_put(&g, y, N * sizeof *y);
    args.y = there;
    for (uint32_t i = 0; i < N_RUNS * N_KEYS; i++) {
        dev_cuda_begin_graph(g.d, i % N_KEYS);
        for (uint32_t k = 0; k <= i % N_KEYS; k++)
            g.ops->add(g.d, &args);
        dev_cuda_end_graph(g.d);
        for (uint32_t k = 0; k <= i % N_KEYS; k++)
            g.cpu->ops->add(g.cpu, &(add_args){.x = x, .y = y, .n = N});
        y[i] = (float)i; /* seen by the next run */
        ck_assert(dev_cuda_upload(g.d, there, y, N * sizeof *y, NULL) == ERR_OK);
    }
    float *got = gpu_get_floats(&g, args.x, N);
    assert_same_bits(got, x, N, g.random.seed);
    free(x);
    free(y);
    free(got);
    gpu_close(&g);
}

const test_case test_cases[] = {
    TEST_CASE(embed_converts_its_rows_exactly),
    TEST_CASE(norms_are_those_of_the_reference_with_and_without_a_sum),
    TEST_CASE(layer_norms_biases_and_limits_are_those_of_the_reference),
    TEST_CASE(rope_is_the_reference),
    TEST_CASE(put_rows_rounds_every_kind_of_number_as_the_reference),
    TEST_CASE(a_graph_runs_again_over_what_its_arguments_lead_to),
    TEST_CASES_END,
};
