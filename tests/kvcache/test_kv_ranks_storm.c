/* tests/kvcache/test_kv_ranks_storm.c - random operations on all ranks of a group, whose pools are too small and of
 * different sizes.
 *
 * Every rank draws the same operations. A call that one rank makes and another does not ends the group, every
 * invariant is checked after each, a sample of answers is checked by the reference, and in the end all ranks must
 * have seen the same lengths, hits and bits. */
#include "kvcache/kv_lost.h"
#include "kvcache/ranks.h"
#include "tests/kvcache/bad_disk.h"
#include "tests/kvcache/rank_group.h"
#include "tests/test_main.h"

#include "base/random.h"

#include <string.h>

enum { N_OPS = 600, N_TOKENS_MAX = 300, STEP_TOKENS = 64 };

/* What every rank writes down. */
typedef struct storm_notes {
    uint64_t trace; /* of all that calls returned */
    uint32_t n_full, n_hits, n_aborts, n_lost, n_cuts;
} storm_notes;

typedef struct storm {
    rank_test *t;
    storm_notes *notes;
    uint64_t seed;
    uint32_t n_draws;
    uint32_t n_prompt_max; /* lossy codecs, eviction: of the drawn lengths of prompts */
} storm;

/* How a storm is drawn, and what for each rank: in ctx. */
typedef struct storm_plan {
    uint64_t seed;
    storm_notes notes[RANKS_MAX];
} storm_plan;

static uint32_t draw(storm *s, uint32_t n)
{
    return random_at(s->seed, 5, s->n_draws++).word[0] % n;
}

static void note(storm *s, uint64_t x)
{
    s->notes->trace = (s->notes->trace ^ x) * 0x9e3779b97f4a7c15u + (s->notes->trace >> 29);
}

/* Behind a hit, or a step that it was in: on all ranks, as whoever runs it would. */
static void close_lost(storm *s, fake_seq *seq)
{
    const bool is_lost = kv_seq_is_lost(seq->seq);
    note(s, is_lost);
    if (!is_lost) return;
    fake_seq_close(s->t->f, seq, true);
    s->notes->n_lost++;
}

static void open_one(storm *s, uint32_t i)
{
    const fake_ids ids = {.seed = draw(s, 20),
                          .shared_seed = 1000 + draw(s, 3),
                          .n_shared = draw(s, 60),
                          .n_prompt = s->n_prompt_max > 0 ? draw(s, s->n_prompt_max) : 0};
    fake_seq *seq = &s->t->seqs[i];
    *seq = fake_seq_open_salted(s->t->f, ids, draw(s, 4) == 0 ? "other" : "");
    const uint32_t n = 1 + draw(s, N_TOKENS_MAX / 2);
    const uint32_t n_taken = kv_seq_take_prefix(seq->seq, seq->tokens, n);
    ck_assert_uint_lt(n_taken, n);
    ck_assert_uint_eq(n_taken, kv_seq_length(seq->seq));
    s->notes->n_hits += n_taken > 0;
    note(s, n_taken);
    close_lost(s, seq);
}

static void note_bits(storm *s, const fake_seq *seq, uint32_t first, uint32_t end)
{
    const size_t n_out = s->t->f->n_out;
    for (size_t i = first * n_out; i < end * n_out; i++) {
        uint32_t bits;
        memcpy(&bits, &seq->out[i], sizeof bits);
        note(s, bits);
    }
}

/* Rows of the next step; returns how many. */
static uint32_t draw_rows(storm *s, fake_seq *rows[RANK_SEQS], uint32_t n_tokens[RANK_SEQS])
{
    uint32_t n_rows = 0, left = STEP_TOKENS;
    for (uint32_t i = 0; i < RANK_SEQS && left > 0; i++) {
        fake_seq *seq = &s->t->seqs[i];
        if (seq->seq == NULL || draw(s, 3) == 0) continue;
        const uint32_t room = N_TOKENS_MAX - kv_seq_length(seq->seq);
        uint32_t n = draw(s, 2) == 0 ? 1 : 1 + draw(s, 40);
        n = (uint32_t)min_size(n, min_size(room, left));
        n = (uint32_t)min_size(n, kv_seq_step_tokens_max(seq->seq));
        if (n == 0) continue;
        rows[n_rows] = seq;
        n_tokens[n_rows++] = n;
        left -= n;
    }
    return n_rows;
}

static void step_some(storm *s)
{
    fake_seq *rows[RANK_SEQS];
    uint32_t n_tokens[RANK_SEQS], before[RANK_SEQS];
    const uint32_t n_rows = draw_rows(s, rows, n_tokens);
    if (n_rows == 0) return;
    for (uint32_t r = 0; r < n_rows; r++)
        before[r] = kv_seq_length(rows[r]->seq);
    const err_t err = fake_step(s->t->f, rows, n_tokens, n_rows);
    note(s, err);
    for (uint32_t r = 0; r < n_rows; r++) {
        const uint32_t end = kv_seq_length(rows[r]->seq);
        ck_assert_uint_eq(end, err == ERR_OK ? before[r] + n_tokens[r] : before[r]);
        if (!kv_seq_is_lost(rows[r]->seq)) note_bits(s, rows[r], before[r], end);
    }
    if (err != ERR_OK) ck_assert_int_eq(err, ERR_KV_FULL);
    s->notes->n_full += err != ERR_OK;
    const uint32_t r = draw(s, n_rows), end = before[r] + n_tokens[r];
    const bool is_checked = draw(s, 4) == 0 && s->t->rank == 0; /* it takes most of the time */
    if (err == ERR_OK && is_checked && kv_cache_methods(s->t->f->cache)->is_exact &&
        !kv_seq_is_lost(rows[r]->seq))
        ck_assert_double_le(fake_error(s->t->f, rows[r], end - 1, end), 1);
    for (uint32_t i = 0; i < n_rows && err == ERR_OK; i++)
        close_lost(s, rows[i]);
}

static void abort_step(storm *s, fake_seq *seq)
{
    const uint32_t length = kv_seq_length(seq->seq);
    const uint32_t n = 1 + draw(s, 50), most = kv_seq_step_tokens_max(seq->seq);
    const kv_row row = {.seq = seq->seq, .n_tokens = n < most ? n : most};
    if (length + row.n_tokens > N_TOKENS_MAX) return;
    if (kv_step_begin(s->t->f->cache, &row, 1) != ERR_OK) return;
    kv_step_abort(s->t->f->cache);
    ck_assert_uint_eq(kv_seq_length(seq->seq), length);
    s->notes->n_aborts++;
}

static void cut(storm *s, fake_seq *seq)
{
    const uint32_t length = kv_seq_length(seq->seq);
    const uint32_t n = draw(s, 2) == 0 ? draw(s, length + 1) : length - draw(s, length / 16 + 1);
    const uint32_t n_kept = kv_seq_truncate(seq->seq, n);
    ck_assert(n_kept == n || n_kept == 0);
    ck_assert_uint_eq(kv_seq_length(seq->seq), n_kept);
    s->notes->n_cuts += n_kept > 0 && n_kept < length;
    note(s, n_kept);
    if (draw(s, 2) == 0) return;
    for (uint32_t p = n_kept; p < N_TOKENS_MAX; p++)
        seq->tokens[p] = draw(s, 50000); /* it goes on differently */
}

static void one_operation(storm *s)
{
    const uint32_t i = draw(s, RANK_SEQS);
    fake_seq *seq = &s->t->seqs[i];
    const uint32_t what = draw(s, 100);
    if (seq->seq == NULL) {
        open_one(s, i);
    } else if (what < 60) {
        step_some(s);
    } else if (what < 70) {
        kv_seq_share_prompt(seq->seq, seq->tokens, kv_seq_length(seq->seq));
    } else if (what < 78) {
        cut(s, seq);
    } else if (what < 84) {
        abort_step(s, seq);
    } else if (what < 85) {
        kv_cache_drop_prefixes(s->t->f->cache);
    } else {
        fake_seq_close(s->t->f, seq, draw(s, 4) != 0);
    }
    fake_check(s->t->f);
}

static void check_empty(const storm *s, const kv_stats *empty)
{
    const kv_stats end = fake_stats(s->t->f);
    ck_assert_uint_eq(end.host_bytes + end.host_pages + end.disk_bytes + end.disk_pages, 0);
    ck_assert_uint_eq(end.slab_bytes, 0);
    ck_assert_uint_eq(end.pages_used + end.pages_cached, 0);
    ck_assert_uint_eq(end.pages_free, empty->pages_free);
    ck_assert_uint_eq(end.slots_live, 0);
    ck_assert_uint_eq(end.prefix_objects, 0);
}

/* By which owners follow from experts: if ranks counted differently, an entry would soon have two, or none. */
static void note_expert_map(storm *s)
{
    const kv_expert_map *map = &s->t->f->cache->experts;
    for (uint32_t l = 0; l < map->n_layers; l++) {
        note(s, map->n_since[l]);
        for (size_t i = 0; i < map->n_experts; i++) {
            note(s, map->shard[l * map->n_experts + i]);
            note(s, (uint64_t)(1024 * map->load[l * map->n_experts + i]));
        }
    }
}

static void run_storm(rank_test *t)
{
    storm_plan *plan = (storm_plan *)(uintptr_t)t->ctx;
    const kv_methods *methods = kv_cache_methods(t->f->cache);
    storm s = {.t = t,
               .notes = &plan->notes[t->rank],
               .seed = plan->seed,
               .n_prompt_max = methods->is_exact ? 0 : 200};
    if (!methods->is_exact) t->f->cache->section_tokens = 64;
    const kv_stats empty = fake_stats(t->f);
    for (uint32_t op = 0; op < N_OPS; op++)
        one_operation(&s);
    note_expert_map(&s);
    for (uint32_t i = 0; i < RANK_SEQS; i++) {
        if (t->seqs[i].seq != NULL) fake_seq_close(t->f, &t->seqs[i], i % 2 == 0);
    }
    kv_cache_drop_prefixes(t->f->cache);
    check_empty(&s, &empty);
}

/* Rank 1 has the least memory, and the others not quite the same either. */
static void make_unlike(rank_test *t)
{
    static const uint32_t more[] = {2, 0, 3, 1};
    t->options.config.memory_bytes += more[t->rank % 4] * KV_SLAB_BYTES;
}

/* Settings in memory_bytes: slabs of the smallest pool. */
static storm_notes storm_of(uint64_t seed, uint32_t n_ranks, fake_options options)
{
    rank_test ranks[RANKS_MAX];
    storm_plan plan = {.seed = seed};
    options.isa = "auto";
    options.limits = (kv_limits){RANK_SEQS, STEP_TOKENS, N_TOKENS_MAX};
    options.config.memory_bytes *= KV_SLAB_BYTES;
    run_group(ranks, &(rank_run){n_ranks, options, run_storm, make_unlike, &plan});
    for (uint32_t r = 1; r < n_ranks; r++)
        ck_assert_mem_eq(&plan.notes[0], &plan.notes[r], sizeof plan.notes[0]);
    close_ranks(ranks, n_ranks);
    return plan.notes[0];
}

/* ---- storms --------------------------------------------------------------------------------------- */

/* Wide enough for a part of it to fill a slab. */
static const kv_layer_shape WIDE = {
    .n_heads = 4, .n_kv_heads = 4, .k_dim = 16, .v_dim = 16, .scale = 0.2f, .has_router = true};

static fake_options storm_options(const char *placement, const kv_layer_shape layers[2],
                                  kv_config config)
{
    fake_options options = rank_options(placement, 8, layers, 2, config);
    options.config.memory_bytes = 2;
    return options;
}

static void add_notes(storm_notes *to, const storm_notes *from)
{
    to->n_full += from->n_full;
    to->n_hits += from->n_hits;
    to->n_aborts += from->n_aborts;
    to->n_lost += from->n_lost;
    to->n_cuts += from->n_cuts;
}

START_TEST(a_storm_over_ranks_is_the_same_on_all)
{
    static const uint32_t n_ranks[] = {1, 2, 3, 4, 8};
    static const char *const placements[] = {"block", "expert", "hash"};
    for (uint32_t p = 0; p < 3; p++) {
        storm_notes all = {0};
        for (uint32_t i = 0; i < 5; i++) {
            const kv_layer_shape layers[2] = {WIDE, fake_layers[2]};
            const storm_notes notes = storm_of(
                10 * p + i, n_ranks[i], storm_options(placements[p], layers, fake_defaults()));
            add_notes(&all, &notes);
        }
        ck_assert_uint_gt(all.n_hits, 100);
        ck_assert_uint_gt(all.n_full, 50);
        ck_assert_uint_gt(all.n_aborts, 50);
        ck_assert_uint_gt(all.n_cuts, 10);
    }
}
END_TEST

START_TEST(a_storm_over_ranks_and_windows_is_the_same_on_all)
{
    static const char *const placements[] = {"block", "expert", "hash"};
    for (uint32_t p = 0; p < 3; p++) {
        kv_layer_shape layers[2] = {WIDE, fake_layers[1]};
        layers[0].window = 90;
        layers[1].window = 40;
        layers[1].has_router = true;
        const storm_notes notes =
            storm_of(40 + p, 3, storm_options(placements[p], layers, fake_defaults()));
        ck_assert_uint_gt(notes.n_hits, 5);
    }
}
END_TEST

/* Codecs, routing, policies and rewritings, which own pages that prefixes share; prefixes of all these. */
START_TEST(a_storm_of_lossy_settings_over_ranks_is_the_same_on_all)
{
    static const struct {
        const char *codec, *policy, *rewrite, *placement;
        uint32_t memory_bytes; /* slabs */
    } setups[] = {{"int8", "none", "none", "expert", 4},
                  {"pikv", "none", "none", "block", 7},
                  {"none", "knorm+adakv", "none", "hash", 4},
                  {"int4", "streaming_llm", "rerotate", "expert", 4},
                  {"lora", "none", "none", "expert", 4},
                  {"svd", "none", "none", "block", 6},
                  {"svd", "h2o+adakv", "merge", "expert", 6},
                  {"none", "distill+simlayer", "none", "block", 4},
                  {"int8", "non_causal", "none", "hash", 4},
                  {"none", "tova", "merge,rerotate", "expert", 4},
                  {"none", "paper_duo_attention", "rerotate", "hash", 4},
                  {"int4", "lru_plus", "none", "block", 4},
                  {"none", "kvzip_plus", "merge", "expert", 4}};
    storm_notes all = {0};
    for (uint32_t i = 0; i < sizeof setups / sizeof setups[0]; i++) {
        kv_layer_shape layers[2] = {fake_coded_layers[0], fake_coded_layers[1]};
        layers[1].window = i % 2 == 0 ? 0 : 120;
        layers[0].rope = layers[1].rope = &fake_rope;
        fake_options options = storm_options(setups[i].placement, fake_projecting(layers, 2),
                                             fake_coded(setups[i].codec));
        options.config.scheduling = (char *)(uintptr_t)setups[i].policy;
        options.config.rewrite = (char *)(uintptr_t)setups[i].rewrite;
        options.config.budget = 0.5;
        options.config.lazy_threshold = 0.7;
        options.config.routing = (char *)(uintptr_t)(i % 2 == 0 ? "hierarchical" : "certified");
        options.config.routing_k = 0.5;
        options.config.routing_eps = 0.1;
        options.config.memory_bytes = setups[i].memory_bytes;
        const storm_notes notes = storm_of(50 + i, 2 + i % 2, options);
        add_notes(&all, &notes);
    }
    ck_assert_uint_gt(all.n_hits, 60);
    ck_assert_uint_gt(all.n_full, 20);
}
END_TEST

/* Every rank has a file of its own. Bits come back wrong now and then: what one rank has lost all compute again. */
START_TEST(a_storm_over_ranks_and_tiers_is_the_same_on_all)
{
    static const char *const placements[] = {"block", "expert", "hash", "expert"};
    storm_notes all = {0};
    for (uint32_t i = 0; i < 4; i++) {
        const kv_layer_shape layers[2] = {WIDE, fake_layers[2]};
        fake_options options = storm_options(placements[i], layers, fake_defaults());
        options.config.host_bytes = (i % 2) * KV_SLAB_BYTES;
        options.config.disk_bytes = 3 * KV_SLAB_BYTES;
        options.config.disk_path = (char *)(uintptr_t) "/tmp";
        bad_disk_mend();
        the_disk.flips_every = i < 2 ? 997 : 0;
        const long n_reads = the_disk.n_reads;
        const storm_notes notes = storm_of(60 + i, 2 + i % 2, options);
        ck_assert_int_gt(the_disk.n_reads - n_reads, 100);
        ck_assert_int_eq(notes.n_lost > 0, the_disk.flips_every > 0);
        add_notes(&all, &notes);
    }
    ck_assert_uint_gt(all.n_hits, 50);
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE_SECONDS(a_storm_over_ranks_is_the_same_on_all, 600),
    TEST_CASE_SECONDS(a_storm_over_ranks_and_windows_is_the_same_on_all, 600),
    TEST_CASE_SECONDS(a_storm_of_lossy_settings_over_ranks_is_the_same_on_all, 600),
    TEST_CASE_SECONDS(a_storm_over_ranks_and_tiers_is_the_same_on_all, 600), TEST_CASES_END};
