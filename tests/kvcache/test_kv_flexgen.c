/* tests/kvcache/test_kv_flexgen.c - a policy that only moves pages: shares in the pool, and every bit. */
#include "tests/kvcache/fake_model.h"
#include "tests/test_main.h"

#include "kvcache/page_tiers.h"

enum { N_PROMPT = 150, N_TOKENS = 220 };
static const fake_ids IDS = {.seed = 7, .n_prompt = N_PROMPT};

static char *text(const char *s)
{
    return (char *)(uintptr_t)s;
}

/* With tiers and room for everything. */
static fake *open_with(const char *codec, double budget)
{
    fake_options options = {
        .isa = "auto", .layers = fake_coded_layers, .n_layers = 2, .config = fake_coded(codec)};
    options.config.host_bytes = 3 * KV_SLAB_BYTES; /* a part of it: the rest goes to the file */
    options.config.disk_bytes = 40 * KV_SLAB_BYTES;
    options.config.disk_path = text("/tmp");
    options.config.scheduling = text(budget > 0 ? "flexgen" : "none");
    options.config.budget = budget > 0 ? budget : 1;
    return fake_open(&options);
}

static fake_seq run(fake *f)
{
    fake_seq s = fake_seq_open(f, IDS);
    s.n_prompt = N_PROMPT;
    fake_run(f, &s, N_PROMPT, 30);
    fake_run(f, &s, N_TOKENS, 1);
    return s;
}

typedef struct page_count {
    uint32_t n, n_in_pool;
} page_count;

static page_count count(const fake *f, const fake_seq *s)
{
    const kv_table *table = &s->seq->table;
    page_count found = {0};
    for (uint32_t list = 0; list < table->n_lists; list++) {
        for (uint32_t b = 0; b < s->seq->n_blocks; b++) {
            const uint32_t page = kv_table_page(table, list, b);
            if (page == KV_PAGE_NONE) continue;
            found.n++;
            found.n_in_pool += kv_pool_tier(f->cache->pool, page) == KV_TIER_POOL;
        }
    }
    return found;
}

/* budget: of kv-budget; share: what it comes to. */
static void check(const char *codec, double budget, double share)
{
    fake *all = open_with(codec, 0), *f = open_with(codec, budget);
    fake_seq expected = run(all), s = run(f);
    const page_count pages = count(f, &s);
    kv_usage usage;
    kv_seq_usage(s.seq, &usage);
    ck_assert_uint_ge(usage.pages_demoted, pages.n - pages.n_in_pool);
    ck_assert_uint_eq(usage.pages_evicted, 0);
    /* Block 0 of every list stays for its sinks; the step at hand has added a block at most. */
    ck_assert_double_le(pages.n_in_pool, share * pages.n + 2 * s.seq->table.n_lists);
    ck_assert_double_ge(pages.n_in_pool, share * pages.n - 1);
    ck_assert(fake_same(f, &s, &expected, 0, N_TOKENS));
    fake_seq_close(f, &s, false);
    fake_seq_close(all, &expected, false);
    const kv_stats stats = fake_stats(f);
    ck_assert_uint_eq(stats.slab_bytes + stats.host_bytes + stats.disk_bytes, 0);
    fake_close(all);
    fake_close(f);
}

START_TEST(a_share_stays_in_the_pool_and_no_bit_changes)
{
    static const char *const codecs[] = {"none", "int8", "svd", "pikv"};
    for (size_t i = 0; i < sizeof codecs / sizeof *codecs; i++) {
        check(codecs[i], 0.5, 0.5);
        check(codecs[i], 0.25, 0.25);
        check(codecs[i], 88, 88.0 / N_TOKENS);
    }
}
END_TEST

START_TEST(a_budget_of_one_moves_nothing)
{
    fake *f = open_with("none", 1);
    fake_seq s = run(f);
    ck_assert_uint_eq(fake_stats(f).pages_demoted, 0);
    fake_seq_close(f, &s, false);
    fake_close(f);
}
END_TEST

START_TEST(it_needs_tiers_and_pages_that_stay)
{
    kv_methods methods;
    err_info info = {0};
    fake_options options = {.config = fake_defaults()};
    fake *f = fake_open(&options);
    kv_config *config = &options.config;
    config->scheduling = text("flexgen");
    config->budget = 0.3;
    ck_assert_int_eq(kv_methods_resolve(config, &methods, NULL), ERR_OK);
    ck_assert(methods.is_exact && methods.policy.limits_pool && !kv_methods_evict(&methods));
    ck_assert_int_eq(kv_cache_check_methods(f->cache, &methods, &info), ERR_UNSUPPORTED);
    ck_assert_msg(strstr(info.message, "kv-host-bytes") != NULL, "%s", info.message);
    info = (err_info){0};
    config->compression = text("snapkv,none");
    ck_assert_int_eq(kv_methods_resolve(config, &methods, &info), ERR_BAD_CONFIG);
    ck_assert_msg(strstr(info.message, "kv-scheduling: flexgen") != NULL, "%s", info.message);
    fake_close(f);
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE(a_share_stays_in_the_pool_and_no_bit_changes),
    TEST_CASE(a_budget_of_one_moves_nothing),
    TEST_CASE(it_needs_tiers_and_pages_that_stay),
    TEST_CASES_END,
};
