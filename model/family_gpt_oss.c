/* model/family_gpt_oss.c - gpt-oss-20b and 120b (arXiv 2508.10925).
 *
 * Attention with biases, windows in every other layer, and one sink for each head: a logit of a key that has no value.
 * Experts have biases, too, and a clamped SwiGLU. The weights are a softmax over the chosen logits, which is the
 * renormalised softmax over all.
 *
 * A layer's experts lie in two tensors, the rows of gate and up in turns. As released they are blocks of MXFP4, used as
 * they lie; as transformers writes them they are stored by column and copied at load. Biases of gate and up take turns
 * in both and are copied. */
#include "model/config_json.h"
#include "model/family_parts.h"

#include "base/check.h"

#include <stdio.h>

static const char *const keys[] = {"attention_bias", "sliding_window", "swiglu_limit",
                                   "swiglu_alpha", NULL};

/* ---- config.json --------------------------------------------------------------------------------- */

static err_t read_windows(const model_json_object *from, model_config *out)
{
    TRY(model_json_u32(from, "sliding_window", (const uint32_t[]){1, INT32_MAX}, &out->window));
    if (model_json_member(from, "layer_types") != NULL) return config_read_layer_types(from, out);
    for (uint32_t l = 1; l < out->n_layers; l += 2)
        model_layer_set_add(&out->full_layers, l);
    return ERR_OK;
}

/* Released files have both names. */
static err_t check_top_k(const model_json_object *from, const model_config *c)
{
    uint32_t top_k = c->top_k;
    TRY(config_read_u32(from, "experts_per_token", (const uint32_t[]){1, MOE_TOP_K_MAX}, &top_k));
    if (top_k == c->top_k) return ERR_OK;
    return config_refuse(from, "experts_per_token", model_json_member(from, "experts_per_token"));
}

static err_t read_config(const model_json_object *from, model_config *out)
{
    static const double limits[2] = {1e-6, 1e6};
    /* Scales of fp8 would have to be turned with their codes. */
    if (out->quantisation.method == QUANTISATION_FP8)
        return config_refuse(from, "quantization_config",
                             model_json_member(from, "quantization_config"));
    out->has_qkv_bias = true;
    TRY(config_read_bool(from, "attention_bias", &out->has_qkv_bias));
    out->has_o_bias = out->has_qkv_bias;
    out->activation = MOE_CLAMPED;
    out->activation_alpha = 1.702f;
    out->activation_limit = 7;
    TRY(config_read_real(from, "swiglu_alpha", limits, &out->activation_alpha));
    TRY(config_read_real(from, "swiglu_limit", limits, &out->activation_limit));
    TRY(check_top_k(from, out));
    return read_windows(from, out);
}

/* ---- tensors ------------------------------------------------------------------------------------- */

static err_t visit_attention(const model_config *c, model_layer *layer, uint32_t l,
                             const family_walk *to)
{
    TRY(family_visit_attention(c, layer, l, to));
    return family_visit(to, &layer->sinks, (const uint32_t[]){0, c->n_heads},
                        "model.layers.%u.self_attn.sinks", l);
}

/* Channels first, first + step, ... of an expert's product in one of the two tensors. */
typedef struct part {
    uint32_t layer, expert, n_experts;
    const char *name;
    uint32_t n_stored, first, step; /* n_stored: channels of the tensor */
    uint32_t rows, cols;
} part;

static err_t visit_part(const family_walk *to, const part *p, matrix *w, matrix *bias)
{
    model_weight weight = {.rows = p->rows,
                           .cols = p->cols,
                           .into = w,
                           .part = {.n_items = p->n_experts,
                                    .item = p->expert,
                                    .n_rows = p->n_stored,
                                    .first_row = p->first,
                                    .row_step = p->step,
                                    .is_turned = true}};
    (void)snprintf(weight.name, sizeof weight.name, "model.layers.%u.mlp.experts.%s", p->layer,
                   p->name);
    TRY(to->visit(to->ctx, &weight));
    weight.rows = 1;
    weight.cols = p->rows;
    weight.into = bias;
    weight.is_vector = weight.is_bias = true;
    (void)snprintf(weight.name, sizeof weight.name, "model.layers.%u.mlp.experts.%s_bias", p->layer,
                   p->name);
    return to->visit(to->ctx, &weight);
}

static err_t visit_experts(const model_config *c, model_layer *layer, uint32_t l,
                           const family_walk *to)
{
    const uint32_t d = c->d_model, ffn = c->d_ffn, n = c->n_experts;
    TRY(family_visit(to, &layer->router_bias, (const uint32_t[]){0, n},
                     "model.layers.%u.mlp.router.bias", l));
    for (uint32_t e = 0; e < n; e++) {
        moe_expert *const x = &layer->expert[e];
        const part gate = {l, e, n, "gate_up_proj", 2 * ffn, 0, 2, ffn, d};
        const part up = {l, e, n, "gate_up_proj", 2 * ffn, 1, 2, ffn, d};
        const part down = {l, e, n, "down_proj", d, 0, 1, d, ffn};
        TRY(visit_part(to, &gate, &x->gate, &x->gate_bias));
        TRY(visit_part(to, &up, &x->up, &x->up_bias));
        TRY(visit_part(to, &down, &x->down, &x->down_bias));
    }
    return ERR_OK;
}

static const family_names names = {
    .router = "mlp.router", .visit_attention = visit_attention, .visit_experts = visit_experts};

static err_t each_weight(const model_config *c, model_weights *w, model_weight_visit *visit,
                         void *ctx)
{
    return family_each_weight(&names, c, w, &(family_walk){visit, ctx});
}

/* A plan has no weights, and asks what a layer takes. */
static void kv_layer(const model_config *c, const model_weights *w, uint32_t l, kv_layer_shape *out)
{
    family_kv_layer(c, w, l, out);
    out->sink_logit = w->sinks != NULL ? w->sinks + (size_t)l * c->n_heads : NULL;
}

const model_family model_family_gpt_oss = {
    .name = "gpt_oss",
    .key_n_experts = "num_local_experts",
    .key_top_k = "num_experts_per_tok",
    .key_top_k_too = "experts_per_token",
    .key_d_ffn = "intermediate_size",
    .renormalise = true,
    .read_config = read_config,
    .keys = keys,
    .each_weight = each_weight,
    .kv_layer = kv_layer,
};
