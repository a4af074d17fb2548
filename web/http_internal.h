/* web/http_internal.h - the server's own structs, shared by the http_*.c files and nobody else.
 *
 * Two threads serve. The library's thread reads requests, runs handlers and drains what is to be
 * sent. The watch thread does everything that happens to an exchange while it sleeps: poll, gone and
 * done are called there and nowhere else, so they can never run beside each other. It also watches
 * the sockets of deferred exchanges for clients that leave, and keeps all deadlines.
 *
 * One mutex per server guards every field below that both threads touch; it is never held while a
 * handler or a deferral runs. The life of an exchange:
 *
 *   request line -> head -> body -> handler --reply-------------------------------> sending -> over
 *                                     '-defer-> suspended <-> woken --reply or begin--^
 *
 *   is_armed      deferred and its handler has returned: from here on it belongs to the watch thread
 *   is_suspended  the library sleeps on it; whoever clears the flag resumes it, under the lock, so a
 *                 resume can neither be lost nor come twice, nor meet a connection that has ended
 *   is_queued     on the ready list. A wake sets it; it is cleared before the poll that it causes, so
 *                 a wake during a poll causes another poll
 *   is_settled    replied, or the stream has ended: nothing more is asked of the handler
 *   is_gone       the client left, or was dropped, or the server closes. Never cleared
 *   is_over       the library has let go of it (no callback will name it again)
 *
 * Freed by the library's thread if never armed, else by the watch thread, after `done`. */
#ifndef WEB_HTTP_INTERNAL_H
#define WEB_HTTP_INTERNAL_H

#include "web/http.h"
#include "web/http_request.h"
#include "web/http_socket.h"

#include <pthread.h>
#include <stdatomic.h>

struct MHD_Connection; /* only http_mhd*.c know more */
struct MHD_Daemon;
struct MHD_Response;

typedef enum conn_phase {
    CONN_HEAD,    /* a head is awaited or arriving: deadline */
    CONN_BODY,    /* a body is arriving: deadline */
    CONN_WORKING, /* the handler's, without a deadline */
    CONN_SENDING, /* bytes wait for the client, or may: progress is checked */
    CONN_IDLE     /* kept alive between requests: deadline */
} conn_phase;

typedef struct http_connection {
    struct http_connection *next, *prev; /* of the server's open ones; next: of its closed ones */
    http_server *server;
    http_exchange *ex; /* the current one; NULL between requests */
    int fd;            /* the library's; valid while the connection is on the open list */
    conn_phase phase;
    uint64_t deadline_ns; /* end of the phase, or next check while sending; UINT64_MAX: none */
    uint64_t acked_bytes; /* at the last check of progress */
    uint64_t progress_ns; /* when it last moved, or nothing waited */
    bool is_refused;      /* above the limit: gets a 503 */
    bool is_watched;      /* in the epoll set */
    char peer[PEER_BYTES];
} http_connection;

struct http_waker {
    atomic_uint n_refs;
    pthread_mutex_t lock; /* taken before the server's */
    http_exchange *ex;    /* NULL once the exchange is over */
};

struct http_exchange {
    http_exchange *next_ready;
    http_server *server;
    http_connection *conn;      /* NULL once is_over */
    struct MHD_Connection *mhd; /* valid until is_over */

    /* The request: written by the library's thread before the handler runs, then constant. */
    char *target; /* owns path and query */
    const char *path, *query_text;
    char method[16];
    char peer[PEER_BYTES];
    http_pairs fields, query;
    char *body; /* [body_bytes + 1] once anything came */
    size_t body_bytes, body_capacity;
    uint64_t arrival_ns;
    bool has_head, is_refused, is_handled, body_too_large;

    /* The reply. */
    unsigned status;
    struct MHD_Response *response; /* built, not yet with the library */
    char *out;                     /* unsent bytes of a stream: out[out_begin .. out_end) */
    size_t out_begin, out_end, out_capacity;

    http_deferral deferral;
    http_waker *waker;
    bool is_counted; /* in n_active */
    bool is_deferred, is_armed, is_suspended, is_queued, is_streaming, is_settled, is_gone;
    bool is_told; /* `gone` was called */
    bool is_over, is_finished;
};

struct http_server {
    http_config config; /* strings are not kept */
    http_handler handler;
    struct MHD_Daemon *daemon;
    listener listener;
    int epoll_fd, event_fd;
    pthread_t watch_thread;
    bool has_watch_thread;

    pthread_mutex_t lock; /* guards what follows, and connections and exchanges */
    pthread_cond_t changed;
    http_connection *open, *closed;
    uint32_t n_open;
    uint32_t n_suspended;
    http_exchange *ready_head, **ready_tail;
    bool is_kicked;  /* event_fd has been written and not yet read */
    bool is_closing; /* nothing is deferred any more */
    bool stop_watch;

    atomic_bool is_draining;
    atomic_uint n_active;
    atomic_ullong accepted, refused, gone, dropped, bad_heads;
};

/* http_exchange.c */
http_exchange *exchange_create(http_server *server, const char *target);
void exchange_free(http_exchange *ex); /* makes its wakers idle */
err_t exchange_body_add(http_exchange *ex, const char *data, size_t bytes) MUST_CHECK;
size_t exchange_out_take(http_exchange *ex, char *out, size_t bytes_max); /* locked by the caller */

/* http_watch.c; "locked": the caller holds server->lock */
err_t watch_start(http_server *server) MUST_CHECK;
void watch_stop(http_server *server);
void watch_kick_locked(http_server *server);
void watch_queue_locked(http_exchange *ex); /* serve it soon on the watch thread */
void watch_socket_locked(http_connection *conn);
void watch_forget_locked(http_connection *conn);
void watch_phase_locked(http_connection *conn, conn_phase phase);
void watch_drop_locked(http_connection *conn); /* cuts the socket */
void watch_refuse_locked(http_connection *conn, unsigned status, const char *message);

/* http_mhd_reply.c: what only the library's side can do */
bool exchange_sleep_locked(http_exchange *ex);  /* on its thread; false: gone, do not wait */
void exchange_resume_locked(http_exchange *ex); /* if suspended */
void exchange_discard_response(http_exchange *ex);

#endif
