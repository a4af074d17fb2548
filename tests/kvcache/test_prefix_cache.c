/* tests/kvcache/test_prefix_cache.c - what a new sequence may take from those before it. */
#include "tests/kvcache/fake_model.h"
#include "tests/test_main.h"

#include <string.h>

/* One layer of full attention, pages of 4, window of 8, 2 sinks. */
static const kv_layer_shape FULL = {
    .n_heads = 2, .n_kv_heads = 1, .k_dim = 8, .v_dim = 8, .scale = 0.3f};

/* Layers that never free a page: what is left behind can hit at every length. */
static fake_options full_layers(kv_layer_shape layers[2])
{
    layers[0] = fake_layers[0];
    layers[1] = fake_layers[2];
    return (fake_options){.layers = layers, .n_layers = 2};
}

/* Pages of 64 slots x 2 x 64 floats: two to a slab. */
static const kv_layer_shape WIDE = {
    .n_heads = 1, .n_kv_heads = 1, .k_dim = 64, .v_dim = 64, .scale = 0.1f};

static fake *open_full(void)
{
    return fake_open(&(fake_options){.layers = &FULL, .n_layers = 1});
}

static fake *open_wide(uint32_t n_pages)
{
    fake_options options = {
        .layers = &WIDE, .n_layers = 1, .limits = {8, 64, 2048}, .config = fake_defaults()};
    options.config.page_tokens = 64;
    options.config.window_tokens = 0;
    options.config.memory_bytes = (uint64_t)n_pages / 2 * KV_SLAB_BYTES; /* 32 KiB a page */
    return fake_open(&options);
}

static uint32_t take(fake_seq *s, uint32_t n_tokens)
{
    return kv_seq_take_prefix(s->seq, s->tokens, n_tokens);
}

/* Leaves n tokens of these ids behind. */
static void leave(fake *f, fake_ids ids, uint32_t n_tokens)
{
    fake_seq s = fake_seq_open(f, ids);
    (void)take(&s, n_tokens);
    fake_run(f, &s, n_tokens, 64);
    fake_seq_close(f, &s, true);
}

/* How many of the n tokens with these ids are cached. Looking counts as use. */
static uint32_t n_cached(fake *f, fake_ids ids, uint32_t n_tokens)
{
    fake_seq s = fake_seq_open(f, ids);
    const uint32_t n = take(&s, n_tokens);
    s.seq->no_prefix_write = true;
    fake_seq_close(f, &s, false);
    return n;
}

START_TEST(all_tokens_of_a_finished_sequence_can_hit_but_the_last)
{
    fake *f = open_full();
    leave(f, (fake_ids){.seed = 1}, 50);
    ck_assert_uint_eq(n_cached(f, (fake_ids){.seed = 1}, 50), 49);
    ck_assert_uint_eq(n_cached(f, (fake_ids){.seed = 1}, 51), 50);
    ck_assert_uint_eq(n_cached(f, (fake_ids){.seed = 1}, 200), 50);
    ck_assert_uint_eq(n_cached(f, (fake_ids){.seed = 1}, 23), 22);
    ck_assert_uint_eq(n_cached(f, (fake_ids){.seed = 1}, 5), 4);
    ck_assert_uint_eq(n_cached(f, (fake_ids){.seed = 1}, 1), 0);
    ck_assert_uint_eq(n_cached(f, (fake_ids){.seed = 2}, 50), 0);
    fake_close(f);
}
END_TEST

START_TEST(a_hit_ends_at_the_first_other_token_even_inside_a_block)
{
    fake *f = open_full();
    leave(f, (fake_ids){.seed = 1}, 50);
    for (uint32_t n = 4; n < 50; n++) {
        const fake_ids ids = {.seed = 9, .shared_seed = 1, .n_shared = n};
        ck_assert_uint_eq(n_cached(f, ids, 80), n);
    }
    /* Without a whole block in common there is nothing to find it by. */
    ck_assert_uint_eq(n_cached(f, (fake_ids){.seed = 9, .shared_seed = 1, .n_shared = 3}, 80), 0);
    fake_close(f);
}
END_TEST

START_TEST(a_taken_prefix_gives_the_bits_of_a_fresh_computation)
{
    enum { N = 90 };
    kv_layer_shape layers[2];
    fake_options options = full_layers(layers);
    fake *f = fake_open(&options);
    options.no_prefix_caching = true;
    fake *fresh = fake_open(&options);
    for (uint32_t n_shared = 0; n_shared < 60; n_shared += 3) {
        const fake_ids first = {.seed = 1000 + n_shared, .shared_seed = 5, .n_shared = n_shared};
        const fake_ids second = {.seed = 2000 + n_shared, .shared_seed = 5, .n_shared = n_shared};
        leave(f, first, 70);
        fake_seq a = fake_seq_open(fresh, second), b = fake_seq_open(f, second);
        const uint32_t n_taken = take(&b, N);
        fake_run(fresh, &a, N, 64);
        fake_run(f, &b, N, 11);
        ck_assert(fake_same(f, &a, &b, n_taken, N));
        fake_seq_close(fresh, &a, false);
        fake_seq_close(f, &b, true);
    }
    ck_assert_uint_gt(fake_stats(f).prefix_hit_tokens, 200);
    fake_close(f);
    fake_close(fresh);
}
END_TEST

START_TEST(a_running_prompt_is_shared_with_what_is_still_in_its_ring)
{
    enum { N = 70 };
    fake *fresh = fake_open(&(fake_options){.no_prefix_caching = true});
    fake *f = fake_open(&(fake_options){0});
    fake_seq expected =
        fake_seq_open(fresh, (fake_ids){.seed = 2, .shared_seed = 1, .n_shared = 43});
    fake_run(fresh, &expected, N, 64);
    fake_seq source = fake_seq_open(f, (fake_ids){.seed = 1});
    fake_run(f, &source, 43, 64);
    kv_seq_share_prompt(source.seq, source.tokens, 43);
    for (uint32_t length = 43; length < 75; length++) {
        fake_run(f, &source, length, 1); /* it goes on: the ring moves under the shared prompt */
        fake_seq s = fake_seq_open(f, (fake_ids){.seed = 2, .shared_seed = 1, .n_shared = 43});
        const uint32_t n_taken = take(&s, N);
        /* The window of 10 of the second layer has freed older pages after a while. */
        ck_assert(n_taken == 43 || (length > 43 && n_taken == 0));
        fake_run(f, &s, N, 64);
        ck_assert(fake_same(f, &expected, &s, n_taken, N));
        s.seq->no_prefix_write = true;
        fake_seq_close(f, &s, false);
    }
    fake_seq_close(f, &source, false);
    fake_seq_close(fresh, &expected, false);
    fake_close(f);
    fake_close(fresh);
}
END_TEST

START_TEST(a_shared_prompt_outlives_a_sequence_that_closes_without_ids)
{
    fake *f = open_full();
    fake_seq s = fake_seq_open(f, (fake_ids){.seed = 1});
    fake_run(f, &s, 30, 64);
    kv_seq_share_prompt(s.seq, s.tokens, 30);
    fake_run(f, &s, 55, 1);
    fake_seq_close(f, &s, false);
    ck_assert_uint_eq(n_cached(f, (fake_ids){.seed = 1}, 100), 30);
    fake_close(f);
}
END_TEST

START_TEST(whole_blocks_are_shared_by_reference)
{
    fake *f = open_full();
    leave(f, (fake_ids){.seed = 1}, 40);
    const kv_stats before = fake_stats(f);
    ck_assert_uint_eq(before.pages_cached, 10);
    ck_assert_uint_eq(before.pages_used, 0);
    fake_seq a = fake_seq_open(f, (fake_ids){.seed = 1}),
             b = fake_seq_open(f, (fake_ids){.seed = 1});
    ck_assert_uint_eq(take(&a, 100), 40);
    ck_assert_uint_eq(take(&b, 39), 38);
    const kv_stats now = fake_stats(f);
    ck_assert_uint_eq(now.pages_used, 10);
    ck_assert_uint_eq(now.pages_cached, 0);
    ck_assert_uint_eq(now.slots_live, before.slots_live);
    ck_assert_uint_eq(now.slab_bytes, before.slab_bytes);
    fake_seq_close(f, &a, false);
    fake_seq_close(f, &b, false);
    ck_assert_uint_eq(fake_stats(f).pages_cached, 10);
    fake_close(f);
}
END_TEST

START_TEST(the_salt_separates_tenants)
{
    fake *f = open_full();
    fake_seq s = fake_seq_open_salted(f, (fake_ids){.seed = 1}, "one");
    fake_run(f, &s, 40, 64);
    fake_seq_close(f, &s, true);
    ck_assert_uint_eq(n_cached(f, (fake_ids){.seed = 1}, 40), 0);
    static const char *const salts[] = {"two", "on", "ones", "one"};
    for (size_t i = 0; i < 4; i++) {
        s = fake_seq_open_salted(f, (fake_ids){.seed = 1}, salts[i]);
        ck_assert_uint_eq(take(&s, 40), i == 3 ? 39 : 0);
        fake_seq_close(f, &s, false);
    }
    fake_close(f);
}
END_TEST

START_TEST(a_hash_alone_is_never_a_hit)
{
    fake *f = open_full();
    leave(f, (fake_ids){.seed = 1}, 40);
    /* As if 21 other tokens had the same keys: the ids disagree from token 19 on. */
    kv_prefix *prefix = &f->cache->prefix;
    for (uint32_t p = 19; p < 40; p++)
        prefix->objects[prefix->newest].tokens[p] ^= 1;
    ck_assert_uint_eq(n_cached(f, (fake_ids){.seed = 1}, 40), 19);
    prefix->objects[prefix->newest].tokens[0] ^= 1;
    ck_assert_uint_eq(n_cached(f, (fake_ids){.seed = 1}, 40), 0);
    fake_close(f);
}
END_TEST

START_TEST(options_forbid_taking_and_leaving)
{
    fake *f = open_full();
    leave(f, (fake_ids){.seed = 1}, 40);
    kv_seq *seq;
    fake_seq s = fake_seq_open(f, (fake_ids){.seed = 1});
    const kv_seq_options no_read = {.salt = "", .no_prefix_read = true};
    ck_assert_int_eq(kv_seq_open(f->cache, &no_read, &seq), ERR_OK);
    ck_assert_uint_eq(kv_seq_take_prefix(seq, s.tokens, 40), 0);
    kv_seq_close(seq, NULL);
    fake_seq_close(f, &s, false);
    kv_cache_drop_prefixes(f->cache);
    s = fake_seq_open(f, (fake_ids){.seed = 1});
    s.seq->no_prefix_write = true;
    fake_run(f, &s, 40, 64);
    kv_seq_share_prompt(s.seq, s.tokens, 40);
    fake_seq_close(f, &s, true);
    ck_assert_uint_eq(fake_stats(f).prefix_objects, 0);
    fake_close(f);
}
END_TEST

START_TEST(without_prefix_caching_nothing_stays)
{
    fake *f = fake_open(&(fake_options){.no_prefix_caching = true});
    leave(f, (fake_ids){.seed = 1}, 40);
    ck_assert_uint_eq(n_cached(f, (fake_ids){.seed = 1}, 40), 0);
    ck_assert_uint_eq(fake_stats(f).slab_bytes, 0);
    ck_assert_uint_eq(fake_stats(f).prefix_objects, 0);
    fake_close(f);
}
END_TEST

START_TEST(the_least_recently_used_object_gives_up_its_end_first)
{
    fake *f = open_wide(8);
    leave(f, (fake_ids){.seed = 1}, 3 * 64);
    leave(f, (fake_ids){.seed = 2}, 3 * 64);
    ck_assert_uint_eq(n_cached(f, (fake_ids){.seed = 1}, 64), 63); /* 2 is the older one now */
    fake_seq s = fake_seq_open(f, (fake_ids){.seed = 3});
    fake_run(f, &s, 3 * 64, 64); /* one page more than are free */
    ck_assert_uint_eq(fake_stats(f).pages_given_up, 1);
    ck_assert_uint_eq(n_cached(f, (fake_ids){.seed = 1}, 500), 3 * 64);
    ck_assert_uint_eq(n_cached(f, (fake_ids){.seed = 2}, 500), 2 * 64);
    ck_assert_uint_eq(n_cached(f, (fake_ids){.seed = 1}, 500), 3 * 64);
    fake_run(f, &s, 6 * 64, 64); /* all of 2 and one block of 1 */
    ck_assert_uint_eq(n_cached(f, (fake_ids){.seed = 2}, 500), 0);
    ck_assert_uint_eq(n_cached(f, (fake_ids){.seed = 1}, 500), 2 * 64);
    fake_seq_close(f, &s, false);
    fake_close(f);
}
END_TEST

START_TEST(pages_that_a_sequence_holds_are_not_given_up_for_nothing)
{
    fake *f = open_wide(4);
    leave(f, (fake_ids){.seed = 1}, 2 * 64);
    fake_seq user = fake_seq_open(f, (fake_ids){.seed = 1});
    ck_assert_uint_eq(take(&user, 500), 2 * 64);
    fake_seq s = fake_seq_open(f, (fake_ids){.seed = 2}), *row = &s;
    fake_run(f, &s, 2 * 64, 64);
    const uint32_t n = 64;
    ck_assert_int_eq(fake_step(f, &row, &n, 1), ERR_KV_FULL);
    ck_assert_uint_eq(kv_seq_length(s.seq), 2 * 64);
    ck_assert_uint_eq(fake_stats(f).pages_given_up, 0);
    ck_assert_uint_eq(n_cached(f, (fake_ids){.seed = 1}, 500), 2 * 64);
    fake_seq_close(f, &user, false);
    ck_assert_int_eq(fake_step(f, &row, &n, 1), ERR_OK);
    ck_assert_uint_eq(fake_stats(f).pages_given_up, 1);
    fake_seq_close(f, &s, false);
    fake_close(f);
}
END_TEST

START_TEST(the_turns_of_a_conversation_do_not_pile_up)
{
    fake *f = open_full();
    for (uint32_t turn = 1; turn <= 10; turn++) {
        leave(f, (fake_ids){.seed = 1}, 20 * turn);
        ck_assert_uint_eq(fake_stats(f).prefix_objects, 1);
        ck_assert_uint_eq(n_cached(f, (fake_ids){.seed = 1}, 500), 20 * turn);
    }
    leave(f, (fake_ids){.seed = 1}, 30); /* nothing new */
    ck_assert_uint_eq(fake_stats(f).prefix_objects, 1);
    ck_assert_uint_eq(fake_stats(f).pages_cached, 50);
    leave(f, (fake_ids){.seed = 2, .shared_seed = 1, .n_shared = 50}, 100); /* a branch */
    ck_assert_uint_eq(fake_stats(f).prefix_objects, 2);
    fake_close(f);
}
END_TEST

START_TEST(objects_are_limited_in_number)
{
    fake *f = open_full();
    const uint32_t n_max = f->cache->prefix.n_objects_max;
    for (uint32_t i = 0; i < n_max + 10; i++)
        leave(f, (fake_ids){.seed = i + 1}, 8);
    ck_assert_uint_eq(fake_stats(f).prefix_objects, n_max);
    ck_assert_uint_eq(n_cached(f, (fake_ids){.seed = 1}, 100), 0);
    ck_assert_uint_eq(n_cached(f, (fake_ids){.seed = n_max + 10}, 100), 8);
    fake_close(f);
}
END_TEST

START_TEST(a_window_that_has_freed_pages_refuses_the_hit)
{
    kv_layer_shape layer = FULL;
    layer.window = 16;
    fake *f = fake_open(&(fake_options){.layers = &layer, .n_layers = 1});
    leave(f, (fake_ids){.seed = 1}, 100);
    ck_assert_uint_eq(n_cached(f, (fake_ids){.seed = 1}, 101), 100);
    ck_assert_uint_eq(n_cached(f, (fake_ids){.seed = 2, .shared_seed = 1, .n_shared = 50}, 101), 0);
    fake_seq s = fake_seq_open(f, (fake_ids){.seed = 1});
    ck_assert_uint_eq(take(&s, 200), 100);
    fake_run(f, &s, 140, 7);
    ck_assert_double_le(fake_error(f, &s, 100, 140), 1);
    fake_seq_close(f, &s, false);
    fake_close(f);
}
END_TEST

START_TEST(dropping_prefixes_spares_those_in_use)
{
    fake *f = open_full();
    leave(f, (fake_ids){.seed = 1}, 40);
    leave(f, (fake_ids){.seed = 2}, 40);
    fake_seq s = fake_seq_open(f, (fake_ids){.seed = 2});
    ck_assert_uint_eq(take(&s, 100), 40);
    kv_cache_drop_prefixes(f->cache);
    ck_assert_uint_eq(fake_stats(f).prefix_objects, 1);
    fake_run(f, &s, 50, 3);
    ck_assert_double_le(fake_error(f, &s, 40, 50), 1);
    fake_seq_close(f, &s, false);
    kv_cache_drop_prefixes(f->cache);
    ck_assert_uint_eq(fake_stats(f).slab_bytes, 0);
    fake_close(f);
}
END_TEST

START_TEST(queries_and_hits_are_counted_in_tokens)
{
    fake *f = open_full();
    leave(f, (fake_ids){.seed = 1}, 40);
    ck_assert_uint_eq(fake_stats(f).prefix_query_tokens, 40);
    (void)n_cached(f, (fake_ids){.seed = 1}, 30);
    ck_assert_uint_eq(fake_stats(f).prefix_query_tokens, 70);
    ck_assert_uint_eq(fake_stats(f).prefix_hit_tokens, 29);
    fake_close(f);
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE(all_tokens_of_a_finished_sequence_can_hit_but_the_last),
    TEST_CASE(a_hit_ends_at_the_first_other_token_even_inside_a_block),
    TEST_CASE(a_taken_prefix_gives_the_bits_of_a_fresh_computation),
    TEST_CASE(a_running_prompt_is_shared_with_what_is_still_in_its_ring),
    TEST_CASE(a_shared_prompt_outlives_a_sequence_that_closes_without_ids),
    TEST_CASE(whole_blocks_are_shared_by_reference),
    TEST_CASE(the_salt_separates_tenants),
    TEST_CASE(a_hash_alone_is_never_a_hit),
    TEST_CASE(options_forbid_taking_and_leaving),
    TEST_CASE(without_prefix_caching_nothing_stays),
    TEST_CASE(the_least_recently_used_object_gives_up_its_end_first),
    TEST_CASE(pages_that_a_sequence_holds_are_not_given_up_for_nothing),
    TEST_CASE(the_turns_of_a_conversation_do_not_pile_up),
    TEST_CASE(objects_are_limited_in_number),
    TEST_CASE(a_window_that_has_freed_pages_refuses_the_hit),
    TEST_CASE(dropping_prefixes_spares_those_in_use),
    TEST_CASE(queries_and_hits_are_counted_in_tokens),
    TEST_CASES_END,
};
