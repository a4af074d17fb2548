/* model/layer_latent.c - what latent attention (MLA) does around the cache. DeepSeek-V2, arXiv 2405.04434.
 *
 * As published a head h has keys W_UK[h] c and values W_UV[h] c of one latent c per token, and beside them the same few
 * turned channels r in all heads:
 *
 *     score = q_nope[h] . W_UK[h] c + q_rope[h] . r,    out[h] = W_UV[h] sum_i p_i c_i
 *
 * Here the small matrices go to the other side, once for each query instead of once for each key:
 *
 *     q = (W_UK[h]^T q_nope[h], q_rope[h]),  k = (c, r),  v = c,  out[h] = W_UV[h] attended[h]
 *
 * so the cache holds c and r alone, as one KV head for all query heads, whose values are the first channels of its
 * keys. Prompts pay for it with wider dot products.
 *
 * A token's queries are made where they lie: both parts of a head's rows of q are products of their own. */
#include "model/model_internal.h"

/* What kv_a_layernorm and q_a_layernorm have, whatever rms_norm_eps says: transformers' default. */
static const float LATENT_EPS = 1e-6f;

static void norm_rows(model *m, float *x, const matrix *w, uint32_t n_tokens, size_t stride)
{
    m->d->ops->rms_norm(m->d, &(rms_norm_args){.x = x,
                                               .w = w->data,
                                               .w_type = w->type,
                                               .n_tokens = n_tokens,
                                               .dim = w->cols,
                                               .eps = LATENT_EPS,
                                               .out = x,
                                               .stride = stride});
}

static void product(model *m, const matrix *w, const float *x, float *out, uint32_t n_tokens)
{
    m->d->ops->matmul(m->d, &(matmul_args){.x = x,
                                           .x_stride = w->cols,
                                           .n_tokens = n_tokens,
                                           .n_parts = 1,
                                           .part = {{*w, out, w->rows}}});
}

/* W_UK[h]^T of all heads, [n_heads][kv_rank][nope_dim]: kv_b as model_latent_arrange leaves it. */
static matrix keys_up(const model_config *c, const matrix *kv_b)
{
    matrix up = *kv_b;
    up.rows = c->latent.kv_rank;
    up.cols = c->latent.nope_dim;
    return up;
}

/* W_UV[h] of all heads, [n_heads][v_dim][kv_rank], behind it. */
static matrix values_up(const model_config *c, const matrix *kv_b)
{
    return matrix_rows(kv_b, (size_t)c->n_heads * c->latent.nope_dim, c->v_dim);
}

void layer_latent_qk(model *m, const model_layer *layer, uint32_t n_tokens)
{
    const model_config *const c = &m->config;
    const model_scratch *const s = &m->scratch;
    const uint32_t rank = c->latent.kv_rank, nope = c->latent.nope_dim, n_heads = c->n_heads;
    const size_t k_dim = model_key_dim(c), q_stride = n_heads * k_dim;
    const float *from = s->normed;
    if (c->latent.q_rank > 0) {
        product(m, &layer->q_a, s->normed, s->q_low, n_tokens);
        norm_rows(m, s->q_low, &layer->q_a_norm, n_tokens, 0);
        from = s->q_low;
    }
    matmul_heads_args heads = {.x = from,
                               .x_stride = layer->q.cols,
                               .n_tokens = n_tokens,
                               .n_heads = n_heads,
                               .w = matrix_rows(&layer->q, 0, nope),
                               .w_head_rows = c->head_dim,
                               .out = s->heads,
                               .out_stride = (size_t)n_heads * nope,
                               .out_head_stride = nope};
    m->d->ops->matmul_heads(m->d, &heads);
    heads.w = matrix_rows(&layer->q, nope, c->rope.n_rotated);
    heads.out = s->q + rank;
    heads.out_stride = q_stride;
    heads.out_head_stride = k_dim;
    m->d->ops->matmul_heads(m->d, &heads);
    m->d->ops->matmul_heads(m->d, &(matmul_heads_args){.x = s->heads,
                                                       .x_stride = (size_t)n_heads * nope,
                                                       .x_head_stride = nope,
                                                       .n_tokens = n_tokens,
                                                       .n_heads = n_heads,
                                                       .w = keys_up(c, &layer->kv_b),
                                                       .w_head_rows = rank,
                                                       .out = s->q,
                                                       .out_stride = q_stride,
                                                       .out_head_stride = k_dim});
    product(m, &layer->kv_a, s->normed, s->k, n_tokens);
    norm_rows(m, s->k, &layer->kv_a_norm, n_tokens, k_dim);
}

float *layer_latent_values(model *m, const model_layer *layer, uint32_t n_tokens)
{
    const model_config *const c = &m->config;
    const model_scratch *const s = &m->scratch;
    const uint32_t rank = c->latent.kv_rank;
    m->d->ops->matmul_heads(m->d, &(matmul_heads_args){.x = s->attended,
                                                       .x_stride = (size_t)c->n_heads * rank,
                                                       .x_head_stride = rank,
                                                       .n_tokens = n_tokens,
                                                       .n_heads = c->n_heads,
                                                       .w = values_up(c, &layer->kv_b),
                                                       .w_head_rows = c->v_dim,
                                                       .out = s->heads,
                                                       .out_stride = (size_t)c->n_heads * c->v_dim,
                                                       .out_head_stride = c->v_dim});
    return s->heads;
}

/* ---- kv_b as products want it -------------------------------------------------------------------- */

/* Values as they are, or codes as what they mean. */
static size_t element_bytes(const matrix *from)
{
    return dtype_has_scales(from->type) ? sizeof(float) : dtype_bytes(from->type);
}

static void put_element(const matrix *from, size_t r, size_t c, uint8_t *to)
{
    const size_t each = dtype_has_scales(from->type) ? 0 : dtype_bytes(from->type);
    const float x = each == 0 ? matrix_element(from, r, c) : 0;
    const uint8_t *const stored = (const uint8_t *)from->data + (r * from->cols + c) * each;
    switch (each) {
    case 0: memcpy(to, &x, sizeof x); break;
    case 2: memcpy(to, stored, 2); break;
    default: memcpy(to, stored, 4);
    }
}

static void put_rows(const matrix *from, size_t first, size_t n, uint8_t *to)
{
    const size_t each = element_bytes(from);
    if (!dtype_has_scales(from->type)) {
        memcpy(to, (const uint8_t *)from->data + first * from->cols * each, n * from->cols * each);
        return;
    }
    for (size_t i = 0; i < n * from->cols; i++)
        put_element(from, first + i / from->cols, i % from->cols, to + i * each);
}

void model_plain_arrange(const model_config *c, const matrix *from, void *to)
{
    (void)c;
    put_rows(from, 0, from->rows, to);
}

void model_latent_arrange(const model_config *c, const matrix *from, void *to)
{
    const size_t each = element_bytes(from), rank = c->latent.kv_rank, nope = c->latent.nope_dim,
                 v = c->v_dim;
    uint8_t *up = to, *values = up + c->n_heads * nope * rank * each;
    size_t row = 0;
    for (uint32_t h = 0; h < c->n_heads; h++, up += rank * nope * each) {
        for (size_t n = 0; n < nope; n++, row++) {
            for (size_t r = 0; r < rank; r++)
                put_element(from, row, r, up + (r * nope + n) * each);
        }
        put_rows(from, row, v, values);
        values += v * rank * each;
        row += v;
    }
}
