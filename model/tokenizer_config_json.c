/* model/tokenizer_config_json.c - the one setting of tokenizer_config.json that we use. */
#include "model/tokenizer_settings.h"

#include "model/checked_json.h"

#include <cjson/cJSON.h>

err_t tokenizer_settings_read(const char *dir, tokenizer_settings *out, err_info *info)
{
    *out = (tokenizer_settings){.add_bos = true};
    cJSON *root;
    const err_t err = model_json_read(dir, "tokenizer_config.json", &root, info);
    if (err == ERR_NOT_FOUND) return ERR_OK;
    TRY(err);
    const cJSON *const add_bos = cJSON_GetObjectItemCaseSensitive(root, "add_bos_token");
    if (cJSON_IsBool(add_bos)) out->add_bos = cJSON_IsTrue(add_bos);
    cJSON_Delete(root);
    return ERR_OK;
}
