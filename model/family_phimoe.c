/* model/family_phimoe.c - Phi-3.5-MoE (Abdin et al., arXiv 2404.14219).
 *
 * Layer norms with biases, biases in attention and head, and a router of two experts (sparsemixer) each of which is
 * weighted among its rivals alone. The RoPE is longrope with a scale of its own for long and short contexts; which of
 * them holds is explained in rope.h. */
#include "model/config_json.h"
#include "model/family_parts.h"

static const char *const keys[] = {"attention_bias", "lm_head_bias", "sliding_window", NULL};

static const family_names names = {.router = "block_sparse_moe.gate",
                                   .experts = "block_sparse_moe.experts",
                                   .gate = "w1",
                                   .up = "w3",
                                   .down = "w2"};

static err_t read_config(const model_json_object *from, model_config *out)
{
    out->norm = MODEL_NORM_LAYER;
    out->router = ROUTER_SPARSEMIXER;
    out->router_jitter = 0.01f;
    if (out->top_k != 2)
        return err_set(from->info, ERR_UNSUPPORTED,
                       "%s: num_experts_per_tok: %u is not supported: sparsemixer chooses 2",
                       from->file, out->top_k);
    TRY(config_read_real(from, "router_jitter_noise", (const double[]){0, 1}, &out->router_jitter));
    TRY(config_read_bool(from, "attention_bias", &out->has_qkv_bias));
    out->has_o_bias = out->has_qkv_bias;
    TRY(config_read_bool(from, "lm_head_bias", &out->has_head_bias));
    return config_read_u32(from, "sliding_window", (const uint32_t[]){0, INT32_MAX}, &out->window);
}

static err_t each_weight(const model_config *c, model_weights *w, model_weight_visit *visit,
                         void *ctx)
{
    return family_each_weight(&names, c, w, &(family_walk){visit, ctx});
}

const model_family model_family_phimoe = {
    .name = "phimoe",
    .key_n_experts = "num_local_experts",
    .key_top_k = "num_experts_per_tok",
    .key_d_ffn = "intermediate_size",
    .read_config = read_config,
    .keys = keys,
    .each_weight = each_weight,
    .kv_layer = family_kv_layer,
};
