/* tests/kvcache/test_kv_rewrite.c - rewritings in the cache: every round of evictions against a slow
 * reference, what attention makes of it, and whose pages are written. The methods by themselves:
 * test_rewriting.c; what is refused: test_kv_rewrite_refused.c; all combinations: tests/conformance and test_kv_storm.c. */
#include "tests/kernels/golden_layer.h"
#include "tests/kvcache/fake_model.h"
#include "tests/test_main.h"

#include "kvcache/encode.h"
#include "kvcache/evict.h"
#include "kvcache/score_view.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { PROMPT = 200, TOKENS = 280, SECTION = 64, N_MAX = 384, DIM_MAX = 48 };

static char *text(const char *name)
{
    return (char *)(uintptr_t)name;
}

/* Two layers, both with RoPE; the second has a window. */
static kv_layer_shape layers[2];

static fake_options options_of(const char *rewrite, const char *codec)
{
    fake_options options = {.layers = layers, .n_layers = 2, .config = fake_coded(codec)};
    for (uint32_t l = 0; l < 2; l++) {
        layers[l] = fake_coded_layers[l];
        layers[l].rope = &fake_rope;
    }
    options.config.scheduling = text("knorm+adakv");
    options.config.budget = 0.5;
    options.config.rewrite = text(rewrite);
    return options;
}

static fake *open_small(const fake_options *options)
{
    fake *f = fake_open(options);
    f->cache->section_tokens = SECTION;
    return f;
}

static fake_seq open_prompt(fake *f, uint64_t seed, const kv_methods *methods)
{
    fake_seq s = fake_seq_open(f, (fake_ids){.seed = seed, .n_prompt = PROMPT, .methods = methods});
    s.n_prompt = PROMPT;
    return s;
}

/* ---- entries ------------------------------------------------------------------------------------- */

typedef struct entries {
    uint32_t n;
    uint32_t position[N_MAX];
    bool is_fixed[N_MAX], is_guarded[N_MAX];
    float k[N_MAX][DIM_MAX], v[N_MAX][DIM_MAX];
} entries;

static void read_entries(const fake *f, kv_seq *seq, uint32_t l, uint32_t h, entries *out)
{
    const kv_cache *cache = f->cache;
    const kv_layer_shape *layer = &f->layers[l];
    kv_head_view *view = &cache->evict.heads[h];
    uint32_t page = KV_PAGE_NONE;
    attn_span span;
    const kv_view_source source = {
        .seq = seq, .layer = l, .head = h, .view = view, .page = &page, .span = &span};
    kv_view_list(seq, l, h, view);
    const kv_score_view all = {
        .n = view->n, .positions = view->positions, .load = kv_view_load, .ctx = &source};
    ck_assert_uint_le(view->n, N_MAX);
    ck_assert_uint_le(layer->k_dim, DIM_MAX);
    out->n = view->n;
    for (uint32_t i = 0; i < view->n; i++) {
        kv_view_load(&all, i, 1, out->k[i], out->v[i]);
        out->position[i] = view->positions[i];
        out->is_guarded[i] = i < view->first || i >= view->first + view->n_open;
        out->is_fixed[i] =
            view->entry[i] != KV_ENTRY_NONE &&
            kv_is_coded_page(cache, kv_table_page(&seq->table, kv_list(cache, l, h, view->shard[i]),
                                                  view->entry[i]));
    }
}

static double dot(const float *a, const float *b, uint32_t n)
{
    double sum = 0;
    for (uint32_t i = 0; i < n; i++)
        sum += (double)a[i] * (double)b[i];
    return sum;
}

/* ---- a slow reference ---------------------------------------------------------------------------- */

/* What one head had, which of it stays, and what that is to be. */
typedef struct round {
    const kv_layer_shape *layer;
    entries *e;
    bool stays[N_MAX];
    uint32_t n_merged, n_turned;
} round_of;

static void turn_slowly(round_of *r)
{
    const kv_rope *rope = r->layer->rope;
    uint32_t delta = 0;
    for (uint32_t i = r->e->n; i-- > 0;) {
        float *k = r->e->k[i];
        if (!r->stays[i]) delta++;
        if (r->stays[i] && r->e->is_fixed[i]) delta = 0;
        if (!r->stays[i] || delta == 0) continue;
        for (uint32_t c = 0; c < rope->n / 2; c++) {
            const double angle = (double)delta * (double)rope->freq[c];
            const double x = (double)k[c], y = (double)k[c + rope->n / 2];
            k[c] = (float)(x * cos(angle) - y * sin(angle));
            k[c + rope->n / 2] = (float)(y * cos(angle) + x * sin(angle));
        }
        r->n_turned++;
    }
}

static double cosine(const round_of *r, uint32_t i, uint32_t j)
{
    const uint32_t n = r->layer->k_dim;
    const float *a = r->e->k[i], *b = r->e->k[j];
    return dot(a, b, n) / sqrt(dot(a, a, n) * dot(b, b, n));
}

static void merge_slowly(round_of *r)
{
    static double sum[N_MAX][DIM_MAX], weight[N_MAX];
    const uint32_t n = r->layer->v_dim;
    memset(sum, 0, sizeof sum);
    memset(weight, 0, sizeof weight);
    for (uint32_t i = 0; i < r->e->n; i++) {
        uint32_t to = N_MAX;
        double most = -2;
        for (uint32_t j = 0; j < r->e->n && !r->stays[i]; j++) {
            const double x = r->stays[j] ? cosine(r, i, j) : -2;
            if (x > most) to = j;
            most = fmax(most, x);
        }
        if (to == N_MAX || r->e->is_fixed[to] || r->e->is_guarded[to]) continue;
        const double own = sqrt(dot(r->e->v[i], r->e->v[i], n));
        const double a =
            fmax(0, most) * own / (own + sqrt(dot(r->e->v[to], r->e->v[to], n)) + 1e-6);
        weight[to] += a;
        for (uint32_t c = 0; c < n; c++)
            sum[to][c] += a * (double)r->e->v[i][c];
    }
    for (uint32_t j = 0; j < r->e->n; j++) {
        r->n_merged += weight[j] > 0;
        for (uint32_t c = 0; c < n; c++)
            r->e->v[j][c] = (float)(((double)r->e->v[j][c] + sum[j][c]) / (1 + weight[j]));
    }
}

static double distance(const float *a, const float *b, uint32_t n)
{
    double most = 0;
    for (uint32_t i = 0; i < n; i++)
        most = fmax(most, fabs((double)a[i] - (double)b[i]));
    return most;
}

/* The entries of a head before and after a round. Returns how many went; *n_written: what the round wrote. */
static uint32_t check_head(const fake *f, const char *rewrite, uint32_t l, entries *before,
                           const entries *after, double tolerance, uint32_t *n_written)
{
    round_of r = {.layer = &f->layers[l], .e = before};
    uint32_t n_stay = 0;
    for (uint32_t i = 0; i < before->n; i++) {
        r.stays[i] = n_stay < after->n && after->position[n_stay] == before->position[i];
        n_stay += r.stays[i];
    }
    ck_assert_uint_eq(n_stay, after->n);
    if (strstr(rewrite, "merge") != NULL) merge_slowly(&r);
    if (strstr(rewrite, "rerotate") != NULL) turn_slowly(&r);
    for (uint32_t i = 0, at = 0; i < before->n; i++) {
        if (!r.stays[i]) continue;
        ck_assert_double_le(distance(after->k[at], before->k[i], r.layer->k_dim), tolerance);
        ck_assert_double_le(distance(after->v[at], before->v[i], r.layer->v_dim), tolerance);
        at++;
    }
    *n_written += r.n_merged + r.n_turned;
    return before->n - after->n;
}

static void check_rounds(fake_options options, double tolerance)
{
    static entries before[2][2], after;
    fake *f = open_small(&options);
    fake_seq s = open_prompt(f, 3, NULL);
    uint32_t n_gone = 0, n_written = 0, n_rounds = 0;
    while (kv_seq_length(s.seq) < TOKENS) {
        const uint32_t length = kv_seq_length(s.seq);
        fake_run(f, &s, length + (length < PROMPT ? kv_seq_step_tokens_max(s.seq) : 1), 64);
        for (uint32_t l = 0; l < 2; l++) {
            for (uint32_t h = 0; h < f->layers[l].n_kv_heads; h++)
                read_entries(f, s.seq, l, h, &before[l][h]);
        }
        const uint64_t n_before = f->cache->stats.entries_evicted;
        ck_assert_int_eq(kv_seq_settle(s.seq), ERR_OK);
        ck_assert(kv_cache_is_sane(f->cache));
        n_rounds += f->cache->stats.entries_evicted > n_before;
        for (uint32_t l = 0; l < 2; l++) {
            for (uint32_t h = 0; h < f->layers[l].n_kv_heads; h++) {
                read_entries(f, s.seq, l, h, &after);
                n_gone += check_head(f, options.config.rewrite, l, &before[l][h], &after, tolerance,
                                     &n_written);
            }
        }
    }
    ck_assert_uint_gt(n_gone, 200);
    ck_assert_uint_gt(n_rounds, 6);
    ck_assert_uint_gt(n_written, 50);
    ck_assert_uint_eq(fake_stats(f).entries_rewritten, n_written);
    fake_seq_close(f, &s, false);
    fake_close(f);
}

START_TEST(every_round_is_what_a_slow_reference_makes_of_it)
{
    static const char *const rewrites[] = {"merge", "rerotate", "merge,rerotate"};
    for (uint32_t i = 0; i < 3; i++) {
        for (uint32_t n_shards = 1; n_shards <= 4; n_shards += 3) {
            fake_options options = options_of(rewrites[i], "none");
            options.isa = n_shards == 1 ? "ref" : "auto";
            options.config.n_shards = n_shards;
            options.config.placement = text(n_shards > 1 ? "hash" : "block");
            options.config.routing = text(i == 2 ? "full" : "hierarchical"); /* boxes are checked */
            options.config.routing_k = 0.5;
            check_rounds(options, 2e-6);
        }
    }
}
END_TEST

/* What lies in encoded pages stays as it is, and what does not is encoded then. */
START_TEST(encoded_entries_are_fixed)
{
    check_rounds(options_of("merge,rerotate", "int8"), 0.02);
    check_rounds(options_of("rerotate", "int8"), 0.02);
}
END_TEST

/* ---- golden -------------------------------------------------------------------------------------- */

enum { T = GOLDEN_TOKENS, D = GOLDEN_DIM, HQ = GOLDEN_HEADS, HK = 2 };

/* The next n tokens of the golden layer; out [n][HQ][D]. */
static void golden_step(fake *f, kv_seq *seq, uint32_t n, float *out)
{
    static float q[T][HQ][D], k[T][HK][D], v[T][HK][D];
    const uint32_t first = kv_seq_length(seq);
    for (uint32_t t = 0; t < n; t++) {
        for (uint32_t h = 0; h < HQ; h++)
            golden_query(h, first + t, q[t][h]);
        for (uint32_t h = 0; h < HK; h++) {
            golden_key(h, first + t, k[t][h]);
            golden_value(h, first + t, v[t][h]);
        }
    }
    const kv_row row = {.seq = seq, .n_tokens = n, .is_decode = n == 1};
    ck_assert_int_eq(kv_step_begin(f->cache, &row, 1), ERR_OK);
    kv_append(f->cache, &(kv_append_args){.layer = 0, .k = **k, .v = **v});
    kv_attend(f->cache, &(kv_attend_args){.layer = 0, .q = **q, .out = out});
    kv_step_end(f->cache);
}

/* Of query head h at token T over these values, as if what stays stood at positions 0, 1, ... and the query
 * behind it. */
static void attend_compact(const entries *e, uint32_t h, double out[D])
{
    float q[D], k[D], v[D];
    double sum = 0;
    golden_query_at(h, T, e->n, q);
    memset(out, 0, D * sizeof *out);
    for (uint32_t i = 0; i <= e->n; i++) {
        const uint32_t t = i < e->n ? e->position[i] : T;
        golden_key_at(h / 2, t, i, k);
        golden_value(h / 2, t, v);
        const double p = exp(dot(q, k, D) / sqrt(D));
        for (uint32_t c = 0; c < D; c++)
            out[c] += p * (double)(i < e->n ? e->v[i][c] : v[c]);
        sum += p;
    }
    for (uint32_t c = 0; c < D; c++)
        out[c] /= sum;
}

/* The golden numbers are those of kept sets by knorm at one half, without sinks or a window. */
START_TEST(the_golden_layer_is_rewritten_to_the_golden_numbers)
{
    static const double value_sums[HK] = {0.39132, 9.79303};
    static float out[T][HQ][D];
    static entries e[HK];
    float freq[D / 2];
    const kv_rope rope = {.freq = freq, .n = D, .scale = 1};
    const kv_layer_shape layer = {.n_heads = HQ,
                                  .n_kv_heads = HK,
                                  .k_dim = D,
                                  .v_dim = D,
                                  .scale = 1 / sqrtf(D),
                                  .rope = &rope};
    for (uint32_t c = 0; c < D / 2; c++)
        freq[c] = powf(10000, -2.0f * (float)c / D);
    fake_options options = {.layers = &layer, .n_layers = 1, .isa = "auto"};
    options.config = fake_defaults();
    options.config.window_tokens = options.config.sink_tokens = 0;
    options.config.scheduling = text("knorm");
    options.config.budget = 0.5;
    options.config.rewrite = text("merge,rerotate");
    fake *f = fake_open(&options);
    kv_seq *seq;
    ck_assert_int_eq(
        kv_seq_open(f->cache, &(kv_seq_options){.salt = "", .n_prompt_tokens = T}, &seq), ERR_OK);
    golden_step(f, seq, T, **out);
    ck_assert_int_eq(kv_seq_settle(seq), ERR_OK);
    for (uint32_t h = 0; h < HK; h++) {
        double sum = 0;
        read_entries(f, seq, 0, h, &e[h]);
        ck_assert_uint_eq(e[h].n, T / 2);
        for (uint32_t i = 0; i < e[h].n * D; i++)
            sum += (double)e[h].v[i / D][i % D];
        ck_assert_double_eq_tol(sum, value_sums[h], 1e-5);
    }
    golden_step(f, seq, 1, **out);
    for (uint32_t h = 0; h < HQ; h++) {
        double want[D];
        attend_compact(&e[h / 2], h, want);
        for (uint32_t c = 0; c < D; c++)
            ck_assert_double_eq_tol((double)out[0][h][c], want[c], 1e-5);
    }
    kv_seq_close(seq, NULL);
    fake_close(f);
}
END_TEST

/* ---- bits ---------------------------------------------------------------------------------------- */

START_TEST(where_nothing_goes_no_bit_changes)
{
    fake_options options = options_of("merge,rerotate", "none");
    options.config.budget = 4000;
    fake *f = open_small(&options);
    options.config.scheduling = options.config.rewrite = text("none");
    fake *dense = open_small(&options);
    fake_seq s = open_prompt(f, 3, NULL), want = open_prompt(dense, 3, NULL);
    fake_run(f, &s, TOKENS, 33);
    fake_run(dense, &want, TOKENS, 64);
    ck_assert(fake_same(f, &want, &s, 0, TOKENS));
    ck_assert_uint_eq(fake_stats(f).entries_rewritten, 0);
    fake_seq_close(f, &s, false);
    fake_seq_close(dense, &want, false);
    fake_close(f);
    fake_close(dense);
}
END_TEST

/* Each has what it has in a cache of its own. */
START_TEST(requests_with_other_rewritings_run_side_by_side)
{
    static const char *const rewrites[] = {"none", "merge", "rerotate", "merge,rerotate"};
    fake_options options = options_of("none", "none");
    options.config.request_methods = options.no_prefix_caching = true;
    fake *f = open_small(&options);
    fake_seq together[4], *rows[4];
    for (uint32_t i = 0; i < 4; i++) {
        kv_methods methods;
        options.config.rewrite = text(rewrites[i]);
        ck_assert_int_eq(kv_methods_resolve(&options.config, &methods, NULL), ERR_OK);
        ck_assert_int_eq(kv_cache_check_methods(f->cache, &methods, NULL), ERR_OK);
        together[i] = open_prompt(f, 3, &methods);
        rows[i] = &together[i];
    }
    while (kv_seq_length(together[0].seq) < TOKENS) {
        const uint32_t n = (uint32_t)min_size(16, kv_seq_step_tokens_max(together[0].seq));
        const uint32_t left = TOKENS - kv_seq_length(together[0].seq), most = n < left ? n : left;
        ck_assert_int_eq(fake_step(f, rows, (uint32_t[]){most, most, most, most}, 4), ERR_OK);
    }
    for (uint32_t i = 0; i < 4; i++) {
        fake_options own = options_of(rewrites[i], "none");
        fake *alone = open_small(&own);
        fake_seq s = open_prompt(alone, 3, NULL);
        fake_run(alone, &s, TOKENS, 64);
        ck_assert(fake_same(f, &s, &together[i], 0, TOKENS));
        for (uint32_t j = 0; j < i; j++)
            ck_assert(!fake_same(f, &together[j], &together[i], 0, TOKENS));
        fake_seq_close(alone, &s, false);
        fake_close(alone);
    }
    for (uint32_t i = 0; i < 4; i++)
        fake_seq_close(f, &together[i], false);
    fake_close(f);
}
END_TEST

/* ---- pages of others ----------------------------------------------------------------------------- */

static uint32_t take(fake_seq *s, uint32_t n_tokens)
{
    return kv_seq_take_prefix(s->seq, s->tokens, n_tokens);
}

/* Takes 40 tokens of the prompt and finds them as they were written. */
static void check_untouched(fake *f, fake_ids ids)
{
    static entries e;
    fake_seq s = fake_seq_open(f, ids);
    ck_assert_uint_eq(take(&s, 56), 40);
    for (uint32_t l = 0; l < 2; l++) {
        const kv_layer_shape *layer = &f->layers[l];
        for (uint32_t h = 0; h < layer->n_kv_heads; h++) {
            read_entries(f, s.seq, l, h, &e);
            ck_assert_uint_eq(e.n, 40);
            for (uint32_t p = 0; p < e.n; p++) {
                float k[DIM_MAX], v[DIM_MAX];
                fake_fill(FAKE_KEY, l, h, s.tokens[p], p, layer->k_dim, k);
                fake_fill(FAKE_VALUE, l, h, s.tokens[p], p, layer->v_dim, v);
                ck_assert_mem_eq(e.k[p], k, layer->k_dim * sizeof *k);
                ck_assert_mem_eq(e.v[p], v, layer->v_dim * sizeof *v);
            }
        }
    }
    fake_seq_close(f, &s, false);
}

START_TEST(a_shared_prompt_is_not_written)
{
    fake_options options = options_of("merge,rerotate", "none");
    const fake_ids ids = {.seed = 9, .shared_seed = 1, .n_shared = 56, .n_prompt = 200};
    options.config.budget = 0.3;
    fake *f = fake_open(&options); /* nothing is chosen before the end of the prompt */
    fake_seq source = fake_seq_open(f, (fake_ids){.seed = 1, .n_prompt = 56});
    fake_run(f, &source, 56, 64);
    kv_seq_share_prompt(source.seq, source.tokens, 56);
    fake_run(f, &source, 100, 64); /* evicts, while the object holds its pages */
    ck_assert_uint_gt(fake_stats(f).entries_rewritten, 0);
    check_untouched(f, ids);
    fake_seq taker = fake_seq_open(f, ids);
    ck_assert_uint_eq(take(&taker, 56), 40);
    fake_run(f, &taker, 240, 64);
    check_untouched(f, ids);
    fake_seq fresh = fake_seq_open_salted(f, ids, "another");
    fake_run(f, &fresh, 240, 64);
    ck_assert(fake_same(f, &fresh, &taker, 40, 240));
    fake_seq_close(f, &source, true);
    fake_seq_close(f, &taker, true);
    fake_seq_close(f, &fresh, true);
    check_untouched(f, ids);
    kv_cache_drop_prefixes(f->cache);
    ck_assert_uint_eq(fake_stats(f).slab_bytes, 0);
    fake_close(f);
}
END_TEST

START_TEST(what_was_computed_under_one_rewriting_is_not_taken_under_another)
{
    char settings[4][KV_SETTINGS_BYTES];
    static const char *const rewrites[] = {"none", "merge", "rerotate", "rerotate,merge"};
    for (uint32_t i = 0; i < 4; i++) {
        fake_options options = options_of(rewrites[i], "none");
        fake *f = open_small(&options);
        kv_prefix_settings(f->cache, &f->cache->methods, settings[i]);
        for (uint32_t j = 0; j < i; j++)
            ck_assert_str_ne(settings[i], settings[j]);
        fake_close(f);
    }
}
END_TEST

/* Raw pages of 64 keys of 64 channels in f32 are half a slab. */
static const kv_layer_shape wide = {
    .n_heads = 1, .n_kv_heads = 1, .k_dim = 64, .v_dim = 64, .scale = 0.1f, .rope = &fake_rope};

static fake *open_wide(uint32_t n_layers, const char *scheduling, uint32_t n_slabs)
{
    static kv_layer_shape same[3];
    fake_options options = options_of("merge,rerotate", "none");
    for (uint32_t l = 0; l < n_layers; l++)
        same[l] = wide;
    options.layers = same;
    options.n_layers = n_layers;
    options.config.scheduling = text(scheduling);
    options.config.page_tokens = 64;
    options.config.window_tokens = options.config.sink_tokens = 0;
    options.config.memory_bytes = n_slabs * KV_SLAB_BYTES;
    return fake_open(&options);
}

/* With another sequence that shares its prompt, and alone; free_pool has room for all. */
static void check_refused_step(fake *f, fake *free_pool)
{
    fake_seq s = fake_seq_open(f, (fake_ids){.seed = 1, .n_prompt = 256}), *row = &s;
    fake_seq want = fake_seq_open(free_pool, (fake_ids){.seed = 1, .n_prompt = 256});
    fake_run(free_pool, &want, 300, 64);
    fake_run(f, &s, 256, 64);
    kv_seq_share_prompt(s.seq, s.tokens, 256);
    fake_seq other = fake_seq_open(f, (fake_ids){.seed = 1, .n_prompt = 400});
    ck_assert_uint_eq(take(&other, 256), 255); /* three pages a layer, and a copy in its ring */
    for (uint32_t i = 0; i < 2; i++) {
        ck_assert_int_eq(fake_step(f, &row, (uint32_t[]){1}, 1), ERR_KV_FULL);
        ck_assert_uint_eq(fake_stats(f).entries_evicted, 0);
        ck_assert_uint_eq(fake_stats(f).entries_rewritten, 0);
        fake_check(f);
    }
    fake_seq_close(f, &other, false);
    fake_run(f, &s, 300, 64);
    ck_assert_uint_gt(fake_stats(f).entries_rewritten, 0);
    ck_assert(fake_same(f, &want, &s, 0, 300));
    fake_seq_close(f, &s, false);
    fake_seq_close(free_pool, &want, false);
    ck_assert_uint_eq(fake_stats(f).slab_bytes, 0);
    fake_close(f);
    fake_close(free_pool);
}

START_TEST(without_room_for_copies_the_step_is_refused_and_nothing_is_written)
{
    /* Six pages, and more than enough. */
    check_refused_step(open_wide(1, "knorm+adakv", 3), open_wide(1, "knorm+adakv", 20));
}
END_TEST

/* Of twelve pages and room for six more three are copied in every layer. */
START_TEST(nor_is_it_where_only_some_layers_find_room)
{
    static const char *const policies[] = {"knorm", "fastv", "paper_duo_attention"};
    for (uint32_t i = 0; i < 3; i++)
        check_refused_step(open_wide(3, policies[i], 9), open_wide(3, policies[i], 60));
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE_SECONDS(every_round_is_what_a_slow_reference_makes_of_it, 600),
    TEST_CASE(encoded_entries_are_fixed),
    TEST_CASE(the_golden_layer_is_rewritten_to_the_golden_numbers),
    TEST_CASE(where_nothing_goes_no_bit_changes),
    TEST_CASE(requests_with_other_rewritings_run_side_by_side),
    TEST_CASE(a_shared_prompt_is_not_written),
    TEST_CASE(what_was_computed_under_one_rewriting_is_not_taken_under_another),
    TEST_CASE(without_room_for_copies_the_step_is_refused_and_nothing_is_written),
    TEST_CASE(nor_is_it_where_only_some_layers_find_room),
    TEST_CASES_END,
};
