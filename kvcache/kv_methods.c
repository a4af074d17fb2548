/* kvcache/kv_methods.c - see kv_methods.h. */
#include "kvcache/kv_methods.h"

#include "base/check.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static err_t unknown_name(err_info *info, const char *key, const char *name, const char *known)
{
    return err_set(info, ERR_BAD_CONFIG, "%s: '%s' is unknown; known are:%s", key,
                   name != NULL ? name : "", known);
}

static err_t find_codec(const char *name, kv_methods *out, err_info *info)
{
    out->codec = kv_codec_find(name);
    if (out->codec == NULL && strchr(name, ',') != NULL)
        return err_set(info, ERR_BAD_CONFIG,
                       "kv-compression: '%s' is more than one codec; known are:%s", name,
                       kv_codec_names);
    if (out->codec == NULL && kv_selection_parse(name, 1, &out->selection, NULL) == ERR_OK)
        return err_set(info, ERR_BAD_CONFIG,
                       "kv-compression: '%s' selects entries and is no codec; write %s,none", name,
                       name);
    if (out->codec == NULL) return unknown_name(info, "kv-compression", name, kv_codec_names);
    out->codec_index = 0;
    while (kv_codecs[out->codec_index] != out->codec)
        out->codec_index++;
    return ERR_OK;
}

/* CODEC, or SELECTION,CODEC. */
static err_t read_compression(const kv_config *config, kv_methods *out, err_info *info)
{
    char selection[KV_POLICY_NAME_BYTES];
    const char *text = config->compression != NULL ? config->compression : "";
    const char *comma = strchr(text, ',');
    if (comma == NULL) return find_codec(text, out, info);
    const size_t n = (size_t)(comma - text);
    if (n >= sizeof selection)
        return unknown_name(info, "kv-compression", text, kv_selection_names);
    memcpy(selection, text, n);
    selection[n] = '\0';
    if (kv_codec_find(selection) != NULL)
        return err_set(info, ERR_BAD_CONFIG,
                       "kv-compression: '%s' is more than one codec; known selections are:%s", text,
                       kv_selection_names);
    TRY(find_codec(comma + 1, out, info));
    return kv_selection_parse(selection, config->budget, &out->selection, info);
}

/* Scheduling goes on behind the prompt with what a selection has left, if it can. */
static err_t check_selection(const kv_methods *out, err_info *info)
{
    const kv_policy *policy = &out->policy, *selection = &out->selection;
    if (selection->evicts && policy->limits_reads)
        return err_set(info, ERR_BAD_CONFIG,
                       "kv-compression: %s selects by kv-budget, and kv-scheduling: quest reads by "
                       "it; use kv-routing: topk",
                       selection->name);
    if (selection->evicts && policy->limits_pool)
        return err_set(
            info, ERR_BAD_CONFIG,
            "kv-compression: %s evicts, and sequences that evict keep their pages in the "
            "pool, whatever kv-scheduling: flexgen says",
            selection->name);
    if (selection->evicts && policy->evicts && policy->scorer->over_heads &&
        policy->scorer->from == KV_FROM_OWN_LAYER && !selection->scorer->over_heads)
        return err_set(info, ERR_BAD_CONFIG,
                       "kv-compression: %s leaves each head entries of its own, and "
                       "kv-scheduling: %s wants the same in all",
                       selection->name, policy->name);
    const uint32_t both = KV_SCORE_REPLAY | KV_SCORE_INPUT_NORM;
    const uint32_t a = kv_policy_needs(selection) & both, b = kv_policy_needs(policy) & both;
    if ((a & b & KV_SCORE_REPLAY) != 0 && a != b)
        return err_set(
            info, ERR_BAD_CONFIG,
            "kv-compression: %s and kv-scheduling: %s read the prompt again for different "
            "scores",
            selection->name, policy->name);
    return ERR_OK;
}

static err_t read_laziness(const kv_config *config, kv_methods *out, err_info *info)
{
    const double most = config->lazy_threshold;
    if (!kv_methods_by_laziness(out)) return ERR_OK;
    if (!(most >= 0 && most <= 1))
        return err_set(info, ERR_BAD_CONFIG, "kv-lazy-threshold: %g is outside [0, 1]", most);
    out->policy.lazy_threshold = out->selection.lazy_threshold = most;
    return ERR_OK;
}

/* What stays is written when others go; what was fitted is left alone. */
static err_t check_rewritings(const kv_config *config, const kv_methods *out, err_info *info)
{
    const kv_policy *policies[] = {&out->policy, &out->selection};
    if (out->rewritings.list[0] == NULL) return ERR_OK;
    if (!kv_methods_evict(out))
        return err_set(info, ERR_BAD_CONFIG,
                       "kv-rewrite: %s rewrites what stays when entries go, and with "
                       "kv-scheduling: %s, kv-compression: %s and kv-budget: %g none does",
                       out->rewritings.name, config->scheduling, config->compression,
                       config->budget);
    for (uint32_t i = 0; i < 2; i++) {
        if (policies[i]->evicts && policies[i]->scorer->is_fitted)
            return err_set(info, ERR_BAD_CONFIG,
                           "kv-rewrite: %s would spoil what %s fits; use none",
                           out->rewritings.name, policies[i]->name);
    }
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
    TRY(read_compression(config, out, info));
    TRY(check_selection(out, info));
    TRY(read_laziness(config, out, info));
    TRY(kv_rewriting_parse(config->rewrite, &out->rewritings, info));
    TRY(check_rewritings(config, out, info));
    TRY(read_routing(config, out, info));
    TRY(limit_reads(config, out, info));
    out->is_exact = out->reads_all && !kv_methods_evict(out) && out->codec->is_exact;
    return ERR_OK;
}

void kv_methods_compression(const kv_methods *methods, char text[KV_COMPRESSION_BYTES])
{
    const bool has_selection = methods->selection.budget > 0;
    const int n =
        snprintf(text, KV_COMPRESSION_BYTES, "%s%s%s", has_selection ? methods->selection.name : "",
                 has_selection ? "," : "", methods->codec->name);
    assert(n > 0 && n < KV_COMPRESSION_BYTES);
}

/* Names in tables are shorter than these fields: they are literals, or were checked when parsed. */
static void pack_text(const char *text, char *out, size_t out_bytes)
{
    const size_t n = strlen(text);
    assert(n < out_bytes);
    memcpy(out, text, n);
}

void kv_methods_pack(const kv_methods *methods, kv_methods_wire *out)
{
    const bool is_quest = methods->policy.limits_reads; /* which chose the routing itself */
    *out = (kv_methods_wire){.budget = kv_methods_budget(methods),
                             .lazy_threshold = methods->policy.lazy_threshold,
                             .routing_k = methods->route.k,
                             .routing_eps = methods->route.eps,
                             .routing_tau = methods->route.tau};
    pack_text(is_quest ? "full" : methods->routing->name, out->routing, sizeof out->routing);
    pack_text(methods->policy.name, out->scheduling, sizeof out->scheduling);
    pack_text(methods->rewritings.name, out->rewrite, sizeof out->rewrite);
    kv_methods_compression(methods, out->compression);
}

static bool has_end(const char *text, size_t n_bytes)
{
    return memchr(text, '\0', n_bytes) != NULL;
}

err_t kv_methods_unpack(const kv_methods_wire *wire, uint32_t page_tokens, kv_methods *out,
                        err_info *info)
{
    kv_methods_wire own = *wire;
    if (!has_end(own.routing, sizeof own.routing) ||
        !has_end(own.scheduling, sizeof own.scheduling) ||
        !has_end(own.compression, sizeof own.compression) ||
        !has_end(own.rewrite, sizeof own.rewrite))
        return err_set(info, ERR_BAD_CONFIG, "methods: a name has no end");
    const kv_config config = {.page_tokens = page_tokens,
                              .routing = own.routing,
                              .routing_k = own.routing_k,
                              .routing_eps = own.routing_eps,
                              .routing_tau = own.routing_tau,
                              .scheduling = own.scheduling,
                              .budget = own.budget,
                              .lazy_threshold = own.lazy_threshold,
                              .compression = own.compression,
                              .rewrite = own.rewrite};
    return kv_methods_resolve(&config, out, info);
}
