/* Copies of tensors that ops cannot read in place: whose they are, and what they hold. */
#include "model/family.h"
#include "model/weights.h"
#include "tests/test_main.h"

#include <string.h>

/* Experts lie turned in its files, so that all are copied. */
static const char *const turned = "tests/golden/gpt_oss-base-bf16";

typedef struct loaded {
    model_config config;
    const model_family *family;
    model_weights w;
} loaded;

/* With the experts of one rank of two: every other one. */
static loaded load_half(const char *dir, uint32_t rank)
{
    loaded m = {0};
    err_info info = {0};
    ck_assert_msg(model_config_read(dir, &m.config, &info) == ERR_OK, "%s", info.message);
    m.family = model_family_find(m.config.family);
    ck_assert_int_eq(model_weights_find(dir, m.family, &m.config, &m.w, &info), ERR_OK);
    for (size_t i = 0; i < (size_t)m.config.n_layers * m.config.n_experts; i++)
        m.w.is_read[i] = rank > 1 || i % 2 == rank;
    ck_assert_int_eq(model_weights_copy(m.family, &m.config, &m.w, &info), ERR_OK);
    return m;
}

static bool is_zero(const matrix *m)
{
    const uint8_t *const bytes = m->data;
    for (size_t i = 0; i < matrix_bytes(m); i++) {
        if (bytes[i] != 0) return false;
    }
    return true;
}

static void check_same(const matrix *a, const matrix *b)
{
    ck_assert_uint_eq(matrix_bytes(a), matrix_bytes(b));
    ck_assert_mem_eq(a->data, b->data, matrix_bytes(a));
}

static void check_expert(const moe_expert *a, const moe_expert *b)
{
    check_same(&a->gate, &b->gate);
    check_same(&a->up, &b->up);
    check_same(&a->down, &b->down);
    check_same(&a->gate_bias, &b->gate_bias);
}

START_TEST(a_rank_copies_the_experts_that_it_has)
{
    loaded all = load_half(turned, 2), half = load_half(turned, 1);
    const size_t n = (size_t)all.config.n_layers * all.config.n_experts;
    ck_assert_uint_gt(all.w.notes.copied_bytes, 0);
    ck_assert_uint_eq(all.w.copies_bytes, half.w.copies_bytes);
    for (size_t i = 0; i < n; i++) {
        ck_assert(half.w.is_held[i] == (i % 2 == 1));
        ck_assert(!is_zero(&all.w.experts[i].gate));
        if (i % 2 == 1) check_expert(&all.w.experts[i], &half.w.experts[i]);
        if (i % 2 == 0) ck_assert(is_zero(&half.w.experts[i].gate)); /* nothing was written */
    }
    check_same(&all.w.layer[0].o, &half.w.layer[0].o);
    model_weights_deinit(&all.w);
    model_weights_deinit(&half.w);
}
END_TEST

START_TEST(copies_come_with_experts_that_move)
{
    loaded all = load_half(turned, 2), half = load_half(turned, 1);
    const size_t n = (size_t)all.config.n_layers * all.config.n_experts;
    for (size_t i = 0; i < n; i++)
        half.w.is_read[i] = i % 3 == 0;
    model_weights_hold(half.family, &half.config, &half.w, true);
    for (size_t i = 0; i < n; i++) {
        ck_assert(half.w.is_held[i] == (i % 3 == 0));
        if (i % 3 == 0) check_expert(&all.w.experts[i], &half.w.experts[i]);
    }
    model_weights_hold(half.family, &half.config, &half.w, false);
    for (size_t i = 0; i < n; i++)
        ck_assert(!half.w.is_held[i]);
    for (size_t i = 0; i < n; i++)
        half.w.is_read[i] = true;
    model_weights_hold(half.family, &half.config, &half.w, true);
    for (size_t i = 0; i < n; i++)
        check_expert(&all.w.experts[i], &half.w.experts[i]);
    model_weights_deinit(&all.w);
    model_weights_deinit(&half.w);
}
END_TEST

/* kv_b_proj in another order, and heads that blocks of scales do not fit: what codes and scales mean, to the bit. */
START_TEST(codes_that_are_cut_by_heads_become_what_they_mean)
{
    static const struct {
        const char *dir;
        bool is_query_whole;
    } cases[] = {{"tests/golden/deepseek_v3-fp8-heads", true},
                 {"tests/golden/deepseek_v3-fp8-cut", false}};
    for (size_t i = 0; i < 2; i++) {
        loaded m = load_half(cases[i].dir, 2);
        const uint32_t rank = m.config.latent.kv_rank, nope = m.config.latent.nope_dim,
                       v = m.config.v_dim, last = m.config.n_heads - 1;
        const matrix up = m.w.layer[1].kv_b;
        model_weights file;
        ck_assert_int_eq(model_weights_find(cases[i].dir, m.family, &m.config, &file, NULL),
                         ERR_OK);
        matrix codes = file.layer[1].kv_b;
        float scales[64]; /* in the file they may lie at any address */
        ck_assert_uint_le(matrix_scale_bytes(&codes), sizeof scales);
        memcpy(scales, codes.scale, matrix_scale_bytes(&codes));
        codes.scale = scales;
        ck_assert_int_eq(codes.type, DTYPE_FP8);
        ck_assert_int_eq(up.type, DTYPE_F32);
        ck_assert(m.w.layer[1].q.type == (cases[i].is_query_whole ? DTYPE_FP8 : DTYPE_F32));
        ck_assert_int_eq(m.w.layer[1].o.type, DTYPE_FP8);
        const float *const values = up.data, *const value_rows = values + (last + 1) * nope * rank;
        for (uint32_t r = 0; r < rank; r++) {
            for (uint32_t c = 0; c < nope; c++)
                ck_assert_float_eq(values[(last * rank + r) * nope + c],
                                   matrix_element(&codes, last * (nope + v) + c, r));
            for (uint32_t c = 0; c < v; c++)
                ck_assert_float_eq(value_rows[(last * v + c) * rank + r],
                                   matrix_element(&codes, last * (nope + v) + nope + c, r));
        }
        ck_assert_uint_eq(m.w.notes.n_expanded, cases[i].is_query_whole ? 2 : 4);
        ck_assert_uint_eq(m.w.notes.n_unused, i == 0 ? 3 : 0); /* of a layer behind the last */
        ck_assert_uint_eq(m.w.notes.n_unknown, 0);
        model_weights_deinit(&file);
        model_weights_deinit(&m.w);
    }
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE(a_rank_copies_the_experts_that_it_has),
    TEST_CASE(copies_come_with_experts_that_move),
    TEST_CASE(codes_that_are_cut_by_heads_become_what_they_mean),
    TEST_CASES_END,
};
