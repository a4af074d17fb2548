/* tests/conformance/test_kv_registries.c - every method of the cache against the same promises.
 *
 * A method that is added to a list of kvcache/ is tested here from that moment on (codecs: also in
 * test_kv_codecs.c). Exact methods must
 * keep every bit; the others must keep what the contract of their table says. */
#include "tests/kvcache/fake_model.h"
#include "tests/test_main.h"

#include "base/random.h"

#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

/* ---- names --------------------------------------------------------------------------------------- */

/* Each registry, seen through its names. */
typedef struct registry {
    const char *key;
    const char *names;
    size_t member; /* of the name in kv_config */
} registry;

static const registry REGISTRIES[] = {
    {"kv-routing", kv_routing_names, offsetof(kv_config, routing)},
    {"kv-scheduling", kv_scheduling_names, offsetof(kv_config, scheduling)},
    {"kv-placement", kv_placement_names, offsetof(kv_config, placement)},
    {"kv-compression", kv_codec_names, offsetof(kv_config, compression)},
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
    for (size_t i = 0; kv_schedulings[i] != NULL; i++)
        ck_assert_ptr_eq(kv_scheduling_find(kv_schedulings[i]->name), kv_schedulings[i]);
    for (size_t i = 0; kv_placements[i] != NULL; i++)
        ck_assert_ptr_eq(kv_placement_find(kv_placements[i]->name), kv_placements[i]);
    for (size_t i = 0; kv_codecs[i] != NULL; i++)
        ck_assert_ptr_eq(kv_codec_find(kv_codecs[i]->name), kv_codecs[i]);
    ck_assert_ptr_null(kv_routing_find(""));
    ck_assert_ptr_null(kv_scheduling_find("None"));
    ck_assert_ptr_null(kv_placement_find("bloc"));
    ck_assert_ptr_null(kv_codec_find("none "));
}
END_TEST

/* ---- in the cache -------------------------------------------------------------------------------- */

/* Runs a sequence under the configuration, cut in two ways; answers must be finite, the same however
 * cut, and right if everything is exact. */
static void run_config(kv_config config, bool is_exact)
{
    enum { N = 100 };
    fake *f = fake_open(&(fake_options){.model_type = DTYPE_BF16, .config = config});
    fake_seq whole = fake_seq_open(f, (fake_ids){.seed = 1});
    fake_run(f, &whole, N, 64);
    fake_seq cut = fake_seq_open(f, (fake_ids){.seed = 1});
    fake_run(f, &cut, N, 7);
    if (is_exact) {
        ck_assert(fake_same(f, &whole, &cut, 0, N));
        ck_assert_double_le(fake_error(f, &whole, 0, N), 1);
    }
    for (size_t i = 0; i < N * f->n_out; i++)
        ck_assert_float_finite(whole.out[i]);
    fake_seq_close(f, &whole, true);
    fake_seq_close(f, &cut, true);
    fake_close(f);
}

START_TEST(every_method_runs_in_a_cache)
{
    for (size_t i = 0; kv_routings[i] != NULL; i++) {
        kv_config config = fake_defaults();
        config.routing = (char *)(uintptr_t)kv_routings[i]->name;
        run_config(config, kv_routings[i]->is_exact);
    }
    for (size_t i = 0; kv_schedulings[i] != NULL; i++) {
        kv_config config = fake_defaults();
        config.scheduling = (char *)(uintptr_t)kv_schedulings[i]->name;
        run_config(config, kv_schedulings[i]->is_exact);
    }
    for (size_t i = 0; kv_placements[i] != NULL; i++) {
        kv_config config = fake_defaults();
        config.placement = (char *)(uintptr_t)kv_placements[i]->name;
        run_config(config, kv_placements[i]->is_exact);
    }
}
END_TEST

/* ---- routing ------------------------------------------------------------------------------------- */

static void check_routing(const kv_routing *routing, uint32_t n_pages, uint32_t n_queries)
{
    static float q[16 * 8];
    static uint32_t page[200], chosen[201], positions[200 * 4], query_positions[16];
    static uint64_t live[200];
    static uint8_t n_slots[200];
    for (uint32_t i = 0; i < 16 * 8; i++)
        q[i] = random_uniform(3, 0, i) - 0.5f;
    for (uint32_t i = 0; i < n_pages; i++) {
        page[i] = n_pages - 1 - i;
        live[i] = 0xf;
        n_slots[page[i]] = 4;
        for (uint32_t s = 0; s < 4; s++)
            positions[page[i] * 4 + s] = 4 * i + s;
    }
    for (uint32_t i = 0; i < n_queries; i++)
        query_positions[i] = 4 * n_pages + i;
    const attn_query query = {.q = q,
                              .q_stride = 8,
                              .positions = query_positions,
                              .n_queries = n_queries,
                              .group = 1,
                              .k_dim = 8,
                              .v_dim = 8,
                              .scale = 0.3f,
                              .type = DTYPE_F32};
    const kv_pages pages = {.n_slots = n_slots, .positions = positions};
    const kv_route_args args = {
        .query = &query, .pages = &pages, .page = page, .live = live, .n_pages = n_pages};
    chosen[n_pages] = 12345;
    const uint32_t n = routing->select(&args, chosen);
    ck_assert_uint_eq(chosen[n_pages], 12345);
    ck_assert_uint_le(n, n_pages);
    for (uint32_t i = 0; i < n; i++) {
        ck_assert_uint_lt(chosen[i], n_pages);
        if (i > 0) ck_assert_uint_gt(chosen[i], chosen[i - 1]);
    }
    if (routing->is_exact || n_queries > 1) ck_assert_uint_eq(n, n_pages);
}

START_TEST(every_routing_selects_candidates_once_and_in_order)
{
    for (size_t i = 0; kv_routings[i] != NULL; i++) {
        for (uint32_t n_pages = 1; n_pages <= 200; n_pages = n_pages * 2 + 1) {
            check_routing(kv_routings[i], n_pages, 1);
            check_routing(kv_routings[i], n_pages, 16);
        }
    }
}
END_TEST

/* ---- scheduling ---------------------------------------------------------------------------------- */

START_TEST(every_budget_keeps_no_more_than_there_is)
{
    for (size_t i = 0; kv_schedulings[i] != NULL; i++) {
        for (uint32_t length = 1; length < 5000; length = length * 3 + 1) {
            uint32_t n_live[9], n_keep[10];
            for (uint32_t h = 0; h < 9; h++)
                n_live[h] = length - h % length;
            n_keep[9] = 777;
            const kv_budget_args args = {
                .layer = 1, .n_kv_heads = 9, .length = length, .n_live = n_live};
            kv_schedulings[i]->budget(&args, n_keep);
            ck_assert_uint_eq(n_keep[9], 777);
            for (uint32_t h = 0; h < 9; h++) {
                ck_assert_uint_le(n_keep[h], n_live[h]);
                if (kv_schedulings[i]->is_exact) ck_assert_uint_eq(n_keep[h], n_live[h]);
            }
        }
    }
}
END_TEST

/* ---- placement ----------------------------------------------------------------------------------- */

static void check_placement(const kv_placement *placement, uint32_t n_shards, uint32_t block)
{
    enum { PAGE = 16 };
    uint16_t expert[PAGE];
    uint32_t owner[PAGE + 1], again[PAGE];
    for (uint32_t i = 0; i < PAGE; i++)
        expert[i] = i % 5 == 0 ? KV_EXPERT_NONE : (uint16_t)(block * 7 + i) % 64;
    for (uint32_t n = 1; n <= PAGE; n++) {
        const kv_place_args args = {.layer = 2,
                                    .n_shards = n_shards,
                                    .page_tokens = PAGE,
                                    .first_position = block * PAGE,
                                    .n_slots = n,
                                    .expert = expert};
        owner[n] = 999999;
        placement->place(&args, owner);
        ck_assert_uint_eq(owner[n], 999999);
        placement->place(&args, again);
        for (uint32_t i = 0; i < n; i++) {
            ck_assert_uint_lt(owner[i], n_shards);
            ck_assert_uint_eq(owner[i], again[i]); /* it may be asked on every rank */
            if (placement->is_exact) ck_assert_uint_eq(owner[i], owner[0]);
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
    TEST_CASE(every_budget_keeps_no_more_than_there_is),
    TEST_CASE(every_placement_gives_each_entry_one_owner),
    TEST_CASES_END,
};
