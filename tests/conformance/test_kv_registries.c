/* tests/conformance/test_kv_registries.c - every method of the cache against the same promises.
 *
 * A method that is added to a list of kvcache/ is tested here from that moment on (codecs: also in
 * test_kv_codecs.c; scheduling: in test_kv_policies.c). Exact methods must
 * keep every bit; the others must keep what the contract of their table says. */
#include "tests/kvcache/fake_model.h"
#include "tests/test_main.h"

#include "base/random.h"

#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- names --------------------------------------------------------------------------------------- */

/* Each registry, seen through its names. */
typedef struct registry {
    const char *key;
    const char *names;
    size_t member; /* of the name in kv_config */
} registry;

static const registry REGISTRIES[] = {
    {"kv-routing", kv_routing_names, offsetof(kv_config, routing)},
    {"kv-scheduling", kv_policy_names, offsetof(kv_config, scheduling)},
    {"kv-placement", kv_placement_names, offsetof(kv_config, placement)},
    {"kv-compression", kv_codec_names, offsetof(kv_config, compression)},
    {"kv-rewrite", kv_rewriting_names, offsetof(kv_config, rewrite)},
};

START_TEST(an_unknown_method_is_answered_with_the_known_ones)
{
    dev *d;
    ck_assert_int_eq(dev_open_cpu(&(dev_config){.isa = "ref", .n_threads = 1}, &d, NULL), ERR_OK);
    for (size_t i = 0; i < sizeof REGISTRIES / sizeof REGISTRIES[0]; i++) {
        kv_config config = fake_defaults();
        char wanted[] = "no-such-method", expected[ERR_MESSAGE_BYTES];
        *(char **)((char *)&config + REGISTRIES[i].member) = wanted;
        const kv_shape shape = {.n_layers = 3, .layer = fake_layers, .n_experts = 8};
        const kv_limits limits = {4, 64, 512};
        kv_cache *cache;
        err_info info = {0};
        ck_assert_int_eq(kv_cache_open(d, &config, &shape, &limits, &cache, &info), ERR_BAD_CONFIG);
        snprintf(expected, sizeof expected, "%s: 'no-such-method' is unknown; known are:%s",
                 REGISTRIES[i].key, REGISTRIES[i].names);
        ck_assert_str_eq(info.message, expected);
    }
    dev_close(d);
}
END_TEST

START_TEST(every_method_is_found_by_its_name_and_by_no_other)
{
    for (size_t i = 0; kv_routings[i] != NULL; i++)
        ck_assert_ptr_eq(kv_routing_find(kv_routings[i]->name), kv_routings[i]);
    for (size_t i = 0; kv_scorers[i] != NULL; i++)
        ck_assert_ptr_eq(kv_scorer_find(kv_scorers[i]->name), kv_scorers[i]);
    for (size_t i = 0; kv_allocators[i] != NULL; i++)
        ck_assert_ptr_eq(kv_allocator_find(kv_allocators[i]->name), kv_allocators[i]);
    for (size_t i = 0; kv_placements[i] != NULL; i++)
        ck_assert_ptr_eq(kv_placement_find(kv_placements[i]->name), kv_placements[i]);
    for (size_t i = 0; kv_codecs[i] != NULL; i++)
        ck_assert_ptr_eq(kv_codec_find(kv_codecs[i]->name), kv_codecs[i]);
    for (size_t i = 0; kv_rewritings[i] != NULL; i++)
        ck_assert_ptr_eq(kv_rewriting_find(kv_rewritings[i]->name), kv_rewritings[i]);
    ck_assert_ptr_null(kv_rewriting_find("none"));
    ck_assert_ptr_null(kv_routing_find(""));
    ck_assert_ptr_null(kv_scorer_find("none"));
    ck_assert_ptr_null(kv_allocator_find("AdaKV"));
    ck_assert_ptr_null(kv_placement_find("bloc"));
    ck_assert_ptr_null(kv_codec_find("none "));
}
END_TEST

/* ---- in the cache -------------------------------------------------------------------------------- */

/* Runs a sequence under the configuration, cut in two ways, the last tokens as decode steps; answers
 * must be finite, the same however the prompt is cut, and right if everything is exact. */
static void run_config(kv_config config, bool is_exact)
{
    enum { N_PROMPT = 80, N = 100 };
    fake *f = fake_open(&(fake_options){.model_type = DTYPE_BF16, .config = config});
    fake_seq whole = fake_seq_open(f, (fake_ids){.seed = 1});
    fake_seq cut = fake_seq_open(f, (fake_ids){.seed = 1});
    whole.n_prompt = cut.n_prompt = N_PROMPT;
    fake_run(f, &whole, N_PROMPT, 64);
    fake_run(f, &cut, N_PROMPT, 7);
    fake_run(f, &whole, N, 1);
    fake_run(f, &cut, N, 1);
    ck_assert(fake_same(f, &whole, &cut, 0, N));
    if (is_exact) ck_assert_double_le(fake_error(f, &whole, 0, N), 1);
    for (size_t i = 0; i < N * f->n_out; i++)
        ck_assert_float_finite(whole.out[i]);
    fake_seq_close(f, &whole, true);
    fake_seq_close(f, &cut, true);
    fake_close(f);
}

/* Routing settings that read little, much, and, in the last row, everything. */
static const kv_route_settings ROUTES[] = {
    {0.05, 0.5, 0.1}, {0.25, 0.1, 0.6}, {3, 0.01, 0.9}, {0.9, 1e-6, 0.999}, {1, 0, 1}};
enum { N_ROUTES = sizeof ROUTES / sizeof ROUTES[0] };

static kv_config route_config(const kv_routing *routing, const kv_route_settings *settings)
{
    kv_config config = fake_defaults();
    config.routing = (char *)(uintptr_t)routing->name;
    config.routing_k = settings->k;
    config.routing_eps = settings->eps;
    config.routing_tau = settings->tau;
    return config;
}

START_TEST(every_method_runs_in_a_cache)
{
    for (size_t i = 0; kv_routings[i] != NULL; i++) {
        for (size_t r = 0; r < N_ROUTES; r++)
            run_config(route_config(kv_routings[i], &ROUTES[r]),
                       kv_routings[i]->is_exact(&ROUTES[r]));
    }
    for (size_t i = 0; kv_placements[i] != NULL; i++) {
        kv_config config = fake_defaults();
        config.placement = (char *)(uintptr_t)kv_placements[i]->name;
        run_config(config, true); /* on one shard all are alike: see test_kv_shards.c */
    }
}
END_TEST

/* ---- routing ------------------------------------------------------------------------------------- */

enum { ROUTE_PAGES_MAX = 200, ROUTE_GROUP_MAX = 4, ROUTE_SHARDS_MAX = 8 };

/* Candidates with bounds and with true masses below them. */
typedef struct candidates {
    uint32_t n_pages, group, n_shards;
    uint16_t shard[ROUTE_PAGES_MAX];
    uint16_t n_live[ROUTE_PAGES_MAX];
    float bound[ROUTE_GROUP_MAX * ROUTE_PAGES_MAX];
    double log_mass[ROUTE_GROUP_MAX * ROUTE_PAGES_MAX];
    double log_read[ROUTE_GROUP_MAX]; /* now */
    bool is_read[ROUTE_PAGES_MAX];
} candidates;

static candidates make_candidates(uint32_t n_pages, uint32_t group, double spread)
{
    candidates c = {.n_pages = n_pages, .group = group, .n_shards = 1 + n_pages % ROUTE_SHARDS_MAX};
    for (uint32_t i = 0; i < n_pages; i++) {
        c.n_live[i] = (uint16_t)(1 + random_at(4, n_pages, i).word[0] % 64);
        c.shard[i] = (uint16_t)(random_at(4, n_pages, i).word[1] % c.n_shards);
    }
    for (uint32_t i = 0; i < group * n_pages; i++) {
        c.bound[i] = (float)(spread * ((double)random_uniform(5, n_pages, i) - 0.5));
        if (i % 5 == 0) c.bound[i] = 1; /* ties */
        c.log_mass[i] = (double)c.bound[i] + log(c.n_live[i % n_pages]) -
                        (double)random_uniform(6, n_pages, i) * spread / 10;
    }
    return c;
}

static void read_candidate(void *ctx, uint32_t page)
{
    candidates *c = ctx;
    ck_assert_uint_lt(page, c->n_pages);
    ck_assert(!c->is_read[page]);
    c->is_read[page] = true;
    for (uint32_t g = 0; g < c->group; g++)
        c->log_read[g] = log(exp(c->log_read[g]) + exp(c->log_mass[g * c->n_pages + page]));
}

/* What the method chooses; log_read is what it has read. */
static uint32_t choose(const kv_routing *routing, const kv_route_settings *settings, candidates *c,
                       uint32_t *chosen)
{
    static float priority[ROUTE_PAGES_MAX];
    static uint32_t order[ROUTE_PAGES_MAX];
    static double rest[ROUTE_GROUP_MAX * (ROUTE_PAGES_MAX + 1)], scale[ROUTE_GROUP_MAX];
    static bool is_chosen[ROUTE_PAGES_MAX];
    static kv_route_shard shards[ROUTE_SHARDS_MAX];
    static uint32_t shard_order[ROUTE_SHARDS_MAX];
    for (uint32_t g = 0; g < c->group; g++)
        c->log_read[g] = -0.5 * g;
    memset(c->is_read, 0, sizeof c->is_read);
    const kv_route_args args = {
        .settings = settings,
        .n_pages = c->n_pages,
        .n_open = c->n_pages,
        .group = c->group,
        .n_shards = c->n_shards,
        .n_ranks = 1,
        .is_scattered = c->n_shards > 1,
        .shard = c->shard,
        .n_live = c->n_live,
        .bound = c->bound,
        .log_read = c->log_read,
        .read = read_candidate,
        .read_ctx = c,
        .work = {priority, order, rest, scale, is_chosen, shards, shard_order}};
    chosen[c->n_pages] = 12345;
    const uint32_t n = routing->select(&args, chosen);
    ck_assert_uint_eq(chosen[c->n_pages], 12345);
    ck_assert_uint_le(n, c->n_pages);
    for (uint32_t i = 0; i < n; i++) {
        ck_assert_uint_lt(chosen[i], c->n_pages);
        if (i > 0) ck_assert_uint_gt(chosen[i], chosen[i - 1]);
    }
    return n;
}

static void check_routing(const kv_routing *routing, candidates *c)
{
    uint32_t chosen[ROUTE_PAGES_MAX + 1], again[ROUTE_PAGES_MAX + 1], n_before = 0;
    for (size_t r = 0; r < N_ROUTES; r++) {
        if (routing->is_exact(&ROUTES[r])) continue; /* it is not asked */
        const uint32_t n = choose(routing, &ROUTES[r], c, chosen);
        ck_assert_uint_eq(choose(routing, &ROUTES[r], c, again), n);
        ck_assert_mem_eq(chosen, again, n * sizeof *chosen);
        for (uint32_t i = 0, n_read = 0; i < c->n_pages; i++) {
            if (!c->is_read[i]) continue; /* who reads a page also chooses it */
            while (n_read < n && chosen[n_read] < i)
                n_read++;
            ck_assert(n_read < n && chosen[n_read] == i);
        }
        if (ROUTES[r].k <= 1) {
            ck_assert_uint_ge(n, n_before); /* rows read more and more */
            n_before = n;
        }
    }
}

START_TEST(every_routing_selects_candidates_once_and_in_order)
{
    for (size_t i = 0; kv_routings[i] != NULL; i++) {
        ck_assert(kv_routings[i]->is_exact(&ROUTES[N_ROUTES - 1]));
        if (kv_routings[i]->select == NULL) {
            for (size_t r = 0; r < N_ROUTES; r++)
                ck_assert(kv_routings[i]->is_exact(&ROUTES[r]));
            continue;
        }
        for (uint32_t n_pages = 1; n_pages <= ROUTE_PAGES_MAX; n_pages = n_pages * 2 + 1) {
            for (uint32_t group = 1; group <= ROUTE_GROUP_MAX; group++) {
                candidates flat = make_candidates(n_pages, group, 1);
                candidates peaked = make_candidates(n_pages, group, 40);
                check_routing(kv_routings[i], &flat);
                check_routing(kv_routings[i], &peaked);
            }
        }
    }
}
END_TEST

/* Everything that the cache may do to find out less must not change what is found. */
static void check_reads_all(const kv_routing *routing, const kv_route_settings *settings)
{
    enum { N_PROMPT = 33, N = 120 };
    static const kv_route_settings all = {1, 0, 1};
    fake *dense = fake_open(&(fake_options){.config = route_config(routing, &all)});
    fake *chosen = fake_open(&(fake_options){.config = route_config(routing, settings)});
    fake_seq a = fake_seq_open(dense, (fake_ids){.seed = 9});
    fake_seq b = fake_seq_open(chosen, (fake_ids){.seed = 9});
    a.n_prompt = b.n_prompt = N_PROMPT;
    fake_run(dense, &a, N, 1);
    fake_run(chosen, &b, N, 1);
    ck_assert(fake_same(dense, &a, &b, 0, N));
    const kv_stats stats = fake_stats(chosen);
    ck_assert_uint_eq(stats.pages_read, stats.pages_open);
    ck_assert_uint_gt(stats.pages_open, 0);
    ck_assert_double_eq(stats.certificate_max, 0);
    ck_assert_uint_eq(stats.certificates, (N - N_PROMPT) * 10); /* heads of the three layers */
    fake_seq_close(dense, &a, false);
    fake_seq_close(chosen, &b, false);
    fake_close(dense);
    fake_close(chosen);
}

START_TEST(every_routing_that_reads_all_pages_has_the_bits_of_full)
{
    static const kv_route_settings all_but_exact = {1e6, 1e-300, 0.9999999999999999};
    for (size_t i = 0; kv_routings[i] != NULL; i++) {
        check_reads_all(kv_routings[i], &all_but_exact);
        check_reads_all(kv_routings[i], &ROUTES[N_ROUTES - 1]);
    }
}
END_TEST

/* A sequence that decodes alone, and one that does so among others. */
static void check_neighbours(const kv_routing *routing, const kv_route_settings *settings)
{
    enum { N_PROMPT = 40, N = 90 };
    fake *f = fake_open(
        &(fake_options){.config = route_config(routing, settings), .isa = "auto", .n_threads = 2});
    fake_seq alone = fake_seq_open(f, (fake_ids){.seed = 21});
    alone.n_prompt = N_PROMPT;
    fake_run(f, &alone, N_PROMPT, 64);
    fake_run(f, &alone, N, 1);
    fake_seq crowd[3] = {fake_seq_open(f, (fake_ids){.seed = 22}),
                         fake_seq_open(f, (fake_ids){.seed = 21}),
                         fake_seq_open(f, (fake_ids){.seed = 23})};
    fake_seq *rows[3] = {&crowd[0], &crowd[1], &crowd[2]};
    crowd[0].n_prompt = 1;
    crowd[1].n_prompt = N_PROMPT;
    fake_run(f, &crowd[1], N_PROMPT, 64);
    for (uint32_t n = N_PROMPT; n < N; n++)
        ck_assert_int_eq(fake_step(f, rows, (uint32_t[]){1, 1, 1 + n % 3}, 3), ERR_OK);
    ck_assert(fake_same(f, &alone, &crowd[1], 0, N));
    fake_seq_close(f, &alone, false);
    for (int i = 0; i < 3; i++)
        fake_seq_close(f, &crowd[i], false);
    fake_close(f);
}

START_TEST(no_routing_notices_its_neighbours)
{
    for (size_t i = 0; kv_routings[i] != NULL; i++) {
        for (size_t r = 0; r < N_ROUTES; r++)
            check_neighbours(kv_routings[i], &ROUTES[r]);
    }
}
END_TEST

/* ---- placement ----------------------------------------------------------------------------------- */

static void check_placement(const kv_placement *placement, uint32_t n_shards, uint32_t block)
{
    enum { PAGE = 16 };
    uint16_t expert[PAGE], expert_shard[64];
    uint32_t owner[PAGE + 1], again[PAGE];
    for (uint32_t i = 0; i < PAGE; i++)
        expert[i] = i % 5 == 0 ? KV_EXPERT_NONE : (uint16_t)(block * 7 + i) % 64;
    for (uint32_t e = 0; e < 64; e++)
        expert_shard[e] = (uint16_t)(e % n_shards);
    for (uint32_t n = 1; n <= PAGE; n++) {
        const kv_place_args args = {.layer = 2,
                                    .n_shards = n_shards,
                                    .page_tokens = PAGE,
                                    .first_position = block * PAGE,
                                    .n_slots = n,
                                    .expert = expert,
                                    .expert_shard = expert_shard};
        owner[n] = 999999;
        placement->place(&args, owner);
        ck_assert_uint_eq(owner[n], 999999);
        placement->place(&args, again);
        for (uint32_t i = 0; i < n; i++) {
            ck_assert_uint_lt(owner[i], n_shards);
            ck_assert_uint_eq(owner[i], again[i]); /* it may be asked on every rank */
            if (placement->is_exact) ck_assert_uint_eq(owner[i], owner[0]);
            if (expert[i] == KV_EXPERT_NONE) ck_assert_uint_eq(owner[i], block % n_shards);
        }
    }
}

START_TEST(every_placement_gives_each_entry_one_owner)
{
    for (size_t i = 0; kv_placements[i] != NULL; i++) {
        for (uint32_t n_shards = 1; n_shards <= KV_SHARDS_MAX; n_shards *= 2) {
            for (uint32_t block = 0; block < 40; block++)
                check_placement(kv_placements[i], n_shards, block);
        }
    }
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE(an_unknown_method_is_answered_with_the_known_ones),
    TEST_CASE(every_method_is_found_by_its_name_and_by_no_other),
    TEST_CASE(every_method_runs_in_a_cache),
    TEST_CASE(every_routing_selects_candidates_once_and_in_order),
    TEST_CASE(every_routing_that_reads_all_pages_has_the_bits_of_full),
    TEST_CASE(no_routing_notices_its_neighbours),
    TEST_CASE(every_placement_gives_each_entry_one_owner),
    TEST_CASES_END,
};
