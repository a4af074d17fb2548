/* tests/conformance/test_kv_policies.c - every scorer under every allocator and some codecs, as
 * scheduling, as a selection and some as both, without a rewriting of what stays, with each and with all,
 * against the same promises: never above the budget, nothing lost that must stay, nothing left behind, and
 * no bit that depends on cuts, neighbours or threads. What exactly stays: tests/kvcache/test_kv_evict.c. */
#include "tests/kvcache/fake_model.h"
#include "tests/test_main.h"

#include "base/random.h"
#include "kvcache/evict.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PROMPT = 110, TOKENS = 160, SECTION = 48, LOCAL = 36, D_MODEL = 24 };

static const fake_ids IDS = {.seed = 3, .n_prompt = PROMPT};

static const char *const suffixes[] = {
    "", "+uniform", "+adakv", "+pyramid", "+duo_attention", "+pyramid+adakv", "+deep", "+simlayer"};
static const char *const codecs[] = {"none", "int8", "think", "int4", "svd", "pikv"};
static const double budgets[] = {0.5, 0.2, 40};
enum { N_SUFFIXES = 8, N_CODECS = 5, N_BUDGETS = 3 };

/* What chooses; either may be "none". */
typedef struct method {
    const char *scheduling, *selection;
} method;

/* The layers that all codecs take, with output projections, and angles in one of them, or in both if keys
 * are to be turned. */
typedef struct rig {
    kv_layer_shape layers[2];
    float freq[4];
    kv_rope rope;
    float *weights[2];
    matrix out_proj[2];
    char compression[KV_COMPRESSION_BYTES];
} rig;

static rig make_rig(void)
{
    rig r = {.freq = {1, 0.3f, 0.1f, 0.03f}};
    memcpy(r.layers, fake_coded_layers, sizeof r.layers);
    for (uint32_t l = 0; l < 2; l++) {
        const uint32_t cols = r.layers[l].n_heads * r.layers[l].v_dim;
        r.weights[l] = malloc((size_t)D_MODEL * cols * sizeof **r.weights);
        for (uint32_t i = 0; i < D_MODEL * cols; i++)
            r.weights[l][i] = random_uniform(5, l, i) - 0.5f;
        r.out_proj[l] =
            (matrix){.data = r.weights[l], .type = DTYPE_F32, .rows = D_MODEL, .cols = cols};
    }
    return r;
}

static fake *open_rig(rig *r, const method *m, fake_options options)
{
    for (uint32_t l = 0; l < 2; l++)
        r->layers[l].out_proj = &r->out_proj[l];
    r->rope = (kv_rope){.freq = r->freq, .n = 8, .scale = 1};
    r->layers[0].rope = &r->rope;
    r->layers[1].rope = strstr(options.config.rewrite, "rerotate") != NULL ? &r->rope : NULL;
    options.layers = r->layers;
    options.n_layers = 2;
    options.config.scheduling = (char *)(uintptr_t)m->scheduling;
    snprintf(r->compression, sizeof r->compression, "%s,%s", m->selection,
             options.config.compression);
    if (strcmp(m->selection, "none") != 0) options.config.compression = r->compression;
    options.isa = options.isa != NULL ? options.isa : "auto";
    fake *f = fake_open(&options);
    f->cache->section_tokens = SECTION;
    f->cache->local_tokens = LOCAL;
    return f;
}

static void free_rig(rig *r)
{
    free(r->weights[0]);
    free(r->weights[1]);
}

static fake_options options_of(const char *codec, double budget)
{
    fake_options options = {.config = fake_coded(codec), .no_prefix_caching = true};
    options.config.budget = budget;
    return options;
}

/* None, each by itself, and all of them. */
static const char *rewrite_of(uint32_t i)
{
    static char all[KV_REWRITING_NAME_BYTES];
    const uint32_t k = i % (KV_N_REWRITINGS + 2);
    if (k == 0) return "none";
    if (k <= KV_N_REWRITINGS) return kv_rewritings[k - 1]->name;
    all[0] = '\0';
    for (uint32_t r = 0; kv_rewritings[r] != NULL; r++) {
        strcat(all, r == 0 ? "" : ",");
        strcat(all, kv_rewritings[r]->name);
    }
    return all;
}

/* Of policy i: so that scorers and allocators meet different codecs, budgets, shards and rewritings. Where what is
 * kept is fitted, the budget is large enough for more than the window of 64 queries that stays as it is. */
static fake_options pick_options(const method *m, uint32_t i)
{
    const bool is_fitted =
        strstr(m->scheduling, "distill") != NULL || strstr(m->selection, "distill") != NULL;
    fake_options options = options_of(codecs[(i + i / N_SUFFIXES) % N_CODECS],
                                      is_fitted ? 0.65 : budgets[i / 2 % N_BUDGETS]);
    options.config.n_shards = 1 + i % 4;
    options.config.lazy_threshold = i % 2 == 0 ? 1 : 0.55; /* some layers of the rig are above */
    if (!is_fitted) options.config.rewrite = (char *)(uintptr_t)rewrite_of(i / 3);
    return options;
}

/* Calls `check` with every policy that makes sense, as scheduling and as a selection, and with some pairs. */
static void for_each_policy(void (*check)(const method *m, uint32_t i))
{
    static const method pairs[] = {
        {"h2o+adakv", "chunkkv"},      {"random", "snapkv+pyramid"},
        {"lru_plus", "keydiff+adakv"}, {"expected_attention+adakv", "pyramidkv"},
        {"tova", "chunkkv"},           {"fastv", "h2o"},
        {"kvzip+adakv", "snapkv"},     {"h2o", "kvzip"},
        {"kvzip_plus", "snapkv"},      {"kvzip_plus", "kvzip_plus+adakv"},
        {"simlayerkv", "keydiff"},     {"lru", "distill+simlayer"}};
    uint32_t i = 0;
    for (size_t s = 0; kv_scorers[s] != NULL; s++) {
        for (size_t a = 0; a < N_SUFFIXES; a++) {
            char name[128];
            kv_policy policy, selection;
            snprintf(name, sizeof name, "%s%s", kv_scorers[s]->name, suffixes[a]);
            const err_t err = kv_policy_parse(name, 0.5, &policy, NULL);
            const bool is_of_heads = a > 0 && a != 3 && a < 6;
            ck_assert_int_eq(err != ERR_OK, kv_scorers[s]->over_heads && is_of_heads);
            ck_assert_int_eq(kv_selection_parse(name, 0.5, &selection, NULL), err);
            if (err != ERR_OK) continue;
            ck_assert_str_eq(selection.name, policy.name);
            check(&(method){name, "none"}, i++);
            if (a == 0 || a == 3 || a == 5 || a == 7) check(&(method){"none", name}, i++);
        }
    }
    ck_assert_uint_gt(i, 100);
    for (size_t k = 0; k < sizeof pairs / sizeof pairs[0]; k++)
        check(&pairs[k], i++);
}

/* ---- budgets ------------------------------------------------------------------------------------- */

/* Positions that the layer's window shows to the next query, of [first, end). */
static uint32_t n_seen(const fake *f, const kv_seq *seq, uint32_t l, uint32_t first, uint32_t end)
{
    const uint32_t window = f->layers[l].window;
    const uint32_t oldest = window != 0 && seq->length >= window ? seq->length - window + 1 : 0;
    if (first < oldest) first = oldest;
    return end > first ? end - first : 0;
}

/* What is live in a layer, and what at most may be. Returns what a head has on average. */
static double check_layer(const fake *f, const kv_seq *seq, uint32_t l, uint32_t share)
{
    const kv_cache *cache = f->cache;
    const uint32_t in_pages = seq->n_blocks * cache->page_tokens;
    const uint32_t n_heads = cache->n_kv_heads[l];
    const uint32_t recent = kv_blocks_left(cache, seq->length) * cache->page_tokens;
    const uint32_t n_protected =
        n_seen(f, seq, l, 0, cache->sink_tokens) + n_seen(f, seq, l, recent, seq->length);
    uint32_t n_live = 0;
    for (uint32_t h = 0; h < n_heads; h++) {
        n_live +=
            n_seen(f, seq, l, 0, cache->sink_tokens) + n_seen(f, seq, l, in_pages, seq->length);
        for (uint32_t i = 0; i < cache->n_shards; i++) {
            const uint32_t list = kv_list(cache, l, h, i), full = cache->page_tokens;
            uint32_t n_pages = 0;
            n_live += seq->table.n_live[list];
            for (uint32_t b = 0; b < seq->n_blocks; b++)
                n_pages += kv_table_page(&seq->table, list, b) != KV_PAGE_NONE;
            const bool is_packed = seq->is_thinned && seq->methods.codec->is_exact;
            if (is_packed) /* the entry with the sinks' room may be one more */
                ck_assert_uint_le(n_pages, (seq->table.n_live[list] + full - 1) / full + 1);
        }
    }
    ck_assert_uint_le(n_live, n_heads * (share > n_protected ? share : n_protected));
    return (double)n_live / n_heads;
}

/* A selection by laziness leaves the sum alone to be checked: what it found is forgotten with the prompt. */
static void check_budget(const fake *f, const kv_seq *seq, const kv_policy *policy)
{
    const uint32_t n_keep = kv_policy_n_keep(policy, seq->length);
    const bool is_forgotten = kv_policy_by_laziness(policy) && seq->observed.lazy == NULL;
    uint32_t total = 0;
    double n_live = 0;
    for (uint32_t l = 0; l < f->n_layers; l++) {
        const uint32_t left = kv_blocks_left(f->cache, seq->length) * f->cache->page_tokens;
        const kv_layer_share_args args = {.layer = l,
                                          .n_layers = f->n_layers,
                                          .n = seq->length,
                                          .n_window = seq->length - left,
                                          .n_sinks = f->cache->sink_tokens,
                                          .n_keep = n_keep,
                                          .lazy = seq->observed.lazy,
                                          .lazy_threshold = policy->lazy_threshold};
        uint32_t share = n_keep;
        if (is_forgotten) share = seq->length;
        if (policy->layers != NULL && !is_forgotten) share = policy->layers->layer_share(&args);
        n_live += check_layer(f, seq, l, share);
        const uint32_t least = args.n_window + args.n_sinks;
        total += !is_forgotten ? share : n_keep > least ? n_keep : least;
    }
    if (is_forgotten) ck_assert_double_le(n_live, total);
    if (!is_forgotten) ck_assert_uint_le(total, f->n_layers * n_keep);
}

/* Nothing behind the prompt is gone; of the layer without a window. */
static void check_decoded(const fake *f, const kv_seq *seq)
{
    const kv_cache *cache = f->cache;
    const uint32_t *positions = kv_pool_pages(cache->pool)->positions;
    const uint32_t in_pages = seq->n_blocks * cache->page_tokens;
    for (uint32_t h = 0; h < cache->n_kv_heads[0]; h++) {
        uint32_t n_live = 0;
        for (uint32_t i = 0; i < seq->n_blocks * cache->n_shards; i++) {
            const uint32_t list = kv_list(cache, 0, h, i % cache->n_shards);
            const size_t entry = kv_table_entry(&seq->table, list, i / cache->n_shards);
            for (uint64_t live = seq->table.live[entry]; live != 0; live &= live - 1)
                n_live += positions[(size_t)seq->table.page[entry] * cache->page_tokens +
                                    (uint32_t)__builtin_ctzll(live)] >= PROMPT;
        }
        ck_assert_uint_eq(n_live, in_pages > PROMPT ? in_pages - PROMPT : 0);
    }
}

/* Settled at its present length, what must hold; counters are not published yet. */
static void check_settled(const fake *f, const kv_seq *seq, uint64_t n_evicted_of_prompt)
{
    const kv_methods *methods = &seq->methods;
    const bool is_prompt = seq->length <= PROMPT;
    if (methods->selection.evicts && is_prompt) {
        check_budget(f, seq, &methods->selection);
    } else if (methods->policy.evicts) {
        check_budget(f, seq, &methods->policy);
    } else {
        ck_assert_uint_eq(f->cache->stats.entries_evicted, n_evicted_of_prompt);
        ck_assert_int_eq(f->cache->stats.observed_bytes > 0, methods->codec->n_queries > 0);
        check_decoded(f, seq);
    }
}

static void check_run_with(const method *m, fake_options options)
{
    uint64_t n_evicted_of_prompt = 0;
    rig r = make_rig();
    fake *f = open_rig(&r, m, options);
    fake_seq s = fake_seq_open(f, IDS);
    s.n_prompt = PROMPT;
    while (kv_seq_length(s.seq) < TOKENS) {
        const uint32_t most = kv_seq_step_tokens_max(s.seq);
        const bool is_prompt = kv_seq_length(s.seq) < PROMPT;
        fake_run(f, &s, kv_seq_length(s.seq) + (is_prompt ? most : 1), 64);
        if (kv_seq_step_tokens_max(s.seq) <= most && !is_prompt) continue; /* nothing is due */
        ck_assert_int_eq(kv_seq_settle(s.seq), ERR_OK);
        fake_check(f);
        if (kv_seq_length(s.seq) == PROMPT) n_evicted_of_prompt = f->cache->stats.entries_evicted;
        check_settled(f, s.seq, n_evicted_of_prompt);
    }
    for (size_t k = 0; k < TOKENS * f->n_out; k++)
        ck_assert_float_finite(s.out[k]);
    ck_assert_uint_gt(fake_stats(f).entries_evicted, 50);
    ck_assert_uint_gt(fake_stats(f).pages_evicted, 5);
    ck_assert(!kv_cache_methods(f->cache)->is_exact);
    fake_seq_close(f, &s, true);
    ck_assert_uint_eq(fake_stats(f).slab_bytes, 0);
    ck_assert_uint_eq(fake_stats(f).observed_bytes, 0);
    ck_assert_uint_eq(fake_stats(f).slots_live, 0);
    fake_close(f);
    free_rig(&r);
}

static void check_run(const method *m, uint32_t i)
{
    check_run_with(m, pick_options(m, i));
}

/* By experts and by hash, on 2, 3 or 4 shards. */
static void check_scattered_run(const method *m, uint32_t i)
{
    fake_options options = pick_options(m, i);
    const bool is_hashed = i % 5 == 0;
    options.config.placement = (char *)(uintptr_t)(is_hashed ? "hash" : "expert");
    options.config.n_shards = is_hashed ? 4 : 2 + i % 3;
    options.config.eplb = true;
    check_run_with(m, options);
}

START_TEST(no_policy_exceeds_its_budget_or_leaves_a_page_behind)
{
    for_each_policy(check_run);
}
END_TEST

START_TEST(nor_does_one_whose_entries_are_scattered_over_shards)
{
    for_each_policy(check_scattered_run);
}
END_TEST

/* ---- bits ---------------------------------------------------------------------------------------- */

static fake_seq run(fake *f, uint32_t chunk)
{
    fake_seq s = fake_seq_open(f, IDS);
    s.n_prompt = PROMPT;
    fake_run(f, &s, PROMPT, chunk);
    fake_run(f, &s, TOKENS, 1);
    return s;
}

/* A budget that covers everything changes no bit, be it 1 or large. */
static void check_whole(const method *m, uint32_t i)
{
    const char *codec = codecs[i % N_CODECS];
    rig r = make_rig();
    fake *dense = open_rig(&r, &(method){"none", "none"}, options_of(codec, 1));
    fake_seq want = run(dense, 64);
    for (uint32_t b = 0; b < 2; b++) {
        fake *f = open_rig(&r, m, options_of(codec, b == 0 ? 1 : 4000));
        fake_seq s = run(f, 33);
        ck_assert(fake_same(f, &want, &s, 0, TOKENS));
        ck_assert_uint_eq(fake_stats(f).entries_evicted, 0);
        const bool is_observed = kv_codec_find(codec)->n_queries > 0;
        if (b == 0) ck_assert_int_eq(fake_stats(f).observed_bytes > 0, is_observed);
        fake_seq_close(f, &s, false);
        fake_close(f);
    }
    fake_seq_close(dense, &want, false);
    fake_close(dense);
    free_rig(&r);
}

START_TEST(a_budget_for_everything_has_the_bits_of_none)
{
    for_each_policy(check_whole);
}
END_TEST

static void check_cuts(const method *m, uint32_t i)
{
    rig r = make_rig();
    fake *f = open_rig(&r, m, pick_options(m, i));
    fake_seq whole = run(f, 64), cut = run(f, 7);
    ck_assert(fake_same(f, &whole, &cut, 0, TOKENS));
    fake_seq late = fake_seq_open(f, IDS); /* what was decoded comes in chunks */
    fake_run(f, &late, TOKENS, 5);
    ck_assert(fake_same(f, &whole, &late, 0, TOKENS));
    ck_assert_uint_eq(kv_seq_truncate(late.seq, TOKENS), TOKENS);
    ck_assert_uint_eq(kv_seq_truncate(late.seq, TOKENS - 1), 0);
    fake_check(f);
    fake_run(f, &late, TOKENS, 64);
    ck_assert(fake_same(f, &whole, &late, 0, TOKENS));
    fake_seq_close(f, &whole, false);
    fake_seq_close(f, &cut, false);
    fake_seq_close(f, &late, false);
    fake_close(f);
    free_rig(&r);
}

START_TEST(cuts_change_no_bit)
{
    for_each_policy(check_cuts);
}
END_TEST

static void check_crowd(const method *m, uint32_t i)
{
    rig r = make_rig();
    fake_options options = pick_options(m, i);
    fake *f = open_rig(&r, m, options);
    options.n_threads = 3;
    fake *crowd = open_rig(&r, m, options);
    fake_seq alone = run(f, 64), seqs[3], *rows[3];
    for (uint32_t k = 0; k < 3; k++) {
        seqs[k] = fake_seq_open(crowd, k == 1 ? IDS : (fake_ids){.seed = 50 + k, .n_prompt = 90});
        seqs[k].n_prompt = k == 1 ? PROMPT : 90;
    }
    while (kv_seq_length(seqs[1].seq) < TOKENS) {
        uint32_t n_rows = 0, n_tokens[3];
        for (uint32_t k = 0; k < 3; k++) {
            const uint32_t length = kv_seq_length(seqs[k].seq), left = TOKENS - length;
            const uint32_t most = (uint32_t)min_size(length >= seqs[k].n_prompt ? 1 : 5 + 9 * k,
                                                     kv_seq_step_tokens_max(seqs[k].seq));
            if (left == 0) continue;
            n_tokens[n_rows] = most < left ? most : left;
            rows[n_rows++] = &seqs[k];
        }
        ck_assert_int_eq(fake_step(crowd, rows, n_tokens, n_rows), ERR_OK);
    }
    ck_assert(fake_same(f, &alone, &seqs[1], 0, TOKENS));
    for (uint32_t k = 0; k < 3; k++)
        fake_seq_close(crowd, &seqs[k], false);
    fake_seq_close(f, &alone, false);
    ck_assert_uint_eq(fake_stats(crowd).slab_bytes, 0);
    fake_close(crowd);
    fake_close(f);
    free_rig(&r);
}

START_TEST(neighbours_and_threads_change_no_bit)
{
    for_each_policy(check_crowd);
}
END_TEST

/* ---- names --------------------------------------------------------------------------------------- */

static void expect_refusal(const char *text, double budget, const char *words)
{
    kv_policy policy;
    err_info info = {0};
    ck_assert_int_eq(kv_policy_parse(text, budget, &policy, &info), ERR_BAD_CONFIG);
    ck_assert_msg(strstr(info.message, words) != NULL, "%s", info.message);
}

START_TEST(what_makes_no_policy_is_said)
{
    expect_refusal("", 0.5, "kv-scheduling: '' is unknown; known are: none quest flexgen adakv");
    expect_refusal("snapkv+", 0.5, "allocator '' is unknown; known are: uniform adakv pyramid");
    expect_refusal("snapkv+foo", 0.5, "kv-scheduling: 'snapkv+foo': allocator 'foo' is unknown");
    expect_refusal("snapkv+adakv+uniform", 0.5, "more than one allocator");
    expect_refusal("snapkv+pyramid+pyramid", 0.5, "more than one allocator");
    expect_refusal("snapkv+simlayer+deep", 0.5, "more than one allocator");
    expect_refusal("tova+adakv", 0.5, "tova scores all heads alike");
    expect_refusal("none+adakv", 0.5, "'none+adakv' is unknown");
    expect_refusal("h2o", 0, "kv-budget: 0 is neither a share in (0, 1] nor a whole number");
    expect_refusal("h2o", 1.5, "kv-budget: 1.5 is neither");
    expect_refusal("h2o", -1, "kv-budget: -1 is neither");
    expect_refusal("h2o", (double)NAN, "kv-budget: nan is neither");
    expect_refusal("h2o", 1e10, "kv-budget: 1e+10 is neither");
}
END_TEST

START_TEST(short_names_are_what_they_stand_for)
{
    static const char *const pairs[][2] = {
        {"adakv", "expected_attention+adakv"},    {"duo_attention", "streaming_llm+duo_attention"},
        {"pyramidkv", "snapkv+pyramid"},          {"fastv", "fastv+deep"},
        {"simlayerkv", "streaming_llm+simlayer"}, {"snapkv+adakv+pyramid", "snapkv+pyramid+adakv"}};
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) {
        kv_policy policy;
        ck_assert_int_eq(kv_policy_parse(pairs[i][0], 0.5, &policy, NULL), ERR_OK);
        ck_assert_str_eq(policy.name, pairs[i][1]);
        ck_assert(policy.evicts);
        ck_assert_int_eq(kv_policy_parse(pairs[i][0], 1, &policy, NULL), ERR_OK);
        ck_assert(!policy.evicts);
    }
}
END_TEST

/* What is noted while the prompt is read again is kept behind it for a scheduling that asks for it, too. */
START_TEST(a_prompt_is_read_again_for_one_score)
{
    static const char *const pairs[][2] = {{"kvzip_plus", "kvzip"}, {"kvzip", "kvzip_plus+adakv"}};
    kv_methods methods;
    kv_config config = fake_defaults();
    err_info info = {0};
    config.budget = 0.5;
    for (size_t i = 0; i < 2; i++) {
        char compression[64];
        snprintf(compression, sizeof compression, "%s,int8", pairs[i][1]);
        config.compression = compression;
        config.scheduling = (char *)(uintptr_t)pairs[i][0];
        info = (err_info){0};
        ck_assert_int_eq(kv_methods_resolve(&config, &methods, &info), ERR_BAD_CONFIG);
        ck_assert_msg(strstr(info.message, "read the prompt again for different scores") != NULL,
                      "%s", info.message);
        snprintf(compression, sizeof compression, "%s,int8", pairs[i][0]);
        ck_assert_int_eq(kv_methods_resolve(&config, &methods, NULL), ERR_OK);
    }
}
END_TEST

START_TEST(lazy_layers_have_a_threshold_where_they_are_asked_for)
{
    kv_methods methods;
    kv_config config = fake_defaults();
    err_info info = {0};
    config.budget = 0.5;
    config.lazy_threshold = 7; /* nobody looks */
    config.scheduling = (char *)(uintptr_t) "snapkv+pyramid";
    ck_assert_int_eq(kv_methods_resolve(&config, &methods, NULL), ERR_OK);
    ck_assert(!kv_methods_by_laziness(&methods));
    config.scheduling = (char *)(uintptr_t) "simlayerkv";
    ck_assert_int_eq(kv_methods_resolve(&config, &methods, &info), ERR_BAD_CONFIG);
    ck_assert_str_eq(info.message, "kv-lazy-threshold: 7 is outside [0, 1]");
    config.lazy_threshold = (double)NAN;
    ck_assert_int_eq(kv_methods_resolve(&config, &methods, NULL), ERR_BAD_CONFIG);
    config.lazy_threshold = 0.8;
    ck_assert_int_eq(kv_methods_resolve(&config, &methods, NULL), ERR_OK);
    ck_assert_double_eq(methods.policy.lazy_threshold, 0.8);
}
END_TEST

START_TEST(shares_are_rounded_as_published_methods_round)
{
    kv_policy policy;
    ck_assert_int_eq(kv_policy_parse("h2o", 1 - 0.9, &policy, NULL), ERR_OK);
    ck_assert_uint_eq(kv_policy_n_keep(&policy, 10), 0); /* 10 * (1 - 0.9) is 0.99... */
    ck_assert_int_eq(kv_policy_parse("h2o", 0.5, &policy, NULL), ERR_OK);
    ck_assert_uint_eq(kv_policy_n_keep(&policy, 25), 12);
    ck_assert_int_eq(kv_policy_parse("h2o", 100, &policy, NULL), ERR_OK);
    ck_assert_uint_eq(kv_policy_n_keep(&policy, 99), 99);
    ck_assert_uint_eq(kv_policy_n_keep(&policy, 101), 100);
}
END_TEST

/* ---- quest --------------------------------------------------------------------------------------- */

START_TEST(quest_is_routing_by_its_budget)
{
    kv_methods methods;
    kv_config config = fake_defaults();
    err_info info = {0};
    config.scheduling = (char *)(uintptr_t) "quest";
    config.budget = 0.3;
    ck_assert_int_eq(kv_methods_resolve(&config, &methods, NULL), ERR_OK);
    ck_assert_str_eq(methods.routing->name, "topk");
    ck_assert_double_eq(methods.route.k, 0.3);
    ck_assert(!methods.policy.evicts && !methods.is_exact && !methods.reads_all);
    config.budget = 33; /* pages of 4 */
    ck_assert_int_eq(kv_methods_resolve(&config, &methods, NULL), ERR_OK);
    ck_assert_double_eq(methods.route.k, 8);
    config.budget = 1;
    ck_assert_int_eq(kv_methods_resolve(&config, &methods, NULL), ERR_OK);
    ck_assert(methods.is_exact);
    config.budget = 0.5;
    config.routing = (char *)(uintptr_t) "certified";
    config.routing_eps = 0.1;
    ck_assert_int_eq(kv_methods_resolve(&config, &methods, &info), ERR_BAD_CONFIG);
    ck_assert_str_eq(info.message,
                     "kv-scheduling: quest chooses pages, and so does kv-routing: certified");
}
END_TEST

START_TEST(a_cache_says_what_it_keeps_for_no_scorer)
{
    fake_options options = options_of("none", 0.5);
    options.config.scheduling = (char *)(uintptr_t) "knorm";
    fake *f = fake_open(&options);
    kv_config config = options.config;
    kv_methods methods;
    err_info info = {0};
    config.scheduling = (char *)(uintptr_t) "h2o";
    ck_assert_int_eq(kv_methods_resolve(&config, &methods, NULL), ERR_OK);
    ck_assert_int_eq(kv_cache_check_methods(f->cache, &methods, &info), ERR_UNSUPPORTED);
    ck_assert_str_eq(info.message, "kv-scheduling: the cache keeps nothing for h2o");
    config.scheduling = (char *)(uintptr_t) "knorm+simlayer"; /* the scorer is there */
    info = (err_info){0};
    ck_assert_int_eq(kv_methods_resolve(&config, &methods, NULL), ERR_OK);
    ck_assert_int_eq(kv_cache_check_methods(f->cache, &methods, &info), ERR_UNSUPPORTED);
    ck_assert_str_eq(info.message, "kv-scheduling: the cache keeps nothing for knorm+simlayer");
    fake_close(f);
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE_SECONDS(no_policy_exceeds_its_budget_or_leaves_a_page_behind, 600),
    TEST_CASE_SECONDS(nor_does_one_whose_entries_are_scattered_over_shards, 600),
    TEST_CASE_SECONDS(a_budget_for_everything_has_the_bits_of_none, 600),
    TEST_CASE_SECONDS(cuts_change_no_bit, 600),
    TEST_CASE_SECONDS(neighbours_and_threads_change_no_bit, 600),
    TEST_CASE(what_makes_no_policy_is_said),
    TEST_CASE(short_names_are_what_they_stand_for),
    TEST_CASE(a_prompt_is_read_again_for_one_score),
    TEST_CASE(lazy_layers_have_a_threshold_where_they_are_asked_for),
    TEST_CASE(shares_are_rounded_as_published_methods_round),
    TEST_CASE(quest_is_routing_by_its_budget),
    TEST_CASE(a_cache_says_what_it_keeps_for_no_scorer),
    TEST_CASES_END,
};
