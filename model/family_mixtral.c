/* model/family_mixtral.c - Mixtral (Jiang et al., arXiv 2401.04088).
 *
 * Every layer: RMS norm, grouped-query attention with rotary positions, RMS norm, a router over
 * n_experts SwiGLU experts of which top_k run, their weights renormalised to sum to one. In a
 * checkpoint an expert's w1 is the gate, w3 the up and w2 the down projection. */
#include "model/family.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>

typedef struct walk {
    model_weight_visit *visit;
    void *ctx;
} walk;

/* shape[0] 0: a vector of shape[1]. */
__attribute__((format(printf, 4, 5))) static err_t
visit_weight(const walk *to, matrix *into, const uint32_t shape[2], const char *format, ...)
{
    model_weight weight = {.rows = shape[0] == 0 ? 1 : shape[0],
                           .cols = shape[1],
                           .is_vector = shape[0] == 0,
                           .into = into};
    va_list args;
    va_start(args, format);
    (void)vsnprintf(weight.name, sizeof weight.name, format, args);
    va_end(args);
    return to->visit(to->ctx, &weight);
}

static err_t visit_attention(const model_config *c, model_layer *layer, uint32_t l, const walk *to)
{
    const uint32_t d = c->d_model;
    const uint32_t q_rows = c->n_heads * c->head_dim, kv_rows = c->n_kv_heads * c->head_dim;
    TRY(visit_weight(to, &layer->attention_norm, (uint32_t[]){0, d},
                     "model.layers.%u.input_layernorm.weight", l));
    TRY(visit_weight(to, &layer->q, (uint32_t[]){q_rows, d},
                     "model.layers.%u.self_attn.q_proj.weight", l));
    TRY(visit_weight(to, &layer->k, (uint32_t[]){kv_rows, d},
                     "model.layers.%u.self_attn.k_proj.weight", l));
    TRY(visit_weight(to, &layer->v, (uint32_t[]){kv_rows, d},
                     "model.layers.%u.self_attn.v_proj.weight", l));
    return visit_weight(to, &layer->o, (uint32_t[]){d, q_rows},
                        "model.layers.%u.self_attn.o_proj.weight", l);
}

static err_t visit_experts(const model_config *c, model_layer *layer, uint32_t l, const walk *to)
{
    const uint32_t d = c->d_model;
    const uint32_t wide[2] = {c->d_ffn, d}, tall[2] = {d, c->d_ffn};
    TRY(visit_weight(to, &layer->moe_norm, (uint32_t[]){0, d},
                     "model.layers.%u.post_attention_layernorm.weight", l));
    TRY(visit_weight(to, &layer->router, (uint32_t[]){c->n_experts, d},
                     "model.layers.%u.block_sparse_moe.gate.weight", l));
    for (uint32_t e = 0; e < c->n_experts; e++) {
        moe_expert *const expert = &layer->expert[e];
        const char *const format = "model.layers.%u.block_sparse_moe.experts.%u.w%d.weight";
        TRY(visit_weight(to, &expert->gate, wide, format, l, e, 1));
        TRY(visit_weight(to, &expert->up, wide, format, l, e, 3));
        TRY(visit_weight(to, &expert->down, tall, format, l, e, 2));
    }
    return ERR_OK;
}

static err_t each_weight(const model_config *c, model_weights *w, model_weight_visit *visit,
                         void *ctx)
{
    const walk to = {visit, ctx};
    const uint32_t table[2] = {c->n_vocab, c->d_model};
    TRY(visit_weight(&to, &w->embedding, table, "model.embed_tokens.weight"));
    for (uint32_t l = 0; l < c->n_layers; l++) {
        TRY(visit_attention(c, &w->layer[l], l, &to));
        TRY(visit_experts(c, &w->layer[l], l, &to));
    }
    TRY(visit_weight(&to, &w->final_norm, (uint32_t[]){0, c->d_model}, "model.norm.weight"));
    if (c->tied_embeddings) return ERR_OK;
    return visit_weight(&to, &w->head, table, "lm_head.weight");
}

static void kv_layer(const model_config *c, const model_weights *w, uint32_t l, kv_layer_shape *out)
{
    *out = (kv_layer_shape){.n_heads = c->n_heads,
                            .n_kv_heads = c->n_kv_heads,
                            .k_dim = c->head_dim,
                            .v_dim = c->head_dim,
                            .has_router = true,
                            .window = c->window,
                            .scale = 1.0f / sqrtf((float)c->head_dim),
                            .out_proj = &w->layer[l].o};
}

const model_family model_family_mixtral = {
    .name = "mixtral",
    .key_n_experts = "num_local_experts",
    .key_top_k = "num_experts_per_tok",
    .key_d_ffn = "intermediate_size",
    .renormalise = true,
    .each_weight = each_weight,
    .kv_layer = kv_layer,
};
