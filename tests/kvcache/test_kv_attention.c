/* tests/kvcache/test_kv_attention.c - attention through the whole cache: right to rounding, and the
 * same bits however the tokens came. */
#include "tests/kvcache/fake_model.h"
#include "tests/test_main.h"

#include <stdlib.h>

static const fake_ids IDS = {.seed = 1};

/* A sequence of n tokens in chunks, in a cache of its own. */
static fake_seq run_alone(fake *f, uint32_t n_tokens, uint32_t chunk)
{
    fake_seq s = fake_seq_open(f, IDS);
    fake_run(f, &s, n_tokens, chunk);
    return s;
}

static void check_cuts(const fake_options *options)
{
    enum { N = 150 };
    static const uint32_t chunks[] = {1, 4, 7, 16, 17, 63};
    fake *f = fake_open(options);
    fake_seq whole = run_alone(f, N, 64);
    ck_assert_double_le(fake_error(f, &whole, 0, 30), 1);
    ck_assert_double_le(fake_error(f, &whole, 60, 70), 1);
    ck_assert_double_le(fake_error(f, &whole, N - 10, N), 1);
    for (size_t i = 0; i < sizeof chunks / sizeof chunks[0]; i++) {
        fake_seq cut = run_alone(f, N, chunks[i]);
        ck_assert(fake_same(f, &whole, &cut, 0, N));
        fake_seq_close(f, &cut, false);
    }
    fake_seq_close(f, &whole, false);
    fake_close(f);
}

START_TEST(attention_over_f32_equals_the_reference_however_it_is_cut)
{
    check_cuts(&(fake_options){.model_type = DTYPE_F32, .no_prefix_caching = true});
}
END_TEST

START_TEST(attention_over_bf16_equals_the_reference_however_it_is_cut)
{
    check_cuts(&(fake_options){.model_type = DTYPE_BF16, .no_prefix_caching = true});
}
END_TEST

START_TEST(four_threads_give_the_same_bits_as_one)
{
    enum { N = 200 };
    fake_options options = {.model_type = DTYPE_BF16, .no_prefix_caching = true};
    fake *one = fake_open(&options);
    options.n_threads = 4;
    fake *four = fake_open(&options);
    fake_seq a = run_alone(one, N, 64), b = run_alone(four, N, 33);
    ck_assert(fake_same(one, &a, &b, 0, N));
    fake_seq_close(one, &a, false);
    fake_seq_close(four, &b, false);
    fake_close(one);
    fake_close(four);
}
END_TEST

START_TEST(every_instruction_set_is_right_and_keeps_its_bits)
{
    for (const dev_ops *const *table = dev_cpu_tables(); *table != NULL; table++) {
        check_cuts(&(fake_options){
            .isa = (*table)->name, .model_type = DTYPE_BF16, .no_prefix_caching = true});
    }
}
END_TEST

/* Every combination of window, sinks and page size that meets an edge. */
START_TEST(windows_sinks_and_page_sizes_change_no_bit_of_a_cut)
{
    static const struct {
        uint32_t page, window, sink;
    } cases[] = {{4, 0, 0}, {4, 0, 4}, {4, 1, 1}, {5, 8, 2}, {8, 6, 8}, {16, 3, 0}, {64, 8, 2}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        fake_options options = {.no_prefix_caching = true, .config = fake_defaults()};
        options.config.page_tokens = cases[i].page;
        options.config.window_tokens = cases[i].window;
        options.config.sink_tokens = cases[i].sink;
        check_cuts(&options);
    }
}
END_TEST

START_TEST(neighbours_in_a_step_change_no_bit)
{
    enum { N = 50, N_SEQS = 4 };
    fake *f = fake_open(&(fake_options){.no_prefix_caching = true});
    fake_seq alone = run_alone(f, N, 64), crowd[N_SEQS];
    fake_seq *rows[N_SEQS];
    for (uint32_t i = 0; i < N_SEQS; i++) {
        crowd[i] = fake_seq_open(f, i == 2 ? IDS : (fake_ids){.seed = 100 + i});
        rows[i] = &crowd[i];
    }
    for (uint32_t step = 0; kv_seq_length(crowd[2].seq) < N; step++) {
        uint32_t n[N_SEQS];
        for (uint32_t i = 0; i < N_SEQS; i++)
            n[i] = 1 + (step * 5 + i * 3) % 9;
        n[2] = (uint32_t)min_size(n[2], N - (size_t)kv_seq_length(crowd[2].seq));
        ck_assert_int_eq(fake_step(f, rows, n, N_SEQS), ERR_OK);
    }
    ck_assert(fake_same(f, &alone, &crowd[2], 0, N));
    for (uint32_t i = 0; i < N_SEQS; i++) {
        ck_assert_double_le(fake_error(f, &crowd[i], 0, kv_seq_length(crowd[i].seq)), 1);
        fake_seq_close(f, &crowd[i], false);
    }
    fake_seq_close(f, &alone, false);
    fake_close(f);
}
END_TEST

START_TEST(a_chunk_longer_than_the_ring_is_no_special_case)
{
    enum { N = 300 };
    fake *f = fake_open(&(fake_options){.limits.n_step_tokens_max = N, .no_prefix_caching = true});
    fake_seq whole = run_alone(f, N, N), cut = run_alone(f, N, 19);
    ck_assert_double_le(fake_error(f, &whole, N - 40, N), 1);
    ck_assert(fake_same(f, &whole, &cut, 0, N));
    fake_seq_close(f, &whole, false);
    fake_seq_close(f, &cut, false);
    fake_close(f);
}
END_TEST

START_TEST(a_sliding_window_layer_frees_the_pages_that_it_has_passed)
{
    const kv_layer_shape layer = {
        .n_heads = 1, .n_kv_heads = 1, .k_dim = 8, .v_dim = 8, .scale = 0.3f, .window = 21};
    fake *f =
        fake_open(&(fake_options){.layers = &layer, .n_layers = 1, .no_prefix_caching = true});
    fake_seq s = fake_seq_open(f, IDS);
    for (uint32_t n = 1; n < 200; n++) {
        fake_run(f, &s, n, 1);
        /* Positions of the window that have left the ring: 21 - 1 - 8 and up to a block each end. */
        ck_assert_uint_le(fake_stats(f).pages_used, (21 - 1 - 8) / 4 + 2);
    }
    ck_assert_double_le(fake_error(f, &s, 0, 199), 1);
    fake_seq_close(f, &s, false);
    fake_close(f);
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE(attention_over_f32_equals_the_reference_however_it_is_cut),
    TEST_CASE(attention_over_bf16_equals_the_reference_however_it_is_cut),
    TEST_CASE(four_threads_give_the_same_bits_as_one),
    TEST_CASE(every_instruction_set_is_right_and_keeps_its_bits),
    TEST_CASE(windows_sinks_and_page_sizes_change_no_bit_of_a_cut),
    TEST_CASE(neighbours_in_a_step_change_no_bit),
    TEST_CASE(a_chunk_longer_than_the_ring_is_no_special_case),
    TEST_CASE(a_sliding_window_layer_frees_the_pages_that_it_has_passed),
    TEST_CASES_END,
};
