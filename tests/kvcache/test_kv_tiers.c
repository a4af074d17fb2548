/* tests/kvcache/test_kv_tiers.c - promises of a cache whose pages leave the pool: the same bits wherever they
 * lie, nothing wrong when the disk fails, nothing left behind. */
#include "kvcache/kv_lost.h"
#include "kvcache/kv_map.h"
#include "tests/kvcache/bad_disk.h"
#include "tests/kvcache/fake_model.h"
#include "tests/test_main.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { N_SEQS = 8, N_PROMPT = 60, N_TOKENS = 400 };

static char *text(const char *name)
{
    return (char *)(uintptr_t)name;
}

/* Slabs of the pool and of the tiers. */
typedef struct split {
    uint32_t n_pool, n_host, n_disk;
} split;

/* Of all caches that are opened; every test has a process of its own. */
static struct shards {
    const char *placement;
    uint32_t n;
} shards = {"block", 1};

static const char *const DIR = "/tmp";

static fake *open_layers(const char *codec, const char *routing, split s,
                         const kv_layer_shape *layers)
{
    fake_options options = {.isa = "auto",
                            .n_threads = 2,
                            .layers = layers,
                            .n_layers = 2,
                            .config = fake_coded(codec)};
    options.config.routing = text(routing);
    options.config.routing_k = 0.3;
    options.config.routing_eps = 0.05;
    options.config.routing_tau = 0.8;
    options.config.memory_bytes = s.n_pool * (uint64_t)KV_SLAB_BYTES;
    options.config.host_bytes = s.n_host * (uint64_t)KV_SLAB_BYTES;
    options.config.disk_bytes = s.n_disk * (uint64_t)KV_SLAB_BYTES;
    options.config.disk_path = s.n_disk > 0 ? text(DIR) : NULL;
    options.config.n_shards = shards.n;
    options.config.placement = text(shards.placement);
    return fake_open(&options);
}

static fake *open_split(const char *codec, const char *routing, split s)
{
    return open_layers(codec, routing, s, fake_coded_layers);
}

/* Without a sliding window, which would free what a cut wants. */
static fake *open_unwindowed(const char *codec, split s)
{
    kv_layer_shape layers[2] = {fake_coded_layers[0], fake_coded_layers[1]};
    layers[1].window = 0;
    return open_layers(codec, "full", s, layers);
}

/* All sequences read their prompts one after the other, and then decode together. */
static void run_all(fake *f, fake_seq seqs[N_SEQS])
{
    fake_seq *rows[N_SEQS];
    uint32_t n_tokens[N_SEQS];
    for (uint32_t i = 0; i < N_SEQS; i++) {
        seqs[i] = fake_seq_open(f, (fake_ids){.seed = 100 + i, .n_prompt = N_PROMPT});
        seqs[i].n_prompt = N_PROMPT;
        fake_run(f, &seqs[i], N_PROMPT, 30);
        rows[i] = &seqs[i];
        n_tokens[i] = 1;
    }
    for (uint32_t p = N_PROMPT; p < N_TOKENS; p++)
        ck_assert_int_eq(fake_step(f, rows, n_tokens, N_SEQS), ERR_OK);
}

static void close_all(fake *f, fake_seq seqs[N_SEQS])
{
    for (uint32_t i = 0; i < N_SEQS; i++)
        fake_seq_close(f, &seqs[i], false);
    const kv_stats stats = fake_stats(f);
    ck_assert_uint_eq(stats.slab_bytes + stats.host_bytes + stats.disk_bytes, 0);
    ck_assert_uint_eq(stats.slots_live + stats.host_pages + stats.disk_pages, 0);
    fake_close(f);
}

static void check_split(const char *codec, const char *routing, split s,
                        const fake_seq expected[N_SEQS])
{
    fake_seq seqs[N_SEQS];
    fake *f = open_split(codec, routing, s);
    run_all(f, seqs);
    const kv_stats stats = fake_stats(f);
    ck_assert_uint_gt(stats.pages_demoted, 50);
    ck_assert_int_eq(stats.host_pages > 0, s.n_host > 0);
    ck_assert_int_eq(stats.disk_pages > 0, s.n_disk > 0);
    ck_assert_int_eq(stats.disk_read_bytes > 0, s.n_disk > 0);
    for (uint32_t i = 0; i < N_SEQS; i++) {
        ck_assert(!kv_seq_is_lost(seqs[i].seq));
        ck_assert_msg(fake_same(f, &seqs[i], &expected[i], 0, N_TOKENS), "%s %s %u %u %u", codec,
                      routing, s.n_pool, s.n_host, s.n_disk);
    }
    close_all(f, seqs);
}

static void check_splits(const char *codec, const char *routing, const split *splits, uint32_t n)
{
    fake_seq expected[N_SEQS];
    fake *all = open_split(codec, routing, (split){80, 0, 0});
    run_all(all, expected);
    ck_assert_uint_eq(fake_stats(all).pages_demoted, 0);
    for (uint32_t i = 0; i < n; i++)
        check_split(codec, routing, splits[i], expected);
    close_all(all, expected);
}

START_TEST(every_codec_has_the_same_bits_in_every_tier)
{
    check_splits("none", "full", (split[]){{6, 40, 0}, {6, 0, 40}, {6, 1, 40}}, 3);
    for (uint32_t c = 0; kv_codecs[c] != NULL; c++) {
        if (kv_codecs[c]->is_exact) continue;
        /* Bases stay in the pool; a mixed codec has pages of four classes, a slab each, everywhere. */
        const bool has_bases = kv_codecs[c]->has_own_bases, is_mixed = kv_codecs[c]->is_mixed;
        const split tiers = {has_bases ? 12 : is_mixed ? 8 : 4, is_mixed ? 3 : 1, 40};
        check_splits(kv_codecs[c]->name, "full", &tiers, 1);
    }
}
END_TEST

START_TEST(every_routing_has_the_same_bits_in_every_tier)
{
    for (uint32_t r = 0; kv_routings[r] != NULL; r++) {
        if (kv_routings[r]->select == NULL) continue; /* the test before has it */
        check_splits("int4", kv_routings[r]->name, &(split){4, 1, 40}, 1);
    }
    check_splits("none", "hierarchical", &(split){6, 1, 40}, 1);
}
END_TEST

START_TEST(every_placement_has_the_same_bits_in_every_tier)
{
    for (uint32_t p = 0; kv_placements[p] != NULL; p++) {
        const uint32_t n = kv_placements[p]->is_exact ? 6 : 12; /* open pages stay, of every list */
        shards = (struct shards){kv_placements[p]->name, 4};
        check_splits("none", "full", (split[]){{n, 50, 0}, {n, 1, 50}}, 2);
        check_splits("int8", "hierarchical", &(split){n - 2, 1, 50}, 1);
        shards.n = 2;
        check_splits("lora", "topk_balanced", &(split){n - 2, 1, 50}, 1);
    }
}
END_TEST

/* A routing that chooses reads what it has chosen, and no more, from the file. */
START_TEST(pages_that_are_not_chosen_are_not_read)
{
    uint64_t read_bytes[2];
    const char *const routings[2] = {"full", "topk"};
    for (uint32_t r = 0; r < 2; r++) {
        fake_seq seqs[N_SEQS];
        fake *f = open_split("none", routings[r], (split){6, 0, 40});
        run_all(f, seqs);
        read_bytes[r] = fake_stats(f).disk_read_bytes;
        close_all(f, seqs);
    }
    ck_assert_uint_lt(read_bytes[1], read_bytes[0] * 6 / 10); /* 0.3 of the pages are chosen */
}
END_TEST

/* Both read two of four shards; `pikv` minds which of them lie in the file. */
START_TEST(a_routing_that_counts_misses_reads_less_of_the_file)
{
    uint64_t read_bytes[2];
    const char *const routings[2] = {"topk_balanced", "pikv"};
    shards = (struct shards){"expert", 4};
    for (uint32_t r = 0; r < 2; r++) {
        fake_seq seqs[N_SEQS];
        fake *f = open_split("none", routings[r], (split){24, 0, 50});
        run_all(f, seqs);
        read_bytes[r] = fake_stats(f).disk_read_bytes;
        ck_assert_uint_gt(fake_stats(f).disk_pages, 50);
        close_all(f, seqs);
    }
    ck_assert_uint_lt(read_bytes[1], read_bytes[0] * 7 / 10);
}
END_TEST

START_TEST(the_map_shows_where_every_page_lies)
{
    fake_seq seqs[N_SEQS];
    uint64_t n_pages[KV_N_TIERS] = {0};
    fake *f = open_split("none", "full", (split){6, 2, 40});
    run_all(f, seqs);
    for (uint32_t i = 0; i < N_SEQS; i++) {
        kv_map *map;
        const kv_map_query query = {.seq = seqs[i].seq->id};
        ck_assert_int_eq(kv_map_open(f->cache, &query, &map), ERR_OK);
        kv_map_take(f->cache, map);
        for (uint32_t r = 0; r < map->n_runs; r++)
            n_pages[map->runs[r].tier] += map->runs[r].n_blocks;
        kv_map_close(map);
    }
    const kv_stats stats = fake_stats(f);
    ck_assert_uint_gt(stats.host_pages, 0);
    ck_assert_uint_eq(n_pages[KV_TIER_POOL], stats.pages_used);
    ck_assert_uint_eq(n_pages[KV_TIER_HOST], stats.host_pages);
    ck_assert_uint_eq(n_pages[KV_TIER_FILE], stats.disk_pages);
    close_all(f, seqs);
}
END_TEST

/* ---- cached prefixes ----------------------------------------------------------------------------- */

/* Sequences of 200 tokens, one after the other, each with a beginning of its own, which stays behind. */
static void leave_prefixes(fake *f, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        fake_seq s = fake_seq_open(f, (fake_ids){.seed = i, .n_prompt = 200});
        fake_run(f, &s, 200, 50);
        fake_seq_close(f, &s, true);
    }
}

/* The same tokens again and some more; *n_taken of them from the cache. */
static fake_seq take_again(fake *f, uint32_t i, uint32_t *n_taken)
{
    fake_seq s = fake_seq_open(f, (fake_ids){.seed = i, .n_prompt = 220});
    *n_taken = kv_seq_take_prefix(s.seq, s.tokens, 200);
    fake_run(f, &s, 220, 50);
    return s;
}

START_TEST(cached_prefixes_are_demoted_before_they_are_given_up)
{
    const split splits[2] = {{6, 0, 40}, {6, 40, 0}};
    for (uint32_t k = 0; k < 2; k++) {
        fake *f = open_split("none", "full", splits[k]);
        fake *all = open_split("none", "full", (split){64, 0, 0});
        leave_prefixes(f, 8);
        ck_assert_uint_eq(fake_stats(f).pages_given_up, 0);
        ck_assert_uint_gt(fake_stats(f).pages_demoted, 100);
        for (uint32_t i = 0; i < 8; i++) {
            uint32_t n_taken;
            fake_seq s = take_again(f, i, &n_taken);
            ck_assert_uint_gt(n_taken, 190);
            fake_seq expected = take_again(all, i, &n_taken);
            ck_assert_uint_eq(n_taken, 0);
            ck_assert(fake_same(f, &s, &expected, 199, 220));
            fake_seq_close(all, &expected, false);
            fake_seq_close(f, &s, false);
        }
        fake_close(f);
        fake_close(all);
    }
}
END_TEST

START_TEST(full_tiers_give_up_the_oldest_prefix)
{
    fake *f = open_split("none", "full", (split){6, 2, 2});
    uint32_t n_taken;
    leave_prefixes(f, 8);
    ck_assert_uint_gt(fake_stats(f).pages_given_up, 100);
    fake_seq s = take_again(f, 7, &n_taken);
    ck_assert_uint_gt(n_taken, 190);
    fake_seq_close(f, &s, false);
    s = take_again(f, 0, &n_taken);
    ck_assert_uint_eq(n_taken, 0);
    fake_seq_close(f, &s, false);
    fake_close(f);
}
END_TEST

START_TEST(a_hit_brings_pages_back_if_there_is_room)
{
    fake *f = open_split("none", "full", (split){6, 0, 40});
    fake *all = open_split("none", "full", (split){64, 0, 0});
    uint32_t n_taken;
    leave_prefixes(f, 4);
    /* Somebody who uses the first one keeps it while all others go. */
    fake_seq user = fake_seq_open(f, (fake_ids){.seed = 0, .n_prompt = 220});
    ck_assert_uint_gt(kv_seq_take_prefix(user.seq, user.tokens, 200), 190);
    kv_cache_drop_prefixes(f->cache);
    fake_seq_close(f, &user, false);
    const kv_stats before = fake_stats(f);
    ck_assert_uint_gt(before.disk_pages, 0);
    fake_seq s = take_again(f, 0, &n_taken);
    ck_assert_uint_gt(n_taken, 190);
    ck_assert_uint_eq(fake_stats(f).pages_promoted - before.pages_promoted, before.disk_pages);
    ck_assert_uint_eq(fake_stats(f).disk_pages, 0);
    fake_seq expected = take_again(all, 0, &n_taken);
    ck_assert(fake_same(f, &s, &expected, 199, 220));
    fake_seq_close(f, &s, false);
    fake_seq_close(all, &expected, false);
    fake_close(f);
    fake_close(all);
}
END_TEST

START_TEST(pages_of_running_sequences_come_back_when_others_leave)
{
    fake_seq seqs[N_SEQS], expected[N_SEQS];
    fake *f = open_split("int8", "full", (split){4, 1, 40});
    fake *all = open_split("int8", "full", (split){64, 0, 0});
    run_all(f, seqs);
    run_all(all, expected);
    for (uint32_t i = 1; i < N_SEQS; i++)
        kv_seq_close(seqs[i].seq, NULL);
    ck_assert_uint_gt(fake_stats(f).disk_pages, 0);
    while (kv_seq_length(seqs[0].seq) < N_TOKENS + 60) {
        fake_run(f, &seqs[0], kv_seq_length(seqs[0].seq) + 1, 1);
        fake_run(all, &expected[0], kv_seq_length(expected[0].seq) + 1, 1);
    }
    ck_assert_uint_gt(fake_stats(f).pages_promoted, 0);
    ck_assert_uint_eq(fake_stats(f).disk_pages, 0);
    ck_assert(fake_same(f, &seqs[0], &expected[0], 0, N_TOKENS + 60));
    for (uint32_t i = 1; i < N_SEQS; i++)
        fake_seq_free(&seqs[i]);
    fake_seq_close(f, &seqs[0], false);
    fake_close(f);
    close_all(all, expected);
}
END_TEST

START_TEST(a_cut_finds_what_has_left_the_pool)
{
    fake_seq seqs[N_SEQS], expected[N_SEQS];
    const split splits[2] = {{6, 60, 0}, {6, 0, 60}};
    for (uint32_t k = 0; k < 2; k++) {
        fake *f = open_unwindowed("none", splits[k]);
        fake *all = open_unwindowed("none", (split){64, 0, 0});
        run_all(f, seqs);
        run_all(all, expected);
        for (uint32_t i = 0; i < N_SEQS; i++) {
            const uint32_t n = 100 + 3 * i; /* the oldest pages went first */
            ck_assert_uint_eq(kv_seq_truncate(seqs[i].seq, n), n);
            ck_assert_uint_eq(kv_seq_truncate(expected[i].seq, n), n);
            fake_check(f);
            fake_run(f, &seqs[i], N_TOKENS, 7);
            fake_run(all, &expected[i], N_TOKENS, 7);
            ck_assert(fake_same(f, &seqs[i], &expected[i], n, N_TOKENS));
        }
        close_all(f, seqs);
        close_all(all, expected);
    }
}
END_TEST

/* ---- longer than the pool ------------------------------------------------------------------------ */

/* A sequence that no pool of this size could hold, alone; its beginning is a cached prefix at first. */
static void check_long(const char *codec, split s)
{
    enum { N_LONG = 500 };
    fake *f = open_unwindowed(codec, s);
    fake *all = open_unwindowed(codec, (split){64, 0, 0});
    f->cache->section_tokens = all->cache->section_tokens = 64;
    const fake_ids ids = {.seed = 1, .n_prompt = 300};
    fake *small = open_unwindowed(codec, (split){s.n_pool, 0, 0});
    small->cache->section_tokens = 64;
    ck_assert(kv_cache_could_fit(f->cache, NULL, N_LONG));
    ck_assert(!kv_cache_could_fit(small->cache, NULL, N_LONG));
    fake_close(small);
    fake_seq seq = fake_seq_open(f, ids), expected = fake_seq_open(all, ids);
    fake_run(f, &seq, 200, 50);
    fake_seq_close(f, &seq, true);
    seq = fake_seq_open(f, ids);
    ck_assert_uint_gt(kv_seq_take_prefix(seq.seq, seq.tokens, 200), 190);
    if (!f->cache->methods.is_exact) { /* a prefix was encoded earlier than this one would be */
        fake_seq_close(f, &seq, false);
        seq = fake_seq_open(f, ids);
    }
    fake_run(f, &seq, 300, 50);
    fake_run(all, &expected, 300, 50);
    fake_run(f, &seq, N_LONG, 1);
    fake_run(all, &expected, N_LONG, 1);
    ck_assert(fake_same(f, &seq, &expected, 299, N_LONG));
    ck_assert_uint_gt(fake_stats(f).pages_demoted, 5);
    fake_seq_close(f, &seq, false);
    fake_seq_close(all, &expected, false);
    fake_close(f);
    fake_close(all);
}

START_TEST(a_sequence_may_be_longer_than_the_pool)
{
    check_long("none", (split){3, 30, 0});
    check_long("none", (split){3, 1, 30});
    check_long("fp8", (split){4, 0, 30});
}
END_TEST

/* ---- a disk that fails --------------------------------------------------------------------------- */

START_TEST(a_full_disk_ends_as_a_full_pool)
{
    fake_seq seqs[N_SEQS];
    fake *f = open_split("none", "full", (split){6, 0, 40});
    bad_disk_mend();
    the_disk.error = ENOSPC;
    the_disk.writes_until_failure = 100;
    fake_seq *rows[N_SEQS];
    uint32_t n_tokens[N_SEQS];
    err_t err = ERR_OK;
    for (uint32_t i = 0; i < N_SEQS; i++) {
        seqs[i] = fake_seq_open(f, (fake_ids){.seed = 100 + i, .n_prompt = N_PROMPT});
        fake_run(f, &seqs[i], N_PROMPT, 30);
        rows[i] = &seqs[i];
        n_tokens[i] = 1;
    }
    while (kv_seq_length(seqs[0].seq) < N_TOKENS && err == ERR_OK)
        err = fake_step(f, rows, n_tokens, N_SEQS);
    ck_assert_int_eq(err, ERR_KV_FULL);
    ck_assert_uint_eq(fake_stats(f).disk_pages, 100);
    ck_assert_uint_eq(fake_stats(f).disk_write_failures, 3);
    ck_assert_uint_eq(fake_stats(f).disk_budget_bytes, 0); /* it is left alone */
    ck_assert_uint_eq(fake_stats(f).disk_read_failures, 0);
    const uint32_t n = kv_seq_length(seqs[0].seq); /* and what was computed is right */
    fake *all = open_split("none", "full", (split){64, 0, 0});
    fake_seq expected[N_SEQS];
    run_all(all, expected);
    for (uint32_t i = 0; i < N_SEQS; i++)
        ck_assert(fake_same(f, &seqs[i], &expected[i], 0, n));
    close_all(f, seqs);
    close_all(all, expected);
}
END_TEST

/* A read fails, or one bit of it is wrong: that sequence is lost, no other is, and computed again it has
 * the bits that it should. */
static void check_lost(bool is_flipped)
{
    fake_seq seqs[N_SEQS], expected[N_SEQS];
    fake *f = open_split("none", "full", (split){6, 0, 60});
    fake *all = open_split("none", "full", (split){64, 0, 0});
    bad_disk_mend();
    run_all(f, seqs);
    run_all(all, expected);
    the_disk.error = EIO;
    the_disk.n_failing = 1;
    the_disk.flips_every = is_flipped ? the_disk.n_reads + 1 : 0;
    the_disk.reads_until_failure = is_flipped ? BAD_DISK_NEVER : 5;
    fake_seq *rows[N_SEQS], *others[N_SEQS];
    uint32_t n_tokens[N_SEQS], n_lost = 0, lost = 0;
    for (uint32_t i = 0; i < N_SEQS; i++) {
        rows[i] = &seqs[i];
        others[i] = &expected[i];
        n_tokens[i] = 1;
    }
    ck_assert_int_eq(fake_step(f, rows, n_tokens, N_SEQS), ERR_OK);
    ck_assert_int_eq(fake_step(all, others, n_tokens, N_SEQS), ERR_OK);
    the_disk.flips_every = 0;
    for (uint32_t i = 0; i < N_SEQS; i++) {
        if (kv_seq_is_lost(seqs[i].seq)) {
            n_lost++;
            lost = i;
        } else {
            ck_assert(fake_same(f, &seqs[i], &expected[i], 0, N_TOKENS + 1));
        }
    }
    ck_assert_uint_eq(n_lost, 1);
    ck_assert_uint_eq(fake_stats(f).disk_read_failures, 1);
    kv_seq_close(seqs[lost].seq, seqs[lost].tokens);
    fake_check(f);
    ck_assert_uint_eq(fake_stats(f).seqs_lost, 1);
    ck_assert_uint_eq(fake_stats(f).prefix_objects, 0); /* nothing of it stays behind */
    fake_seq again = fake_seq_open(f, (fake_ids){.seed = 100 + lost, .n_prompt = N_PROMPT});
    ck_assert_uint_eq(kv_seq_take_prefix(again.seq, again.tokens, N_TOKENS), 0);
    fake_run(f, &again, N_TOKENS + 1, 40);
    ck_assert(fake_same(f, &again, &expected[lost], 0, N_TOKENS + 1));
    fake_seq_free(&seqs[lost]);
    seqs[lost] = again;
    close_all(f, seqs);
    close_all(all, expected);
}

START_TEST(a_page_that_cannot_be_read_costs_one_sequence_its_work_and_nobody_a_bit)
{
    check_lost(false);
    check_lost(true);
}
END_TEST

START_TEST(a_prefix_that_cannot_be_read_is_not_handed_out_twice)
{
    fake *f = open_split("none", "full", (split){6, 0, 40});
    fake *all = open_split("none", "full", (split){64, 0, 0});
    uint32_t n_taken;
    bad_disk_mend();
    leave_prefixes(f, 8);
    the_disk.flips_every = 1;
    fake_seq s = take_again(f, 0, &n_taken);
    the_disk.flips_every = 0;
    ck_assert_uint_gt(n_taken, 190);
    ck_assert(kv_seq_is_lost(s.seq));
    kv_seq_share_prompt(s.seq, s.tokens, 220); /* shares nothing */
    fake_seq_close(f, &s, true);
    s = take_again(f, 0, &n_taken);
    ck_assert_uint_eq(n_taken, 0);
    ck_assert(!kv_seq_is_lost(s.seq));
    fake_seq expected = take_again(all, 0, &n_taken);
    ck_assert(fake_same(f, &s, &expected, 0, 220));
    kv_seq_share_prompt(s.seq, s.tokens, 220); /* from now on it is there again */
    fake_seq_close(f, &s, true);
    s = fake_seq_open(f, (fake_ids){.seed = 0, .n_prompt = 240});
    ck_assert_uint_gt(kv_seq_take_prefix(s.seq, s.tokens, 240), 210);
    fake_seq_close(f, &s, false);
    fake_seq_close(all, &expected, false);
    fake_close(f);
    fake_close(all);
}
END_TEST

START_TEST(a_cut_that_cannot_be_read_leaves_nothing)
{
    fake_seq seqs[N_SEQS];
    fake *f = open_unwindowed("none", (split){6, 0, 60});
    bad_disk_mend();
    run_all(f, seqs);
    the_disk.flips_every = 1;
    uint32_t n_lost = 0;
    for (uint32_t i = 0; i < N_SEQS; i++) {
        const uint32_t n = kv_seq_truncate(seqs[i].seq, 100);
        ck_assert(n == 100 || n == 0);
        ck_assert_int_eq(n == 0, kv_seq_is_lost(seqs[i].seq));
        n_lost += n == 0;
        fake_check(f);
    }
    the_disk.flips_every = 0;
    ck_assert_uint_gt(n_lost, 0);
    close_all(f, seqs);
}
END_TEST

/* ---- settings ------------------------------------------------------------------------------------ */

static void check_refused(uint64_t host_bytes, const char *path, uint64_t disk_bytes,
                          const char *key, const char *other)
{
    dev *d;
    err_info info = {0};
    kv_cache *cache;
    kv_config config = fake_defaults();
    const kv_shape shape = {.n_layers = 3, .layer = fake_layers, .n_experts = 8};
    const kv_limits limits = {4, 64, 512};
    config.host_bytes = host_bytes;
    config.disk_path = text(path);
    config.disk_bytes = disk_bytes;
    ck_assert_int_eq(dev_open_cpu(&(dev_config){.isa = "ref", .n_threads = 1}, &d, NULL), ERR_OK);
    ck_assert_int_eq(kv_cache_open(d, &config, &shape, &limits, &cache, &info), ERR_BAD_CONFIG);
    ck_assert_ptr_null(cache);
    ck_assert_msg(strstr(info.message, key) != NULL, "%s", info.message);
    ck_assert_msg(strstr(info.message, other) != NULL, "%s", info.message);
    dev_close(d);
}

START_TEST(settings_that_belong_together_are_asked_for_together)
{
    check_refused(0, NULL, 1 << 20, "kv-disk-bytes", "kv-disk-path");
    check_refused(0, "", 1 << 20, "kv-disk-bytes", "kv-disk-path");
    check_refused(0, "/tmp", 0, "kv-disk-path", "kv-disk-bytes");
    check_refused(0, "/no/such/folder", 1 << 20, "kv-disk-path", "/no/such/folder");
    check_refused(1000, NULL, 0, "kv-host-bytes", "1000");
    check_refused(0, "/tmp", 1000, "kv-disk-bytes", "1000");
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE_SECONDS(every_codec_has_the_same_bits_in_every_tier, 500),
    TEST_CASE_SECONDS(every_routing_has_the_same_bits_in_every_tier, 500),
    TEST_CASE_SECONDS(every_placement_has_the_same_bits_in_every_tier, 500),
    TEST_CASE_SECONDS(pages_that_are_not_chosen_are_not_read, 250),
    TEST_CASE_SECONDS(a_routing_that_counts_misses_reads_less_of_the_file, 120),
    TEST_CASE_SECONDS(the_map_shows_where_every_page_lies, 120),
    TEST_CASE_SECONDS(cached_prefixes_are_demoted_before_they_are_given_up, 120),
    TEST_CASE_SECONDS(full_tiers_give_up_the_oldest_prefix, 120),
    TEST_CASE_SECONDS(a_hit_brings_pages_back_if_there_is_room, 120),
    TEST_CASE_SECONDS(pages_of_running_sequences_come_back_when_others_leave, 120),
    TEST_CASE_SECONDS(a_cut_finds_what_has_left_the_pool, 120),
    TEST_CASE_SECONDS(a_sequence_may_be_longer_than_the_pool, 120),
    TEST_CASE_SECONDS(a_full_disk_ends_as_a_full_pool, 120),
    TEST_CASE_SECONDS(a_page_that_cannot_be_read_costs_one_sequence_its_work_and_nobody_a_bit, 120),
    TEST_CASE_SECONDS(a_prefix_that_cannot_be_read_is_not_handed_out_twice, 120),
    TEST_CASE_SECONDS(a_cut_that_cannot_be_read_leaves_nothing, 120),
    TEST_CASE(settings_that_belong_together_are_asked_for_together),
    TEST_CASES_END,
};
