/* tests/kvcache/test_distill.c - entries that stand for others: what attention makes of biases and new
 * values, and whose pages are written. The fit itself: test_matching.c; all combinations:
 * tests/conformance. */
#include "tests/kvcache/fake_model.h"
#include "tests/test_main.h"

#include "kvcache/distill.h"
#include "kvcache/evict.h"
#include "kvcache/page_bias.h"
#include "kvcache/score_view.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The newest 64 of a prompt stay as they are, so it must be longer than that. */
enum { PROMPT = 300, TOKENS = 350, SECTION = 128, N_MAX = 384, DIM_MAX = 64 };

static const fake_ids IDS = {.seed = 3, .n_prompt = PROMPT};

static char *text(const char *name)
{
    return (char *)(uintptr_t)name;
}

static fake_options options_of(const char *compression, double budget)
{
    fake_options options = {
        .layers = fake_coded_layers, .n_layers = 2, .config = fake_coded(compression)};
    options.config.budget = budget;
    return options;
}

static fake *open_small(const fake_options *options)
{
    fake *f = fake_open(options);
    f->cache->section_tokens = SECTION;
    return f;
}

/* ---- nearer than eviction ------------------------------------------------------------------------ */

/* Root of the mean square difference of what attention returned for decoded tokens. */
static double distance(const fake *f, const fake_seq *a, const fake_seq *b)
{
    double sum = 0;
    for (size_t i = (size_t)(PROMPT + 1) * f->n_out; i < (size_t)TOKENS * f->n_out; i++)
        sum += ((double)a->out[i] - (double)b->out[i]) * ((double)a->out[i] - (double)b->out[i]);
    return sqrt(sum / ((double)(TOKENS - PROMPT - 1) * (double)f->n_out));
}

static fake_seq run_under(fake *f, const kv_methods *methods)
{
    fake_seq s = fake_seq_open(f, (fake_ids){.seed = 3, .n_prompt = PROMPT, .methods = methods});
    s.n_prompt = PROMPT;
    fake_run(f, &s, PROMPT, 64);
    fake_run(f, &s, TOKENS, 1);
    return s;
}

static void compare_with_eviction(const char *codec, double budget)
{
    char compression[64];
    kv_methods all, matched;
    snprintf(compression, sizeof compression, "distill,%s", codec);
    fake_options options = options_of(codec, budget);
    options.config.request_methods = options.no_prefix_caching = true;
    fake *f = open_small(&options);
    ck_assert_int_eq(kv_methods_resolve(&options.config, &all, NULL), ERR_OK);
    options.config.compression = compression;
    ck_assert_int_eq(kv_methods_resolve(&options.config, &matched, NULL), ERR_OK);
    kv_methods evicted = matched;
    kv_scorer plain = *matched.selection.scorer;
    plain.is_fitted = false;
    evicted.selection.scorer = &plain;
    fake_seq want = run_under(f, &all), one = run_under(f, &matched),
             other = run_under(f, &evicted);
    ck_assert_uint_eq(one.seq->table.n_live[0], other.seq->table.n_live[0]);
    const double with = distance(f, &want, &one), without = distance(f, &want, &other);
    ck_assert_msg(with < 0.9 * without, "%s %g: %g, by eviction %g", codec, budget, with, without);
    fake_seq_close(f, &want, false);
    fake_seq_close(f, &one, false);
    fake_seq_close(f, &other, false);
    fake_close(f);
}

START_TEST(what_stays_serves_later_queries_better_than_by_eviction)
{
    compare_with_eviction("none", 0.6);
    compare_with_eviction("none", 0.4);
    compare_with_eviction("int8", 0.6);
    compare_with_eviction("int8", 0.4);
    compare_with_eviction("svd", 0.5);
}
END_TEST

/* ---- what attention reads ------------------------------------------------------------------------ */

/* One head's entries, as a scorer would see them, and their biases. */
typedef struct entries {
    uint32_t n;
    double bias[N_MAX];
    float k[N_MAX][DIM_MAX], v[N_MAX][DIM_MAX];
} entries;

static void read_entries(const fake *f, fake_seq *s, uint32_t l, uint32_t h, entries *out)
{
    const kv_layer_shape *layer = &f->layers[l];
    kv_head_view *view = &f->cache->evict.heads[h];
    uint32_t page = KV_PAGE_NONE;
    attn_span span;
    const kv_view_source source = {
        .seq = s->seq, .layer = l, .head = h, .view = view, .page = &page, .span = &span};
    kv_view_list(s->seq, l, h, view);
    const kv_score_view all = {
        .n = view->n, .positions = view->positions, .load = kv_view_load, .ctx = &source};
    ck_assert_uint_lt(view->n, N_MAX);
    out->n = view->n;
    for (uint32_t i = 0; i < view->n; i++) {
        float k[DIM_MAX], v[DIM_MAX];
        kv_view_load(&all, i, 1, k, v);
        memcpy(out->k[i], k, layer->k_dim * sizeof *k);
        memcpy(out->v[i], v, layer->v_dim * sizeof *v);
        out->bias[i] = (double)view->bias[i];
    }
}

/* Of the query of a token over these entries and its own. */
static void attend(const fake *f, const fake_seq *s, uint32_t l, uint32_t q_head, entries *e,
                   double out[DIM_MAX])
{
    const kv_layer_shape *layer = &f->layers[l];
    const uint32_t head = q_head / (layer->n_heads / layer->n_kv_heads);
    const uint32_t position = kv_seq_length(s->seq) - 1, token = s->tokens[position];
    float q[DIM_MAX];
    double sum = 0;
    fake_fill(FAKE_QUERY, l, q_head, token, position, layer->k_dim, q);
    fake_fill(FAKE_KEY, l, head, token, position, layer->k_dim, e->k[e->n]);
    fake_fill(FAKE_VALUE, l, head, token, position, layer->v_dim, e->v[e->n]);
    e->bias[e->n] = 0;
    memset(out, 0, DIM_MAX * sizeof *out);
    for (uint32_t i = 0; i <= e->n; i++) {
        double x = 0;
        for (uint32_t c = 0; c < layer->k_dim; c++)
            x += (double)q[c] * (double)e->k[i][c];
        const double p = exp(x * (double)layer->scale + e->bias[i]);
        sum += p;
        for (uint32_t c = 0; c < layer->v_dim; c++)
            out[c] += p * (double)e->v[i][c];
    }
    for (uint32_t c = 0; c < layer->v_dim; c++)
        out[c] /= sum;
}

/* Returns how many entries have a bias. */
static uint32_t check_step(fake *f, fake_seq *s)
{
    static entries e[2][2];
    uint32_t n_biased = 0;
    ck_assert_int_eq(kv_seq_settle(s->seq), ERR_OK);
    for (uint32_t l = 0; l < 2; l++) {
        for (uint32_t h = 0; h < f->layers[l].n_kv_heads; h++) {
            read_entries(f, s, l, h, &e[l][h]);
            for (uint32_t i = 0; i < e[l][h].n; i++)
                n_biased += e[l][h].bias[i] != 0;
        }
    }
    fake_run(f, s, kv_seq_length(s->seq) + 1, 1);
    const float *out = s->out + (kv_seq_length(s->seq) - 1) * f->n_out;
    for (uint32_t l = 0; l < 2; l++) {
        const kv_layer_shape *layer = &f->layers[l];
        for (uint32_t h = 0; h < layer->n_heads; h++) {
            double want[DIM_MAX];
            attend(f, s, l, h, &e[l][h / (layer->n_heads / layer->n_kv_heads)], want);
            for (uint32_t c = 0; c < layer->v_dim; c++)
                ck_assert_double_eq_tol((double)*out++, want[c], 2e-5);
        }
    }
    return n_biased;
}

static void check_codec(const char *codec, const char *isa, uint32_t n_shards)
{
    char compression[64];
    snprintf(compression, sizeof compression, "distill,%s", codec);
    fake_options options = options_of(compression, 0.5);
    options.isa = isa;
    options.config.n_shards = n_shards;
    options.config.placement = text(n_shards > 1 ? "hash" : "block");
    fake *f = open_small(&options);
    fake_seq s = fake_seq_open(f, IDS);
    s.n_prompt = PROMPT;
    fake_run(f, &s, PROMPT, 64);
    while (kv_seq_length(s.seq) < TOKENS)
        ck_assert_uint_gt(check_step(f, &s), 50);
    ck_assert_uint_gt(fake_stats(f).entries_evicted, 100);
    fake_seq_close(f, &s, false);
    fake_close(f);
}

START_TEST(attention_reads_biases_and_values_under_every_codec)
{
    for (size_t i = 0; kv_codecs[i] != NULL; i++) {
        check_codec(kv_codecs[i]->name, "ref", 1);
        check_codec(kv_codecs[i]->name, "auto", 1);
        check_codec(kv_codecs[i]->name, "auto", 4);
    }
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
    fake_seq s = fake_seq_open(f, ids);
    ck_assert_uint_eq(take(&s, 56), 40);
    static entries e;
    for (uint32_t l = 0; l < 2; l++) {
        for (uint32_t h = 0; h < f->layers[l].n_kv_heads; h++) {
            read_entries(f, &s, l, h, &e);
            ck_assert_uint_eq(e.n, 40);
            for (uint32_t p = 0; p < e.n; p++) {
                float v[DIM_MAX];
                const uint32_t v_dim = f->layers[l].v_dim;
                fake_fill(FAKE_VALUE, l, h, s.tokens[p], p, v_dim, v);
                ck_assert_mem_eq(e.v[p], v, v_dim * sizeof *v);
                ck_assert_double_eq(e.bias[p], 0);
            }
        }
    }
    fake_seq_close(f, &s, false);
}

static uint32_t count_biased(const fake *f, const fake_seq *s)
{
    uint32_t n = 0;
    for (uint32_t list = 0; list < f->cache->n_lists; list++) {
        for (uint32_t b = 0; b < s->seq->n_blocks; b++) {
            const uint32_t page = kv_table_page(&s->seq->table, list, b);
            n += page != KV_PAGE_NONE && kv_pool_biases(f->cache->pool, page) != NULL;
        }
    }
    return n;
}

START_TEST(a_shared_prompt_is_not_written)
{
    const fake_options options = options_of("distill,none", 0.4);
    const fake_ids ids = {.seed = 9, .shared_seed = 1, .n_shared = 56, .n_prompt = 200};
    fake *f = fake_open(&options); /* nothing is chosen before the end of the prompt */
    fake_seq source = fake_seq_open(f, (fake_ids){.seed = 1, .n_prompt = 56});
    fake_run(f, &source, 56, 64);
    kv_seq_share_prompt(source.seq, source.tokens, 56);
    fake_run(f, &source, 100, 64); /* evicts, while the object holds its pages */
    ck_assert_uint_gt(fake_stats(f).entries_evicted, 0);
    check_untouched(f, ids);
    fake_seq taker = fake_seq_open(f, ids);
    ck_assert_uint_eq(take(&taker, 56), 40);
    fake_run(f, &taker, 240, 64);
    ck_assert_uint_gt(count_biased(f, &taker), 0);
    check_untouched(f, ids);
    fake_seq_close(f, &source, true);
    fake_seq_close(f, &taker, true);
    check_untouched(f, ids);
    kv_cache_drop_prefixes(f->cache);
    ck_assert_uint_eq(fake_stats(f).slab_bytes, 0);
    fake_close(f);
}
END_TEST

/* Raw pages of 64 keys of 64 channels in f32 are half a slab. */
static const kv_layer_shape wide = {
    .n_heads = 1, .n_kv_heads = 1, .k_dim = 64, .v_dim = 64, .scale = 0.1f};

static fake *open_wide(uint32_t n_slabs)
{
    fake_options options = options_of("distill,none", 0.5);
    options.layers = &wide;
    options.n_layers = 1;
    options.config.page_tokens = 64;
    options.config.window_tokens = options.config.sink_tokens = 0;
    options.config.memory_bytes = n_slabs * KV_SLAB_BYTES;
    return fake_open(&options);
}

START_TEST(without_room_for_copies_the_step_is_refused_and_nothing_is_written)
{
    fake *f = open_wide(3), *free_pool = open_wide(20); /* six pages, and more than enough */
    fake_seq s = fake_seq_open(f, (fake_ids){.seed = 1, .n_prompt = 256}), *row = &s;
    fake_seq want = fake_seq_open(free_pool, (fake_ids){.seed = 1, .n_prompt = 256});
    fake_run(free_pool, &want, 300, 64);
    fake_run(f, &s, 256, 64);
    kv_seq_share_prompt(s.seq, s.tokens, 256);
    fake_seq other = fake_seq_open(f, (fake_ids){.seed = 1, .n_prompt = 400});
    ck_assert_uint_eq(take(&other, 256), 255); /* three pages, and a copy in its ring */
    for (uint32_t i = 0; i < 2; i++) {
        ck_assert_int_eq(fake_step(f, &row, (uint32_t[]){1}, 1), ERR_KV_FULL);
        ck_assert_uint_eq(fake_stats(f).entries_evicted, 0);
        ck_assert_uint_eq(count_biased(f, &s), 0);
        fake_check(f);
    }
    fake_seq_close(f, &other, false);
    fake_run(f, &s, 300, 64);
    ck_assert_uint_gt(count_biased(f, &s), 0);
    ck_assert(fake_same(f, &want, &s, 0, 300));
    fake_seq_close(f, &s, false);
    fake_seq_close(free_pool, &want, false);
    ck_assert_uint_eq(fake_stats(f).slab_bytes, 0);
    fake_close(f);
    fake_close(free_pool);
}
END_TEST

/* ---- what it needs ------------------------------------------------------------------------------- */

START_TEST(values_that_are_part_of_keys_cannot_be_fitted)
{
    const kv_layer_shape layers[2] = {
        fake_coded_layers[0],
        {.n_heads = 2, .n_kv_heads = 1, .k_dim = 24, .v_dim = 16, .v_in_k = true, .scale = 0.3f}};
    fake_options options = options_of("none", 0.5);
    options.layers = layers;
    options.config.request_methods = true;
    fake *f = fake_open(&options);
    kv_methods methods;
    err_info info = {0};
    options.config.compression = text("distill,none");
    ck_assert_int_eq(kv_methods_resolve(&options.config, &methods, NULL), ERR_OK);
    ck_assert_int_eq(kv_cache_check_methods(f->cache, &methods, &info), ERR_UNSUPPORTED);
    ck_assert_str_eq(info.message, "kv-compression: distill writes values, and those of layer 1 "
                                   "are part of its keys");
    fake_close(f);
}
END_TEST

START_TEST(biases_are_kept_only_where_there_may_be_any)
{
    fake_options with = options_of("distill,none", 0.5), without = options_of("snapkv,none", 0.5);
    with.config.memory_bytes = without.config.memory_bytes = 16 * KV_SLAB_BYTES;
    uint64_t bytes[2];
    for (uint32_t i = 0; i < 2; i++) {
        fake *f = open_small(i == 0 ? &with : &without);
        fake_seq s = fake_seq_open(f, IDS);
        fake_run(f, &s, PROMPT, 64);
        bytes[i] = fake_stats(f).table_bytes;
        fake_seq_close(f, &s, false);
        fake_close(f);
    }
    ck_assert_uint_gt(bytes[0], bytes[1]);
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE_SECONDS(what_stays_serves_later_queries_better_than_by_eviction, 600),
    TEST_CASE_SECONDS(attention_reads_biases_and_values_under_every_codec, 600),
    TEST_CASE(a_shared_prompt_is_not_written),
    TEST_CASE(without_room_for_copies_the_step_is_refused_and_nothing_is_written),
    TEST_CASE(values_that_are_part_of_keys_cannot_be_fitted),
    TEST_CASE(biases_are_kept_only_where_there_may_be_any),
    TEST_CASES_END,
};
