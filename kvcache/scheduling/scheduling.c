/* kvcache/scheduling/scheduling.c - the list of scheduling policies. */
#include "kvcache/scheduling/scheduling.h"

#include <string.h>

#define X(name) extern const kv_scheduling kv_scheduling_##name;
KV_SCHEDULING_LIST(X)
#undef X

const kv_scheduling *const kv_schedulings[] = {
#define X(name) &kv_scheduling_##name,
    KV_SCHEDULING_LIST(X) NULL
#undef X
};

#define X(name) " " #name
const char kv_scheduling_names[] = KV_SCHEDULING_LIST(X);
#undef X

const kv_scheduling *kv_scheduling_find(const char *name)
{
    for (size_t i = 0; kv_schedulings[i] != NULL; i++) {
        if (strcmp(kv_schedulings[i]->name, name) == 0) return kv_schedulings[i];
    }
    return NULL;
}
