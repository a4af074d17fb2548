/* kvcache/scoring/scorer.c - the list of scorers. */
#include "kvcache/scoring/scorer.h"

#include <string.h>

#define X(name) extern const kv_scorer kv_scorer_##name;
KV_SCORER_LIST(X)
#undef X

const kv_scorer *const kv_scorers[] = {
#define X(name) &kv_scorer_##name,
    KV_SCORER_LIST(X) NULL
#undef X
};

#define X(name) " " #name
const char kv_scorer_names[] = KV_SCORER_LIST(X);
#undef X

const kv_scorer *kv_scorer_find(const char *name)
{
    for (size_t i = 0; kv_scorers[i] != NULL; i++) {
        if (strcmp(kv_scorers[i]->name, name) == 0) return kv_scorers[i];
    }
    return NULL;
}
