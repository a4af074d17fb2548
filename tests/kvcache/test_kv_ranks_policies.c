/* tests/kvcache/test_kv_ranks_policies.c - every scorer, as scheduling and as a selection, under allocators, codecs
 * and rewritings, over several ranks: never above the budget of all together, the same bits on all and in every run,
 * nothing left behind; and where nothing goes, what one rank returns. On one rank: tests/conformance. */
#include "kvcache/evict.h"
#include "kvcache/kv_replay.h"
#include "kvcache/ranks.h"
#include "tests/kvcache/rank_group.h"
#include "tests/test_main.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* TOKENS: when a block has just left the ring, so that something is due. */
enum { PROMPT = 110, TOKENS = 148, SECTION = 48, LOCAL = 36, CHUNK = 64, LEAD = 3, SHARDS = 8 };

static const char *const suffixes[] = {"",      "+adakv",         "+pyramid",  "+uniform",
                                       "+deep", "+duo_attention", "+simlayer", "+pyramid+adakv"};
static const char *const codecs[] = {"none", "int8", "svd", "think", "none", "pikv"};
static const char *const rewrites[] = {"none", "merge", "none", "merge", "merge"};
static const char *const placements[] = {"block", "expert", "hash"};
static const double budgets[] = {0.5, 0.3, 60};
enum { N_SUFFIXES = 8, N_CODECS = 6, N_REWRITES = 5 };

/* What a rank writes down when the sequence has been settled: entries in its pages, by layer. */
typedef struct notes {
    uint64_t live[2];
    double lazy[2];
    bool has_lazy;
    uint32_t length;
} notes;

/* What chooses; either may be "none". */
typedef struct method {
    const char *scheduling, *selection;
} method;

typedef struct plan {
    bool is_fed; /* prompts are read again where methods ask for it */
    notes at_prompt[RANKS_MAX], at_end[RANKS_MAX];
} plan;

/* ---- a run ---------------------------------------------------------------------------------------- */

static void settle(rank_test *t, notes *out)
{
    const kv_seq *seq = t->seqs[0].seq;
    ck_assert_int_eq(kv_seq_settle(t->seqs[0].seq), ERR_OK);
    fake_check(t->f);
    *out = (notes){.length = kv_seq_length(seq), .has_lazy = seq->observed.lazy != NULL};
    for (uint32_t l = 0; l < 2; l++) {
        const uint32_t n_lists = t->f->cache->n_kv_heads[l] * t->f->cache->n_shards;
        if (out->has_lazy) out->lazy[l] = seq->observed.lazy[l];
        for (uint32_t i = 0; i < n_lists; i++)
            out->live[l] += seq->table.n_live[kv_list(t->f->cache, l, 0, 0) + i];
    }
}

/* Chunk by chunk, 13 tokens at a time. */
static void read_again(rank_test *t, fake_seq *s)
{
    kv_replay_chunk chunk;
    uint32_t behind[CHUNK + LEAD];
    memcpy(behind, s->tokens + PROMPT, sizeof behind);
    while (kv_seq_wants_replay(s->seq, &chunk)) {
        const uint32_t n = LEAD + chunk.end - chunk.first;
        for (uint32_t i = 0; i < n; i++)
            s->tokens[PROMPT + i] = i < LEAD ? 7000 + i : s->tokens[chunk.first + i - LEAD];
        s->is_replay = true;
        for (uint32_t i = 0; i < n; i += 13)
            ck_assert_int_eq(fake_step(t->f, &s, &(uint32_t){(uint32_t)min_size(13, n - i)}, 1),
                             ERR_OK);
        s->is_replay = false;
        ck_assert_uint_eq(kv_seq_end_replay(s->seq), PROMPT);
        fake_check(t->f);
    }
    memcpy(s->tokens + PROMPT, behind, sizeof behind);
}

static void run_policy(rank_test *t)
{
    plan *p = (plan *)(uintptr_t)t->ctx;
    fake_seq *const s = &t->seqs[0], *const other = &t->seqs[1], *const both[] = {s, other};
    t->f->cache->section_tokens = SECTION;
    t->f->cache->local_tokens = LOCAL;
    t->f->cache->replay_tokens = CHUNK;
    for (uint32_t i = 0; i < 2; i++) {
        t->seqs[i] = fake_seq_open(t->f, (fake_ids){.seed = 3 + i, .n_prompt = PROMPT});
        t->seqs[i].n_prompt = PROMPT;
    }
    fake_run(t->f, s, PROMPT, 31);
    if (p->is_fed) read_again(t, s);
    settle(t, &p->at_prompt[t->rank]);
    fake_run(t->f, other, PROMPT, 64);
    for (uint32_t i = PROMPT; i < TOKENS; i++)
        ck_assert_int_eq(fake_step(t->f, both, (const uint32_t[]){1, 1}, 2), ERR_OK);
    settle(t, &p->at_end[t->rank]);
    fake_seq_close(t->f, other, false);
}

static fake_options options_of(const method *m, const char *codec, const char *placement,
                               char text[KV_COMPRESSION_BYTES])
{
    kv_layer_shape layers[2] = {fake_coded_layers[0], fake_coded_layers[1]};
    layers[0].rope = layers[1].rope = &fake_rope;
    fake_options options =
        rank_options(placement, SHARDS, fake_projecting(layers, 2), 2, fake_coded(codec));
    if (strcmp(m->selection, "none") != 0)
        snprintf(text, KV_COMPRESSION_BYTES, "%s,%s", m->selection, codec);
    else
        snprintf(text, KV_COMPRESSION_BYTES, "%s", codec);
    options.isa = "auto";
    options.no_prefix_caching = true;
    options.config.compression = text;
    options.config.scheduling = (char *)(uintptr_t)m->scheduling;
    options.config.lazy_threshold = 0.6;
    return options;
}

static void run_plan(rank_test *ranks, uint32_t n, const fake_options *options, plan *p)
{
    run_group(ranks, &(rank_run){.n = n, .options = *options, .body = run_policy, .ctx = p});
}

/* Calls `check` for every scorer, as scheduling and as a selection, by itself and under one allocator. */
static void for_each_policy(void (*check)(const method *m, uint32_t i))
{
    uint32_t i = 0;
    for (size_t s = 0; kv_scorers[s] != NULL; s++) {
        for (size_t a = 0; a < 2; a++) {
            char name[128];
            kv_policy policy;
            snprintf(name, sizeof name, "%s%s", kv_scorers[s]->name,
                     suffixes[a == 0 ? 0 : 1 + s % (N_SUFFIXES - 1)]);
            if (kv_policy_parse(name, 0.5, &policy, NULL) != ERR_OK) continue;
            check(&(method){name, "none"}, i++);
            check(&(method){"none", name}, i++);
        }
        check(&(method){"h2o", kv_scorers[s]->name}, i++);
    }
    ck_assert_uint_gt(i, 100);
}

/* ---- budgets -------------------------------------------------------------------------------------- */

/* Sinks and newest entries that the layer shows. */
static uint32_t n_protected(const fake *f, uint32_t l, uint32_t length)
{
    const uint32_t window = f->layers[l].window, n_sinks = f->cache->sink_tokens;
    const uint32_t oldest = window != 0 && length >= window ? length - window + 1 : 0;
    const uint32_t recent = kv_blocks_left(f->cache, length) * f->cache->page_tokens;
    return (n_sinks > oldest ? n_sinks - oldest : 0) + length - (recent > oldest ? recent : oldest);
}

/* All ranks together. */
static void check_budget(const rank_test *ranks, uint32_t n, const notes *at,
                         const kv_policy *policy)
{
    const fake *f = ranks[0].f;
    const kv_cache *cache = f->cache;
    const uint32_t length = at[0].length;
    for (uint32_t l = 0; l < 2; l++) {
        uint64_t live = 0;
        const uint32_t left = kv_blocks_left(cache, length) * cache->page_tokens;
        const kv_layer_share_args args = {.layer = l,
                                          .n_layers = 2,
                                          .n = length,
                                          .n_window = length - left,
                                          .n_sinks = cache->sink_tokens,
                                          .n_keep = kv_policy_n_keep(policy, length),
                                          .lazy = at[0].lazy,
                                          .lazy_threshold = policy->lazy_threshold};
        const uint32_t always = n_protected(f, l, length);
        uint32_t share = args.n_keep;
        if (kv_policy_by_laziness(policy) && !at[0].has_lazy) continue; /* forgotten */
        if (policy->layers != NULL) share = policy->layers->layer_share(&args);
        for (uint32_t r = 0; r < n; r++) {
            live += at[r].live[l];
            ck_assert_double_eq(at[r].lazy[l], at[0].lazy[l]);
        }
        const uint32_t most = share > always ? share - always : 0;
        const kv_methods *methods = kv_cache_methods(cache);
        ck_assert_msg(live <= (uint64_t)cache->n_kv_heads[l] * most,
                      "%s, %s, %s: %llu entries in layer %u", methods->policy.name,
                      methods->selection.name, methods->codec->name, (unsigned long long)live, l);
    }
}

/* What chose last, at either end. */
static void check_notes(const rank_test *ranks, uint32_t n, const plan *p)
{
    const kv_methods *methods = kv_cache_methods(ranks[0].f->cache);
    check_budget(ranks, n, p->at_prompt, kv_methods_of_prompt(methods));
    if (methods->policy.evicts) check_budget(ranks, n, p->at_end, &methods->policy);
}

static void check_same(const rank_test *ranks, const rank_test *others, uint32_t n)
{
    for (uint32_t r = 0; r < n; r++)
        ck_assert(fake_same(ranks[0].f, &ranks[0].seqs[0], &others[r].seqs[0], 0, TOKENS));
    for (size_t i = 0; i < TOKENS * ranks[0].f->n_out; i++)
        ck_assert_float_finite(ranks[0].seqs[0].out[i]);
}

static void check_left(rank_test *ranks, uint32_t n)
{
    for (uint32_t r = 0; r < n; r++)
        ck_assert_uint_gt(fake_stats(ranks[r].f).entries_evicted, 0);
    close_ranks(ranks, n);
}

/* Closed by its rank, behind which nothing may be left. */
static void run_to_the_end(rank_test *t)
{
    run_policy(t);
    const fake_seq s = t->seqs[0];
    kv_seq_close(s.seq, NULL);
    const kv_stats stats = fake_stats(t->f);
    ck_assert_uint_eq(stats.slab_bytes + stats.slots_live + stats.observed_bytes, 0);
    t->seqs[0].seq = NULL;
    fake_seq_free(&t->seqs[0]);
}

static fake_options pick_options(const method *m, uint32_t i, char text[KV_COMPRESSION_BYTES])
{
    const bool is_fitted =
        strstr(m->scheduling, "distill") != NULL || strstr(m->selection, "distill") != NULL;
    fake_options options = options_of(m, codecs[(i / 2) % N_CODECS], placements[i % 3], text);
    options.config.budget = is_fitted ? 0.7 : budgets[i / 3 % 3];
    if (!is_fitted) options.config.rewrite = (char *)(uintptr_t)rewrites[i % N_REWRITES];
    return options;
}

static void check_policy(const method *m, uint32_t i)
{
    char text[KV_COMPRESSION_BYTES];
    const fake_options options = pick_options(m, i, text);
    const uint32_t n = 2 + i / 2 % 2;
    plan p = {.is_fed = i % 4 < 2};
    rank_test ranks[RANKS_MAX];
    run_plan(ranks, n, &options, &p);
    check_same(ranks, ranks, n);
    check_notes(ranks, n, &p);
    if (i % 7 == 0) { /* once more, for the bits */
        plan again = p;
        rank_test others[RANKS_MAX];
        run_plan(others, n, &options, &again);
        check_same(ranks, others, n);
        check_left(others, n);
    }
    check_left(ranks, n);
    run_group(ranks, &(rank_run){.n = n, .options = options, .body = run_to_the_end, .ctx = &p});
    close_ranks(ranks, n);
}

START_TEST(no_policy_over_ranks_exceeds_its_budget_or_leaves_a_page_behind)
{
    for_each_policy(check_policy);
}
END_TEST

/* ---- where nothing goes --------------------------------------------------------------------------- */

/* More than everything: read, noted and scored, but kept. */
static void check_whole(const method *m, uint32_t i)
{
    char text[KV_COMPRESSION_BYTES];
    fake_options options = options_of(m, "none", placements[i % 3], text);
    plan p = {.is_fed = true};
    rank_test ranks[3];
    options.config.budget = 4000;
    run_plan(ranks, 3, &options, &p);
    for (int r = 0; r < 3; r++)
        ck_assert_uint_eq(fake_stats(ranks[r].f).entries_evicted, 0);
    ck_assert_double_le(fake_error(ranks[1].f, &ranks[1].seqs[0], 0, TOKENS), 1);
    close_ranks(ranks, 3);
}

START_TEST(a_budget_for_everything_over_ranks_keeps_everything)
{
    for_each_policy(check_whole);
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE_SECONDS(no_policy_over_ranks_exceeds_its_budget_or_leaves_a_page_behind, 600),
    TEST_CASE_SECONDS(a_budget_for_everything_over_ranks_keeps_everything, 600), TEST_CASES_END};
