/* service/api.h - the meaning of the HTTP routes. Each api_*_json.c holds one family of routes.
 *
 * A handler validates a request completely, tokenises it and submits its sessions before the first byte of a 200
 * goes out, so that every client error is a status and not a broken stream. */
#ifndef SERVICE_API_H
#define SERVICE_API_H

#include "base/hash.h"
#include "service/engine.h"
#include "service/metrics.h"
#include "service/server_config.h"
#include "web/http.h"
#include "web/router.h"

#include <stdatomic.h>

typedef enum api_phase { API_LOADING, API_READY, API_DRAINING, API_FAILED } api_phase;

/* What handlers share. Set up by server.c; everything but `phase` is constant once phase is API_READY;
 * before that the engine parts are NULL and generation routes answer 503. */
typedef struct api_context {
    _Atomic(int) phase;          /* api_phase */
    engine *engine;
    model *m;
    kv_cache *cache;
    const tokenizer *t;
    metrics *metrics;
    const serve_config *config;
    const char *const *model_names; /* [n_model_names], the first is the name in replies */
    size_t n_model_names;
    int64_t created;             /* of the model, unix seconds: stable for the process */
    char fingerprint[32];        /* system_fingerprint: hash of weights' index, config and build */
    uint8_t (*key_hashes)[HASH_SECRET_BYTES]; /* [n_keys] */
    size_t n_keys;
    http_server *server, *monitor;
    double load_seconds;
    const char *dev_name;
} api_context;

/* OpenAI's error object: {"error":{"message","type","param","code"}}. `param` and `code` may be NULL. */
typedef struct api_error {
    unsigned status;
    const char *type;  /* "invalid_request_error" ... */
    const char *param;
    const char *code;
    char message[512];
    unsigned retry_after_s; /* 0: no header */
} api_error;
void api_reply_error(http_exchange *ex, const api_error *error);

/* All routes of the main listener, and of the monitor listener (health and metrics only). `ctx` of every
 * handler is the api_context. */
const route *api_routes(size_t *n_routes);
const route *api_monitor_routes(size_t *n_routes);

/* The http_handler entry: checks the API key, finds the route, replies 401, 404 and 405. */
void api_handle(void *ctx, http_exchange *ex);
void api_handle_monitor(void *ctx, http_exchange *ex);
size_t api_error_body(void *ctx, unsigned status, const char *message, char *out, size_t out_bytes);

#endif
