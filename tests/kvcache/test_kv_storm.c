/* tests/kvcache/test_kv_storm.c - thousands of random operations on a pool that is too small, with
 * every invariant checked after each, and a sample of answers checked by the reference. */
#include "kvcache/kv_lost.h"
#include "tests/kvcache/bad_disk.h"
#include "tests/kvcache/fake_model.h"
#include "tests/test_main.h"

#include "base/random.h"

#include <string.h>

/* Under a sanitizer an operation takes many times as long: it sees the first third of each storm. */
#if defined(__SANITIZE_ADDRESS__)
enum { IS_WHOLE = 0, N_OPS = 1000 };
#else
enum { IS_WHOLE = 1, N_OPS = 3000 };
#endif
enum { N_SEQS = 8, N_TOKENS_MAX = 400, STEP_TOKENS = 64 };

typedef struct storm {
    fake *f;
    fake_seq seqs[N_SEQS]; /* seq == NULL: closed */
    uint64_t seed;
    uint32_t n_draws;
    uint32_t n_prompt_max; /* lossy codecs, eviction: of the drawn lengths of prompts */
    uint32_t n_full, n_hits, n_given_up, n_aborts, n_lost;
} storm;

static uint32_t draw(storm *s, uint32_t n)
{
    return random_at(s->seed, 5, s->n_draws++).word[0] % n;
}

static void open_one(storm *s, uint32_t i)
{
    /* Few beginnings and few ends: many sequences share blocks, some all of them. */
    const fake_ids ids = {.seed = draw(s, 20),
                          .shared_seed = 1000 + draw(s, 3),
                          .n_shared = draw(s, 60),
                          .n_prompt = s->n_prompt_max > 0 ? draw(s, s->n_prompt_max) : 0};
    s->seqs[i] = fake_seq_open_salted(s->f, ids, draw(s, 4) == 0 ? "other" : "");
    const uint32_t n = 1 + draw(s, N_TOKENS_MAX / 2);
    const uint32_t n_taken = kv_seq_take_prefix(s->seqs[i].seq, s->seqs[i].tokens, n);
    ck_assert_uint_lt(n_taken, n);
    ck_assert_uint_eq(n_taken, kv_seq_length(s->seqs[i].seq));
    s->n_hits += n_taken > 0;
}

/* After a step or a hit: a lost one is closed, as whoever runs it would. */
static void close_lost(storm *s)
{
    for (uint32_t i = 0; i < N_SEQS; i++) {
        if (s->seqs[i].seq == NULL || !kv_seq_is_lost(s->seqs[i].seq)) continue;
        fake_seq_close(s->f, &s->seqs[i], true);
        s->n_lost++;
    }
}

static void step_some(storm *s)
{
    fake_seq *rows[N_SEQS];
    uint32_t n_tokens[N_SEQS], before[N_SEQS], n_rows = 0, left = STEP_TOKENS;
    for (uint32_t i = 0; i < N_SEQS && left > 0; i++) {
        fake_seq *seq = &s->seqs[i];
        if (seq->seq == NULL || draw(s, 3) == 0) continue;
        const uint32_t room = N_TOKENS_MAX - kv_seq_length(seq->seq);
        uint32_t n = draw(s, 2) == 0 ? 1 : 1 + draw(s, 40);
        n = (uint32_t)min_size(n, min_size(room, left));
        n = (uint32_t)min_size(n, kv_seq_step_tokens_max(seq->seq));
        if (n == 0) continue;
        before[n_rows] = kv_seq_length(seq->seq);
        rows[n_rows] = seq;
        n_tokens[n_rows++] = n;
        left -= n;
    }
    if (n_rows == 0) return;
    const err_t err = fake_step(s->f, rows, n_tokens, n_rows);
    if (err == ERR_OK) {
        if (draw(s, 4) > 0) return; /* the reference takes most of the time */
        if (!kv_cache_methods(s->f->cache)->is_exact) return;
        const uint32_t r = draw(s, n_rows), end = before[r] + n_tokens[r];
        if (kv_seq_is_lost(rows[r]->seq)) return;
        ck_assert_double_le(fake_error(s->f, rows[r], end - 1, end), 1);
        return;
    }
    ck_assert_int_eq(err, ERR_KV_FULL);
    s->n_full++;
    for (uint32_t r = 0; r < n_rows; r++)
        ck_assert_uint_eq(kv_seq_length(rows[r]->seq), before[r]);
}

static void abort_step(storm *s, fake_seq *seq)
{
    const uint32_t length = kv_seq_length(seq->seq);
    const uint32_t n = 1 + draw(s, 50), most = kv_seq_step_tokens_max(seq->seq);
    const kv_row row = {.seq = seq->seq, .n_tokens = n < most ? n : most};
    if (length + row.n_tokens > N_TOKENS_MAX) return;
    if (kv_step_begin(s->f->cache, &row, 1) != ERR_OK) return;
    kv_step_abort(s->f->cache);
    ck_assert_uint_eq(kv_seq_length(seq->seq), length);
    s->n_aborts++;
}

static void cut(storm *s, fake_seq *seq)
{
    const uint32_t n = draw(s, kv_seq_length(seq->seq) + 1);
    const uint32_t n_kept = kv_seq_truncate(seq->seq, n);
    ck_assert(n_kept == n || n_kept == 0);
    ck_assert_uint_eq(kv_seq_length(seq->seq), n_kept);
    if (draw(s, 2) == 0) return;
    for (uint32_t p = n_kept; p < N_TOKENS_MAX; p++)
        seq->tokens[p] = draw(s, 50000); /* it goes on differently */
}

static void one_operation(storm *s)
{
    const uint32_t i = draw(s, N_SEQS);
    fake_seq *seq = &s->seqs[i];
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
        kv_cache_drop_prefixes(s->f->cache);
    } else {
        fake_seq_close(s->f, seq, draw(s, 4) != 0);
    }
    fake_check(s->f);
    close_lost(s);
}

/* A whole storm went where it was meant to go. */
static void check_reach(const storm *s, const fake_options *options, uint32_t n_hits_least)
{
    const kv_methods *methods = &s->f->cache->methods;
    const kv_stats stats = fake_stats(s->f);
    const bool has_tiers = options->config.host_bytes + options->config.disk_bytes > 0;
    const bool shares = (kv_methods_needs(methods) & KV_SCORE_LOCAL) == 0;
    const bool is_evicting = kv_methods_evict(methods);
    const kv_scorer *scorer = methods->policy.scorer;
    ck_assert(s->n_full > 0 || has_tiers);
    ck_assert(shares ? s->n_hits >= n_hits_least : s->n_hits == 0);
    ck_assert_uint_gt(s->n_aborts, 20);
    if (is_evicting) ck_assert_uint_gt(stats.pages_evicted, 100);
    if (strcmp(options->config.rewrite, "none") != 0)
        ck_assert_uint_gt(stats.entries_rewritten, 1000);
    if (is_evicting && scorer != NULL && !scorer->by_page)
        ck_assert_uint_gt(stats.pages_compacted, 100);
    if (shares) ck_assert_uint_gt(stats.pages_given_up, is_evicting ? 10 : 100);
    ck_assert_int_eq(stats.pages_demoted > 100, has_tiers);
    ck_assert_int_eq(stats.disk_read_bytes > 0, options->config.disk_bytes > 0);
    ck_assert_int_eq(s->n_lost > 0, the_disk.flips_every > 0);
}

static void run_storm(uint64_t seed, fake_options options, uint32_t n_hits_least)
{
    options.isa = "auto";
    options.limits = (kv_limits){N_SEQS, STEP_TOKENS, N_TOKENS_MAX};
    const bool has_selection = strchr(options.config.compression, ',') != NULL;
    const bool is_evicting = has_selection || strcmp(options.config.scheduling, "none") != 0;
    const bool is_lossy = is_evicting || strcmp(options.config.compression, "none") != 0;
    const bool has_classes =
        strstr(options.config.compression, "svd") != NULL || /* of bases, too */
        strstr(options.config.compression, "pikv") != NULL;
    options.config.memory_bytes = ((is_evicting ? 5u
                                    : is_lossy  ? 7u
                                                : 5u) +
                                   (has_classes ? 2 : 0)) *
                                  KV_SLAB_BYTES;
    storm s = {.f = fake_open(&options), .seed = seed, .n_prompt_max = is_lossy ? 300 : 0};
    if (is_lossy) s.f->cache->section_tokens = 64;
    s.f->cache->local_tokens = 40;
    const kv_stats empty = fake_stats(s.f);
    for (uint32_t op = 0; op < N_OPS; op++)
        one_operation(&s);
    for (uint32_t i = 0; i < N_SEQS; i++) {
        if (s.seqs[i].seq != NULL) fake_seq_close(s.f, &s.seqs[i], i % 2 == 0);
    }
    if (IS_WHOLE) check_reach(&s, &options, n_hits_least);
    kv_cache_drop_prefixes(s.f->cache);
    const kv_stats end = fake_stats(s.f);
    ck_assert_uint_eq(end.host_bytes + end.host_pages + end.disk_bytes + end.disk_pages, 0);
    ck_assert_uint_eq(end.slab_bytes, 0);
    ck_assert_uint_eq(end.pages_used + end.pages_cached, 0);
    ck_assert_uint_eq(end.pages_free, empty.pages_free);
    ck_assert_uint_eq(end.slots_live, 0);
    ck_assert_uint_eq(end.prefix_objects, 0);
    fake_close(s.f);
}

START_TEST(a_storm_over_all_kinds_of_layers_leaves_nothing_behind)
{
    kv_layer_shape layers[3] = {fake_layers[0], fake_layers[1], fake_layers[2]};
    layers[1].window = 90; /* of 10, it would have freed most prefixes */
    run_storm(1, (fake_options){.layers = layers, .n_layers = 3, .config = fake_defaults()}, 10);
}
END_TEST

START_TEST(a_storm_under_lossy_codecs_leaves_nothing_behind)
{
    static const char *const codecs[] = {"int8", "int2", "prune", "lora_plus", "svd", "pikv"};
    for (uint32_t i = 0; i < 6; i++) {
        kv_layer_shape layers[2] = {fake_coded_layers[0], fake_coded_layers[1]};
        layers[1].window = i == 0 ? 0 : 120;
        fake_options options = {
            .layers = layers, .n_layers = 2, .n_threads = 2, .config = fake_coded(codecs[i])};
        options.config.sink_tokens = i == 0 ? 3 : 0;
        options.model_type = DTYPE_BF16;
        run_storm(40 + i, options, 10);
    }
}
END_TEST

START_TEST(a_storm_with_many_hits_leaves_nothing_behind)
{
    const kv_layer_shape layers[2] = {fake_layers[0], fake_layers[2]};
    run_storm(2, (fake_options){.layers = layers, .n_layers = 2, .config = fake_defaults()}, 100);
}
END_TEST

START_TEST(a_storm_with_odd_pages_and_no_window_leaves_nothing_behind)
{
    fake_options options = {.n_threads = 3, .config = fake_defaults()};
    options.config.page_tokens = 7;
    options.config.window_tokens = 0;
    options.config.sink_tokens = 7;
    run_storm(3, options, 3);
}
END_TEST

/* Boxes of pages and runs are looked at by the checks, through every cut, share and give-up. */
START_TEST(a_storm_with_boxes_leaves_nothing_behind)
{
    fake_options options = {.n_threads = 2, .config = fake_defaults()};
    options.config.routing = (char *)(uintptr_t) "hierarchical";
    options.config.routing_k = 0.5;
    run_storm(4, options, 5);
}
END_TEST

/* Boxes are written anew when pages are encoded, and hold what the codes say. */
START_TEST(a_storm_with_boxes_of_codes_leaves_nothing_behind)
{
    fake_options options = {
        .n_threads = 2, .layers = fake_coded_layers, .n_layers = 2, .config = fake_coded("int4")};
    options.config.routing = (char *)(uintptr_t) "hierarchical";
    options.config.routing_k = 0.5;
    run_storm(6, options, 5);
}
END_TEST

/* Prefixes of them too, tails included: shared before anything was evicted, and owned again. */
START_TEST(a_storm_of_evictions_over_shards_leaves_nothing_behind)
{
    static const char *const policies[] = {"h2o+adakv", "snapkv+pyramid", "lru_plus", "random",
                                           "distill"};
    static const char *const codecs[] = {"none", "int8", "svd", "int4", "distill,none"};
    static const char *const placements[] = {"expert", "expert", "hash", "block", "expert"};
    for (uint32_t i = 0; i < 5; i++) {
        kv_layer_shape layers[2] = {fake_coded_layers[0], fake_coded_layers[1]};
        layers[0].has_router = true;
        layers[1].has_router = i != 2;
        layers[1].window = i % 2 == 0 ? 0 : 120;
        fake_options options = {
            .layers = layers, .n_layers = 2, .n_threads = 2, .config = fake_coded(codecs[i])};
        options.config.scheduling = (char *)(uintptr_t)policies[i];
        options.config.budget = i == 3 ? 60 : i == 4 ? 0.7 : 0.5;
        options.config.placement = (char *)(uintptr_t)placements[i];
        options.config.n_shards = i == 3 ? 3 : 4;
        options.config.eplb = true;
        options.config.routing = (char *)(uintptr_t)(i % 2 == 0 ? "hierarchical" : "topk_balanced");
        options.config.routing_k = 0.5;
        run_storm(50 + i, options, 3);
    }
}
END_TEST

/* Pages of several lists, spilled ones among them, owned tails and copies of tails. */
START_TEST(a_storm_over_shards_leaves_nothing_behind)
{
    static const char *const placements[] = {"block", "expert", "hash", "expert"};
    for (uint32_t i = 0; i < 4; i++) {
        kv_layer_shape layers[3] = {fake_layers[0], fake_layers[1], fake_layers[2]};
        layers[1].window = 90;
        layers[1].has_router = i != 2; /* of hash: beside a layer that is placed by blocks */
        fake_options options = {
            .n_threads = 2, .layers = layers, .n_layers = 3, .config = fake_defaults()};
        options.config.placement = (char *)(uintptr_t)placements[i];
        options.config.n_shards = i == 0 ? 3 : 4;
        options.config.eplb = true;
        if (i == 3) options.config.routing = (char *)(uintptr_t) "hierarchical";
        options.config.routing_k = 0.5;
        run_storm(10 + i, options, 5);
    }
}
END_TEST

/* Tiers of so many slabs, too small for all that they could hold. */
static fake_options with_tiers(fake_options options, uint32_t n_host, uint32_t n_disk)
{
    options.config.host_bytes = n_host * KV_SLAB_BYTES;
    options.config.disk_bytes = n_disk * KV_SLAB_BYTES;
    if (n_disk > 0) options.config.disk_path = (char *)(uintptr_t) "/tmp";
    return options;
}

START_TEST(a_storm_over_tiers_leaves_nothing_behind)
{
    const kv_layer_shape layers[2] = {fake_layers[0], fake_layers[2]};
    const fake_options options = {.layers = layers, .n_layers = 2, .config = fake_defaults()};
    bad_disk_mend();
    run_storm(7, with_tiers(options, 2, 0), 100);
    run_storm(8, with_tiers(options, 0, 3), 100);
}
END_TEST

START_TEST(a_storm_over_shards_and_tiers_leaves_nothing_behind)
{
    static const char *const placements[] = {"block", "expert", "hash", "expert"};
    for (uint32_t i = 0; i < 4; i++) {
        kv_layer_shape layers[2] = {fake_layers[0], fake_layers[2]};
        layers[1].window = i < 2 ? 0 : 120;
        layers[0].has_router = layers[1].has_router = true;
        fake_options options = {
            .layers = layers, .n_layers = 2, .n_threads = 2, .config = fake_defaults()};
        options.config.placement = (char *)(uintptr_t)placements[i];
        options.config.n_shards = 4;
        options.config.eplb = true;
        if (i == 3) options.config.routing = (char *)(uintptr_t) "topk_balanced";
        options.config.routing_k = 0.5;
        bad_disk_mend();
        the_disk.flips_every = i == 1 ? 997 : 0;
        run_storm(40 + i, with_tiers(options, i % 2, 3), 5);
    }
}
END_TEST

START_TEST(a_storm_over_shards_and_tiers_with_codes_leaves_nothing_behind)
{
    fake_options options = {
        .n_threads = 2, .layers = fake_coded_layers, .n_layers = 2, .config = fake_coded("int8")};
    options.config.placement = (char *)(uintptr_t) "expert";
    options.config.n_shards = 4;
    options.config.routing = (char *)(uintptr_t) "hierarchical";
    options.config.routing_k = 0.5;
    bad_disk_mend();
    run_storm(45, with_tiers(options, 2, 4), 5);
}
END_TEST

START_TEST(a_storm_over_tiers_with_codes_and_boxes_leaves_nothing_behind)
{
    static const char *const codecs[] = {"int8", "svd", "pikv"};
    bad_disk_mend();
    for (uint32_t i = 0; i < 3; i++) {
        fake_options options = {.n_threads = 2,
                                .layers = fake_coded_layers,
                                .n_layers = 2,
                                .config = fake_coded(codecs[i])};
        options.config.routing = (char *)(uintptr_t) "hierarchical";
        options.config.routing_k = 0.5;
        run_storm(9 + 40 * i, with_tiers(options, 2, 2), 5);
    }
}
END_TEST

/* Sequences that evict take prefixes whose pages have left the pool, and pack what is left of them. */
START_TEST(a_storm_of_evictions_over_tiers_leaves_nothing_behind)
{
    static const char *const policies[] = {"h2o+adakv", "lru_plus", "none"};
    static const char *const codecs[] = {"int8", "none", "distill,int8"};
    bad_disk_mend();
    for (uint32_t i = 0; i < 3; i++) {
        kv_layer_shape layers[2] = {fake_coded_layers[0], fake_coded_layers[1]};
        layers[1].window = 120;
        fake_options options = {
            .layers = layers, .n_layers = 2, .n_threads = 2, .config = fake_coded(codecs[i])};
        options.config.scheduling = (char *)(uintptr_t)policies[i];
        options.config.budget = i < 2 ? 0.5 : 0.7;
        options.config.routing = (char *)(uintptr_t)(i == 1 ? "full" : "hierarchical");
        options.config.routing_k = 0.5;
        the_disk.flips_every = i == 1 ? 11 : 0; /* there are few reads */
        run_storm(30 + i, with_tiers(options, 0, 2 + i), 3);
    }
}
END_TEST

/* Bits come back wrong now and then, and calls are cut short. */
START_TEST(a_storm_over_a_failing_disk_leaves_nothing_behind)
{
    const kv_layer_shape layers[2] = {fake_layers[0], fake_layers[2]};
    const fake_options options = {
        .n_threads = 2, .layers = layers, .n_layers = 2, .config = fake_defaults()};
    bad_disk_mend();
    the_disk.bytes_max = 300;
    the_disk.flips_every = 2011;
    run_storm(10, with_tiers(options, 1, 3), 50);
}
END_TEST

/* What is cached was shared before it was thinned; boxes of packed pages are checked, too. */
START_TEST(a_storm_of_evictions_leaves_nothing_behind)
{
    static const char *const policies[] = {"h2o+adakv", "snapkv+pyramid", "lru_plus",
                                           "random",    "tova",           "knorm+adakv"};
    static const char *const codecs[] = {"none", "int8", "none", "int4", "svd", "pikv"};
    static const double budgets[] = {0.6, 0.4, 0.5, 60, 0.5, 0.5};
    for (uint32_t i = 0; i < 6; i++) {
        kv_layer_shape layers[2] = {fake_coded_layers[0], fake_coded_layers[1]};
        layers[1].window = i % 2 == 0 ? 0 : 120;
        fake_options options = {
            .layers = layers, .n_layers = 2, .n_threads = 2, .config = fake_coded(codecs[i])};
        options.config.scheduling = (char *)(uintptr_t)policies[i];
        options.config.budget = budgets[i];
        options.config.routing = (char *)(uintptr_t)(i < 2 ? "full" : "hierarchical");
        options.config.routing_k = 0.5;
        options.config.sink_tokens = i == 3 ? 0 : 3;
        run_storm(20 + i, options, 3);
    }
}
END_TEST

/* Methods that keep sums, norms, last queries and shares of a sequence, beside what others keep. */
START_TEST(a_storm_of_methods_that_observe_more_leaves_nothing_behind)
{
    static const char *const policies[] = {"non_causal", "snapkv+simlayer", "kvzip_plus+adakv",
                                           "none",       "cap+simlayer",    "non_causal+simlayer",
                                           "finch"};
    static const char *const codecs[] = {"int8", "svd",  "none",           "non_causal+adakv,int4",
                                         "none", "pikv", "simlayerkv,int8"};
    for (uint32_t i = 0; i < 7; i++) {
        kv_layer_shape layers[2] = {fake_coded_layers[0], fake_coded_layers[1]};
        layers[0].has_router = true;
        layers[1].window = i % 2 == 0 ? 0 : 120;
        fake_options options = {.layers = fake_projecting(layers, 2),
                                .n_layers = 2,
                                .n_threads = 2,
                                .config = fake_coded(codecs[i])};
        options.config.scheduling = (char *)(uintptr_t)policies[i];
        options.config.budget = i == 4 ? 70 : 0.5;
        options.config.lazy_threshold = i < 4 ? 0.3 : 1;
        options.config.routing = (char *)(uintptr_t)(i < 3 ? "full" : "hierarchical");
        options.config.routing_k = 0.5;
        options.config.placement = (char *)(uintptr_t)(i == 2 ? "expert" : "block");
        options.config.n_shards = i == 2 ? 3 : 1 + i % 2;
        run_storm(60 + i, options, 3);
    }
}
END_TEST

START_TEST(a_storm_of_selections_leaves_nothing_behind)
{
    static const char *const compressions[] = {
        "chunkkv,int8", "snapkv+adakv,none",  "fastv,think", "h2o+pyramid,int4",
        "chunkkv,svd",  "distill+adakv,none", "distill,svd", "snapkv+adakv,pikv"};
    static const char *const policies[] = {"none", "none", "none",    "random",
                                           "none", "none", "distill", "none"};
    for (uint32_t i = 0; i < 8; i++) {
        kv_layer_shape layers[2] = {fake_coded_layers[0], fake_coded_layers[1]};
        layers[1].window = i % 2 == 0 ? 0 : 120;
        fake_options options = {.layers = layers, .n_layers = 2, .n_threads = 2};
        options.config = fake_coded(compressions[i]);
        options.config.scheduling = (char *)(uintptr_t)policies[i];
        options.config.budget = i < 2 ? 0.4 : i < 5 ? 50 : 0.7;
        options.config.routing = (char *)(uintptr_t)(i % 2 == 0 ? "full" : "topk");
        options.config.routing_k = 0.5;
        run_storm(30 + i, options, 3);
    }
}
END_TEST

/* Pages that prefixes share, that have left the pool or have boxes, are written again. */
START_TEST(a_storm_of_rewritings_leaves_nothing_behind)
{
    static const char *const rewrites[] = {"merge", "rerotate", "merge,rerotate", "merge,rerotate",
                                           "rerotate"};
    static const char *const policies[] = {"keydiff+adakv", "h2o", "streaming_llm", "none",
                                           "random"};
    static const char *const codecs[] = {"none", "none", "int8", "snapkv+adakv,svd", "pikv"};
    bad_disk_mend();
    for (uint32_t i = 0; i < 5; i++) {
        kv_layer_shape layers[2] = {fake_coded_layers[0], fake_coded_layers[1]};
        layers[0].rope = layers[1].rope = &fake_rope;
        layers[1].has_router = true;
        layers[1].window = i % 2 == 0 ? 0 : 120;
        fake_options options = {
            .layers = layers, .n_layers = 2, .n_threads = 2, .config = fake_coded(codecs[i])};
        options.config.rewrite = (char *)(uintptr_t)rewrites[i];
        options.config.scheduling = (char *)(uintptr_t)policies[i];
        options.config.budget = i == 2 ? 60 : 0.5;
        options.config.sink_tokens = i == 4 ? 0 : 3;
        options.config.n_shards = i % 2 == 0 ? 1 : 4;
        options.config.placement = (char *)(uintptr_t)(i % 2 == 0 ? "block" : "expert");
        options.config.routing = (char *)(uintptr_t)(i == 3 ? "full" : "hierarchical");
        options.config.routing_k = 0.5;
        run_storm(70 + i, i == 0 ? with_tiers(options, 0, 2) : options, 3);
    }
}
END_TEST

START_TEST(a_storm_of_codes_over_shards_leaves_nothing_behind)
{
    static const char *const codecs[] = {"int4", "svd", "svd", "pikv"};
    for (uint32_t i = 0; i < 4; i++) {
        fake_options options = {.n_threads = 2,
                                .layers = fake_coded_layers,
                                .n_layers = 2,
                                .config = fake_coded(codecs[i])};
        options.config.placement = (char *)(uintptr_t)(i != 2 ? "expert" : "block");
        options.config.n_shards = 3;
        options.config.routing = (char *)(uintptr_t) "topk_balanced";
        options.config.routing_k = 0.5;
        run_storm(20 + 40 * i, options, 5);
    }
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE_SECONDS(a_storm_over_all_kinds_of_layers_leaves_nothing_behind, 600),
    TEST_CASE_SECONDS(a_storm_under_lossy_codecs_leaves_nothing_behind, 600),
    TEST_CASE_SECONDS(a_storm_with_many_hits_leaves_nothing_behind, 600),
    TEST_CASE_SECONDS(a_storm_with_odd_pages_and_no_window_leaves_nothing_behind, 600),
    TEST_CASE_SECONDS(a_storm_with_boxes_leaves_nothing_behind, 600),
    TEST_CASE_SECONDS(a_storm_with_boxes_of_codes_leaves_nothing_behind, 600),
    TEST_CASE_SECONDS(a_storm_over_tiers_leaves_nothing_behind, 600),
    TEST_CASE_SECONDS(a_storm_over_tiers_with_codes_and_boxes_leaves_nothing_behind, 600),
    TEST_CASE_SECONDS(a_storm_over_shards_and_tiers_leaves_nothing_behind, 600),
    TEST_CASE_SECONDS(a_storm_over_shards_and_tiers_with_codes_leaves_nothing_behind, 600),
    TEST_CASE_SECONDS(a_storm_of_evictions_over_tiers_leaves_nothing_behind, 600),
    TEST_CASE_SECONDS(a_storm_over_a_failing_disk_leaves_nothing_behind, 600),
    TEST_CASE_SECONDS(a_storm_of_evictions_leaves_nothing_behind, 600),
    TEST_CASE_SECONDS(a_storm_of_methods_that_observe_more_leaves_nothing_behind, 600),
    TEST_CASE_SECONDS(a_storm_of_selections_leaves_nothing_behind, 600),
    TEST_CASE_SECONDS(a_storm_of_rewritings_leaves_nothing_behind, 600),
    TEST_CASE_SECONDS(a_storm_over_shards_leaves_nothing_behind, 600),
    TEST_CASE_SECONDS(a_storm_of_evictions_over_shards_leaves_nothing_behind, 600),
    TEST_CASE_SECONDS(a_storm_of_codes_over_shards_leaves_nothing_behind, 600),
    TEST_CASES_END,
};
