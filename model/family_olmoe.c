/* model/family_olmoe.c - OLMoE (Muennighoff et al., arXiv 2409.02060).
 *
 * As Mixtral, but q and k have RMS norms over a token's whole projection, all three may be clipped, and the weights of
 * the experts are their probabilities, not renormalised unless norm_topk_prob says so. */
#include "model/config_json.h"
#include "model/family_parts.h"

static const char *const keys[] = {"attention_bias", "clip_qkv", NULL};

static const family_names names = {.router = "mlp.gate",
                                   .experts = "mlp.experts",
                                   .gate = "gate_proj",
                                   .up = "up_proj",
                                   .down = "down_proj"};

static err_t read_config(const model_json_object *from, model_config *out)
{
    out->qk_norm = MODEL_QK_NORM_WHOLE;
    TRY(config_read_real(from, "clip_qkv", (const double[]){1e-6, 1e6}, &out->qkv_limit));
    TRY(config_read_bool(from, "attention_bias", &out->has_qkv_bias));
    out->has_o_bias = out->has_qkv_bias;
    return ERR_OK;
}

static err_t each_weight(const model_config *c, model_weights *w, model_weight_visit *visit,
                         void *ctx)
{
    return family_each_weight(&names, c, w, &(family_walk){visit, ctx});
}

const model_family model_family_olmoe = {
    .name = "olmoe",
    .key_n_experts = "num_experts",
    .key_top_k = "num_experts_per_tok",
    .key_d_ffn = "intermediate_size",
    .key_renormalise = "norm_topk_prob",
    .renormalise = false,
    .read_config = read_config,
    .keys = keys,
    .each_weight = each_weight,
    .kv_layer = family_kv_layer,
};
