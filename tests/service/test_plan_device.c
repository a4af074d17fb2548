/* Promises of service/plan_device.h, against what the allocator of a stand-in for a GPU counts: models and caches are opened
 * with a plan's numbers, and sequences as long as was planned are in them. */
#include "service/plan_device.h"
#include "tests/kvcache/fake_model.h"
#include "tests/test_main.h"

#include "model/model.h"

#include <stdlib.h>
#include <string.h>

enum { SEQS = 2, STEP_TOKENS = 64, N_TOKENS = 560 };

/* ---- the cache ---- */

static const kv_layer_shape layers[2] = {
    {.n_heads = 4, .n_kv_heads = 2, .k_dim = 32, .v_dim = 32, .scale = 0.1f, .has_router = true},
    {.n_heads = 2, .n_kv_heads = 1, .k_dim = 32, .v_dim = 32, .scale = 0.1f, .has_router = true},
};

static kv_config settings(void)
{
    kv_config config = fake_defaults();
    config.page_tokens = 8;
    config.window_tokens = 40;
    config.sink_tokens = 3;
    return config;
}

static plan_cache plan_of(const kv_config *config, const kv_shape *shape)
{
    const plan_cache_input in = {.config = config,
                                 .shape = shape,
                                 .n_tokens = N_TOKENS,
                                 .n_seqs = SEQS,
                                 .n_step_tokens = STEP_TOKENS,
                                 .n_ranks = 1};
    plan_cache out;
    err_info info = {0};
    ck_assert_msg(plan_cache_of(&in, &out, &info) == ERR_OK, "%s", info.message);
    return out;
}

static kv_device_plan device_plan_of(const kv_config *config, const kv_shape *shape,
                                     const plan_cache *c)
{
    kv_device_plan out;
    const kv_device_plan_input in = {.config = config,
                                     .methods = &c->methods,
                                     .shape = shape,
                                     .limits = {SEQS, STEP_TOKENS, N_TOKENS},
                                     .type = c->type,
                                     .n_shards = c->n_shards,
                                     .n_ranks = 1,
                                     .n_classes = c->n_classes,
                                     .n_pages = (uint32_t)c->n_page_ids,
                                     .pool_bytes = c->page_bytes + c->section_bytes,
                                     .box_bytes = c->box_bytes,
                                     .has_scattered = c->is_scattered,
                                     .copy_bytes = c->copy_bytes,
                                     .has_biases = c->has_biases};
    ck_assert_int_eq(kv_device_plan_of(&in, &out), ERR_OK);
    return out;
}

/* What the view of a cache of these settings counts when its sequences are full. */
static uint64_t counted_bytes(const kv_config *config, const plan_cache *c)
{
    fake_options options = {.layers = layers,
                            .isa = "auto",
                            .n_layers = 2,
                            .model_type = DTYPE_F32,
                            .limits = {SEQS, STEP_TOKENS, N_TOKENS},
                            .config = *config,
                            .no_prefix_caching = true};
    options.config.memory_bytes = c->page_bytes + c->section_bytes;
    ck_assert_int_eq(setenv("PIKV_TEST_DEVICE", "apart", 1), 0);
    fake *f = fake_open(&options);
    fake_seq seqs[SEQS];
    for (uint32_t s = 0; s < SEQS; s++) {
        seqs[s] = fake_seq_open(f, (fake_ids){.seed = s + 1, .n_prompt = N_TOKENS - 8});
        seqs[s].n_prompt = N_TOKENS - 8;
        fake_run(f, &seqs[s], N_TOKENS, STEP_TOKENS);
    }
    const uint64_t bytes = fake_stats(f).view_bytes;
    for (uint32_t s = 0; s < SEQS; s++)
        fake_seq_close(f, &seqs[s], false);
    fake_close(f);
    return bytes;
}

START_TEST(the_view_of_a_cache_takes_what_was_planned)
{
    static const struct {
        const char *routing, *compression, *scheduling;
        uint32_t n_shards;
        bool hosts;
    } cases[] = {{"full", "none", "none", 1, false},      {"topk", "int8", "none", 1, false},
                 {"certified", "none", "none", 3, false}, {"hierarchical", "none", "none", 1, true},
                 {"full", "int4", "knorm", 1, false},     {"adaptive", "none", "distill", 1, true}};
    const kv_shape shape = {
        .n_layers = 2, .layer = layers, .n_experts = 8, .model_type = DTYPE_F32};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        kv_config config = settings();
        config.routing = (char *)(uintptr_t)cases[i].routing;
        config.compression = (char *)(uintptr_t)cases[i].compression;
        config.scheduling = (char *)(uintptr_t)cases[i].scheduling;
        config.n_shards = cases[i].n_shards;
        config.routing_eps = 0.1;
        config.routing_tau = 0.9;
        config.routing_k = 0.5;
        config.budget = 0.9;
        const plan_cache c = plan_of(&config, &shape);
        const kv_device_plan p = device_plan_of(&config, &shape, &c);
        ck_assert(p.attends);
        ck_assert(p.hosts_attend == cases[i].hosts);
        ck_assert_uint_eq(p.total_bytes, p.pool_bytes + p.ring_bytes + p.staging_bytes +
                                             p.list_bytes + p.box_bytes + p.work_bytes);
        ck_assert((p.box_bytes > 0) == (strcmp(cases[i].routing, "full") != 0));
        const uint64_t lists = cases[i].hosts ? p.list_bytes : 0; /* of rows of the device alone */
        ck_assert_uint_eq(counted_bytes(&config, &c), p.total_bytes - lists);
    }
}
END_TEST

START_TEST(where_the_host_attends_there_is_nothing)
{
    const kv_shape shape = {
        .n_layers = 2, .layer = layers, .n_experts = 8, .model_type = DTYPE_F32};
    kv_config config = settings();
    config.host_bytes = 4 << 20;
    const plan_cache c = plan_of(&config, &shape);
    const kv_device_plan p = device_plan_of(&config, &shape, &c);
    ck_assert(!p.attends);
    ck_assert_uint_eq(p.total_bytes, 0);
}
END_TEST

/* ---- models ---- */

typedef struct opened {
    model_config about;
    plan_weights weights;
    plan_kv_shape shape;
    kv_config kv;
    plan_cache cache;
} opened;

static opened open_plan(const char *dir)
{
    opened out = {.kv = settings()};
    err_info info = {0};
    ck_assert_msg(model_config_read(dir, &out.about, &info) == ERR_OK, "%s", info.message);
    ck_assert_int_eq(plan_weights_of(&out.about, &out.weights, NULL), ERR_OK);
    ck_assert_int_eq(plan_kv_shape_init(&out.about, dir, &out.shape, NULL), ERR_OK);
    out.cache = plan_of(&out.kv, &out.shape.shape);
    return out;
}

static plan_device planned(const opened *o, uint64_t memory_bytes)
{
    plan_device out;
    const plan_device_input in = {.model = &o->about,
                                  .kv = &o->kv,
                                  .shape = &o->shape.shape,
                                  .weights = &o->weights,
                                  .cache = &o->cache,
                                  .n_tokens = N_TOKENS,
                                  .n_seqs = SEQS,
                                  .n_step_tokens = STEP_TOKENS,
                                  .n_ranks = 1,
                                  .memory_bytes = memory_bytes,
                                  .memory_share = 0.5};
    ck_assert_int_eq(plan_device_of(&in, &out, NULL), ERR_OK);
    ck_assert_uint_eq(out.total_bytes, out.weight_bytes + out.scratch_bytes + out.kv.total_bytes);
    return out;
}

static void check_model(const char *dir)
{
    opened o = open_plan(dir);
    const plan_device p = planned(&o, 0);
    err_info info = {0};
    dev *d;
    model *m;
    kv_cache *cache;
    const dev_config gpu = {.kind = DEV_CUDA, .isa = "auto", .gpu_memory_share = 0.9f};
    ck_assert_msg(dev_open(&gpu, &d, &info) == ERR_OK, "%s", info.message);
    const size_t room = dev_room(d);
    const model_options options = {.n_step_tokens_max = STEP_TOKENS};
    ck_assert_msg(model_open(d, dir, &options, &m, &info) == ERR_OK, "%s", info.message);
    ck_assert_uint_eq(room - dev_room(d), p.weight_bytes + p.scratch_bytes);
    ck_assert_uint_eq(model_scratch_bytes(m), p.scratch_bytes + p.host_mirror_bytes);
    const kv_limits limits = {SEQS, STEP_TOKENS, N_TOKENS};
    kv_config kv = o.kv;
    kv.memory_bytes = o.cache.page_bytes + o.cache.section_bytes;
    ck_assert_msg(kv_cache_open(d, &kv, model_get_kv_shape(m), &limits, &cache, &info) == ERR_OK,
                  "%s: %s", dir, info.message);
    ck_assert_uint_eq(room - dev_room(d), p.total_bytes - p.kv.list_bytes);
    kv_cache_close(cache);
    model_close(m);
    ck_assert_uint_eq(dev_room(d), room);
    dev_close(d);
    plan_kv_shape_deinit(&o.shape);
}

START_TEST(a_model_takes_what_was_planned)
{
    check_model("tests/golden/mixtral-gqa-bf16");
    check_model("tests/golden/mixtral-fp8-block");
    check_model("tests/golden/deepseek_v3-base-bf16");
    check_model("tests/golden/gpt_oss-mxfp4");
}
END_TEST

/* Of the plan half a GPU's memory may be in use; the words are the device's. */
START_TEST(what_does_not_fit_is_refused_in_the_servers_words)
{
    opened o = open_plan("tests/golden/mixtral-gqa-bf16");
    const plan_device p = planned(&o, 0);
    const uint64_t view_bytes = p.kv.total_bytes - p.kv.list_bytes,
                   before = p.weight_bytes + p.scratch_bytes;
    char words[200];
    ck_assert_int_eq(p.refusal.code, ERR_OK);
    ck_assert_uint_eq(p.allowed_bytes, 0);
    const plan_device enough = planned(&o, 2 * p.total_bytes);
    ck_assert_int_eq(enough.refusal.code, ERR_OK);
    ck_assert_uint_eq(enough.allowed_bytes, p.total_bytes);
    const uint64_t less = before + view_bytes - 1;
    const plan_device refused = planned(&o, 2 * less);
    (void)snprintf(words, sizeof words,
                   "cuda: %zu more bytes do not fit: %zu of %zu allowed are in use",
                   (size_t)view_bytes, (size_t)before, (size_t)less);
    ck_assert_int_eq(refused.refusal.code, ERR_NO_MEMORY);
    ck_assert_str_eq(refused.refusal.message, words);
    plan_kv_shape_deinit(&o.shape);
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE(the_view_of_a_cache_takes_what_was_planned),
    TEST_CASE(where_the_host_attends_there_is_nothing),
    TEST_CASE(a_model_takes_what_was_planned),
    TEST_CASE(what_does_not_fit_is_refused_in_the_servers_words),
    TEST_CASES_END,
};
