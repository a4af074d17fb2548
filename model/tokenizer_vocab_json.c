/* model/tokenizer_vocab_json.c - vocabulary, merges and added tokens of a tokenizer.json. */
#include "model/tokenizer_json.h"

#include "base/check.h"
#include "model/checked_json.h"

#include <cjson/cJSON.h>
#include <stdlib.h>
#include <string.h>

static err_t no_memory(const model_json_object *from, err_t err)
{
    return err_set(from->info, err, "%s: %s", from->file, err_sentence(err));
}

static err_t read_id(const model_json_object *from, const cJSON *item, uint32_t *out)
{
    uint64_t value = 0;
    TRY(model_json_integer(from, item, (const uint64_t[2]){0, TOKENIZER_JSON_IDS_MAX - 1}, &value));
    *out = (uint32_t)value;
    return ERR_OK;
}

/* ---- the model ----------------------------------------------------------------------------------- */

/* What can only be there with its neutral value. */
static err_t check_model(const model_json_object *from)
{
    static const char *const empty[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    text_view type;
    TRY(tokenizer_json_string(from, "type", &type));
    if (strcmp(type.bytes, "BPE") != 0) return tokenizer_json_refuse(from, "type");
    for (size_t i = 0; i < sizeof empty / sizeof empty[0]; i++) {
        const cJSON *const item = model_json_member(from, empty[i]);
        if (item != NULL && !(cJSON_IsString(item) && item->valuestring[0] == '\0'))
            return tokenizer_json_refuse(from, empty[i]);
    }
    const cJSON *const dropout = model_json_member(from, "dropout");
    if (dropout != NULL && !(cJSON_IsNumber(dropout) && dropout->valuedouble == 0))
        return tokenizer_json_refuse(from, "dropout");
    return ERR_OK;
}

static err_t measure_vocab(const model_json_object *from, const cJSON *vocab, bpe_limits *out)
{
    for (const cJSON *item = vocab->child; item != NULL; item = item->next) {
        uint32_t id;
        const size_t n_bytes = strlen(item->string);
        TRY(read_id(from, item, &id));
        if (n_bytes > TOKENIZER_JSON_STRING_MAX)
            return err_set(from->info, ERR_BAD_MODEL, "%s: vocab: a token of %zu bytes is too long",
                           from->file, n_bytes);
        if (id >= out->n_ids) out->n_ids = id + 1;
        out->n_pieces++;
        out->pieces_bytes += n_bytes;
    }
    return ERR_OK;
}

/* An empty token takes an id and does nothing more. */
static err_t add_pieces(const model_json_object *from, const cJSON *vocab, bpe *b)
{
    for (const cJSON *item = vocab->child; item != NULL; item = item->next) {
        const text_view piece = {item->string, strlen(item->string)};
        if (piece.n_bytes == 0) continue;
        if (bpe_add_piece(b, (uint32_t)item->valuedouble, piece) != ERR_OK)
            return err_set(from->info, ERR_BAD_MODEL, "%s: vocab: id %u is there twice", from->file,
                           (unsigned)item->valuedouble);
    }
    return ERR_OK;
}

/* "left right", or ["left", "right"]. */
static bool read_merge(const cJSON *item, text_view *left, text_view *right)
{
    if (cJSON_IsString(item)) {
        const char *const space = strchr(item->valuestring, ' ');
        if (space == NULL || strchr(space + 1, ' ') != NULL) return false;
        *left = (text_view){item->valuestring, (size_t)(space - item->valuestring)};
        *right = (text_view){space + 1, strlen(space + 1)};
        return true;
    }
    const cJSON *const first = cJSON_IsArray(item) ? item->child : NULL;
    const cJSON *const second = first != NULL ? first->next : NULL;
    if (second == NULL || second->next != NULL) return false;
    if (!cJSON_IsString(first) || !cJSON_IsString(second)) return false;
    *left = tokenizer_json_view(first);
    *right = tokenizer_json_view(second);
    return true;
}

static err_t add_merges(const model_json_object *from, const cJSON *merges, bpe *b)
{
    unsigned i = 0;
    for (const cJSON *item = merges->child; item != NULL; item = item->next, i++) {
        text_view left, right;
        if (!read_merge(item, &left, &right))
            return err_set(from->info, ERR_BAD_MODEL, "%s: merges: element %u is not a pair",
                           from->file, i);
        const err_t err = bpe_add_merge(b, left, right);
        if (err == ERR_BAD_MODEL)
            return err_set(from->info, err,
                           "%s: merges: element %u has a token that is not in vocab", from->file,
                           i);
        if (err != ERR_OK) return no_memory(from, err);
    }
    return ERR_OK;
}

static err_t read_settings(const model_json_object *from, const bpe *b, bpe_settings *out)
{
    *out = (bpe_settings){.unk = BPE_NO_ID};
    TRY(tokenizer_json_bool(from, "byte_fallback", false, &out->byte_fallback));
    TRY(tokenizer_json_bool(from, "fuse_unk", false, &out->fuse_unk));
    TRY(tokenizer_json_bool(from, "ignore_merges", false, &out->ignore_merges));
    if (model_json_member(from, "unk_token") == NULL) return ERR_OK;
    text_view unk;
    TRY(tokenizer_json_string(from, "unk_token", &unk));
    out->unk = bpe_find(b, unk);
    if (out->unk != BPE_NO_ID) return ERR_OK;
    return err_set(from->info, ERR_BAD_MODEL, "%s: unk_token: \"%.40s\" is not in vocab",
                   from->file, unk.bytes);
}

err_t tokenizer_json_model(const model_json_object *from, tok_bpe *t)
{
    TRY(check_model(from));
    const cJSON *const vocab = model_json_member(from, "vocab");
    const cJSON *const merges = model_json_member(from, "merges");
    if (!cJSON_IsObject(vocab)) return tokenizer_json_refuse(from, "vocab");
    if (!cJSON_IsArray(merges)) return tokenizer_json_refuse(from, "merges");
    bpe_limits limits = {.n_merges = (size_t)cJSON_GetArraySize(merges)};
    TRY(measure_vocab(from, vocab, &limits));
    const err_t err = bpe_open(&limits, &t->vocabulary);
    if (err != ERR_OK) return no_memory(from, err);
    TRY(add_pieces(from, vocab, t->vocabulary));
    TRY(add_merges(from, merges, t->vocabulary));
    bpe_settings settings;
    TRY(read_settings(from, t->vocabulary, &settings));
    bpe_finish(t->vocabulary, &settings);
    t->n_ids = limits.n_ids;
    t->n_pieces = limits.n_pieces;
    return ERR_OK;
}

/* ---- added tokens -------------------------------------------------------------------------------- */

typedef struct adding {
    const model_json_object *file;
    tok_bpe *t;
    normalizer_scratch scratch;
    uint32_t next_id; /* of a token that is not in the vocabulary */
} adding;

static err_t refuse_token(const adding *a, const char *content, const char *why)
{
    return err_set(a->file->info, ERR_BAD_MODEL, "%s: added_tokens: \"%.60s\": %s", a->file->file,
                   content, why);
}

/* The library numbers tokens that the vocabulary lacks itself, whatever the file says. Where the two
 * differ the file is not what its maker meant. */
static err_t check_id(adding *a, text_view content, uint32_t id)
{
    uint32_t expected = bpe_find(a->t->vocabulary, content);
    if (expected == BPE_NO_ID) expected = a->next_id++;
    if (id == expected) return ERR_OK;
    return err_set(a->file->info, ERR_BAD_MODEL,
                   "%s: added_tokens: \"%.60s\": id %u does not follow from the vocabulary: %u",
                   a->file->file, content.bytes, id, expected);
}

static err_t add_token(adding *a, const model_json_object *from, text_view content, uint32_t id)
{
    tok_bpe *const t = a->t;
    added_token token = {.id = id};
    bool is_normalized;
    TRY(tokenizer_json_bool(from, "single_word", false, &token.single_word));
    TRY(tokenizer_json_bool(from, "lstrip", false, &token.lstrip));
    TRY(tokenizer_json_bool(from, "rstrip", false, &token.rstrip));
    TRY(tokenizer_json_bool(from, "special", false, &token.is_special));
    TRY(tokenizer_json_bool(from, "normalized", !token.is_special, &is_normalized));
    text_view text = content;
    err_t err = ERR_OK;
    if (is_normalized) err = normalizer_apply(&t->normalizer, &a->scratch, content, &text);
    if (err != ERR_OK) return no_memory(a->file, err);
    if (text.n_bytes == 0) return refuse_token(a, content.bytes, "nothing is left of it");
    if (text.n_bytes > ADDED_TOKEN_BYTES_MAX) return refuse_token(a, content.bytes, "too long");
    err = added_set_add(is_normalized ? t->normalized : t->plain, text, &token);
    if (err == ERR_BAD_MODEL) return refuse_token(a, content.bytes, "it is there twice");
    if (err != ERR_OK) return no_memory(a->file, err);
    const bool is_changed =
        text.n_bytes != content.n_bytes || memcmp(text.bytes, content.bytes, text.n_bytes) != 0;
    t->added[t->n_added++] = (tok_added){.id = id,
                                         .begin = t->added_text.n_bytes,
                                         .n_bytes = text.n_bytes,
                                         .is_special = token.is_special && !is_changed};
    err = text_buffer_append(&t->added_text, text.bytes, text.n_bytes);
    if (err != ERR_OK) return no_memory(a->file, err);
    if (id >= t->n_ids) t->n_ids = id + 1;
    return ERR_OK;
}

static int compare_ids(const void *a, const void *b)
{
    const uint32_t x = ((const tok_added *)a)->id, y = ((const tok_added *)b)->id;
    return x < y ? -1 : x > y;
}

static err_t add_tokens(adding *a, const cJSON *list)
{
    for (const cJSON *item = list != NULL ? list->child : NULL; item != NULL; item = item->next) {
        if (!cJSON_IsObject(item))
            return err_set(a->file->info, ERR_BAD_MODEL,
                           "%s: added_tokens: an element is no object", a->file->file);
        const model_json_object from = {a->file->file, item, a->file->info};
        text_view content;
        uint32_t id = 0;
        TRY(tokenizer_json_string(&from, "content", &content));
        TRY(model_json_u32(&from, "id", (const uint32_t[2]){0, TOKENIZER_JSON_IDS_MAX - 1}, &id));
        if (content.n_bytes == 0) continue; /* so does the library */
        TRY(check_id(a, content, id));
        TRY(add_token(a, &from, content, id));
    }
    return ERR_OK;
}

err_t tokenizer_json_added(const model_json_object *file, const cJSON *list, tok_bpe *t)
{
    adding a = {.file = file, .t = t, .next_id = (uint32_t)t->n_pieces};
    if (list != NULL && !cJSON_IsArray(list)) return tokenizer_json_refuse(file, "added_tokens");
    const size_t n = list != NULL ? (size_t)cJSON_GetArraySize(list) : 0;
    t->added = calloc(n + 1, sizeof *t->added);
    if (t->added == NULL) return no_memory(file, ERR_NO_MEMORY);
    err_t err = added_set_open(&t->plain);
    if (err == ERR_OK) err = added_set_open(&t->normalized);
    if (err == ERR_OK) err = regex_scratch_open(&a.scratch.regex);
    if (err != ERR_OK)
        (void)no_memory(file, err);
    else
        err = add_tokens(&a, list);
    regex_scratch_close(a.scratch.regex);
    free(a.scratch.buffer[0].bytes);
    free(a.scratch.buffer[1].bytes);
    if (err == ERR_OK) qsort(t->added, t->n_added, sizeof *t->added, compare_ids);
    return err;
}
