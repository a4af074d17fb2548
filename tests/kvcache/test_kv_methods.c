/* tests/kvcache/test_kv_methods.c - sequences with methods of their own, side by side in one cache. */
#include "tests/kvcache/fake_model.h"
#include "tests/test_main.h"

#include <stdio.h>
#include <string.h>

enum { PROMPT = 70, TOKENS = 150, CHUNK = 5 };

typedef struct choice {
    const char *routing;
    double number; /* k, eps and tau alike */
    const char *compression;
} choice;

/* The first three read everything and keep it as it is. */
static const choice choices[] = {
    {"full", 0.25, "none"},         {"topk", 1, "none"},       {"certified", 0, "none"},
    {"topk", 0.25, "none"},         {"topk", 0.5, "none"},     {"certified", 0.5, "none"},
    {"hierarchical", 0.25, "int8"}, {"adaptive", 0.5, "int2"}, {"full", 0.25, "int8"},
    {"full", 0.25, "int4"},         {"topk", 0.25, "fp8"},
};
enum { N_EXACT = 3, N_CHOICES = sizeof choices / sizeof choices[0] };

static kv_config config_of(const choice *c)
{
    kv_config config = fake_coded(c->compression);
    config.routing = (char *)(uintptr_t)c->routing;
    config.routing_k = config.routing_eps = config.routing_tau = c->number;
    return config;
}

static kv_methods methods_of(const choice *c)
{
    kv_methods methods;
    const kv_config config = config_of(c);
    ck_assert_int_eq(kv_methods_resolve(&config, &methods, NULL), ERR_OK);
    return methods;
}

static fake *open_with(kv_config config)
{
    return fake_open(&(fake_options){.layers = fake_coded_layers,
                                     .n_layers = 2,
                                     .model_type = DTYPE_BF16,
                                     .n_threads = 2,
                                     .limits = {N_CHOICES, 64, 512},
                                     .config = config});
}

/* Takes what any of them needs. */
static fake *open_shared(void)
{
    kv_config config = fake_coded("none");
    config.request_methods = true;
    return open_with(config);
}

static fake_seq open_seq(fake *f, const kv_methods *methods, uint64_t seed)
{
    fake_seq s = fake_seq_open(f, (fake_ids){.seed = seed, .n_prompt = PROMPT, .methods = methods});
    s.n_prompt = PROMPT;
    return s;
}

/* The next tokens of a sequence: a chunk of its prompt, or one. */
static uint32_t next_tokens(const fake_seq *s)
{
    const uint32_t length = kv_seq_length(s->seq);
    if (length >= TOKENS) return 0;
    if (length >= PROMPT) return 1;
    const uint32_t left = (uint32_t)min_size(CHUNK, (size_t)PROMPT - length);
    return (uint32_t)min_size(left, kv_seq_step_tokens_max(s->seq));
}

/* All of them together, until each has TOKENS. */
static void run_together(fake *f, fake_seq *seqs, uint32_t n_seqs)
{
    for (;;) {
        fake_seq *rows[N_CHOICES];
        uint32_t n_tokens[N_CHOICES], n_rows = 0;
        for (uint32_t i = 0; i < n_seqs; i++) {
            n_tokens[n_rows] = next_tokens(&seqs[i]);
            rows[n_rows] = &seqs[i];
            if (n_tokens[n_rows] > 0) n_rows++;
        }
        if (n_rows == 0) return;
        ck_assert_int_eq(fake_step(f, rows, n_tokens, n_rows), ERR_OK);
    }
}

static void close_all(fake *f, fake_seq *seqs, uint32_t n_seqs)
{
    for (uint32_t i = 0; i < n_seqs; i++)
        fake_seq_close(f, &seqs[i], false);
    fake_close(f);
}

START_TEST(each_sequence_has_the_bits_of_a_cache_of_its_own)
{
    fake *f = open_shared();
    fake_seq seqs[N_CHOICES];
    kv_methods methods[N_CHOICES];
    for (uint32_t i = 0; i < N_CHOICES; i++) {
        methods[i] = methods_of(&choices[i]);
        ck_assert_int_eq(kv_cache_check_methods(f->cache, &methods[i], NULL), ERR_OK);
        seqs[i] = open_seq(f, &methods[i], 7);
    }
    run_together(f, seqs, N_CHOICES);
    uint32_t n_different = 0;
    for (uint32_t i = 0; i < N_CHOICES; i++) {
        fake *own = open_with(config_of(&choices[i]));
        fake_seq alone = open_seq(own, NULL, 7);
        run_together(own, &alone, 1);
        ck_assert_msg(fake_same(f, &seqs[i], &alone, 0, TOKENS), "%s %g %s", choices[i].routing,
                      choices[i].number, choices[i].compression);
        n_different += !fake_same(f, &seqs[0], &seqs[i], 0, TOKENS);
        close_all(own, &alone, 1);
    }
    ck_assert_uint_eq(n_different, N_CHOICES - N_EXACT); /* the methods do something */
    close_all(f, seqs, N_CHOICES);
}
END_TEST

START_TEST(prefixes_are_shared_among_exact_methods_and_never_across_lossy_ones)
{
    for (uint32_t from = 0; from < N_CHOICES; from++) {
        fake *f = open_shared();
        kv_methods methods = methods_of(&choices[from]);
        fake_seq source = open_seq(f, &methods, 7);
        run_together(f, &source, 1);
        fake_seq_close(f, &source, true);
        for (uint32_t to = 0; to < N_CHOICES; to++) {
            methods = methods_of(&choices[to]);
            fake_seq taker = open_seq(f, &methods, 7);
            const uint32_t n = kv_seq_take_prefix(taker.seq, taker.tokens, TOKENS);
            const bool is_shared = from == to || (from < N_EXACT && to < N_EXACT);
            ck_assert_msg((n > 0) == is_shared, "%u tokens of %s %s for %s %s", n,
                          choices[from].routing, choices[from].compression, choices[to].routing,
                          choices[to].compression);
            fake_seq_close(f, &taker, false);
        }
        fake_close(f);
    }
}
END_TEST

static void expect_refusal(const fake *f, const choice *c, const char *words)
{
    err_info info = {0};
    const kv_methods methods = methods_of(c);
    ck_assert_int_eq(kv_cache_check_methods(f->cache, &methods, &info), ERR_UNSUPPORTED);
    ck_assert_msg(strstr(info.message, words) != NULL, "%s", info.message);
}

START_TEST(a_cache_refuses_methods_that_it_keeps_nothing_for)
{
    fake *plain = open_with(fake_coded("none"));
    for (uint32_t i = 0; i < N_CHOICES; i++) {
        const kv_methods methods = methods_of(&choices[i]);
        const err_t err = kv_cache_check_methods(plain->cache, &methods, NULL);
        ck_assert_int_eq(err, i < N_EXACT ? ERR_OK : ERR_UNSUPPORTED);
    }
    expect_refusal(plain, &(choice){"topk", 0.5, "none"}, "kv-routing: the cache keeps no bounds");
    fake_close(plain);
    fake *coded = open_with(fake_coded("int8")); /* raw pages are there under every codec */
    const kv_methods exact = methods_of(&choices[0]);
    ck_assert_int_eq(kv_cache_check_methods(coded->cache, &exact, NULL), ERR_OK);
    expect_refusal(coded, &(choice){"full", 0, "int4"}, "kv-compression: the cache has no pages");
    fake_close(coded);
}
END_TEST

START_TEST(what_fits_depends_on_the_methods)
{
    fake *f = open_shared();
    const kv_methods exact = methods_of(&choices[0]);
    const kv_methods coded = methods_of(&(choice){"full", 0, "int2"});
    f->cache->section_tokens = 64; /* whose raw pages need room beside the encoded ones */
    const uint64_t n_exact = kv_cache_capacity_tokens(f->cache, &exact);
    ck_assert_uint_eq(kv_cache_capacity_tokens(f->cache, NULL), n_exact);
    ck_assert_uint_gt(kv_cache_capacity_tokens(f->cache, &coded), 2 * n_exact);
    fake_close(f);
}
END_TEST

/* ---- usage --------------------------------------------------------------------------------------- */

static kv_usage usage_of(const fake_seq *s)
{
    kv_usage usage;
    kv_seq_usage(s->seq, &usage);
    return usage;
}

START_TEST(a_sequence_alone_uses_what_the_cache_holds)
{
    kv_config config = fake_coded("none");
    config.prefix_caching = false;
    fake *f = open_with(config);
    fake_seq s = open_seq(f, NULL, 7);
    ck_assert_uint_eq(usage_of(&s).resident_bytes, f->cache->rings.ring_bytes);
    run_together(f, &s, 1);
    const kv_usage usage = usage_of(&s);
    const kv_stats stats = fake_stats(f);
    ck_assert_uint_eq(usage.resident_bytes, usage.uncompressed_bytes);
    ck_assert_uint_gt(usage.resident_bytes, stats.used_bytes + stats.ring_bytes);
    ck_assert_uint_lt(usage.resident_bytes,
                      stats.slab_bytes + stats.table_bytes + stats.ring_bytes);
    close_all(f, &s, 1);
}
END_TEST

START_TEST(codes_use_less_than_the_same_entries_raw)
{
    fake *f = open_shared();
    const kv_methods exact = methods_of(&choices[0]);
    const kv_methods coded = methods_of(&(choice){"full", 0, "int4"});
    fake_seq seqs[2] = {open_seq(f, &exact, 7), open_seq(f, &coded, 7)};
    run_together(f, seqs, 2);
    const kv_usage raw = usage_of(&seqs[0]), small = usage_of(&seqs[1]);
    ck_assert_uint_eq(small.uncompressed_bytes, raw.resident_bytes);
    ck_assert_uint_lt(small.resident_bytes, raw.resident_bytes);
    close_all(f, seqs, 2);
}
END_TEST

START_TEST(certificates_are_those_of_the_sequence)
{
    fake *f = open_shared();
    fake_seq seqs[N_CHOICES];
    kv_methods methods[N_CHOICES];
    uint64_t n = 0;
    double sum = 0;
    for (uint32_t i = 0; i < N_CHOICES; i++) {
        methods[i] = methods_of(&choices[i]);
        seqs[i] = open_seq(f, &methods[i], 7);
    }
    run_together(f, seqs, N_CHOICES);
    for (uint32_t i = 0; i < N_CHOICES; i++) {
        fake *other = open_shared();
        fake_seq alone = open_seq(other, &methods[i], 7);
        run_together(other, &alone, 1);
        const kv_usage usage = usage_of(&seqs[i]), expected = usage_of(&alone);
        ck_assert_uint_eq(usage.certificates,
                          (TOKENS - PROMPT) * (4 + 2));               /* heads of the layers */
        ck_assert(usage.certificate_sum == expected.certificate_sum); /* to the last bit */
        ck_assert((usage.certificate_sum > 0) == !methods[i].reads_all);
        n += usage.certificates;
        sum += usage.certificate_sum;
        close_all(other, &alone, 1);
    }
    ck_assert_uint_eq(fake_stats(f).certificates, n);
    ck_assert_double_eq_tol(fake_stats(f).certificate_sum, sum, 1e-9 * sum);
    close_all(f, seqs, N_CHOICES);
}
END_TEST

START_TEST(an_aborted_step_leaves_no_certificate)
{
    fake *f = open_shared();
    const kv_methods methods = methods_of(&(choice){"topk", 0.25, "none"});
    fake_seq s = open_seq(f, &methods, 7);
    run_together(f, &s, 1);
    const kv_usage before = usage_of(&s);
    const kv_row row = {.seq = s.seq, .n_tokens = 1, .is_decode = true};
    ck_assert_int_eq(kv_step_begin(f->cache, &row, 1), ERR_OK);
    kv_append(f->cache, &(kv_append_args){.layer = 0, .k = f->there.k, .v = f->there.v});
    kv_attend(f->cache, &(kv_attend_args){.layer = 0, .q = f->there.q, .out = f->there.out});
    kv_step_abort(f->cache);
    const kv_usage after = usage_of(&s);
    ck_assert_uint_eq(after.certificates, before.certificates);
    ck_assert(after.certificate_sum == before.certificate_sum);
    close_all(f, &s, 1);
}
END_TEST

static void check_policies_equal(const kv_policy *a, const kv_policy *b)
{
    ck_assert_str_eq(a->name, b->name);
    ck_assert_ptr_eq(a->scorer, b->scorer);
    ck_assert_ptr_eq(a->layers, b->layers);
    ck_assert_ptr_eq(a->heads, b->heads);
    ck_assert(a->evicts == b->evicts);
    ck_assert(a->limits_reads == b->limits_reads);
    ck_assert(a->limits_pool == b->limits_pool);
    ck_assert_double_eq(a->budget, b->budget);
}

/* What a rank is told of a sequence's methods is what rank 0 resolved. */
static uint32_t check_packed(const char *routing, const char *scheduling, const char *compression,
                             double number)
{
    kv_config config = fake_coded(compression);
    kv_methods methods, again;
    kv_methods_wire wire;
    config.routing = (char *)(uintptr_t)routing;
    config.scheduling = (char *)(uintptr_t)scheduling;
    config.routing_k = config.routing_eps = config.routing_tau = config.budget = number;
    if (number > 1) config.routing_eps = config.routing_tau = 0.5;
    config.lazy_threshold = 0.7;
    config.rewrite = (char *)(uintptr_t) "rerotate"; /* if they go with it */
    if (kv_methods_resolve(&config, &methods, NULL) != ERR_OK)
        config.rewrite = (char *)(uintptr_t) "none";
    if (kv_methods_resolve(&config, &methods, NULL) != ERR_OK) return 0;
    kv_methods_pack(&methods, &wire);
    err_info info = {0};
    ck_assert_msg(kv_methods_unpack(&wire, config.page_tokens, &again, &info) == ERR_OK,
                  "%s, %s, %s: %s", routing, scheduling, compression, info.message);
    check_policies_equal(&methods.policy, &again.policy);
    check_policies_equal(&methods.selection, &again.selection);
    ck_assert_ptr_eq(methods.routing, again.routing);
    ck_assert_ptr_eq(methods.codec, again.codec);
    ck_assert_uint_eq(methods.codec_index, again.codec_index);
    ck_assert_str_eq(methods.rewritings.name, again.rewritings.name);
    ck_assert_ptr_eq(methods.rewritings.list[0], again.rewritings.list[0]);
    if (kv_methods_by_laziness(&methods))
        ck_assert_double_eq(methods.policy.lazy_threshold, again.policy.lazy_threshold);
    ck_assert(methods.reads_all == again.reads_all);
    ck_assert(methods.is_exact == again.is_exact);
    ck_assert_double_eq(methods.route.k, again.route.k);
    if ((methods.routing->obeys & KV_ROUTE_EPS) != 0)
        ck_assert_double_eq(methods.route.eps, again.route.eps);
    if ((methods.routing->obeys & KV_ROUTE_TAU) != 0)
        ck_assert_double_eq(methods.route.tau, again.route.tau);
    return 1;
}

static uint32_t check_all_packed(const char *scheduling, const char *compression)
{
    uint32_t n = 0;
    for (uint32_t r = 0; kv_routings[r] != NULL; r++) {
        n += check_packed(kv_routings[r]->name, scheduling, compression, 0.25);
        n += check_packed(kv_routings[r]->name, scheduling, compression, 64);
        n += check_packed(kv_routings[r]->name, scheduling, compression, 1);
    }
    return n;
}

START_TEST(methods_survive_the_way_to_another_process)
{
    static const char *const others[] = {"none",      "quest", "flexgen",         "adakv",
                                         "pyramidkv", "fastv", "snapkv+adakv",    "duo_attention",
                                         "lru",       "kvzip", "keydiff+pyramid", "tova",
                                         "simlayerkv"};
    uint32_t n = 0;
    for (uint32_t i = 0; i < sizeof others / sizeof *others; i++) {
        char selection[64];
        snprintf(selection, sizeof selection, "%s,int4", others[i]);
        n += check_all_packed(others[i], "none");
        n += check_all_packed("none", selection);
        n += check_all_packed("lru", selection);
    }
    for (uint32_t s = 0; kv_scorers[s] != NULL; s++)
        n += check_all_packed(kv_scorers[s]->name, "none");
    for (uint32_t c = 0; kv_codecs[c] != NULL; c++)
        n += check_all_packed("snapkv", kv_codecs[c]->name);
    ck_assert_uint_gt(n, 500);
}
END_TEST

START_TEST(packed_methods_without_an_end_are_refused)
{
    kv_methods methods = methods_of(&choices[0]);
    kv_methods_wire wire;
    err_info info = {0};
    kv_methods_pack(&methods, &wire);
    memset(wire.compression, 'x', sizeof wire.compression);
    ck_assert_int_eq(kv_methods_unpack(&wire, 16, &methods, &info), ERR_BAD_CONFIG);
    methods = methods_of(&choices[0]);
    kv_methods_pack(&methods, &wire);
    memset(wire.rewrite, 'x', sizeof wire.rewrite);
    info = (err_info){0};
    ck_assert_int_eq(kv_methods_unpack(&wire, 16, &methods, &info), ERR_BAD_CONFIG);
    ck_assert_str_eq(info.message, "methods: a name has no end");
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE_SECONDS(each_sequence_has_the_bits_of_a_cache_of_its_own, 60),
    TEST_CASE_SECONDS(prefixes_are_shared_among_exact_methods_and_never_across_lossy_ones, 60),
    TEST_CASE(a_cache_refuses_methods_that_it_keeps_nothing_for),
    TEST_CASE(what_fits_depends_on_the_methods),
    TEST_CASE(a_sequence_alone_uses_what_the_cache_holds),
    TEST_CASE(codes_use_less_than_the_same_entries_raw),
    TEST_CASE_SECONDS(certificates_are_those_of_the_sequence, 60),
    TEST_CASE(an_aborted_step_leaves_no_certificate),
    TEST_CASE(methods_survive_the_way_to_another_process),
    TEST_CASE(packed_methods_without_an_end_are_refused),
    TEST_CASES_END,
};
