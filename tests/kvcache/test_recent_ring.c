/* tests/kvcache/test_recent_ring.c - strips and rings. */
#include "kvcache/recent_ring.h"
#include "tests/test_main.h"

#include "base/check.h"

#include <string.h>

enum { K_DIM = 6, V_DIM = 3, N_HEADS = 2, PAGE_TOKENS = 4, WINDOW = 6, N_SINKS = 3 };

static const kv_head_shape HEADS[2] = {
    {.k_dim = K_DIM, .v_dim = V_DIM, .type = DTYPE_F32},
    {.k_dim = K_DIM, .v_dim = V_DIM, .v_in_k = true, .type = DTYPE_BF16},
};
static const uint32_t N_KV_HEADS[2] = {N_HEADS, 1};

typedef struct fixture {
    arena memory;
    kv_rings rings;
} fixture;

static fixture *open_rings(void)
{
    static fixture f;
    const kv_rings_config config = {.heads = HEADS,
                                    .n_kv_heads = N_KV_HEADS,
                                    .n_layers = 2,
                                    .page_tokens = PAGE_TOKENS,
                                    .window_tokens = WINDOW,
                                    .sink_tokens = N_SINKS};
    arena measure;
    arena_init_measure(&measure);
    ck_assert_int_eq(kv_rings_init(&measure, &config, &f.rings), ERR_OK);
    ck_assert_int_eq(arena_init(&f.memory, measure.used_bytes), ERR_OK);
    ck_assert_int_eq(kv_rings_init(&f.memory, &config, &f.rings), ERR_OK);
    return &f;
}

static void close_rings(fixture *f)
{
    kv_rings_deinit(&f->rings);
    arena_deinit(&f->memory);
}

/* Keys and values of n positions of layer 0 from `position` on, in a strip of their own. */
static attn_span make_span(float *strip, uint32_t head, uint32_t position, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        for (uint32_t c = 0; c < K_DIM; c++)
            strip[i * K_DIM + c] = (float)(1000 * head + 10 * (position + i) + c);
        for (uint32_t c = 0; c < V_DIM; c++)
            strip[n * K_DIM + i * V_DIM + c] = -(float)(1000 * head + 10 * (position + i) + c);
    }
    return (attn_span){.k = strip,
                       .v = strip + n * K_DIM,
                       .k_stride_bytes = K_DIM * sizeof *strip,
                       .v_stride_bytes = V_DIM * sizeof *strip,
                       .n_slots = n,
                       .live = UINT64_MAX};
}

static void check_entry(const attn_span *span, uint32_t i, uint32_t head, uint32_t position)
{
    const float *k = (const float *)((const char *)span->k + i * span->k_stride_bytes);
    const float *v = (const float *)((const char *)span->v + i * span->v_stride_bytes);
    for (uint32_t c = 0; c < K_DIM; c++)
        ck_assert_float_eq(k[c], (float)(1000 * head + 10 * position + c));
    for (uint32_t c = 0; c < V_DIM; c++)
        ck_assert_float_eq(v[c], -(float)(1000 * head + 10 * position + c));
}

START_TEST(the_newest_tokens_and_the_unfinished_block_stay)
{
    fixture *f = open_rings();
    ck_assert_uint_eq(f->rings.n_recent, 12); /* 6 rounded up to blocks, and one more */
    kv_ring *ring = kv_ring_take(&f->rings);
    float strip[PAGE_TOKENS * (K_DIM + V_DIM)];
    for (uint32_t p = 0; p < 50; p++) {
        for (uint32_t h = 0; h < N_HEADS; h++) {
            const kv_ring_place at = {0, h, p};
            const attn_span one = make_span(strip, h, p, 1);
            kv_ring_write(&f->rings, ring, &at, &one);
        }
        const uint32_t oldest = p + 1 >= 12 ? (p + 1 - 12 + 3) / 4 * 4 : 0;
        for (uint32_t b = oldest; b <= p; b += PAGE_TOKENS) {
            const uint32_t n = p + 1 - b < PAGE_TOKENS ? p + 1 - b : PAGE_TOKENS;
            const kv_ring_place at = {0, 1, b};
            const attn_span span = kv_ring_span(&f->rings, ring, &at, n);
            ck_assert_uint_eq(span.first_position, b);
            ck_assert_uint_eq(span.live, (UINT64_C(1) << n) - 1);
            for (uint32_t i = 0; i < n; i++)
                check_entry(&span, i, 1, b + i);
        }
    }
    kv_ring_give(&f->rings, ring);
    close_rings(f);
}
END_TEST

START_TEST(sinks_stay_when_the_ring_moves_on)
{
    fixture *f = open_rings();
    kv_ring *ring = kv_ring_take(&f->rings);
    float strip[PAGE_TOKENS * (K_DIM + V_DIM)];
    attn_span span = make_span(strip, 1, 0, 1);
    kv_ring_write_sinks(&f->rings, ring, &(kv_ring_place){0, 1, 0}, &span);
    span = make_span(strip, 1, 1, 2);
    kv_ring_write_sinks(&f->rings, ring, &(kv_ring_place){0, 1, 1}, &span);
    for (uint32_t p = 0; p < 40; p += PAGE_TOKENS) {
        span = make_span(strip, 1, p, PAGE_TOKENS);
        kv_ring_write(&f->rings, ring, &(kv_ring_place){0, 1, p}, &span);
    }
    span = kv_ring_sink_span(&f->rings, ring, 0, 1, N_SINKS);
    for (uint32_t i = 0; i < N_SINKS; i++)
        check_entry(&span, i, 1, i);
    kv_ring_give(&f->rings, ring);
    close_rings(f);
}
END_TEST

START_TEST(experts_are_remembered_by_layer_and_position)
{
    fixture *f = open_rings();
    kv_ring *ring = kv_ring_take(&f->rings);
    ck_assert_uint_eq(*kv_ring_expert(&f->rings, ring, 1, 7), KV_EXPERT_NONE);
    for (uint32_t p = 20; p < 32; p++) {
        *kv_ring_expert(&f->rings, ring, 0, p) = (uint16_t)p;
        *kv_ring_expert(&f->rings, ring, 1, p) = (uint16_t)(100 + p);
    }
    for (uint32_t p = 20; p < 32; p++) {
        ck_assert_uint_eq(*kv_ring_expert(&f->rings, ring, 0, p), p);
        ck_assert_uint_eq(*kv_ring_expert(&f->rings, ring, 1, p), 100 + p);
    }
    kv_ring_give(&f->rings, ring);
    close_rings(f);
}
END_TEST

START_TEST(a_given_ring_is_used_again_and_its_bytes_are_counted_once)
{
    fixture *f = open_rings();
    kv_ring *a = kv_ring_take(&f->rings), *b = kv_ring_take(&f->rings);
    ck_assert_uint_eq(f->rings.total_bytes, 2 * f->rings.ring_bytes);
    kv_ring_give(&f->rings, a);
    ck_assert_uint_eq(f->rings.total_bytes, 2 * f->rings.ring_bytes);
    ck_assert_ptr_eq(kv_ring_take(&f->rings), a);
    kv_ring_give(&f->rings, a);
    kv_ring_give(&f->rings, b);
    close_rings(f);
    ck_assert_uint_eq(f->rings.total_bytes, 0);
}
END_TEST

START_TEST(keys_and_values_begin_on_cache_lines)
{
    for (uint32_t n = 1; n < 40; n++) {
        kv_strip strip;
        ck_assert_int_eq(kv_strip_init(&HEADS[0], n, &strip), ERR_OK);
        ck_assert_uint_eq(strip.v_offset_bytes % KV_STRIP_ALIGN, 0);
        ck_assert_uint_eq(strip.strip_bytes % KV_STRIP_ALIGN, 0);
        ck_assert_uint_ge(strip.v_offset_bytes, n * K_DIM * sizeof(float));
        ck_assert_uint_ge(strip.strip_bytes, strip.v_offset_bytes + n * V_DIM * sizeof(float));
    }
}
END_TEST

START_TEST(values_inside_keys_take_no_bytes)
{
    kv_strip strip;
    ck_assert_int_eq(kv_strip_init(&HEADS[1], 32, &strip), ERR_OK);
    ck_assert_uint_eq(strip.strip_bytes, 32 * K_DIM * 2);
    uint8_t bytes[32 * K_DIM * 2] = {0};
    const attn_span span = kv_strip_span(&strip, bytes, 5, 3);
    ck_assert_ptr_eq(span.k, span.v);
    ck_assert_uint_eq(span.v_stride_bytes, span.k_stride_bytes);
}
END_TEST

START_TEST(sizes_that_do_not_fit_are_refused)
{
    kv_strip strip;
    const kv_head_shape shape = {.k_dim = UINT32_MAX, .v_dim = 1, .type = DTYPE_F32};
    ck_assert_int_eq(kv_strip_init(&shape, 4, &strip), ERR_OVERFLOW);
}
END_TEST

START_TEST(a_cut_span_keeps_its_slots)
{
    float strip[PAGE_TOKENS * (K_DIM + V_DIM)];
    const uint32_t positions[4] = {3, 9, 11, 20};
    attn_span span = make_span(strip, 0, 8, 4);
    span.first_position = 8;
    span.live = 0x5; /* slots 0 and 2 */
    span.positions = positions;
    const attn_span cut = kv_span_cut(&span, 1, 2);
    check_entry(&cut, 0, 0, 9);
    ck_assert_uint_eq(cut.live, 0x2);
    ck_assert_uint_eq(cut.n_slots, 2);
    ck_assert_uint_eq(cut.first_position, 9);
    ck_assert_uint_eq(cut.positions[1], 11);
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE(the_newest_tokens_and_the_unfinished_block_stay),
    TEST_CASE(sinks_stay_when_the_ring_moves_on),
    TEST_CASE(experts_are_remembered_by_layer_and_position),
    TEST_CASE(a_given_ring_is_used_again_and_its_bytes_are_counted_once),
    TEST_CASE(keys_and_values_begin_on_cache_lines),
    TEST_CASE(values_inside_keys_take_no_bytes),
    TEST_CASE(sizes_that_do_not_fit_are_refused),
    TEST_CASE(a_cut_span_keeps_its_slots),
    TEST_CASES_END,
};
