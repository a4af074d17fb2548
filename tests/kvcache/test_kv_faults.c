/* tests/kvcache/test_kv_faults.c - allocation N fails, for N = 0, 1, 2 ... until none does.
 *
 * The linker sends every allocation of this binary through the wrappers below; nothing in the cache
 * knows of them. Whatever fails, nothing leaks (AddressSanitizer watches) and nothing breaks. */
#include "tests/kvcache/fake_model.h"
#include "tests/test_main.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* Allocations left until the one that fails; negative: none fails. */
static long n_until_failure = -1;
static unsigned long n_allocations;

static bool fails_now(void)
{
    n_allocations++;
    return n_until_failure >= 0 && n_until_failure-- == 0;
}

void *__real_malloc(size_t bytes);
void *__real_calloc(size_t n, size_t bytes);
void *__real_realloc(void *data, size_t bytes);
void *__real_aligned_alloc(size_t alignment, size_t bytes);
void *__real_mmap(void *at, size_t bytes, int protection, int flags, int file, off_t offset);
void *__wrap_malloc(size_t bytes);
void *__wrap_calloc(size_t n, size_t bytes);
void *__wrap_realloc(void *data, size_t bytes);
void *__wrap_aligned_alloc(size_t alignment, size_t bytes);
void *__wrap_mmap(void *at, size_t bytes, int protection, int flags, int file, off_t offset);

void *__wrap_malloc(size_t bytes)
{
    return fails_now() ? NULL : __real_malloc(bytes);
}

void *__wrap_calloc(size_t n, size_t bytes)
{
    return fails_now() ? NULL : __real_calloc(n, bytes);
}

void *__wrap_realloc(void *data, size_t bytes)
{
    return fails_now() ? NULL : __real_realloc(data, bytes);
}

void *__wrap_aligned_alloc(size_t alignment, size_t bytes)
{
    return fails_now() ? NULL : __real_aligned_alloc(alignment, bytes);
}

void *__wrap_mmap(void *at, size_t bytes, int protection, int flags, int file, off_t offset)
{
    return fails_now() ? MAP_FAILED : __real_mmap(at, bytes, protection, flags, file, offset);
}

/* The routing that keeps most beside the pages. */
static kv_config with_boxes(void)
{
    kv_config config = fake_defaults();
    config.routing = (char *)(uintptr_t) "hierarchical";
    config.routing_k = 0.5;
    return config;
}

/* The placement that allocates most: lists and marks per shard, the map of experts. */
static kv_config with_shards(void)
{
    kv_config config = with_boxes();
    config.placement = (char *)(uintptr_t) "expert";
    config.n_shards = 4;
    config.eplb = true;
    return config;
}

/* What this policy needs beside them. */
static kv_config evicting(const char *policy)
{
    kv_config config = with_boxes();
    config.scheduling = (char *)(uintptr_t)policy;
    config.budget = 0.5;
    return config;
}

/* The same, but of the prompt alone. */
static kv_config selecting(const char *compression)
{
    kv_config config = evicting("none");
    config.compression = (char *)(uintptr_t)compression;
    return config;
}

static kv_config with_tiers(kv_config config)
{
    config.host_bytes = KV_SLAB_BYTES;
    config.disk_bytes = 16 * KV_SLAB_BYTES;
    config.disk_path = (char *)(uintptr_t) "/tmp";
    return config;
}

static void check_open(kv_config config)
{
    dev *d;
    ck_assert_int_eq(dev_open_cpu(&(dev_config){.isa = "auto", .n_threads = 1}, &d, NULL), ERR_OK);
    config.request_methods = true;
    const kv_shape shape = {.n_layers = 3, .layer = fake_layers, .n_experts = 8};
    const kv_limits limits = {4, 64, 512};
    kv_cache *cache = NULL;
    long n = 0;
    for (; cache == NULL; n++) {
        err_info info = {0};
        n_until_failure = n;
        const err_t err = kv_cache_open(d, &config, &shape, &limits, &cache, &info);
        n_until_failure = -1;
        ck_assert_int_eq(err == ERR_OK, cache != NULL);
        if (cache == NULL) ck_assert_int_eq(err, ERR_NO_MEMORY);
        if (cache == NULL) ck_assert_int_eq(info.code, ERR_NO_MEMORY);
    }
    ck_assert_int_gt(n, 4);
    kv_cache_close(cache);
    dev_close(d);
}

START_TEST(a_cache_opens_wholly_or_not_at_all)
{
    check_open(evicting("h2o+adakv"));
    check_open(with_tiers(evicting("h2o+adakv")));
}
END_TEST

/* A step of n tokens of garbage; true if it ran. Plain assertions: Check itself allocates. */
static bool step(fake *f, kv_seq *seq, uint32_t n_tokens)
{
    const uint32_t length = kv_seq_length(seq);
    const kv_row row = {.seq = seq, .n_tokens = n_tokens};
    const err_t err = kv_step_begin(f->cache, &row, 1);
    if (err != ERR_OK) {
        assert(err == ERR_NO_MEMORY);
        assert(kv_seq_length(seq) == length);
        return false;
    }
    const unsigned long n_before = n_allocations;
    for (uint32_t l = 0; l < f->n_layers; l++) {
        kv_append(f->cache, &(kv_append_args){.layer = l, .k = f->k, .v = f->v});
        kv_attend(
            f->cache,
            &(kv_attend_args){
                .layer = l, .q = f->q, .q_nope = f->q, .input_norm = f->input_norm, .out = f->out});
        if (f->layers[l].has_router) kv_note_experts(f->cache, l, f->experts, 1);
    }
    kv_step_end(f->cache);
    assert(n_allocations == n_before);
    return true;
}

/* Some of everything that allocates, with ids of 200 tokens. */
static void live(fake *f, const uint32_t *tokens)
{
    const kv_seq_options options = {.salt = "salt", .salt_bytes = 4, .n_prompt_tokens = 50};
    for (uint32_t i = 0; i < 4; i++) {
        kv_seq *seq;
        if (kv_seq_open(f->cache, &options, &seq) != ERR_OK) continue;
        (void)kv_seq_take_prefix(seq, tokens + i / 2, 150);
        while (kv_seq_length(seq) < 100 + 20 * i) {
            const uint32_t most = kv_seq_step_tokens_max(seq);
            if (!step(f, seq, most < 30 ? most : 30)) break;
            if (kv_seq_length(seq) > 50) kv_seq_share_prompt(seq, tokens + i / 2, 50);
        }
        kv_seq_close(seq, tokens + i / 2);
        assert(kv_cache_is_sane(f->cache));
    }
    kv_cache_drop_prefixes(f->cache);
}

static void fail_each_allocation(kv_config config)
{
    uint32_t tokens[256];
    for (uint32_t p = 0; p < 256; p++)
        tokens[p] = p;
    unsigned long n_needed = 1;
    for (unsigned long n = 0; n < n_needed; n++) {
        fake *f = fake_open(&(fake_options){.config = config});
        const size_t n_floats = (size_t)64 * 64; /* the widest layer and the longest step */
        memset(f->q, 0, n_floats * sizeof *f->q);
        memset(f->k, 0, n_floats * sizeof *f->k);
        memset(f->v, 0, n_floats * sizeof *f->v);
        memset(f->experts, 0, 64 * sizeof *f->experts);
        const unsigned long n_before = n_allocations;
        n_until_failure = (long)n;
        live(f, tokens);
        n_until_failure = -1;
        n_needed = n_allocations - n_before;
        ck_assert_uint_eq(fake_stats(f).slab_bytes, 0);
        ck_assert_uint_eq(fake_stats(f).prefix_objects, 0);
        fake_close(f);
    }
    ck_assert_uint_gt(n_needed, 20);
}

START_TEST(a_failed_allocation_costs_no_more_than_what_asked_for_it)
{
    fail_each_allocation(with_boxes());
    fail_each_allocation(with_shards());
}
END_TEST

/* Queries, sums, mass, local sums, laziness and uses: what scorers need is allocated with the sequence and its table. */
START_TEST(a_failed_allocation_for_a_scorer_costs_no_more_either)
{
    static const char *const policies[] = {"h2o+adakv", "snapkv",     "expected_attention",
                                           "lru",       "non_causal", "h2o+simlayer"};
    for (uint32_t i = 0; i < sizeof policies / sizeof *policies; i++)
        fail_each_allocation(evicting(policies[i]));
    fail_each_allocation(selecting("h2o,none"));
    fail_each_allocation(selecting("non_causal+simlayer,none"));
    fail_each_allocation(selecting("chunkkv+pyramid,none"));
}
END_TEST

static void check_steps(const fake_options *options)
{
    fake *f = fake_open(options);
    fake_seq s = fake_seq_open(f, (fake_ids){.seed = 1, .n_prompt = 70});
    memset(f->experts, 0, 64 * sizeof *f->experts);
    fake_run(f, &s, 64, 64);
    for (uint32_t i = 0; i < 100; i++) { /* up to 360 tokens */
        const uint32_t most = kv_seq_step_tokens_max(s.seq);
        ck_assert(step(f, s.seq, most < 1 + i % 5 ? most : 1 + i % 5));
    }
    ck_assert_int_eq(fake_stats(f).disk_read_bytes > 0, options->config.disk_bytes > 0);
    fake_seq_close(f, &s, false);
    fake_close(f);
}

START_TEST(nothing_is_allocated_inside_a_step)
{
    kv_config small = fake_coded("none");
    small.memory_bytes = 3 * KV_SLAB_BYTES;
    small.disk_bytes = 16 * KV_SLAB_BYTES;
    small.disk_path = (char *)(uintptr_t) "/tmp";
    check_steps(&(fake_options){
        .layers = fake_coded_layers, .n_layers = 2, .config = small, .n_threads = 2});
    check_steps(&(fake_options){0});
    check_steps(&(fake_options){.config = with_shards()});
    check_steps(&(fake_options){.config = evicting("h2o+adakv")});
    check_steps(&(fake_options){.config = evicting("snapkv+pyramid"), .n_threads = 2});
    check_steps(&(fake_options){.config = evicting("expected_attention")});
    check_steps(&(fake_options){.config = selecting("paper_duo_attention,none")});
    check_steps(&(fake_options){.config = evicting("non_causal+adakv"), .n_threads = 2});
    check_steps(&(fake_options){.config = evicting("cap+simlayer")});
    check_steps(&(fake_options){
        .layers = fake_coded_layers, .n_layers = 2, .config = fake_coded("int4"), .n_threads = 2});
    check_steps(&(fake_options){
        .layers = fake_coded_layers, .n_layers = 2, .config = fake_coded("think"), .n_threads = 2});
    kv_config shards_of_codes = fake_coded("int4");
    shards_of_codes.placement = (char *)(uintptr_t) "expert";
    shards_of_codes.n_shards = 3;
    check_steps(
        &(fake_options){.layers = fake_coded_layers, .n_layers = 2, .config = shards_of_codes});
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE(a_cache_opens_wholly_or_not_at_all),
    TEST_CASE_SECONDS(a_failed_allocation_costs_no_more_than_what_asked_for_it, 600),
    TEST_CASE_SECONDS(a_failed_allocation_for_a_scorer_costs_no_more_either, 600),
    TEST_CASE(nothing_is_allocated_inside_a_step),
    TEST_CASES_END,
};
