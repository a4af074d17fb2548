/* model/family_qwen3_moe.c - Qwen3-MoE (arXiv 2505.09388).
 *
 * RMS norms of every head of q and k, no shared expert; some layers may be dense. With use_sliding_window all layers
 * have a window. */
#include "model/config_json.h"
#include "model/family_parts.h"

static const char *const keys[] = {"attention_bias",      "use_sliding_window", "sliding_window",
                                   "decoder_sparse_step", "mlp_only_layers",    NULL};

static const family_names names = {.router = "mlp.gate",
                                   .experts = "mlp.experts",
                                   .dense = "mlp",
                                   .gate = "gate_proj",
                                   .up = "up_proj",
                                   .down = "down_proj"};

static err_t read_config(const model_json_object *from, model_config *out)
{
    bool has_window = false;
    out->qk_norm = MODEL_QK_NORM_HEAD;
    TRY(config_read_bool(from, "attention_bias", &out->has_qkv_bias));
    out->has_o_bias = out->has_qkv_bias;
    TRY(config_read_bool(from, "use_sliding_window", &has_window));
    if (has_window)
        TRY(model_json_u32(from, "sliding_window", (const uint32_t[]){1, INT32_MAX}, &out->window));
    return config_read_sparse_steps(from, out);
}

static err_t each_weight(const model_config *c, model_weights *w, model_weight_visit *visit,
                         void *ctx)
{
    return family_each_weight(&names, c, w, &(family_walk){visit, ctx});
}

const model_family model_family_qwen3_moe = {
    .name = "qwen3_moe",
    .key_n_experts = "num_experts",
    .key_n_experts_too = "num_local_experts",
    .key_top_k = "num_experts_per_tok",
    .key_d_ffn = "moe_intermediate_size",
    .key_renormalise = "norm_topk_prob",
    .renormalise = false,
    .read_config = read_config,
    .keys = keys,
    .each_weight = each_weight,
    .kv_layer = family_kv_layer,
};
