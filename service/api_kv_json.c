/* service/api_kv_json.c - see api_kv_json.h. */
#include "service/api_kv_json.h"

#include "base/check.h"

#include <stdio.h>
#include <string.h>

enum { NAME_BYTES_MAX = 95 };

/* One key of the object, and the setting that it stands for, which has its type and its limits. */
typedef struct kv_key {
    const char *key;
    const char *param; /* in errors */
    const char *flag;
    uint32_t obeys; /* KV_ROUTE_*: routings without it do not look at the number; 0: all look */
} kv_key;

static const kv_key keys[] = {
    {"routing", "kv.routing", "kv-routing", 0},
    {"routing_k", "kv.routing_k", "kv-routing-k", KV_ROUTE_K},
    {"routing_eps", "kv.routing_eps", "kv-routing-eps", KV_ROUTE_EPS},
    {"routing_tau", "kv.routing_tau", "kv-routing-tau", KV_ROUTE_TAU},
    {"scheduling", "kv.scheduling", "kv-scheduling", 0},
    {"budget", "kv.budget", "kv-budget", 0},
    {"lazy_threshold", "kv.lazy_threshold", "kv-lazy-threshold", 0},
    {"compression", "kv.compression", "kv-compression", 0},
    {"rewrite", "kv.rewrite", "kv-rewrite", 0},
};
enum { N_KEYS = sizeof keys / sizeof keys[0] };

static const cfg_field *field_of(const kv_key *key)
{
    size_t i = 0;
    while (i < kv_config_table.n_fields && strcmp(kv_config_table.fields[i].name, key->flag) != 0)
        i++;
    assert(i < kv_config_table.n_fields);
    return &kv_config_table.fields[i];
}

static char **name_of(kv_config *config, const cfg_field *field)
{
    return (char **)(void *)((char *)config + field->offset);
}

static double *number_of(kv_config *config, const cfg_field *field)
{
    return (double *)(void *)((char *)config + field->offset);
}

static const char no_flag[] = "runs without --kv-request-methods";

/* Over what the server has. Borrows the name from the document. */
static bool read_name(const kv_key *key, const json_t *value, kv_config *config, api_error *error)
{
    if (!json_is_string(value))
        return api_refuse_value(error, key->param, value, "is not a string");
    const char *name = json_string_value(value);
    char **known = name_of(config, field_of(key));
    if (json_string_length(value) > NAME_BYTES_MAX)
        return api_refuse_value(error, key->param, value, "is longer than %d bytes",
                                NAME_BYTES_MAX);
    if (strlen(name) != json_string_length(value))
        return api_refuse_value(error, key->param, value, "is no name");
    if (!config->request_methods && strcmp(name, *known) != 0)
        return api_refuse_value(error, key->param, value, "is not the server's \"%s\", which %s",
                                *known, no_flag);
    *known = (char *)(uintptr_t)name;
    return true;
}

/* The server's budget is a bound, in its own unit; everything is a bound for both. */
static bool exceeds_budget(double budget, double server)
{
    return server != 1 && ((budget > 1) != (server > 1) || budget > server);
}

static bool read_number(const kv_key *key, const json_t *value, kv_config *config, api_error *error)
{
    if (!json_is_number(value))
        return api_refuse_value(error, key->param, value, "is not a number");
    const cfg_field *field = field_of(key);
    const double x = json_number_value(value);
    double *known = number_of(config, field);
    if (!(x >= field->min && x <= field->max))
        return api_refuse_value(error, key->param, value, "is outside [%.10g, %.10g]", field->min,
                                field->max);
    if (!config->request_methods && (x < *known || x > *known))
        return api_refuse_value(error, key->param, value, "is not the server's %g, which %s",
                                *known, no_flag);
    if (strcmp(key->flag, "kv-budget") == 0 && exceeds_budget(x, *known))
        return api_refuse_value(error, key->param, value,
                                "is more than the server's %g, or not "
                                "in its unit: shares are at most 1, tokens are more",
                                *known);
    *known = x;
    return true;
}

static bool refuse_key(const char *name, api_error *error)
{
    char known[API_ECHO_BYTES] = "";
    for (size_t i = 0, n = 0; i < N_KEYS && n < sizeof known; i++)
        n += (size_t)snprintf(known + n, sizeof known - n, " %s", keys[i].key);
    return api_refuse(error, API_FAULT_REQUEST, "kv",
                      "kv: the key \"%.*s\" is unknown; known are:%s", NAME_BYTES_MAX, name, known);
}

static bool refuse_unknown(json_t *object, api_error *error)
{
    const char *name;
    json_t *value;
    json_object_foreach(object, name, value)
    {
        size_t i = 0;
        while (i < N_KEYS && strcmp(keys[i].key, name) != 0)
            i++;
        if (i == N_KEYS) return refuse_key(name, error);
    }
    return true;
}

static bool refuse_idle_choice(api_error *error, const char *param, const json_t *value,
                               const kv_methods *methods)
{
    char compression[KV_COMPRESSION_BYTES];
    kv_methods_compression(methods, compression);
    return api_refuse_value(error, param, value,
                            "has no effect with scheduling \"%s\" and compression \"%s\"",
                            methods->policy.name, compression);
}

/* A number that changes nothing was meant to change something. */
static bool refuse_idle(const json_t *object, const kv_methods *methods, api_error *error)
{
    const kv_routing *routing = methods->routing;
    const json_t *budget = api_field(object, "budget");
    const json_t *lazy = api_field(object, "lazy_threshold");
    if (budget != NULL && !(kv_methods_budget(methods) > 0))
        return refuse_idle_choice(error, "kv.budget", budget, methods);
    if (lazy != NULL && !kv_methods_by_laziness(methods))
        return refuse_idle_choice(error, "kv.lazy_threshold", lazy, methods);
    for (size_t i = 0; i < N_KEYS; i++) {
        const json_t *value = api_field(object, keys[i].key);
        if (value == NULL || keys[i].obeys == 0 || (keys[i].obeys & routing->obeys) != 0) continue;
        return api_refuse_value(error, keys[i].param, value, "has no effect with routing \"%s\"",
                                routing->name);
    }
    return true;
}

/* "kv-routing-k: ..." is how settings are refused; here the key has another name. */
bool api_kv_refuse(api_error *error, const err_info *info)
{
    for (size_t i = 0; i < N_KEYS; i++) {
        const size_t n = strlen(keys[i].flag);
        if (strncmp(info->message, keys[i].flag, n) != 0 || info->message[n] != ':') continue;
        return api_refuse(error, API_FAULT_REQUEST, keys[i].param, "%s%s", keys[i].param,
                          info->message + n);
    }
    return api_refuse(error, API_FAULT_REQUEST, "kv", "kv: %s", info->message);
}

bool api_kv_read(const json_t *body, const kv_config *server, completion_request *out,
                 api_error *error)
{
    err_info info = {0};
    kv_config config = *server;
    json_t *object = json_object_get(body, "kv");
    if (object == NULL || json_is_null(object)) return true;
    if (!json_is_object(object)) return api_refuse_value(error, "kv", object, "is not an object");
    if (!refuse_unknown(object, error)) return false;
    for (size_t i = 0; i < N_KEYS; i++) {
        const json_t *value = api_field(object, keys[i].key);
        if (value == NULL) continue;
        const bool is_name = field_of(&keys[i])->type == CFG_STRING;
        if (!(is_name ? read_name : read_number)(&keys[i], value, &config, error)) return false;
    }
    if (kv_methods_resolve(&config, &out->kv, &info) != ERR_OK) return api_kv_refuse(error, &info);
    out->has_kv = true;
    return refuse_idle(object, &out->kv, error);
}

static bool put_number(json_t *object, const char *key, bool is_obeyed, double value)
{
    return !is_obeyed || api_put(object, key, json_real(value));
}

json_t *api_kv_methods_new(const kv_methods *methods)
{
    const uint32_t obeys = methods->routing->obeys;
    const double budget = kv_methods_budget(methods);
    char compression[KV_COMPRESSION_BYTES];
    json_t *object = json_pack("{s:s}", "routing", methods->routing->name);
    if (object == NULL) return NULL;
    kv_methods_compression(methods, compression);
    if (put_number(object, "routing_k", (obeys & KV_ROUTE_K) != 0, methods->route.k) &&
        put_number(object, "routing_eps", (obeys & KV_ROUTE_EPS) != 0, methods->route.eps) &&
        put_number(object, "routing_tau", (obeys & KV_ROUTE_TAU) != 0, methods->route.tau) &&
        api_put(object, "scheduling", json_string(methods->policy.name)) &&
        put_number(object, "budget", budget > 0, budget) &&
        put_number(object, "lazy_threshold", kv_methods_by_laziness(methods),
                   methods->policy.lazy_threshold) &&
        api_put(object, "compression", json_string(compression)) &&
        api_put(object, "rewrite", json_string(methods->rewritings.name)))
        return object;
    json_decref(object);
    return NULL;
}

json_t *api_kv_usage_new(const kv_methods *methods, const kv_usage *usage)
{
    json_t *object = json_pack(
        "{s:I,s:I,s:I,s:I}", "resident_bytes", (json_int_t)usage->resident_bytes,
        "uncompressed_bytes", (json_int_t)usage->uncompressed_bytes, "pages_evicted",
        (json_int_t)usage->pages_evicted, "pages_demoted", (json_int_t)usage->pages_demoted);
    if (object == NULL) return NULL;
    const bool has_mean = !methods->reads_all && usage->certificates > 0;
    const double mean = has_mean ? usage->certificate_sum / (double)usage->certificates : 0;
    if ((!has_mean || api_put(object, "mean_certificate", json_real(mean))) &&
        api_put(object, "methods", api_kv_methods_new(methods)))
        return object;
    json_decref(object);
    return NULL;
}
