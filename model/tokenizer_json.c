/* model/tokenizer_json.c - see tokenizer_json.h: the file as a whole, and its post-processor. */
#include "model/tokenizer_json.h"

#include "base/check.h"
#include "model/checked_json.h"
#include "model/model_file.h"

#include <cjson/cJSON.h>
#include <stdlib.h>
#include <string.h>

static const char *const file_name = "tokenizer.json";

/* ---- members ------------------------------------------------------------------------------------- */

text_view tokenizer_json_view(const cJSON *string)
{
    return (text_view){string->valuestring, strlen(string->valuestring)};
}

err_t tokenizer_json_refuse(const model_json_object *from, const char *key)
{
    char shown[MODEL_JSON_SHOWN_BYTES];
    const cJSON *const item = model_json_member(from, key);
    if (item == NULL)
        return err_set(from->info, ERR_BAD_MODEL, "%s: %s is missing", from->file, key);
    return err_set(from->info, ERR_UNSUPPORTED, "%s: %s: %s is not supported", from->file, key,
                   model_json_show(item, shown));
}

err_t tokenizer_json_string(const model_json_object *from, const char *key, text_view *out)
{
    const cJSON *const item = model_json_member(from, key);
    *out = (text_view){"", 0};
    if (!cJSON_IsString(item)) {
        char shown[MODEL_JSON_SHOWN_BYTES];
        if (item == NULL)
            return err_set(from->info, ERR_BAD_MODEL, "%s: %s is missing", from->file, key);
        return err_set(from->info, ERR_BAD_MODEL, "%s: %s: %s is not a string", from->file, key,
                       model_json_show(item, shown));
    }
    *out = tokenizer_json_view(item);
    if (out->n_bytes <= TOKENIZER_JSON_STRING_MAX) return ERR_OK;
    return err_set(from->info, ERR_BAD_MODEL, "%s: %s: %zu bytes are too long", from->file, key,
                   out->n_bytes);
}

err_t tokenizer_json_bool(const model_json_object *from, const char *key, bool otherwise, bool *out)
{
    char shown[MODEL_JSON_SHOWN_BYTES];
    const cJSON *const item = model_json_member(from, key);
    *out = item != NULL ? cJSON_IsTrue(item) : otherwise;
    if (item == NULL || cJSON_IsBool(item)) return ERR_OK;
    return err_set(from->info, ERR_BAD_MODEL, "%s: %s: %s is not true or false", from->file, key,
                   model_json_show(item, shown));
}

/* ---- the post-processor -------------------------------------------------------------------------- */

/* The one id of a special token of a template. */
static err_t template_id(const model_json_object *from, const cJSON *special, int64_t *out)
{
    const model_json_object named = {from->file, special, from->info};
    text_view name;
    uint64_t id = 0;
    TRY(tokenizer_json_string(&named, "id", &name));
    const cJSON *const known = model_json_member(from, "special_tokens");
    const cJSON *const entry = cJSON_GetObjectItemCaseSensitive(known, name.bytes);
    const cJSON *const ids = cJSON_GetObjectItemCaseSensitive(entry, "ids");
    if (!cJSON_IsArray(ids) || ids->child == NULL || ids->child->next != NULL)
        return err_set(from->info, ERR_UNSUPPORTED, "%s: special_tokens: %.60s is not one id",
                       from->file, name.bytes);
    TRY(model_json_integer(from, ids->child, (const uint64_t[2]){0, TOKENIZER_JSON_IDS_MAX - 1},
                           &id));
    *out = (int64_t)id;
    return ERR_OK;
}

/* "single": at most one special token, then the text. */
static err_t read_template(const model_json_object *from, int64_t *bos)
{
    const cJSON *const single = model_json_member(from, "single");
    bool has_text = false;
    if (!cJSON_IsArray(single)) return tokenizer_json_refuse(from, "single");
    for (const cJSON *item = single->child; item != NULL; item = item->next) {
        const cJSON *const special = cJSON_GetObjectItemCaseSensitive(item, "SpecialToken");
        if (special == NULL && cJSON_GetObjectItemCaseSensitive(item, "Sequence") != NULL &&
            !has_text) {
            has_text = true;
            continue;
        }
        if (special == NULL || has_text || *bos >= 0)
            return err_set(from->info, ERR_UNSUPPORTED,
                           "%s: single: other than one token before the text is not supported",
                           from->file);
        TRY(template_id(from, special, bos));
    }
    return ERR_OK;
}

/* Offsets are nobody's here, so ByteLevel does nothing. Recursion is as deep as the JSON. */
static err_t read_post_processor(const model_json_object *from, int64_t *bos)
{
    text_view type;
    TRY(tokenizer_json_string(from, "type", &type));
    if (strcmp(type.bytes, "ByteLevel") == 0) return ERR_OK;
    if (strcmp(type.bytes, "TemplateProcessing") == 0) return read_template(from, bos);
    if (strcmp(type.bytes, "Sequence") != 0) return tokenizer_json_refuse(from, "type");
    const cJSON *const list = model_json_member(from, "processors");
    if (!cJSON_IsArray(list)) return tokenizer_json_refuse(from, "processors");
    for (const cJSON *item = list->child; item != NULL; item = item->next) {
        const model_json_object element = {from->file, item, from->info};
        TRY(read_post_processor(&element, bos));
    }
    return ERR_OK;
}

/* ---- the file ------------------------------------------------------------------------------------ */

/* The object `key`, named "tokenizer.json: KEY" in messages. `*there` is false if it is null or absent. */
static err_t part_of(const model_json_object *root, const char *key, const char *name,
                     model_json_object *out, bool *there)
{
    const cJSON *const item = model_json_member(root, key);
    *there = item != NULL;
    *out = (model_json_object){name, item, root->info};
    if (item == NULL || cJSON_IsObject(item)) return ERR_OK;
    return tokenizer_json_refuse(root, key);
}

static err_t build(const model_json_object *root, tok_bpe *t)
{
    model_json_object part;
    bool there;
    TRY(part_of(root, "normalizer", "tokenizer.json: normalizer", &part, &there));
    if (there) TRY(tokenizer_json_normalizer(&part, &t->normalizer));
    TRY(part_of(root, "pre_tokenizer", "tokenizer.json: pre_tokenizer", &part, &there));
    if (there) TRY(tokenizer_json_pre_tokenizer(&part, &t->pre_tokenizer));
    TRY(part_of(root, "decoder", "tokenizer.json: decoder", &part, &there));
    if (!there)
        return err_set(root->info, ERR_UNSUPPORTED,
                       "%s: without a decoder (tokens apart by spaces) is not supported",
                       root->file);
    TRY(tokenizer_json_decoder(&part, &t->decoding));
    TRY(part_of(root, "post_processor", "tokenizer.json: post_processor", &part, &there));
    if (there) TRY(read_post_processor(&part, &t->template_bos));
    TRY(part_of(root, "model", "tokenizer.json: model", &part, &there));
    if (!there) return tokenizer_json_refuse(root, "model");
    TRY(tokenizer_json_model(&part, t));
    TRY(tokenizer_json_added(root, model_json_member(root, "added_tokens"), t));
    if (t->n_ids == 0) return err_set(root->info, ERR_BAD_MODEL, "%s: no token", root->file);
    if (t->template_bos < (int64_t)t->n_ids) return ERR_OK;
    return err_set(root->info, ERR_BAD_MODEL,
                   "%s: post_processor: id %lld is not in the vocabulary", root->file,
                   (long long)t->template_bos);
}

static err_t build_tree(cJSON *tree, tok_bpe **out, err_info *info)
{
    const model_json_object root = {file_name, tree, info};
    tok_bpe *const t = calloc(1, sizeof *t);
    if (t == NULL) return err_set(info, ERR_NO_MEMORY, "%s: out of memory", file_name);
    t->template_bos = -1;
    const err_t err = build(&root, t);
    if (err != ERR_OK) {
        tok_bpe_close(t);
        return err;
    }
    *out = t;
    return ERR_OK;
}

err_t tokenizer_json_parse(text_view text, tok_bpe **out, err_info *info)
{
    const model_json_text source = {.file = file_name,
                                    .text = text.bytes,
                                    .n_bytes = text.n_bytes,
                                    .n_values_max = TOKENIZER_JSON_VALUES_MAX};
    cJSON *tree;
    *out = NULL;
    TRY(model_json_parse(&source, &tree, info));
    const err_t err = build_tree(tree, out, info);
    cJSON_Delete(tree);
    return err;
}

err_t tokenizer_json_open(const char *dir, tok_bpe **out, err_info *info)
{
    char *bytes;
    size_t n_bytes;
    *out = NULL;
    TRY(model_file_read(dir, file_name, TOKENIZER_JSON_BYTES_MAX, &bytes, &n_bytes, info));
    const err_t err = tokenizer_json_parse((text_view){bytes, n_bytes}, out, info);
    free(bytes);
    return err;
}
