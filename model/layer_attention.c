/* model/layer_attention.c - grouped-query or latent attention with rotary positions.
 *
 * Keys and values go to the cache, which also does the attending: this file never sees an older
 * token. q, k and v are three products of one input in one parallel loop. */
#include "model/model_internal.h"

#include <math.h>

static void project_qkv(model *m, const model_layer *layer, uint32_t n_tokens)
{
    const model_config *const c = &m->config;
    const model_scratch *const s = &m->scratch;
    const size_t q_dim = (size_t)c->n_heads * c->head_dim,
                 k_dim = (size_t)c->n_kv_heads * c->head_dim,
                 v_dim = (size_t)c->n_kv_heads * c->v_dim;
    m->d->ops->matmul(m->d, &(matmul_args){.x = s->normed,
                                           .x_stride = c->d_model,
                                           .n_tokens = n_tokens,
                                           .n_parts = 3,
                                           .part = {{layer->q, s->q, q_dim},
                                                    {layer->k, s->k, k_dim},
                                                    {layer->v, s->v, v_dim}}});
}

/* q's or k's own norm, of whole rows of n_heads heads or of each. */
static void norm_heads(model *m, float *x, uint32_t n_heads, uint32_t n_tokens, const matrix *w)
{
    const model_config *const c = &m->config;
    if (c->qk_norm == MODEL_QK_NORM_NONE) return;
    const bool is_whole = c->qk_norm == MODEL_QK_NORM_WHOLE;
    m->d->ops->rms_norm(m->d,
                        &(rms_norm_args){.x = x,
                                         .w = w->data,
                                         .w_type = w->type,
                                         .n_tokens = is_whole ? n_tokens : n_tokens * n_heads,
                                         .dim = is_whole ? n_heads * c->head_dim : c->head_dim,
                                         .eps = c->norm_eps,
                                         .out = x});
}

static void clip(model *m, float *x, uint32_t dim, uint32_t n_tokens)
{
    m->d->ops->adjust(
        m->d,
        &(adjust_args){
            .x = x, .n_tokens = n_tokens, .dim = dim, .scale = 1, .limit = m->config.qkv_limit});
}

/* Between the products and the turn: biases, norms, limits, in this order. */
static void finish_qkv(model *m, const model_layer *layer, uint32_t n_tokens)
{
    const model_config *const c = &m->config;
    const model_scratch *const s = &m->scratch;
    const uint32_t q_dim = c->n_heads * c->head_dim, k_dim = c->n_kv_heads * c->head_dim,
                   v_dim = c->n_kv_heads * c->v_dim;
    model_adjust(m, s->q, n_tokens, q_dim, 1, &layer->q_bias);
    model_adjust(m, s->k, n_tokens, k_dim, 1, &layer->k_bias);
    model_adjust(m, s->v, n_tokens, v_dim, 1, &layer->v_bias);
    norm_heads(m, s->q, c->n_heads, n_tokens, &layer->q_norm);
    norm_heads(m, s->k, c->n_kv_heads, n_tokens, &layer->k_norm);
    if (c->qkv_limit == 0) return;
    clip(m, s->q, q_dim, n_tokens);
    clip(m, s->k, k_dim, n_tokens);
    clip(m, s->v, v_dim, n_tokens);
}

/* The channels that turn are a head's first, of a latent its last. */
static void rotate(model *m, float *x, uint32_t n_heads, uint32_t n_tokens)
{
    m->d->ops->rope(m->d, &(rope_args){.x = x + m->config.latent.kv_rank,
                                       .cos = m->scratch.cos,
                                       .sin = m->scratch.sin,
                                       .n_tokens = n_tokens,
                                       .n_heads = n_heads,
                                       .dim = m->config.rope.n_rotated,
                                       .stride = model_key_dim(&m->config),
                                       .is_interleaved = m->config.is_rope_interleaved});
}

static void measure_inputs(void *ctx, size_t begin, size_t end, uint32_t worker)
{
    const model *m = ctx;
    const uint32_t dim = m->config.d_model;
    (void)worker;
    for (size_t t = begin; t < end; t++) {
        const float *x = m->host.x + t * dim;
        double sum = 0;
        for (uint32_t i = 0; i < dim; i++)
            sum += (double)x[i] * (double)x[i];
        m->host.input_norm[t] = (float)sqrt(sum);
    }
}

void layer_attention(model *m, kv_cache *cache, uint32_t l, uint32_t n_tokens)
{
    const model_config *const c = &m->config;
    const model_layer *const layer = &m->device.layer[l];
    const model_scratch *const s = &m->scratch;
    const model_mirror *const h = &m->host;
    const dev_ops *const ops = m->d->ops;
    const size_t q_bytes = (size_t)n_tokens * c->n_heads * model_key_dim(c) * sizeof *s->q;
    const bool is_latent = c->latent.kv_rank > 0;
    const bool wants_input_norm = kv_cache_wants_input_norm(cache);

    if (wants_input_norm) {
        dev_download(m->d, h->x, s->x, (size_t)n_tokens * c->d_model * sizeof *s->x);
        parallel_for(m->d->pool, n_tokens, 1, measure_inputs, m);
    }
    model_norm(m, &(model_norm_args){.x = s->x,
                                     .w = &layer->attention_norm,
                                     .w_bias = &layer->attention_norm_bias,
                                     .n_tokens = n_tokens,
                                     .out = s->normed});
    if (is_latent) {
        layer_latent_qk(m, layer, n_tokens);
    } else {
        project_qkv(m, layer, n_tokens);
        finish_qkv(m, layer, n_tokens);
    }
    const bool wants_q_nope = kv_cache_wants_q_nope(cache);
    if (wants_q_nope) dev_download(m->d, h->q_nope, s->q, q_bytes);
    rotate(m, s->q, c->n_heads, n_tokens);
    rotate(m, s->k, c->n_kv_heads, n_tokens);

    kv_append(cache, &(kv_append_args){.layer = l, .k = s->k, .v = s->v});
    kv_attend(cache, &(kv_attend_args){.layer = l,
                                       .q = s->q,
                                       .q_nope = wants_q_nope ? h->q_nope : NULL,
                                       .input_norm = wants_input_norm ? h->input_norm : NULL,
                                       .out = s->attended});

    float *const values = is_latent ? layer_latent_values(m, layer, n_tokens) : s->attended;
    model_adjust(m, values, n_tokens, c->n_heads * c->v_dim, c->residual_scale, NULL);
    ops->matmul(m->d, &(matmul_args){.x = values,
                                     .x_stride = (size_t)c->n_heads * c->v_dim,
                                     .n_tokens = n_tokens,
                                     .n_parts = 1,
                                     .accumulate = true,
                                     .part = {{layer->o, s->x, c->d_model}}});
    model_adjust(m, s->x, n_tokens, c->d_model, 1, &layer->o_bias);
}
