/* service/api_status_json.c - models, health, version, load and metrics.
 *
 * None of these waits for the engine: they read atomics and snapshots, so that probes and scrapes
 * answer within milliseconds whatever a step takes. */
#include "service/api.h"

#include "base/log.h"
#include "service/api_fields_json.h"

#include <stdlib.h>
#include <string.h>

static void reply_json_take(api_context *api, http_exchange *ex, json_t *document)
{
    size_t n_bytes = 0;
    char *text = document != NULL ? api_dump(document, &n_bytes) : NULL;
    json_decref(document);
    api_reply_text_take(api, ex, text, n_bytes);
}

static bool is_serving(api_context *api, http_exchange *ex)
{
    api_error error = {0};
    if (api_is_serving(api, &error)) return true;
    api_reply_error(api, ex, &error);
    return false;
}

/* ---- models ------------------------------------------------------------------------------------------ */

static json_t *model_new(const api_context *api, const char *name)
{
    return json_pack("{s:s,s:s,s:I,s:s,s:s,s:n,s:I}", "id", name, "object", "model", "created",
                     (json_int_t)api->created, "owned_by", "pikv", "root", api->model_names[0],
                     "parent", "max_model_len", (json_int_t)api->n_context_max);
}

void api_models(void *ctx, http_exchange *ex)
{
    api_context *api = ctx;
    if (!is_serving(api, ex)) return;
    json_t *list = json_array();
    bool is_ok = list != NULL;
    for (size_t i = 0; is_ok && i < api->n_model_names; i++)
        is_ok = json_array_append_new(list, model_new(api, api->model_names[i])) == 0;
    json_t *document = is_ok ? json_pack("{s:s,s:O}", "object", "list", "data", list) : NULL;
    json_decref(list);
    reply_json_take(api, ex, document);
}

void api_model(void *ctx, http_exchange *ex)
{
    api_context *api = ctx;
    api_error error = {0};
    if (!is_serving(api, ex)) return;
    const char *name = http_path(ex) + strlen("/v1/models/");
    for (size_t i = 0; i < api->n_model_names; i++) {
        if (strcmp(api->model_names[i], name) != 0) continue;
        reply_json_take(api, ex, model_new(api, name));
        return;
    }
    api_refuse(&error, API_FAULT_MODEL, "model", "The model `%.*s` does not exist.", API_ECHO_BYTES,
               name);
    api_reply_error(api, ex, &error);
}

/* ---- health ------------------------------------------------------------------------------------------ */

void api_live(void *ctx, http_exchange *ex)
{
    reply_json_take(ctx, ex, json_pack("{s:s}", "status", "ok"));
}

/* Probes come every few seconds: their refusals are neither counted nor logged. */
static void reply_not_ready(http_exchange *ex, const char *status)
{
    char body[64];
    const http_field field = {"Retry-After", "2"};
    json_t *document = json_pack("{s:s}", "status", status);
    const size_t n = json_dumpb(document, body, sizeof body, JSON_COMPACT);
    json_decref(document);
    http_reply(ex, &(http_response){.status = 503,
                                    .content_type = "application/json",
                                    .fields = &field,
                                    .n_fields = 1,
                                    .body = body,
                                    .body_bytes = n});
}

void api_ready(void *ctx, http_exchange *ex)
{
    api_context *api = ctx;
    switch ((api_phase)atomic_load_explicit(&api->phase, memory_order_acquire)) {
    case API_LOADING: reply_not_ready(ex, "loading"); return;
    case API_DRAINING: reply_not_ready(ex, "draining"); return;
    case API_FAILED: reply_not_ready(ex, "failed"); return;
    case API_READY: break;
    }
    if (engine_is_alive(api->engine)) {
        reply_json_take(api, ex, json_pack("{s:s}", "status", "ok"));
    } else {
        reply_not_ready(ex, "failed");
    }
}

void api_version(void *ctx, http_exchange *ex)
{
    reply_json_take(ctx, ex, json_pack("{s:s}", "version", PIKV_VERSION));
}

/* ---- load and metrics ---------------------------------------------------------------------------------- */

static bool has_engine(const api_context *api)
{
    const int phase = atomic_load_explicit(&api->phase, memory_order_acquire);
    return phase == API_READY || phase == API_DRAINING;
}

void api_load(void *ctx, http_exchange *ex)
{
    api_context *api = ctx;
    if (!is_serving(api, ex)) return;
    kv_stats kv;
    const engine_load load = engine_get_load(api->engine);
    kv_stats_read(api->cache, &kv);
    reply_json_take(
        api, ex,
        json_pack("{s:I,s:I,s:I,s:I,s:I,s:I}", "running", (json_int_t)load.n_running, "waiting",
                  (json_int_t)load.n_waiting, "preempted", (json_int_t)load.n_preempted,
                  "kv_pages_total", (json_int_t)kv.pages_total, "kv_pages_used",
                  (json_int_t)kv.pages_used, "kv_pages_cached", (json_int_t)kv.pages_cached));
}

/* Before the phase says that the engine is there, only what was set before the listeners opened is read. */
static metrics_gauges read_gauges(const api_context *api, rank_report ranks[KV_SHARDS_MAX])
{
    const int phase = atomic_load_explicit(&api->phase, memory_order_acquire);
    metrics_gauges gauges = {.is_ready = phase == API_READY,
                             .dev_name = "",
                             .kv_type = "",
                             .page_tokens = api->kv_config->page_tokens,
                             .has_prefix_cache = api->kv_config->prefix_caching};
    if (!has_engine(api)) return gauges;
    gauges.http_active = http_server_n_active(api->server);
    gauges.context_max = api->n_context_max;
    gauges.capacity_tokens = api->n_capacity_tokens;
    const engine_load load = engine_get_load(api->engine);
    gauges.n_running = load.n_running;
    gauges.n_waiting = load.n_waiting;
    gauges.n_preempted = load.n_preempted;
    gauges.scratch_bytes = model_scratch_bytes(api->m);
    gauges.load_seconds = api->load_seconds;
    gauges.dev_name = api->dev_name;
    gauges.kv_type = dtype_name(kv_cache_type(api->cache));
    gauges.ranks = ranks;
    gauges.n_ranks = engine_get_reports(api->engine, ranks, KV_SHARDS_MAX);
    gauges.weight_bytes = ranks[0].weight_bytes;
    kv_stats_read(api->cache, &gauges.kv);
    return gauges;
}

void api_metrics(void *ctx, http_exchange *ex)
{
    api_context *api = ctx;
    char *text = NULL;
    size_t n_bytes = 0;
    rank_report ranks[KV_SHARDS_MAX]; /* a cache has no more ranks than that */
    const metrics_gauges gauges = read_gauges(api, ranks);
    if (metrics_write(api->metrics, &gauges, &text, &n_bytes) != ERR_OK) {
        api_reply_text_take(api, ex, NULL, 0);
        return;
    }
    http_reply(ex, &(http_response){.status = 200,
                                    .content_type = "text/plain; version=0.0.4; charset=utf-8",
                                    .body = text,
                                    .body_bytes = n_bytes});
    free(text);
}
