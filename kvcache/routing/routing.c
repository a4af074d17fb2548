/* kvcache/routing/routing.c - the list of routing methods. */
#include "kvcache/routing/routing.h"

#include <string.h>

/* Scores of a few hundred, summed in float over a few hundred channels, are right to about 1e-4. */
static const double ROUNDING = 1e-4;

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

double kv_route_certificate(double read, double unread)
{
    const double most = unread * (1 + ROUNDING);
    return most > 0 ? most / (read + most) : 0;
}

double kv_route_share(double certificate)
{
    return certificate / ((1 + ROUNDING) * (1 - certificate) + certificate);
}
