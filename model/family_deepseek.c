/* model/family_deepseek.c - DeepSeek-V2 and V3 (arXiv 2405.04434, 2412.19437).
 *
 * Latent attention (layer_latent.c), queries through a low rank or not; the first layers dense, then experts beside
 * shared ones that all tokens pass. V2 chooses by softmax, of some groups of experts or of all; V3 by sigmoid and a
 * bias, of the groups with the best pairs. With YaRN the scale of the scores has mscale_all_dim's factor twice.
 *
 * V3 is released in fp8, a scale for 128 x 128 codes. kv_b_proj changes its order at load and becomes f32; so does
 * q_b_proj, which is cut by heads, where a head or its first part is no whole number of SCALE_BLOCK rows (released: 192 of
 * 128). All others stay codes.
 *
 * Of V2's norm_topk_prob the published code and transformers make different things; it is refused. The layers behind
 * the last one that V3's files hold, for several tokens at once (num_nextn_predict_layers), are not used. */
#include "model/config_json.h"
#include "model/family_parts.h"

#include "base/check.h"

#include <math.h>

static const char *const keys[] = {
    "kv_lora_rank", "n_shared_experts",      "first_k_dense_replace", "moe_layer_freq",
    "n_group",      "routed_scaling_factor", "scoring_func",          NULL};

enum { LATENT_DIM_MAX = 1024, PART_DIM_MAX = 256 };

/* ---- config.json --------------------------------------------------------------------------------- */

static err_t read_attention(const model_json_object *from, model_config *out)
{
    static const uint32_t parts[2] = {1, PART_DIM_MAX};
    TRY(config_read_u32(from, "q_lora_rank", (const uint32_t[]){1, LATENT_DIM_MAX * 16},
                        &out->latent.q_rank));
    TRY(model_json_u32(from, "qk_nope_head_dim", parts, &out->latent.nope_dim));
    TRY(model_json_u32(from, "qk_rope_head_dim", parts, &out->rope.n_rotated));
    TRY(model_json_u32(from, "v_head_dim", parts, &out->v_dim));
    TRY(model_json_u32(from, "kv_lora_rank",
                       (const uint32_t[]){1, LATENT_DIM_MAX - out->rope.n_rotated},
                       &out->latent.kv_rank));
    if (out->rope.n_rotated % 2 != 0)
        return err_set(from->info, ERR_BAD_MODEL, "%s: qk_rope_head_dim: %u is not even",
                       from->file, out->rope.n_rotated);
    out->head_dim = out->latent.nope_dim + out->rope.n_rotated;
    out->n_kv_heads = 1;
    out->is_rope_interleaved = true;
    return config_read_bool(from, "rope_interleave", &out->is_rope_interleaved);
}

/* Which layers are dense. */
static err_t read_layers(const model_json_object *from, model_config *out)
{
    static const uint32_t ffn[2] = {1, CONFIG_D_FFN_MAX};
    uint32_t n_first = 0, step = 1, n_shared = 0;
    TRY(config_read_u32(from, "first_k_dense_replace", (const uint32_t[]){0, out->n_layers},
                        &n_first));
    TRY(config_read_u32(from, "moe_layer_freq", (const uint32_t[]){1, MODEL_LAYERS_MAX}, &step));
    for (uint32_t l = 0; l < out->n_layers; l++) {
        if (l < n_first || l % step != 0) model_layer_set_add(&out->dense_layers, l);
    }
    if (n_first > 0 || step > 1)
        TRY(model_json_u32(from, "intermediate_size", ffn, &out->d_dense_ffn));
    TRY(config_read_u32(from, "n_shared_experts", (const uint32_t[]){0, 64}, &n_shared));
    out->d_shared_ffn = n_shared * out->d_ffn;
    return ERR_OK;
}

static err_t read_groups(const model_json_object *from, model_config *out)
{
    TRY(model_json_u32(from, "n_group", (const uint32_t[]){1, MOE_GROUPS_MAX},
                       &out->router_groups));
    TRY(model_json_u32(from, "topk_group", (const uint32_t[]){1, out->router_groups},
                       &out->router_top_groups));
    if (out->n_experts % out->router_groups != 0)
        return err_set(from->info, ERR_BAD_MODEL, "%s: n_group: %u does not divide %u experts",
                       from->file, out->router_groups, out->n_experts);
    if (out->n_experts / out->router_groups * out->router_top_groups < out->top_k)
        return err_set(from->info, ERR_BAD_MODEL,
                       "%s: topk_group: %u groups have fewer than %u experts", from->file,
                       out->router_top_groups, out->top_k);
    return ERR_OK;
}

static err_t read_common(const model_json_object *from, model_config *out)
{
    TRY(read_attention(from, out));
    TRY(read_layers(from, out));
    TRY(config_read_u32(from, "num_nextn_predict_layers", (const uint32_t[]){0, MODEL_LAYERS_MAX},
                        &out->n_unused_layers));
    return config_read_real(from, "routed_scaling_factor", (const double[]){1e-6, 1e6},
                            &out->router_scale);
}

static err_t read_v2(const model_json_object *from, model_config *out)
{
    bool has_groups, is_renormalised = false, unused;
    TRY(read_common(from, out));
    TRY(config_read_choice(from, "scoring_func", (const char *const[]){"softmax", "softmax"},
                           &unused));
    TRY(config_read_bool(from, "norm_topk_prob", &is_renormalised));
    if (is_renormalised)
        return config_refuse(from, "norm_topk_prob", model_json_member(from, "norm_topk_prob"));
    TRY(config_read_choice(from, "topk_method",
                           (const char *const[]){"greedy", "group_limited_greedy"}, &has_groups));
    out->router_group_best = 1;
    return has_groups ? read_groups(from, out) : ERR_OK;
}

static err_t read_v3(const model_json_object *from, model_config *out)
{
    bool unused;
    TRY(read_common(from, out));
    TRY(config_read_choice(from, "scoring_func", (const char *const[]){"sigmoid", "sigmoid"},
                           &unused));
    TRY(config_read_choice(from, "topk_method", (const char *const[]){"noaux_tc", "noaux_tc"},
                           &unused));
    out->router = ROUTER_SIGMOID;
    out->has_choice_bias = true;
    out->router_group_best = 2;
    return read_groups(from, out);
}

/* ---- tensors ------------------------------------------------------------------------------------- */

/* Do the parts of heads begin where a scale may? */
static bool has_whole_scales(const model_config *c)
{
    return c->quantisation.method != QUANTISATION_FP8 ||
           (c->latent.nope_dim % SCALE_BLOCK == 0 && c->head_dim % SCALE_BLOCK == 0);
}

static err_t visit_attention(const model_config *c, model_layer *layer, uint32_t l,
                             const family_walk *to)
{
    const uint32_t d = c->d_model, rank = c->latent.kv_rank, q_rank = c->latent.q_rank;
    const uint32_t q[2] = {c->n_heads * c->head_dim, q_rank > 0 ? q_rank : d};
    TRY(family_visit(to, &layer->attention_norm, (const uint32_t[]){0, d},
                     "model.layers.%u.input_layernorm.weight", l));
    if (q_rank > 0) {
        TRY(family_visit(to, &layer->q_a, (const uint32_t[]){q_rank, d},
                         "model.layers.%u.self_attn.q_a_proj.weight", l));
        TRY(family_visit(to, &layer->q_a_norm, (const uint32_t[]){0, q_rank},
                         "model.layers.%u.self_attn.q_a_layernorm.weight", l));
    }
    TRY(family_visit_arranged(to, &layer->q, q, has_whole_scales(c) ? NULL : model_plain_arrange,
                              "model.layers.%u.self_attn.%s.weight", l,
                              q_rank > 0 ? "q_b_proj" : "q_proj"));
    TRY(family_visit(to, &layer->kv_a, (const uint32_t[]){rank + c->rope.n_rotated, d},
                     "model.layers.%u.self_attn.kv_a_proj_with_mqa.weight", l));
    TRY(family_visit(to, &layer->kv_a_norm, (const uint32_t[]){0, rank},
                     "model.layers.%u.self_attn.kv_a_layernorm.weight", l));
    TRY(family_visit_arranged(
        to, &layer->kv_b, (const uint32_t[]){c->n_heads * (c->latent.nope_dim + c->v_dim), rank},
        model_latent_arrange, "model.layers.%u.self_attn.kv_b_proj.weight", l));
    return family_visit(to, &layer->o, (const uint32_t[]){d, c->n_heads * c->v_dim},
                        "model.layers.%u.self_attn.o_proj.weight", l);
}

static const family_names names = {.router = "mlp.gate",
                                   .choice_bias = "mlp.gate.e_score_correction_bias",
                                   .experts = "mlp.experts",
                                   .shared = "mlp.shared_experts",
                                   .dense = "mlp",
                                   .gate = "gate_proj",
                                   .up = "up_proj",
                                   .down = "down_proj",
                                   .visit_attention = visit_attention};

static err_t each_weight(const model_config *c, model_weights *w, model_weight_visit *visit,
                         void *ctx)
{
    return family_each_weight(&names, c, w, &(family_walk){visit, ctx});
}

static float score_scale(const model_config *c)
{
    const double plain = 1 / sqrt((double)c->head_dim), factor = (double)c->rope.factor;
    const double mscale = c->rope.kind == ROPE_YARN ? (double)c->rope.mscale_all : 0;
    const double both = mscale != 0 && factor > 1 ? 0.1 * mscale * log(factor) + 1 : 1;
    return (float)(plain * both * both);
}

/* There is no projection of the cached values to the output, so methods that weigh by it are refused. */
static void kv_layer(const model_config *c, const model_weights *w, uint32_t l, kv_layer_shape *out)
{
    (void)w;
    *out = (kv_layer_shape){.n_heads = c->n_heads,
                            .n_kv_heads = 1,
                            .k_dim = model_key_dim(c),
                            .v_dim = model_value_dim(c),
                            .v_in_k = true,
                            .has_router = !model_layer_is_dense(c, l),
                            .scale = score_scale(c)};
}

const model_family model_family_deepseek_v2 = {
    .name = "deepseek_v2",
    .key_n_experts = "n_routed_experts",
    .key_top_k = "num_experts_per_tok",
    .key_d_ffn = "moe_intermediate_size",
    .renormalise = false,
    .read_config = read_v2,
    .keys = keys,
    .each_weight = each_weight,
    .kv_layer = kv_layer,
};

const model_family model_family_deepseek_v3 = {
    .name = "deepseek_v3",
    .key_n_experts = "n_routed_experts",
    .key_top_k = "num_experts_per_tok",
    .key_d_ffn = "moe_intermediate_size",
    .key_renormalise = "norm_topk_prob",
    .renormalise = true,
    .read_config = read_v3,
    .keys = keys,
    .each_weight = each_weight,
    .kv_layer = kv_layer,
};
