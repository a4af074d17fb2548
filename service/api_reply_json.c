/* service/api_reply_json.c - see api_reply.h. Keys come in the order in which they are put. */
#include "service/api_reply.h"

#include "base/check.h"
#include "service/api_fields_json.h"
#include "service/api_kv_json.h"
#include "service/api_logprobs_json.h"

#include <stdlib.h>
#include <string.h>

static json_t *text_or_null(const char *text, size_t n_bytes)
{
    return text != NULL ? api_text_new(text, n_bytes) : json_null();
}

/* The prompt, if it is echoed, and the text, as one string. */
static json_t *piece_text(const api_piece *piece)
{
    size_t n_bytes;
    if (piece->echo == NULL) return api_text_new(piece->text, piece->text_bytes);
    if (size_add(piece->echo_bytes, piece->text_bytes, &n_bytes) != ERR_OK) return NULL;
    char *both = malloc(n_bytes > 0 ? n_bytes : 1);
    if (both == NULL) return NULL;
    memcpy(both, piece->echo, piece->echo_bytes);
    if (piece->text_bytes > 0) memcpy(both + piece->echo_bytes, piece->text, piece->text_bytes);
    json_t *text = api_text_new(both, n_bytes);
    free(both);
    return text;
}

static json_t *stop_reason(const api_piece *piece)
{
    if (piece->stop_token >= 0) return json_integer(piece->stop_token);
    return text_or_null(piece->stop_text, piece->stop_text_bytes);
}

static json_t *id_list(const uint32_t *ids, size_t n_ids)
{
    json_t *list = json_array();
    for (size_t i = 0; list != NULL && i < n_ids; i++) {
        if (json_array_append_new(list, json_integer(ids[i])) == 0) continue;
        json_decref(list);
        return NULL;
    }
    return list;
}

static bool put_ids(json_t *choice, const api_piece *piece)
{
    if (!piece->shows_ids) return true;
    if (piece->prompt_ids != NULL &&
        !api_put(choice, "prompt_token_ids", id_list(piece->prompt_ids, piece->n_prompt_ids))) {
        return false;
    }
    return api_put(choice, "token_ids", id_list(piece->token_ids, piece->n_token_ids));
}

static json_t *choice_new(const api_envelope *envelope, const api_piece *piece)
{
    json_t *choice = json_object();
    if (choice == NULL) return NULL;
    json_t *logprobs = piece->scores != NULL
                           ? api_logprobs_new(envelope, piece->scores, piece->n_scores)
                           : json_null();
    if (!api_put(choice, "index", json_integer(piece->index)) ||
        !api_put(choice, "text", piece_text(piece))) {
        json_decref(logprobs);
        json_decref(choice);
        return NULL;
    }
    const size_t finish_bytes = piece->finish != NULL ? strlen(piece->finish) : 0;
    const bool is_ok =
        api_put(choice, "logprobs", logprobs) &&
        api_put(choice, "finish_reason", text_or_null(piece->finish, finish_bytes)) &&
        api_put(choice, "stop_reason", stop_reason(piece)) && put_ids(choice, piece);
    if (is_ok) return choice;
    json_decref(choice);
    return NULL;
}

static json_t *usage_new(const api_usage *usage)
{
    json_t *document =
        json_pack("{s:I,s:I,s:I,s:{s:I}}", "prompt_tokens", (json_int_t)usage->n_prompt,
                  "completion_tokens", (json_int_t)usage->n_output, "total_tokens",
                  (json_int_t)(usage->n_prompt + usage->n_output), "prompt_tokens_details",
                  "cached_tokens", (json_int_t)usage->n_cached);
    if (document == NULL || usage->methods == NULL) return document;
    if (api_put(document, "kv", api_kv_usage_new(usage->methods, &usage->kv))) return document;
    json_decref(document);
    return NULL;
}

/* The document up to its choices, which are empty. */
static json_t *document_new(const api_envelope *envelope)
{
    return json_pack("{s:s,s:s,s:I,s:s,s:s,s:[]}", "id", envelope->id, "object", "text_completion",
                     "created", (json_int_t)envelope->created, "model", envelope->model,
                     "system_fingerprint", envelope->fingerprint, "choices");
}

static char *dump_and_release(json_t *document, bool is_ok, size_t *n_bytes)
{
    char *text = is_ok ? api_dump(document, n_bytes) : NULL;
    json_decref(document);
    return text;
}

char *api_reply_document(const api_envelope *envelope, const api_piece *pieces, size_t n_pieces,
                         const api_usage *usage, size_t *n_bytes)
{
    json_t *document = document_new(envelope);
    json_t *choices = json_object_get(document, "choices");
    bool is_ok = choices != NULL;
    for (size_t i = 0; is_ok && i < n_pieces; i++)
        is_ok = json_array_append_new(choices, choice_new(envelope, &pieces[i])) == 0;
    is_ok = is_ok && api_put(document, "usage", usage_new(usage));
    return dump_and_release(document, is_ok, n_bytes);
}

char *api_reply_chunk(const api_envelope *envelope, const api_piece *piece, bool has_usage,
                      size_t *n_bytes)
{
    json_t *document = document_new(envelope);
    json_t *choices = json_object_get(document, "choices");
    bool is_ok =
        choices != NULL && json_array_append_new(choices, choice_new(envelope, piece)) == 0;
    is_ok = is_ok && (!has_usage || api_put(document, "usage", json_null()));
    return dump_and_release(document, is_ok, n_bytes);
}

char *api_reply_usage_chunk(const api_envelope *envelope, const api_usage *usage, size_t *n_bytes)
{
    json_t *document = document_new(envelope);
    const bool is_ok = document != NULL && api_put(document, "usage", usage_new(usage));
    return dump_and_release(document, is_ok, n_bytes);
}
