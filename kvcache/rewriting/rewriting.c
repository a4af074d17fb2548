/* kvcache/rewriting/rewriting.c - the list of rewritings, and what a setting says of them. */
#include "kvcache/rewriting/rewriting.h"

#include "base/check.h"

#include <string.h>

#define X(name) extern const kv_rewriting kv_rewriting_##name;
KV_REWRITING_LIST(X)
#undef X

const kv_rewriting *const kv_rewritings[] = {
#define X(name) &kv_rewriting_##name,
    KV_REWRITING_LIST(X) NULL
#undef X
};

#define X(name) " " #name
const char kv_rewriting_names[] = " none" KV_REWRITING_LIST(X);
#undef X

/* With a comma between them they fill less than that. */
static_assert(sizeof kv_rewriting_names - sizeof " none" < KV_REWRITING_NAME_BYTES,
              "all names together");

/* The number of kv_rewritings[i]->name in that table, or KV_N_REWRITINGS. */
static uint32_t find(const char *name, size_t n_bytes)
{
    uint32_t i = 0;
    while (i < KV_N_REWRITINGS && (strncmp(kv_rewritings[i]->name, name, n_bytes) != 0 ||
                                   kv_rewritings[i]->name[n_bytes] != '\0'))
        i++;
    return i;
}

const kv_rewriting *kv_rewriting_find(const char *name)
{
    return kv_rewritings[find(name, strlen(name))];
}

static void add_name(kv_rewritings_chosen *out, const char *name)
{
    if (out->name[0] != '\0') strcat(out->name, ",");
    strcat(out->name, name);
}

err_t kv_rewriting_parse(const char *text, kv_rewritings_chosen *out, err_info *info)
{
    bool is_named[KV_N_REWRITINGS] = {false};
    uint32_t n = 0;
    *out = (kv_rewritings_chosen){.name = ""};
    if (text == NULL) text = "";
    for (const char *at = text; strcmp(text, "none") != 0; at++) {
        const size_t n_bytes = strcspn(at, ",");
        const uint32_t i = find(at, n_bytes);
        if (i == KV_N_REWRITINGS)
            return err_set(info, ERR_BAD_CONFIG, "kv-rewrite: '%.*s' is unknown; known are:%s",
                           (int)n_bytes, at, kv_rewriting_names);
        if (is_named[i])
            return err_set(info, ERR_BAD_CONFIG, "kv-rewrite: '%s' has %s twice", text,
                           kv_rewritings[i]->name);
        is_named[i] = true;
        at += n_bytes;
        if (*at == '\0') break;
    }
    for (uint32_t i = 0; i < KV_N_REWRITINGS; i++) {
        if (!is_named[i]) continue;
        out->list[n++] = kv_rewritings[i];
        add_name(out, kv_rewritings[i]->name);
    }
    if (n == 0) add_name(out, "none");
    return ERR_OK;
}
