/* web/http.h - an HTTP/1.1 server that knows bytes, headers and callbacks, and no token.
 *
 * A request is collected whole (head, then body up to a cap) and handed to the handler, which either
 * replies at once or defers. A deferred exchange sleeps: no thread and no processor time is spent on it
 * until somebody calls http_wake, from any thread; then `poll` runs on an HTTP thread and writes what there
 * is. Handlers and polls must not block.
 *
 *   handler -> http_reply                                             (health, errors)
 *   handler -> http_defer; wake -> poll -> http_reply                 (one JSON document)
 *   handler -> http_defer; wake -> poll -> http_stream_begin, http_stream_write ...  -> http_stream_end  (SSE)
 *
 * A client that leaves is noticed at once in every state, also while its exchange sleeps
 * (libmicrohttpd itself never reports that: sockets of deferred exchanges are watched with epoll);
 * `gone` is called once. A client that closes only its sending half counts as one that left.
 * Deadlines: whole head, whole body, each write. Refused before the handler sees them: contradictory
 * lengths, bodies over the cap (413), too many connections (503 well below the hard limit).
 *
 * Threads: handlers run on one thread; polls, `gone` and `done` of all exchanges on another. Nothing
 * of one exchange ever runs beside anything else of it; handlers and polls of different exchanges
 * may. Wakes during a poll cause another poll; several before one may count as one. */
#ifndef WEB_HTTP_H
#define WEB_HTTP_H

#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct http_server http_server;
typedef struct http_exchange http_exchange; /* one request and its reply */

typedef struct http_config {
    const char *host;           /* address to bind: "127.0.0.1", "0.0.0.0", "::1" */
    uint16_t port;              /* 0: any free one, see http_server_port */
    uint32_t n_connections_max; /* beyond it: 503 + Retry-After and close */
    size_t body_bytes_max;      /* beyond it: 413 */
    uint32_t head_timeout_ms;   /* whole request head */
    uint32_t body_timeout_ms;   /* whole request body */
    uint32_t write_timeout_ms; /* no progress while bytes wait for the client: connection dropped */
    uint32_t idle_timeout_ms;  /* keep-alive without a request */
    size_t stream_bytes_max; /* unsent bytes of one stream; beyond it the slow reader is dropped */
    const char *server_name; /* for the log */
} http_config;

typedef struct http_handler {
    void (*handle)(void *ctx, http_exchange *ex); /* the request is complete */
    void *ctx;
    /* Optional: writes the body of a reply that the server itself makes (408, 413, 431, 503, 400 for
     * smuggling) as JSON; NULL: plain text. Returns bytes written (at most 1024). Any thread. */
    size_t (*error_body)(void *ctx, unsigned status, const char *message, char *out,
                         size_t out_bytes);
} http_handler;

err_t http_server_open(const http_config *config, const http_handler *handler, http_server **out,
                       err_info *info) MUST_CHECK;
uint16_t http_server_port(const http_server *server);
uint32_t http_server_n_active(const http_server *server); /* exchanges not finished */
void http_server_stop_accepting(http_server *server); /* drain: no new connections; others go on */
/* Wakes and ends what is left (streams are cut), then frees. */
void http_server_close(http_server *server); /* NULL is fine */

/* ---- the request: borrowed views, valid until the exchange is finished ------------------------------ */

const char *http_method(const http_exchange *ex);
const char *http_path(const http_exchange *ex); /* without the query, not decoded */
const char *http_query(const http_exchange *ex, const char *name); /* decoded value or NULL */
const char *http_header(const http_exchange *ex,
                        const char *name); /* case-insensitive; NULL if absent */
const char *http_body(const http_exchange *ex,
                      size_t *n_bytes);         /* never NULL; NUL-terminated beyond the end */
const char *http_peer(const http_exchange *ex); /* "127.0.0.1" */
uint64_t
http_arrival_ns(const http_exchange *ex); /* clock_mono_ns when the request line was read */

/* ---- the reply --------------------------------------------------------------------------------------- */

typedef struct http_field {
    const char *name, *value;
} http_field;

typedef struct http_response {
    unsigned status;
    const char *content_type;
    const http_field *fields; /* more header lines, copied */
    size_t n_fields;
    const void *body; /* copied */
    size_t body_bytes;
} http_response;

/* ERR_NO_MEMORY (the connection is then closed) or ERR_PEER_GONE; either way the exchange is over. */
err_t http_reply(http_exchange *ex, const http_response *response);

typedef struct http_deferral {
    void (*poll)(void *user,
                 http_exchange *ex); /* on an HTTP thread, once after http_defer and after wakes */
    void (*gone)(
        void *user); /* the client left, or its stream was dropped; once, not after `done` */
    void (*done)(
        void
            *user); /* the exchange is over and nothing here will be called again: release `user` */
    void *user;
} http_deferral;
void http_defer(http_exchange *ex, const http_deferral *deferral);

/* Head of a stream; response->body is ignored. Chunked for HTTP/1.1. */
err_t http_stream_begin(http_exchange *ex, const http_response *response) MUST_CHECK;
err_t http_stream_write(http_exchange *ex, const void *data, size_t bytes) MUST_CHECK;
void http_stream_end(http_exchange *ex);

/* A waker is a counted reference that outlives the exchange: waking a finished one does nothing. */
typedef struct http_waker http_waker;
http_waker *http_waker_of(http_exchange *ex); /* a new reference */
void http_wake(http_waker *waker);            /* any thread; cheap, at most one system call */
void http_waker_release(http_waker *waker);

typedef struct http_counters {
    uint64_t connections_accepted, connections_refused, clients_gone, streams_dropped, bad_heads;
} http_counters;
void http_server_counters(const http_server *server, http_counters *out); /* any thread */

#endif
