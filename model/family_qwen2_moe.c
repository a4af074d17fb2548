/* model/family_qwen2_moe.c - Qwen1.5-MoE and Qwen2-MoE (arXiv 2407.10671).
 *
 * Biases on q, k and v; beside the experts one that all tokens pass, times the sigmoid of a gate of its own; some
 * layers may be dense. With use_sliding_window, every other layer below max_window_layers has a window, unless
 * layer_types says which. */
#include "model/config_json.h"
#include "model/family_parts.h"

static const char *const keys[] = {"qkv_bias",
                                   "shared_expert_intermediate_size",
                                   "use_sliding_window",
                                   "sliding_window",
                                   "decoder_sparse_step",
                                   "mlp_only_layers",
                                   NULL};

static const family_names names = {.router = "mlp.gate",
                                   .experts = "mlp.experts",
                                   .shared = "mlp.shared_expert",
                                   .shared_gate = "mlp.shared_expert_gate",
                                   .dense = "mlp",
                                   .gate = "gate_proj",
                                   .up = "up_proj",
                                   .down = "down_proj"};

static err_t read_window(const model_json_object *from, model_config *out)
{
    bool has_window = false;
    uint32_t n_below = 28; /* transformers' default */
    TRY(config_read_bool(from, "use_sliding_window", &has_window));
    if (!has_window) return ERR_OK;
    TRY(model_json_u32(from, "sliding_window", (const uint32_t[]){1, INT32_MAX}, &out->window));
    TRY(config_read_u32(from, "max_window_layers", (const uint32_t[]){0, INT32_MAX}, &n_below));
    if (model_json_member(from, "layer_types") != NULL) return config_read_layer_types(from, out);
    for (uint32_t l = 0; l < out->n_layers; l++) {
        if (l % 2 != 0 || l >= n_below) model_layer_set_add(&out->full_layers, l);
    }
    return ERR_OK;
}

static err_t read_config(const model_json_object *from, model_config *out)
{
    out->has_qkv_bias = true;
    TRY(config_read_bool(from, "qkv_bias", &out->has_qkv_bias));
    TRY(model_json_u32(from, "shared_expert_intermediate_size",
                       (const uint32_t[]){1, CONFIG_D_FFN_MAX}, &out->d_shared_ffn));
    out->is_shared_gated = true;
    TRY(read_window(from, out));
    return config_read_sparse_steps(from, out);
}

static err_t each_weight(const model_config *c, model_weights *w, model_weight_visit *visit,
                         void *ctx)
{
    return family_each_weight(&names, c, w, &(family_walk){visit, ctx});
}

const model_family model_family_qwen2_moe = {
    .name = "qwen2_moe",
    .key_n_experts = "num_experts",
    .key_top_k = "num_experts_per_tok",
    .key_d_ffn = "moe_intermediate_size",
    .key_renormalise = "norm_topk_prob",
    .renormalise = false,
    .read_config = read_config,
    .keys = keys,
    .each_weight = each_weight,
    .kv_layer = family_kv_layer,
};
