/* model/model_config_json.c - see model_config.h.
 *
 * Two generations of config.json are read: rope_theta and torch_dtype as released checkpoints have
 * them, rope_parameters and dtype as transformers 5 writes them. Keys that would change the
 * computation are looked for by name and refused unless they hold the value that changes nothing;
 * all other keys (training settings, tokenizer hints) are left alone. */
#include "model/model_config.h"

#include "base/check.h"
#include "model/checked_json.h"
#include "model/family.h"

#include <cjson/cJSON.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

enum { /* upper limits, so that products of two fit in 32 bits, of three in 64 */
       LAYERS_MAX = 1024,
       D_MODEL_MAX = 1 << 17,
       HEADS_MAX = 1024,
       HEAD_DIM_MAX = 512,
       VOCAB_MAX = 1 << 22,
       D_FFN_MAX = 1 << 20,
       POSITIONS_MAX = 1 << 24 /* positions are exact as floats up to here */
};

static const char *const config_file = "config.json";
static const char *const generation_file = "generation_config.json";

/* ---- what this build does not compute ------------------------------------------------------------ */

static err_t refuse(const model_json_object *from, const char *key, const cJSON *value)
{
    char shown[MODEL_JSON_SHOWN_BYTES];
    return err_set(from->info, ERR_UNSUPPORTED, "%s: %s: %s is not supported", from->file, key,
                   model_json_show(value, shown));
}

/* Each of these changes the computation when it is neither absent nor null nor false nor 0. */
static err_t refuse_unknown_arithmetic(const model_json_object *from)
{
    static const char *const keys[] = {"quantization_config",
                                       "compression_config",
                                       "attention_bias",
                                       "mlp_bias",
                                       "clip_qkv",
                                       "attn_logit_softcapping",
                                       "final_logit_softcapping"};
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        const cJSON *const value = model_json_member(from, keys[i]);
        if (value == NULL || cJSON_IsFalse(value)) continue;
        if (cJSON_IsNumber(value) && value->valuedouble == 0) continue;
        return refuse(from, keys[i], value);
    }
    const cJSON *const act = model_json_member(from, "hidden_act");
    if (act != NULL && !(cJSON_IsString(act) && strcmp(act->valuestring, "silu") == 0))
        return refuse(from, "hidden_act", act);
    const cJSON *const partial = model_json_member(from, "partial_rotary_factor");
    if (partial != NULL && !(cJSON_IsNumber(partial) && partial->valuedouble == 1.0))
        return refuse(from, "partial_rotary_factor", partial);
    return ERR_OK;
}

/* ---- rotary positions ---------------------------------------------------------------------------- */

static const double theta_limits[2] = {1.0, 1e12};

/* `scaling` is an object whose type must be "default": the plain frequencies. */
static err_t check_rope_type(const model_json_object *from, const char *key, const cJSON *scaling)
{
    if (!cJSON_IsObject(scaling)) return refuse(from, key, scaling);
    const model_json_object in = {.file = from->file, .object = scaling, .info = from->info};
    const cJSON *type = model_json_member(&in, "rope_type");
    const char *type_key = "rope_type";
    if (type == NULL) {
        type = model_json_member(&in, "type");
        type_key = "type";
    }
    char path[64];
    (void)snprintf(path, sizeof path, "%s.%s", key, type_key);
    if (type == NULL || !cJSON_IsString(type) || strcmp(type->valuestring, "default") != 0)
        return refuse(from, path, type);
    const cJSON *const partial = model_json_member(&in, "partial_rotary_factor");
    if (partial != NULL && !(cJSON_IsNumber(partial) && partial->valuedouble == 1.0))
        return refuse(from, "partial_rotary_factor", partial);
    return ERR_OK;
}

static err_t read_rope(const model_json_object *from, model_config *out)
{
    const cJSON *const scaling = model_json_member(from, "rope_scaling");
    if (scaling != NULL) TRY(check_rope_type(from, "rope_scaling", scaling));
    const cJSON *const parameters = model_json_member(from, "rope_parameters");
    if (parameters == NULL)
        return model_json_real(from, "rope_theta", theta_limits, &out->rope_theta);
    TRY(check_rope_type(from, "rope_parameters", parameters));
    const model_json_object in = {.file = from->file, .object = parameters, .info = from->info};
    return model_json_real(&in, "rope_theta", theta_limits, &out->rope_theta);
}

/* ---- other members ------------------------------------------------------------------------------- */

static err_t read_type(const model_json_object *from, model_config *out)
{
    static const char *const names[DTYPE_COUNT] = {
        [DTYPE_F32] = "float32", [DTYPE_BF16] = "bfloat16", [DTYPE_F16] = "float16"};
    const char *key = "dtype";
    const cJSON *value = model_json_member(from, key);
    if (value == NULL) {
        key = "torch_dtype";
        value = model_json_member(from, key);
    }
    out->stored_type = DTYPE_F32;
    if (value == NULL) return ERR_OK; /* the tensors tell */
    for (dtype type = 0; type < DTYPE_COUNT; type++) {
        if (cJSON_IsString(value) && strcmp(value->valuestring, names[type]) == 0) {
            out->stored_type = type;
            return ERR_OK;
        }
    }
    return refuse(from, key, value);
}

static err_t read_bool(const model_json_object *from, const char *key, bool *out)
{
    const cJSON *const value = model_json_member(from, key);
    if (value == NULL) return ERR_OK; /* keeps the default */
    if (!cJSON_IsBool(value)) return refuse(from, key, value);
    *out = cJSON_IsTrue(value);
    return ERR_OK;
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

static err_t read_optional_u32(const model_json_object *from, const char *key,
                               const uint32_t limits[2], uint32_t *out)
{
    return model_json_member(from, key) == NULL ? ERR_OK : model_json_u32(from, key, limits, out);
}

static err_t read_family(const model_json_object *from, model_config *out,
                         const model_family **family)
{
    const cJSON *const type = model_json_member(from, "model_type");
    if (type == NULL)
        return err_set(from->info, ERR_BAD_MODEL, "%s: model_type is missing", from->file);
    if (!cJSON_IsString(type)) return refuse(from, "model_type", type);
    *family = model_family_find(type->valuestring);
    if (*family == NULL) return refuse(from, "model_type", type);
    (void)snprintf(out->family, sizeof out->family, "%s", (*family)->name);
    return ERR_OK;
}

/* ---- the whole ----------------------------------------------------------------------------------- */

static err_t read_shape(const model_json_object *from, const model_family *family,
                        model_config *out)
{
    TRY(model_json_u32(from, "num_hidden_layers", (const uint32_t[]){1, LAYERS_MAX},
                       &out->n_layers));
    TRY(model_json_u32(from, "hidden_size", (const uint32_t[]){1, D_MODEL_MAX}, &out->d_model));
    TRY(model_json_u32(from, "num_attention_heads", (const uint32_t[]){1, HEADS_MAX},
                       &out->n_heads));
    out->n_kv_heads = out->n_heads;
    TRY(read_optional_u32(from, "num_key_value_heads", (const uint32_t[]){1, out->n_heads},
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
    TRY(read_optional_u32(from, "head_dim", (const uint32_t[]){2, HEAD_DIM_MAX}, &out->head_dim));
    if (out->head_dim % 2 != 0 || out->head_dim < 2 || out->head_dim > HEAD_DIM_MAX)
        return err_set(from->info, ERR_BAD_MODEL,
                       "%s: head_dim: %u is not an even number in [2, %d]", from->file,
                       out->head_dim, HEAD_DIM_MAX);
    TRY(model_json_u32(from, "vocab_size", (const uint32_t[]){1, VOCAB_MAX}, &out->n_vocab));
    TRY(model_json_u32(from, family->key_n_experts, (const uint32_t[]){1, MOE_EXPERTS_MAX},
                       &out->n_experts));
    const uint32_t top_k_max = out->n_experts < MOE_TOP_K_MAX ? out->n_experts : MOE_TOP_K_MAX;
    TRY(model_json_u32(from, family->key_top_k, (const uint32_t[]){1, top_k_max}, &out->top_k));
    return model_json_u32(from, family->key_d_ffn, (const uint32_t[]){1, D_FFN_MAX}, &out->d_ffn);
}

static err_t read_config(const model_json_object *from, model_config *out)
{
    const model_family *family;
    TRY(read_family(from, out, &family));
    TRY(refuse_unknown_arithmetic(from));
    TRY(read_shape(from, family, out));
    out->renormalise_top_k = family->renormalise;
    if (family->key_renormalise != NULL)
        TRY(read_bool(from, family->key_renormalise, &out->renormalise_top_k));
    TRY(read_optional_u32(from, "sliding_window", (const uint32_t[]){0, INT32_MAX}, &out->window));
    TRY(model_json_u32(from, "max_position_embeddings", (const uint32_t[]){1, POSITIONS_MAX},
                       &out->n_positions));
    TRY(model_json_real(from, "rms_norm_eps", (const double[]){0.0, 1.0}, &out->norm_eps));
    TRY(read_rope(from, out));
    TRY(read_bool(from, "tie_word_embeddings", &out->tied_embeddings));
    TRY(read_type(from, out));
    out->bos = -1;
    TRY(read_bos(from, out));
    return read_eos(from, out);
}

/* Of the matrices above; norms and router included. */
static err_t count_params(model_config *c, err_info *info)
{
    const uint64_t d = c->d_model, expert = 3 * d * c->d_ffn;
    const uint64_t attention = 2 * d * c->head_dim * (c->n_heads + c->n_kv_heads);
    const uint64_t layer = attention + 2 * d + d * c->n_experts;
    const uint64_t tables = (c->tied_embeddings ? 1 : 2) * d * c->n_vocab + d;
    size_t experts, layers, bytes;
    if (size_mul(expert, c->n_experts, &experts) != ERR_OK ||
        size_add(experts, layer, &layers) != ERR_OK ||
        size_mul(layers, c->n_layers, &layers) != ERR_OK ||
        size_add(layers, tables, &layers) != ERR_OK ||
        size_mul(layers, sizeof(float), &bytes) != ERR_OK || bytes > SIZE_MAX / 4)
        return err_set(info, ERR_BAD_MODEL, "%s: the size of the model overflows", config_file);
    c->n_params = layers;
    c->n_params_active = c->n_params - (uint64_t)c->n_layers * (c->n_experts - c->top_k) * expert;
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
