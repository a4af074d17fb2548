/* tests/kvcache/test_kept.c - which channels `prune` and `think` keep. That they are read back, by load and
 * by attention, is in tests/conformance/test_kv_codecs.c. */
#include "tests/kernels/golden_layer.h"
#include "tests/test_main.h"

#include "kvcache/compression/codec.h"
#include "kvcache/compression/value_weight.h"

#include <math.h>
#include <stdlib.h>

/* A block of rows in f32, sealed. */
typedef struct block {
    kv_head_shape shape;
    uint32_t n_slots;
    const float *k, *v; /* [n_slots][dim] */
    const float *q_norm, *v_weight;
} block;

typedef struct kept_page {
    kv_page_layout layout;
    uint8_t *page;
} kept_page;

static kept_page seal(const char *codec, const block *b)
{
    kept_page out;
    const kv_codec *c = kv_codec_find(codec);
    ck_assert_int_eq(c->layout(&b->shape, 64, &out.layout), ERR_OK);
    out.page = malloc(out.layout.page_bytes);
    memset(out.page, 0xa5, out.layout.page_bytes);
    const attn_span span = {.k = b->k,
                            .v = b->v,
                            .k_stride_bytes = b->shape.k_dim * 4,
                            .v_stride_bytes = b->shape.v_dim * 4,
                            .n_slots = b->n_slots,
                            .live = UINT64_MAX >> (64 - b->n_slots)};
    const kv_seal_args args = {.layout = &out.layout,
                               .spans = &span,
                               .n_spans = 1,
                               .page = out.page,
                               .q_norm = b->q_norm,
                               .v_weight = b->v_weight};
    c->seal(&args);
    return out;
}

/* Bit c: channel c is kept. */
static uint64_t kept_channels(const kept_page *p, bool is_keys)
{
    const attn_span span = kv_page_span(&p->layout, p->page, 1);
    const uint32_t dim = is_keys ? p->layout.shape.k_dim : p->layout.shape.v_dim;
    uint64_t kept = 0;
    for (uint32_t c = 0; c < dim; c++)
        kept |= (uint64_t)attn_is_kept(is_keys ? span.k_grid : span.v_grid, c) << c;
    return kept;
}

static uint64_t seal_and_list(const char *codec, const block *b, bool is_keys)
{
    kept_page p = seal(codec, b);
    const uint64_t kept = kept_channels(&p, is_keys);
    free(p.page);
    return kept;
}

/* ---- think --------------------------------------------------------------------------------------- */

static float golden_keys[2][GOLDEN_TOKENS][GOLDEN_DIM], golden_values[2][GOLDEN_TOKENS][GOLDEN_DIM];

static block golden_block(uint32_t head)
{
    for (uint32_t t = 0; t < GOLDEN_TOKENS; t++) {
        golden_key(head, t, golden_keys[head][t]);
        golden_value(head, t, golden_values[head][t]);
    }
    return (block){.shape = {.k_dim = GOLDEN_DIM, .v_dim = GOLDEN_DIM, .type = DTYPE_F32},
                   .n_slots = GOLDEN_TOKENS,
                   .k = golden_keys[head][0],
                   .v = golden_values[head][0]};
}

/* What the published implementation left out, of a window of 16 queries. */
START_TEST(think_leaves_out_the_channels_that_its_authors_leave_out)
{
    enum { WINDOW = 16, GROUP = 2 };
    static const uint64_t left_out[2] = {
        1u << 2 | 1u << 3 | 1u << 6 | 1u << 7,
        1u << 1 | 1u << 2 | 1u << 3 | 1u << 5,
    };
    for (uint32_t head = 0; head < 2; head++) {
        float q[GOLDEN_DIM], q_norm[GOLDEN_DIM] = {0};
        block b = golden_block(head);
        for (uint32_t t = GOLDEN_TOKENS - WINDOW; t < GOLDEN_TOKENS; t++) {
            for (uint32_t g = 0; g < GROUP; g++) {
                golden_query(head * GROUP + g, t, q);
                for (uint32_t c = 0; c < GOLDEN_DIM; c++)
                    q_norm[c] += q[c] * q[c];
            }
        }
        b.q_norm = q_norm;
        ck_assert_uint_eq(seal_and_list("think", &b, true), 0xff & ~left_out[head]);
        ck_assert_uint_eq(seal_and_list("think", &b, false), 0xff);
    }
}
END_TEST

START_TEST(think_without_queries_keeps_the_largest_keys)
{
    for (uint32_t head = 0; head < 2; head++) {
        const block b = golden_block(head);
        ck_assert_uint_eq(seal_and_list("think", &b, true), seal_and_list("prune", &b, true));
    }
}
END_TEST

/* ---- prune --------------------------------------------------------------------------------------- */

enum { SLOTS = 48, DIM = 16 };
static float keys[SLOTS][DIM], values[SLOTS][DIM];

static block plain_block(void)
{
    return (block){.shape = {.k_dim = DIM, .v_dim = DIM, .type = DTYPE_F32},
                   .n_slots = SLOTS,
                   .k = keys[0],
                   .v = values[0]};
}

static void fill_channels(float rows[SLOTS][DIM], const float size[DIM])
{
    for (uint32_t t = 0; t < SLOTS; t++) {
        for (uint32_t c = 0; c < DIM; c++)
            rows[t][c] = t % 3 == c % 3 ? -size[c] : size[c];
    }
}

START_TEST(prune_keeps_half_of_the_keys_and_three_quarters_of_the_values)
{
    static const float size[DIM] = {9, 1, 8, 2, 7, 3, 6, 4, 5, 12, 11, 10, .1f, .2f, .3f, .4f};
    fill_channels(keys, size);
    fill_channels(values, size);
    const block b = plain_block();
    ck_assert_uint_eq(seal_and_list("prune", &b, true), 0x0f55);  /* 5 and more */
    ck_assert_uint_eq(seal_and_list("prune", &b, false), 0x0fff); /* 1 and more */
}
END_TEST

START_TEST(paper_fastv_keeps_the_first_half_whatever_it_holds)
{
    static const float size[DIM] = {0, 1, 0, 2, 0, 3, 0, 4, 50, 12, 11, 10, 9, 8, 7, 6};
    fill_channels(keys, size);
    fill_channels(values, size);
    const block b = plain_block();
    ck_assert_uint_eq(seal_and_list("paper_fastv", &b, true), 0x00ff);
    ck_assert_uint_eq(seal_and_list("paper_fastv", &b, false), 0x00ff);
}
END_TEST

START_TEST(of_equal_channels_the_lower_ones_stay)
{
    static const float size[DIM] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2};
    fill_channels(keys, size);
    fill_channels(values, size);
    const block b = plain_block();
    ck_assert_uint_eq(seal_and_list("prune", &b, true), 0x807f);
    ck_assert_uint_eq(seal_and_list("prune", &b, false), 0x87ff);
}
END_TEST

START_TEST(values_that_the_output_projection_ignores_go_first)
{
    static const float size[DIM] = {9, 1, 8, 2, 7, 3, 6, 4, 5, 12, 11, 10, .1f, .2f, .3f, .4f};
    float weight[DIM];
    fill_channels(values, size);
    block b = plain_block();
    for (uint32_t c = 0; c < DIM; c++)
        weight[c] = c == 0 || c == 9 ? 0 : 1;
    b.v_weight = weight;
    ck_assert_uint_eq(seal_and_list("prune", &b, false), 0xfdfe & ~(1u << 12) & ~(1u << 13));
}
END_TEST

/* Whatever is in a page: nothing is written beside it. */
START_TEST(what_is_not_a_number_is_kept_and_no_more)
{
    static const float size[DIM] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2};
    fill_channels(keys, size);
    for (uint32_t c = 0; c < DIM; c++)
        keys[3][c] = c % 3 == 0 ? NAN : c == 1 ? INFINITY : 1;
    const block b = plain_block();
    const uint64_t kept = seal_and_list("prune", &b, true);
    ck_assert_uint_eq(kept, 0x924b | 1u << 2);
    ck_assert_int_eq(__builtin_popcountll(kept), DIM / 2);
}
END_TEST

/* ---- weights of values --------------------------------------------------------------------------- */

/* Two rows, four query heads on two KV heads, three channels of a value. */
static void check_weights(dtype type)
{
    float x[2 * 12], weight[3];
    uint16_t half[2 * 12];
    for (int i = 0; i < 2 * 12; i++) {
        x[i] = (float)(i % 7) - 3;
        half[i] = type == DTYPE_F16 ? f16_from_f32(x[i]) : bf16_from_f32(x[i]);
    }
    const matrix w = {
        .data = type == DTYPE_F32 ? (void *)x : half, .type = type, .rows = 2, .cols = 12};
    const kv_layer_shape layer = {.n_heads = 4, .n_kv_heads = 2, .v_dim = 3, .out_proj = &w};
    for (uint32_t head = 0; head < 2; head++) {
        kv_value_weight_fill(&layer, head, weight);
        for (uint32_t c = 0; c < 3; c++) {
            float want = 0;
            for (uint32_t g = 0; g < 2; g++) {
                const uint32_t column = (head * 2 + g) * 3 + c;
                want += x[column] * x[column] + x[12 + column] * x[12 + column];
            }
            ck_assert(weight[c] == want); /* small whole numbers */
        }
    }
}

START_TEST(a_value_channel_weighs_what_its_columns_of_the_projection_do)
{
    check_weights(DTYPE_F32);
    check_weights(DTYPE_BF16);
    check_weights(DTYPE_F16);
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE(think_leaves_out_the_channels_that_its_authors_leave_out),
    TEST_CASE(think_without_queries_keeps_the_largest_keys),
    TEST_CASE(prune_keeps_half_of_the_keys_and_three_quarters_of_the_values),
    TEST_CASE(paper_fastv_keeps_the_first_half_whatever_it_holds),
    TEST_CASE(of_equal_channels_the_lower_ones_stay),
    TEST_CASE(values_that_the_output_projection_ignores_go_first),
    TEST_CASE(what_is_not_a_number_is_kept_and_no_more),
    TEST_CASE(a_value_channel_weighs_what_its_columns_of_the_projection_do),
    TEST_CASES_END,
};
