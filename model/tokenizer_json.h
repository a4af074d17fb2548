/* model/tokenizer_json.h - reads a tokenizer.json, as the tokenizers library writes it.
 *
 * Supported is what the families need: BPE with its normalizers, pre-tokenizers and decoders; all else
 * is refused with one line that names the key and the value. The file is nobody's friend: sizes, ids
 * and strings are checked before they are used. */
#ifndef MODEL_TOKENIZER_JSON_H
#define MODEL_TOKENIZER_JSON_H

#include "base/error.h"
#include "model/tokenizer_bpe.h"

struct cJSON;

/* DIR/tokenizer.json. ERR_NOT_FOUND (no message), ERR_BAD_MODEL, ERR_UNSUPPORTED, ERR_IO, ERR_NO_MEMORY. */
err_t tokenizer_json_open(const char *dir, tok_bpe **out, err_info *info) MUST_CHECK;

/* The content of such a file. */
err_t tokenizer_json_parse(text_view text, tok_bpe **out, err_info *info) MUST_CHECK;

/* ---- its parts, each in a file of its own; `from` is an object of the file ---- */

enum {
    TOKENIZER_JSON_BYTES_MAX = 96 << 20,
    TOKENIZER_JSON_VALUES_MAX = 1 << 22,
    TOKENIZER_JSON_IDS_MAX = 1 << 22,
    TOKENIZER_JSON_STRING_MAX = 1 << 16
};

struct model_json_object;

/* tokenizer_json.c: members of an object. A string is at most TOKENIZER_JSON_STRING_MAX long. */
err_t tokenizer_json_string(const struct model_json_object *from, const char *key,
                            text_view *out) MUST_CHECK;
err_t tokenizer_json_bool(const struct model_json_object *from, const char *key, bool otherwise,
                          bool *out) MUST_CHECK;
err_t tokenizer_json_refuse(const struct model_json_object *from, const char *key) MUST_CHECK;
text_view tokenizer_json_view(const struct cJSON *string);

/* tokenizer_vocab_json.c: "model" and "added_tokens" (after the normalizer: it rewrites some). */
err_t tokenizer_json_model(const struct model_json_object *from, tok_bpe *t) MUST_CHECK;
err_t tokenizer_json_added(const struct model_json_object *file, const struct cJSON *list,
                           tok_bpe *t) MUST_CHECK;

/* tokenizer_steps_json.c: "normalizer", "pre_tokenizer" and "decoder". */
err_t tokenizer_json_normalizer(const struct model_json_object *from, normalizer *out) MUST_CHECK;
err_t tokenizer_json_pre_tokenizer(const struct model_json_object *from,
                                   pre_tokenizer *out) MUST_CHECK;
err_t tokenizer_json_decoder(const struct model_json_object *from, tok_decoding *out) MUST_CHECK;

#endif
