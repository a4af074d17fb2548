/* model/model_config_json.c - see model_config.h.
 *
 * Two generations of config.json are read: rope_theta and torch_dtype as released checkpoints have
 * them, rope_parameters and dtype as transformers 5 writes them. Keys that would change the
 * computation are looked for by name and refused unless they hold the value that changes nothing;
 * all other keys (training settings, tokenizer hints) are left alone. */
#include "model/model_config.h"

#include "base/check.h"
#include "model/config_json.h"
#include "model/family.h"

#include <cjson/cJSON.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

enum { /* upper limits, so that products of two fit in 32 bits, of three in 64 */
       D_MODEL_MAX = 1 << 17,
       HEADS_MAX = 1024,
       HEAD_DIM_MAX = 2 * ROPE_PAIRS_MAX,
       VOCAB_MAX = 1 << 22,
       POSITIONS_MAX = 1 << 24, /* positions are exact as floats up to here */
       EXPERTS_MAX = 1 << 18    /* of all layers: their tensors are walked over by name */
};

static const char *const config_file = "config.json";
static const char *const generation_file = "generation_config.json";

/* ---- what this build does not compute ------------------------------------------------------------ */

err_t config_refuse(const model_json_object *from, const char *key, const cJSON *value)
{
    char shown[MODEL_JSON_SHOWN_BYTES];
    return err_set(from->info, ERR_UNSUPPORTED, "%s: %s: %s is not supported", from->file, key,
                   model_json_show(value, shown));
}

/* A key that changes the computation, and what it is when it does not. A family that reads it decides by itself. */
typedef struct plain_key {
    const char *key;
    enum { OFF, ONE, NEVER, SILU, SOFTMAX, EMPTY } when;
} plain_key;

static const plain_key plain_keys[] = {
    {"compression_config", OFF},
    {"attention_bias", OFF},
    {"qkv_bias", OFF},
    {"mlp_bias", OFF},
    {"lm_head_bias", OFF},
    {"clip_qkv", OFF},
    {"attn_logit_softcapping", OFF},
    {"final_logit_softcapping", OFF},
    {"hidden_act", SILU},
    {"partial_rotary_factor", ONE},
    {"rotary_dim", NEVER},
    {"sliding_window", OFF},
    {"use_sliding_window", OFF},
    {"use_qk_norm", OFF},
    {"qk_norm", OFF},
    {"attention_multiplier", NEVER},
    {"embedding_multiplier", ONE},
    {"residual_multiplier", ONE},
    {"logits_scaling", ONE},
    {"shared_expert_intermediate_size", OFF},
    {"shared_intermediate_size", OFF},
    {"n_shared_experts", OFF},
    {"num_shared_experts", OFF},
    {"first_k_dense_replace", OFF},
    {"moe_layer_freq", ONE},
    {"decoder_sparse_step", ONE},
    {"mlp_only_layers", EMPTY},
    {"scoring_func", SOFTMAX},
    {"n_group", ONE},
    {"routed_scaling_factor", ONE},
    {"kv_lora_rank", NEVER},
    {"swiglu_limit", NEVER},
    {"swiglu_alpha", NEVER},
    {"num_zero_experts", OFF},
};

static bool is_plain(const plain_key *plain, const cJSON *value)
{
    const bool is_number = cJSON_IsNumber(value), is_string = cJSON_IsString(value);
    switch (plain->when) {
    case OFF: return cJSON_IsFalse(value) || (is_number && value->valuedouble == 0);
    case ONE: return is_number && value->valuedouble == 1;
    case SILU: return is_string && strcmp(value->valuestring, "silu") == 0;
    case SOFTMAX: return is_string && strcmp(value->valuestring, "softmax") == 0;
    case EMPTY: return cJSON_IsArray(value) && value->child == NULL;
    default: return false;
    }
}

static bool is_read_by(const model_family *family, const char *key)
{
    for (const char *const *k = family->keys; k != NULL && *k != NULL; k++) {
        if (strcmp(*k, key) == 0) return true;
    }
    return false;
}

static err_t refuse_unknown_arithmetic(const model_json_object *from, const model_family *family)
{
    for (size_t i = 0; i < sizeof plain_keys / sizeof plain_keys[0]; i++) {
        const plain_key *const plain = &plain_keys[i];
        const cJSON *const value = model_json_member(from, plain->key);
        if (value == NULL || is_read_by(family, plain->key) || is_plain(plain, value)) continue;
        return config_refuse(from, plain->key, value);
    }
    return ERR_OK;
}

/* ---- other members ------------------------------------------------------------------------------- */

static err_t read_type(const model_json_object *from, model_config *out)
{
    static const char *const names[DTYPE_F16 + 1] = {
        [DTYPE_F32] = "float32", [DTYPE_BF16] = "bfloat16", [DTYPE_F16] = "float16"};
    const char *key = "dtype";
    const cJSON *value = model_json_member(from, key);
    if (value == NULL) {
        key = "torch_dtype";
        value = model_json_member(from, key);
    }
    /* The tensors tell; gpt-oss is released without the key, in BF16 beside its blocks. */
    out->stored_type = out->quantisation.method == QUANTISATION_MXFP4 ? DTYPE_BF16 : DTYPE_F32;
    if (value == NULL) return ERR_OK;
    for (dtype type = 0; type <= DTYPE_F16; type++) {
        if (cJSON_IsString(value) && strcmp(value->valuestring, names[type]) == 0) {
            out->stored_type = type;
            return ERR_OK;
        }
    }
    return config_refuse(from, key, value);
}

err_t config_read_bool(const model_json_object *from, const char *key, bool *out)
{
    const cJSON *const value = model_json_member(from, key);
    if (value == NULL) return ERR_OK; /* keeps the default */
    if (!cJSON_IsBool(value)) return config_refuse(from, key, value);
    *out = cJSON_IsTrue(value);
    return ERR_OK;
}

err_t config_read_real(const model_json_object *from, const char *key, const double limits[2],
                       float *out)
{
    return model_json_member(from, key) == NULL ? ERR_OK : model_json_real(from, key, limits, out);
}

err_t config_read_choice(const model_json_object *from, const char *key, const char *const words[2],
                         bool *is_second)
{
    const cJSON *const value = model_json_member(from, key);
    *is_second = false;
    if (value == NULL) return ERR_OK;
    for (int i = 0; i < 2; i++) {
        if (!cJSON_IsString(value) || strcmp(value->valuestring, words[i]) != 0) continue;
        *is_second = i == 1;
        return ERR_OK;
    }
    return config_refuse(from, key, value);
}

err_t config_read_layers(const model_json_object *from, const char *key, uint32_t n_layers,
                         model_layer_set *out)
{
    const cJSON *const list = model_json_member(from, key), *item;
    if (list == NULL) return ERR_OK;
    if (!cJSON_IsArray(list)) return config_refuse(from, key, list);
    cJSON_ArrayForEach(item, list)
    {
        uint64_t layer;
        TRY(model_json_integer(from, item, (const uint64_t[2]){0, n_layers - 1}, &layer));
        model_layer_set_add(out, (uint32_t)layer);
    }
    return ERR_OK;
}

err_t config_read_sparse_steps(const model_json_object *from, model_config *out)
{
    uint32_t step = 1, n_dense = 0;
    TRY(config_read_u32(from, "decoder_sparse_step", (const uint32_t[]){1, MODEL_LAYERS_MAX},
                        &step));
    TRY(config_read_layers(from, "mlp_only_layers", out->n_layers, &out->dense_layers));
    for (uint32_t l = 0; l < out->n_layers; l++) {
        if ((l + 1) % step != 0) model_layer_set_add(&out->dense_layers, l);
        n_dense += model_layer_is_dense(out, l);
    }
    if (n_dense == 0) return ERR_OK;
    return model_json_u32(from, "intermediate_size", (const uint32_t[]){1, CONFIG_D_FFN_MAX},
                          &out->d_dense_ffn);
}

static err_t read_bos(const model_json_object *from, model_config *out)
{
    const cJSON *const value = model_json_member(from, "bos_token_id");
    if (value == NULL) return ERR_OK;
    uint64_t id;
    TRY(model_json_integer(from, value, (const uint64_t[2]){0, out->n_vocab - 1}, &id));
    out->bos = (int64_t)id;
    return ERR_OK;
}

/* One id or a list of them. Leaves `out` alone if the file does not say. */
static err_t read_eos(const model_json_object *from, model_config *out)
{
    const cJSON *const value = model_json_member(from, "eos_token_id");
    if (value == NULL) return ERR_OK;
    const cJSON *item = cJSON_IsArray(value) ? value->child : value;
    out->n_eos = 0;
    while (item != NULL) {
        uint64_t id;
        if (out->n_eos == MODEL_EOS_MAX)
            return err_set(from->info, ERR_BAD_MODEL, "%s: eos_token_id: more than %d ids",
                           from->file, MODEL_EOS_MAX);
        TRY(model_json_integer(from, item, (const uint64_t[2]){0, out->n_vocab - 1}, &id));
        out->eos[out->n_eos++] = (uint32_t)id;
        item = cJSON_IsArray(value) ? item->next : NULL;
    }
    return ERR_OK;
}

err_t config_read_u32(const model_json_object *from, const char *key, const uint32_t limits[2],
                      uint32_t *out)
{
    return model_json_member(from, key) == NULL ? ERR_OK : model_json_u32(from, key, limits, out);
}

static err_t read_family(const model_json_object *from, model_config *out,
                         const model_family **family)
{
    const cJSON *const type = model_json_member(from, "model_type");
    if (type == NULL)
        return err_set(from->info, ERR_BAD_MODEL, "%s: model_type is missing", from->file);
    if (!cJSON_IsString(type)) return config_refuse(from, "model_type", type);
    *family = model_family_find(type->valuestring);
    if (*family == NULL) return config_refuse(from, "model_type", type);
    (void)snprintf(out->family, sizeof out->family, "%s", (*family)->name);
    return ERR_OK;
}

/* ---- the whole ----------------------------------------------------------------------------------- */

/* `other`, which may be NULL, if it is there and `key` is not. */
static const char *key_there(const model_json_object *from, const char *key, const char *other)
{
    const bool is_other = other != NULL && model_json_member(from, key) == NULL &&
                          model_json_member(from, other) != NULL;
    return is_other ? other : key;
}

static err_t read_shape(const model_json_object *from, const model_family *family,
                        model_config *out)
{
    TRY(model_json_u32(from, "num_hidden_layers", (const uint32_t[]){1, MODEL_LAYERS_MAX},
                       &out->n_layers));
    TRY(model_json_u32(from, "hidden_size", (const uint32_t[]){1, D_MODEL_MAX}, &out->d_model));
    TRY(model_json_u32(from, "num_attention_heads", (const uint32_t[]){1, HEADS_MAX},
                       &out->n_heads));
    out->n_kv_heads = out->n_heads;
    TRY(config_read_u32(from, "num_key_value_heads", (const uint32_t[]){1, out->n_heads},
                        &out->n_kv_heads));
    if (out->n_heads % out->n_kv_heads != 0)
        return err_set(from->info, ERR_BAD_MODEL,
                       "%s: num_key_value_heads: %u does not divide %u heads", from->file,
                       out->n_kv_heads, out->n_heads);
    if (model_json_member(from, "head_dim") == NULL && out->d_model % out->n_heads != 0)
        return err_set(from->info, ERR_BAD_MODEL,
                       "%s: num_attention_heads: %u does not divide hidden_size %u", from->file,
                       out->n_heads, out->d_model);
    out->head_dim = out->d_model / out->n_heads;
    TRY(config_read_u32(from, "head_dim", (const uint32_t[]){2, HEAD_DIM_MAX}, &out->head_dim));
    if (out->head_dim % 2 != 0 || out->head_dim < 2 || out->head_dim > HEAD_DIM_MAX)
        return err_set(from->info, ERR_BAD_MODEL,
                       "%s: head_dim: %u is not an even number in [2, %d]", from->file,
                       out->head_dim, HEAD_DIM_MAX);
    out->v_dim = out->rope.n_rotated = out->head_dim;
    TRY(model_json_u32(from, "vocab_size", (const uint32_t[]){1, VOCAB_MAX}, &out->n_vocab));
    const char *key = key_there(from, family->key_n_experts, family->key_n_experts_too);
    TRY(model_json_u32(from, key, (const uint32_t[]){1, MOE_EXPERTS_MAX}, &out->n_experts));
    const uint32_t top_k_max = out->n_experts < MOE_TOP_K_MAX ? out->n_experts : MOE_TOP_K_MAX;
    key = key_there(from, family->key_top_k, family->key_top_k_too);
    TRY(model_json_u32(from, key, (const uint32_t[]){1, top_k_max}, &out->top_k));
    return model_json_u32(from, family->key_d_ffn, (const uint32_t[]){1, CONFIG_D_FFN_MAX},
                          &out->d_ffn);
}

static err_t read_layers(const model_json_object *from, const model_family *family,
                         model_config *out)
{
    out->renormalise_top_k = family->renormalise;
    if (family->key_renormalise != NULL)
        TRY(config_read_bool(from, family->key_renormalise, &out->renormalise_top_k));
    if (family->read_config != NULL) TRY(family->read_config(from, out));
    for (uint32_t l = 0; l < out->n_layers; l++) {
        if (!model_layer_is_dense(out, l)) return ERR_OK;
    }
    return err_set(from->info, ERR_UNSUPPORTED, "%s: no layer has experts", from->file);
}

err_t config_read_layer_types(const model_json_object *from, model_config *out)
{
    const cJSON *const list = model_json_member(from, "layer_types");
    if (!cJSON_IsArray(list) || (uint32_t)cJSON_GetArraySize(list) != out->n_layers)
        return config_refuse(from, "layer_types", list);
    const cJSON *item = list->child;
    for (uint32_t l = 0; l < out->n_layers; l++, item = item->next) {
        const bool is_full =
            cJSON_IsString(item) && strcmp(item->valuestring, "full_attention") == 0;
        if (is_full)
            model_layer_set_add(&out->full_layers, l);
        else if (!cJSON_IsString(item) || strcmp(item->valuestring, "sliding_attention") != 0)
            return config_refuse(from, "layer_types", item);
    }
    return ERR_OK;
}

/* Where it repeats what other keys have said; something else is not computed. */
static err_t check_layer_types(const model_json_object *from, const model_config *c)
{
    if (model_json_member(from, "layer_types") == NULL) return ERR_OK;
    model_config said = {.n_layers = c->n_layers};
    TRY(config_read_layer_types(from, &said));
    for (uint32_t l = 0; l < c->n_layers; l++) {
        if ((model_layer_window(c, l) == 0) != model_layer_set_has(&said.full_layers, l))
            return config_refuse(from, "layer_types", model_json_member(from, "layer_types"));
    }
    return ERR_OK;
}

static err_t read_config(const model_json_object *from, model_config *out)
{
    const model_family *family;
    TRY(read_family(from, out, &family));
    TRY(refuse_unknown_arithmetic(from, family));
    TRY(quantisation_read(from, &out->quantisation));
    TRY(read_shape(from, family, out));
    out->router_scale = out->embedding_scale = out->residual_scale = out->logits_divisor = 1;
    TRY(model_json_u32(from, "max_position_embeddings", (const uint32_t[]){1, POSITIONS_MAX},
                       &out->n_positions));
    TRY(model_json_real(from, "rms_norm_eps", (const double[]){0.0, 1.0}, &out->norm_eps));
    TRY(read_layers(from, family, out));
    TRY(check_layer_types(from, out));
    TRY(config_read_rope(from, out));
    TRY(config_read_bool(from, "tie_word_embeddings", &out->tied_embeddings));
    TRY(read_type(from, out));
    out->bos = -1;
    TRY(read_bos(from, out));
    return read_eos(from, out);
}

/* ---- parameters ---------------------------------------------------------------------------------- */

typedef struct param_sum {
    const model_config *config;
    const model_weights *weights; /* whose fields say what a tensor is */
    size_t n, n_of_experts;
} param_sum;

static err_t add_params(void *ctx, const model_weight *weight)
{
    param_sum *const sum = ctx;
    const size_t n = (size_t)weight->rows * weight->cols; /* both have limits */
    if (model_weights_expert_of(sum->config, sum->weights, weight->into) != SIZE_MAX)
        TRY(size_add(sum->n_of_experts, n, &sum->n_of_experts));
    return size_add(sum->n, n, &sum->n);
}

static err_t count_params(model_config *c, err_info *info)
{
    const model_family *const family = model_family_find(c->family);
    model_weights weights = {0};
    param_sum sum = {.config = c, .weights = &weights};
    if ((uint64_t)c->n_layers * c->n_experts > EXPERTS_MAX)
        return err_set(info, ERR_BAD_MODEL, "%s: %u layers of %u experts are more than %d",
                       config_file, c->n_layers, c->n_experts, EXPERTS_MAX);
    const err_t no_memory = model_weights_alloc(c, &weights, info);
    err_t err = no_memory;
    if (err == ERR_OK) err = family->each_weight(c, &weights, add_params, &sum);
    model_weights_deinit(&weights);
    TRY(no_memory);
    size_t bytes;
    if (err == ERR_OK) err = size_mul(sum.n, sizeof(float), &bytes);
    if (err != ERR_OK || bytes > SIZE_MAX / 4)
        return err_set(info, ERR_BAD_MODEL, "%s: the size of the model overflows", config_file);
    c->n_params = sum.n;
    c->n_params_active = sum.n - sum.n_of_experts / c->n_experts * (c->n_experts - c->top_k);
    return ERR_OK;
}

static err_t read_generation_config(const char *dir, model_config *out, err_info *info)
{
    cJSON *root;
    err_t err = model_json_read(dir, generation_file, &root, info);
    if (err == ERR_NOT_FOUND) return ERR_OK;
    TRY(err);
    const model_json_object from = {.file = generation_file, .object = root, .info = info};
    err = read_eos(&from, out);
    cJSON_Delete(root);
    return err;
}

err_t model_config_read(const char *dir, model_config *out, err_info *info)
{
    *out = (model_config){0};
    cJSON *root;
    err_t err = model_json_read(dir, config_file, &root, info);
    if (err == ERR_NOT_FOUND) return err_set(info, ERR_IO, "%.150s: config.json is not there", dir);
    TRY(err);
    const model_json_object from = {.file = config_file, .object = root, .info = info};
    err = read_config(&from, out);
    cJSON_Delete(root);
    TRY(err);
    TRY(count_params(out, info));
    return read_generation_config(dir, out, info);
}
