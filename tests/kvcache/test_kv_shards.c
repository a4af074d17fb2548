/* tests/kvcache/test_kv_shards.c - caches of several shards: where entries lie, and that it does not show. */
#include "kvcache/scatter.h"
#include "tests/kvcache/fake_model.h"
#include "tests/test_main.h"

#include <math.h>
#include <string.h>

static const uint32_t SHARDS[] = {1, 2, 3, 4, 8};
enum { N_SHARDS = sizeof SHARDS / sizeof SHARDS[0] };

/* The layers of the fake model, all with routers, in one of which a window frees pages. */
static fake_options options_of(const char *placement, uint32_t n_shards)
{
    static kv_layer_shape layers[3];
    fake_options options = {.layers = layers, .n_layers = 3, .config = fake_defaults()};
    for (uint32_t l = 0; l < 3; l++) {
        layers[l] = fake_layers[l];
        layers[l].has_router = true;
    }
    layers[1].window = 40;
    options.config.placement = (char *)(uintptr_t)placement;
    options.config.n_shards = n_shards;
    return options;
}

static bool can_have(const kv_placement *placement, uint32_t n_shards)
{
    return !placement->needs_power_of_two || (n_shards & (n_shards - 1)) == 0;
}

/* ---- results ------------------------------------------------------------------------------------- */

/* A prompt in chunks, then steps of one token under the configuration's routing. */
static fake_seq run_some(fake *f, uint32_t chunk)
{
    fake_seq s = fake_seq_open(f, (fake_ids){.seed = 3, .n_prompt = 150});
    s.n_prompt = 150;
    fake_run(f, &s, 150, chunk);
    fake_run(f, &s, 230, 1);
    return s;
}

static void check_same_as_one_shard(kv_config config, const kv_layer_shape *layers,
                                    uint32_t n_layers)
{
    fake_options options = {.layers = layers, .n_layers = n_layers, .config = config};
    fake *one = fake_open(&options);
    fake_seq a = run_some(one, 64);
    for (uint32_t i = 1; i < N_SHARDS; i++) {
        options.config.n_shards = SHARDS[i];
        fake *f = fake_open(&options);
        fake_seq b = run_some(f, 11);
        ck_assert(fake_same(f, &a, &b, 0, 230));
        fake_seq_close(f, &b, true);
        fake_close(f);
    }
    fake_seq_close(one, &a, true);
    fake_close(one);
}

START_TEST(blocks_on_several_shards_have_the_bits_of_one)
{
    static const char *const routings[] = {"full", "topk", "hierarchical", "certified"};
    for (uint32_t i = 0; i < 4; i++) {
        kv_config config = fake_defaults();
        config.routing = (char *)(uintptr_t)routings[i];
        config.routing_k = 0.3;
        config.routing_eps = 0.1;
        check_same_as_one_shard(config, fake_layers, 3);
    }
    check_same_as_one_shard(fake_coded("int8"), fake_coded_layers, 2);
}
END_TEST

/* Outputs are right, and independent of the neighbours to the last bit. */
static void check_placement(const char *placement, uint32_t n_shards)
{
    fake_options options = options_of(placement, n_shards);
    options.n_threads = 2;
    fake *f = fake_open(&options);
    fake_seq alone = run_some(f, 59);
    ck_assert_double_le(fake_error(f, &alone, 0, 230), 1);
    fake_seq a = fake_seq_open(f, (fake_ids){.seed = 3, .n_prompt = 150});
    fake_seq b = fake_seq_open(f, (fake_ids){.seed = 4});
    fake_seq *const rows[] = {&b, &a};
    while (kv_seq_length(a.seq) < 150) {
        const uint32_t left = 150 - kv_seq_length(a.seq);
        ck_assert_int_eq(fake_step(f, rows, (uint32_t[]){5, left < 59 ? left : 59}, 2), ERR_OK);
    }
    while (kv_seq_length(a.seq) < 230)
        ck_assert_int_eq(fake_step(f, rows, (uint32_t[]){1, 1}, 2), ERR_OK);
    ck_assert(fake_same(f, &alone, &a, 0, 230));
    ck_assert_double_le(fake_error(f, &b, 0, 80), 1);
    ck_assert_double_le(fake_error(f, &a, 0, 230), 1);
    fake_seq_close(f, &alone, false);
    fake_seq_close(f, &a, false);
    fake_seq_close(f, &b, false);
    ck_assert_uint_eq(fake_stats(f).slab_bytes, 0);
    fake_close(f);
}

START_TEST(every_placement_on_any_number_of_shards_is_right)
{
    for (size_t p = 0; kv_placements[p] != NULL; p++) {
        for (uint32_t i = 0; i < N_SHARDS; i++) {
            if (can_have(kv_placements[p], SHARDS[i]))
                check_placement(kv_placements[p]->name, SHARDS[i]);
        }
    }
}
END_TEST

static double largest_difference(const fake *f, const fake_seq *a, const fake_seq *b, uint32_t n)
{
    double most = 0;
    for (size_t i = 0; i < n * f->n_out; i++)
        most = fmax(most, fabs((double)a->out[i] - (double)b->out[i]));
    return most;
}

/* What is encoded depends on lengths alone here, too; how a prompt is cut moves entries between pages and
 * staging, which shows in roundings. */
START_TEST(codes_are_the_same_however_a_prompt_is_cut)
{
    static const char *const placements[] = {"expert", "hash", "expert", "expert"};
    static const char *const codecs[] = {"int4", "int4", "svd", "pikv"};
    for (uint32_t i = 0; i < 4; i++) {
        fake_options options = {
            .layers = fake_coded_layers, .n_layers = 2, .config = fake_coded(codecs[i])};
        options.config.placement = (char *)(uintptr_t)placements[i];
        options.config.n_shards = 4;
        fake *f = fake_open(&options);
        f->cache->section_tokens = 64;
        fake_seq a = run_some(f, 64), b = run_some(f, 7);
        const kv_stats stats = fake_stats(f);
        ck_assert_uint_gt(stats.pages_encoded, 20);
        ck_assert_double_le(largest_difference(f, &a, &b, 230), 1e-5);
        ck_assert_double_gt(fake_error(f, &a, 150, 230), 100); /* they are codes */
        fake_seq_close(f, &a, true);
        fake_seq_close(f, &b, true);
        fake_close(f);
    }
}
END_TEST

/* ---- owners -------------------------------------------------------------------------------------- */

static uint32_t owner_of(const fake *f, const fake_seq *s, uint32_t layer, uint32_t position)
{
    const uint32_t n = f->cache->n_shards;
    const uint32_t expert = (s->tokens[position] + layer * f->expert_step) % 8;
    if (strcmp(f->cache->placement->name, "hash") == 0) return (position % n) ^ (expert % n);
    return kv_expert_shards(&f->cache->experts, layer)[expert];
}

static void check_owners(const char *placement, uint32_t n_shards)
{
    fake_options options = options_of(placement, n_shards);
    fake *f = fake_open(&options);
    f->expert_step = 3; /* each layer has its own */
    fake_seq s = run_some(f, 64);
    uint32_t n_found = 0;
    for (uint32_t l = 0; l < 3; l++) {
        for (uint32_t h = 0; h < f->cache->n_kv_heads[l]; h++) {
            const kv_pages *pages = kv_pool_pages(f->cache->pool);
            kv_walk walk;
            kv_page_at at;
            kv_walk_begin(&walk, f->cache, &s.seq->table, l, h, s.seq->n_blocks);
            while (kv_walk_next(&walk, &at)) {
                ck_assert_uint_eq(pages->owner[at.page], at.shard);
                for (uint32_t i = 0; i < pages->n_slots[at.page]; i++, n_found++)
                    ck_assert_uint_eq(owner_of(f, &s, l, pages->positions[(size_t)at.page * 4 + i]),
                                      at.shard);
            }
        }
    }
    ck_assert_uint_gt(n_found, 3 * 220); /* the windowed layer has few */
    fake_seq_close(f, &s, false);
    fake_close(f);
}

START_TEST(entries_lie_where_their_placement_says)
{
    check_owners("expert", 3);
    check_owners("expert", 8);
    check_owners("hash", 4);
}
END_TEST

/* ---- sharing and cutting --------------------------------------------------------------------------- */

/* A prefix from a finished or a running sequence: what follows has the bits of a computation of one's
 * own with the same chunks, since the pages that result are the same. */
static void check_prefix(const char *placement, uint32_t n_shards, uint32_t n_taken,
                         bool is_running)
{
    fake_options options = options_of(placement, n_shards);
    kv_layer_shape layers[3] = {options.layers[0], options.layers[1], options.layers[2]};
    options.layers = layers;
    if (n_taken < 150) layers[1].window = 0; /* it would have passed what is asked for */
    fake *f = fake_open(&options);
    fake_seq fresh = fake_seq_open(f, (fake_ids){.seed = 6, .shared_seed = 5, .n_shared = n_taken});
    fake_run(f, &fresh, n_taken, 64);
    fake_run(f, &fresh, 200, 1);
    fake_seq source = fake_seq_open(f, (fake_ids){.seed = 5});
    fake_run(f, &source, 170, 64);
    if (is_running) {
        kv_seq_share_prompt(source.seq, source.tokens, 170);
    } else {
        fake_seq_close(f, &source, true);
    }
    fake_seq taker = fake_seq_open(f, (fake_ids){.seed = 6, .shared_seed = 5, .n_shared = n_taken});
    const uint32_t n = kv_seq_take_prefix(taker.seq, taker.tokens, 200);
    fake_check(f);
    ck_assert_uint_le(n, n_taken);
    ck_assert_uint_ge(n, n_taken - n_taken % 4);
    fake_run(f, &taker, n_taken, 64);
    fake_run(f, &taker, 200, 1);
    ck_assert_double_le(fake_error(f, &taker, n, 200), 1);
    ck_assert(fake_same(f, &fresh, &taker, n_taken, 200));
    fake_seq_close(f, &fresh, false);
    fake_seq_close(f, &taker, true);
    if (is_running) fake_seq_close(f, &source, true);
    kv_cache_drop_prefixes(f->cache);
    ck_assert_uint_eq(fake_stats(f).slab_bytes, 0);
    fake_close(f);
}

START_TEST(a_prefix_is_shared_on_any_shards)
{
    static const uint32_t lengths[] = {4, 61, 128, 170};
    for (size_t p = 0; kv_placements[p] != NULL; p++) {
        for (uint32_t i = 0; i < 4; i++) {
            check_prefix(kv_placements[p]->name, 4, lengths[i], false);
            check_prefix(kv_placements[p]->name, 4, lengths[i], true);
        }
    }
}
END_TEST

/* Cuts within the ring, into pages, and to nothing; then it goes on, as if it had never been longer. */
static void check_cuts(const char *placement, uint32_t n_shards)
{
    static const uint32_t lengths[] = {199, 190, 150, 101, 30, 2, 0};
    fake_options options = options_of(placement, n_shards);
    kv_layer_shape layers[2] = {options.layers[0], options.layers[2]};
    options.layers = layers;
    options.n_layers = 2;
    fake *f = fake_open(&options);
    fake_seq whole = fake_seq_open(f, (fake_ids){.seed = 8});
    fake_run(f, &whole, 230, 1);
    for (uint32_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
        fake_seq s = fake_seq_open(f, (fake_ids){.seed = 8});
        fake_run(f, &s, 200, 1);
        ck_assert_uint_eq(kv_seq_truncate(s.seq, lengths[i]), lengths[i]);
        fake_check(f);
        fake_run(f, &s, 230, 1);
        ck_assert_msg(fake_same(f, &whole, &s, 0, 230), "%s %u cut to %u: %g", placement, n_shards,
                      lengths[i], fake_error(f, &s, 0, 230));
        fake_seq_close(f, &s, false);
    }
    fake_seq_close(f, &whole, false);
    fake_close(f);
}

START_TEST(a_cut_sequence_goes_on_as_if_it_had_never_been_longer)
{
    check_cuts("block", 3);
    check_cuts("expert", 4);
    check_cuts("expert", 3);
    check_cuts("hash", 8);
}
END_TEST

START_TEST(an_aborted_step_leaves_all_shards_as_they_were)
{
    for (size_t p = 0; kv_placements[p] != NULL; p++) {
        fake_options options = options_of(kv_placements[p]->name, 4);
        fake *f = fake_open(&options);
        fake_seq s = run_some(f, 64);
        const kv_stats before = fake_stats(f);
        ck_assert_int_eq(kv_step_begin(f->cache, &(kv_row){.seq = s.seq, .n_tokens = 40}, 1),
                         ERR_OK);
        kv_step_abort(f->cache);
        const kv_stats after = fake_stats(f);
        ck_assert_mem_eq(after.shards, before.shards, sizeof after.shards);
        ck_assert_uint_eq(after.slab_bytes, before.slab_bytes);
        fake_run(f, &s, 260, 64);
        ck_assert_double_le(fake_error(f, &s, 150, 260), 1);
        fake_seq_close(f, &s, false);
        fake_close(f);
    }
}
END_TEST

/* A cache of a few slabs; *n: tokens of the longest sequence that it says could fit. */
static fake *open_small(const kv_layer_shape *layers, uint32_t n_layers, kv_config config,
                        uint32_t *n)
{
    fake_options options = {
        .isa = "auto", .layers = layers, .n_layers = n_layers, .config = config};
    options.config.memory_bytes = (n_layers + 4) * KV_SLAB_BYTES;
    options.limits.n_seq_tokens_max = 2000;
    fake *f = fake_open(&options);
    f->cache->section_tokens = 64;
    *n = 0;
    while (kv_cache_could_fit(f->cache, NULL, *n + 1))
        ++*n;
    ck_assert_uint_gt(*n, 200);
    ck_assert_uint_lt(*n, 2000);
    return f;
}

/* A sequence alone fits if it could, whatever cached prefixes it shares pages with: of those the pages that
 * it has copies of can be given up. */
static void check_fit(const kv_layer_shape *layers, uint32_t n_layers, kv_config config)
{
    uint32_t n;
    fake *f = open_small(layers, n_layers, config, &n);
    for (uint32_t i = 0; i < 40; i++) {
        fake_seq s = fake_seq_open(
            f,
            (fake_ids){.seed = 100 + i, .shared_seed = 9, .n_shared = 10 + 2 * i, .n_prompt = 90});
        (void)kv_seq_take_prefix(s.seq, s.tokens, 10 + 2 * i);
        fake_run(f, &s, 100, 64);
        fake_seq_close(f, &s, true);
    }
    fake_seq s = fake_seq_open(f, (fake_ids){.seed = 9, .n_prompt = 200});
    ck_assert_uint_gt(kv_seq_take_prefix(s.seq, s.tokens, n), 70);
    fake_run(f, &s, n, 11);
    ck_assert_uint_gt(fake_stats(f).pages_given_up, 0);
    fake_seq_close(f, &s, true);
    fake_close(f);
}

START_TEST(what_could_fit_does_fit_on_any_shards)
{
    static const char *const placements[] = {"block", "expert", "hash"};
    const kv_layer_shape layers[2] = {fake_layers[0], fake_layers[0]};
    for (uint32_t i = 0; i < 3; i++) {
        kv_config config = fake_defaults(), coded = fake_coded("int8");
        config.placement = coded.placement = (char *)(uintptr_t)placements[i];
        config.n_shards = coded.n_shards = 4;
        check_fit(layers, 2, config);
        check_fit(fake_coded_layers, 1, coded);
    }
}
END_TEST

/* The same of sequences that evict: packing and encoding find the room that they need. */
static void check_evicting_fit(const kv_layer_shape *layers, uint32_t n_layers, kv_config config)
{
    uint32_t n;
    fake *f = open_small(layers, n_layers, config, &n);
    for (uint32_t n_prompt = 1; n_prompt < n; n_prompt += 450) {
        fake_seq s = fake_seq_open(f, (fake_ids){.seed = 9, .n_prompt = n_prompt});
        (void)kv_seq_take_prefix(s.seq, s.tokens, n_prompt);
        while (kv_seq_length(s.seq) < n) {
            const uint32_t next = kv_seq_length(s.seq) + kv_seq_step_tokens_max(s.seq);
            fake_run(f, &s, next < n ? next : n, 11);
            kv_seq_share_prompt(s.seq, s.tokens, kv_seq_length(s.seq));
        }
        fake_seq_close(f, &s, false);
    }
    ck_assert_uint_gt(fake_stats(f).entries_evicted, 500);
    fake_close(f);
}

START_TEST(what_could_fit_does_fit_while_entries_are_evicted_on_any_shards)
{
    const kv_layer_shape layers[2] = {fake_layers[0], fake_layers[0]};
    for (uint32_t i = 0; i < 3; i++) {
        kv_config config = i == 0 ? fake_defaults() : fake_coded("int8");
        config.placement = (char *)(uintptr_t)(i == 2 ? "block" : "expert");
        config.n_shards = 4;
        config.scheduling = (char *)(uintptr_t) "h2o";
        config.budget = 0.9;
        check_evicting_fit(i == 0 ? layers : fake_coded_layers, i == 0 ? 2 : 1, config);
    }
}
END_TEST

/* ---- load ---------------------------------------------------------------------------------------- */

/* A sequence whose tokens go to the experts below n_experts alone. */
static fake_seq skewed_seq(fake *f, uint64_t seed, uint32_t n_experts)
{
    fake_seq s = fake_seq_open(f, (fake_ids){.seed = seed});
    for (uint32_t p = 0; p < f->limits.n_seq_tokens_max; p++)
        s.tokens[p] -= s.tokens[p] % 8 - s.tokens[p] % n_experts;
    return s;
}

START_TEST(a_full_shard_spills_to_the_emptiest_and_counts_it)
{
    fake_options options = options_of("expert", 4);
    options.config.memory_bytes = 8 * KV_SLAB_BYTES;
    fake *f = fake_open(&options);
    fake_seq s[4];
    for (uint32_t i = 0; i < 4; i++) {
        s[i] = skewed_seq(f, i, 1);
        fake_run(f, &s[i], 500, 64);
        ck_assert_double_le(fake_error(f, &s[i], 490, 500), 1);
    }
    const kv_stats stats = fake_stats(f);
    uint64_t bytes = 0, slots = 0, spilled = 0;
    for (uint32_t i = 0; i < stats.n_shards; i++) {
        ck_assert_uint_le(stats.shards[i].bytes, stats.pool_budget_bytes / 4);
        bytes += stats.shards[i].bytes;
        slots += stats.shards[i].slots;
        spilled += stats.shards[i].spilled;
    }
    ck_assert_uint_eq(stats.n_shards, 4);
    ck_assert_uint_eq(bytes, stats.used_bytes);
    ck_assert_uint_eq(slots, stats.slots_live);
    ck_assert_uint_gt(stats.shards[0].spilled, 1000); /* all entries are its */
    ck_assert_uint_eq(spilled, stats.shards[0].spilled);
    ck_assert_uint_eq(spilled, stats.entries_spilled);
    ck_assert_uint_ge(spilled, slots - stats.shards[0].slots); /* windows have freed some */
    for (uint32_t i = 0; i < 4; i++)
        fake_seq_close(f, &s[i], false);
    fake_close(f);
}
END_TEST

/* Experts 0 and 1 lie on shard 0 at first, and get all tokens. */
static uint64_t run_skewed(fake *f)
{
    for (uint32_t i = 0; i < 3; i++) {
        fake_seq s = skewed_seq(f, 20 + i, 2);
        fake_run(f, &s, 300, 64);
        fake_run(f, &s, 400, 1);
        fake_run(f, &s, 500, 64);
        ck_assert_double_le(fake_error(f, &s, 380, 500), 1);
        fake_seq_close(f, &s, true);
    }
    return fake_stats(f).experts_packed;
}

START_TEST(experts_are_packed_onto_shards_by_load_while_sequences_run)
{
    fake_options options = options_of("expert", 4);
    fake *fixed = fake_open(&options);
    ck_assert_uint_eq(run_skewed(fixed), 0);
    ck_assert_uint_eq(fixed->cache->experts.shard[1], 0);
    options.config.eplb = true;
    fake *packed = fake_open(&options);
    ck_assert_uint_eq(run_skewed(packed), 3); /* each layer once: then it is balanced */
    for (uint32_t l = 0; l < 3; l++) {
        const uint16_t *shard = kv_expert_shards(&packed->cache->experts, l);
        uint32_t n_on[4] = {0};
        ck_assert_uint_ne(shard[0], shard[1]);
        for (uint32_t e = 0; e < 8; e++)
            n_on[shard[e]]++;
        for (uint32_t s = 0; s < 4; s++)
            ck_assert_uint_eq(n_on[s], 2);
    }
    ck_assert_uint_gt(fake_stats(packed).shards[1].pages + fake_stats(packed).shards[2].pages +
                          fake_stats(packed).shards[3].pages,
                      50);
    fake_close(fixed);
    fake_close(packed);
    options.config.eplb = false;
    options.config.routing = (char *)(uintptr_t) "eplb";
    fake *routed = fake_open(&options);
    ck_assert_uint_eq(run_skewed(routed), 3);
    fake_close(routed);
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE_SECONDS(blocks_on_several_shards_have_the_bits_of_one, 600),
    TEST_CASE_SECONDS(every_placement_on_any_number_of_shards_is_right, 600),
    TEST_CASE_SECONDS(codes_are_the_same_however_a_prompt_is_cut, 600),
    TEST_CASE(entries_lie_where_their_placement_says),
    TEST_CASE_SECONDS(a_prefix_is_shared_on_any_shards, 600),
    TEST_CASE_SECONDS(a_cut_sequence_goes_on_as_if_it_had_never_been_longer, 600),
    TEST_CASE_SECONDS(what_could_fit_does_fit_on_any_shards, 600),
    TEST_CASE_SECONDS(what_could_fit_does_fit_while_entries_are_evicted_on_any_shards, 600),
    TEST_CASE_SECONDS(an_aborted_step_leaves_all_shards_as_they_were, 600),
    TEST_CASE_SECONDS(a_full_shard_spills_to_the_emptiest_and_counts_it, 600),
    TEST_CASE_SECONDS(experts_are_packed_onto_shards_by_load_while_sequences_run, 600),
    TEST_CASES_END,
};
