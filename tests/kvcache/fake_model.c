/* tests/kvcache/fake_model.c - see fake_model.h. */
#include "tests/kvcache/fake_model.h"

#include "tests/kernels/dev_apart.h"

#include "base/random.h"

#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static const float sink_logits[4] = {0.5f, -1.0f, 2.0f, 0.0f};

/* Grouped heads; a sliding window with K and V of different widths; a latent with V inside K. */
const kv_layer_shape fake_layers[3] = {
    {.n_heads = 4, .n_kv_heads = 2, .k_dim = 8, .v_dim = 8, .scale = 0.35f, .has_router = true},
    {.n_heads = 2, .n_kv_heads = 1, .k_dim = 12, .v_dim = 5, .scale = 0.3f, .window = 10},
    {.n_heads = 4,
     .n_kv_heads = 1,
     .k_dim = 16,
     .v_dim = 8,
     .v_in_k = true,
     .scale = 0.25f,
     .sink_logit = sink_logits},
};

kv_config fake_defaults(void)
{
    return (kv_config){.dtype = KV_DTYPE_AUTO,
                       .memory_bytes = 4 << 20,
                       .page_tokens = 4,
                       .window_tokens = 8,
                       .sink_tokens = 2,
                       .prefix_caching = true,
                       .n_shards = 1,
                       .budget = 1,
                       .routing = (char *)(uintptr_t) "full",
                       .scheduling = (char *)(uintptr_t) "none",
                       .placement = (char *)(uintptr_t) "block",
                       .compression = (char *)(uintptr_t) "none",
                       .rewrite = (char *)(uintptr_t) "none"};
}

const kv_layer_shape fake_coded_layers[2] = {
    {.n_heads = 4, .n_kv_heads = 2, .k_dim = 32, .v_dim = 32, .scale = 0.35f, .has_router = true},
    {.n_heads = 2, .n_kv_heads = 1, .k_dim = 24, .v_dim = 40, .scale = 0.3f, .window = 50},
};

static const float frequencies[4] = {1, 0.3f, 0.1f, 0.03f};
const kv_rope fake_rope = {.freq = frequencies, .n = 8, .scale = 1};

kv_config fake_coded(const char *codec)
{
    kv_config config = fake_defaults();
    config.page_tokens = 8;
    config.window_tokens = 12;
    config.sink_tokens = 3;
    config.compression = (char *)(uintptr_t)codec;
    return config;
}

void fake_check(fake *f)
{
#ifdef PIKV_PARANOID
    (void)f;
#else
    if (f->n_checks++ % 8 == 0) ck_assert(kv_cache_is_sane(f->cache));
#endif
}

/* Low frequencies of a cosine transform: orthonormal, and every entry takes part. */
kv_basis fake_basis(float *memory, uint32_t n_kv_heads, uint32_t dim, bool with_mean)
{
    const uint32_t rank = (dim + 1) / 2;
    float *down = memory, *up = memory + (size_t)n_kv_heads * rank * dim;
    for (uint32_t i = 0; i < n_kv_heads * rank * dim; i++) {
        const double pi = 3.14159265358979323846;
        const uint32_t r = i / dim % rank, c = i % dim;
        const double wave = cos(pi * r * (c + 0.5) / dim) * sqrt((r == 0 ? 1.0 : 2.0) / dim);
        const bool is_mean = with_mean && r == rank - 1;
        down[i] = is_mean ? NAN : (float)wave; /* never used */
        up[i] = is_mean ? (c % 2 == 0 ? 0.05f : -0.05f) : (float)wave;
    }
    return (kv_basis){.rank = rank, .down = down, .up = up};
}

static void make_bases(fake *f)
{
    size_t n = 0;
    for (uint32_t l = 0; l < f->n_layers; l++) {
        const kv_layer_shape *layer = &f->layers[l];
        const size_t k = (size_t)layer->k_dim * (layer->k_dim + 1);
        n += 2 * layer->n_kv_heads * (k + (size_t)layer->v_dim * (layer->v_dim + 1));
    }
    float *at = f->bases = malloc(n * sizeof *f->bases);
    for (uint32_t l = 0; l < f->n_layers; l++) {
        kv_layer_shape *layer = &f->layers[l];
        const size_t k = (size_t)layer->n_kv_heads * layer->k_dim * (layer->k_dim + 1);
        const size_t v = (size_t)layer->n_kv_heads * layer->v_dim * (layer->v_dim + 1);
        layer->lora = (kv_bases){fake_basis(at, layer->n_kv_heads, layer->k_dim, false),
                                 fake_basis(at + k, layer->n_kv_heads, layer->v_dim, false)};
        at += k + v;
        layer->lora_plus = (kv_bases){fake_basis(at, layer->n_kv_heads, layer->k_dim, true),
                                      fake_basis(at + k, layer->n_kv_heads, layer->v_dim, true)};
        at += k + v;
    }
}

static void open_cache(fake *f, const fake_options *options)
{
    const kv_shape shape = {.n_layers = f->n_layers,
                            .layer = f->layers,
                            .n_experts = 8,
                            .model_type = options->model_type};
    kv_config config = options->config.page_tokens != 0 ? options->config : fake_defaults();
    if (options->no_prefix_caching) config.prefix_caching = false;
    err_info info = {0};
    const err_t err = kv_cache_open(f->d, &config, &shape, &f->limits, &f->cache, &info);
    ck_assert_msg(err == ERR_OK, "%s", info.message);
}

static bool is_apart(void)
{
    const char *device = getenv("PIKV_TEST_DEVICE");
    return device != NULL && strcmp(device, "apart") == 0;
}

dev *fake_open_device(const dev_config *config)
{
    dev *d;
    err_info info = {0};
    const err_t err = is_apart() ? dev_apart_open_attending(config, (size_t)1 << 30, &d, &info)
                                 : dev_open_cpu(config, &d, &info);
    ck_assert_msg(err == ERR_OK, "%s", info.message);
    return d;
}

static void open_device(fake *f, const fake_options *options)
{
    const dev_config device = {.isa = options->isa != NULL ? options->isa : "ref",
                               .n_threads = options->n_threads > 0 ? options->n_threads : 1};
    f->d = fake_open_device(&device);
}

/* n floats of the host's, and as many of the device's. */
static void alloc_pair(fake *f, size_t n, float **here, float **there)
{
    void *data;
    *here = malloc(n * sizeof **here);
    *there = *here;
    if (!is_apart()) return;
    ck_assert_int_eq(dev_alloc(f->d, n * sizeof **here, &data, NULL), ERR_OK);
    *there = data;
}

fake *fake_open(const fake_options *options)
{
    fake *f = calloc(1, sizeof *f);
    open_device(f, options);
    f->n_layers = options->layers != NULL ? options->n_layers : 3;
    memcpy(f->layers, options->layers != NULL ? options->layers : fake_layers,
           f->n_layers * sizeof *f->layers);
    make_bases(f);
    f->limits = options->limits;
    if (f->limits.n_seqs_max == 0) f->limits.n_seqs_max = 8;
    if (f->limits.n_step_tokens_max == 0) f->limits.n_step_tokens_max = 64;
    if (f->limits.n_seq_tokens_max == 0) f->limits.n_seq_tokens_max = 512;
    size_t widest = 0;
    for (uint32_t l = 0; l < f->n_layers; l++) {
        const kv_layer_shape *layer = &f->layers[l];
        f->n_out += (size_t)layer->n_heads * layer->v_dim;
        widest = max_size(widest, (size_t)layer->n_heads * max_size(layer->k_dim, layer->v_dim));
    }
    const size_t n = widest * f->limits.n_step_tokens_max;
    alloc_pair(f, n, &f->q, &f->there.q);
    alloc_pair(f, n, &f->k, &f->there.k);
    alloc_pair(f, n, &f->v, &f->there.v);
    alloc_pair(f, n, &f->out, &f->there.out);
    f->experts = malloc(f->limits.n_step_tokens_max * sizeof *f->experts);
    f->input_norm = calloc(f->limits.n_step_tokens_max, sizeof *f->input_norm);
    open_cache(f, options);
    return f;
}

const kv_layer_shape *fake_projecting(const kv_layer_shape *layers, uint32_t n_layers)
{
    enum { D_MODEL = 20, N_WEIGHTS = D_MODEL * 4 * 64 };
    static float weights[N_WEIGHTS];
    static matrix out_proj[FAKE_LAYERS_MAX];
    static kv_layer_shape copies[FAKE_LAYERS_MAX];
    for (uint32_t i = 0; i < N_WEIGHTS; i++)
        weights[i] = random_uniform(6, 0, i) - 0.5f;
    for (uint32_t l = 0; l < n_layers; l++) {
        const uint32_t cols = layers[l].n_heads * layers[l].v_dim;
        ck_assert_uint_le(D_MODEL * cols, N_WEIGHTS);
        out_proj[l] = (matrix){.data = weights, .type = DTYPE_F32, .rows = D_MODEL, .cols = cols};
        copies[l] = layers[l];
        copies[l].out_proj = &out_proj[l];
    }
    return copies;
}

void fake_close(fake *f)
{
    kv_cache_close(f->cache);
    dev_close(f->d);
    free(f->q);
    free(f->k);
    free(f->v);
    free(f->out);
    free(f->experts);
    free(f->input_norm);
    free(f->bases);
    free(f);
}

/* ---- entries ------------------------------------------------------------------------------------- */

/* Rows that were drawn lately: oracles ask for every row with every query, and drawing was most of a suite's time. */
enum { N_DRAWN = 4096, DRAWN_DIM_MAX = 64 };

typedef struct drawn_row {
    uint64_t stream;
    uint32_t token, n; /* n first values are there */
    float value[DRAWN_DIM_MAX];
} drawn_row;

static _Thread_local drawn_row drawn[N_DRAWN];

static void draw_row(uint32_t token, uint64_t stream, uint32_t n, float *out)
{
    for (uint32_t i = 0; i < n; i++)
        out[i] = 2 * random_uniform(token, stream, i) - 1;
}

void fake_fill(fake_kind what, uint32_t layer, uint32_t head, uint32_t token, uint32_t position,
               uint32_t n, float *out)
{
    const uint64_t stream = ((uint64_t)position << 32) | layer << 16 | head << 4 | what;
    if (n > DRAWN_DIM_MAX) {
        draw_row(token, stream, n, out);
        return;
    }
    const uint64_t mixed = (stream ^ (uint64_t)token << 8) * 0x9E3779B97F4A7C15u;
    drawn_row *row = &drawn[mixed >> 52];
    if (row->stream != stream || row->token != token || row->n < n) {
        *row = (drawn_row){.stream = stream, .token = token, .n = n};
        draw_row(token, stream, n, row->value);
    }
    memcpy(out, row->value, n * sizeof *out);
}

float fake_input_norm(uint32_t layer, uint32_t token, uint32_t position)
{
    return 0.5f + 2 * random_uniform(token, (uint64_t)position << 32 | layer, 99);
}

static uint32_t draw_token(uint64_t seed, uint32_t position)
{
    return random_at(seed, 77, position).word[0] % 50000;
}

fake_seq fake_seq_open_salted(fake *f, fake_ids ids, const char *salt)
{
    const uint32_t n_max = f->limits.n_seq_tokens_max;
    fake_seq s = {.tokens = malloc(n_max * sizeof *s.tokens),
                  .out = calloc(n_max * f->n_out, sizeof *s.out),
                  .n_prompt = UINT32_MAX};
    for (uint32_t p = 0; p < n_max; p++)
        s.tokens[p] = draw_token(p < ids.n_shared ? ids.shared_seed : ids.seed, p);
    const kv_seq_options options = {.methods = ids.methods,
                                    .salt = salt,
                                    .salt_bytes = strlen(salt),
                                    .n_prompt_tokens = ids.n_prompt};
    ck_assert_int_eq(kv_seq_open(f->cache, &options, &s.seq), ERR_OK);
    return s;
}

fake_seq fake_seq_open(fake *f, fake_ids ids)
{
    return fake_seq_open_salted(f, ids, "");
}

void fake_seq_free(fake_seq *s)
{
    free(s->tokens);
    free(s->out);
    *s = (fake_seq){0};
}

void fake_seq_close(fake *f, fake_seq *s, bool with_tokens)
{
    kv_seq_close(s->seq, with_tokens ? s->tokens : NULL);
    fake_check(f);
    fake_seq_free(s);
}

/* ---- steps --------------------------------------------------------------------------------------- */

typedef struct fake_token {
    const fake_seq *s;
    uint32_t position;
} fake_token;

static void run_layer(fake *f, uint32_t l, const fake_token *batch, uint32_t n_tokens)
{
    const kv_layer_shape *layer = &f->layers[l];
    for (uint32_t t = 0; t < n_tokens; t++) {
        const uint32_t p = batch[t].position, id = batch[t].s->tokens[p];
        for (uint32_t h = 0; h < layer->n_heads; h++)
            fake_fill(FAKE_QUERY, l, h, id, p, layer->k_dim,
                      f->q + (t * layer->n_heads + h) * layer->k_dim);
        for (uint32_t h = 0; h < layer->n_kv_heads; h++) {
            const size_t row = (size_t)t * layer->n_kv_heads + h;
            fake_fill(FAKE_KEY, l, h, id, p, layer->k_dim, f->k + row * layer->k_dim);
            fake_fill(FAKE_VALUE, l, h, id, p, layer->v_dim, f->v + row * layer->v_dim);
        }
        f->input_norm[t] = fake_input_norm(l, id, p);
        f->experts[t] = (id + l * f->expert_step) % 8;
    }
    const size_t n_kv = (size_t)n_tokens * layer->n_kv_heads,
                 n_q = (size_t)n_tokens * layer->n_heads;
    dev_upload(f->d, f->there.q, f->q, n_q * layer->k_dim * sizeof *f->q);
    dev_upload(f->d, f->there.k, f->k, n_kv * layer->k_dim * sizeof *f->k);
    dev_upload(f->d, f->there.v, f->v, n_kv * layer->v_dim * sizeof *f->v);
    const kv_append_args append = {
        .layer = l, .k = f->there.k, .v = layer->v_in_k ? NULL : f->there.v};
    kv_append(f->cache, &append);
    /* No rotation: queries are the same before it. They may lie where the output will. */
    if (kv_cache_wants_q_nope(f->cache)) memcpy(f->out, f->q, n_q * layer->k_dim * sizeof *f->q);
    const kv_attend_args attend = {.layer = l,
                                   .q = f->there.q,
                                   .q_nope = kv_cache_wants_q_nope(f->cache) ? f->out : NULL,
                                   .input_norm =
                                       kv_cache_wants_input_norm(f->cache) ? f->input_norm : NULL,
                                   .out = f->there.out};
    kv_attend(f->cache, &attend);
    dev_download(f->d, f->out, f->there.out, n_q * layer->v_dim * sizeof *f->out);
    if (layer->has_router) kv_note_experts(f->cache, l, f->experts, 1);
}

static void run_layers(fake *f, const fake_token *batch, uint32_t n_tokens)
{
    size_t at = 0;
    for (uint32_t l = 0; l < f->n_layers; l++) {
        run_layer(f, l, batch, n_tokens);
        const size_t width = (size_t)f->layers[l].n_heads * f->layers[l].v_dim;
        for (uint32_t t = 0; t < n_tokens; t++)
            memcpy(batch[t].s->out + batch[t].position * f->n_out + at, f->out + t * width,
                   width * sizeof *f->out);
        at += width;
    }
}

err_t fake_step(fake *f, fake_seq *const *seqs, const uint32_t *n_tokens, uint32_t n_rows)
{
    kv_row rows[FAKE_ROWS_MAX];
    fake_token *batch = malloc(f->limits.n_step_tokens_max * sizeof *batch);
    uint32_t n = 0;
    for (uint32_t r = 0; r < n_rows; r++) {
        const uint32_t length = kv_seq_length(seqs[r]->seq);
        const bool is_behind = n_tokens[r] == 1 && length >= seqs[r]->n_prompt;
        rows[r] = (kv_row){.seq = seqs[r]->seq,
                           .first_token = n,
                           .n_tokens = n_tokens[r],
                           .is_decode = is_behind && !seqs[r]->is_replay,
                           .is_replay = seqs[r]->is_replay};
        for (uint32_t t = 0; t < n_tokens[r]; t++)
            batch[n++] = (fake_token){seqs[r], length + t};
    }
    const err_t err = kv_step_begin(f->cache, rows, n_rows);
    if (err == ERR_OK) {
        run_layers(f, batch, n);
        kv_step_end(f->cache);
    }
    fake_check(f);
    free(batch);
    return err;
}

void fake_run(fake *f, fake_seq *s, uint32_t n_tokens, uint32_t chunk)
{
    while (kv_seq_length(s->seq) < n_tokens) {
        const uint32_t left = n_tokens - kv_seq_length(s->seq);
        const uint32_t most = (uint32_t)min_size(left, kv_seq_step_tokens_max(s->seq));
        const uint32_t n = (uint32_t)min_size(chunk, most);
        ck_assert_int_eq(fake_step(f, &s, &n, 1), ERR_OK);
    }
}

/* ---- the reference ------------------------------------------------------------------------------- */

static double stored(float x, dtype type)
{
    return type == DTYPE_BF16 ? (double)f32_from_bf16(bf16_from_f32(x)) : (double)x;
}

/* What is compared. */
typedef struct reference {
    const fake *f;
    const fake_seq *s;
    fake_keeps *keeps; /* NULL: everything is kept */
    const void *ctx;
} reference;

/* o of one query head, over all positions it may see. */
static void reference_head(const reference *r, uint32_t l, uint32_t h, uint32_t position, double *o)
{
    const fake *f = r->f;
    const fake_seq *s = r->s;
    const kv_layer_shape *layer = &f->layers[l];
    const dtype type = kv_cache_type(f->cache);
    const uint32_t kv_head = h / (layer->n_heads / layer->n_kv_heads);
    float q[FAKE_DIM_MAX], k[FAKE_DIM_MAX], v[FAKE_DIM_MAX];
    double sum = 0;
    fake_fill(FAKE_QUERY, l, h, s->tokens[position], position, layer->k_dim, q);
    for (uint32_t i = 0; i < layer->v_dim; i++)
        o[i] = 0;
    if (layer->sink_logit != NULL) sum += exp((double)layer->sink_logit[h]);
    for (uint32_t p = 0; p <= position; p++) {
        if (layer->window != 0 && p + layer->window <= position) continue;
        if (r->keeps != NULL && !r->keeps(r->ctx, (fake_key){l, kv_head, p}, position)) continue;
        fake_fill(FAKE_KEY, l, kv_head, s->tokens[p], p, layer->k_dim, k);
        fake_fill(FAKE_VALUE, l, kv_head, s->tokens[p], p, layer->v_dim, v);
        double dot = 0;
        for (uint32_t i = 0; i < layer->k_dim; i++)
            dot += (double)q[i] * stored(k[i], type);
        const double weight = exp(dot * (double)layer->scale);
        sum += weight;
        for (uint32_t i = 0; i < layer->v_dim; i++)
            o[i] += weight * stored(layer->v_in_k ? k[i] : v[i], type);
    }
    for (uint32_t i = 0; i < layer->v_dim; i++)
        o[i] /= sum;
}

double fake_error(const fake *f, const fake_seq *s, uint32_t first, uint32_t end)
{
    return fake_error_of_kept(f, s, &(fake_range){first, end}, NULL, NULL);
}

double fake_error_of_kept(const fake *f, const fake_seq *s, const fake_range *range,
                          fake_keeps *keeps, const void *ctx)
{
    const reference r = {.f = f, .s = s, .keeps = keeps, .ctx = ctx};
    const double tolerance = 2e-6; /* inputs are rounded alike on both sides; sums are float */
    double worst = 0, o[FAKE_DIM_MAX];
    for (uint32_t p = range->first; p < range->end; p++) {
        const float *out = s->out + p * f->n_out;
        for (uint32_t l = 0; l < f->n_layers; l++) {
            for (uint32_t h = 0; h < f->layers[l].n_heads; h++) {
                reference_head(&r, l, h, p, o);
                for (uint32_t i = 0; i < f->layers[l].v_dim; i++) {
                    const double error = fabs((double)*out++ - o[i]) / tolerance;
                    if (!(error <= worst)) worst = error;
                }
            }
        }
    }
    return worst;
}

bool fake_same(const fake *f, const fake_seq *a, const fake_seq *b, uint32_t first, uint32_t end)
{
    return memcmp(a->out + first * f->n_out, b->out + first * f->n_out,
                  (end - first) * f->n_out * sizeof *a->out) == 0;
}

kv_stats fake_stats(const fake *f)
{
    kv_stats stats;
    kv_stats_read(f->cache, &stats);
    return stats;
}
