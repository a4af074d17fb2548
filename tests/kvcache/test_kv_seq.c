/* tests/kvcache/test_kv_seq.c - opening, cutting, aborting, running out of pages. */
#include "tests/kvcache/fake_model.h"
#include "tests/test_main.h"

#include <stdlib.h>
#include <string.h>

static const fake_ids IDS = {.seed = 1};

/* Pages of 64 slots x 2 x 64 floats: two to a slab. */
static const kv_layer_shape WIDE = {
    .n_heads = 1, .n_kv_heads = 1, .k_dim = 64, .v_dim = 64, .scale = 0.1f};

static fake *open_wide(uint32_t n_slabs)
{
    fake_options options = {.layers = &WIDE,
                            .n_layers = 1,
                            .limits = {4, 256, 4096},
                            .no_prefix_caching = true,
                            .config = fake_defaults()};
    options.config.page_tokens = 64;
    options.config.memory_bytes = (uint64_t)n_slabs * KV_SLAB_BYTES;
    return fake_open(&options);
}

START_TEST(a_cut_sequence_goes_on_as_if_the_tail_had_never_been)
{
    enum { N = 70 };
    const kv_layer_shape layers[2] = {fake_layers[0], fake_layers[2]};
    fake *f =
        fake_open(&(fake_options){.layers = layers, .n_layers = 2, .no_prefix_caching = true});
    fake_seq expected = fake_seq_open(f, IDS);
    fake_run(f, &expected, N, 64);
    for (uint32_t n = 0; n <= 60; n++) {
        fake_seq s = fake_seq_open(f, (fake_ids){.seed = 2, .shared_seed = 1, .n_shared = n});
        fake_run(f, &s, 60, 13);
        ck_assert_uint_eq(kv_seq_truncate(s.seq, n), n);
        ck_assert(kv_cache_is_sane(f->cache));
        memcpy(s.tokens, expected.tokens, N * sizeof *s.tokens);
        fake_run(f, &s, N, 9);
        ck_assert(fake_same(f, &expected, &s, 0, N));
        fake_seq_close(f, &s, false);
    }
    fake_seq_close(f, &expected, false);
    fake_close(f);
}
END_TEST

START_TEST(a_cut_that_a_window_cannot_serve_empties_the_sequence)
{
    fake *f = fake_open(&(fake_options){.no_prefix_caching = true}); /* a window of 10 */
    fake_seq s = fake_seq_open(f, IDS);
    fake_run(f, &s, 60, 1);
    ck_assert_uint_eq(kv_seq_truncate(s.seq, 59), 59);
    fake_run(f, &s, 70, 1);
    ck_assert_double_le(fake_error(f, &s, 59, 70), 1);
    ck_assert_uint_eq(kv_seq_truncate(s.seq, 30), 0);
    ck_assert_uint_eq(kv_seq_length(s.seq), 0);
    fake_run(f, &s, 40, 7);
    ck_assert_double_le(fake_error(f, &s, 30, 40), 1);
    fake_seq_close(f, &s, false);
    fake_close(f);
}
END_TEST

START_TEST(an_aborted_step_leaves_no_trace)
{
    enum { N = 70 };
    fake *f = fake_open(&(fake_options){.no_prefix_caching = true});
    fake_seq a = fake_seq_open(f, IDS), b = fake_seq_open(f, IDS);
    fake_run(f, &a, N, 64);
    while (kv_seq_length(b.seq) < N) {
        const kv_stats before = fake_stats(f);
        const kv_row row = {.seq = b.seq, .n_tokens = 40};
        ck_assert_int_eq(kv_step_begin(f->cache, &row, 1), ERR_OK);
        kv_append(f->cache, &(kv_append_args){.layer = 0, .k = f->there.k, .v = f->there.k});
        kv_step_abort(f->cache);
        ck_assert(kv_cache_is_sane(f->cache));
        const kv_stats after = fake_stats(f);
        ck_assert_uint_eq(after.pages_used, before.pages_used);
        ck_assert_uint_eq(after.slab_bytes, before.slab_bytes);
        ck_assert_uint_eq(after.tokens_appended, before.tokens_appended);
        fake_run(f, &b, kv_seq_length(b.seq) + 5, 5);
    }
    ck_assert(fake_same(f, &a, &b, 0, N));
    fake_seq_close(f, &a, false);
    fake_seq_close(f, &b, false);
    fake_close(f);
}
END_TEST

START_TEST(a_full_pool_refuses_a_step_and_changes_nothing)
{
    fake *f = open_wide(1); /* two pages */
    fake_seq a = fake_seq_open(f, IDS), b = fake_seq_open(f, (fake_ids){.seed = 2}), *rows[2];
    rows[0] = &a;
    rows[1] = &b;
    fake_run(f, &a, 8 + 64, 64); /* one page */
    fake_run(f, &b, 60, 64);     /* none yet */
    const kv_stats before = fake_stats(f);
    ck_assert_int_eq(fake_step(f, rows, (uint32_t[]){64, 12}, 2), ERR_KV_FULL);
    const kv_stats after = fake_stats(f);
    ck_assert_mem_eq(&before, &after, sizeof before);
    ck_assert_uint_eq(kv_seq_length(a.seq), 72);
    ck_assert_uint_eq(kv_seq_length(b.seq), 60);
    ck_assert_int_eq(fake_step(f, rows, (uint32_t[]){63, 12}, 2), ERR_OK);
    ck_assert_double_le(fake_error(f, &a, 130, 135), 1);
    ck_assert_double_le(fake_error(f, &b, 70, 72), 1);
    fake_seq_close(f, &a, false);
    fake_seq_close(f, &b, false);
    ck_assert_uint_eq(fake_stats(f).slab_bytes, 0);
    fake_close(f);
}
END_TEST

START_TEST(what_could_fit_does_fit)
{
    fake *f = open_wide(2); /* four pages: 256 positions, and up to 71 in the ring */
    ck_assert_uint_eq(kv_cache_capacity_tokens(f->cache, NULL), 256);
    ck_assert_uint_eq(kv_cache_bytes_per_token(f->cache), 2 * 64 * sizeof(float));
    ck_assert(kv_cache_could_fit(f->cache, NULL, 256 + 8 + 63));
    ck_assert(!kv_cache_could_fit(f->cache, NULL, 256 + 8 + 64));
    fake_seq s = fake_seq_open(f, IDS), *row = &s;
    fake_run(f, &s, 256 + 8 + 63, 100);
    const uint32_t one = 1;
    ck_assert_int_eq(fake_step(f, &row, &one, 1), ERR_KV_FULL);
    fake_seq_close(f, &s, false);
    fake_close(f);
}
END_TEST

START_TEST(what_could_fit_does_fit_with_windows)
{
    kv_layer_shape layer = WIDE;
    layer.window = 200;
    fake_options options = {
        .layers = &layer, .n_layers = 1, .limits = {4, 256, 4096}, .config = fake_defaults()};
    options.config.page_tokens = 64;
    options.config.memory_bytes = 5 * KV_SLAB_BYTES;
    fake *f = fake_open(&options);
    ck_assert(kv_cache_could_fit(f->cache, NULL, 4096));
    for (uint32_t chunk = 1; chunk <= 256; chunk += 51) {
        fake_seq s = fake_seq_open(f, IDS);
        fake_run(f, &s, 1000, chunk);
        ck_assert_double_le(fake_error(f, &s, 990, 1000), 1);
        fake_seq_close(f, &s, false);
    }
    fake_close(f);
}
END_TEST

START_TEST(a_closed_sequence_gives_everything_back)
{
    fake *f = fake_open(&(fake_options){.no_prefix_caching = true});
    const kv_stats before = fake_stats(f);
    for (int i = 0; i < 3; i++) {
        fake_seq s = fake_seq_open(f, IDS);
        fake_run(f, &s, 200, 64);
        ck_assert_uint_gt(fake_stats(f).slab_bytes, 0);
        fake_seq_close(f, &s, false);
    }
    const kv_stats after = fake_stats(f);
    ck_assert_uint_eq(after.slab_bytes, 0);
    ck_assert_uint_eq(after.pages_free, before.pages_free);
    ck_assert_uint_eq(after.seqs_open, 0);
    fake_close(f);
}
END_TEST

START_TEST(more_sequences_than_the_limit_are_refused)
{
    fake *f = fake_open(&(fake_options){.limits.n_seqs_max = 2});
    fake_seq a = fake_seq_open(f, IDS), b = fake_seq_open(f, IDS);
    kv_seq *seq;
    const kv_seq_options options = {.salt = ""};
    ck_assert_int_eq(kv_seq_open(f->cache, &options, &seq), ERR_BAD_ARGUMENT);
    ck_assert_ptr_null(seq);
    fake_seq_close(f, &a, false);
    a = fake_seq_open(f, IDS);
    fake_seq_close(f, &a, false);
    fake_seq_close(f, &b, false);
    fake_close(f);
}
END_TEST

START_TEST(bytes_read_are_those_of_the_slots_that_attention_saw)
{
    fake *f = open_wide(8);
    fake_seq s = fake_seq_open(f, IDS);
    fake_run(f, &s, 200, 200);
    const kv_stats before = fake_stats(f);
    fake_run(f, &s, 201, 1);
    const kv_stats after = fake_stats(f);
    ck_assert_uint_eq(after.bytes_read - before.bytes_read, 201 * 2 * 64 * sizeof(float));
    ck_assert_uint_eq(after.blocks_read - before.blocks_read, 4);
    fake_seq_close(f, &s, false);
    fake_close(f);
}
END_TEST

/* ---- settings ------------------------------------------------------------------------------------ */

static void check_refused(kv_config config, const char *message)
{
    dev *d;
    err_info info = {0};
    ck_assert_int_eq(dev_open_cpu(&(dev_config){.isa = "ref", .n_threads = 1}, &d, &info), ERR_OK);
    const kv_shape shape = {.n_layers = 3, .layer = fake_layers, .n_experts = 8};
    const kv_limits limits = {4, 64, 512};
    kv_cache *cache;
    ck_assert_int_eq(kv_cache_open(d, &config, &shape, &limits, &cache, &info), ERR_BAD_CONFIG);
    ck_assert_ptr_null(cache);
    ck_assert_str_eq(info.message, message);
    dev_close(d);
}

START_TEST(settings_that_cannot_work_are_named)
{
    kv_config c = fake_defaults();
    c.n_shards = 0;
    check_refused(c, "kv-shards: 0 is outside [1, 64]");
    c.n_shards = 6;
    c.placement = (char *)(uintptr_t) "hash";
    check_refused(c, "kv-shards: 6 is no power of two, which kv-placement hash needs");
    c = fake_defaults();
    c.sink_tokens = 5;
    check_refused(c, "kv-sink: 5 is more than kv-page-tokens, 4");
    c = fake_defaults();
    c.page_tokens = 65;
    check_refused(c, "kv-page-tokens: 65 is outside [4, 64]");
    c = fake_defaults();
    c.memory_bytes = 2 * KV_SLAB_BYTES;
    check_refused(c, "kv-cache-memory-bytes: 131072; one page per layer and head needs 196608");
}
END_TEST

START_TEST(the_type_follows_the_model_unless_it_is_set)
{
    static const struct {
        kv_dtype set;
        dtype model, expected;
    } cases[] = {{KV_DTYPE_AUTO, DTYPE_F32, DTYPE_F32},
                 {KV_DTYPE_AUTO, DTYPE_BF16, DTYPE_BF16},
                 {KV_DTYPE_AUTO, DTYPE_F16, DTYPE_BF16},
                 {KV_DTYPE_F32, DTYPE_BF16, DTYPE_F32},
                 {KV_DTYPE_BF16, DTYPE_F32, DTYPE_BF16}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        fake_options options = {.model_type = cases[i].model, .config = fake_defaults()};
        options.config.dtype = cases[i].set;
        fake *f = fake_open(&options);
        ck_assert_int_eq(kv_cache_type(f->cache), cases[i].expected);
        fake_close(f);
    }
}
END_TEST

START_TEST(without_a_budget_all_sequences_fit)
{
    fake_options options = {.limits = {4, 64, 500}, .config = fake_defaults()};
    options.config.memory_bytes = 0;
    fake *f = fake_open(&options);
    ck_assert_uint_ge(kv_cache_capacity_tokens(f->cache, NULL), 4 * 500);
    fake_close(f);
}
END_TEST

START_TEST(the_defaults_of_the_table_are_those_of_the_documents)
{
    kv_config c = {0};
    const cfg_binding binding = {&kv_config_table, &c};
    ck_assert_int_eq(cfg_defaults(&binding, 1), ERR_OK);
    ck_assert_uint_eq(c.dtype, KV_DTYPE_AUTO);
    ck_assert_uint_eq(c.memory_bytes, 0);
    ck_assert_uint_eq(c.page_tokens, 32);
    ck_assert_uint_eq(c.window_tokens, 128);
    ck_assert_uint_eq(c.sink_tokens, 4);
    ck_assert(c.prefix_caching);
    ck_assert_uint_eq(c.n_shards, 1);
    err_info info = {0};
    ck_assert_int_eq(cfg_set(&binding, 1, "kv-page-tokens", "3", &info), ERR_BAD_CONFIG);
    ck_assert_int_eq(cfg_set(&binding, 1, "kv-cache-dtype", "bf16", NULL), ERR_OK);
    ck_assert_uint_eq(c.dtype, KV_DTYPE_BF16);
    dev *d;
    ck_assert_int_eq(dev_open_cpu(&(dev_config){.isa = "ref", .n_threads = 1}, &d, NULL), ERR_OK);
    const kv_shape shape = {.n_layers = 3, .layer = fake_layers, .n_experts = 8};
    const kv_limits limits = {2, 64, 512};
    kv_cache *cache;
    ck_assert_int_eq(kv_cache_open(d, &c, &shape, &limits, &cache, NULL), ERR_OK);
    kv_cache_close(cache);
    dev_close(d);
    cfg_deinit(&binding, 1);
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE(a_cut_sequence_goes_on_as_if_the_tail_had_never_been),
    TEST_CASE(a_cut_that_a_window_cannot_serve_empties_the_sequence),
    TEST_CASE(an_aborted_step_leaves_no_trace),
    TEST_CASE(a_full_pool_refuses_a_step_and_changes_nothing),
    TEST_CASE(what_could_fit_does_fit),
    TEST_CASE(what_could_fit_does_fit_with_windows),
    TEST_CASE(a_closed_sequence_gives_everything_back),
    TEST_CASE(more_sequences_than_the_limit_are_refused),
    TEST_CASE(bytes_read_are_those_of_the_slots_that_attention_saw),
    TEST_CASE(settings_that_cannot_work_are_named),
    TEST_CASE(the_type_follows_the_model_unless_it_is_set),
    TEST_CASE(without_a_budget_all_sequences_fit),
    TEST_CASE(the_defaults_of_the_table_are_those_of_the_documents),
    TEST_CASES_END,
};
