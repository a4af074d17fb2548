/* tests/kvcache/test_kv_map.c - maps say what the cache holds. */
#include "tests/kvcache/fake_model.h"
#include "tests/test_main.h"

#include "kvcache/kv_map.h"

#include <string.h>

enum { TOKENS = 90 };

static kv_map *take(const fake *f, kv_map_query query)
{
    kv_map *map;
    ck_assert_int_eq(kv_map_open(f->cache, &query, &map), ERR_OK);
    kv_map_take(f->cache, map);
    return map;
}

static uint64_t sum_slots(const kv_map *map)
{
    uint64_t n = 0;
    for (uint32_t i = 0; i < map->n_lists; i++)
        n += map->lists[i].slots_live;
    return n;
}

START_TEST(an_empty_cache_has_an_empty_map)
{
    fake *f = fake_open(&(fake_options){0});
    kv_map *map = take(f, (kv_map_query){0});
    ck_assert_uint_eq(map->n_seqs, 0);
    ck_assert_uint_eq(map->n_lists, 4);
    ck_assert_uint_eq(sum_slots(map), 0);
    ck_assert_uint_eq(map->page_tokens, 4);
    ck_assert_uint_eq(map->n_layers, 3);
    ck_assert_str_eq(map->placement, "block");
    ck_assert(map->methods.is_exact && map->prefix_caching && !map->request_methods);
    ck_assert(!map->has_seq && map->n_runs == 0);
    kv_map_close(map);
    fake_close(f);
}
END_TEST

START_TEST(what_a_map_counts_is_what_the_cache_counts)
{
    fake *f = fake_open(&(fake_options){.no_prefix_caching = true});
    fake_seq s = fake_seq_open(f, (fake_ids){.seed = 1});
    fake_run(f, &s, TOKENS, 9);
    kv_map *map = take(f, (kv_map_query){.seq = s.seq->id});
    const kv_stats stats = fake_stats(f);
    ck_assert_mem_eq(&map->stats, &stats, sizeof stats);
    ck_assert(map->has_seq && !map->is_truncated);
    uint64_t n_pages = 0, n_slots = 0, n_sinks = 0, n_in_runs = 0;
    for (uint32_t i = 0; i < map->n_lists; i++) {
        const kv_map_list *list = &map->lists[i];
        ck_assert_uint_eq(list->slots_live, list->seq_slots_live); /* nobody else is there */
        n_pages += list->n_pages;
        n_slots += list->slots_live;
        for (uint32_t r = list->first_run; r < list->first_run + list->n_runs; r++) {
            n_in_runs += (uint64_t)map->runs[r].n_blocks * map->runs[r].n_live;
            n_sinks += map->runs[r].first_block == 0 ? 2 : 0; /* read from the ring */
            ck_assert_str_eq(map->runs[r].codec->name, "none");
            ck_assert(!map->runs[r].is_cached);
        }
    }
    ck_assert_uint_eq(n_pages, stats.pages_used);
    ck_assert_uint_eq(n_slots + n_sinks, stats.slots_live);
    ck_assert_uint_eq(n_in_runs, n_slots);
    ck_assert_uint_eq(map->seqs[0].slots_live, n_slots);
    ck_assert_uint_eq(map->seqs[0].length, TOKENS);
    ck_assert_uint_eq(map->lists[2].layer, 1); /* whose window of 10 has passed most pages */
    ck_assert_uint_lt(map->lists[2].n_pages, map->lists[0].n_pages);
    kv_map_close(map);
    fake_seq_close(f, &s, false);
    fake_close(f);
}
END_TEST

START_TEST(sequences_are_told_apart)
{
    kv_config config = fake_coded("none");
    config.request_methods = true;
    fake *f = fake_open(&(fake_options){
        .layers = fake_coded_layers, .n_layers = 1, .model_type = DTYPE_BF16, .config = config});
    kv_config other = fake_coded("int4");
    kv_methods methods;
    ck_assert_int_eq(kv_methods_resolve(&other, &methods, NULL), ERR_OK);
    fake_seq gone = fake_seq_open(f, (fake_ids){.seed = 1});
    fake_seq a = fake_seq_open(f, (fake_ids){.seed = 1});
    fake_seq b = fake_seq_open(f, (fake_ids){.seed = 1, .methods = &methods});
    const uint64_t gone_id = gone.seq->id;
    fake_seq_close(f, &gone, false);
    fake_seq late = fake_seq_open(f, (fake_ids){.seed = 2}); /* in the slot of the first */
    fake_run(f, &a, TOKENS, 8);
    fake_run(f, &b, TOKENS, 8);
    kv_map *map = take(f, (kv_map_query){.seq = b.seq->id, .has_layer = true, .layer = 0});
    ck_assert_uint_eq(map->n_seqs, 3);
    ck_assert(map->seqs[0].id < map->seqs[1].id && map->seqs[1].id < map->seqs[2].id);
    ck_assert(map->seqs[0].id == a.seq->id && map->seqs[2].id == late.seq->id);
    ck_assert_str_eq(map->seqs[1].methods.codec->name, "int4");
    ck_assert_uint_eq(sum_slots(map), map->seqs[0].slots_live + map->seqs[1].slots_live);
    ck_assert_uint_eq(map->lists[0].n_runs, 2); /* the page with the sinks is raw */
    ck_assert_str_eq(map->runs[0].codec->name, "none");
    ck_assert_str_eq(map->runs[1].codec->name, "int4");
    ck_assert_uint_eq(map->runs[1].first_block, 1);
    kv_map_close(map);
    map = take(f, (kv_map_query){.seq = gone_id});
    ck_assert(!map->has_seq && map->n_runs == 0);
    kv_map_close(map);
    map = take(f, (kv_map_query){.seq = KV_MAP_NEWEST});
    ck_assert(map->has_seq && map->seq_id == late.seq->id);
    kv_map_close(map);
    fake_seq_close(f, &late, false);
    map = take(f, (kv_map_query){.seq = KV_MAP_NEWEST});
    ck_assert(map->has_seq && map->seq_id == b.seq->id && map->n_runs > 0);
    kv_map_close(map);
    fake_seq_close(f, &a, false);
    fake_seq_close(f, &b, false);
    map = take(f, (kv_map_query){.seq = KV_MAP_NEWEST});
    ck_assert(!map->has_seq && map->n_seqs == 0);
    kv_map_close(map);
    fake_close(f);
}
END_TEST

START_TEST(pages_of_a_cached_prefix_are_marked)
{
    fake *f = fake_open(&(fake_options){.layers = fake_layers, .n_layers = 1});
    fake_seq source = fake_seq_open(f, (fake_ids){.seed = 1});
    fake_run(f, &source, 40, 40);
    fake_seq_close(f, &source, true);
    fake_seq s = fake_seq_open(f, (fake_ids){.seed = 1});
    ck_assert_uint_eq(kv_seq_take_prefix(s.seq, s.tokens, 33), 32);
    fake_run(f, &s, TOKENS, 8);
    kv_map *map = take(f, (kv_map_query){.seq = s.seq->id});
    for (uint32_t i = 0; i < map->n_lists; i++) {
        const kv_map_run *runs = &map->runs[map->lists[i].first_run];
        uint32_t n_cached = 0;
        for (uint32_t r = 0; r < map->lists[i].n_runs; r++)
            n_cached += runs[r].is_cached ? runs[r].n_blocks : 0;
        ck_assert_uint_eq(n_cached, 32 / 4);
    }
    kv_map_close(map);
    fake_seq_close(f, &s, false);
    fake_close(f);
}
END_TEST

START_TEST(a_map_is_bounded_and_says_what_it_leaves_out)
{
    enum { N_HEADS = 70, N_BLOCKS = 120 };
    const kv_layer_shape wide = {
        .n_heads = N_HEADS, .n_kv_heads = N_HEADS, .k_dim = 4, .v_dim = 4, .scale = 0.5f};
    fake *f = fake_open(
        &(fake_options){.layers = &wide, .n_layers = 1, .isa = "auto", .no_prefix_caching = true});
    fake_seq s = fake_seq_open(f, (fake_ids){.seed = 1});
    fake_run(f, &s, (N_BLOCKS + 2) * 4, 64);
    ck_assert_uint_eq(s.seq->n_blocks, N_BLOCKS);
    for (uint32_t list = 0; list < N_HEADS; list++) { /* no block like its neighbour */
        for (uint32_t b = 0; b < N_BLOCKS; b += 2)
            kv_table_see(&s.seq->table, list, b, 1);
    }
    kv_map *map = take(f, (kv_map_query){.seq = s.seq->id});
    ck_assert(map->is_truncated);
    ck_assert_uint_eq(map->n_runs, KV_MAP_RUNS_MAX);
    ck_assert_uint_eq(map->lists[N_HEADS - 1].n_pages, N_BLOCKS); /* totals are whole */
    kv_map_take(f->cache, map);                                   /* a map may be taken again */
    ck_assert_uint_eq(map->n_runs, KV_MAP_RUNS_MAX);
    ck_assert_uint_eq(map->n_lists, N_HEADS);
    kv_map_close(map);
    for (uint32_t list = 0; list < N_HEADS; list++) {
        for (uint32_t b = 0; b < N_BLOCKS; b += 2)
            kv_table_see(&s.seq->table, list, b, b == 0 ? 12 : 15);
    }
    fake_seq_close(f, &s, false);
    fake_close(f);
}
END_TEST

START_TEST(there_is_no_map_of_a_layer_that_is_not_there)
{
    fake *f = fake_open(&(fake_options){0});
    kv_map *map;
    const kv_map_query query = {.has_layer = true, .layer = 3};
    ck_assert_int_eq(kv_map_open(f->cache, &query, &map), ERR_BAD_ARGUMENT);
    ck_assert_ptr_null(map);
    map = take(f, (kv_map_query){.has_layer = true, .layer = 2});
    ck_assert_uint_eq(map->n_lists, 1);
    ck_assert_uint_eq(map->lists[0].layer, 2);
    kv_map_close(map);
    fake_close(f);
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE(an_empty_cache_has_an_empty_map),
    TEST_CASE(what_a_map_counts_is_what_the_cache_counts),
    TEST_CASE(sequences_are_told_apart),
    TEST_CASE(pages_of_a_cached_prefix_are_marked),
    TEST_CASE(a_map_is_bounded_and_says_what_it_leaves_out),
    TEST_CASE(there_is_no_map_of_a_layer_that_is_not_there),
    TEST_CASES_END,
};
