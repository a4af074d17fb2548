/* service/api_kv_map_json.c - GET /debug/kv: the map of the cache (kvcache/kv_map.h) as JSON.
 *
 * The engine takes the map between two steps; the exchange sleeps meanwhile, as one of a completion
 * does. The document is bounded by the configuration (sequences, layers x heads) and by KV_MAP_RUNS_MAX. */
#include "service/api.h"
#include "service/api_kv_json.h"
#include "service/kv_look.h"

#include <stdlib.h>
#include <string.h>

typedef struct map_call {
    api_context *api;
    kv_look *look;
    bool is_over;
} map_call;

/* ---- the document -------------------------------------------------------------------------------- */

/* list gets value; false (and nothing leaks) if value is NULL. */
static bool append(json_t *list, json_t *value)
{
    return json_array_append_new(list, value) == 0;
}

static json_t *settings_new(const kv_map *map)
{
    json_t *settings =
        json_pack("{s:s,s:s,s:I,s:I,s:I,s:I,s:I,s:b,s:b}", "type", dtype_name(map->type),
                  "placement", map->placement, "layers", (json_int_t)map->n_layers, "page_tokens",
                  (json_int_t)map->page_tokens, "window_tokens", (json_int_t)map->window_tokens,
                  "sink_tokens", (json_int_t)map->sink_tokens, "shards", (json_int_t)map->n_shards,
                  "prefix_caching", map->prefix_caching, "request_methods", map->request_methods);
    if (settings != NULL && api_put(settings, "methods", api_kv_methods_new(&map->methods)))
        return settings;
    json_decref(settings);
    return NULL;
}

static json_t *counters_new(const kv_stats *s)
{
    return json_pack("{s:{s:I,s:I,s:I,s:I},s:{s:I,s:I,s:I,s:I,s:I,s:I},s:I,s:I}", "pages", "total",
                     (json_int_t)s->pages_total, "used", (json_int_t)s->pages_used, "cached",
                     (json_int_t)s->pages_cached, "free", (json_int_t)s->pages_free, "bytes",
                     "budget", (json_int_t)s->pool_budget_bytes, "slabs", (json_int_t)s->slab_bytes,
                     "used", (json_int_t)s->used_bytes, "tables", (json_int_t)s->table_bytes,
                     "ring", (json_int_t)s->ring_bytes, "staging", (json_int_t)s->staging_bytes,
                     "slots_live", (json_int_t)s->slots_live, "prefix_objects",
                     (json_int_t)s->prefix_objects);
}

static json_t *seq_new(const kv_map_seq *seq)
{
    json_t *object = json_pack(
        "{s:I,s:I,s:I,s:I}", "id", (json_int_t)seq->id, "length", (json_int_t)seq->length,
        "blocks_in_pages", (json_int_t)seq->n_blocks, "slots_live", (json_int_t)seq->slots_live);
    if (object != NULL && api_put(object, "methods", api_kv_methods_new(&seq->methods)))
        return object;
    json_decref(object);
    return NULL;
}

/* The place of a list, with its number of slots. */
static json_t *place_new(const kv_map_list *list, uint64_t slots_live)
{
    return json_pack("{s:I,s:I,s:I,s:I}", "layer", (json_int_t)list->layer, "head",
                     (json_int_t)list->head, "shard", (json_int_t)list->shard, "slots_live",
                     (json_int_t)slots_live);
}

static json_t *run_new(const kv_map_run *run)
{
    static const char *const tiers[KV_N_TIERS] = {"device", "host", "disk"};
    return json_pack("{s:I,s:I,s:s,s:I,s:s,s:b}", "block", (json_int_t)run->first_block, "blocks",
                     (json_int_t)run->n_blocks, "codec", run->codec->name, "slots_live",
                     (json_int_t)run->n_live, "tier", tiers[run->tier], "cached", run->is_cached);
}

static bool put_runs(json_t *object, const kv_map *map, const kv_map_list *list)
{
    json_t *runs = json_array();
    bool is_ok = runs != NULL;
    for (uint32_t i = 0; is_ok && i < list->n_runs; i++)
        is_ok = append(runs, run_new(&map->runs[list->first_run + i]));
    if (is_ok) return api_put(object, "runs", runs);
    json_decref(runs);
    return false;
}

static json_t *pages_new(const kv_map *map, const kv_map_list *list)
{
    json_t *object = place_new(list, list->seq_slots_live);
    if (object != NULL && api_put(object, "pages", json_integer(list->n_pages)) &&
        put_runs(object, map, list))
        return object;
    json_decref(object);
    return NULL;
}

/* The sequence whose pages were asked for. */
static json_t *sequence_new(const kv_map *map)
{
    json_t *object = json_pack("{s:I,s:b,s:[]}", "id", (json_int_t)map->seq_id, "is_truncated",
                               map->is_truncated, "heads");
    json_t *heads = json_object_get(object, "heads");
    bool is_ok = heads != NULL;
    for (uint32_t i = 0; is_ok && i < map->n_lists; i++)
        is_ok = append(heads, pages_new(map, &map->lists[i]));
    if (is_ok) return object;
    json_decref(object);
    return NULL;
}

static json_t *map_new(const kv_map *map)
{
    json_t *document = json_object(), *seqs = json_array(), *heads = json_array();
    bool is_ok = document != NULL && seqs != NULL && heads != NULL &&
                 api_put(document, "settings", settings_new(map)) &&
                 api_put(document, "counters", counters_new(&map->stats));
    for (uint32_t i = 0; is_ok && i < map->n_seqs; i++)
        is_ok = append(seqs, seq_new(&map->seqs[i]));
    for (uint32_t i = 0; is_ok && i < map->n_lists; i++)
        is_ok = append(heads, place_new(&map->lists[i], map->lists[i].slots_live));
    is_ok = is_ok && json_object_set(document, "sequences", seqs) == 0 &&
            json_object_set(document, "heads", heads) == 0;
    json_decref(seqs);
    json_decref(heads);
    if (is_ok && map->has_seq) is_ok = api_put(document, "sequence", sequence_new(map));
    if (is_ok) return document;
    json_decref(document);
    return NULL;
}

/* ---- the call ------------------------------------------------------------------------------------ */

static void poll(void *user, http_exchange *ex)
{
    map_call *call = user;
    const kv_map *map = kv_look_map(call->look);
    if (map == NULL || call->is_over) return;
    call->is_over = true;
    const bool is_named = map->query.seq != 0 && map->query.seq != KV_MAP_NEWEST;
    if (is_named && !map->has_seq) {
        api_error error = {0};
        api_refuse(&error, API_FAULT_PATH, "seq", "seq: no sequence %llu is open",
                   (unsigned long long)map->query.seq);
        api_reply_error(call->api, ex, &error);
        return;
    }
    size_t n_bytes = 0;
    json_t *document = map_new(map);
    char *text = document != NULL ? api_dump(document, &n_bytes) : NULL;
    json_decref(document);
    api_reply_text_take(call->api, ex, text, n_bytes);
}

static void done(void *user)
{
    map_call *call = user;
    kv_look_release(call->look);
    free(call);
}

static void wake(void *waker)
{
    http_wake(waker);
}

static void release_waker(void *waker)
{
    http_waker_release(waker);
}

/* A number of the query; *out stays as it is without one. */
static bool read_number(const http_exchange *ex, const char *name, api_int_range range,
                        int64_t *out, api_error *error)
{
    enum { DIGITS_MAX = 18 };
    const char *text = http_query(ex, name);
    if (text == NULL) return true;
    const size_t n = strspn(text, "0123456789");
    if (n > 0 && n <= DIGITS_MAX && text[n] == '\0') {
        *out = strtoll(text, NULL, 10);
        if (*out >= range.min && *out <= range.max) return true;
    }
    return api_refuse(error, API_FAULT_REQUEST, name, "%s: %.*s is outside [%lld, %lld]", name,
                      API_ECHO_BYTES, text, (long long)range.min, (long long)range.max);
}

static bool read_query(const http_exchange *ex, uint32_t n_layers, kv_map_query *out,
                       api_error *error)
{
    int64_t seq = 0, layer = 0;
    const char *name = http_query(ex, "seq");
    const bool is_newest = name != NULL && strcmp(name, "newest") == 0;
    if ((!is_newest && !read_number(ex, "seq", (api_int_range){1, INT64_MAX}, &seq, error)) ||
        !read_number(ex, "layer", (api_int_range){0, n_layers - 1}, &layer, error))
        return false;
    *out = (kv_map_query){.seq = is_newest ? KV_MAP_NEWEST : (uint64_t)seq,
                          .has_layer = http_query(ex, "layer") != NULL,
                          .layer = (uint32_t)layer};
    return true;
}

static bool refuse_look(api_error *error, err_t err)
{
    if (err == ERR_QUEUE_FULL)
        return api_refuse(error, API_FAULT_QUEUE_FULL, NULL,
                          "Others look at the cache; try again later.");
    if (err == ERR_CLOSED)
        return api_refuse(error, API_FAULT_DRAINING, NULL, "The server is shutting down.");
    return api_refuse(error, API_FAULT_MEMORY, NULL, "out of memory");
}

/* NULL leaves the reason in `error`. */
static map_call *open_call(api_context *api, http_exchange *ex, api_error *error)
{
    kv_look_spec spec = {.on_taken = wake, .on_release = release_waker};
    const uint32_t n_layers = model_get_kv_shape(api->m)->n_layers;
    if (!read_query(ex, n_layers, &spec.query, error)) return NULL;
    spec.ctx = http_waker_of(ex);
    map_call *call = calloc(1, sizeof *call);
    err_t err = spec.ctx != NULL && call != NULL ? ERR_OK : ERR_NO_MEMORY;
    if (err == ERR_OK) err = kv_look_open(api->cache, &spec, &call->look);
    if (err != ERR_OK) {
        if (spec.ctx != NULL) release_waker(spec.ctx);
        free(call);
        (void)refuse_look(error, err);
        return NULL;
    }
    call->api = api;
    err = engine_look(api->engine, call->look);
    if (err == ERR_OK) return call;
    done(call);
    (void)refuse_look(error, err);
    return NULL;
}

void api_debug_kv(void *ctx, http_exchange *ex)
{
    api_context *api = ctx;
    api_error error = {0};
    map_call *call = api_is_serving(api, &error) ? open_call(api, ex, &error) : NULL;
    if (call == NULL) {
        api_reply_error(api, ex, &error);
        return;
    }
    http_defer(ex, &(http_deferral){.poll = poll, .done = done, .user = call});
}
