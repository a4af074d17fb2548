/* service/api_tokenize_json.c - POST /tokenize and /detokenize.
 *
 * Two dialects: vLLM's {prompt, add_special_tokens, return_token_strs} -> {count, max_model_len, tokens,
 * token_strs} and {tokens} -> {prompt}; llama.cpp's {content, add_special, with_pieces} -> {tokens} and
 * {tokens} -> {content}. A request that says `content` gets the second; /detokenize answers with both
 * keys. In vLLM's, `messages` may stand for `prompt`: what a chat with them is given to the model. GET /tokenizer_info is vLLM's, as far as clients that count tokens ask for it (lm-eval's remote
 * tokenizer). */
#include "service/api_call.h"
#include "service/api_fields_json.h"
#include "service/api_messages_json.h"
#include "service/api_prompt_json.h"

#include <stdio.h>
#include <stdlib.h>

typedef struct tokenize_request {
    api_text text;  /* borrowed from the body, or from rendered */
    char *rendered; /* owned; NULL unless of messages */
    bool is_content;
    bool add_special;
    bool with_strings;
} tokenize_request;

static bool read_messages(const api_context *api, const json_t *body, tokenize_request *out,
                          api_error *error)
{
    const api_limits limits = {.content = api->content, .tools = api->tools};
    api_chat chat = {0};
    api_prompt prompt = {0};
    const bool is_read = api_messages_read(body, &limits, &chat, error) &&
                         api_chat_render(api, &chat, &prompt, error) &&
                         api_field_bool(body, "add_special_tokens", &out->add_special, error) &&
                         api_field_bool(body, "return_token_strs", &out->with_strings, error);
    api_chat_deinit(&chat);
    out->rendered = prompt.text;
    out->text = (api_text){prompt.text, prompt.text_bytes};
    return is_read;
}

static bool read_tokenize(const api_context *api, const json_t *body, tokenize_request *out,
                          api_error *error)
{
    *out = (tokenize_request){0};
    if (api_field(body, "messages") != NULL) return read_messages(api, body, out, error);
    *out = (tokenize_request){.is_content = api_field(body, "content") != NULL};
    out->add_special = !out->is_content; /* the dialects differ in their default */
    const char *name = out->is_content ? "content" : "prompt";
    if (!api_field_text(body, name, api->text_bytes_max, &out->text, error)) return false;
    if (out->text.bytes == NULL) {
        return api_refuse(error, API_FAULT_REQUEST, "prompt", "prompt: the field is required");
    }
    return api_field_bool(body, out->is_content ? "add_special" : "add_special_tokens",
                          &out->add_special, error) &&
           api_field_bool(body, out->is_content ? "with_pieces" : "return_token_strs",
                          &out->with_strings, error);
}

/* A piece of text, or its bytes where they are not text by themselves. */
static json_t *piece_new(const tokenizer *t, uint32_t id)
{
    const tok_piece piece = tokenizer_piece(t, id, true);
    json_t *text = json_stringn(piece.bytes, piece.n_bytes); /* NULL unless UTF-8 */
    if (text != NULL) return text;
    json_t *bytes = json_array();
    for (size_t i = 0; bytes != NULL && i < piece.n_bytes; i++) {
        if (json_array_append_new(bytes, json_integer((unsigned char)piece.bytes[i])) == 0)
            continue;
        json_decref(bytes);
        return NULL;
    }
    return bytes;
}

/* llama.cpp's element with_pieces; a plain id otherwise. */
static json_t *token_new(const tokenizer *t, const tokenize_request *request, uint32_t id)
{
    if (!request->is_content || !request->with_strings) return json_integer(id);
    return json_pack("{s:I,s:o}", "id", (json_int_t)id, "piece", piece_new(t, id));
}

static bool put_strings(json_t *document, const tokenizer *t, const uint32_t *ids, size_t n_ids)
{
    json_t *strings = json_array();
    bool is_ok = strings != NULL;
    for (size_t i = 0; is_ok && i < n_ids; i++) {
        const tok_piece piece = tokenizer_piece(t, ids[i], true);
        is_ok = json_array_append_new(strings, api_text_new(piece.bytes, piece.n_bytes)) == 0;
    }
    if (is_ok) return api_put(document, "token_strs", strings);
    json_decref(strings);
    return false;
}

static json_t *tokenize_new(const api_context *api, const tokenize_request *request,
                            const uint32_t *ids, size_t n_ids)
{
    json_t *document = json_object();
    json_t *tokens = json_array();
    bool is_ok = document != NULL && tokens != NULL;
    if (is_ok && !request->is_content) {
        is_ok = api_put(document, "count", json_integer((json_int_t)n_ids)) &&
                api_put(document, "max_model_len", json_integer(api->n_context_max));
    }
    for (size_t i = 0; is_ok && i < n_ids; i++)
        is_ok = json_array_append_new(tokens, token_new(api->t, request, ids[i])) == 0;
    is_ok = is_ok && json_object_set(document, "tokens", tokens) == 0;
    if (is_ok && request->with_strings && !request->is_content) {
        is_ok = put_strings(document, api->t, ids, n_ids);
    }
    json_decref(tokens);
    if (is_ok) return document;
    json_decref(document);
    return NULL;
}

static json_t *tokenize(const api_context *api, const json_t *body, api_error *error)
{
    tokenize_request request;
    if (!read_tokenize(api, body, &request, error)) {
        free(request.rendered);
        return NULL;
    }
    uint32_t *ids;
    size_t n_ids;
    const tok_text text = {.bytes = request.text.bytes,
                           .n_bytes = request.text.n_bytes,
                           .add_bos = request.add_special && tokenizer_adds_bos(api->t),
                           .parse_special = request.rendered != NULL};
    const err_t err = tokenizer_encode(api->t, &text, &ids, &n_ids);
    free(request.rendered);
    if (err != ERR_OK) {
        api_refuse(error, err == ERR_NO_MEMORY ? API_FAULT_MEMORY : API_FAULT_REQUEST, "prompt",
                   "prompt: %s", err_sentence(err));
        return NULL;
    }
    json_t *document = tokenize_new(api, &request, ids, n_ids);
    free(ids);
    return document;
}

static json_t *detokenize(const api_context *api, const json_t *body, api_error *error)
{
    api_prompt tokens = {0};
    char *text;
    size_t n_bytes;
    const json_t *list = api_field(body, "tokens");
    if (!json_is_array(list)) {
        api_refuse(error, API_FAULT_REQUEST, "tokens", "tokens: a list of token ids is required");
        return NULL;
    }
    const uint32_t n_vocab = model_get_config(api->m)->n_vocab;
    const bool has_ids = json_array_size(list) > 0;
    if (has_ids && !api_ids_read(list, "tokens", n_vocab, &tokens, error)) {
        free(tokens.ids);
        return NULL;
    }
    const err_t err = tokenizer_decode(api->t, tokens.ids, tokens.n_ids, false, &text, &n_bytes);
    free(tokens.ids);
    if (err != ERR_OK) return NULL;
    json_t *value = api_text_new(text, n_bytes);
    free(text);
    json_t *document =
        value != NULL ? json_pack("{s:O,s:O}", "prompt", value, "content", value) : NULL;
    json_decref(value);
    return document;
}

/* Reads the body, lets `answer` make the reply, and sends it or the reason why there is none. */
static void serve(api_context *api, http_exchange *ex,
                  json_t *(*answer)(const api_context *, const json_t *, api_error *))
{
    api_error error = {0};
    size_t n_bytes;
    const char *bytes = http_body(ex, &n_bytes);
    json_t *body = api_is_serving(api, &error) ? api_body_read(bytes, n_bytes, &error) : NULL;
    json_t *document = body != NULL ? answer(api, body, &error) : NULL;
    json_decref(body);
    if (error.status != 0) {
        json_decref(document);
        api_reply_error(api, ex, &error);
        return;
    }
    char *text = document != NULL ? api_dump(document, &n_bytes) : NULL;
    json_decref(document);
    api_reply_text_take(api, ex, text, n_bytes);
}

void api_tokenize(void *ctx, http_exchange *ex)
{
    serve(ctx, ex, tokenize);
}

void api_detokenize(void *ctx, http_exchange *ex)
{
    serve(ctx, ex, detokenize);
}

/* null: the model has no such token. */
static json_t *control_new(const tokenizer *t, int64_t id)
{
    if (id < 0) return json_null();
    const tok_piece piece = tokenizer_piece(t, (uint32_t)id, true);
    return api_text_new(piece.bytes, piece.n_bytes);
}

static bool put_control(json_t *document, const tokenizer *t, const char *name, int64_t id)
{
    char id_name[32];
    snprintf(id_name, sizeof id_name, "%s_id", name);
    return api_put(document, name, control_new(t, id)) &&
           api_put(document, id_name, id < 0 ? json_null() : json_integer(id));
}

void api_tokenizer_info(void *ctx, http_exchange *ex)
{
    api_context *api = ctx;
    api_error error = {0};
    if (!api_is_serving(api, &error)) {
        api_reply_error(api, ex, &error);
        return;
    }
    size_t n_bytes = 0;
    char *text = NULL;
    const tokenizer *t = api->t;
    json_t *document =
        json_pack("{s:s,s:b,s:I,s:I}", "tokenizer_class", tokenizer_kind(t), "add_bos_token",
                  tokenizer_adds_bos(t), "vocab_size", (json_int_t)tokenizer_n_vocab(t),
                  "model_max_length", (json_int_t)api->n_context_max);
    if (document != NULL && put_control(document, t, "bos_token", tokenizer_bos(t)) &&
        put_control(document, t, "eos_token", tokenizer_eos(t)))
        text = api_dump(document, &n_bytes);
    json_decref(document);
    api_reply_text_take(api, ex, text, n_bytes);
}
