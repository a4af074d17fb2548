/* tests/kvcache/test_kv_ranks_policies.c - every scorer, as scheduling and as a selection, under allocators, codecs
 * and rewritings, over several ranks: never above the budget of all together, the same bits on all and in every run,
 * nothing left behind; and where nothing goes, what one rank returns. On one rank: tests/conformance. */
#include "kvcache/evict.h"
#include "kvcache/kv_replay.h"
#include "kvcache/observed.h"
#include "kvcache/ranks.h"
#include "kvcache/score_view.h"
#include "tests/kvcache/rank_group.h"
#include "tests/test_main.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* TOKENS: when a block has just left the ring, so that something is due. */
enum { PROMPT = 110, TOKENS = 148, SECTION = 48, LOCAL = 36, CHUNK = 64, LEAD = 3, SHARDS = 8 };

static const char *const suffixes[] = {"",      "+adakv",         "+pyramid",  "+uniform",
                                       "+deep", "+duo_attention", "+simlayer", "+pyramid+adakv"};
static const char *const codecs[] = {"none", "int8", "svd", "think", "none", "pikv"};
static const char *const rewrites[] = {"none", "merge", "none", "rerotate", "merge,rerotate"};
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

/* ---- scores --------------------------------------------------------------------------------------- */

/* One layer, whose scores are those of the end. */
static void run_prompt(rank_test *t)
{
    plan *p = (plan *)(uintptr_t)t->ctx;
    t->f->cache->local_tokens = LOCAL;
    t->f->cache->replay_tokens = CHUNK;
    t->seqs[0] = fake_seq_open(t->f, (fake_ids){.seed = 3, .n_prompt = PROMPT});
    t->seqs[0].n_prompt = PROMPT;
    fake_run(t->f, &t->seqs[0], PROMPT, 31);
    if (p->is_fed) read_again(t, &t->seqs[0]);
    ck_assert_int_eq(kv_seq_choose(t->seqs[0].seq), ERR_OK);
}

typedef struct rank_setup {
    const char *scheduling, *rewrite, *placement;
    double budget;
} rank_setup;

static fake_options one_layer(const rank_setup *x, char text[KV_COMPRESSION_BYTES])
{
    const method m = {x->scheduling, "none"};
    fake_options options = options_of(&m, "none", x->placement, text);
    options.n_layers = 1;
    options.isa = "ref";
    options.config.budget = x->budget;
    options.config.rewrite = (char *)(uintptr_t)x->rewrite;
    options.config.sink_tokens = 4; /* which some scorers would keep in any case */
    return options;
}

static const kv_head_view *view_of(const rank_test *t, uint32_t head)
{
    return &t->f->cache->evict.heads[head];
}

static float score_at(const kv_head_view *view, uint32_t position)
{
    uint32_t i = 0;
    while (view->positions[i] != position)
        i++;
    return view->score[i];
}

/* Candidates have the scores that one rank gives them, before the queries that some go by. */
static void check_scores(const rank_test *alone, const rank_test *ranks, const char *name)
{
    const uint32_t end = PROMPT - kv_scorer_find(name)->n_queries;
    for (uint32_t h = 0; h < 2; h++) {
        const kv_head_view *whole = view_of(alone, h);
        uint32_t n = 0;
        float most = 0;
        for (uint32_t i = 0; i < whole->n_open && whole->positions[whole->first + i] < end; i++)
            most = fmaxf(most, fabsf(whole->score[whole->first + i]));
        for (uint32_t r = 0; r < 3; r++) {
            const kv_head_view *view = view_of(&ranks[r], h);
            n += view->n_open;
            for (uint32_t i = view->first; i < view->first + view->n_open; i++) {
                const float want = score_at(whole, view->positions[i]);
                if (view->positions[i] >= end) continue;
                ck_assert_msg(fabsf(view->score[i] - want) <= 1e-4f * most,
                              "%s at %u: %g is not %g", name, view->positions[i],
                              (double)view->score[i], (double)want);
            }
        }
        ck_assert_uint_eq(n, whole->n_open);
    }
}

/* Those that look at one entry at a time, and at what normalises it. */
START_TEST(an_entry_has_the_score_over_ranks_that_it_has_on_one)
{
    static const char *const names[] = {"distill",
                                        "tova",
                                        "expected_attention",
                                        "knorm",
                                        "h2o",
                                        "observed_attention",
                                        "fastv",
                                        "kvzip",
                                        "kvzip_plus",
                                        "lru",
                                        "paper_duo_attention",
                                        "streaming_llm"};
    for (uint32_t i = 0; i < 3 * (sizeof names / sizeof names[0]); i++) {
        char text[KV_COMPRESSION_BYTES];
        const rank_setup x = {names[i / 3], "none", placements[i % 3], 0.5};
        const fake_options options = one_layer(&x, text);
        const bool is_by_page = strcmp(x.scheduling, "lru") == 0;
        plan p = {.is_fed = true};
        rank_test alone, ranks[3];
        if (is_by_page && i % 3 != 0) continue; /* other pages */
        run_group(&alone, &(rank_run){.n = 1, .options = options, .body = run_prompt, .ctx = &p});
        run_group(ranks, &(rank_run){.n = 3, .options = options, .body = run_prompt, .ctx = &p});
        check_scores(&alone, ranks, x.scheduling);
        close_ranks(&alone, 1);
        close_ranks(ranks, 3);
    }
}
END_TEST

/* ---- what is noted while a sequence runs ---------------------------------------------------------- */

static void run_noted(rank_test *t)
{
    t->f->cache->local_tokens = LOCAL;
    t->seqs[0] = fake_seq_open(t->f, (fake_ids){.seed = 3, .n_prompt = PROMPT});
    t->seqs[0].n_prompt = PROMPT;
    fake_run(t->f, &t->seqs[0], PROMPT, 31);
    fake_run(t->f, &t->seqs[0], TOKENS, 1);
}

static const float *noted(const rank_test *t, uint32_t head)
{
    const kv_seq *seq = t->seqs[0].seq;
    const bool is_local = (seq->observed.needs & KV_SCORE_LOCAL) != 0;
    return is_local ? kv_observed_local(seq, 0, head) : kv_observed_mass(seq, 0, head);
}

/* Of an entry its rank knows what it got, of recent ones all do. */
static void check_noted(const rank_test *alone, const rank_test *ranks, const char *name)
{
    uint32_t n = 0;
    for (uint32_t h = 0; h < 2; h++) {
        const float *want = noted(alone, h);
        for (uint32_t r = 0; r < 3; r++) {
            kv_head_view *view = &ranks[r].f->cache->evict.heads[h];
            const float *got = noted(&ranks[r], h);
            kv_view_list(ranks[r].seqs[0].seq, 0, h, view);
            n += view->n_open;
            for (uint32_t i = 0; i < view->n; i++) {
                const uint32_t p = view->positions[i];
                ck_assert_msg(fabsf(got[p] - want[p]) <= 1e-4f * fabsf(want[p]) + 1e-7f,
                              "%s at %u: %g is not %g", name, p, (double)got[p], (double)want[p]);
            }
        }
    }
    ck_assert_uint_gt(n, 200);
}

/* Also where decode queries choose pages, and it is only known of all ranks' parts what normalises them: here the
 * choice is of all pages. */
START_TEST(what_entries_get_over_ranks_is_what_they_get_on_one)
{
    static const char *const routings[] = {"full", "adaptive"};
    static const char *const names[] = {"h2o", "non_causal"};
    for (uint32_t i = 0; i < 12; i++) {
        char text[KV_COMPRESSION_BYTES];
        const rank_setup x = {names[i / 6], "none", placements[i % 3], 4000};
        fake_options options = one_layer(&x, text);
        rank_test alone, ranks[3];
        run_group(&alone, &(rank_run){.n = 1, .options = options, .body = run_noted});
        options.config.routing = (char *)(uintptr_t)routings[i / 3 % 2];
        options.config.routing_tau = 1 - 1e-15;
        run_group(ranks, &(rank_run){.n = 3, .options = options, .body = run_noted});
        check_noted(&alone, ranks, x.scheduling);
        for (uint32_t r = 0; r < 3; r++) {
            const kv_stats stats = fake_stats(ranks[r].f);
            ck_assert_uint_eq(stats.pages_read, stats.pages_open); /* each counted once */
            ck_assert_uint_gt(stats.pages_read, 0);
        }
        uint64_t n_read = 0;
        for (uint32_t r = 0; r < 3; r++)
            n_read += fake_stats(ranks[r].f).pages_read;
        if (i % 3 == 0) ck_assert_uint_eq(n_read, fake_stats(alone.f).pages_read);
        close_ranks(&alone, 1);
        close_ranks(ranks, 3);
    }
}
END_TEST

/* ---- scores, continued ---------------------------------------------------------------------------- */

/* Scores that layers go by together, in which an entry lies on other ranks: the second is placed by blocks. */
START_TEST(scores_of_layers_add_up_over_ranks)
{
    static const char *const names[] = {"fastv", "paper_duo_attention"};
    for (uint32_t i = 0; i < 6; i++) {
        char text[KV_COMPRESSION_BYTES];
        const rank_setup x = {names[i / 3], "none", placements[i % 3], 0.5};
        fake_options options = one_layer(&x, text);
        plan p = {0};
        rank_test alone, ranks[3];
        options.n_layers = 2;
        run_group(&alone, &(rank_run){.n = 1, .options = options, .body = run_prompt, .ctx = &p});
        run_group(ranks, &(rank_run){.n = 3, .options = options, .body = run_prompt, .ctx = &p});
        const double *want = alone.f->cache->evict.shared;
        for (uint32_t position = 4; position < PROMPT - 1; position++) {
            /* Where nothing is placed by itself, a rank needs to know its own. */
            const uint32_t owner = position / 8 % SHARDS % 3;
            for (uint32_t r = 0; r < 3; r++) {
                const double score = ranks[r].f->cache->evict.shared[position];
                if (i % 3 == 0 && r != owner) continue;
                if (i % 3 == 0 && position >= 96) continue; /* in the ring */
                ck_assert_double_le(fabs(score - want[position]), 1e-4 * want[position]);
            }
        }
        close_ranks(&alone, 1);
        close_ranks(ranks, 3);
    }
}
END_TEST

static bool is_kept(const kv_head_view *view, uint32_t position)
{
    for (uint32_t i = 0; i < view->n_kept; i++) {
        if (view->positions[view->first + view->kept[i]] == position) return true;
    }
    return false;
}

/* Of what one rank keeps, the share that three keep, too. */
static double overlap(const rank_test *alone, const rank_test *ranks)
{
    uint32_t n = 0, n_both = 0;
    for (uint32_t h = 0; h < 2; h++) {
        const kv_head_view *whole = view_of(alone, h);
        for (uint32_t i = 0; i < whole->n_kept; i++) {
            const uint32_t position = whole->positions[whole->first + whole->kept[i]];
            n++;
            for (uint32_t r = 0; r < 3; r++)
                n_both += is_kept(view_of(&ranks[r], h), position);
        }
    }
    ck_assert_uint_gt(n, 20);
    return (double)n_both / n;
}

/* Neighbours, means and products are of what a rank has: of others, but much the same. */
START_TEST(ranks_keep_about_what_one_keeps)
{
    static const struct {
        const char *name;
        double least;
    } scorers[] = {{"snapkv", 0.75},  {"criticalkv", 0.8}, {"finch", 0.75},
                   {"h2o", 0.7},      {"keydiff", 0.6},    {"cap", 0.8},
                   {"dropkv", 0.75},  {"non_causal", 0.6}, {"kvzip", 0.8},
                   {"distill", 0.75}, {"cur", 0.75},       {"expected_attention", 0.8}};
    for (uint32_t i = 0; i < 2 * (sizeof scorers / sizeof scorers[0]); i++) {
        char text[KV_COMPRESSION_BYTES];
        const rank_setup x = {scorers[i / 2].name, "none", placements[i % 2 * 2], 0.5};
        const fake_options options = one_layer(&x, text);
        plan p = {.is_fed = true};
        rank_test alone, ranks[3];
        run_group(&alone, &(rank_run){.n = 1, .options = options, .body = run_prompt, .ctx = &p});
        run_group(ranks, &(rank_run){.n = 3, .options = options, .body = run_prompt, .ctx = &p});
        const double share = overlap(&alone, ranks);
        ck_assert_msg(share >= scorers[i / 2].least, "%s, %s: %g", x.scheduling, x.placement,
                      share);
        close_ranks(&alone, 1);
        close_ranks(ranks, 3);
    }
}
END_TEST

/* ---- rewriting ------------------------------------------------------------------------------------ */

/* Up to where the next block leaves the ring, and something goes again. */
enum { REWRITTEN = 116 };

static void run_rewritten(rank_test *t)
{
    run_prompt(t);
    fake_run(t->f, &t->seqs[0], REWRITTEN, 1);
}

/* Of 96 candidates the newest 48 stay, which are six pages: on one rank, and on three, two of four on each. So keys must
 * stand where they do on one. */
START_TEST(keys_turn_past_what_goes_on_all_ranks)
{
    static const rank_setup setups[] = {{"streaming_llm", "none", "block", 62},
                                        {"streaming_llm", "rerotate", "block", 62}};
    double largest[2] = {0};
    rank_test alone[2];
    for (int i = 0; i < 2; i++) {
        char text[KV_COMPRESSION_BYTES];
        rank_test ranks[3];
        plan p = {0};
        fake_options options = one_layer(&setups[i], text);
        options.config.n_shards = 3;
        options.config.sink_tokens = 8;
        options.config.window_tokens = 6;
        run_group(&alone[i],
                  &(rank_run){.n = 1, .options = options, .body = run_rewritten, .ctx = &p});
        run_group(ranks, &(rank_run){.n = 3, .options = options, .body = run_rewritten, .ctx = &p});
        const size_t n_out = alone[i].f->n_out, first = PROMPT * n_out;
        for (size_t k = first; k < REWRITTEN * n_out; k++) {
            const float want = alone[i].seqs[0].out[k];
            ck_assert_float_eq_tol(ranks[1].seqs[0].out[k], want, 1e-5f);
            largest[i] = fmax(largest[i], fabs((double)(want - alone[0].seqs[0].out[k])));
        }
        close_ranks(ranks, 3);
    }
    ck_assert_double_gt(largest[1], 1e-3); /* it makes a difference */
    close_ranks(&alone[0], 1);
    close_ranks(&alone[1], 1);
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE_SECONDS(no_policy_over_ranks_exceeds_its_budget_or_leaves_a_page_behind, 600),
    TEST_CASE_SECONDS(a_budget_for_everything_over_ranks_keeps_everything, 600),
    TEST_CASE(an_entry_has_the_score_over_ranks_that_it_has_on_one),
    TEST_CASE(what_entries_get_over_ranks_is_what_they_get_on_one),
    TEST_CASE(scores_of_layers_add_up_over_ranks),
    TEST_CASE(ranks_keep_about_what_one_keeps),
    TEST_CASE(keys_turn_past_what_goes_on_all_ranks),
    TEST_CASES_END};
