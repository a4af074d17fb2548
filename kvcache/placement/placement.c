/* kvcache/placement/placement.c - the list of placements. */
#include "kvcache/placement/placement.h"

#include <string.h>

#define X(name) extern const kv_placement kv_placement_##name;
KV_PLACEMENT_LIST(X)
#undef X

const kv_placement *const kv_placements[] = {
#define X(name) &kv_placement_##name,
    KV_PLACEMENT_LIST(X) NULL
#undef X
};

#define X(name) " " #name
const char kv_placement_names[] = KV_PLACEMENT_LIST(X);
#undef X

const kv_placement *kv_placement_find(const char *name)
{
    for (size_t i = 0; kv_placements[i] != NULL; i++) {
        if (strcmp(kv_placements[i]->name, name) == 0) return kv_placements[i];
    }
    return NULL;
}
