/* model/quantisation_json.c - see quantisation.h. */
#include "model/quantisation.h"

#include "base/check.h"
#include "kernels/matmul.h"
#include "model/config_json.h"

#include <cjson/cJSON.h>
#include <stdio.h>
#include <string.h>

static const char *const section = "quantization_config";

static err_t refuse_member(const model_json_object *from, const char *key, const cJSON *value)
{
    char path[64];
    (void)snprintf(path, sizeof path, "%s.%.40s", section, key);
    return config_refuse(from, path, value);
}

/* Keys that say nothing which the tensors do not say, or that are about activations. */
static bool is_silent(const cJSON *member)
{
    static const char *const names[] = {
        "quant_method",      "weight_block_size", "modules_to_not_convert", "ignored_layers", "fmt",
        "activation_scheme", "scale_fmt"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        if (strcmp(member->string, names[i]) == 0) return true;
    }
    return cJSON_IsNull(member) || cJSON_IsFalse(member);
}

static bool is_word(const cJSON *value, const char *word)
{
    return cJSON_IsString(value) && strcmp(value->valuestring, word) == 0;
}

/* The value of `key` must be absent or one of two words. */
static err_t check_word(const model_json_object *in, const char *key, const char *const words[2])
{
    const cJSON *const value = model_json_member(in, key);
    if (value == NULL || is_word(value, words[0]) || is_word(value, words[1])) return ERR_OK;
    return refuse_member(in, key, value);
}

static err_t read_block_size(const model_json_object *in, quantisation *out)
{
    const cJSON *const list = model_json_member(in, "weight_block_size");
    uint32_t side[2];
    if (list == NULL) return ERR_OK; /* one scale for a tensor */
    if (!cJSON_IsArray(list) || cJSON_GetArraySize(list) != 2)
        return refuse_member(in, "weight_block_size", list);
    for (int i = 0; i < 2; i++) {
        const cJSON *const item = cJSON_GetArrayItem(list, i);
        const double value = cJSON_IsNumber(item) ? item->valuedouble : 0;
        const bool is_right = value >= SCALE_BLOCK && value <= 1 << 20;
        side[i] = is_right ? (uint32_t)value : 0;
        if (!is_right || (double)side[i] != value || side[i] % SCALE_BLOCK != 0)
            return refuse_member(in, "weight_block_size", item);
    }
    out->block_rows = side[0];
    out->block_cols = side[1];
    return ERR_OK;
}

static err_t read_fp8(const model_json_object *in, quantisation *out)
{
    out->method = QUANTISATION_FP8;
    TRY(check_word(in, "fmt", (const char *const[2]){"e4m3", "float8_e4m3fn"}));
    TRY(check_word(in, "scale_fmt", (const char *const[2]){"float", "ue8m0"}));
    TRY(check_word(in, "activation_scheme", (const char *const[2]){"dynamic", "static"}));
    return read_block_size(in, out);
}

err_t quantisation_read(const model_json_object *from, quantisation *out)
{
    const cJSON *const object = model_json_member(from, section), *member;
    *out = (quantisation){.method = QUANTISATION_NONE};
    if (object == NULL) return ERR_OK;
    if (!cJSON_IsObject(object)) return config_refuse(from, section, object);
    const model_json_object in = {.file = from->file, .object = object, .info = from->info};
    const cJSON *const method = model_json_member(&in, "quant_method");
    if (is_word(method, "fp8"))
        TRY(read_fp8(&in, out));
    else if (is_word(method, "mxfp4"))
        out->method = QUANTISATION_MXFP4;
    else
        return refuse_member(from, "quant_method", method);
    cJSON_ArrayForEach(member, object)
    {
        if (!is_silent(member)) return refuse_member(from, member->string, member);
    }
    return ERR_OK;
}
