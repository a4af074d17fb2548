/* model/family_granite.c - Granite-MoE 3, without (granitemoe) and with a shared expert (granitemoeshared).
 *
 * As Mixtral, with four constants: embeddings, what each half of a layer adds, scores and logits are multiplied or
 * divided by one each. The weights are a softmax over the chosen logits, which is the renormalised softmax over all.
 * All experts of a layer lie in two tensors, gate above up in the first; the shared expert's likewise. */
#include "model/config_json.h"
#include "model/family_parts.h"

#include <stdio.h>

static const char *const keys[] = {"embedding_multiplier", "residual_multiplier",
                                   "attention_multiplier", "logits_scaling", NULL};
static const char *const keys_shared[] = {"embedding_multiplier",     "residual_multiplier",
                                          "attention_multiplier",     "logits_scaling",
                                          "shared_intermediate_size", NULL};

/* Rows first_row .. of item `item` of the tensor, which has 2-D items if it has some. */
typedef struct part {
    uint32_t n_items, item, n_rows, first_row, rows, cols;
} part;

static err_t visit_part(const family_walk *to, matrix *into, const part *p, uint32_t l,
                        const char *name)
{
    model_weight weight = {.rows = p->rows,
                           .cols = p->cols,
                           .into = into,
                           .part = {.n_items = p->n_items,
                                    .item = p->item,
                                    .n_rows = p->n_rows,
                                    .first_row = p->first_row}};
    (void)snprintf(weight.name, sizeof weight.name, "model.layers.%u.%s.weight", l, name);
    return to->visit(to->ctx, &weight);
}

static err_t visit_experts(const model_config *c, model_layer *layer, uint32_t l,
                           const family_walk *to)
{
    const uint32_t n = c->n_experts, d = c->d_model, ffn = c->d_ffn;
    for (uint32_t e = 0; e < n; e++) {
        moe_expert *const x = &layer->expert[e];
        TRY(visit_part(to, &x->gate, &(part){n, e, 2 * ffn, 0, ffn, d}, l,
                       "block_sparse_moe.input_linear"));
        TRY(visit_part(to, &x->up, &(part){n, e, 2 * ffn, ffn, ffn, d}, l,
                       "block_sparse_moe.input_linear"));
        TRY(visit_part(to, &x->down, &(part){n, e, d, 0, d, ffn}, l,
                       "block_sparse_moe.output_linear"));
    }
    return ERR_OK;
}

static err_t visit_shared(const model_config *c, model_layer *layer, uint32_t l,
                          const family_walk *to)
{
    const uint32_t d = c->d_model, ffn = c->d_shared_ffn;
    moe_expert *const x = layer->common;
    TRY(visit_part(to, &x->gate, &(part){0, 0, 2 * ffn, 0, ffn, d}, l, "shared_mlp.input_linear"));
    TRY(visit_part(to, &x->up, &(part){0, 0, 2 * ffn, ffn, ffn, d}, l, "shared_mlp.input_linear"));
    return visit_part(to, &x->down, &(part){0, 0, d, 0, d, ffn}, l, "shared_mlp.output_linear");
}

static const family_names names = {.router = "block_sparse_moe.router.layer",
                                   .visit_experts = visit_experts,
                                   .visit_shared = visit_shared};

static err_t read_config(const model_json_object *from, model_config *out)
{
    static const double limits[2] = {1e-6, 1e6};
    out->attention_scale = 1;
    TRY(config_read_real(from, "embedding_multiplier", limits, &out->embedding_scale));
    TRY(config_read_real(from, "residual_multiplier", limits, &out->residual_scale));
    TRY(config_read_real(from, "attention_multiplier", limits, &out->attention_scale));
    return config_read_real(from, "logits_scaling", limits, &out->logits_divisor);
}

static err_t read_config_shared(const model_json_object *from, model_config *out)
{
    TRY(read_config(from, out));
    return config_read_u32(from, "shared_intermediate_size",
                           (const uint32_t[]){0, CONFIG_D_FFN_MAX}, &out->d_shared_ffn);
}

static err_t each_weight(const model_config *c, model_weights *w, model_weight_visit *visit,
                         void *ctx)
{
    return family_each_weight(&names, c, w, &(family_walk){visit, ctx});
}

const model_family model_family_granitemoe = {
    .name = "granitemoe",
    .key_n_experts = "num_local_experts",
    .key_top_k = "num_experts_per_tok",
    .key_d_ffn = "intermediate_size",
    .renormalise = true,
    .read_config = read_config,
    .keys = keys,
    .each_weight = each_weight,
    .kv_layer = family_kv_layer,
};

const model_family model_family_granitemoeshared = {
    .name = "granitemoeshared",
    .key_n_experts = "num_local_experts",
    .key_top_k = "num_experts_per_tok",
    .key_d_ffn = "intermediate_size",
    .renormalise = true,
    .read_config = read_config_shared,
    .keys = keys_shared,
    .each_weight = each_weight,
    .kv_layer = family_kv_layer,
};
