/* tests/kvcache/route_probe.c - see route_probe.h. */
#include "tests/kvcache/route_probe.h"

#include "base/random.h"
#include "kvcache/page_bias.h"

#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

kv_config probe_config(const char *method, kv_route_settings settings)
{
    kv_config config = fake_defaults();
    config.routing = (char *)(uintptr_t)method;
    config.routing_k = settings.k;
    config.routing_eps = settings.eps;
    config.routing_tau = settings.tau;
    return config;
}

static float key_of(key_kind kind, uint32_t token, uint32_t channel)
{
    const float x = 2 * random_uniform(11, token, channel) - 1;
    switch (kind) {
    case EQUAL: return 2 * random_uniform(12, 0, channel) - 1;
    case CORNERS: return x < 0 ? -2 : 2;
    case NEEDLES: return random_at(13, 0, token).word[0] % 17 == 0 ? 6 * x : 0.2f * x;
    case SINKS: return token == 0 ? 100 : token == 1 ? -100 : 0.2f * x;
    default: return x;
    }
}

static const float sink_logits[GROUP_MAX] = {0.3f, -4, 2, 5};

/* Of every token so many floats. */
static float *alloc_there(const probe *p, size_t n)
{
    void *data;
    ck_assert_int_eq(dev_alloc(p->d, N_TOKENS * n * sizeof(float), &data, NULL), ERR_OK);
    return data;
}

probe probe_open(const kv_config *config, uint32_t group, key_kind kind, dtype type)
{
    probe p = {0};
    p.d = fake_open_device(&(dev_config){.isa = "auto", .n_threads = 1});
    p.q = alloc_there(&p, GROUP_MAX * K_DIM);
    p.k = alloc_there(&p, K_DIM);
    p.v = alloc_there(&p, V_DIM);
    p.out = alloc_there(&p, GROUP_MAX * V_DIM);
    p.layer = (kv_layer_shape){
        .n_heads = group, .n_kv_heads = 1, .k_dim = K_DIM, .v_dim = V_DIM, .scale = 0.7f};
    if (kind == NEEDLES) p.layer.sink_logit = sink_logits;
    const kv_shape shape = {.n_layers = 1, .layer = &p.layer, .model_type = type};
    const kv_limits limits = {1, N_TOKENS, N_TOKENS};
    ck_assert_int_eq(kv_cache_open(p.d, config, &shape, &limits, &p.cache, NULL), ERR_OK);
    const kv_seq_options options = {.salt = "", .n_prompt_tokens = N_PROMPT};
    ck_assert_int_eq(kv_seq_open(p.cache, &options, &p.seq), ERR_OK);
    for (uint32_t t = 0; t < N_TOKENS; t++) {
        for (uint32_t c = 0; c < K_DIM; c++) {
            const float x = key_of(kind, t, c);
            p.keys[t][c] = type == DTYPE_BF16 ? f32_from_bf16(bf16_from_f32(x)) : x;
        }
    }
    return p;
}

void probe_close(probe *p)
{
    ck_assert(kv_cache_is_sane(p->cache));
    kv_seq_close(p->seq, NULL);
    kv_cache_close(p->cache);
    dev_free(p->d, p->q);
    dev_free(p->d, p->k);
    dev_free(p->d, p->v);
    dev_free(p->d, p->out);
    dev_close(p->d);
}

static uint32_t channel_of(uint32_t token)
{
    return token < N_SINKS ? N_BLOCKS : token / PAGE;
}

void probe_run(probe *p, uint32_t n, bool is_decode, probe_step *s)
{
    const uint32_t first = kv_seq_length(p->seq), width = p->layer.n_heads * K_DIM;
    memset(s->v, 0, sizeof s->v);
    float *q = &s->q[0][0];
    for (uint32_t t = 0; t < n; t++) {
        s->v[t][channel_of(first + t)] = 1;
        for (uint32_t i = 0; i < width; i++)
            q[t * width + i] = 2 * random_uniform(14, first + t, i) - 1;
    }
    const kv_row row = {.seq = p->seq, .n_tokens = n, .is_decode = is_decode};
    ck_assert_int_eq(kv_step_begin(p->cache, &row, 1), ERR_OK);
    dev_upload(p->d, p->q, q, (size_t)n * width * sizeof *q);
    dev_upload(p->d, p->k, p->keys[first], n * sizeof p->keys[0]);
    dev_upload(p->d, p->v, s->v[0], n * sizeof s->v[0]);
    kv_append(p->cache, &(kv_append_args){.layer = 0, .k = p->k, .v = p->v});
    kv_attend(p->cache, &(kv_attend_args){.layer = 0, .q = p->q, .out = p->out});
    dev_download(p->d, &s->out[0][0], p->out,
                 (size_t)n * p->layer.n_heads * V_DIM * sizeof *p->out);
    kv_step_end(p->cache);
    ck_assert(kv_cache_is_sane(p->cache));
}

/* The share of attention of head g that its output does not show, in double precision. */
static double unread_mass(const probe *p, const probe_step *s, uint32_t g)
{
    const uint32_t length = kv_seq_length(p->seq);
    const float *q = &s->q[0][0] + (size_t)g * K_DIM, *out = &s->out[0][0] + (size_t)g * V_DIM;
    double top = -INFINITY, scores[N_TOKENS], all = 0, unread = 0;
    for (uint32_t t = 0; t < length; t++) {
        scores[t] = 0;
        for (uint32_t c = 0; c < K_DIM; c++)
            scores[t] += (double)q[c] * (double)p->keys[t][c] * (double)p->layer.scale;
        scores[t] += (double)p->bias[t];
        top = fmax(top, scores[t]);
    }
    for (uint32_t t = 0; t < length; t++) {
        const double mass = exp(scores[t] - top);
        all += mass;
        if (out[channel_of(t)] == 0) unread += mass;
    }
    if (p->layer.sink_logit != NULL) all += exp((double)p->layer.sink_logit[g] - top);
    return unread / all;
}

/* Slots of pages get biases, as if their entries stood for others. */
static void add_biases(probe *p)
{
    const uint32_t list = kv_list(p->cache, 0, 0, 0);
    p->seq->is_thinned = true; /* nothing else has biases */
    for (uint32_t b = 0; b < p->seq->n_blocks; b++) {
        float *bias = &p->bias[(size_t)b * PAGE];
        for (uint32_t i = 0; i < PAGE; i++)
            bias[i] = b == 0 && i < N_SINKS ? 0 : 6 * random_uniform(15, b, i) - 3;
        kv_pool_set_biases(p->cache->pool, kv_table_page(&p->seq->table, list, b), bias);
    }
}

void probe_check_certificates(const kv_config *config, uint32_t group, key_kind kind, dtype type)
{
    probe_step *s = calloc(1, sizeof *s);
    probe p = probe_open(config, group, kind, type);
    const bool has_biases = kv_methods_evict(kv_cache_methods(p.cache));
    probe_run(&p, N_PROMPT, false, s);
    for (uint32_t t = N_PROMPT; t < N_TOKENS; t++) {
        if (has_biases) add_biases(&p);
        probe_run(&p, 1, true, s);
        kv_stats stats;
        kv_stats_read(p.cache, &stats);
        double sum = 0, max = 0;
        for (uint32_t g = 0; g < group; g++) {
            const double missed = unread_mass(&p, s, g);
            sum += missed;
            max = fmax(max, missed);
        }
        /* A weight below e^-87 is 0 in float, as if it had not been read. */
        ck_assert_double_le(max, stats.step_certificate_max + 1e-35);
        ck_assert_double_le(sum / group, stats.step_certificate_mean + 1e-35);
        ck_assert_double_le(stats.step_certificate_mean, stats.step_certificate_max);
        ck_assert_double_le(stats.step_certificate_max, stats.certificate_max);
        ck_assert_double_le(stats.certificate_max, 1);
        ck_assert_uint_eq(stats.certificates, (t + 1 - N_PROMPT) * group);
        if (strcmp(config->routing, "certified") == 0)
            ck_assert_double_le(stats.step_certificate_max, config->routing_eps);
    }
    probe_close(&p);
    free(s);
}
