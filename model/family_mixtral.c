/* model/family_mixtral.c - Mixtral (Jiang et al., arXiv 2401.04088).
 *
 * Every layer: RMS norm, grouped-query attention with rotary positions, RMS norm, a router over
 * n_experts SwiGLU experts of which top_k run, their weights renormalised to sum to one. In a
 * checkpoint an expert's w1 is the gate, w3 the up and w2 the down projection. */
#include "model/config_json.h"
#include "model/family_parts.h"

static const char *const keys[] = {"sliding_window", NULL};

static const family_names names = {.router = "block_sparse_moe.gate",
                                   .experts = "block_sparse_moe.experts",
                                   .gate = "w1",
                                   .up = "w3",
                                   .down = "w2"};

static err_t read_config(const model_json_object *from, model_config *out)
{
    return config_read_u32(from, "sliding_window", (const uint32_t[]){0, INT32_MAX}, &out->window);
}

static err_t each_weight(const model_config *c, model_weights *w, model_weight_visit *visit,
                         void *ctx)
{
    return family_each_weight(&names, c, w, &(family_walk){visit, ctx});
}

const model_family model_family_mixtral = {
    .name = "mixtral",
    .key_n_experts = "num_local_experts",
    .key_top_k = "num_experts_per_tok",
    .key_d_ffn = "intermediate_size",
    .renormalise = true,
    .read_config = read_config,
    .keys = keys,
    .each_weight = each_weight,
    .kv_layer = family_kv_layer,
};
