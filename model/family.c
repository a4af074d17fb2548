/* model/family.c - the list of families and the lookup. */
#include "model/family.h"

#include <string.h>

#define X(name) extern const model_family model_family_##name;
MODEL_FAMILY_LIST(X)
#undef X

const model_family *const model_families[] = {
#define X(name) &model_family_##name,
    MODEL_FAMILY_LIST(X) NULL,
#undef X
};

const model_family *model_family_find(const char *name)
{
    for (const model_family *const *at = model_families; *at != NULL; at++) {
        if (strcmp((*at)->name, name) == 0) return *at;
    }
    return NULL;
}
