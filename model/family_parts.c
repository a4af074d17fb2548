/* model/family_parts.c - see family_parts.h. */
#include "model/family_parts.h"

#include "base/check.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static bool ends_in(const char *name, const char *end)
{
    const size_t n = strlen(name), n_end = strlen(end);
    return n >= n_end && strcmp(name + n - n_end, end) == 0;
}

__attribute__((format(printf, 3, 0))) static err_t
visit_named(const family_walk *to, model_weight *weight, const char *format, va_list args)
{
    (void)vsnprintf(weight->name, sizeof weight->name, format, args);
    weight->is_bias = weight->is_vector && ends_in(weight->name, "bias");
    return to->visit(to->ctx, weight);
}

err_t family_visit(const family_walk *to, matrix *into, const uint32_t shape[2], const char *format,
                   ...)
{
    model_weight weight = {.rows = shape[0] == 0 ? 1 : shape[0],
                           .cols = shape[1],
                           .is_vector = shape[0] == 0,
                           .into = into};
    va_list args;
    va_start(args, format);
    const err_t err = visit_named(to, &weight, format, args);
    va_end(args);
    return err;
}

err_t family_visit_arranged(const family_walk *to, matrix *into, const uint32_t shape[2],
                            model_arrange *arrange, const char *format, ...)
{
    model_weight weight = {.rows = shape[0], .cols = shape[1], .into = into, .arrange = arrange};
    va_list args;
    va_start(args, format);
    const err_t err = visit_named(to, &weight, format, args);
    va_end(args);
    return err;
}

/* One of q, k, v, o, and its bias. */
static err_t visit_projection(const family_walk *to, const uint32_t shape[2], matrix *w,
                              matrix *bias, const char *name)
{
    TRY(family_visit(to, w, shape, "%s.weight", name));
    if (bias == NULL) return ERR_OK;
    return family_visit(to, bias, (const uint32_t[]){0, shape[0]}, "%s.bias", name);
}

static err_t visit_norm(const model_config *c, const family_walk *to, matrix *w, matrix *bias,
                        const char *name)
{
    const uint32_t shape[2] = {0, c->d_model};
    TRY(family_visit(to, w, shape, "%s.weight", name));
    if (c->norm == MODEL_NORM_RMS) return ERR_OK;
    return family_visit(to, bias, shape, "%s.bias", name);
}

enum { NAME_BYTES = 96 };

static const char *layer_name(char out[NAME_BYTES], uint32_t l, const char *name)
{
    (void)snprintf(out, NAME_BYTES, "model.layers.%u.%s", l, name);
    return out;
}

err_t family_visit_attention(const model_config *c, model_layer *layer, uint32_t l,
                             const family_walk *to)
{
    const uint32_t d = c->d_model, q = c->n_heads * c->head_dim, k = c->n_kv_heads * c->head_dim,
                   v = c->n_kv_heads * c->v_dim, o = c->n_heads * c->v_dim;
    const bool has_bias = c->has_qkv_bias, is_whole = c->qk_norm == MODEL_QK_NORM_WHOLE;
    char name[NAME_BYTES];
    TRY(visit_norm(c, to, &layer->attention_norm, &layer->attention_norm_bias,
                   layer_name(name, l, "input_layernorm")));
    TRY(visit_projection(to, (const uint32_t[]){q, d}, &layer->q, has_bias ? &layer->q_bias : NULL,
                         layer_name(name, l, "self_attn.q_proj")));
    TRY(visit_projection(to, (const uint32_t[]){k, d}, &layer->k, has_bias ? &layer->k_bias : NULL,
                         layer_name(name, l, "self_attn.k_proj")));
    TRY(visit_projection(to, (const uint32_t[]){v, d}, &layer->v, has_bias ? &layer->v_bias : NULL,
                         layer_name(name, l, "self_attn.v_proj")));
    TRY(visit_projection(to, (const uint32_t[]){d, o}, &layer->o,
                         c->has_o_bias ? &layer->o_bias : NULL,
                         layer_name(name, l, "self_attn.o_proj")));
    if (c->qk_norm == MODEL_QK_NORM_NONE) return ERR_OK;
    TRY(family_visit(to, &layer->q_norm, (const uint32_t[]){0, is_whole ? q : c->head_dim},
                     "model.layers.%u.self_attn.q_norm.weight", l));
    return family_visit(to, &layer->k_norm, (const uint32_t[]){0, is_whole ? k : c->head_dim},
                        "model.layers.%u.self_attn.k_norm.weight", l);
}

/* Three matrices below `prefix`. */
static err_t visit_three(const family_names *names, const family_walk *to, moe_expert *ffn,
                         const uint32_t wide[2], const char *prefix)
{
    const uint32_t tall[2] = {wide[1], wide[0]};
    TRY(family_visit(to, &ffn->gate, wide, "%s.%s.weight", prefix, names->gate));
    TRY(family_visit(to, &ffn->up, wide, "%s.%s.weight", prefix, names->up));
    return family_visit(to, &ffn->down, tall, "%s.%s.weight", prefix, names->down);
}

static err_t visit_experts(const family_names *names, const model_config *c, model_layer *layer,
                           uint32_t l, const family_walk *to)
{
    char prefix[NAME_BYTES];
    if (names->visit_experts != NULL) return names->visit_experts(c, layer, l, to);
    for (uint32_t e = 0; e < c->n_experts; e++) {
        (void)snprintf(prefix, sizeof prefix, "model.layers.%u.%s.%u", l, names->experts, e);
        TRY(visit_three(names, to, &layer->expert[e], (const uint32_t[]){c->d_ffn, c->d_model},
                        prefix));
    }
    return ERR_OK;
}

static err_t visit_shared(const family_names *names, const model_config *c, model_layer *layer,
                          uint32_t l, const family_walk *to)
{
    char prefix[NAME_BYTES];
    if (c->d_shared_ffn == 0) return ERR_OK;
    if (names->visit_shared != NULL) return names->visit_shared(c, layer, l, to);
    TRY(visit_three(names, to, layer->common, (const uint32_t[]){c->d_shared_ffn, c->d_model},
                    layer_name(prefix, l, names->shared)));
    if (!c->is_shared_gated) return ERR_OK;
    return family_visit(to, &layer->shared_gate, (const uint32_t[]){1, c->d_model},
                        "model.layers.%u.%s.weight", l, names->shared_gate);
}

err_t family_visit_ffn(const family_names *names, const model_config *c, model_layer *layer,
                       uint32_t l, const family_walk *to)
{
    char name[NAME_BYTES];
    TRY(visit_norm(c, to, &layer->moe_norm, &layer->moe_norm_bias,
                   layer_name(name, l, "post_attention_layernorm")));
    if (model_layer_is_dense(c, l))
        return visit_three(names, to, layer->common, (const uint32_t[]){c->d_dense_ffn, c->d_model},
                           layer_name(name, l, names->dense));
    TRY(family_visit(to, &layer->router, (const uint32_t[]){c->n_experts, c->d_model},
                     "model.layers.%u.%s.weight", l, names->router));
    if (c->has_choice_bias)
        TRY(family_visit(to, &layer->choice_bias, (const uint32_t[]){0, c->n_experts},
                         "model.layers.%u.%s", l, names->choice_bias));
    TRY(visit_experts(names, c, layer, l, to));
    return visit_shared(names, c, layer, l, to);
}

err_t family_each_weight(const family_names *names, const model_config *c, model_weights *w,
                         const family_walk *to)
{
    const uint32_t table[2] = {c->n_vocab, c->d_model};
    TRY(family_visit(to, &w->embedding, table, "model.embed_tokens.weight"));
    for (uint32_t l = 0; l < c->n_layers; l++) {
        TRY((names->visit_attention != NULL ? names->visit_attention
                                            : family_visit_attention)(c, &w->layer[l], l, to));
        TRY(family_visit_ffn(names, c, &w->layer[l], l, to));
    }
    TRY(visit_norm(c, to, &w->final_norm, &w->final_norm_bias, "model.norm"));
    if (c->has_head_bias)
        TRY(family_visit(to, &w->head_bias, (const uint32_t[]){0, c->n_vocab}, "lm_head.bias"));
    if (c->tied_embeddings) return ERR_OK;
    return family_visit(to, &w->head, table, "lm_head.weight");
}

void family_kv_layer(const model_config *c, const model_weights *w, uint32_t l, kv_layer_shape *out)
{
    *out = (kv_layer_shape){.n_heads = c->n_heads,
                            .n_kv_heads = c->n_kv_heads,
                            .k_dim = c->head_dim,
                            .v_dim = c->v_dim,
                            .has_router = !model_layer_is_dense(c, l),
                            .window = model_layer_window(c, l),
                            .scale = c->attention_scale != 0 ? c->attention_scale
                                                             : 1.0f / sqrtf((float)c->head_dim),
                            .out_proj = &w->layer[l].o};
}
