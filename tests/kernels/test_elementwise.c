/* tests/kernels/test_elementwise.c - embed, rms_norm, rope, store, and the number formats. */
#include "tests/kernels/fixture.h"

#include <math.h>
#include <stdlib.h>

static const uint32_t dims[] = {1, 2, 7, 16, 31, 64, 100, 4096};
enum { N_DIMS = sizeof dims / sizeof dims[0] };

START_TEST(embed_copies_rows_exactly)
{
    static const uint32_t id[5] = {3, 0, 8, 3, 1};
    test_random r = random_fresh();
    for (size_t i = 0; i < N_DIMS * 3; i++) {
        const uint32_t dim = dims[i / 3];
        matrix table = random_matrix(&r, all_dtypes[i % 3], 9, dim);
        float *want = poisoned_floats(5 * (size_t)dim);
        for (const dev_ops *const *t = dev_cpu_tables(); *t != NULL; t++) {
            dev *d = open_table((*t)->name, 2);
            float *out = t == dev_cpu_tables() ? want : poisoned_floats(5 * (size_t)dim);
            const embed_args args = {.table = table, .id = id, .n_tokens = 5, .out = out};
            d->ops->embed(d, &args);
            assert_same_bits(out, want, 5 * (size_t)dim, r.seed);
            if (out != want) free(out);
            dev_close(d);
        }
        free(want);
        matrix_free(&table);
    }
}
END_TEST

static float *normed(const char *isa, const float *x, const matrix *w, uint32_t n_tokens)
{
    const size_t n = (size_t)n_tokens * w->cols;
    float *out = test_alloc(n * sizeof *out);
    memcpy(out, x, n * sizeof *out); /* in place: out may be x */
    dev *d = open_table(isa, 2);
    const rms_norm_args args = {.x = out,
                                .w = w->data,
                                .w_type = w->type,
                                .n_tokens = n_tokens,
                                .dim = w->cols,
                                .eps = 1e-5f,
                                .out = out};
    d->ops->rms_norm(d, &args);
    dev_close(d);
    return out;
}

START_TEST(rms_norm_agrees_and_a_token_does_not_see_the_batch)
{
    enum { N_TOKENS = 19 };
    test_random r = random_fresh();
    for (size_t i = 0; i < N_DIMS * 3; i++) {
        const uint32_t dim = dims[i / 3];
        matrix w = random_matrix(&r, all_dtypes[i % 3], 1, dim);
        float *x = random_floats(&r, N_TOKENS * (size_t)dim);
        float *want = normed("ref", x, &w, N_TOKENS);
        for (const dev_ops *const *t = dev_cpu_tables(); *t != NULL; t++) {
            float *all = normed((*t)->name, x, &w, N_TOKENS);
            float *last = normed((*t)->name, x + (N_TOKENS - 1) * (size_t)dim, &w, 1);
            assert_near(all, want, N_TOKENS * (size_t)dim, (tolerance){1e-7, 2e-6}, r.seed);
            assert_same_bits(last, all + (N_TOKENS - 1) * (size_t)dim, dim, r.seed);
            free(all);
            free(last);
        }
        free(want);
        free(x);
        matrix_free(&w);
    }
}
END_TEST

static float *layer_normed(const char *isa, const float *x, const matrix w[2], uint32_t n_tokens)
{
    const size_t n = (size_t)n_tokens * w[0].cols;
    float *out = test_alloc(n * sizeof *out);
    memcpy(out, x, n * sizeof *out); /* in place: out may be x */
    dev *d = open_table(isa, 2);
    const layer_norm_args args = {.norm = {.x = out,
                                           .w = w[0].data,
                                           .w_type = w[0].type,
                                           .n_tokens = n_tokens,
                                           .dim = w[0].cols,
                                           .eps = 1e-5f,
                                           .out = out},
                                  .b = w[1].data};
    d->ops->layer_norm(d, &args);
    dev_close(d);
    return out;
}

START_TEST(layer_norm_agrees_and_a_token_does_not_see_the_batch)
{
    enum { N_TOKENS = 19 };
    test_random r = random_fresh();
    for (size_t i = 0; i < N_DIMS * 3; i++) {
        const uint32_t dim = dims[i / 3];
        matrix w[2] = {random_matrix(&r, all_dtypes[i % 3], 1, dim),
                       random_matrix(&r, all_dtypes[i % 3], 1, dim)};
        float *x = random_floats(&r, N_TOKENS * (size_t)dim);
        float *want = layer_normed("ref", x, w, N_TOKENS);
        for (const dev_ops *const *t = dev_cpu_tables(); *t != NULL; t++) {
            float *all = layer_normed((*t)->name, x, w, N_TOKENS);
            float *last = layer_normed((*t)->name, x + (N_TOKENS - 1) * (size_t)dim, w, 1);
            assert_near(all, want, N_TOKENS * (size_t)dim, (tolerance){1e-6, 2e-6}, r.seed);
            assert_same_bits(last, all + (N_TOKENS - 1) * (size_t)dim, dim, r.seed);
            free(all);
            free(last);
        }
        free(want);
        free(x);
        matrix_free(&w[0]);
        matrix_free(&w[1]);
    }
}
END_TEST

/* Mean 3, deviations -3, -1, 1, 3: variance 5. */
START_TEST(layer_norm_takes_the_mean_away_and_adds_the_bias)
{
    const float w[4] = {1, 2, 1, 1}, b[4] = {0.5f, 0, 0, -1};
    const double scale = 1 / sqrt(5 + 0.25);
    const double want[4] = {-3 * scale + 0.5, -2 * scale, scale, 3 * scale - 1};
    for (const dev_ops *const *t = dev_cpu_tables(); *t != NULL; t++) {
        float x[4] = {0, 2, 4, 6};
        dev *d = open_table((*t)->name, 1);
        d->ops->layer_norm(d, &(layer_norm_args){.norm = {.x = x,
                                                          .w = w,
                                                          .w_type = DTYPE_F32,
                                                          .n_tokens = 1,
                                                          .dim = 4,
                                                          .eps = 0.25f,
                                                          .out = x},
                                                 .b = b});
        for (int i = 0; i < 4; i++)
            ck_assert_double_eq_tol((double)x[i], want[i], 1e-6);
        dev_close(d);
    }
}
END_TEST

START_TEST(adjust_scales_adds_and_clips)
{
    static const float b[3] = {1, -1, 10};
    static const float wants[3][6] = {
        {3, 3, 16, -7, 5, 10}, {2, 4, 5, -5, 5, 0}, {3, 3, 5, -5, 5, 5}};
    for (const dev_ops *const *t = dev_cpu_tables(); *t != NULL; t++) {
        dev *d = open_table((*t)->name, 2);
        for (int i = 0; i < 3; i++) {
            float x[6] = {1, 2, 3, -4, 3, 0};
            d->ops->adjust(d, &(adjust_args){.x = x,
                                             .b = i == 1 ? NULL : b,
                                             .b_type = DTYPE_F32,
                                             .n_tokens = 2,
                                             .dim = 3,
                                             .scale = 2,
                                             .limit = i == 0 ? INFINITY : 5});
            for (int k = 0; k < 6; k++)
                ck_assert_float_eq(x[k], wants[i][k]);
        }
        dev_close(d);
    }
}
END_TEST

START_TEST(rope_rotates_half_split_pairs)
{
    test_random r = random_fresh();
    for (size_t i = 1; i < N_DIMS; i++) {
        const uint32_t dim = dims[i] / 2 * 2, n_heads = 3, n_tokens = 4;
        const size_t n = (size_t)n_tokens * n_heads * dim, n_angles = (size_t)n_tokens * dim / 2;
        float *x = random_floats(&r, n), *angle = random_floats(&r, n_angles);
        float *cs = poisoned_floats(n_angles), *sn = poisoned_floats(n_angles);
        float *got = poisoned_floats(n), *want = poisoned_floats(n);
        for (size_t a = 0; a < n_angles; a++) {
            cs[a] = cosf(3 * angle[a]);
            sn[a] = sinf(3 * angle[a]);
        }
        for (size_t j = 0; j < n; j++) {
            const size_t t = j / dim / n_heads, c = j % dim, half = dim / 2;
            const size_t a = t * half + c % half, head = j - c;
            const double x0 = (double)x[head + c % half], x1 = (double)x[head + half + c % half];
            want[j] = (float)(c < half ? x0 * (double)cs[a] - x1 * (double)sn[a]
                                       : x1 * (double)cs[a] + x0 * (double)sn[a]);
        }
        for (const dev_ops *const *t = dev_cpu_tables(); *t != NULL; t++) {
            dev *d = open_table((*t)->name, 2);
            memcpy(got, x, n * sizeof *got);
            const rope_args args = {.x = got,
                                    .cos = cs,
                                    .sin = sn,
                                    .n_tokens = n_tokens,
                                    .n_heads = n_heads,
                                    .dim = dim};
            d->ops->rope(d, &args);
            assert_near(got, want, n, (tolerance){2e-7, 1e-6}, r.seed);
            dev_close(d);
        }
        free(x);
        free(angle);
        free(cs);
        free(sn);
        free(got);
        free(want);
    }
}
END_TEST

/* Against rows and heads that lie close together: those with gaps have the same bits, and the gaps stay. */
static void check_gaps(const dev_ops *ops, const float *x, uint32_t dim, bool is_interleaved)
{
    enum { N_TOKENS = 3, N_HEADS = 2, N_ROWS = N_TOKENS * N_HEADS, GAP = 5 };
    test_random r = random_fresh();
    const size_t wide = (size_t)dim + GAP;
    dev *d = open_table(ops->name, 2);
    matrix w = random_matrix(&r, DTYPE_F32, 1, dim);
    float *angle = random_floats(&r, (size_t)N_TOKENS * dim),
          *close = test_alloc(N_ROWS * wide * 4);
    float *gaps = poisoned_floats(N_ROWS * wide), *untouched = poisoned_floats(N_ROWS * wide);
    memcpy(close, x, (size_t)N_ROWS * dim * sizeof *x);
    for (size_t row = 0; row < N_ROWS; row++)
        memcpy(gaps + row * wide, x + row * dim, dim * sizeof *x);
    for (int i = 0; i < 2; i++) {
        float *at = i == 0 ? close : gaps;
        const size_t stride = i == 0 ? 0 : wide;
        d->ops->rms_norm(d, &(rms_norm_args){.x = at,
                                             .w = w.data,
                                             .w_type = DTYPE_F32,
                                             .n_tokens = N_ROWS,
                                             .dim = dim,
                                             .eps = 1e-6f,
                                             .out = at,
                                             .stride = stride});
        d->ops->rope(d, &(rope_args){.x = at,
                                     .cos = angle,
                                     .sin = angle + (size_t)N_TOKENS * dim / 2,
                                     .n_tokens = N_TOKENS,
                                     .n_heads = N_HEADS,
                                     .dim = dim,
                                     .stride = stride,
                                     .is_interleaved = is_interleaved});
    }
    for (size_t row = 0; row < N_ROWS; row++) {
        assert_same_bits(gaps + row * wide, close + row * dim, dim, r.seed);
        assert_same_bits(gaps + row * wide + dim, untouched + row * wide + dim, GAP, r.seed);
    }
    matrix_free(&w);
    free(angle);
    free(close);
    free(gaps);
    free(untouched);
    dev_close(d);
}

START_TEST(rows_with_gaps_have_the_bits_of_those_without)
{
    test_random r = random_fresh();
    for (size_t i = 1; i < N_DIMS; i++) {
        const uint32_t dim = dims[i] / 2 * 2;
        float *x = random_floats(&r, (size_t)6 * dim);
        for (const dev_ops *const *t = dev_cpu_tables(); *t != NULL; t++) {
            check_gaps(*t, x, dim, false);
            check_gaps(*t, x, dim, true);
        }
        free(x);
    }
}
END_TEST

/* Interleaved pairs are half-split ones in another order of the channels. */
START_TEST(rope_rotates_interleaved_pairs)
{
    enum { DIM = 38, N_TOKENS = 4, N_HEADS = 3, N = N_TOKENS * N_HEADS * DIM };
    test_random r = random_fresh();
    float *x = random_floats(&r, N), *angle = random_floats(&r, N_TOKENS * DIM);
    float *pairs = poisoned_floats(N), *halves = poisoned_floats(N), *want = poisoned_floats(N);
    for (const dev_ops *const *t = dev_cpu_tables(); *t != NULL; t++) {
        dev *d = open_table((*t)->name, 2);
        rope_args args = {.x = pairs,
                          .cos = angle,
                          .sin = angle + N_TOKENS * DIM / 2,
                          .n_tokens = N_TOKENS,
                          .n_heads = N_HEADS,
                          .dim = DIM,
                          .is_interleaved = true};
        for (size_t i = 0; i < N; i++) {
            const size_t head = i / DIM * DIM, c = i % DIM;
            pairs[i] = x[i];
            halves[i] = x[c < DIM / 2 ? head + 2 * c : head + 2 * (c - DIM / 2) + 1];
        }
        d->ops->rope(d, &args);
        args.x = halves;
        args.is_interleaved = false;
        d->ops->rope(d, &args);
        for (size_t i = 0; i < N; i++)
            want[i] = halves[i / DIM * DIM + i % DIM / 2 + (i % DIM % 2) * (DIM / 2)];
        assert_near(pairs, want, N, (tolerance){2e-7, 1e-6}, r.seed);
        dev_close(d);
    }
    free(x);
    free(angle);
    free(pairs);
    free(halves);
    free(want);
}
END_TEST

START_TEST(store_rounds_to_nearest_even_everywhere)
{
    enum { N = 4003 };
    test_random r = random_fresh();
    float *x = test_alloc(N * sizeof *x);
    static const uint32_t special[] = {0,          0x80000000, 0x7f800000, 0xff800000, 0x7f800001,
                                       0xffffffff, 0x7f7fffff, 0x3f808000, 0x3f818000, 0x00000001,
                                       0x3f807fff, 0x3f808001, 0x7f7f8000, 0xff7f7fff, 0x80007fff};
    for (size_t i = 0; i < N; i++) {
        const uint32_t low = random_below(&r, 1u << 16), high = random_below(&r, 1u << 16);
        x[i] = f32_from_bits(i < 15 ? special[i] : high << 16 | low);
    }
    for (const dev_ops *const *t = dev_cpu_tables(); *t != NULL; t++) {
        uint16_t *half = test_alloc(N * sizeof *half);
        float *copy = poisoned_floats(N);
        (*t)->store(x, N, DTYPE_BF16, half);
        (*t)->store(x, N, DTYPE_F32, copy);
        for (size_t i = 0; i < N; i++) {
            ck_assert_uint_eq(half[i], bf16_from_f32(x[i]));
            ck_assert_uint_eq(f32_bits(copy[i]), f32_bits(x[i]));
        }
        free(half);
        free(copy);
    }
    free(x);
}
END_TEST

START_TEST(every_half_survives_the_way_through_f32)
{
    for (uint32_t h = 0; h <= 0xffff; h++) {
        const uint16_t half = (uint16_t)h;
        const float x = f32_from_f16(half);
        const bool is_nan = (half & 0x7fffu) > 0x7c00u;
        ck_assert_uint_eq(f16_from_f32(x), is_nan ? (half | 0x0200u) : half);
        const float y = f32_from_bf16(half);
        const bool is_bf16_nan = (half & 0x7fffu) > 0x7f80u;
        ck_assert_uint_eq(bf16_from_f32(y), is_bf16_nan ? (half | 0x0040u) : half);
    }
}
END_TEST

START_TEST(f16_rounds_to_nearest_even)
{
    ck_assert_uint_eq(f16_from_f32(1), 0x3c00);
    ck_assert_uint_eq(f16_from_f32(65504), 0x7bff);
    ck_assert_uint_eq(f16_from_f32(65519), 0x7bff);
    ck_assert_uint_eq(f16_from_f32(65520), 0x7c00);
    ck_assert_uint_eq(f16_from_f32(0x1p-24f), 0x0001);
    ck_assert_uint_eq(f16_from_f32(0x1p-25f), 0x0000); /* a tie, to even */
    ck_assert_uint_eq(f16_from_f32(0x1.8p-24f), 0x0002);
    ck_assert_uint_eq(f16_from_f32(1 + 0x1p-11f), 0x3c00);
    ck_assert_uint_eq(f16_from_f32(1 + 0x1.8p-10f), 0x3c02);
    ck_assert_uint_eq(f16_from_f32(-0.0f), 0x8000);
    ck_assert_str_eq(dtype_name(DTYPE_BF16), "bf16");
}
END_TEST

/* ---- the device ---- */

START_TEST(auto_takes_the_best_table)
{
    const dev_ops *best = NULL;
    for (const dev_ops *const *t = dev_cpu_tables(); *t != NULL; t++)
        best = *t;
    dev *d = open_table("auto", 0);
    ck_assert_str_eq(d->ops->name, best->name);
    ck_assert_uint_ge(thread_pool_n_threads(d->pool), 1);
    ck_assert_str_eq(dev_cpu_tables()[0]->name, "ref");
    dev_close(d);
    dev_close(NULL);
}
END_TEST

START_TEST(an_unknown_instruction_set_is_named_in_the_error)
{
    const dev_config config = {.isa = "avx1024", .n_threads = 1};
    err_info info = {0};
    dev *d;
    ck_assert_int_eq(dev_open_cpu(&config, &d, &info), ERR_BAD_CONFIG);
    ck_assert_ptr_null(d);
    ck_assert_ptr_nonnull(strstr(info.message, "\"avx1024\""));
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE(embed_copies_rows_exactly),
    TEST_CASE(rms_norm_agrees_and_a_token_does_not_see_the_batch),
    TEST_CASE(layer_norm_agrees_and_a_token_does_not_see_the_batch),
    TEST_CASE(layer_norm_takes_the_mean_away_and_adds_the_bias),
    TEST_CASE(adjust_scales_adds_and_clips),
    TEST_CASE(rope_rotates_half_split_pairs),
    TEST_CASE(rows_with_gaps_have_the_bits_of_those_without),
    TEST_CASE(rope_rotates_interleaved_pairs),
    TEST_CASE(store_rounds_to_nearest_even_everywhere),
    TEST_CASE(every_half_survives_the_way_through_f32),
    TEST_CASE(f16_rounds_to_nearest_even),
    TEST_CASE(auto_takes_the_best_table),
    TEST_CASE(an_unknown_instruction_set_is_named_in_the_error),
    TEST_CASES_END,
};
