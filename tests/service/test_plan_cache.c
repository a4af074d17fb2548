/* Promises of service/plan_cache.h, against the allocator: a cache of the planned settings is filled
 * with the planned sequences, in a pool of exactly the planned bytes, and its own counters are compared. */
#include "service/plan_cache.h"
#include "tests/kvcache/fake_model.h"
#include "tests/test_main.h"

#include <string.h>

enum { SEQS = 2, STEP_TOKENS = 64 };

/* Two layers of grouped heads without a window, whose pages are large enough for several slabs. */
static const kv_layer_shape layers[2] = {
    {.n_heads = 4, .n_kv_heads = 2, .k_dim = 64, .v_dim = 64, .scale = 0.1f, .has_router = true},
    {.n_heads = 2, .n_kv_heads = 1, .k_dim = 64, .v_dim = 64, .scale = 0.1f, .has_router = true},
};

static kv_config settings(void)
{
    kv_config config = fake_defaults();
    config.page_tokens = 16;
    config.window_tokens = 40;
    config.sink_tokens = 3;
    config.memory_bytes = 0;
    return config;
}

typedef struct job {
    const kv_layer_shape *layers;
    uint32_t n_layers;
    kv_config config;
    uint32_t n_tokens;
    uint32_t n_ranks; /* of the plan; the cache has them all */
} job;

static plan_cache plan_of(const job *j)
{
    const kv_shape shape = {
        .n_layers = j->n_layers, .layer = j->layers, .n_experts = 8, .model_type = DTYPE_F32};
    const plan_cache_input in = {.config = &j->config,
                                 .shape = &shape,
                                 .n_tokens = j->n_tokens,
                                 .n_seqs = SEQS,
                                 .n_step_tokens = STEP_TOKENS,
                                 .n_ranks = j->n_ranks};
    plan_cache out;
    err_info info = {0};
    ck_assert_msg(plan_cache_of(&in, &out, &info) == ERR_OK, "%s", info.message);
    return out;
}

/* What the cache counts with all sequences full, and what one decode step of the first then reads. */
typedef struct counted {
    kv_stats stats;
    uint64_t read_bytes;
    /* Of the first behind that step, before which scheduling has had its way: in the pool, and in host memory. */
    uint64_t pages_used, pages_away;
} counted;

static counted fill_cache(const job *j, uint64_t memory_bytes)
{
    fake_options options = {.layers = j->layers,
                            .isa = "auto",
                            .n_layers = j->n_layers,
                            .model_type = DTYPE_F32,
                            .limits = {SEQS, STEP_TOKENS, 2048},
                            .config = j->config,
                            .no_prefix_caching = true};
    options.config.memory_bytes = memory_bytes;
    fake *f = fake_open(&options);
    fake_seq seqs[SEQS];
    for (uint32_t s = 0; s < SEQS; s++) {
        seqs[s] = fake_seq_open(f, (fake_ids){.seed = s + 1, .n_prompt = j->n_tokens});
        seqs[s].n_prompt = j->n_tokens;
        fake_run(f, &seqs[s], j->n_tokens, STEP_TOKENS);
    }
    counted c = {.stats = fake_stats(f)};
    fake_run(f, &seqs[0], j->n_tokens + 1, 1);
    c.read_bytes = fake_stats(f).bytes_read - c.stats.bytes_read;
    fake_seq_close(f, &seqs[1], false);
    c.pages_used = fake_stats(f).pages_used;
    c.pages_away = fake_stats(f).host_pages;
    fake_seq_close(f, &seqs[0], false);
    fake_close(f);
    return c;
}

/* Pages, slabs, tables with descriptors, rings and staging, byte for byte. */
static counted check_bytes(const job *j)
{
    const plan_cache p = plan_of(j);
    const counted c = fill_cache(j, p.page_bytes);
    ck_assert_uint_eq(c.stats.pages_used, p.n_pages);
    ck_assert_uint_eq(c.stats.slab_bytes, p.page_bytes);
    ck_assert_uint_eq(c.stats.table_bytes, p.table_bytes + p.descriptor_bytes);
    ck_assert_uint_eq(c.stats.ring_bytes, p.ring_bytes);
    ck_assert_uint_eq(c.stats.staging_bytes, p.staging_bytes);
    ck_assert_int_eq(p.type, DTYPE_F32);
    return c;
}

START_TEST(an_exact_cache_holds_and_reads_what_was_planned)
{
    /* Without a block behind the ring, with one, with sinks, at block borders and between them. */
    static const uint32_t lengths[] = {1 + 56, 95, 96, 97, 511, 700};
    for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
        const job j = {layers, 2, settings(), lengths[i], 1};
        const plan_cache p = plan_of(&j);
        const counted c = check_bytes(&j);
        ck_assert_uint_eq(c.read_bytes, p.read_page_bytes + p.read_recent_bytes);
        ck_assert_uint_eq(p.read_page_bytes, p.read_page_bytes_most);
    }
}
END_TEST

START_TEST(a_planned_pool_is_the_smallest_that_does)
{
    const job j = {layers, 2, settings(), 700, 1};
    const plan_cache p = plan_of(&j);
    fake_options options = {.layers = layers,
                            .isa = "auto",
                            .n_layers = 2,
                            .model_type = DTYPE_F32,
                            .limits = {SEQS, STEP_TOKENS, 2048},
                            .config = j.config,
                            .no_prefix_caching = true};
    options.config.memory_bytes = p.page_bytes - 1; /* a slab less */
    fake *f = fake_open(&options);
    fake_seq a = fake_seq_open(f, (fake_ids){.seed = 1, .n_prompt = 700});
    fake_seq b = fake_seq_open(f, (fake_ids){.seed = 2, .n_prompt = 700});
    fake_run(f, &a, 700, STEP_TOKENS);
    err_t err = ERR_OK;
    for (uint32_t n = 0; n < 700 && err == ERR_OK; n += 50)
        err = fake_step(f, (fake_seq *[]){&b}, (uint32_t[]){50}, 1);
    ck_assert_int_eq(err, ERR_KV_FULL);
    fake_seq_close(f, &a, false);
    fake_seq_close(f, &b, false);
    fake_close(f);
}
END_TEST

START_TEST(windows_and_latent_heads_are_counted_as_they_are)
{
    /* Grouped heads; a window of 10 with keys and values of different widths; values inside keys. */
    kv_config config = fake_defaults();
    for (uint32_t n = 20; n <= 140; n += 17) {
        const job j = {fake_layers, 3, config, n, 1};
        const plan_cache p = plan_of(&j);
        /* At rest a window may have let all pages of its layer go: a cache wants room for one. */
        const counted c = fill_cache(&j, p.page_bytes + KV_SLAB_BYTES);
        ck_assert_uint_eq(c.stats.pages_used, p.n_pages);
        ck_assert_uint_eq(c.stats.slab_bytes, p.page_bytes);
        ck_assert_uint_eq(c.stats.ring_bytes, p.ring_bytes);
        ck_assert_uint_eq(c.stats.staging_bytes, p.staging_bytes);
    }
}
END_TEST

START_TEST(boxes_of_pages_and_runs_are_counted)
{
    static const char *const names[] = {"topk", "hierarchical", "adaptive", "certified", "pikv"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        job j = {layers, 2, settings(), 700, 1};
        j.config.routing = (char *)(uintptr_t)names[i];
        j.config.routing_k = 0.25;
        j.config.routing_eps = 0.01;
        j.config.routing_tau = 0.95;
        j.config.n_shards = 4;
        const plan_cache p = plan_of(&j);
        const counted c = check_bytes(&j);
        if (p.reads_by_data) {
            ck_assert_uint_le(c.read_bytes, p.read_page_bytes + p.read_recent_bytes);
        } else { /* it may take the page with the sinks, or of equal shards one with a page more */
            const uint64_t page = 16 * p.token_bytes,
                           planned = p.read_page_bytes + p.read_recent_bytes;
            ck_assert_uint_le(c.read_bytes, planned + page);
            ck_assert_uint_le(planned, c.read_bytes + page);
            ck_assert_double_eq_tol(p.share_read, 0.25, 0.02);
        }
    }
}
END_TEST

START_TEST(coded_pages_and_the_raw_one_of_the_sinks_are_counted)
{
    static const char *const names[] = {"fp8",   "int8",  "int4", "int2",
                                        "think", "prune", "lora", "pikv"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        job j = {layers, 2, settings(), 700, 1};
        j.config.compression = (char *)(uintptr_t)names[i];
        fake_options options = {.layers = layers, .n_layers = 2, .model_type = DTYPE_F32};
        fake *lender = fake_open(&options); /* of bases */
        j.layers = lender->layers;
        const plan_cache p = plan_of(&j);
        const counted c = fill_cache(&j, 16 << 20); /* raw pages of a section need room beside */
        ck_assert_uint_eq(c.stats.pages_used, p.n_pages);
        ck_assert_uint_eq(c.stats.ring_bytes, p.ring_bytes);
        ck_assert_uint_eq(c.stats.staging_bytes, p.staging_bytes);
        ck_assert_uint_eq(c.read_bytes, p.read_page_bytes + p.read_recent_bytes);
        ck_assert_uint_ge(c.stats.slab_bytes, p.page_bytes);
        /* Pages with sinks were written first, one to a slab of raw pages that have gone since. */
        const uint64_t n_raw = SEQS * 3;
        ck_assert_uint_le(c.stats.slab_bytes, p.page_bytes + n_raw * KV_SLAB_BYTES);
        ck_assert_double_gt(p.compression, 1);
        ck_assert_uint_gt(p.section_bytes, 0);
        fake_close(lender);
    }
}
END_TEST

START_TEST(every_rank_has_the_pages_of_its_shards)
{
    for (uint32_t n_ranks = 2; n_ranks <= 5; n_ranks++) {
        job j = {layers, 2, settings(), 700, n_ranks};
        const plan_cache p = plan_of(&j);
        ck_assert_uint_eq(p.n_shards, n_ranks);
        j.n_ranks = 1;
        j.config.n_shards = n_ranks;
        const plan_cache whole = plan_of(&j);
        check_bytes(&j);
        const counted c = fill_cache(&j, 16 << 20); /* where no shard's part is ever spent */
        uint64_t most = 0;
        for (uint32_t s = 0; s < n_ranks; s++) {
            if (c.stats.shards[s].pages > most) most = c.stats.shards[s].pages;
        }
        ck_assert_uint_eq(p.n_pages, most);
        ck_assert_uint_eq(p.read_page_bytes, whole.read_page_bytes);
        ck_assert_uint_eq(p.ring_bytes, whole.ring_bytes);
    }
}
END_TEST

START_TEST(scattered_entries_take_about_what_was_planned)
{
    job j = {layers, 2, settings(), 2000, 1};
    j.config.n_shards = 4;
    j.config.placement = (char *)(uintptr_t) "hash";
    const plan_cache p = plan_of(&j);
    const counted c = fill_cache(&j, 16 << 20);
    ck_assert(p.is_scattered);
    /* A page that is being filled for each of 4 shards and 3 heads, of either sequence. */
    ck_assert_uint_le(c.stats.pages_used, p.n_pages + (uint64_t)SEQS * 3 * 4);
    ck_assert_uint_le(p.n_pages, c.stats.pages_used + (uint64_t)SEQS * 3 * 4);
    const double planned = (double)(p.read_page_bytes + p.read_recent_bytes);
    ck_assert_double_eq_tol((double)c.read_bytes, planned, 0.005 * planned);
}
END_TEST

START_TEST(a_budget_keeps_about_its_share)
{
    static const char *const names[] = {"knorm", "streaming_llm", "distill", "knorm+adakv"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        job j = {layers, 2, settings(), 1500, 1};
        j.config.scheduling = (char *)(uintptr_t)names[i];
        j.config.budget = 0.5;
        const plan_cache p = plan_of(&j);
        const counted c = fill_cache(&j, 16 << 20);
        const double planned_pages = (double)p.n_pages / SEQS;
        const double read = (double)c.read_bytes;
        const double planned = (double)(p.read_page_bytes + p.read_recent_bytes);
        ck_assert(p.is_thinned);
        /* One more per head: raw ones are packed when their holes make up a page. */
        ck_assert_double_ge((double)c.pages_used, planned_pages - 3);
        ck_assert_double_le((double)c.pages_used, planned_pages + 3);
        ck_assert_double_gt(read, 0.97 * planned);
        ck_assert_double_lt(read, 1.03 * planned);
    }
}
END_TEST

START_TEST(what_flexgen_moves_is_counted_apart)
{
    job j = {layers, 2, settings(), 700, 1};
    j.config.scheduling = (char *)(uintptr_t) "flexgen";
    j.config.budget = 0.3;
    j.config.host_bytes = 4 << 20;
    const plan_cache p = plan_of(&j);
    const counted c = fill_cache(&j, 16 << 20);
    /* 41 blocks of 3 heads, of which 700 * 0.3 / 700 stay; both are moved when their next step begins. */
    ck_assert_uint_eq(p.n_pages, SEQS * 123);
    ck_assert_uint_eq(p.n_pages_away, SEQS * 123 - SEQS * 123 * 210 / 700);
    ck_assert_uint_ge(c.pages_away, p.n_pages_away / SEQS);
    ck_assert_uint_le(c.pages_away, p.n_pages_away / SEQS + 1);
    ck_assert_uint_eq(c.read_bytes, p.read_page_bytes + p.read_recent_bytes);
    j.config.host_bytes = 0;
    const kv_shape shape = {
        .n_layers = 2, .layer = layers, .n_experts = 8, .model_type = DTYPE_F32};
    const plan_cache_input in = {.config = &j.config,
                                 .shape = &shape,
                                 .n_tokens = 700,
                                 .n_seqs = 1,
                                 .n_step_tokens = 1,
                                 .n_ranks = 1};
    plan_cache out;
    ck_assert_int_eq(plan_cache_of(&in, &out, NULL), ERR_UNSUPPORTED);
}
END_TEST

START_TEST(settings_that_the_cache_refuses_are_refused)
{
    const struct {
        const char *routing, *placement, *compression;
        uint32_t n_shards, sink_tokens;
        const char *message;
    } cases[] = {
        {"nix", "block", "none", 1, 0, "kv-routing: 'nix' is unknown"},
        {"full", "nix", "none", 1, 0, "kv-placement: 'nix' is unknown"},
        {"full", "block", "nix", 1, 0, "kv-compression: 'nix' is unknown"},
        {"full", "hash", "none", 3, 0, "kv-shards: 3"},
        {"full", "block", "none", 1, 17, "kv-sink: 17 is more than kv-page-tokens, 16"},
        {"full", "block", "lora", 1, 0, "kv_bases.safetensors"},
    };
    const kv_shape shape = {
        .n_layers = 2, .layer = layers, .n_experts = 8, .model_type = DTYPE_F32};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        kv_config config = settings();
        config.routing = (char *)(uintptr_t)cases[i].routing;
        config.placement = (char *)(uintptr_t)cases[i].placement;
        config.compression = (char *)(uintptr_t)cases[i].compression;
        config.n_shards = cases[i].n_shards;
        config.sink_tokens = cases[i].sink_tokens;
        const plan_cache_input in = {.config = &config,
                                     .shape = &shape,
                                     .n_tokens = 100,
                                     .n_seqs = 1,
                                     .n_step_tokens = 1,
                                     .n_ranks = 1};
        plan_cache out;
        err_info info = {0};
        ck_assert_int_eq(plan_cache_of(&in, &out, &info), ERR_BAD_CONFIG);
        ck_assert_msg(strstr(info.message, cases[i].message) != NULL, "%s", info.message);
    }
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE(an_exact_cache_holds_and_reads_what_was_planned),
    TEST_CASE(a_planned_pool_is_the_smallest_that_does),
    TEST_CASE(windows_and_latent_heads_are_counted_as_they_are),
    TEST_CASE(boxes_of_pages_and_runs_are_counted),
    TEST_CASE(coded_pages_and_the_raw_one_of_the_sinks_are_counted),
    TEST_CASE(every_rank_has_the_pages_of_its_shards),
    TEST_CASE(scattered_entries_take_about_what_was_planned),
    TEST_CASE(a_budget_keeps_about_its_share),
    TEST_CASE(what_flexgen_moves_is_counted_apart),
    TEST_CASE(settings_that_the_cache_refuses_are_refused),
    TEST_CASES_END,
};
