/* service/api_kv_names_json.c - GET /debug/kv/methods: what `kv` of a request may say here.
 *
 * From the registries and the table of settings, so that a client that offers choices, as the dashboard does,
 * knows a new method as soon as the server has it. */
#include "service/api.h"
#include "service/api_kv_json.h"

#include "kvcache/scoring/allocator.h"

#include <stddef.h>
#include <stdio.h>
#include <string.h>

enum { WORD_BYTES = 64 };

/* A list of names: where it stands in the document, the names, and what in the settings they are for. */
typedef struct name_list {
    const char *key, *words; /* " full topk": a space before each */
    size_t offset;           /* in kv_config */
    const char *suffix;      /* that makes a name the setting; NULL: a part of other names */
} name_list;

static const name_list lists[] = {
    {"routing", kv_routing_names, offsetof(kv_config, routing), ""},
    {"scheduling", kv_policy_names, offsetof(kv_config, scheduling), ""},
    {"allocator", kv_allocator_names, 0, NULL},
    {"selection", kv_selection_names, offsetof(kv_config, compression), ",none"},
    {"codec", kv_codec_names, offsetof(kv_config, compression), ""},
    {"rewrite", kv_rewriting_names, 0, NULL},
};

/* Would a request with this name be served? A cache may lack the tier, the bases or the bounds for it. */
static bool is_possible(const api_context *api, const name_list *list, const char *word)
{
    kv_config config = *api->kv_config;
    kv_methods methods;
    char text[2 * WORD_BYTES];
    if (list->suffix == NULL) return true;
    snprintf(text, sizeof text, "%s%s", word, list->suffix);
    char **setting = (char **)(void *)((char *)&config + list->offset);
    if (!config.request_methods && strcmp(text, *setting) != 0) return false;
    *setting = text;
    if (!(config.budget > 1)) config.budget /= 2; /* of everything, so that something has to go */
    return kv_methods_resolve(&config, &methods, NULL) == ERR_OK &&
           kv_cache_check_methods(api->cache, &methods, NULL) == ERR_OK;
}

static json_t *list_new(const api_context *api, const name_list *list)
{
    json_t *array = json_array();
    const char *at = list->words;
    bool is_ok = array != NULL;
    while (is_ok && *at == ' ') {
        char word[WORD_BYTES];
        const size_t n = strcspn(++at, " ");
        snprintf(word, sizeof word, "%.*s", (int)n, at);
        at += n;
        if (is_possible(api, list, word))
            is_ok = json_array_append_new(array, json_string(word)) == 0;
    }
    if (is_ok) return array;
    json_decref(array);
    return NULL;
}

static json_t *names_new(const api_context *api)
{
    json_t *object = json_object();
    bool is_ok = object != NULL;
    for (size_t i = 0; is_ok && i < sizeof lists / sizeof lists[0]; i++)
        is_ok = api_put(object, lists[i].key, list_new(api, &lists[i]));
    if (is_ok) return object;
    json_decref(object);
    return NULL;
}

/* By routing, the key of the number that it looks at. */
static json_t *routing_numbers_new(void)
{
    json_t *object = json_object();
    bool is_ok = object != NULL;
    for (size_t i = 0; is_ok && kv_routings[i] != NULL; i++) {
        const uint32_t obeys = kv_routings[i]->obeys;
        const char *key = (obeys & KV_ROUTE_K) != 0     ? "routing_k"
                          : (obeys & KV_ROUTE_EPS) != 0 ? "routing_eps"
                          : (obeys & KV_ROUTE_TAU) != 0 ? "routing_tau"
                                                        : NULL;
        if (key != NULL) is_ok = api_put(object, kv_routings[i]->name, json_string(key));
    }
    if (is_ok) return object;
    json_decref(object);
    return NULL;
}

/* As the server has them, used or not. */
static json_t *numbers_new(const kv_config *config)
{
    return json_pack("{s:f,s:f,s:f,s:f,s:f}", "routing_k", config->routing_k, "routing_eps",
                     config->routing_eps, "routing_tau", config->routing_tau, "budget",
                     config->budget, "lazy_threshold", config->lazy_threshold);
}

void api_debug_kv_methods(void *ctx, http_exchange *ex)
{
    api_context *api = ctx;
    api_error error = {0};
    err_info info = {0};
    kv_methods methods;
    if (!api_is_serving(api, &error)) {
        api_reply_error(api, ex, &error);
        return;
    }
    size_t n_bytes = 0;
    char *text = NULL;
    /* They were resolved when the cache was opened. */
    json_t *document = kv_methods_resolve(api->kv_config, &methods, &info) == ERR_OK
                           ? json_pack("{s:b}", "request_methods", api->kv_config->request_methods)
                           : NULL;
    if (document != NULL && api_put(document, "methods", api_kv_methods_new(&methods)) &&
        api_put(document, "names", names_new(api)) &&
        api_put(document, "routing_numbers", routing_numbers_new()) &&
        api_put(document, "numbers", numbers_new(api->kv_config)))
        text = api_dump(document, &n_bytes);
    json_decref(document);
    api_reply_text_take(api, ex, text, n_bytes);
}
