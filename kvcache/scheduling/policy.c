/* kvcache/scheduling/policy.c - see policy.h. */
#include "kvcache/scheduling/policy.h"

#include "base/check.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define X(name) " " #name
const char kv_policy_names[] = " none quest adakv duo_attention pyramidkv" KV_SCORER_LIST(X);
#undef X

/* Policies that have a name of their own. */
static const struct {
    const char *name, *meaning;
} short_names[] = {
    {"adakv", "expected_attention+adakv"},
    {"duo_attention", "streaming_llm+duo_attention"},
    {"pyramidkv", "snapkv+pyramid"},
};

static const char *resolve_short(const char *text)
{
    for (size_t i = 0; i < sizeof short_names / sizeof *short_names; i++) {
        if (strcmp(text, short_names[i].name) == 0) return short_names[i].meaning;
    }
    return text;
}

static err_t unknown_policy(const char *text, err_info *info)
{
    return err_set(info, ERR_BAD_CONFIG, "kv-scheduling: '%s' is unknown; known are:%s", text,
                   kv_policy_names);
}

static err_t add_allocator(const char *text, const char *part, kv_policy *out, err_info *info)
{
    const kv_allocator *a = kv_allocator_find(part);
    if (a == NULL)
        return err_set(info, ERR_BAD_CONFIG,
                       "kv-scheduling: '%s': allocator '%s' is unknown; known are:%s", text, part,
                       kv_allocator_names);
    if ((a->layer_share != NULL && out->layers != NULL) || (a->split != NULL && out->heads != NULL))
        return err_set(info, ERR_BAD_CONFIG,
                       "kv-scheduling: '%s': more than one allocator for the same", text);
    if (a->split != NULL && out->scorer->over_heads)
        return err_set(info, ERR_BAD_CONFIG,
                       "kv-scheduling: '%s': %s scores all heads alike, which leaves %s no choice",
                       text, out->scorer->name, part);
    if (a->layer_share != NULL) out->layers = a;
    if (a->split != NULL) out->heads = a;
    return ERR_OK;
}

/* The parts of `text`, cut at each +. */
static err_t read_parts(const char *text, kv_policy *out, err_info *info)
{
    char parts[KV_POLICY_NAME_BYTES];
    if (strlen(text) >= sizeof parts) return unknown_policy(text, info);
    memcpy(parts, text, strlen(text) + 1);
    char *next = strchr(parts, '+');
    if (next != NULL) *next++ = '\0';
    out->scorer = kv_scorer_find(parts);
    if (out->scorer == NULL) return unknown_policy(text, info);
    while (next != NULL) {
        const char *part = next;
        next = strchr(next, '+');
        if (next != NULL) *next++ = '\0';
        TRY(add_allocator(text, part, out, info));
    }
    const kv_allocator *kinds[] = {out->layers, out->heads};
    int n = snprintf(out->name, sizeof out->name, "%s", out->scorer->name);
    for (int i = 0; i < 2; i++) {
        if (kinds[i] == NULL || (i == 1 && kinds[1] == kinds[0])) continue;
        n += snprintf(out->name + n, sizeof out->name - (size_t)n, "+%s", kinds[i]->name);
    }
    assert(n > 0 && (size_t)n < sizeof out->name);
    return ERR_OK;
}

err_t kv_policy_parse(const char *text, double budget, kv_policy *out, err_info *info)
{
    *out = (kv_policy){.name = "none"};
    if (text == NULL) return unknown_policy("", info);
    if (strcmp(text, "none") == 0) return ERR_OK;
    if (!(budget > 0 && budget <= UINT32_MAX && (budget <= 1 || budget == floor(budget))))
        return err_set(info, ERR_BAD_CONFIG,
                       "kv-budget: %g is neither a share in (0, 1] nor a whole number of tokens",
                       budget);
    out->budget = budget;
    if (strcmp(text, "quest") == 0) {
        (void)snprintf(out->name, sizeof out->name, "quest");
        out->limits_reads = budget != 1;
        return ERR_OK;
    }
    const err_t err = read_parts(resolve_short(text), out, info);
    out->evicts = err == ERR_OK && budget != 1;
    return err;
}

uint32_t kv_policy_n_keep(const kv_policy *policy, uint32_t length)
{
    if (policy->budget > 1) return policy->budget < length ? (uint32_t)policy->budget : length;
    const double removed = 1.0 - policy->budget;
    return (uint32_t)((double)length * (1.0 - removed));
}
