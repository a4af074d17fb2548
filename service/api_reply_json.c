/* service/api_reply_json.c - see api_reply.h. Keys come in the order in which they are put. */
#include "service/api_reply.h"

#include "base/check.h"
#include "service/api_fields_json.h"
#include "service/api_kv_json.h"
#include "service/api_logprobs_json.h"

#include <stdlib.h>
#include <string.h>

struct api_shape {
    const char *object, *chunk_object; /* the member `object` of a document and of a chunk */
    bool has_ids_outside;              /* prompt_token_ids stand beside the choices, not in each */
    json_t *(*choice_new)(const api_envelope *envelope, const api_piece *piece);
    json_t *(*delta_new)(const api_envelope *envelope, const api_piece *piece); /* of a chunk */
    size_t (*split)(const api_piece *piece, api_piece parts[API_PARTS_MAX]);
};

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

static json_t *ids_new(const uint32_t *ids, size_t n_ids)
{
    json_t *list = json_array();
    for (size_t i = 0; list != NULL && i < n_ids; i++) {
        if (json_array_append_new(list, json_integer(ids[i])) == 0) continue;
        json_decref(list);
        return NULL;
    }
    return list;
}

static bool put_ids(json_t *choice, const api_piece *piece, bool has_prompt)
{
    if (!piece->shows_ids) return true;
    if (has_prompt && piece->prompt_ids != NULL &&
        !api_put(choice, "prompt_token_ids", ids_new(piece->prompt_ids, piece->n_prompt_ids))) {
        return false;
    }
    return api_put(choice, "token_ids", ids_new(piece->token_ids, piece->n_token_ids));
}

/* logprobs, finish_reason, stop_reason and ids behind what `choice` has; takes `logprobs`. */
static bool put_end(const api_envelope *envelope, json_t *choice, json_t *logprobs,
                    const api_piece *piece)
{
    const size_t finish_bytes = piece->finish != NULL ? strlen(piece->finish) : 0;
    return api_put(choice, "logprobs", logprobs) &&
           api_put(choice, "finish_reason", text_or_null(piece->finish, finish_bytes)) &&
           api_put(choice, "stop_reason", stop_reason(piece)) &&
           put_ids(choice, piece, !envelope->shape->has_ids_outside);
}

/* ---- completions ----------------------------------------------------------------------------------------- */

static json_t *completion_choice(const api_envelope *envelope, const api_piece *piece)
{
    json_t *choice =
        json_pack("{s:I,s:o}", "index", (json_int_t)piece->index, "text", piece_text(piece));
    if (choice == NULL) return NULL;
    json_t *logprobs = piece->scores != NULL
                           ? api_logprobs_new(envelope, piece->scores, piece->n_scores)
                           : json_null();
    if (put_end(envelope, choice, logprobs, piece)) return choice;
    json_decref(choice);
    return NULL;
}

static size_t completion_split(const api_piece *piece, api_piece parts[API_PARTS_MAX])
{
    parts[0] = *piece;
    return 1;
}

const api_shape api_shape_completion = {.object = "text_completion",
                                        .chunk_object = "text_completion",
                                        .choice_new = completion_choice,
                                        .delta_new = completion_choice,
                                        .split = completion_split};

/* ---- chats ----------------------------------------------------------------------------------------------- */

/* A call as a whole, or what is new of it: then without what was sent before. */
static json_t *call_new(const api_call_delta *call, bool is_delta)
{
    json_t *out = json_object();
    json_t *function = json_object();
    bool is_ok = out != NULL && function != NULL;
    if (is_ok && is_delta) is_ok = api_put(out, "index", json_integer((json_int_t)call->index));
    if (is_ok && call->id != NULL) {
        is_ok = api_put(out, "id", json_string(call->id)) &&
                api_put(out, "type", json_string("function")) &&
                api_put(function, "name", api_text_new(call->name, call->name_bytes));
    }
    is_ok = is_ok &&
            api_put(function, "arguments", api_text_new(call->arguments, call->arguments_bytes));
    if (is_ok) is_ok = json_object_set(out, "function", function) == 0;
    json_decref(function);
    if (is_ok) return out;
    json_decref(out);
    return NULL;
}

static json_t *calls_new(const api_piece *piece, bool is_delta)
{
    json_t *list = json_array();
    for (size_t i = 0; list != NULL && i < piece->n_calls; i++) {
        if (json_array_append_new(list, call_new(&piece->calls[i], is_delta)) == 0) continue;
        json_decref(list);
        return NULL;
    }
    return list;
}

/* What is said: {role, content, refusal, tool_calls} of a document; of a chunk the role alone, or text, or nothing. */
static json_t *message_new(const api_envelope *envelope, const api_piece *piece)
{
    const bool has_text = piece->n_calls == 0 || piece->text_bytes > 0 || piece->echo_bytes > 0;
    json_t *message = json_pack("{s:s,s:o,s:n}", "role", envelope->role, "content",
                                has_text ? piece_text(piece) : json_null(), "refusal");
    if (message == NULL || piece->n_calls == 0) return message;
    if (api_put(message, "tool_calls", calls_new(piece, false))) return message;
    json_decref(message);
    return NULL;
}

static json_t *delta_new(const api_envelope *envelope, const api_piece *piece)
{
    if (piece->is_first)
        return json_pack("{s:s,s:s,s:n}", "role", envelope->role, "content", "", "refusal");
    if (piece->finish != NULL) return json_object();
    if (piece->n_calls > 0) return json_pack("{s:o}", "tool_calls", calls_new(piece, true));
    return json_pack("{s:o}", "content", piece_text(piece));
}

static json_t *chat_choice(const api_envelope *envelope, const api_piece *piece, const char *name,
                           json_t *said)
{
    json_t *choice = json_pack("{s:I,s:o}", "index", (json_int_t)piece->index, name, said);
    if (choice == NULL) return NULL;
    json_t *logprobs = piece->scores != NULL
                           ? api_chat_logprobs_new(envelope, piece->scores, piece->n_scores)
                           : json_null();
    if (put_end(envelope, choice, logprobs, piece)) return choice;
    json_decref(choice);
    return NULL;
}

static json_t *chat_message_choice(const api_envelope *envelope, const api_piece *piece)
{
    return chat_choice(envelope, piece, "message", message_new(envelope, piece));
}

static json_t *chat_delta_choice(const api_envelope *envelope, const api_piece *piece)
{
    return chat_choice(envelope, piece, "delta", delta_new(envelope, piece));
}

/* What a chunk in the middle has of a piece: neither what comes first nor what comes last. */
static api_piece middle_of(const api_piece *piece)
{
    api_piece middle = *piece;
    middle.is_first = false;
    middle.finish = NULL;
    middle.stop_text = NULL;
    middle.stop_token = -1;
    middle.prompt_ids = NULL;
    return middle;
}

/* The role; what is said, if anything is; calls, if there are any; the end. Scores and ids come with the first of those
 * between. */
static size_t chat_split(const api_piece *piece, api_piece parts[API_PARTS_MAX])
{
    size_t n_parts = 0;
    if (piece->is_first) {
        parts[n_parts++] = (api_piece){.index = piece->index,
                                       .is_first = true,
                                       .stop_token = -1,
                                       .prompt_ids = piece->prompt_ids,
                                       .n_prompt_ids = piece->n_prompt_ids,
                                       .shows_ids = piece->shows_ids};
    }
    const bool has_text = piece->text_bytes > 0 || piece->echo_bytes > 0;
    const bool has_scores = piece->n_scores > 0 || piece->n_token_ids > 0;
    if (has_text || (has_scores && piece->n_calls == 0)) {
        parts[n_parts] = middle_of(piece);
        parts[n_parts++].n_calls = 0;
    }
    if (piece->n_calls > 0) {
        api_piece *called = &parts[n_parts++];
        *called = middle_of(piece);
        if (has_text) {
            called->scores = NULL;
            called->n_scores = called->n_token_ids = 0;
            called->shows_ids = false;
        }
    }
    if (piece->finish != NULL) {
        parts[n_parts++] = (api_piece){.index = piece->index,
                                       .finish = piece->finish,
                                       .stop_text = piece->stop_text,
                                       .stop_text_bytes = piece->stop_text_bytes,
                                       .stop_token = piece->stop_token,
                                       .shows_ids = piece->shows_ids};
    }
    return n_parts;
}

const api_shape api_shape_chat = {.object = "chat.completion",
                                  .chunk_object = "chat.completion.chunk",
                                  .has_ids_outside = true,
                                  .choice_new = chat_message_choice,
                                  .delta_new = chat_delta_choice,
                                  .split = chat_split};

/* ---- documents ------------------------------------------------------------------------------------------- */

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
static json_t *document_new(const api_envelope *envelope, const char *object)
{
    return json_pack("{s:s,s:s,s:I,s:s,s:s,s:[]}", "id", envelope->id, "object", object, "created",
                     (json_int_t)envelope->created, "model", envelope->model, "system_fingerprint",
                     envelope->fingerprint, "choices");
}

static char *dump_and_release(json_t *document, bool is_ok, size_t *n_bytes)
{
    char *text = is_ok ? api_dump(document, n_bytes) : NULL;
    json_decref(document);
    return text;
}

/* Of a chat, whose choices have one prompt. */
static bool put_prompt_ids(const api_envelope *envelope, const api_piece *piece, json_t *document)
{
    if (!envelope->shape->has_ids_outside || piece->prompt_ids == NULL) return true;
    return api_put(document, "prompt_token_ids", ids_new(piece->prompt_ids, piece->n_prompt_ids));
}

char *api_reply_document(const api_envelope *envelope, const api_piece *pieces, size_t n_pieces,
                         const api_usage *usage, size_t *n_bytes)
{
    const api_shape *shape = envelope->shape;
    json_t *document = document_new(envelope, shape->object);
    json_t *choices = json_object_get(document, "choices");
    bool is_ok = choices != NULL;
    for (size_t i = 0; is_ok && i < n_pieces; i++)
        is_ok = json_array_append_new(choices, shape->choice_new(envelope, &pieces[i])) == 0;
    is_ok = is_ok && put_prompt_ids(envelope, pieces, document) &&
            api_put(document, "usage", usage_new(usage));
    return dump_and_release(document, is_ok, n_bytes);
}

size_t api_reply_split(const api_envelope *envelope, const api_piece *piece,
                       api_piece parts[API_PARTS_MAX])
{
    return envelope->shape->split(piece, parts);
}

char *api_reply_chunk(const api_envelope *envelope, const api_piece *piece, bool has_usage,
                      size_t *n_bytes)
{
    const api_shape *shape = envelope->shape;
    json_t *document = document_new(envelope, shape->chunk_object);
    json_t *choices = json_object_get(document, "choices");
    bool is_ok =
        choices != NULL && json_array_append_new(choices, shape->delta_new(envelope, piece)) == 0;
    is_ok = is_ok && put_prompt_ids(envelope, piece, document) &&
            (!has_usage || api_put(document, "usage", json_null()));
    return dump_and_release(document, is_ok, n_bytes);
}

char *api_reply_usage_chunk(const api_envelope *envelope, const api_usage *usage, size_t *n_bytes)
{
    json_t *document = document_new(envelope, envelope->shape->chunk_object);
    const bool is_ok = document != NULL && api_put(document, "usage", usage_new(usage));
    return dump_and_release(document, is_ok, n_bytes);
}
