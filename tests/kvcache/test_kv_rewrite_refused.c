/* tests/kvcache/test_kv_rewrite_refused.c - settings, layers and caches that cannot have a rewriting; over
 * ranks: test_kv_ranks.c, in requests: tests/service/test_api_kv.c. */
#include "tests/kvcache/fake_model.h"
#include "tests/test_main.h"

static char *text(const char *name)
{
    return (char *)(uintptr_t)name;
}

/* Two layers with RoPE, until a test changes them. */
static kv_layer_shape layers[2];

static fake_options options_of(const char *rewrite)
{
    fake_options options = {.layers = layers, .n_layers = 2, .config = fake_coded("none")};
    for (uint32_t l = 0; l < 2; l++) {
        layers[l] = fake_coded_layers[l];
        layers[l].rope = &fake_rope;
    }
    options.config.scheduling = text("knorm+adakv");
    options.config.budget = 0.5;
    options.config.rewrite = text(rewrite);
    return options;
}

static void check_resolved(const kv_config *config, const char *message)
{
    kv_methods methods;
    err_info info = {0};
    ck_assert_int_eq(kv_methods_resolve(config, &methods, &info), ERR_BAD_CONFIG);
    ck_assert_str_eq(info.message, message);
}

START_TEST(only_where_entries_go_something_is_rewritten)
{
    kv_config config = options_of("merge,rerotate").config;
    config.budget = 1;
    check_resolved(&config, "kv-rewrite: merge,rerotate rewrites what stays when entries go, and "
                            "with kv-scheduling: knorm+adakv, kv-compression: none and kv-budget: "
                            "1 none does");
    config.budget = 0.5;
    config.scheduling = text("quest");
    check_resolved(&config, "kv-rewrite: merge,rerotate rewrites what stays when entries go, and "
                            "with kv-scheduling: quest, kv-compression: none and kv-budget: 0.5 "
                            "none does");
    config.scheduling = text("distill+adakv");
    check_resolved(&config,
                   "kv-rewrite: merge,rerotate would spoil what distill+adakv fits; use none");
    config.scheduling = text("none");
    config.compression = text("distill,none");
    check_resolved(&config, "kv-rewrite: merge,rerotate would spoil what distill fits; use none");
    kv_methods methods;
    config.compression = text("snapkv,int4");
    ck_assert_int_eq(kv_methods_resolve(&config, &methods, NULL), ERR_OK);
}
END_TEST

static void check_refused(const fake_options *options, const char *rewrite, const char *message)
{
    fake *f = fake_open(options);
    kv_config config = options->config;
    kv_methods methods;
    err_info info = {0};
    config.scheduling = text("knorm");
    config.budget = 0.5;
    config.rewrite = text(rewrite);
    ck_assert_int_eq(kv_methods_resolve(&config, &methods, NULL), ERR_OK);
    ck_assert_int_eq(kv_cache_check_methods(f->cache, &methods, &info), ERR_UNSUPPORTED);
    ck_assert_str_eq(info.message, message);
    fake_close(f);
}

START_TEST(layers_that_cannot_be_rewritten_are_named)
{
    fake_options options = options_of("none");
    options.config.request_methods = true;
    layers[1].rope = NULL;
    check_refused(&options, "rerotate",
                  "kv-rewrite: rerotate turns keys by position, and those of layer 1 have none");
    layers[1] = (kv_layer_shape){.n_heads = 2,
                                 .n_kv_heads = 1,
                                 .k_dim = 24,
                                 .v_dim = 16,
                                 .v_in_k = true,
                                 .scale = 0.3f,
                                 .rope = &fake_rope};
    check_refused(
        &options, "merge",
        "kv-rewrite: merge writes keys or values, and in layer 1 values are part of keys");
    check_refused(
        &options, "rerotate",
        "kv-rewrite: rerotate writes keys or values, and in layer 1 values are part of keys");
}
END_TEST

START_TEST(a_cache_that_may_not_be_asked_keeps_nothing_for_it)
{
    fake_options options = options_of("merge");
    options.config.scheduling = text("knorm");
    check_refused(&options, "merge,rerotate", "kv-rewrite: the cache keeps nothing for rerotate");
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE(only_where_entries_go_something_is_rewritten),
    TEST_CASE(layers_that_cannot_be_rewritten_are_named),
    TEST_CASE(a_cache_that_may_not_be_asked_keeps_nothing_for_it),
    TEST_CASES_END,
};
