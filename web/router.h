/* web/router.h - exact paths to handlers.
 *
 * Paths match exactly, or by prefix where the route ends in "/" and `takes_rest` is set ("/v1/models/" +
 * id). A known path with another method is 405 with Allow; an unknown one is 404. HEAD is answered where
 * GET is. */
#ifndef WEB_ROUTER_H
#define WEB_ROUTER_H

#include "web/http.h"

typedef struct route {
    const char *method; /* "GET" */
    const char *path;
    bool takes_rest; /* the rest of the path, not empty, is the handler's to read */
    bool is_public;  /* no API key needed */
    void (*handle)(void *ctx, http_exchange *ex);
} route;

typedef enum route_result { ROUTE_FOUND, ROUTE_NO_PATH, ROUTE_NO_METHOD } route_result;

/* Finds the route in routes[0 .. n). With ROUTE_NO_METHOD, *allow (at least 64 bytes) lists the methods. */
route_result route_find(const route *routes, size_t n, const char *method, const char *path,
                        const route **out, char allow[64]);

#endif
