/* tests/conformance/test_kv_codecs.c - every page codec against the same promises: pages alone first,
 * then through a cache. */
#include "tests/kvcache/fake_model.h"
#include "tests/test_main.h"

#include "base/random.h"
#include "kvcache/compression/quant.h"
#include "kvcache/encode.h"

#include <math.h>
#include <stdlib.h>

/* ---- pages --------------------------------------------------------------------------------------- */

static const kv_head_shape shapes[] = {
    {64, 64, false, DTYPE_F32, 32, 32},     {64, 64, false, DTYPE_BF16, 32, 32},
    {24, 40, false, DTYPE_BF16, 12, 20},    {5, 3, false, DTYPE_F32, 3, 2},
    {72, 64, true, DTYPE_BF16, 36, 32},     {128, 128, false, DTYPE_BF16, 64, 64},
    {100, 70, false, DTYPE_F32, 50, 35},    {1024, 520, false, DTYPE_BF16, 512, 260},
    {576, 512, true, DTYPE_BF16, 288, 256}, {300, 205, true, DTYPE_F32, 150, 102}};
enum { N_SHAPES = sizeof shapes / sizeof shapes[0] };

/* A block of random entries and what a codec makes of it. */
typedef struct sealed {
    const kv_codec *codec;
    kv_page_layout layout;
    uint8_t *source, *page, *scratch;
    attn_span all; /* of the source */
    float *memory; /* of the bases */
    kv_head_bases bases;
} sealed;

static uint8_t *bytes_of(size_t n)
{
    uint8_t *bytes = aligned_alloc(64, round_up(n, 64));
    memset(bytes, 0xa5, round_up(n, 64));
    return bytes;
}

/* Numbers around 0, some channels far from it, some with a wide range. */
static void fill_source(const kv_page_layout *layout, uint8_t *source)
{
    const kv_strip *strip = &layout->strip;
    float x[1024];
    for (uint32_t i = 0; i < strip->n_slots; i++) {
        for (uint32_t c = 0; c < layout->shape.k_dim; c++)
            x[c] = random_uniform(8, i, c) * (c % 7 == 3 ? 20 : 2) - (c % 5 == 0 ? 30 : 1);
        kv_row_put(x, layout->shape.type, 0, layout->shape.k_dim,
                   source + i * strip->k_stride_bytes);
        if (strip->v_copy_bytes == 0) continue;
        for (uint32_t c = 0; c < layout->shape.v_dim; c++)
            x[c] = random_uniform(9, i, c) - 0.5f;
        kv_row_put(x, layout->shape.type, 0, layout->shape.v_dim,
                   source + strip->v_offset_bytes + i * strip->v_stride_bytes);
    }
}

static void make_bases(sealed *s)
{
    const kv_head_shape *shape = &s->layout.shape;
    const bool with_mean = strcmp(s->codec->name, "lora_plus") == 0;
    const size_t k = 2 * (size_t)shape->k_rank * shape->k_dim;
    if (!kv_codec_is_low_rank(s->codec)) return;
    s->memory = malloc((k + 2 * (size_t)shape->v_rank * shape->v_dim) * sizeof *s->memory);
    const kv_basis keys = fake_basis(s->memory, 1, shape->k_dim, with_mean);
    const kv_basis values = fake_basis(s->memory + k, 1, shape->v_dim, with_mean);
    ck_assert_uint_eq(keys.rank, shape->k_rank);
    ck_assert_uint_eq(values.rank, shape->v_rank);
    s->bases = (kv_head_bases){keys.down, keys.up, values.down, values.up};
}

/* False if the codec does not take the shape. */
static bool seal(const kv_codec *codec, const kv_head_shape *shape, uint32_t page_tokens,
                 uint32_t n_slots, sealed *out)
{
    *out = (sealed){.codec = codec};
    const err_t err = codec->layout(shape, page_tokens, &out->layout);
    if (err == ERR_UNSUPPORTED && !codec->is_exact) return false;
    ck_assert_int_eq(err, ERR_OK);
    out->source = bytes_of(out->layout.strip.strip_bytes);
    out->scratch = bytes_of(out->layout.strip.strip_bytes);
    out->page = bytes_of(out->layout.page_bytes);
    fill_source(&out->layout, out->source);
    make_bases(out);
    out->all = kv_strip_span(&out->layout.strip, out->source, 0, n_slots);
    const kv_seal_args args = {.layout = &out->layout,
                               .spans = &out->all,
                               .n_spans = 1,
                               .page = out->page,
                               .bases = out->bases};
    codec->seal(&args);
    return true;
}

static void sealed_free(sealed *s)
{
    free(s->source);
    free(s->page);
    free(s->scratch);
    free(s->memory);
}

static double bf16_at(const void *grid, size_t i)
{
    uint16_t half;
    memcpy(&half, (const char *)grid + 2 * i, sizeof half);
    return (double)f32_from_bf16(half);
}

/* An element as attention reads it, and how far it may be from x. */
typedef struct decoded {
    double x, bound;
} decoded;

static uint32_t n_kept(const void *grid, uint32_t n_channels)
{
    uint32_t n = 0;
    for (uint32_t c = 0; c < n_channels; c++)
        n += attn_is_kept(grid, c);
    return n;
}

/* Channel c of a row of dim, whose grid has a pair for every `group` channels; a latent's value is its key's row. */
static decoded decode(const attn_span *span, const uint8_t *row, uint32_t dim, uint32_t c,
                      const void *grid, uint32_t group, double x, dtype type)
{
    if (span->coding == ATTN_FP8) {
        float scale;
        memcpy(&scale, grid, sizeof scale);
        const double least = (double)scale * 0x1p-10, half = fabs(x) / 16;
        return (decoded){.x = (double)f32_from_fp8(row[c]) * (double)scale,
                         .bound = (half > least ? half : least) * (1 + 1e-6)};
    }
    if (span->coding == ATTN_KEPT) { /* exact, or left out */
        float kept = 0;
        if (attn_is_kept(grid, c)) kv_row_get(row, type, n_kept(grid, c), 1, &kept);
        return (decoded){.x = (double)kept, .bound = attn_is_kept(grid, c) ? 0 : fabs(x)};
    }
    const double scale = bf16_at(grid, c / group);
    const uint32_t place = attn_code_place(span->coding, dim, c),
                   n_pairs = (dim + group - 1) / group;
    const uint32_t code = code_get(row, attn_code_bits(span->coding), place);
    return (decoded){.x = code * scale + bf16_at(grid, n_pairs + c / group),
                     .bound = scale / 2 * (1 + 1e-5) + 1e-6 * fabs(x)};
}

/* A key of coefficients, whole; what they are worth is in test_low_rank.c. */
static void decode_low(const sealed *s, const uint8_t *row, double *out)
{
    float y[1024];
    const kv_head_shape *shape = &s->layout.shape;
    kv_row_get(row, shape->type, 0, shape->k_rank, y);
    for (uint32_t c = 0; c < shape->k_dim; c++)
        out[c] = 0;
    for (uint32_t r = 0; r < shape->k_rank; r++) {
        for (uint32_t c = 0; c < shape->k_dim; c++)
            out[c] += (double)y[r] * (double)s->bases.k_up[(size_t)r * shape->k_dim + c];
    }
}

/* The first slot of the span is slot `slot` of the page. */
static void check_row(const sealed *s, const attn_span *span, uint32_t slot, bool is_keys)
{
    float x[1024];
    const kv_strip *strip = &s->layout.strip;
    const uint32_t dim = is_keys ? s->layout.shape.k_dim : s->layout.shape.v_dim;
    const uint8_t *source = is_keys
                                ? s->source + slot * strip->k_stride_bytes
                                : s->source + strip->v_offset_bytes + slot * strip->v_stride_bytes;
    const uint8_t *codes = is_keys ? span->k : span->v;
    const void *grid = is_keys ? span->k_grid : span->v_grid;
    const uint32_t group = is_keys || span->v_group == 0 ? 1 : span->v_group;
    const uint32_t row_dim = attn_value_row_dim(span->coding, span->v_group, s->layout.shape.k_dim,
                                                s->layout.shape.v_dim);
    kv_row_get(source, s->layout.shape.type, 0, dim, x);
    for (uint32_t c = 0; c < dim; c++) {
        const decoded got = decode(span, codes, is_keys ? dim : row_dim, c, grid, group,
                                   (double)x[c], s->layout.shape.type);
        ck_assert_msg(fabs(got.x - (double)x[c]) <= got.bound, "%s: %.9g became %.9g, bound %.9g",
                      s->codec->name, (double)x[c], got.x, got.bound);
    }
}

/* What load gives back is what attention reads, rounded to the cache type. */
static void check_load(const sealed *s, uint32_t n_slots)
{
    float x[1024];
    double want[1024];
    const attn_span span = kv_page_span(&s->layout, s->page, n_slots);
    const kv_load_args args = {.layout = &s->layout,
                               .page = s->page,
                               .n_slots = n_slots,
                               .scratch = s->scratch,
                               .bases = s->bases};
    const attn_span loaded = s->codec->load(&args);
    ck_assert_uint_eq(loaded.n_slots, n_slots);
    ck_assert_uint_eq(loaded.live, kv_slot_mask(n_slots));
    ck_assert_int_eq(loaded.coding, ATTN_PLAIN);
    for (uint32_t i = 0; i < n_slots && !s->codec->is_exact; i++) {
        const uint8_t *codes = (const uint8_t *)span.k + i * span.k_stride_bytes;
        const uint32_t dim = s->layout.shape.k_dim;
        kv_row_get((const uint8_t *)loaded.k + i * loaded.k_stride_bytes, s->layout.shape.type, 0,
                   dim, x);
        if (kv_codec_is_low_rank(s->codec)) decode_low(s, codes, want);
        for (uint32_t c = 0; c < dim; c++) {
            if (!kv_codec_is_low_rank(s->codec))
                want[c] = decode(&span, codes, dim, c, span.k_grid, 1, 0, s->layout.shape.type).x;
            ck_assert_double_le(fabs((double)x[c] - want[c]), fabs(want[c]) * 0x1p-8 + 2e-5);
        }
    }
    if (!s->codec->is_exact) return;
    ck_assert_mem_eq(loaded.k, s->all.k, (size_t)n_slots * s->layout.strip.k_stride_bytes);
    if (s->layout.shape.v_in_k) ck_assert_ptr_eq(loaded.v, loaded.k);
    if (s->layout.shape.v_in_k) return;
    ck_assert_mem_eq(loaded.v, s->all.v, (size_t)n_slots * s->layout.strip.v_stride_bytes);
}

/* Coefficients promise nothing of a single element. */
static bool has_bound(const kv_codec *codec)
{
    return !codec->is_exact && !kv_codec_is_low_rank(codec);
}

START_TEST(every_entry_comes_back_within_the_bound_of_its_scale)
{
    static const uint32_t pages[][2] = {{4, 4}, {8, 8}, {32, 31}, {64, 64}, {64, 1}};
    for (size_t i = 0; kv_codecs[i] != NULL; i++) {
        for (size_t k = 0; k < N_SHAPES * 5; k++) {
            sealed s;
            const uint32_t page_tokens = pages[k % 5][0], n_slots = pages[k % 5][1];
            if (!seal(kv_codecs[i], &shapes[k / 5], page_tokens, n_slots, &s)) continue;
            const attn_span span = kv_page_span(&s.layout, s.page, n_slots);
            for (uint32_t slot = 0; slot < n_slots && has_bound(s.codec); slot++) {
                const attn_span rest = kv_span_cut(&span, slot, n_slots - slot);
                check_row(&s, &rest, slot, true);
                check_row(&s, &rest, slot, false);
            }
            check_load(&s, n_slots);
            if (n_slots > 1) check_load(&s, 1);
            sealed_free(&s);
        }
    }
}
END_TEST

START_TEST(a_page_depends_on_its_entries_alone)
{
    for (size_t i = 0; kv_codecs[i] != NULL; i++) {
        sealed s;
        ck_assert(seal(kv_codecs[i], &shapes[2], 32, 29, &s));
        uint8_t *again = bytes_of(s.layout.page_bytes);
        memset(again, 0x5a, s.layout.page_bytes);
        const attn_span spans[2] = {kv_span_cut(&s.all, 0, 11), kv_span_cut(&s.all, 11, 18)};
        const kv_seal_args args = {
            .layout = &s.layout, .spans = spans, .n_spans = 2, .page = again, .bases = s.bases};
        s.codec->seal(&args);
        /* Slots that are not there are the exact codec's own affair. */
        if (!s.codec->is_exact) ck_assert_mem_eq(again, s.page, s.layout.page_bytes);
        free(again);
        sealed_free(&s);
    }
}
END_TEST

START_TEST(no_codec_makes_a_page_larger)
{
    for (size_t i = 0; kv_codecs[i] != NULL; i++) {
        for (size_t k = 0; k < N_SHAPES; k++) {
            for (uint32_t page_tokens = 4; page_tokens <= 64; page_tokens *= 2) {
                kv_page_layout raw, coded;
                ck_assert_int_eq(kv_codec_none.layout(&shapes[k], page_tokens, &raw), ERR_OK);
                const err_t err = kv_codecs[i]->layout(&shapes[k], page_tokens, &coded);
                if (err == ERR_UNSUPPORTED) continue;
                ck_assert_int_eq(err, ERR_OK);
                if (kv_codecs[i]->is_exact) ck_assert_uint_eq(coded.page_bytes, raw.page_bytes);
                if (!kv_codecs[i]->is_exact) ck_assert_uint_lt(coded.page_bytes, raw.page_bytes);
            }
        }
    }
}
END_TEST

START_TEST(pages_of_128_channels_and_32_slots_have_the_promised_bytes)
{
    static const struct {
        const char *codec;
        size_t page_bytes;
        double most; /* of a raw page */
    } rows[] = {{"none", 16384, 1},     {"fp8", 8256, 0.505},         {"int8", 8960, 0.56},
                {"int4", 5120, 0.33},   {"int2", 3072, 0.19},         {"prune", 10304, 0.63},
                {"think", 12352, 0.76}, {"lora", 8192, 0.5},          {"lora_plus", 8192, 0.5},
                {"svd", 8192, 0.5},     {"paper_fastv", 8256, 0.505}, {"pikv", 8960, 0.56}};
    const kv_head_shape shape = {128, 128, false, DTYPE_BF16, 64, 64};
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        kv_page_layout layout;
        ck_assert_int_eq(kv_codec_find(rows[i].codec)->layout(&shape, 32, &layout), ERR_OK);
        ck_assert_uint_eq(layout.page_bytes, rows[i].page_bytes);
        ck_assert_double_le((double)layout.page_bytes / 16384, rows[i].most);
        ck_assert_uint_le(kv_page_read_bytes(&layout, 32), layout.page_bytes);
    }
}
END_TEST

START_TEST(a_latent_of_deepseek_has_the_promised_bytes)
{
    static const struct {
        const char *codec;
        size_t page_bytes;
    } rows[] = {{"none", 36864}, {"fp8", 18496}, {"int8", 20736}, {"int4", 11520}, {"int2", 6912}};
    const kv_head_shape shape = {576, 512, true, DTYPE_BF16, 0, 0};
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        kv_page_layout layout;
        ck_assert_int_eq(kv_codec_find(rows[i].codec)->layout(&shape, 32, &layout), ERR_OK);
        ck_assert_uint_eq(layout.page_bytes, rows[i].page_bytes);
        ck_assert_uint_le(kv_page_read_bytes(&layout, 32), layout.page_bytes);
    }
}
END_TEST

/* ---- in a cache ---------------------------------------------------------------------------------- */

enum { SECTION = 64, PROMPT = 150, TOKENS = 230 };
static const fake_ids IDS = {.seed = 1, .n_prompt = PROMPT};

/* Like fake_coded_layers, one with a window. */
static const kv_layer_shape latent_layers[2] = {
    {.n_heads = 4,
     .n_kv_heads = 1,
     .k_dim = 40,
     .v_dim = 32,
     .v_in_k = true,
     .scale = 0.3f,
     .has_router = true},
    {.n_heads = 3,
     .n_kv_heads = 1,
     .k_dim = 72,
     .v_dim = 50,
     .v_in_k = true,
     .scale = 0.25f,
     .window = 50},
};

/* A codec, and the layers that it is tried on. */
typedef struct subject {
    const kv_codec *codec;
    const kv_layer_shape *layers; /* [2] */
} subject;

static fake_options coded_options(const subject *on, const kv_codec *codec)
{
    return (fake_options){.layers = on->layers,
                          .n_layers = 2,
                          .model_type = DTYPE_BF16,
                          .config = fake_coded(codec->name)};
}

/* Sections are short, so that a test goes through some. */
static fake *open_coded(const fake_options *options)
{
    fake *f = fake_open(options);
    f->cache->section_tokens = SECTION;
    return f;
}

static bool takes_latents(const kv_codec *codec)
{
    const kv_head_shape head = {.k_dim = 40, .v_dim = 32, .v_in_k = true, .type = DTYPE_BF16};
    kv_page_layout layout;
    const err_t err = codec->layout(&head, 8, &layout);
    ck_assert(err == ERR_OK || err == ERR_UNSUPPORTED);
    return err == ERR_OK;
}

static void for_each_lossy(void (*check)(const subject *on))
{
    uint32_t n_latents = 0;
    for (size_t i = 0; kv_codecs[i] != NULL; i++) {
        if (kv_codecs[i]->is_exact) continue;
        check(&(subject){kv_codecs[i], fake_coded_layers});
        if (!takes_latents(kv_codecs[i])) continue;
        check(&(subject){kv_codecs[i], latent_layers});
        n_latents++;
    }
    ck_assert_uint_eq(n_latents, 5); /* fp8, the integers, and pikv, which is made of these */
}

/* The reference of every comparison: steps of one token, alone. */
static fake_seq run_one_by_one(fake *f)
{
    fake_seq s = fake_seq_open(f, IDS);
    fake_run(f, &s, TOKENS, 1);
    return s;
}

static void check_cuts(const subject *on)
{
    static const uint32_t chunks[] = {64, 7, 30};
    for (const dev_ops *const *table = dev_cpu_tables(); *table != NULL; table++) {
        fake_options options = coded_options(on, on->codec);
        options.isa = (*table)->name;
        options.no_prefix_caching = true;
        fake *f = open_coded(&options);
        fake_seq one = run_one_by_one(f);
        for (size_t i = 0; i < 3; i++) {
            fake_seq cut = fake_seq_open(f, IDS);
            fake_run(f, &cut, TOKENS, chunks[i]);
            ck_assert(fake_same(f, &one, &cut, 0, TOKENS));
            fake_seq_close(f, &cut, false);
        }
        fake_seq_close(f, &one, false);
        fake_close(f);
    }
}

START_TEST(cuts_change_no_bit)
{
    for_each_lossy(check_cuts);
}
END_TEST

/* Three sequences at their own pace in one batch, on four threads. */
static void check_crowd(const subject *on)
{
    fake_options options = coded_options(on, on->codec);
    options.no_prefix_caching = true;
    fake *f = open_coded(&options);
    options.n_threads = 4;
    fake *crowd = open_coded(&options);
    fake_seq one = run_one_by_one(f), seqs[3], *rows[3];
    for (uint32_t i = 0; i < 3; i++)
        seqs[i] = fake_seq_open(crowd, i == 1 ? IDS : (fake_ids){.seed = 50 + i, .n_prompt = 90});
    while (kv_seq_length(seqs[1].seq) < TOKENS) {
        uint32_t n_rows = 0, n_tokens[3];
        for (uint32_t i = 0; i < 3; i++) {
            const uint32_t left = TOKENS - kv_seq_length(seqs[i].seq);
            const uint32_t most =
                (uint32_t)min_size(5 + 9 * i, kv_seq_step_tokens_max(seqs[i].seq));
            if (left == 0) continue;
            n_tokens[n_rows] = most < left ? most : left;
            rows[n_rows++] = &seqs[i];
        }
        ck_assert_int_eq(fake_step(crowd, rows, n_tokens, n_rows), ERR_OK);
    }
    ck_assert(fake_same(f, &one, &seqs[1], 0, TOKENS));
    for (uint32_t i = 0; i < 3; i++)
        fake_seq_close(crowd, &seqs[i], false);
    ck_assert_uint_eq(fake_stats(crowd).slab_bytes, 0);
    fake_seq_close(f, &one, false);
    fake_close(crowd);
    fake_close(f);
}

START_TEST(neighbours_and_threads_change_no_bit)
{
    for_each_lossy(check_crowd);
}
END_TEST

/* Mean absolute difference of what attention returned at the tail. */
static double tail_error(const fake *f, const fake_seq *a, const fake_seq *b)
{
    double sum = 0;
    for (size_t i = PROMPT * f->n_out; i < TOKENS * f->n_out; i++)
        sum += fabs((double)a->out[i] - (double)b->out[i]);
    return sum / (double)((TOKENS - PROMPT) * f->n_out);
}

/* Keys and values are uniform noise, which nothing but more bits can describe. */
static double error_bound(const kv_codec *codec)
{
    static const struct {
        const char *codec;
        double most;
    } coarse[] = {{"int2", 0.1},      {"prune", 0.06}, {"think", 0.05},      {"lora", 0.1},
                  {"lora_plus", 0.1}, {"svd", 0.1},    {"paper_fastv", 0.1}, {"pikv", 0.06}};
    for (size_t i = 0; i < sizeof coarse / sizeof coarse[0]; i++) {
        if (strcmp(coarse[i].codec, codec->name) == 0) return coarse[i].most;
    }
    return 0.02;
}

static void check_error(const subject *on)
{
    fake_options options = coded_options(on, on->codec), exact = coded_options(on, &kv_codec_none);
    fake *f = open_coded(&options), *g = open_coded(&exact);
    fake_seq coded = run_one_by_one(f), raw = run_one_by_one(g);
    ck_assert(fake_same(f, &coded, &raw, 0, SECTION)); /* nothing has been encoded */
    const double error = tail_error(f, &coded, &raw);
    ck_assert_double_gt(error, 0);
    ck_assert_msg(error < error_bound(on->codec), "%s: %g", on->codec->name, error);
    fake_seq_close(f, &coded, false);
    fake_seq_close(g, &raw, false);
    fake_close(f);
    fake_close(g);
}

START_TEST(what_is_not_encoded_is_exact_and_the_rest_is_near)
{
    for_each_lossy(check_error);
}
END_TEST

/* Raw in the prompt since the last section, encoded behind it; block 0 has the sinks and stays raw. */
static void check_schedule(const subject *on)
{
    fake_options options = coded_options(on, on->codec);
    options.no_prefix_caching = true;
    fake *f = open_coded(&options);
    fake_seq s = fake_seq_open(f, IDS);
    ck_assert_uint_eq(kv_seq_step_tokens_max(s.seq), SECTION);
    fake_run(f, &s, SECTION - 1, 64);
    ck_assert_uint_eq(fake_stats(f).pages_encoded, 0);
    ck_assert_uint_eq(kv_seq_step_tokens_max(s.seq), 1);
    fake_run(f, &s, SECTION,
             64); /* (64 - 12) / 8 = 6 blocks, one raw; of the heads one has a window of 50 */
    ck_assert_uint_eq(fake_stats(f).pages_encoded, 5 * (on->layers[0].n_kv_heads + 1));
    fake_run(f, &s, PROMPT - 1, 64);
    ck_assert_uint_eq(s.seq->n_coded, (2 * SECTION - 12) / 8);
    ck_assert_uint_eq(kv_seq_step_tokens_max(s.seq), 1);
    fake_run(f, &s, PROMPT, 64);
    ck_assert_uint_eq(s.seq->n_coded, (PROMPT - 12) / 8);
    ck_assert_uint_eq(s.seq->n_coded, s.seq->n_blocks);
    for (uint32_t n = PROMPT + 1; n < TOKENS; n++) {
        fake_run(f, &s, n, 1);
        ck_assert_uint_eq(s.seq->n_coded, (n - 12) / 8);
    }
    const kv_stats stats = fake_stats(f);
    ck_assert_uint_lt(stats.encoded_bytes, stats.encoded_raw_bytes);
    ck_assert_uint_lt(stats.used_bytes, stats.pages_used * f->cache->layout[0].page_bytes);
    fake_seq_close(f, &s, false);
    ck_assert_uint_eq(fake_stats(f).slab_bytes, 0);
    ck_assert_uint_eq(fake_stats(f).used_bytes, 0);
    fake_close(f);
}

START_TEST(pages_are_encoded_at_sections_at_the_end_of_the_prompt_and_behind_it)
{
    for_each_lossy(check_schedule);
}
END_TEST

static void check_reads(const subject *on)
{
    fake_options options = coded_options(on, on->codec), exact = coded_options(on, &kv_codec_none);
    fake *f = open_coded(&options), *g = open_coded(&exact);
    fake_seq coded = run_one_by_one(f), raw = run_one_by_one(g);
    ck_assert_uint_lt(fake_stats(f).bytes_read, fake_stats(g).bytes_read);
    ck_assert_uint_eq(fake_stats(f).blocks_read, fake_stats(g).blocks_read);
    ck_assert_uint_lt(kv_cache_bytes_per_token(f->cache), kv_cache_bytes_per_token(g->cache));
    /* Of pikv's pages the most of each kind are counted, which for so small ones, half grid, are more than raw. */
    if (!on->codec->is_mixed || on->layers == fake_coded_layers)
        ck_assert_uint_gt(kv_cache_capacity_tokens(f->cache, NULL),
                          kv_cache_capacity_tokens(g->cache, NULL));
    ck_assert(!kv_cache_methods(f->cache)->is_exact);
    ck_assert(kv_cache_methods(g->cache)->is_exact);
    fake_seq_close(f, &coded, false);
    fake_seq_close(g, &raw, false);
    fake_close(f);
    fake_close(g);
}

START_TEST(fewer_bytes_are_held_and_read)
{
    for_each_lossy(check_reads);
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE_SECONDS(every_entry_comes_back_within_the_bound_of_its_scale, 600),
    TEST_CASE(a_page_depends_on_its_entries_alone),
    TEST_CASE(no_codec_makes_a_page_larger),
    TEST_CASE(pages_of_128_channels_and_32_slots_have_the_promised_bytes),
    TEST_CASE(a_latent_of_deepseek_has_the_promised_bytes),
    TEST_CASE(cuts_change_no_bit),
    TEST_CASE(neighbours_and_threads_change_no_bit),
    TEST_CASE(what_is_not_encoded_is_exact_and_the_rest_is_near),
    TEST_CASE(pages_are_encoded_at_sections_at_the_end_of_the_prompt_and_behind_it),
    TEST_CASE(fewer_bytes_are_held_and_read),
    TEST_CASES_END,
};
