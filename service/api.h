/* service/api.h - the meaning of the HTTP routes.
 *
 * A handler validates a request completely, tokenises it and submits its sessions before the first byte of a
 * 200 goes out, so that every client error is a status and not a broken stream. */
#ifndef SERVICE_API_H
#define SERVICE_API_H

#include "base/hash.h"
#include "model/generation_config.h"
#include "service/api_error.h"
#include "service/chat_template.h"
#include "service/engine.h"
#include "service/metrics.h"
#include "service/server_config.h"
#include "service/tools/tool_reader.h"
#include "web/http.h"

#include <stdatomic.h>

typedef enum api_phase { API_LOADING, API_READY, API_DRAINING, API_FAILED } api_phase;

/* The keys that clients may show: only their hashes are kept. */
typedef struct api_keys {
    uint8_t (*hashes)[HASH_SECRET_BYTES]; /* [n_keys] */
    size_t n_keys;                        /* 0: no key is needed */
} api_keys;

/* What handlers share. Set up by server.c; everything but `phase` and `n_requests` is constant once phase
 * is API_READY (a release store); before that the engine parts are NULL and their routes answer 503. */
typedef struct api_context {
    _Atomic(int) phase;           /* api_phase */
    _Atomic(uint64_t) n_requests; /* numbers the groups of sessions */
    engine *engine;
    model *m;
    kv_cache *cache;
    const tokenizer *t;
    const chat_template *chat;
    chat_content content;            /* as `chat` wants it */
    const tool_parser *tools;        /* of chats that bring tools; NULL: they are refused */
    uint32_t eos[MODEL_EOS_MAX + 1]; /* [n_eos] the model's, and the one that ends a turn */
    uint32_t n_eos;
    metrics *metrics; /* NULL until the shape of the model is known */
    const serve_config *config;
    const kv_config *kv_config;
    const generation_config *generation; /* defaults of sampling; NULL: those of OpenAI's API */
    const char *const *model_names;      /* [n_model_names], the first is the name in replies */
    size_t n_model_names;
    uint32_t n_context_max;
    uint64_t n_capacity_tokens; /* of the cache, as it was opened */
    uint32_t n_choices_max;     /* of one request: --max-choices, and what the engine can hold */
    size_t text_bytes_max;      /* of one request: tokenising is slow, and delays other requests */
    int64_t created;            /* of the model, unix seconds: stable for its files */
    char fingerprint[32];       /* system_fingerprint: hash of config, index and build */
    api_keys keys;
    http_server *server; /* the main one */
    double load_seconds;
    const char *dev_name;
} api_context;

/* ---- keys ------------------------------------------------------------------------------------------ */

/* Of --api-key and of the lines of --api-key-file (blank lines and those with # are skipped). */
err_t api_keys_open(const serve_config *config, api_keys *out, err_info *info) MUST_CHECK;
void api_keys_deinit(api_keys *keys);
/* `authorization` and `x_api_key` are the headers or NULL. Takes equally long for every key. */
bool api_keys_accept(const api_keys *keys, const char *authorization, const char *x_api_key);

/* ---- replies --------------------------------------------------------------------------------------- */

/* Also counts the refusal and writes the request's line to the log. */
void api_reply_error(api_context *api, http_exchange *ex, const api_error *error);
/* A JSON document with status 200; NULL is answered as out of memory. Frees `text`. */
void api_reply_text_take(api_context *api, http_exchange *ex, char *text, size_t n_bytes);

/* False, with the fault, unless the server can generate. */
bool api_is_serving(const api_context *api, api_error *error);

/* ---- routes: ctx is the api_context ---------------------------------------------------------------- */

void api_completions(void *ctx, http_exchange *ex);
void api_chat_completions(void *ctx, http_exchange *ex);
void api_tokenize(void *ctx, http_exchange *ex);
void api_detokenize(void *ctx, http_exchange *ex);
void api_tokenizer_info(void *ctx, http_exchange *ex);
void api_models(void *ctx, http_exchange *ex);
void api_model(void *ctx, http_exchange *ex);
void api_live(void *ctx, http_exchange *ex);
void api_ready(void *ctx, http_exchange *ex);
void api_version(void *ctx, http_exchange *ex);
void api_debug_kv(void *ctx, http_exchange *ex);
void api_debug_kv_methods(void *ctx, http_exchange *ex);
void api_page(void *ctx, http_exchange *ex);
void api_page_file(void *ctx, http_exchange *ex);
void api_load(void *ctx, http_exchange *ex);
void api_metrics(void *ctx, http_exchange *ex);

/* The http_handler entries: find the route, check the API key, reply 401, 404 and 405. */
void api_handle(void *ctx, http_exchange *ex);
void api_handle_monitor(void *ctx, http_exchange *ex);
size_t api_error_body(void *ctx, unsigned status, const char *message, char *out, size_t out_bytes);

#endif
