#include "web/router.h"

#include <stdio.h>
#include <string.h>

static bool path_matches(const route *r, const char *path)
{
    if (!r->takes_rest) return strcmp(r->path, path) == 0;
    const size_t prefix = strlen(r->path);
    return strncmp(r->path, path, prefix) == 0 && path[prefix] != '\0';
}

static bool method_matches(const route *r, const char *method)
{
    if (strcmp(r->method, method) == 0) return true;
    return strcmp(method, "HEAD") == 0 && strcmp(r->method, "GET") == 0;
}

/* Adds a method once; a list too long for `allow` (64 bytes hold every standard method) is cut. */
static void allow_add(char allow[64], const char *method)
{
    const size_t used = strlen(allow), method_bytes = strlen(method);
    for (const char *p = allow; (p = strstr(p, method)) != NULL; p += method_bytes) {
        const bool begins = p == allow || p[-1] == ' ';
        if (begins && (p[method_bytes] == '\0' || p[method_bytes] == ',')) return;
    }
    if (used + method_bytes + 3 > 64) return;
    snprintf(allow + used, 64 - used, "%s%s", used > 0 ? ", " : "", method);
}

route_result route_find(const route *routes, size_t n, const char *method, const char *path,
                        const route **out, char allow[64])
{
    allow[0] = '\0';
    *out = NULL;
    for (size_t i = 0; i < n; i++) {
        if (!path_matches(&routes[i], path)) continue;
        if (method_matches(&routes[i], method)) {
            *out = &routes[i];
            return ROUTE_FOUND;
        }
        allow_add(allow, routes[i].method);
        if (strcmp(routes[i].method, "GET") == 0) allow_add(allow, "HEAD");
    }
    return allow[0] == '\0' ? ROUTE_NO_PATH : ROUTE_NO_METHOD;
}
