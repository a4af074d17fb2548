/* kvcache/scheduling/policy.c - see policy.h. */
#include "kvcache/scheduling/policy.h"

#include "base/check.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define X(name) " " #name
const char kv_policy_names[] =
    " none quest flexgen adakv duo_attention pyramidkv simlayerkv" KV_SCORER_LIST(X);
const char kv_selection_names[] = " adakv duo_attention pyramidkv simlayerkv" KV_SCORER_LIST(X);
#undef X

/* Policies that have a name of their own. */
static const struct {
    const char *name, *meaning;
} short_names[] = {
    {"adakv", "expected_attention+adakv"},    {"duo_attention", "streaming_llm+duo_attention"},
    {"pyramidkv", "snapkv+pyramid"},          {"fastv", "fastv+deep"},
    {"simlayerkv", "streaming_llm+simlayer"},
};

/* A name that is being read, and the setting that it stands in. */
typedef struct reading {
    const char *key;
    const char *text;
    const char *known;
} reading;

static const char *resolve_short(const char *text)
{
    for (size_t i = 0; i < sizeof short_names / sizeof *short_names; i++) {
        if (strcmp(text, short_names[i].name) == 0) return short_names[i].meaning;
    }
    return text;
}

static err_t unknown_name(const reading *r, err_info *info)
{
    return err_set(info, ERR_BAD_CONFIG, "%s: '%s' is unknown; known are:%s", r->key, r->text,
                   r->known);
}

static err_t add_allocator(const reading *r, const char *part, kv_policy *out, err_info *info)
{
    const kv_allocator *a = kv_allocator_find(part);
    if (a == NULL)
        return err_set(info, ERR_BAD_CONFIG, "%s: '%s': allocator '%s' is unknown; known are:%s",
                       r->key, r->text, part, kv_allocator_names);
    if ((a->layer_share != NULL && out->layers != NULL) || (a->split != NULL && out->heads != NULL))
        return err_set(info, ERR_BAD_CONFIG, "%s: '%s': more than one allocator for the same",
                       r->key, r->text);
    if (a->split != NULL && out->scorer->over_heads)
        return err_set(info, ERR_BAD_CONFIG,
                       "%s: '%s': %s scores all heads alike, which leaves %s no choice", r->key,
                       r->text, out->scorer->name, part);
    if (a->layer_share != NULL) out->layers = a;
    if (a->split != NULL) out->heads = a;
    return ERR_OK;
}

static void write_name(kv_policy *out)
{
    const kv_allocator *kinds[] = {out->layers, out->heads};
    int n = snprintf(out->name, sizeof out->name, "%s", out->scorer->name);
    for (int i = 0; i < 2; i++) {
        if (kinds[i] == NULL || (i == 1 && kinds[1] == kinds[0])) continue;
        n += snprintf(out->name + n, sizeof out->name - (size_t)n, "+%s", kinds[i]->name);
    }
    assert(n > 0 && (size_t)n < sizeof out->name);
}

/* The parts of the name, cut at each +. */
static err_t read_parts(const reading *r, kv_policy *out, err_info *info)
{
    char parts[KV_POLICY_NAME_BYTES];
    const char *meaning = resolve_short(r->text);
    if (strlen(meaning) >= sizeof parts) return unknown_name(r, info);
    memcpy(parts, meaning, strlen(meaning) + 1);
    char *next = strchr(parts, '+');
    if (next != NULL) *next++ = '\0';
    out->scorer = kv_scorer_find(parts);
    if (out->scorer == NULL) return unknown_name(r, info);
    while (next != NULL) {
        const char *part = next;
        next = strchr(next, '+');
        if (next != NULL) *next++ = '\0';
        TRY(add_allocator(r, part, out, info));
    }
    write_name(out);
    return ERR_OK;
}

static err_t read_budget(double budget, kv_policy *out, err_info *info)
{
    if (!(budget > 0 && budget <= UINT32_MAX && (budget <= 1 || budget == floor(budget))))
        return err_set(info, ERR_BAD_CONFIG,
                       "kv-budget: %g is neither a share in (0, 1] nor a whole number of tokens",
                       budget);
    out->budget = budget;
    return ERR_OK;
}

err_t kv_policy_parse(const char *text, double budget, kv_policy *out, err_info *info)
{
    const reading r = {"kv-scheduling", text != NULL ? text : "", kv_policy_names};
    *out = (kv_policy){.name = "none"};
    if (strcmp(r.text, "none") == 0) return ERR_OK;
    if (r.text[0] == '\0') return unknown_name(&r, info);
    TRY(read_budget(budget, out, info));
    if (strcmp(text, "quest") == 0) {
        (void)snprintf(out->name, sizeof out->name, "quest");
        out->limits_reads = budget != 1;
        return ERR_OK;
    }
    if (strcmp(text, "flexgen") == 0) {
        (void)snprintf(out->name, sizeof out->name, "flexgen");
        out->limits_pool = budget != 1;
        return ERR_OK;
    }
    const err_t err = read_parts(&r, out, info);
    out->evicts = err == ERR_OK && budget != 1;
    return err;
}

err_t kv_selection_parse(const char *text, double budget, kv_policy *out, err_info *info)
{
    const reading r = {"kv-compression", text, kv_selection_names};
    *out = (kv_policy){.name = "none"};
    TRY(read_parts(&r, out, info));
    TRY(read_budget(budget, out, info));
    out->evicts = budget != 1;
    return ERR_OK;
}

uint32_t kv_policy_needs(const kv_policy *policy)
{
    if (!policy->evicts) return 0;
    return policy->scorer->needs | (kv_policy_by_laziness(policy) ? KV_SCORE_QUERIES : 0u);
}

uint32_t kv_policy_n_queries(const kv_policy *policy)
{
    const uint32_t n = kv_policy_by_laziness(policy) ? 1 : 0;
    if (!policy->evicts) return 0;
    return policy->scorer->n_queries > n ? policy->scorer->n_queries : n;
}

uint32_t kv_policy_n_keep(const kv_policy *policy, uint32_t length)
{
    if (policy->budget > 1) return policy->budget < length ? (uint32_t)policy->budget : length;
    const double removed = 1.0 - policy->budget;
    return (uint32_t)((double)length * (1.0 - removed));
}
