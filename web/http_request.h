/* web/http_request.h - what a request says: lists of names and values, and the rules for its head.
 *
 * Pure functions over text: no sockets, no library. Everything a request brings is copied here once,
 * so that a sleeping exchange can be read from any thread and does not depend on memory of the HTTP
 * library, which is recycled when the connection ends.
 *
 * Threads: none. */
#ifndef WEB_HTTP_REQUEST_H
#define WEB_HTTP_REQUEST_H

#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Names and values one behind the other: "name\0value\0name\0value\0". A request has a dozen, so a
 * walk beats an index. Zeroed is empty; http_pairs_deinit frees. */
typedef struct http_pairs {
    char *text;
    size_t text_bytes;
    size_t capacity_bytes;
} http_pairs;

err_t http_pairs_add(http_pairs *pairs, const char *name, size_t name_bytes, const char *value,
                     size_t value_bytes) MUST_CHECK;                    /* neither holds a NUL */
const char *http_pairs_find(const http_pairs *pairs, const char *name); /* exact; NULL if absent */
/* Case-insensitive; the first of several. *n (NULL allowed) counts all of them. */
const char *http_pairs_find_caseless(const http_pairs *pairs, const char *name, size_t *n);
void http_pairs_deinit(http_pairs *pairs);

/* Cuts a request target ("/a?b=c", or absolute "http://host/a?b=c") at its query, in place. Returns
 * the path; *query points behind the '?', or at "". */
char *http_target_split(char *target, const char **query);

/* Parses "a=1&b=x%20y+z" with decoding. An escape that is cut, not hexadecimal or %00 stays as it is
 * written: a value never holds a NUL. */
err_t http_query_parse(const char *query, http_pairs *out) MUST_CHECK;

/* One field of a head: a token as name; no control characters but tab in the value. */
bool http_field_is_valid(const char *name, size_t name_bytes, const char *value,
                         size_t value_bytes);

typedef struct http_head_verdict {
    unsigned status;        /* 0: go on; else the status to refuse with */
    const char *message;    /* valid when status != 0 */
    bool has_length;        /* content_bytes was announced */
    uint64_t content_bytes; /* valid when has_length */
} http_head_verdict;

/* The rules that keep two readers of one byte stream in agreement (RFC 9112 section 6): at most one
 * Host, one Content-Length and one Transfer-Encoding, never the last two together, no coding but
 * "chunked" and none in HTTP/1.0. Lengths over body_bytes_max are 413. */
http_head_verdict http_head_judge(const http_pairs *fields, const char *version,
                                  size_t body_bytes_max);

#endif
