/* kvcache/kv_methods.c - see kv_methods.h. */
#include "kvcache/kv_methods.h"

#include "base/check.h"

#include <math.h>
#include <string.h>

static err_t unknown_name(err_info *info, const char *key, const char *name, const char *known)
{
    return err_set(info, ERR_BAD_CONFIG, "%s: '%s' is unknown; known are:%s", key,
                   name != NULL ? name : "", known);
}

/* Exactly one page codec. */
static err_t find_codec(const char *name, kv_methods *out, err_info *info)
{
    out->codec = name != NULL ? kv_codec_find(name) : NULL;
    if (out->codec == NULL && name != NULL && strchr(name, ',') != NULL)
        return err_set(info, ERR_BAD_CONFIG, "kv-compression: '%s' is more than one; known are:%s",
                       name, kv_codec_names);
    if (out->codec == NULL) return unknown_name(info, "kv-compression", name, kv_codec_names);
    out->codec_index = 0;
    while (kv_codecs[out->codec_index] != out->codec)
        out->codec_index++;
    return ERR_OK;
}

/* The settings that the method obeys. */
static err_t read_routing(const kv_config *config, kv_methods *out, err_info *info)
{
    const kv_routing *routing = out->routing;
    const double k = config->routing_k, eps = config->routing_eps, tau = config->routing_tau;
    if ((routing->obeys & KV_ROUTE_K) != 0 && !(k > 0 && (k <= 1 || k == floor(k))))
        return err_set(info, ERR_BAD_CONFIG,
                       "kv-routing-k: %g is neither a share in (0, 1] nor a whole number", k);
    if ((routing->obeys & KV_ROUTE_EPS) != 0 && !(eps >= 0 && eps <= 1))
        return err_set(info, ERR_BAD_CONFIG, "kv-routing-eps: %g is outside [0, 1]", eps);
    if ((routing->obeys & KV_ROUTE_TAU) != 0 && !(tau >= 0 && tau <= 1))
        return err_set(info, ERR_BAD_CONFIG, "kv-routing-tau: %g is outside [0, 1]", tau);
    out->route = (kv_route_settings){.k = k, .eps = eps, .tau = tau};
    out->reads_all = routing->is_exact(&out->route);
    return ERR_OK;
}

/* Under `quest` the budget is what routing may read. A number of pages is at least 2: 1 is all of them. */
static err_t limit_reads(const kv_config *config, kv_methods *out, err_info *info)
{
    const double budget = out->policy.budget;
    if (!out->policy.limits_reads) return ERR_OK;
    if (!out->reads_all)
        return err_set(info, ERR_BAD_CONFIG,
                       "kv-scheduling: quest chooses pages, and so does kv-routing: %s",
                       out->routing->name);
    out->routing = kv_routing_find("topk");
    assert(out->routing != NULL);
    out->route = (kv_route_settings){
        .k = budget <= 1 ? budget : fmax(2, floor(budget / config->page_tokens))};
    out->reads_all = out->routing->is_exact(&out->route);
    return ERR_OK;
}

err_t kv_methods_resolve(const kv_config *config, kv_methods *out, err_info *info)
{
    const char *routing = config->routing;
    *out = (kv_methods){.routing = routing != NULL ? kv_routing_find(routing) : NULL};
    if (out->routing == NULL) return unknown_name(info, "kv-routing", routing, kv_routing_names);
    TRY(kv_policy_parse(config->scheduling, config->budget, &out->policy, info));
    TRY(find_codec(config->compression, out, info));
    TRY(read_routing(config, out, info));
    TRY(limit_reads(config, out, info));
    out->is_exact = out->reads_all && !out->policy.evicts && out->codec->is_exact;
    return ERR_OK;
}
