/* tests/kvcache/test_kv_coded.c - sequences under a lossy codec: full pools, shared prefixes, cuts.
 *
 * That cuts of prompts change nothing, and what pages hold, is in tests/conformance/test_kv_codecs.c. */
#include "tests/kvcache/fake_model.h"
#include "tests/test_main.h"

#include "kvcache/encode.h"

#include <stdlib.h>
#include <string.h>

enum { SECTION = 64, PROMPT = 100, TOKENS = 180 };

/* Layers without a window: what is left behind can hit at every length. */
static fake *open_coded(const char *codec, bool no_prefix_caching)
{
    const fake_options options = {.layers = fake_coded_layers,
                                  .n_layers = 1,
                                  .model_type = DTYPE_BF16,
                                  .config = fake_coded(codec),
                                  .no_prefix_caching = no_prefix_caching};
    fake *f = fake_open(&options);
    f->cache->section_tokens = SECTION;
    return f;
}

static uint32_t take(fake_seq *s, uint32_t n_tokens)
{
    return kv_seq_take_prefix(s->seq, s->tokens, n_tokens);
}

/* ---- settings ------------------------------------------------------------------------------------ */

static void expect_refusal(const char *codec, const kv_layer_shape *layer, uint32_t page_tokens,
                           err_t expected, const char *words)
{
    dev *d;
    kv_cache *cache;
    err_info info = {0};
    kv_config config = fake_coded(codec);
    config.page_tokens = page_tokens;
    const kv_shape shape = {
        .n_layers = 1, .layer = layer, .n_experts = 8, .model_type = DTYPE_BF16};
    const kv_limits limits = {4, 64, 512};
    ck_assert_int_eq(dev_open_cpu(&(dev_config){.isa = "ref", .n_threads = 1}, &d, NULL), ERR_OK);
    ck_assert_int_eq(kv_cache_open(d, &config, &shape, &limits, &cache, &info), expected);
    ck_assert_msg(strstr(info.message, words) != NULL, "%s", info.message);
    dev_close(d);
}

START_TEST(what_a_codec_cannot_do_is_said_at_open)
{
    const kv_layer_shape latent = {
        .n_heads = 1, .n_kv_heads = 1, .k_dim = 64, .v_dim = 64, .v_in_k = true, .scale = 1};
    const kv_layer_shape tiny = {.n_heads = 1, .n_kv_heads = 1, .k_dim = 8, .v_dim = 8, .scale = 1};
    expect_refusal("int8,int4", fake_coded_layers, 8, ERR_BAD_CONFIG,
                   "kv-compression: 'int8,int4' is more than one codec; known selections are: ");
    expect_refusal("int9", fake_coded_layers, 8, ERR_BAD_CONFIG,
                   "kv-compression: 'int9' is unknown; known are: none fp8 int8");
    expect_refusal("prune", &latent, 32, ERR_UNSUPPORTED, "kv-compression: prune cannot encode");
    expect_refusal("int8", &tiny, 4, ERR_UNSUPPORTED, "make smaller");
}
END_TEST

/* ---- room ---------------------------------------------------------------------------------------- */

/* One page of 64 slots in f32 is half a slab; a slab has seven pages of int8. */
static fake *open_wide(void)
{
    static const kv_layer_shape wide = {
        .n_heads = 1, .n_kv_heads = 1, .k_dim = 64, .v_dim = 64, .scale = 0.1f};
    fake_options options = {.layers = &wide,
                            .n_layers = 1,
                            .limits = {8, 64, 512},
                            .config = fake_coded("int8"),
                            .no_prefix_caching = true};
    options.config.page_tokens = 64;
    options.config.window_tokens = 0;
    options.config.sink_tokens = 0;
    options.config.memory_bytes = 2 * KV_SLAB_BYTES;
    fake *f = fake_open(&options);
    f->cache->section_tokens = 128;
    return f;
}

START_TEST(a_full_pool_refuses_the_step_that_would_encode_and_changes_nothing)
{
    fake *f = open_wide();
    fake_seq seqs[3], *row = &seqs[0];
    for (uint32_t i = 0; i < 3; i++) {
        seqs[i] = fake_seq_open(f, (fake_ids){.seed = i, .n_prompt = 256});
        fake_run(f, &seqs[i], 64, 64); /* a raw page each: both slabs are raw */
    }
    fake_run(f, &seqs[0], 127, 64);
    const kv_stats before = fake_stats(f);
    ck_assert_int_eq(fake_step(f, &row, (uint32_t[]){1}, 1), ERR_KV_FULL);
    const kv_stats after = fake_stats(f);
    ck_assert_mem_eq(&before, &after, sizeof before);
    ck_assert_uint_eq(kv_seq_length(seqs[0].seq), 127);
    fake_seq_close(f, &seqs[2], false);
    ck_assert_int_eq(fake_step(f, &row, (uint32_t[]){1}, 1), ERR_OK);
    ck_assert_uint_eq(fake_stats(f).pages_encoded, 2);
    ck_assert_uint_eq(fake_stats(f).pages_used, 3); /* the raw page of the section is gone */
    fake_seq_close(f, &seqs[0], false);
    fake_seq_close(f, &seqs[1], false);
    ck_assert_uint_eq(fake_stats(f).slab_bytes, 0);
    fake_close(f);
}
END_TEST

START_TEST(what_could_fit_does_fit)
{
    fake *f = open_wide();
    uint32_t n = 1;
    while (kv_cache_could_fit(f->cache, NULL, n + 1))
        n++;
    ck_assert_uint_ge(n, 64);
    ck_assert_uint_lt(n, 512);
    for (uint32_t n_prompt = 0; n_prompt <= n; n_prompt += 61) {
        fake_seq s = fake_seq_open(f, (fake_ids){.seed = 1, .n_prompt = n_prompt});
        fake_run(f, &s, n, 64);
        fake_seq_close(f, &s, false);
    }
    fake_close(f);
}
END_TEST

START_TEST(an_aborted_step_leaves_no_trace)
{
    fake *f = open_coded("int4", true);
    const fake_ids ids = {.seed = 1, .n_prompt = PROMPT};
    fake_seq a = fake_seq_open(f, ids), b = fake_seq_open(f, ids);
    fake_run(f, &a, TOKENS, 64);
    while (kv_seq_length(b.seq) < TOKENS) {
        const uint32_t left = TOKENS - kv_seq_length(b.seq);
        const uint32_t most = (uint32_t)min_size(kv_seq_step_tokens_max(b.seq), left);
        const kv_row row = {.seq = b.seq, .n_tokens = most};
        const kv_stats before = fake_stats(f);
        ck_assert_int_eq(kv_step_begin(f->cache, &row, 1), ERR_OK);
        kv_step_abort(f->cache);
        ck_assert(kv_cache_is_sane(f->cache));
        ck_assert_uint_eq(fake_stats(f).pages_used, before.pages_used);
        ck_assert_uint_eq(fake_stats(f).pages_encoded, before.pages_encoded);
        fake_run(f, &b, kv_seq_length(b.seq) + (most < 5 ? most : 5), 5);
    }
    ck_assert(fake_same(f, &a, &b, 0, TOKENS));
    fake_seq_close(f, &a, false);
    fake_seq_close(f, &b, false);
    fake_close(f);
}
END_TEST

/* ---- shared prefixes ----------------------------------------------------------------------------- */

/* What is still raw is shared raw: as good as computed. The source encodes a copy of its own. */
START_TEST(a_prefix_shared_before_it_is_encoded_gives_the_bits_of_a_fresh_one)
{
    fake *fresh = open_coded("int4", true), *f = open_coded("int4", false);
    const fake_ids ids = {.seed = 2, .shared_seed = 1, .n_shared = 50, .n_prompt = PROMPT};
    fake_seq want = fake_seq_open(fresh, ids);
    fake_run(fresh, &want, TOKENS, 64);
    fake_seq source = fake_seq_open(f, (fake_ids){.seed = 1, .n_prompt = PROMPT});
    fake_run(f, &source, 55, 64);
    kv_seq_share_prompt(source.seq, source.tokens, 50);
    fake_seq taker = fake_seq_open(f, ids);
    ck_assert_uint_eq(take(&taker, PROMPT), 50);
    ck_assert_uint_eq(taker.seq->n_coded, 1); /* block 0 has the sinks; the others are raw */
    fake_run(f, &source, TOKENS, 64);         /* encodes, while the raw pages live on */
    fake_run(f, &taker, TOKENS, 9);
    ck_assert(fake_same(f, &want, &taker, 50, TOKENS));
    fake_seq_close(f, &source, true);
    fake_seq_close(f, &taker, true);
    fake_seq_close(fresh, &want, false);
    kv_cache_drop_prefixes(f->cache);
    ck_assert_uint_eq(fake_stats(f).slab_bytes, 0);
    fake_close(f);
    fake_close(fresh);
}
END_TEST

/* Largest difference at the positions where both have computed. */
static double difference(const fake *f, const fake_seq *a, const fake_seq *b, uint32_t first)
{
    double worst = 0;
    for (size_t i = first * f->n_out; i < TOKENS * f->n_out; i++) {
        const double d = (double)a->out[i] - (double)b->out[i];
        worst = d > worst ? d : -d > worst ? -d : worst;
    }
    return worst;
}

/* What was encoded is shared as it is: the same for everybody who takes it, and near. */
START_TEST(a_prefix_of_codes_gives_every_taker_the_same)
{
    fake *f = open_coded("int8", false), *exact = open_coded("none", true);
    const fake_ids ids = {.seed = 1, .n_prompt = PROMPT};
    fake_seq want = fake_seq_open(exact, ids), source = fake_seq_open(f, ids);
    fake_run(exact, &want, TOKENS, 64);
    fake_run(f, &source, PROMPT + 21, 64);
    fake_seq_close(f, &source, true); /* the ring is encoded, too; the page of the sinks is not */
    fake_seq takers[2];
    for (uint32_t i = 0; i < 2; i++) {
        takers[i] = fake_seq_open(f, ids);
        ck_assert_uint_eq(take(&takers[i], 118), 117); /* five tokens of its block are decoded */
        fake_run(f, &takers[i], TOKENS, i == 0 ? 64 : 3);
        takers[i].seq->no_prefix_write = true;
    }
    ck_assert(fake_same(f, &takers[0], &takers[1], 117, TOKENS));
    ck_assert_double_gt(difference(f, &takers[0], &want, 117), 0);
    ck_assert_double_lt(difference(f, &takers[0], &want, 117), 0.03);
    fake_seq_close(f, &takers[0], false);
    fake_seq_close(f, &takers[1], false);
    fake_seq_close(exact, &want, false);
    fake_close(f);
    fake_close(exact);
}
END_TEST

START_TEST(sinks_come_back_exactly)
{
    fake *f = open_coded("int2", false);
    fake_seq source = fake_seq_open(f, (fake_ids){.seed = 1, .n_prompt = PROMPT});
    const kv_ring_place at = {0, 1, 0};
    fake_run(f, &source, TOKENS, 64);
    const attn_span span = kv_ring_sink_span(&f->cache->rings, source.seq->ring, at.layer, 1, 3);
    uint8_t *kept = malloc(3 * (size_t)span.k_stride_bytes);
    memcpy(kept, span.k, 3 * (size_t)span.k_stride_bytes);
    fake_seq_close(f, &source, true);
    fake_seq taker = fake_seq_open(f, (fake_ids){.seed = 1, .n_prompt = TOKENS});
    ck_assert_uint_eq(take(&taker, TOKENS), TOKENS - 1);
    const attn_span taken = kv_ring_sink_span(&f->cache->rings, taker.seq->ring, at.layer, 1, 3);
    ck_assert_mem_eq(taken.k, kept, 3 * (size_t)span.k_stride_bytes);
    free(kept);
    fake_seq_close(f, &taker, false);
    fake_close(f);
}
END_TEST

/* ---- queries ------------------------------------------------------------------------------------- */

/* Channel c of the keys of a block, by what the positions [first, end) of queries make of it. */
static double think_score(const fake *f, const fake_seq *s, fake_key block, fake_range queries,
                          uint32_t c)
{
    const kv_layer_shape *layer = &f->layers[block.layer];
    const uint32_t group = layer->n_heads / layer->n_kv_heads, page_tokens = f->cache->page_tokens;
    double keys = 0, asked = queries.first < queries.end ? 0 : 1;
    float x[64];
    for (uint32_t p = block.position; p < block.position + page_tokens; p++) {
        fake_fill(FAKE_KEY, block.layer, block.head, s->tokens[p], p, layer->k_dim, x);
        keys += (double)x[c] * (double)x[c];
    }
    for (uint32_t p = queries.first; p < queries.end; p++) {
        for (uint32_t g = 0; g < group; g++) {
            fake_fill(FAKE_QUERY, block.layer, block.head * group + g, s->tokens[p], p,
                      layer->k_dim, x);
            asked += (double)x[c] * (double)x[c];
        }
    }
    return keys * asked;
}

/* Half of the channels, the best by those queries, are in the block's page and no other. */
static void check_think(const fake *f, const fake_seq *s, uint32_t b, fake_range queries)
{
    for (uint32_t l = 0; l < f->n_layers; l++) {
        const uint32_t dim = f->layers[l].k_dim;
        for (uint32_t h = 0; h < f->layers[l].n_kv_heads; h++) {
            const uint32_t page = kv_table_page(&s->seq->table, kv_list(f->cache, l, h, 0), b);
            if (page == KV_PAGE_NONE) continue;
            ck_assert(kv_is_coded_page(f->cache, page));
            const attn_span span =
                kv_page_span(kv_layout_of(f->cache, page), kv_pool_data(f->cache->pool, page), 1);
            const fake_key block = {l, h, b * f->cache->page_tokens};
            for (uint32_t c = 0; c < dim; c++) {
                uint32_t n_better = 0;
                const double own = think_score(f, s, block, queries, c);
                for (uint32_t other = 0; other < dim; other++)
                    n_better += think_score(f, s, block, queries, other) > own;
                ck_assert_msg(attn_is_kept(span.k_grid, c) == (n_better < dim / 2),
                              "layer %u head %u block %u channel %u", l, h, b, c);
            }
        }
    }
}

/* Pages of the prompt by its last 32, later ones by the 32 before they are encoded; by fewer where fewer have
 * been seen. */
START_TEST(think_weighs_channels_by_the_latest_queries)
{
    enum { WINDOW = 32, LENGTH = 70 };
    kv_config config = fake_coded("think");
    config.dtype = KV_DTYPE_F32;
    fake *f =
        fake_open(&(fake_options){.layers = fake_coded_layers, .n_layers = 1, .config = config});
    const uint32_t page = f->cache->page_tokens, window = f->cache->window_tokens;
    fake_seq s = fake_seq_open(f, (fake_ids){.seed = 1, .n_prompt = LENGTH});
    fake_run(f, &s, LENGTH, 9);
    const uint32_t n_of_prompt = (LENGTH - window) / page;
    for (uint32_t b = 1; b < n_of_prompt; b++)
        check_think(f, &s, b, (fake_range){LENGTH - WINDOW, LENGTH});
    fake_run(f, &s, LENGTH + 40, 1);
    for (uint32_t b = n_of_prompt; b < (LENGTH + 40 - window) / page; b++) {
        const uint32_t end = (b + 1) * page + window;
        check_think(f, &s, b, (fake_range){end - WINDOW, end});
    }
    ck_assert_uint_eq(kv_seq_truncate(s.seq, 88), 88); /* of the window 78 to 87 are left */
    fake_run(f, &s, 108, 64);
    check_think(f, &s, 11, (fake_range){78, 108});
    ck_assert_uint_gt(fake_stats(f).observed_bytes, 0);
    kv_seq_share_prompt(s.seq, s.tokens, 64);
    fake_seq taker = fake_seq_open(f, (fake_ids){.seed = 1, .n_prompt = LENGTH});
    ck_assert_uint_eq(take(&taker, LENGTH), 64);
    fake_run(f, &taker, 84, 1);
    check_think(f, &taker, 8, (fake_range){64, 84}); /* those before were not seen */
    fake_seq_close(f, &taker, true);
    fake_seq_close(f, &s, true);
    ck_assert_uint_eq(fake_stats(f).observed_bytes, 0);
    fake_close(f);
}
END_TEST

/* ---- cuts ---------------------------------------------------------------------------------------- */

START_TEST(a_cut_into_codes_is_near_and_the_same_each_time)
{
    fake *f = open_coded("int8", true), *exact = open_coded("none", true);
    const fake_ids ids = {.seed = 1, .n_prompt = PROMPT};
    fake_seq want = fake_seq_open(exact, ids), twice[2];
    fake_run(exact, &want, TOKENS, 64);
    for (uint32_t cut = 0; cut < TOKENS; cut += 13) {
        for (uint32_t i = 0; i < 2; i++) {
            twice[i] = fake_seq_open(f, ids);
            fake_run(f, &twice[i], TOKENS, 64);
            ck_assert_uint_eq(kv_seq_truncate(twice[i].seq, cut), cut);
            fake_check(f);
            fake_run(f, &twice[i], TOKENS, i == 0 ? 64 : 5);
        }
        ck_assert(fake_same(f, &twice[0], &twice[1], 0, TOKENS));
        ck_assert_double_lt(difference(f, &twice[0], &want, 0), 0.03);
        fake_seq_close(f, &twice[0], false);
        fake_seq_close(f, &twice[1], false);
    }
    fake_seq_close(exact, &want, false);
    fake_close(f);
    fake_close(exact);
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE(what_a_codec_cannot_do_is_said_at_open),
    TEST_CASE(a_full_pool_refuses_the_step_that_would_encode_and_changes_nothing),
    TEST_CASE(what_could_fit_does_fit),
    TEST_CASE(an_aborted_step_leaves_no_trace),
    TEST_CASE(a_prefix_shared_before_it_is_encoded_gives_the_bits_of_a_fresh_one),
    TEST_CASE(a_prefix_of_codes_gives_every_taker_the_same),
    TEST_CASE(sinks_come_back_exactly),
    TEST_CASE(think_weighs_channels_by_the_latest_queries),
    TEST_CASE_SECONDS(a_cut_into_codes_is_near_and_the_same_each_time, 250),
    TEST_CASES_END,
};
