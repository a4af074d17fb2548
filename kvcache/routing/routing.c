/* kvcache/routing/routing.c - the list of routing methods. */
#include "kvcache/routing/routing.h"

#include <string.h>

#define X(name) extern const kv_routing kv_routing_##name;
KV_ROUTING_LIST(X)
#undef X

const kv_routing *const kv_routings[] = {
#define X(name) &kv_routing_##name,
    KV_ROUTING_LIST(X) NULL
#undef X
};

#define X(name) " " #name
const char kv_routing_names[] = KV_ROUTING_LIST(X);
#undef X

const kv_routing *kv_routing_find(const char *name)
{
    for (size_t i = 0; kv_routings[i] != NULL; i++) {
        if (strcmp(kv_routings[i]->name, name) == 0) return kv_routings[i];
    }
    return NULL;
}
