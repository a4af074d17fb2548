/* tests/kvcache/test_kv_evict.c - which entries stay, against a slow reference that knows nothing of pages;
 * prefixes, full pools and cuts of sequences that evict. All policies: tests/conformance. */
#include "tests/kvcache/evict_oracle.h"
#include "tests/test_main.h"

#include "kvcache/evict.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PROMPT = 150, TOKENS = 230, SECTION = 64, LOCAL = 48 };

static const fake_ids IDS = {.seed = 3, .n_prompt = PROMPT};

static char *text(const char *name)
{
    return (char *)(uintptr_t)name;
}

/* Of all caches that are opened; every test has a process of its own. */
static struct shards {
    const char *placement;
    uint32_t n;
} shards = {"block", 1};

static fake_options options_of(const char *policy, double budget, const char *codec)
{
    fake_options options = {.layers = fake_projecting(fake_coded_layers, 2),
                            .n_layers = 2,
                            .config = fake_coded(codec)};
    options.config.scheduling = text(policy);
    options.config.budget = budget;
    options.config.placement = text(shards.placement);
    options.config.n_shards = shards.n;
    return options;
}

static fake *open_evicting(const fake_options *options)
{
    fake *f = fake_open(options);
    f->cache->section_tokens = SECTION;
    f->cache->local_tokens = LOCAL;
    return f;
}

/* A policy, or a selection, or both. */
typedef struct chooser {
    const char *policy, *selection;
    double budget, lazy_threshold;
} chooser;

static void follow(const chooser *c)
{
    char compression[64];
    fake_options options = options_of(c->policy, c->budget, "none");
    options.config.lazy_threshold = c->lazy_threshold;
    snprintf(compression, sizeof compression, "%s,none", c->selection != NULL ? c->selection : "");
    if (c->selection != NULL) options.config.compression = compression;
    fake *f = open_evicting(&options);
    fake_seq s = fake_seq_open(f, IDS);
    oracle *o = oracle_new(f, &s, PROMPT);
    s.n_prompt = PROMPT;
    while (kv_seq_length(s.seq) < TOKENS) {
        const uint32_t length = kv_seq_length(s.seq);
        oracle_settle(o, length);
        const uint32_t most = length < PROMPT ? 11 : 1, until = kv_seq_step_tokens_max(s.seq);
        fake_run(f, &s, length + (most < until ? most : until), 11);
        oracle_compare(o);
    }
    const fake_range all = {0, TOKENS};
    ck_assert_double_le(fake_error_of_kept(f, &s, &all, oracle_keeps, o), 1);
    ck_assert_double_gt(fake_error(f, &s, PROMPT + 1, TOKENS), 1); /* and something was missed */
    const kv_scorer *scorer = s.seq->methods.policy.scorer;
    if (c->budget < 1 && scorer != NULL && !scorer->by_page &&
        strcmp(scorer->name, "streaming_llm") != 0) /* which leaves no holes but one */
        ck_assert_msg(fake_stats(f).pages_compacted > 0, "%s %g", c->policy, c->budget);
    ck_assert_int_eq(o->n_lazy > 0, c->lazy_threshold > 0 && c->lazy_threshold < 1);
    free(o);
    fake_seq_close(f, &s, false);
    fake_close(f);
}

/* On any shards: budgets are a head's, over all of them. */
static void follow_all(void)
{
    static const char *const policies[] = {"streaming_llm", "random",
                                           "knorm",         "snapkv",
                                           "h2o",           "expected_attention",
                                           "keydiff",       "observed_attention",
                                           "tova",          "chunkkv",
                                           "fastv",         "paper_duo_attention",
                                           "finch",         "cap",
                                           "non_causal",    "kvzip",
                                           "kvzip_plus"};
    const bool has_whole_blocks = strcmp(shards.placement, "block") == 0;
    for (size_t i = 0; i < sizeof policies / sizeof *policies; i++) {
        const bool is_by_page = strcmp(policies[i], "chunkkv") == 0;
        if (is_by_page && !has_whole_blocks) continue; /* the reference's pages are blocks */
        follow(&(chooser){policies[i], NULL, 0.4, 0});
        follow(&(chooser){policies[i], NULL, 48, 0});
    }
}

START_TEST(what_stays_is_what_a_slow_reference_keeps)
{
    follow_all();
}
END_TEST

START_TEST(the_same_stays_on_any_shards)
{
    shards = (struct shards){"block", 3};
    follow_all();
    shards = (struct shards){"expert", 4};
    follow_all();
    shards.placement = "hash";
    follow(&(chooser){"h2o", NULL, 0.4, 0});
}
END_TEST

/* Of the prompt a part, of what is decoded everything; or what scheduling then leaves of both. */
START_TEST(a_selection_has_the_prompt_and_scheduling_what_comes_behind_it)
{
    static const chooser choosers[] = {
        {"none", "snapkv", 0.4, 0},
        {"none", "chunkkv", 0.4, 0},
        {"none", "pyramidkv", 0.5, 0},
        {"none", "fastv", 0.6, 0},
        {"none", "chunkkv", 60, 0},
        {"none", "knorm", 20, 0},
        {"none", "paper_duo_attention", 0.4, 0},
        {"h2o", "chunkkv", 0.4, 0},
        {"knorm", "snapkv", 60, 0},
        {"tova", "chunkkv", 0.4, 0},
        {"snapkv", "tova", 0.4, 0},
        {"fastv", "h2o", 0.5, 0},
    };
    for (size_t i = 0; i < sizeof choosers / sizeof *choosers; i++)
        follow(&choosers[i]);
}
END_TEST

/* Lazy layers keep sinks and ring alone, whatever the budget leaves; others are filled in their order. The
 * second layer here is above 0.32 at a length of 64, and stays so, having lost what it had. */
START_TEST(lazy_layers_keep_what_a_slow_reference_keeps)
{
    static const chooser choosers[] = {
        {"simlayerkv", NULL, 0.6, 1},        {"simlayerkv", NULL, 0.95, 0.32},
        {"knorm+simlayer", NULL, 0.5, 1},    {"none", "snapkv+simlayer", 0.6, 0.32},
        {"random", "simlayerkv", 0.6, 1},    {"snapkv+simlayer", NULL, 100, 0.32},
        {"h2o+simlayer", "chunkkv", 0.5, 1},
    };
    for (size_t i = 0; i < sizeof choosers / sizeof *choosers; i++)
        follow(&choosers[i]);
}
END_TEST

/* ---- prefixes ------------------------------------------------------------------------------------ */

static uint32_t take(fake_seq *s, uint32_t n_tokens)
{
    return kv_seq_take_prefix(s->seq, s->tokens, n_tokens);
}

/* A prompt of 56: no multiple of the section in it, and no window has passed a block. */
START_TEST(a_prompt_is_shared_as_it_was_before_anything_was_evicted)
{
    const fake_options options = options_of("knorm", 0.3, "none");
    fake_options alone = options;
    alone.no_prefix_caching = true;
    fake *f = open_evicting(&options), *fresh = open_evicting(&alone);
    const fake_ids ids = {.seed = 9, .shared_seed = 1, .n_shared = 56, .n_prompt = 70};
    fake_seq want = fake_seq_open(fresh, ids);
    fake_run(fresh, &want, 120, 64);
    fake_seq source = fake_seq_open(f, (fake_ids){.seed = 1, .n_prompt = 56});
    fake_run(f, &source, 56, 64);
    kv_seq_share_prompt(source.seq, source.tokens, 56);
    fake_check(f);
    ck_assert_uint_eq(fake_stats(f).prefix_objects, 1);
    fake_run(f, &source, 100, 64); /* evicts, while the object holds its pages */
    ck_assert_uint_gt(fake_stats(f).entries_evicted, 0);
    fake_seq taker = fake_seq_open(f, ids);
    ck_assert_uint_eq(take(&taker, 70), 40); /* the blocks that had left the ring */
    fake_run(f, &taker, 120, 5);
    ck_assert(fake_same(f, &want, &taker, 40, 120)); /* keys alone count: the bits of a fresh one */
    kv_seq_share_prompt(source.seq, source.tokens, 56);
    fake_seq_close(f, &source, true);
    fake_seq_close(f, &taker, true);
    ck_assert_uint_eq(fake_stats(f).prefix_objects, 1); /* nobody left anything else */
    kv_cache_drop_prefixes(f->cache);
    ck_assert_uint_eq(fake_stats(f).slab_bytes, 0);
    fake_seq_close(fresh, &want, false);
    fake_close(f);
    fake_close(fresh);
}
END_TEST

START_TEST(nothing_is_shared_once_entries_are_gone)
{
    const fake_options options = options_of("knorm", 0.3, "none");
    fake *f = open_evicting(&options);
    fake_seq s = fake_seq_open(f, IDS);
    fake_run(f, &s, PROMPT, 64); /* evicted at 64 and 128 */
    kv_seq_share_prompt(s.seq, s.tokens, PROMPT);
    ck_assert_uint_eq(fake_stats(f).prefix_objects, 0);
    fake_seq_close(f, &s, true);
    ck_assert_uint_eq(fake_stats(f).prefix_objects, 0);
    ck_assert_uint_eq(fake_stats(f).slab_bytes, 0);
    fake_close(f);
}
END_TEST

/* Fingerprints differ by policy, by budget and, where it counts, by the threshold of lazy layers. */
START_TEST(policies_do_not_share_prefixes)
{
    static const struct {
        const char *name;
        double budget, lazy_threshold;
        uint32_t n_taken; /* of the first one's */
    } wanted[] = {{"knorm", 0.3, 0.9, 40},         {"knorm", 0.4, 0.9, 0},
                  {"keydiff", 0.3, 0.9, 0},        {"knorm", 0.3, 0.8, 40},
                  {"knorm+simlayer", 0.3, 0.9, 0}, {"knorm+simlayer", 0.3, 0.8, 0}};
    enum { N = sizeof wanted / sizeof *wanted };
    for (uint32_t from = 0; from < N; from += 4) {
        fake_options options = options_of("knorm", 0.3, "none");
        options.config.request_methods = true;
        fake *f = open_evicting(&options);
        kv_methods methods[N];
        for (uint32_t i = 0; i < N; i++) {
            kv_config config = options.config;
            config.scheduling = text(wanted[i].name);
            config.budget = wanted[i].budget;
            config.lazy_threshold = wanted[i].lazy_threshold;
            ck_assert_int_eq(kv_methods_resolve(&config, &methods[i], NULL), ERR_OK);
        }
        fake_seq source =
            fake_seq_open(f, (fake_ids){.seed = 1, .n_prompt = 56, .methods = &methods[from]});
        fake_run(f, &source, 56, 64);
        kv_seq_share_prompt(source.seq, source.tokens, 56);
        for (uint32_t i = 0; i < N; i++) {
            kv_seq *seq;
            const kv_seq_options seq_options = {
                .methods = &methods[i], .salt = "", .n_prompt_tokens = 56};
            const uint32_t n_taken = from == 0 ? wanted[i].n_taken : i == from ? 40 : 0;
            ck_assert_int_eq(kv_seq_open(f->cache, &seq_options, &seq), ERR_OK);
            ck_assert_uint_eq(kv_seq_take_prefix(seq, source.tokens, 56), n_taken);
            kv_seq_close(seq, NULL);
        }
        fake_seq_close(f, &source, false);
        fake_close(f);
    }
}
END_TEST

/* Of a selection the name counts and the budget, too; its prompt is shared as it was before. */
START_TEST(selections_share_prefixes_with_their_like)
{
    static const char *const wanted[][2] = {{"none", "knorm,none"}, {"none", "knorm,none"},
                                            {"knorm", "none"},      {"none", "keydiff,none"},
                                            {"h2o", "knorm,none"},  {"none", "knorm,int8"}};
    fake_options options = options_of("none", 0.3, "knorm,none");
    options.config.request_methods = true;
    fake *f = open_evicting(&options);
    fake_seq source = fake_seq_open(f, (fake_ids){.seed = 1, .n_prompt = 56});
    fake_run(f, &source, 56, 64);
    kv_seq_share_prompt(source.seq, source.tokens, 56);
    for (uint32_t i = 0; i < sizeof wanted / sizeof *wanted; i++) {
        kv_seq *seq;
        kv_methods methods;
        kv_config config = options.config;
        config.scheduling = text(wanted[i][0]);
        config.compression = text(wanted[i][1]);
        if (i == 1) config.budget = 0.4;
        ck_assert_int_eq(kv_methods_resolve(&config, &methods, NULL), ERR_OK);
        const kv_seq_options seq_options = {.methods = &methods, .salt = "", .n_prompt_tokens = 56};
        ck_assert_int_eq(kv_seq_open(f->cache, &seq_options, &seq), ERR_OK);
        ck_assert_uint_eq(kv_seq_take_prefix(seq, source.tokens, 56), i == 0 ? 40 : 0);
        kv_seq_close(seq, NULL);
    }
    fake_seq_close(f, &source, true);
    ck_assert_uint_eq(fake_stats(f).prefix_objects, 1); /* what it decoded was not left behind */
    fake_close(f);
}
END_TEST

/* It would know nothing of what the prefix's own queries looked at. */
START_TEST(who_must_know_all_queries_takes_and_leaves_no_prefix)
{
    const fake_options options = options_of("non_causal", 0.3, "none");
    fake *f = open_evicting(&options);
    fake_seq source = fake_seq_open(f, (fake_ids){.seed = 1, .n_prompt = 56});
    fake_run(f, &source, 56, 64);
    kv_seq_share_prompt(source.seq, source.tokens, 56);
    ck_assert_uint_eq(fake_stats(f).prefix_objects, 0);
    fake_seq taker = fake_seq_open(f, (fake_ids){.seed = 1, .n_prompt = 56});
    ck_assert_uint_eq(take(&taker, 56), 0);
    fake_seq_close(f, &source, true);
    fake_seq_close(f, &taker, true);
    ck_assert_uint_eq(fake_stats(f).prefix_objects, 0);
    fake_close(f);
}
END_TEST

START_TEST(a_cache_says_what_it_keeps_for_no_selection)
{
    const fake_options options = options_of("none", 0.5, "knorm,none");
    fake *f = open_evicting(&options);
    kv_config config = options.config;
    kv_methods methods;
    err_info info = {0};
    config.compression = text("h2o+adakv,none");
    ck_assert_int_eq(kv_methods_resolve(&config, &methods, NULL), ERR_OK);
    ck_assert_int_eq(kv_cache_check_methods(f->cache, &methods, &info), ERR_UNSUPPORTED);
    ck_assert_str_eq(info.message, "kv-compression: the cache keeps nothing for h2o+adakv");
    fake_close(f);
}
END_TEST

/* ---- room ---------------------------------------------------------------------------------------- */

/* Raw pages of 64 keys of 64 channels in f32 are half a slab; a slab has seven of int8. */
static const kv_layer_shape wide = {
    .n_heads = 1, .n_kv_heads = 1, .k_dim = 64, .v_dim = 64, .scale = 0.1f};

static fake *open_wide(const char *codec, uint32_t n_slabs, bool no_prefix_caching)
{
    fake_options options = options_of("streaming_llm", 0.75, codec);
    options.layers = &wide;
    options.n_layers = 1;
    options.limits = (kv_limits){8, 64, 512};
    options.no_prefix_caching = no_prefix_caching;
    options.config.page_tokens = 64;
    options.config.window_tokens = 0;
    options.config.sink_tokens = 0;
    options.config.memory_bytes = n_slabs * KV_SLAB_BYTES;
    fake *f = fake_open(&options);
    f->cache->section_tokens = 128;
    return f;
}

START_TEST(a_full_pool_refuses_the_step_whose_settling_finds_no_room)
{
    fake *f = open_wide("int8", 2, true);
    fake_seq seqs[3], *row = &seqs[0];
    for (uint32_t i = 0; i < 3; i++) {
        seqs[i] = fake_seq_open(f, (fake_ids){.seed = i, .n_prompt = 256});
        fake_run(f, &seqs[i], i == 0 ? 128 : 64, 64); /* four raw pages: both slabs are raw */
    }
    ck_assert_uint_eq(fake_stats(f).pages_used, 4);
    for (uint32_t i = 0; i < 2; i++) { /* the second time nothing is evicted once more */
        ck_assert_int_eq(fake_step(f, &row, (uint32_t[]){1}, 1), ERR_KV_FULL);
        ck_assert_uint_eq(fake_stats(f).entries_evicted, 32);
        ck_assert_uint_eq(kv_seq_length(seqs[0].seq), 128);
        fake_check(f);
    }
    fake_seq_close(f, &seqs[1], false);
    fake_seq_close(f, &seqs[2], false);
    fake *free_pool = open_wide("int8", 20, true);
    fake_seq want = fake_seq_open(free_pool, (fake_ids){.seed = 0, .n_prompt = 256});
    fake_run(free_pool, &want, 190, 64);
    fake_run(f, &seqs[0], 190, 64);
    ck_assert(fake_same(f, &want, &seqs[0], 0, 190));
    ck_assert_uint_eq(fake_stats(f).entries_evicted, 32);
    fake_seq_close(f, &seqs[0], false);
    ck_assert_uint_eq(fake_stats(f).slab_bytes, 0);
    fake_seq_close(free_pool, &want, false);
    fake_close(free_pool);
    fake_close(f);
}
END_TEST

/* Packing pages that a cached prompt holds, too, asks for new ones: the prompt is given up for them. */
START_TEST(a_cached_prompt_gives_way_to_the_sequence_that_left_it)
{
    fake_options options = options_of("random", 0.5, "none");
    options.layers = &wide;
    options.n_layers = 1;
    options.config.page_tokens = 64;
    options.config.window_tokens = 0;
    options.config.sink_tokens = 0;
    options.config.memory_bytes = 3 * KV_SLAB_BYTES; /* six pages */
    fake *f = fake_open(&options);
    fake_seq s = fake_seq_open(f, (fake_ids){.seed = 1, .n_prompt = 320});
    fake_run(f, &s, 320, 64);
    kv_seq_share_prompt(s.seq, s.tokens, 320);
    ck_assert_uint_eq(fake_stats(f).pages_used, 5);
    fake_run(f, &s, 321, 64); /* three pages from five that are shared, and room for one only */
    ck_assert_uint_eq(fake_stats(f).pages_used, 3);
    ck_assert_uint_eq(fake_stats(f).prefix_objects, 0);
    fake_run(f, &s, 500, 64);
    fake_seq_close(f, &s, false);
    ck_assert_uint_eq(fake_stats(f).slab_bytes, 0);
    fake_close(f);
}
END_TEST

START_TEST(what_could_fit_does_fit)
{
    static const char *const names[] = {"none", "int8"};
    for (uint32_t i = 0; i < 2; i++) {
        fake *f = open_wide(names[i], 3, false);
        uint32_t n = 1;
        while (n < 512 && kv_cache_could_fit(f->cache, NULL, n + 1))
            n++;
        ck_assert_uint_ge(n, 128);
        for (uint32_t n_prompt = 0; n_prompt <= n; n_prompt += 61) {
            fake_seq s = fake_seq_open(f, (fake_ids){.seed = 1, .n_prompt = n_prompt});
            while (kv_seq_length(s.seq) < n) {
                fake_run(f, &s, kv_seq_length(s.seq) + 1, 1);
                kv_seq_share_prompt(s.seq, s.tokens, kv_seq_length(s.seq));
            }
            fake_seq_close(f, &s, false);
        }
        fake_close(f);
    }
}
END_TEST

/* ---- steps --------------------------------------------------------------------------------------- */

START_TEST(an_aborted_step_leaves_no_trace)
{
    static const char *const policies[] = {"h2o",        "snapkv",         "expected_attention",
                                           "non_causal", "knorm+simlayer", "kvzip_plus"};
    for (uint32_t i = 0; i < sizeof policies / sizeof *policies; i++) {
        const fake_options options = options_of(policies[i], 0.5, "int8");
        fake *f = open_evicting(&options);
        const size_t n_floats = 64 * 4 * 32; /* a step of the widest layer */
        fake_seq want = fake_seq_open(f, IDS), s = fake_seq_open(f, IDS);
        fake_run(f, &want, TOKENS, 64);
        while (kv_seq_length(s.seq) < TOKENS) {
            const uint32_t left = TOKENS - kv_seq_length(s.seq);
            const uint32_t most = (uint32_t)min_size(kv_seq_step_tokens_max(s.seq), left);
            const kv_row row = {.seq = s.seq, .n_tokens = most < 64 ? most : 64};
            ck_assert_int_eq(kv_step_begin(f->cache, &row, 1), ERR_OK);
            for (uint32_t l = 0; l < f->n_layers; l++) { /* all that a step can leave behind */
                for (size_t k = 0; k < n_floats; k++)
                    f->q[k] = f->k[k] = f->v[k] = (float)(k % 7) - 3;
                kv_append(f->cache,
                          &(kv_append_args){.layer = l, .k = f->there.k, .v = f->there.v});
                kv_attend(f->cache, &(kv_attend_args){.layer = l,
                                                      .q = f->there.q,
                                                      .q_nope = f->q,
                                                      .input_norm = f->input_norm,
                                                      .out = f->there.out});
            }
            kv_step_abort(f->cache);
            fake_check(f);
            fake_run(f, &s, kv_seq_length(s.seq) + (most < 5 ? most : 5), 5);
        }
        ck_assert(fake_same(f, &want, &s, 0, TOKENS));
        fake_seq_close(f, &want, false);
        fake_seq_close(f, &s, false);
        fake_close(f);
    }
}
END_TEST

/* Entries of a page have one fate under scorers of pages. */
START_TEST(scorers_of_pages_evict_whole_pages)
{
    fake_options options = options_of("lru_plus", 0.5, "none");
    options.config.routing = text("topk");
    options.config.routing_k = 0.3;
    fake *f = open_evicting(&options);
    fake_seq s = fake_seq_open(f, IDS);
    s.n_prompt = PROMPT;
    fake_run(f, &s, PROMPT, 64);
    fake_run(f, &s, TOKENS, 1);
    const uint32_t page_tokens = f->cache->page_tokens;
    uint32_t n_gone = 0;
    for (uint32_t h = 0; h < 2; h++) {
        for (uint32_t b = 0; b < s.seq->n_blocks; b++) {
            const size_t entry = kv_table_entry(&s.seq->table, kv_list(f->cache, 0, h, 0), b);
            const uint64_t live = s.seq->table.live[entry];
            const uint64_t all =
                kv_slot_mask(page_tokens) & ~kv_slot_mask(b == 0 ? f->cache->sink_tokens : 0);
            ck_assert(live == 0 || live == all);
            n_gone += live == 0;
        }
    }
    ck_assert_uint_gt(n_gone, 10);
    fake_seq_close(f, &s, false);
    fake_close(f);
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE_SECONDS(what_stays_is_what_a_slow_reference_keeps, 250),
    TEST_CASE_SECONDS(a_selection_has_the_prompt_and_scheduling_what_comes_behind_it, 250),
    TEST_CASE_SECONDS(lazy_layers_keep_what_a_slow_reference_keeps, 250),
    TEST_CASE_SECONDS(the_same_stays_on_any_shards, 400),
    TEST_CASE(a_prompt_is_shared_as_it_was_before_anything_was_evicted),
    TEST_CASE(nothing_is_shared_once_entries_are_gone),
    TEST_CASE(policies_do_not_share_prefixes),
    TEST_CASE(selections_share_prefixes_with_their_like),
    TEST_CASE(who_must_know_all_queries_takes_and_leaves_no_prefix),
    TEST_CASE(a_cache_says_what_it_keeps_for_no_selection),
    TEST_CASE(a_full_pool_refuses_the_step_whose_settling_finds_no_room),
    TEST_CASE(a_cached_prompt_gives_way_to_the_sequence_that_left_it),
    TEST_CASE_SECONDS(what_could_fit_does_fit, 250),
    TEST_CASE_SECONDS(an_aborted_step_leaves_no_trace, 250),
    TEST_CASE(scorers_of_pages_evict_whole_pages),
    TEST_CASES_END,
};
