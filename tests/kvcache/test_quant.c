/* tests/kvcache/test_quant.c - grids, codes and fp8 against numbers that others computed.
 *
 * The inputs are those of golden_layer.h; codes, scales and errors were computed with the published KIVI
 * code and torch's float8. */
#include "kvcache/compression/quant.h"
#include "tests/kernels/golden_layer.h"
#include "tests/test_main.h"

#include "base/random.h"

#include <math.h>

enum { T = 48, HEADS = 2, D = 8, GROUP = 32 };

typedef float entries[HEADS][T][D];

static void make_entries(entries k, entries v)
{
    for (uint32_t h = 0; h < HEADS; h++) {
        for (uint32_t t = 0; t < T; t++) {
            golden_key(h, t, k[h][t]);
            golden_value(h, t, v[h][t]);
        }
    }
}

START_TEST(the_generator_makes_the_published_inputs)
{
    static entries k, v;
    make_entries(k, v);
    ck_assert_double_eq_tol((double)k[0][0][0], -1.46190044, 1e-7);
    ck_assert_double_eq_tol((double)k[0][1][2], 0.51423602, 1e-7);
    ck_assert_double_eq_tol((double)k[1][47][7], 0.81181883, 1e-7);
    ck_assert_double_eq_tol((double)v[1][5][2], -1.60029002, 1e-7);
}
END_TEST

/* ---- KIVI ---------------------------------------------------------------------------------------- */

/* Codes of n numbers in 32-bit words, the first in the lowest bits. */
static void check_words(const float *x, uint32_t n, uint32_t stride, uint32_t bits,
                        const uint32_t *words)
{
    uint8_t row[64] = {0};
    const code_grid grid = code_grid_fit(x, n, stride, bits);
    for (uint32_t i = 0; i < n; i++)
        code_put(row, bits, i, code_grid_find(grid, x[i * stride], bits));
    for (uint32_t i = 0; i < n; i++)
        ck_assert_uint_eq(code_get(row, bits, i),
                          words[i * bits / 32] >> i * bits % 32 & ((1u << bits) - 1));
}

START_TEST(grids_and_codes_are_those_of_kivi)
{
    static entries k, v;
    make_entries(k, v);
    const code_grid two = code_grid_fit(&k[0][0][0], GROUP, D, 2);
    ck_assert_double_eq_tol((double)two.scale, 2.532727, 1e-6);
    ck_assert_double_eq_tol((double)two.min, -2.849160, 1e-6);
    const code_grid four = code_grid_fit(&k[0][0][0], GROUP, D, 4);
    ck_assert_double_eq_tol((double)four.scale, 0.506545, 1e-6);
    check_words(&k[0][0][0], GROUP, D, 2, (uint32_t[]){0x25761595, 0x55a46694});
    check_words(&k[0][0][0], GROUP, D, 4,
                (uint32_t[]){0x04658753, 0x29347f58, 0x797a9732, 0x73579960});
    float value[GROUP];
    for (uint32_t i = 0; i < GROUP; i++)
        value[i] = v[0][3][i % D];
    check_words(value, GROUP, 1, 2, (uint32_t[]){0x61d561d5, 0x61d561d5});
    check_words(value, GROUP, 1, 4, (uint32_t[]){0x5904f635, 0x5904f635, 0x5904f635, 0x5904f635});
}
END_TEST

/* ||x - x^|| / ||x||, summed over what is added. */
typedef struct norms {
    double error, all;
} norms;

static void add_error(norms *n, double x, double decoded)
{
    n->error += (x - decoded) * (x - decoded);
    n->all += x * x;
}

static double relative(norms n)
{
    return sqrt(n.error / n.all);
}

/* The error of one group under its grid. */
static void add_group(norms *n, const float *x, uint32_t count, uint32_t stride, uint32_t bits)
{
    const code_grid grid = code_grid_fit(x, count, stride, bits);
    for (uint32_t i = 0; i < count; i++) {
        const uint32_t code = code_grid_find(grid, x[i * stride], bits);
        add_error(n, (double)x[i * stride], (double)code * (double)grid.scale + (double)grid.min);
    }
}

static double key_error(entries k, uint32_t bits, bool per_channel)
{
    norms n = {0};
    for (uint32_t h = 0; h < HEADS; h++) {
        for (uint32_t c = 0; c < D && per_channel; c++)
            add_group(&n, &k[h][0][c], GROUP, D, bits);
        for (uint32_t t = 0; t < GROUP && !per_channel; t++)
            add_group(&n, k[h][t], D, 1, bits);
    }
    return relative(n);
}

START_TEST(errors_of_keys_are_those_of_kivi)
{
    static entries k, v;
    make_entries(k, v);
    ck_assert_double_eq_tol(key_error(k, 2, true), 0.394476, 1e-5);
    ck_assert_double_eq_tol(key_error(k, 4, true), 0.0782496, 1e-6);
    ck_assert_double_le(key_error(k, 8, true), 0.0782496 / 15);
}
END_TEST

/* What grids per channel are for: on numbers without outliers they gain nothing. */
START_TEST(grids_per_channel_win_where_channels_are_outliers)
{
    static entries k, v;
    make_entries(k, v);
    ck_assert_double_gt(key_error(k, 4, true), key_error(k, 4, false));
    norms channel = {0}, token = {0};
    for (uint32_t t = 0; t < T; t++) {
        k[0][t][2] *= 20;
        k[0][t][5] *= 20;
    }
    for (uint32_t c = 0; c < D; c++) { /* the error of the channels that are none */
        if (c == 2 || c == 5) continue;
        add_group(&channel, &k[0][0][c], GROUP, D, 4);
    }
    for (uint32_t t = 0; t < GROUP; t++) {
        const code_grid grid = code_grid_fit(k[0][t], D, 1, 4);
        for (uint32_t c = 0; c < D; c++) {
            if (c == 2 || c == 5) continue;
            const uint32_t code = code_grid_find(grid, k[0][t][c], 4);
            add_error(&token, (double)k[0][t][c],
                      (double)code * (double)grid.scale + (double)grid.min);
        }
    }
    ck_assert_double_gt(relative(token), 3 * relative(channel));
}
END_TEST

/* ---- the stored grid ----------------------------------------------------------------------------- */

static bool is_bf16(float x)
{
    return (f32_bits(x) & 0xffff) == 0;
}

START_TEST(a_stored_grid_covers_its_numbers)
{
    for (uint32_t i = 0; i < 20000; i++) {
        float x[16];
        const uint32_t n = 1 + i % 16, bits = 2u << i % 3;
        const float width = exp2f((float)(i % 40) - 20), offset = i % 5 == 0 ? 1000 * width : 0;
        for (uint32_t j = 0; j < n; j++)
            x[j] = offset + width * (random_uniform(9, i, j) - 0.5f);
        const code_grid grid = code_grid_fit_stored(x, n, 1, bits);
        ck_assert(is_bf16(grid.scale) && is_bf16(grid.min));
        ck_assert(grid.scale > 0);
        for (uint32_t j = 0; j < n; j++) {
            const uint32_t code = code_grid_find(grid, x[j], bits);
            const double decoded = (double)code * (double)grid.scale + (double)grid.min;
            ck_assert(grid.min <= x[j]);
            ck_assert_uint_lt(code, 1u << bits);
            ck_assert_double_le(fabs((double)x[j] - decoded),
                                (double)grid.scale / 2 * (1 + 1e-5) + 1e-6 * fabs((double)x[j]));
        }
    }
}
END_TEST

START_TEST(equal_and_impossible_numbers_have_a_grid)
{
    const float same[4] = {3.14159f, 3.14159f, 3.14159f, 3.14159f}, zeros[4] = {0};
    const float bad[4] = {NAN, INFINITY, -INFINITY, 1};
    code_grid grid = code_grid_fit(same, 4, 1, 4);
    ck_assert(grid.scale == 1);
    ck_assert_uint_eq(code_grid_find(grid, same[0], 4), 0);
    grid = code_grid_fit_stored(zeros, 4, 1, 4);
    ck_assert(grid.scale == 1 && grid.min == 0);
    grid = code_grid_fit_stored(bad, 4, 1, 8);
    ck_assert(isfinite(grid.scale) && isfinite(grid.min));
    for (uint32_t i = 0; i < 4; i++)
        ck_assert_uint_lt(code_grid_find(grid, bad[i], 8), 256);
}
END_TEST

START_TEST(codes_round_to_even_and_pack_without_loss)
{
    const code_grid unit = {.scale = 1, .min = 0};
    ck_assert_uint_eq(code_grid_find(unit, 0.5f, 4), 0);
    ck_assert_uint_eq(code_grid_find(unit, 1.5f, 4), 2);
    ck_assert_uint_eq(code_grid_find(unit, 2.5f, 4), 2);
    ck_assert_uint_eq(code_grid_find(unit, -3, 4), 0);
    ck_assert_uint_eq(code_grid_find(unit, 99, 4), 15);
    for (uint32_t bits = 2; bits <= 8; bits *= 2) {
        uint8_t row[256] = {0};
        for (uint32_t c = 0; c < 256; c++)
            code_put(row, bits, c, c * 7 % (1u << bits));
        for (uint32_t c = 0; c < 256; c++)
            ck_assert_uint_eq(code_get(row, bits, c), c * 7 % (1u << bits));
    }
}
END_TEST

/* ---- fp8 ----------------------------------------------------------------------------------------- */

/* scale 0: the largest number of each head becomes 448, as in a page. */
static double fp8_error(entries x, float scale)
{
    norms n = {0};
    for (uint32_t h = 0; h < HEADS; h++) {
        const float *head = &x[h][0][0];
        float max = 0;
        for (uint32_t i = 0; i < T * D; i++)
            max = fmaxf(max, fabsf(head[i]));
        const float s = scale > 0 ? scale : max / 448;
        for (uint32_t i = 0; i < T * D; i++)
            add_error(&n, (double)head[i],
                      (double)f32_from_fp8(fp8_from_f32(head[i] / s)) * (double)s);
    }
    return relative(n);
}

START_TEST(fp8_has_the_error_of_e4m3)
{
    static entries k, v;
    make_entries(k, v);
    ck_assert_double_eq_tol(fp8_error(k, 0), 0.026, 0.0005);
    ck_assert_double_eq_tol(fp8_error(k, 1), 0.027, 0.0005);
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE(the_generator_makes_the_published_inputs),
    TEST_CASE(grids_and_codes_are_those_of_kivi),
    TEST_CASE(errors_of_keys_are_those_of_kivi),
    TEST_CASE(grids_per_channel_win_where_channels_are_outliers),
    TEST_CASE(a_stored_grid_covers_its_numbers),
    TEST_CASE(equal_and_impossible_numbers_have_a_grid),
    TEST_CASE(codes_round_to_even_and_pack_without_loss),
    TEST_CASE(fp8_has_the_error_of_e4m3),
    TEST_CASES_END,
};
