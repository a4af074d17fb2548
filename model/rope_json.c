/* model/rope_json.c - rotary positions of config.json, in both spellings: rope_theta beside rope_scaling, or all of it
 * in rope_parameters. */
#include "model/config_json.h"

#include "base/check.h"

#include <cjson/cJSON.h>
#include <stdio.h>
#include <string.h>

static const double theta_limits[2] = {1.0, 1e12};
static const double factor_limits[2] = {1e-3, 1e6};
static const uint32_t position_limits[2] = {1, 1 << 24};

static err_t read_kind(const model_json_object *in, const char *key, rope_kind *out)
{
    static const char *const names[ROPE_KINDS] = {
        [ROPE_PLAIN] = "default", [ROPE_LINEAR] = "linear", [ROPE_DYNAMIC] = "dynamic",
        [ROPE_LLAMA3] = "llama3", [ROPE_YARN] = "yarn",     [ROPE_LONGROPE] = "longrope"};
    const char *type_key = "rope_type";
    const cJSON *type = model_json_member(in, type_key);
    if (type == NULL) {
        type_key = "type";
        type = model_json_member(in, type_key);
    }
    for (int kind = 0; kind < ROPE_KINDS; kind++) {
        *out = (rope_kind)kind;
        if (cJSON_IsString(type) && strcmp(type->valuestring, names[kind]) == 0) return ERR_OK;
    }
    char path[64];
    (void)snprintf(path, sizeof path, "%s.%s", key, type_key);
    return config_refuse(in, path, type);
}

/* What is not known here may change the frequencies. */
static err_t refuse_unknown(const model_json_object *in, const char *key)
{
    static const char *const known[] = {"rope_type",
                                        "type",
                                        "rope_theta",
                                        "factor",
                                        "beta_fast",
                                        "beta_slow",
                                        "truncate",
                                        "attention_factor",
                                        "mscale",
                                        "short_factor",
                                        "mscale_all_dim",
                                        "low_freq_factor",
                                        "short_mscale",
                                        "long_mscale",
                                        "long_factor",
                                        "high_freq_factor",
                                        "original_max_position_embeddings"};
    const cJSON *item;
    cJSON_ArrayForEach(item, in->object)
    {
        bool is_known = cJSON_IsNull(item);
        for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
            is_known = is_known || strcmp(item->string, known[i]) == 0;
        if (strcmp(item->string, "partial_rotary_factor") == 0)
            is_known = is_known || (cJSON_IsNumber(item) && item->valuedouble == 1);
        char path[96];
        (void)snprintf(path, sizeof path, "%s.%.60s", key, item->string);
        if (!is_known) return config_refuse(in, path, item);
    }
    return ERR_OK;
}

/* Where a scaling's own object does not say, config.json itself may, else these are all positions. */
static err_t read_original(const model_json_object *from, const model_json_object *in,
                           model_config *out)
{
    static const char *const key = "original_max_position_embeddings";
    out->rope.n_original = out->n_positions;
    TRY(config_read_u32(from, key, position_limits, &out->rope.n_original));
    return config_read_u32(in, key, position_limits, &out->rope.n_original);
}

static err_t read_divisors(const model_json_object *in, const char *key, uint32_t n, float *out)
{
    const cJSON *const list = model_json_member(in, key);
    if (!cJSON_IsArray(list) || (uint32_t)cJSON_GetArraySize(list) != n)
        return err_set(in->info, ERR_BAD_MODEL, "%s: %s is not a list of %u numbers", in->file, key,
                       n);
    uint32_t i = 0;
    const cJSON *item;
    cJSON_ArrayForEach(item, list)
    {
        if (!cJSON_IsNumber(item) || !(item->valuedouble >= factor_limits[0]) ||
            !(item->valuedouble <= factor_limits[1]))
            return err_set(in->info, ERR_BAD_MODEL, "%s: %s: item %u is not a number in [%g, %g]",
                           in->file, key, i, factor_limits[0], factor_limits[1]);
        out[i++] = (float)item->valuedouble;
    }
    return ERR_OK;
}

/* Positions times factor, as far as counts of positions go. */
static uint32_t stretched(uint32_t n, float factor)
{
    const double most = (double)n * (double)factor;
    return most < position_limits[1] ? (uint32_t)most : position_limits[1];
}

static err_t read_llama3(const model_json_object *in, rope_config *r)
{
    TRY(model_json_real(in, "low_freq_factor", factor_limits, &r->low_freq));
    TRY(model_json_real(in, "high_freq_factor", factor_limits, &r->high_freq));
    if (r->low_freq < r->high_freq) return ERR_OK;
    return err_set(in->info, ERR_BAD_MODEL,
                   "%s: low_freq_factor %g is not below high_freq_factor %g", in->file,
                   (double)r->low_freq, (double)r->high_freq);
}

static err_t read_yarn(const model_json_object *in, model_config *out)
{
    rope_config *const r = &out->rope;
    bool is_truncated = true;
    r->beta_fast = 32;
    r->beta_slow = 1;
    TRY(config_read_real(in, "beta_fast", factor_limits, &r->beta_fast));
    TRY(config_read_real(in, "beta_slow", factor_limits, &r->beta_slow));
    TRY(config_read_real(in, "mscale", (const double[]){0, 1e3}, &r->mscale));
    TRY(config_read_real(in, "mscale_all_dim", (const double[]){0, 1e3}, &r->mscale_all));
    TRY(config_read_bool(in, "truncate", &is_truncated));
    r->is_range_exact = !is_truncated;
    const uint32_t most = stretched(r->n_original, r->factor);
    if (most > out->n_positions) out->n_positions = most;
    return ERR_OK;
}

static err_t read_longrope(const model_json_object *in, rope_config *r)
{
    TRY(config_read_real(in, "short_mscale", factor_limits, &r->short_scale));
    TRY(config_read_real(in, "long_mscale", factor_limits, &r->long_scale));
    TRY(read_divisors(in, "short_factor", r->n_rotated / 2, r->short_factor));
    return read_divisors(in, "long_factor", r->n_rotated / 2, r->long_factor);
}

static err_t read_scaling(const model_json_object *from, const model_json_object *in,
                          model_config *out)
{
    rope_config *const r = &out->rope;
    if (r->kind == ROPE_PLAIN) return ERR_OK;
    TRY(read_original(from, in, out));
    r->factor = (float)out->n_positions / (float)r->n_original;
    TRY(config_read_real(in, "attention_factor", factor_limits, &r->cos_scale));
    if (r->kind == ROPE_YARN || r->kind == ROPE_LONGROPE)
        TRY(config_read_real(in, "factor", factor_limits, &r->factor));
    else
        TRY(model_json_real(in, "factor", factor_limits, &r->factor));
    switch (r->kind) {
    case ROPE_LLAMA3: return read_llama3(in, r);
    case ROPE_YARN: return read_yarn(in, out);
    case ROPE_LONGROPE: return read_longrope(in, r);
    case ROPE_DYNAMIC:
        r->n_original = out->n_positions;
        out->n_positions = stretched(r->n_original, r->factor);
        return ERR_OK;
    default: return ERR_OK;
    }
}

static err_t read_object(const model_json_object *from, const char *key, const cJSON *object,
                         model_config *out)
{
    if (!cJSON_IsObject(object)) return config_refuse(from, key, object);
    const model_json_object in = {.file = from->file, .object = object, .info = from->info};
    TRY(read_kind(&in, key, &out->rope.kind));
    TRY(refuse_unknown(&in, key));
    return read_scaling(from, &in, out);
}

err_t config_read_rope(const model_json_object *from, model_config *out)
{
    const cJSON *const parameters = model_json_member(from, "rope_parameters");
    const cJSON *const scaling = model_json_member(from, "rope_scaling");
    if (parameters == NULL) {
        TRY(model_json_real(from, "rope_theta", theta_limits, &out->rope.theta));
        return scaling == NULL ? ERR_OK : read_object(from, "rope_scaling", scaling, out);
    }
    TRY(read_object(from, "rope_parameters", parameters, out));
    if (scaling != NULL && out->rope.kind == ROPE_PLAIN) {
        const model_json_object in = {.file = from->file, .object = scaling, .info = from->info};
        if (!cJSON_IsObject(scaling)) return config_refuse(from, "rope_scaling", scaling);
        rope_kind kind;
        TRY(read_kind(&in, "rope_scaling", &kind));
        if (kind != ROPE_PLAIN) return config_refuse(from, "rope_scaling", scaling);
    }
    const model_json_object in = {.file = from->file, .object = parameters, .info = from->info};
    return model_json_real(&in, "rope_theta", theta_limits, &out->rope.theta);
}
