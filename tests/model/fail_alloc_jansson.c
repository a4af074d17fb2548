/* tests/model/fail_alloc_jansson.c - see fail_alloc.h; linked with --wrap for json_loadb. */
#include "tests/model/fail_alloc.h"

#include <jansson.h>
#include <stdlib.h>

static bool is_loading; /* the tests' own state: an allocator has no other place for it */
void *__real_malloc(size_t bytes);
json_t *__real_json_loadb(const char *bytes, size_t n_bytes, size_t flags, json_error_t *error);
json_t *__wrap_json_loadb(const char *bytes, size_t n_bytes, size_t flags, json_error_t *error);

json_t *__wrap_json_loadb(const char *bytes, size_t n_bytes, size_t flags, json_error_t *error)
{
    if (fail_alloc_now()) {
        *error = (json_error_t){.line = -1}; /* which is all that it says, most often */
        return NULL;
    }
    is_loading = true;
    json_t *document = __real_json_loadb(bytes, n_bytes, flags, error);
    is_loading = false;
    return document;
}

static void *allocate(size_t n_bytes)
{
    return is_loading ? __real_malloc(n_bytes) : malloc(n_bytes);
}

void fail_alloc_hook_jansson(void)
{
    json_set_alloc_funcs(allocate, free);
}
