/* service/api.c - the routes, and what all of them do alike: keys, refusals, the line in the log.
 *
 * Public are only the page, which holds no data, and the routes that probes and scrapers need. Everything else wants a key as soon as there
 * is one, also paths that do not exist: an outsider learns nothing from the difference. */
#include "service/api.h"

#include "base/clock.h"
#include "base/log.h"
#include "web/router.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ALLOW_BYTES = 64, FIELDS_MAX = 3, NUMBER_BYTES = 16 };

static const route routes[] = {
    {.method = "GET", .path = "/", .is_public = true, .handle = api_page},
    {.method = "GET",
     .path = "/page/",
     .takes_rest = true,
     .is_public = true,
     .handle = api_page_file},
    {.method = "POST", .path = "/v1/completions", .handle = api_completions},
    {.method = "POST", .path = "/v1/chat/completions", .handle = api_chat_completions},
    {.method = "GET", .path = "/v1/models", .handle = api_models},
    {.method = "GET", .path = "/v1/models/", .takes_rest = true, .handle = api_model},
    {.method = "POST", .path = "/tokenize", .handle = api_tokenize},
    {.method = "POST", .path = "/detokenize", .handle = api_detokenize},
    {.method = "GET", .path = "/load", .handle = api_load},
    {.method = "GET", .path = "/tokenizer_info", .handle = api_tokenizer_info},
    {.method = "GET", .path = "/debug/kv", .handle = api_debug_kv},
    {.method = "GET", .path = "/debug/kv/methods", .handle = api_debug_kv_methods},
    {.method = "GET", .path = "/live", .is_public = true, .handle = api_live},
    {.method = "GET", .path = "/ready", .is_public = true, .handle = api_ready},
    {.method = "GET", .path = "/health", .is_public = true, .handle = api_ready},
    {.method = "GET", .path = "/ping", .is_public = true, .handle = api_ready},
    {.method = "GET", .path = "/version", .is_public = true, .handle = api_version},
    {.method = "GET", .path = "/metrics", .is_public = true, .handle = api_metrics},
};

/* The page has the first of them, and without it they do not exist; the monitor listener serves the last. */
enum { N_ROUTES = sizeof routes / sizeof routes[0], N_PAGE_ROUTES = 2, FIRST_MONITOR = 12 };

static const route *routes_of(const api_context *api, size_t *n_routes)
{
    const size_t first = api->config->dashboard ? 0 : N_PAGE_ROUTES;
    *n_routes = N_ROUTES - first;
    return routes + first;
}

static void count_reject(api_context *api, unsigned status)
{
    if (api->metrics == NULL) return;
    switch (status) {
    case 400: metrics_count_reject(api->metrics, REJECT_BAD_REQUEST); break;
    case 401: metrics_count_reject(api->metrics, REJECT_AUTH); break;
    case 404:
    case 405: metrics_count_reject(api->metrics, REJECT_NOT_FOUND); break;
    case 413: metrics_count_reject(api->metrics, REJECT_TOO_LARGE); break;
    case 429: metrics_count_reject(api->metrics, REJECT_QUEUE_FULL); break;
    case 503: metrics_count_reject(api->metrics, REJECT_DRAINING); break;
    default: break;
    }
}

/* Sends the document of `error` with one more header line if `extra` is not NULL. */
static void reply_error(api_context *api, http_exchange *ex, const api_error *error,
                        const http_field *extra)
{
    char body[API_ERROR_BODY_BYTES], seconds[NUMBER_BYTES];
    http_field fields[FIELDS_MAX];
    size_t n_fields = 0;
    if (extra != NULL) fields[n_fields++] = *extra;
    if (error->status == 401) fields[n_fields++] = (http_field){"WWW-Authenticate", "Bearer"};
    if (error->retry_after_s > 0) {
        snprintf(seconds, sizeof seconds, "%u", error->retry_after_s);
        fields[n_fields++] = (http_field){"Retry-After", seconds};
    }
    count_reject(api, error->status);
    log_info("api", "request route=%s %s status=%u outcome=%s total_ms=%.1f client=%s",
             http_method(ex), http_path(ex), error->status,
             error->code != NULL ? error->code : "refused",
             clock_seconds_since(http_arrival_ns(ex)) * 1e3, http_peer(ex));
    http_reply(ex, &(http_response){.status = error->status,
                                    .content_type = "application/json",
                                    .fields = fields,
                                    .n_fields = n_fields,
                                    .body = body,
                                    .body_bytes = api_error_write(error, body)});
}

void api_reply_error(api_context *api, http_exchange *ex, const api_error *error)
{
    reply_error(api, ex, error, NULL);
}

void api_reply_text_take(api_context *api, http_exchange *ex, char *text, size_t n_bytes)
{
    if (text == NULL) {
        api_error error = {0};
        api_refuse(&error, API_FAULT_MEMORY, NULL, "out of memory");
        api_reply_error(api, ex, &error);
        return;
    }
    log_debug("api", "request route=%s %s status=200 client=%s", http_method(ex), http_path(ex),
              http_peer(ex));
    http_reply(ex, &(http_response){.status = 200,
                                    .content_type = "application/json",
                                    .body = text,
                                    .body_bytes = n_bytes});
    free(text);
}

bool api_is_serving(const api_context *api, api_error *error)
{
    switch ((api_phase)atomic_load_explicit(&api->phase, memory_order_acquire)) {
    case API_READY: return true;
    case API_LOADING:
        return api_refuse(error, API_FAULT_LOADING, NULL, "The model is still loading.");
    case API_DRAINING:
        return api_refuse(error, API_FAULT_DRAINING, NULL, "The server is shutting down.");
    case API_FAILED: break;
    }
    return api_refuse(error, API_FAULT_FAILED, NULL, "The engine has stopped after a fatal error.");
}

static void refuse_path(api_context *api, http_exchange *ex)
{
    api_error error = {0};
    api_refuse(&error, API_FAULT_PATH, NULL, "There is no route %.*s %.*s.", ALLOW_BYTES,
               http_method(ex), API_ECHO_BYTES, http_path(ex));
    api_reply_error(api, ex, &error);
}

static void refuse_method(api_context *api, http_exchange *ex, const char *allow)
{
    api_error error = {0};
    const http_field field = {"Allow", allow};
    api_refuse(&error, API_FAULT_METHOD, NULL, "%.*s is not allowed here; use %s.", ALLOW_BYTES,
               http_method(ex), allow);
    reply_error(api, ex, &error, &field);
}

static void refuse_key(api_context *api, http_exchange *ex)
{
    api_error error = {0};
    const bool has_any =
        http_header(ex, "Authorization") != NULL || http_header(ex, "X-Api-Key") != NULL;
    api_refuse(&error, API_FAULT_KEY, NULL, "%s",
               has_any ? "The API key is not valid."
                       : "This route needs an API key: Authorization: Bearer KEY.");
    api_reply_error(api, ex, &error);
}

void api_handle(void *ctx, http_exchange *ex)
{
    api_context *api = ctx;
    const route *found = NULL;
    char allow[ALLOW_BYTES];
    size_t n_routes;
    const route *known = routes_of(api, &n_routes);
    const route_result result =
        route_find(known, n_routes, http_method(ex), http_path(ex), &found, allow);
    /* OPTIONS carries no key in a browser, and tells nothing. */
    const bool is_free = (result == ROUTE_FOUND && found->is_public) ||
                         (result == ROUTE_NO_METHOD && strcmp(http_method(ex), "OPTIONS") == 0);
    if (!is_free && !api_keys_accept(&api->keys, http_header(ex, "Authorization"),
                                     http_header(ex, "X-Api-Key"))) {
        refuse_key(api, ex);
        return;
    }
    switch (result) {
    case ROUTE_FOUND: found->handle(ctx, ex); break;
    case ROUTE_NO_PATH: refuse_path(api, ex); break;
    case ROUTE_NO_METHOD: refuse_method(api, ex, allow); break;
    }
}

void api_handle_monitor(void *ctx, http_exchange *ex)
{
    const route *found = NULL;
    char allow[ALLOW_BYTES];
    switch (route_find(routes + FIRST_MONITOR, N_ROUTES - FIRST_MONITOR, http_method(ex),
                       http_path(ex), &found, allow)) {
    case ROUTE_FOUND: found->handle(ctx, ex); break;
    case ROUTE_NO_PATH: refuse_path(ctx, ex); break;
    case ROUTE_NO_METHOD: refuse_method(ctx, ex, allow); break;
    }
}

size_t api_error_body(void *ctx, unsigned status, const char *message, char *out, size_t out_bytes)
{
    char body[API_ERROR_BODY_BYTES];
    api_error error = {0};
    api_refuse(&error, API_FAULT_REQUEST, NULL, "%s", message);
    error.status = status;
    if (status >= 500) error.type = "service_unavailable_error";
    count_reject(ctx, status);
    const size_t n = api_error_write(&error, body);
    if (n > out_bytes) return 0;
    memcpy(out, body, n);
    return n;
}
