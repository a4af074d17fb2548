/* tests/kvcache/test_kv_latent.c - latents (MLA) in the widths that published models have: one KV head for many
 * query heads, whose values are the first channels of its keys. */
#include "tests/kvcache/fake_model.h"
#include "tests/test_main.h"

#include <string.h>

/* DeepSeek's, with an eighth of its heads; a layer like that of a smaller one, with a window and sinks. */
static const float sink_logits[24] = {1, -2, 0.5f};
static const kv_layer_shape layers[2] = {
    {.n_heads = 16,
     .n_kv_heads = 1,
     .k_dim = 576,
     .v_dim = 512,
     .v_in_k = true,
     .has_router = true,
     .scale = 0.06f},
    {.n_heads = 24,
     .n_kv_heads = 1,
     .k_dim = 72,
     .v_dim = 64,
     .v_in_k = true,
     .window = 40,
     .sink_logit = sink_logits,
     .scale = 0.2f},
};
static const kv_layer_shape crowded = {.n_heads = 256, /* more than a tile of queries has rows */
                                       .n_kv_heads = 1,
                                       .k_dim = 40,
                                       .v_dim = 32,
                                       .v_in_k = true,
                                       .scale = 0.3f};
static const fake_ids IDS = {.seed = 3, .n_prompt = 80};
enum { N = 96 };

static fake_options options_of(const char *isa, dtype type, const char *codec)
{
    fake_options options = {.layers = layers,
                            .n_layers = 2,
                            .isa = isa,
                            .model_type = type,
                            .n_threads = 2,
                            .no_prefix_caching = true,
                            .config = fake_defaults()};
    options.config.memory_bytes = 32 << 20;
    options.config.page_tokens = 16;
    options.config.compression = (char *)(uintptr_t)codec;
    return options;
}

static fake_seq run(fake *f, uint32_t chunk)
{
    fake_seq s = fake_seq_open(f, IDS);
    fake_run(f, &s, N, chunk);
    return s;
}

static void check_cuts(const fake_options *options, double tolerance)
{
    static const uint32_t chunks[] = {1, 7, 33};
    fake *f = fake_open(options);
    fake_seq whole = run(f, 64);
    ck_assert_double_le(fake_error(f, &whole, 0, 6), tolerance);
    ck_assert_double_le(fake_error(f, &whole, N - 6, N), tolerance);
    for (size_t i = 0; i < sizeof chunks / sizeof chunks[0]; i++) {
        fake_seq cut = run(f, chunks[i]);
        ck_assert(fake_same(f, &whole, &cut, 0, N));
        fake_seq_close(f, &cut, false);
    }
    fake_seq_close(f, &whole, false);
    fake_close(f);
}

START_TEST(attention_over_wide_latents_is_right_in_every_table_however_it_is_cut)
{
    for (const dev_ops *const *table = dev_cpu_tables(); *table != NULL; table++) {
        const fake_options f32 = options_of((*table)->name, DTYPE_F32, "none");
        const fake_options bf16 = options_of((*table)->name, DTYPE_BF16, "none");
        check_cuts(&f32, 1);
        check_cuts(&bf16, 1);
    }
}
END_TEST

START_TEST(heads_beyond_a_tile_of_rows_are_right)
{
    fake_options options = options_of("auto", DTYPE_BF16, "none");
    options.layers = &crowded;
    options.n_layers = 1;
    check_cuts(&options, 1);
}
END_TEST

START_TEST(latents_lie_on_several_shards_and_in_the_prefix_cache)
{
    static const char *const placements[] = {"block", "expert", "hash"};
    for (int i = 0; i < 3; i++) {
        fake_options options = options_of("auto", DTYPE_BF16, "none");
        options.config.n_shards = 4;
        options.config.placement = (char *)(uintptr_t)placements[i];
        options.no_prefix_caching = false;
        fake *f = fake_open(&options);
        fake_seq first = run(f, 64);
        ck_assert_double_le(fake_error(f, &first, N - 6, N), 1);
        fake_seq_close(f, &first, true);
        fake_seq again = fake_seq_open(f, IDS);
        const uint32_t n_taken = kv_seq_take_prefix(again.seq, again.tokens, N);
        ck_assert_uint_gt(n_taken, 0);
        fake_run(f, &again, N, 5);
        ck_assert_double_le(fake_error(f, &again, (uint32_t)max_size(n_taken, N - 6), N), 1);
        fake_seq_close(f, &again, false);
        fake_close(f);
    }
}
END_TEST

/* A codec, the bytes that it may have of a hundred in bf16, and millionths that it may be away: of values up to 1. */
typedef struct promise {
    const char *codec;
    uint32_t n_bytes;
    double error;
} promise;

static void check_promise(const char *isa, const promise *wanted)
{
    fake_options options = options_of(isa, DTYPE_BF16, wanted->codec);
    fake *coded = fake_open(&options);
    options.config.compression = (char *)(uintptr_t) "none";
    fake *raw = fake_open(&options);
    ck_assert_uint_le(kv_cache_bytes_per_token(coded->cache) * 100,
                      kv_cache_bytes_per_token(raw->cache) * wanted->n_bytes);
    fake_seq a = run(coded, 64), b = run(coded, 9);
    ck_assert(fake_same(coded, &a, &b, 0, N));
    const double error = fake_error(coded, &a, N - 6, N);
    ck_assert_double_gt(error, 1); /* it is encoded */
    ck_assert_msg(error < wanted->error, "%s: %g", wanted->codec, error);
    fake_seq_close(coded, &a, false);
    fake_seq_close(coded, &b, false);
    fake_close(coded);
    fake_close(raw);
}

/* Read as one: a value has its key's codes, and their scales. Of pages of 16 a grid of channels has an eighth. */
START_TEST(codes_keep_a_latent_once_and_come_near)
{
    static const promise promises[] = {{"fp8", 53, 10000},
                                       {"int8", 64, 4000},
                                       {"int4", 40, 60000},
                                       {"int2", 27, 300000},
                                       {"pikv", 64, 60000}};
    for (const dev_ops *const *table = dev_cpu_tables(); *table != NULL; table++) {
        const size_t n = table[1] == NULL ? sizeof promises / sizeof promises[0] : 2;
        for (size_t i = 0; i < n; i++) /* the integers differ in bits alone: once is enough */
            check_promise((*table)->name, &promises[i]);
    }
}
END_TEST

static err_t try_open(const char *codec, const char *rewrite, const char *scheduling,
                      err_info *info)
{
    dev *d;
    kv_cache *cache = NULL;
    const fake_options options = options_of("ref", DTYPE_BF16, codec);
    kv_config config = options.config;
    config.rewrite = (char *)(uintptr_t)rewrite;
    config.scheduling = (char *)(uintptr_t)scheduling;
    config.budget = strcmp(scheduling, "none") == 0 ? 1 : 0.5;
    const kv_shape shape = {
        .n_layers = 2, .layer = layers, .n_experts = 8, .model_type = DTYPE_BF16};
    const kv_limits limits = {4, 64, 512};
    ck_assert_int_eq(dev_open_cpu(&(dev_config){.isa = "ref", .n_threads = 1}, &d, NULL), ERR_OK);
    const err_t err = kv_cache_open(d, &config, &shape, &limits, &cache, info);
    kv_cache_close(cache);
    dev_close(d);
    return err;
}

/* A channel left out of a key would be one of its value; a latent is of low rank already; a key that moves would take
 * its value along. */
START_TEST(what_does_not_suit_a_latent_is_refused_by_name)
{
    static const char *const codecs[] = {"prune", "think", "svd", "paper_fastv"};
    for (size_t i = 0; i < sizeof codecs / sizeof codecs[0]; i++) {
        err_info info = {0};
        ck_assert_int_eq(try_open(codecs[i], "none", "none", &info), ERR_UNSUPPORTED);
        ck_assert_msg(strstr(info.message, "kv-compression: ") != NULL, "%s", info.message);
        ck_assert_msg(strstr(info.message, codecs[i]) != NULL, "%s", info.message);
        ck_assert_msg(strstr(info.message, "in one") != NULL, "%s", info.message);
    }
    static const char *const rewrites[] = {"merge", "rerotate"};
    for (size_t i = 0; i < 2; i++) {
        err_info info = {0};
        ck_assert_int_eq(try_open("none", rewrites[i], "h2o", &info), ERR_UNSUPPORTED);
        ck_assert_msg(strstr(info.message, rewrites[i]) != NULL, "%s", info.message);
    }
    err_info info = {0};
    ck_assert_int_eq(try_open("none", "none", "criticalkv", &info), ERR_UNSUPPORTED);
    ck_assert_msg(strstr(info.message, "criticalkv needs an output projection") != NULL, "%s",
                  info.message);
    ck_assert_int_eq(try_open("fp8", "none", "h2o", NULL), ERR_OK);
    ck_assert_int_eq(try_open("int8", "none", "snapkv+pyramid", NULL), ERR_OK);
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE_SECONDS(attention_over_wide_latents_is_right_in_every_table_however_it_is_cut, 280),
    TEST_CASE(heads_beyond_a_tile_of_rows_are_right),
    TEST_CASE(latents_lie_on_several_shards_and_in_the_prefix_cache),
    TEST_CASE_SECONDS(codes_keep_a_latent_once_and_come_near, 120),
    TEST_CASE(what_does_not_suit_a_latent_is_refused_by_name),
    TEST_CASES_END,
};
