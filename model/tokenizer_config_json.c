/* model/tokenizer_config_json.c - the settings of tokenizer_config.json that we use. */
#include "model/tokenizer_settings.h"

#include "model/checked_json.h"

#include <cjson/cJSON.h>
#include <stdlib.h>
#include <string.h>

static const char *const file_name = "tokenizer_config.json";

static const tokenizer_settings defaults = {
    .add_bos = true, .is_legacy = true, .adds_prefix = true};

void tokenizer_settings_deinit(tokenizer_settings *s)
{
    free(s->bos);
    free(s->eos);
    *s = defaults;
}

static void read_flag(const cJSON *root, const char *key, bool *out)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(root, key);
    if (cJSON_IsBool(item)) *out = cJSON_IsTrue(item); /* null is as good as nothing */
}

/* A token is a string, or an object (an AddedToken) with its "content". */
static err_t read_token(const cJSON *root, const char *key, char **out, err_info *info)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(root, key);
    if (cJSON_IsObject(item)) item = cJSON_GetObjectItemCaseSensitive(item, "content");
    if (!cJSON_IsString(item)) return ERR_OK;
    const size_t n_bytes = strlen(item->valuestring) + 1;
    *out = malloc(n_bytes);
    if (*out == NULL) return err_set(info, ERR_NO_MEMORY, "%s: out of memory", file_name);
    memcpy(*out, item->valuestring, n_bytes);
    return ERR_OK;
}

err_t tokenizer_settings_read(const char *dir, tokenizer_settings *out, err_info *info)
{
    *out = defaults;
    cJSON *root;
    err_t err = model_json_read(dir, file_name, &root, info);
    if (err == ERR_NOT_FOUND) return ERR_OK;
    TRY(err);
    out->says_add_bos = cJSON_IsBool(cJSON_GetObjectItemCaseSensitive(root, "add_bos_token"));
    read_flag(root, "add_bos_token", &out->add_bos);
    read_flag(root, "legacy", &out->is_legacy);
    read_flag(root, "add_prefix_space", &out->adds_prefix);
    err = read_token(root, "bos_token", &out->bos, info);
    if (err == ERR_OK) err = read_token(root, "eos_token", &out->eos, info);
    cJSON_Delete(root);
    if (err != ERR_OK) tokenizer_settings_deinit(out);
    return err;
}
