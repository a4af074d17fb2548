/* tests/kvcache/test_low_rank.c - what coefficients are worth, and that attention reads what they stand for.
 * Cuts, crowds and bytes are in tests/conformance/test_kv_codecs.c. */
#include "tests/kvcache/fake_model.h"
#include "tests/test_main.h"

#include "base/random.h"
#include "kvcache/compression/low_rank.h"
#include "kvcache/encode.h"

#include <math.h>
#include <stdlib.h>

enum { DIM = 24, RANK = 12, SLOTS = 8 };

/* A page of one head and the bases that it was made with. */
typedef struct page {
    kv_page_layout layout;
    float k[SLOTS][DIM], v[SLOTS][DIM];
    float memory[4 * RANK * DIM];
    kv_head_bases bases;
    uint8_t *bytes, *scratch;
    attn_span loaded;
} page;

/* Rows that lie in the space of the first n_directions of the basis, around `mean`. */
static void fill(float rows[SLOTS][DIM], const float *up, uint32_t n_directions, float mean)
{
    for (uint32_t i = 0; i < SLOTS; i++) {
        for (uint32_t c = 0; c < DIM; c++) {
            rows[i][c] = c % 2 == 0 ? mean : -mean;
            for (uint32_t r = 0; r < n_directions; r++)
                rows[i][c] += (2 * random_uniform(5, i, r) - 1) * up[r * DIM + c];
        }
    }
}

static void page_open(page *p, bool with_mean)
{
    const kv_head_shape shape = {DIM, DIM, false, DTYPE_F32, RANK, RANK};
    *p = (page){0};
    const kv_basis k = fake_basis(p->memory, 1, DIM, with_mean);
    const kv_basis v = fake_basis(p->memory + 2 * RANK * DIM, 1, DIM, with_mean);
    p->bases = (kv_head_bases){k.down, k.up, v.down, v.up};
    ck_assert_int_eq(kv_low_rank_layout(&shape, SLOTS, &p->layout), ERR_OK);
    p->bytes = malloc(p->layout.page_bytes);
    p->scratch = malloc(p->layout.strip.strip_bytes);
}

static void page_close(page *p)
{
    free(p->bytes);
    free(p->scratch);
}

static void seal_and_load(page *p, const char *codec)
{
    const attn_span span = {.k = p->k,
                            .v = p->v,
                            .k_stride_bytes = DIM * 4,
                            .v_stride_bytes = DIM * 4,
                            .n_slots = SLOTS,
                            .live = 0xff};
    const kv_seal_args seal = {
        .layout = &p->layout, .spans = &span, .n_spans = 1, .page = p->bytes, .bases = p->bases};
    const kv_load_args load = {.layout = &p->layout,
                               .page = p->bytes,
                               .n_slots = SLOTS,
                               .scratch = p->scratch,
                               .bases = p->bases};
    kv_codec_find(codec)->seal(&seal);
    p->loaded = kv_codec_find(codec)->load(&load);
}

static double row_at(const page *p, bool is_keys, uint32_t i, uint32_t c)
{
    const float *rows = is_keys ? p->loaded.k : p->loaded.v;
    return (double)rows[i * DIM + c];
}

START_TEST(what_lies_in_the_space_of_the_basis_comes_back)
{
    page p;
    page_open(&p, false);
    fill(p.k, p.bases.k_up, RANK, 0);
    fill(p.v, p.bases.v_up, RANK, 0);
    seal_and_load(&p, "lora");
    for (uint32_t i = 0; i < SLOTS; i++) {
        for (uint32_t c = 0; c < DIM; c++) {
            ck_assert_double_eq_tol(row_at(&p, true, i, c), (double)p.k[i][c], 1e-5);
            ck_assert_double_eq_tol(row_at(&p, false, i, c), (double)p.v[i][c], 1e-5);
        }
    }
    page_close(&p);
}
END_TEST

/* The mean of fake_basis changes its sign from channel to channel, faster than its directions do. */
START_TEST(lora_plus_has_one_direction_less_and_the_mean)
{
    page p;
    page_open(&p, true);
    fill(p.k, p.bases.k_up, RANK - 1, 0.05f);
    fill(p.v, p.bases.v_up, RANK - 1, 0.05f);
    seal_and_load(&p, "lora_plus");
    for (uint32_t i = 0; i < SLOTS; i++) {
        for (uint32_t c = 0; c < DIM; c++) {
            ck_assert_double_eq_tol(row_at(&p, true, i, c), (double)p.k[i][c], 1e-5);
            ck_assert_double_eq_tol(row_at(&p, false, i, c), (double)p.v[i][c], 1e-5);
        }
    }
    page_close(&p);
}
END_TEST

/* Pythagoras: of an entry x its projection x^ and the rest are at right angles. */
START_TEST(lora_keeps_the_projection_to_the_space)
{
    page p;
    page_open(&p, false);
    for (uint32_t i = 0; i < SLOTS; i++) {
        for (uint32_t c = 0; c < DIM; c++)
            p.k[i][c] = random_uniform(6, i, c) - 0.5f;
    }
    seal_and_load(&p, "lora");
    for (uint32_t i = 0; i < SLOTS; i++) {
        double dot = 0, rest = 0;
        for (uint32_t c = 0; c < DIM; c++) {
            const double back = row_at(&p, true, i, c);
            dot += back * ((double)p.k[i][c] - back);
            rest += ((double)p.k[i][c] - back) * ((double)p.k[i][c] - back);
        }
        ck_assert_double_le(fabs(dot), 1e-6);
        ck_assert_double_gt(rest, 0.1); /* half of the directions are gone */
    }
    page_close(&p);
}
END_TEST

START_TEST(lora_plus_keeps_the_length_of_keys)
{
    page p;
    page_open(&p, true);
    for (uint32_t i = 0; i < SLOTS; i++) {
        for (uint32_t c = 0; c < DIM; c++)
            p.k[i][c] = i == 3 ? 0 : random_uniform(7, i, c) - 0.5f;
    }
    seal_and_load(&p, "lora_plus");
    for (uint32_t i = 0; i < SLOTS; i++) {
        double own = 0, back = 0;
        for (uint32_t c = 0; c < DIM; c++) {
            own += (double)p.k[i][c] * (double)p.k[i][c];
            back += row_at(&p, true, i, c) * row_at(&p, true, i, c);
        }
        ck_assert_double_eq_tol(own, back, 1e-5 * own + 1e-12);
    }
    page_close(&p);
}
END_TEST

/* ---- in a cache ---------------------------------------------------------------------------------- */

/* Keys and values of one head as pages, ring and staging have them: what the codec made of the old ones. */
typedef struct history {
    double k[256][64], v[256][64];
} history;

static void add_span(const attn_span *span, const kv_layer_shape *layer, uint32_t first, history *h)
{
    for (uint32_t i = 0; i < span->n_slots; i++) {
        const float *k = (const float *)((const char *)span->k + i * span->k_stride_bytes);
        const float *v = (const float *)((const char *)span->v + i * span->v_stride_bytes);
        for (uint32_t c = 0; c < layer->k_dim; c++)
            h->k[first + i][c] = (double)k[c];
        for (uint32_t c = 0; c < layer->v_dim; c++)
            h->v[first + i][c] = (double)v[c];
    }
}

/* Everything that a sequence of n tokens holds in one head; f32. */
static void read_history(const fake *f, const fake_seq *s, uint32_t layer, uint32_t head,
                         history *h)
{
    const kv_cache *cache = f->cache;
    const uint32_t n_tokens = kv_seq_length(s->seq), page_tokens = cache->page_tokens;
    for (uint32_t b = 0; b * page_tokens < n_tokens; b++) {
        const uint32_t first = b * page_tokens;
        const uint32_t n = n_tokens - first < page_tokens ? n_tokens - first : page_tokens;
        const uint32_t id = b < s->seq->n_blocks
                                ? kv_table_page(&s->seq->table, kv_list(cache, layer, head, 0), b)
                                : KV_PAGE_NONE;
        const kv_page_place from = {layer, head, id};
        const kv_ring_place at = {layer, head, first};
        const attn_span span = id != KV_PAGE_NONE
                                   ? kv_page_load(cache, &from, n, cache->decoded)
                                   : kv_ring_span(&cache->rings, s->seq->ring, &at, n);
        add_span(&span, &f->layers[layer], first, h);
    }
}

/* How far attention is from a softmax over all n entries. */
static double softmax_error(const history *h, const kv_layer_shape *layer, const float *q,
                            uint32_t n, const float *o)
{
    double p[256], sum = 0, worst = 0;
    for (uint32_t t = 0; t < n; t++) {
        double dot = 0;
        for (uint32_t c = 0; c < layer->k_dim; c++)
            dot += (double)q[c] * h->k[t][c];
        p[t] = exp(dot * (double)layer->scale);
        sum += p[t];
    }
    for (uint32_t c = 0; c < layer->v_dim; c++) {
        double want = 0;
        for (uint32_t t = 0; t < n; t++)
            want += p[t] / sum * h->v[t][c];
        worst = fmax(worst, fabs(want - (double)o[c]));
    }
    return worst;
}

/* One more token, whose query is known; its attention against the decoded history. */
static double step_error(fake *f, fake_seq *s)
{
    static history h;
    const kv_layer_shape *layer = &f->layers[0];
    const uint32_t n = kv_seq_length(s->seq);
    const kv_row row = {.seq = s->seq, .n_tokens = 1, .is_decode = true};
    for (uint32_t i = 0; i < layer->n_heads * layer->k_dim; i++)
        f->q[i] = 2 * random_uniform(11, n, i) - 1;
    for (uint32_t i = 0; i < layer->n_kv_heads * layer->k_dim; i++)
        f->k[i] = random_uniform(12, n, i) - 0.5f;
    for (uint32_t i = 0; i < layer->n_kv_heads * layer->v_dim; i++)
        f->v[i] = random_uniform(13, n, i) - 0.5f;
    dev_upload(f->d, f->there.q, f->q, (size_t)layer->n_heads * layer->k_dim * sizeof *f->q);
    dev_upload(f->d, f->there.k, f->k, (size_t)layer->n_kv_heads * layer->k_dim * sizeof *f->k);
    dev_upload(f->d, f->there.v, f->v, (size_t)layer->n_kv_heads * layer->v_dim * sizeof *f->v);
    ck_assert_int_eq(kv_step_begin(f->cache, &row, 1), ERR_OK);
    kv_append(f->cache, &(kv_append_args){.layer = 0, .k = f->there.k, .v = f->there.v});
    kv_attend(f->cache, &(kv_attend_args){.layer = 0, .q = f->there.q, .out = f->there.out});
    dev_download(f->d, f->out, f->there.out,
                 (size_t)layer->n_heads * layer->v_dim * sizeof *f->out);
    double worst = 0;
    for (uint32_t head = 0; head < layer->n_heads; head++) {
        const uint32_t kv_head = head / (layer->n_heads / layer->n_kv_heads);
        read_history(f, s, 0, kv_head, &h);
        for (uint32_t c = 0; c < layer->k_dim; c++)
            h.k[n][c] = (double)f->k[kv_head * layer->k_dim + c];
        for (uint32_t c = 0; c < layer->v_dim; c++)
            h.v[n][c] = (double)f->v[kv_head * layer->v_dim + c];
        const double error = softmax_error(&h, layer, f->q + head * layer->k_dim, n + 1,
                                           f->out + head * layer->v_dim);
        worst = fmax(worst, error);
    }
    memset(f->experts, 0, sizeof *f->experts);
    kv_note_experts(f->cache, 0, f->experts, 1);
    kv_step_end(f->cache);
    return worst;
}

static void check_attention(const char *codec, const char *isa, uint32_t sink_tokens)
{
    fake_options options = {.layers = fake_coded_layers,
                            .n_layers = 1,
                            .isa = isa,
                            .model_type = DTYPE_F32,
                            .config = fake_coded(codec)};
    options.config.sink_tokens = sink_tokens;
    fake *f = fake_open(&options);
    fake_seq s = fake_seq_open(f, (fake_ids){.seed = 3, .n_prompt = 100});
    fake_run(f, &s, 100, 33);
    for (uint32_t i = 0; i < 60; i++)
        ck_assert_double_le(step_error(f, &s), 2e-6);
    ck_assert_uint_gt(s.seq->n_coded, 15);
    fake_seq_close(f, &s, false);
    fake_close(f);
}

START_TEST(attention_reads_what_the_coefficients_stand_for)
{
    for (const dev_ops *const *table = dev_cpu_tables(); *table != NULL; table++) {
        check_attention("lora", (*table)->name, 3);
        check_attention("lora_plus", (*table)->name, 0);
        check_attention("svd", (*table)->name, 3);
    }
}
END_TEST

/* Probes of a routing use the same scratch. */
START_TEST(a_routing_that_reads_all_has_the_bits_of_a_dense_read)
{
    fake_options options = {.layers = fake_coded_layers,
                            .n_layers = 2,
                            .isa = "auto",
                            .model_type = DTYPE_BF16,
                            .config = fake_coded("lora")};
    fake *dense = fake_open(&options);
    options.config.routing = (char *)(uintptr_t) "certified";
    options.config.routing_eps = 1e-300;
    fake *chosen = fake_open(&options);
    fake_seq a = fake_seq_open(dense, (fake_ids){.seed = 3, .n_prompt = 100});
    fake_seq b = fake_seq_open(chosen, (fake_ids){.seed = 3, .n_prompt = 100});
    a.n_prompt = b.n_prompt = 100;
    fake_run(dense, &a, 100, 64);
    fake_run(chosen, &b, 100, 64);
    fake_run(dense, &a, 200, 1);
    fake_run(chosen, &b, 200, 1);
    ck_assert(fake_same(dense, &a, &b, 0, 200));
    ck_assert_uint_gt(fake_stats(chosen).pages_read, 0);
    fake_seq_close(dense, &a, false);
    fake_seq_close(chosen, &b, false);
    fake_close(dense);
    fake_close(chosen);
}
END_TEST

/* The page of block 0 is encoded, too, once entries have been evicted; its sinks are not read from there. */
START_TEST(sinks_are_read_of_sequences_that_evict)
{
    fake_options options = {
        .layers = fake_coded_layers, .n_layers = 1, .config = fake_coded("lora")};
    options.config.scheduling = (char *)(uintptr_t) "random";
    options.config.budget = 0.8;
    fake *f = fake_open(&options);
    fake_seq a = fake_seq_open(f, (fake_ids){.seed = 3, .n_prompt = 100});
    fake_seq b = fake_seq_open(f, (fake_ids){.seed = 3, .n_prompt = 100});
    for (uint32_t p = 0; p < f->cache->sink_tokens; p++)
        b.tokens[p] += 1; /* and nothing else is different */
    fake_run(f, &a, 150, 64);
    fake_run(f, &b, 150, 64);
    for (uint32_t p = 0; p < 150; p++)
        ck_assert_msg(!fake_same(f, &a, &b, p, p + 1), "position %u", p);
    ck_assert_uint_gt(fake_stats(f).entries_evicted, 0);
    fake_seq_close(f, &a, false);
    fake_seq_close(f, &b, false);
    fake_close(f);
}
END_TEST

START_TEST(without_bases_the_missing_file_is_named)
{
    for (int i = 0; i < 2; i++) {
        dev *d;
        kv_cache *cache;
        err_info info = {0};
        const kv_config config = fake_coded(i == 0 ? "lora" : "lora_plus");
        const kv_shape shape = {
            .n_layers = 1, .layer = fake_coded_layers, .n_experts = 8, .model_type = DTYPE_BF16};
        ck_assert_int_eq(dev_open_cpu(&(dev_config){.isa = "ref", .n_threads = 1}, &d, NULL),
                         ERR_OK);
        ck_assert_int_eq(kv_cache_open(d, &config, &shape, &(kv_limits){4, 64, 512}, &cache, &info),
                         ERR_BAD_CONFIG);
        ck_assert_ptr_nonnull(strstr(info.message, config.compression));
        ck_assert_ptr_nonnull(strstr(info.message, "needs kv_bases.safetensors beside the model"));
        dev_close(d);
    }
}
END_TEST

START_TEST(other_bases_are_another_cache)
{
    char text[3][KV_SETTINGS_BYTES];
    for (int i = 0; i < 3; i++) {
        fake *f = fake_open(&(fake_options){.layers = fake_coded_layers,
                                            .n_layers = 2,
                                            .model_type = DTYPE_BF16,
                                            .config = fake_coded("lora")});
        f->bases[17] += i == 1 ? 1.0f : 0;
        kv_prefix_settings(f->cache, &f->cache->methods, text[i]);
        fake_close(f);
    }
    ck_assert_str_eq(text[0], text[2]);
    ck_assert_str_ne(text[0], text[1]);
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE(sinks_are_read_of_sequences_that_evict),
    TEST_CASE(what_lies_in_the_space_of_the_basis_comes_back),
    TEST_CASE(lora_plus_has_one_direction_less_and_the_mean),
    TEST_CASE(lora_keeps_the_projection_to_the_space),
    TEST_CASE(lora_plus_keeps_the_length_of_keys),
    TEST_CASE(attention_reads_what_the_coefficients_stand_for),
    TEST_CASE(a_routing_that_reads_all_has_the_bits_of_a_dense_read),
    TEST_CASE(without_bases_the_missing_file_is_named),
    TEST_CASE(other_bases_are_another_cache),
    TEST_CASES_END,
};
