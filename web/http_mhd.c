/* The server on libmicrohttpd 0.9.75: one daemon, its own thread on epoll, suspend and resume.
 *
 * Threads and the life of an exchange are described in http_internal.h. What the library does not do
 * and is done here, each measured and each with a test:
 *
 * - Bodies are unlimited: an announced length over the cap is refused before the body, a chunked one
 *   is read away and refused at its end (the library cannot reply in between), a very long one cut.
 * - Contradictory lengths are accepted: heads are judged by http_head_judge.
 * - At its connection limit the library lets clients hang. Its limit is therefore ours plus a margin;
 *   within the margin every request gets a 503 and the connection is closed, and in the upper half of
 *   the margin already the connection is.
 * - Stopping the daemon with a suspended connection aborts the process: http_server_close first ends
 *   all of them and forbids new ones.
 * - The path is handed over decoded; we take the raw request line from the log callback instead.
 *
 * SIGPIPE: the library blocks it on its own thread; our own sends ask for none. */
#include "web/http_internal.h"

#include "base/check.h"
#include "base/log.h"

#include <microhttpd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    MARGIN_MIN = 16,        /* connections that may be told that there is no room */
    POOL_BYTES = 32 * 1024, /* per connection: the longest head; longer is 431 or 414 */
    DISCARD_FACTOR = 4,     /* a chunked body is read away up to so many times the cap */
    DISCARD_BYTES_MIN = 64 * 1024,
    ERROR_BODY_BYTES = 1024
};

/* ---- refusals --------------------------------------------------------------------------------- */

/* A reply of the server itself; the connection ends with it. */
static void refuse(http_exchange *ex, unsigned status, const char *message)
{
    const http_handler *const handler = &ex->server->handler;
    char body[ERROR_BODY_BYTES];
    const http_field retry = {"Retry-After", "1"};
    http_response response = {.status = status,
                              .content_type = "text/plain",
                              .fields = &retry,
                              .n_fields = status == 503 ? 1 : 0,
                              .body = message,
                              .body_bytes = strlen(message)};
    if (handler->error_body != NULL) {
        response.content_type = "application/json";
        response.body = body;
        response.body_bytes = handler->error_body(handler->ctx, status, message, body, sizeof body);
    }
    ex->is_refused = true;
    (void)http_reply(ex, &response); /* without memory the connection is just closed */
}

/* ---- the phases of a request, on the library's thread ----------------------------------------- */

/* After each step: queue what there is, or sleep until the watch thread has something. */
static enum MHD_Result go_on(http_exchange *ex)
{
    pthread_mutex_lock(&ex->server->lock);
    struct MHD_Response *response = ex->is_gone ? NULL : ex->response;
    enum MHD_Result result = MHD_YES;
    if (response != NULL) {
        ex->response = NULL;
        watch_phase_locked(ex->conn, CONN_SENDING);
    } else if (!exchange_sleep_locked(ex)) {
        result = MHD_NO;
    }
    const unsigned status = ex->status;
    pthread_mutex_unlock(&ex->server->lock);
    if (response == NULL) return result;
    result = MHD_queue_response(ex->mhd, status, response);
    MHD_destroy_response(response);
    return result;
}

typedef struct field_copy {
    http_exchange *ex;
    err_t err;
    bool is_invalid;
} field_copy;

static enum MHD_Result copy_field(void *cls, enum MHD_ValueKind kind, const char *name,
                                  size_t name_bytes, const char *value, size_t value_bytes)
{
    (void)kind;
    field_copy *const copy = cls;
    if (value == NULL) value = "";
    if (!http_field_is_valid(name, name_bytes, value, value_bytes)) {
        copy->is_invalid = true;
        return MHD_NO;
    }
    copy->err = http_pairs_add(&copy->ex->fields, name, name_bytes, value, value_bytes);
    return copy->err == ERR_OK ? MHD_YES : MHD_NO;
}

/* Copies the head and judges it. Leaves a refusal as the response where there is one. */
static err_t read_head(http_exchange *ex, const char *version)
{
    http_server *const server = ex->server;
    field_copy copy = {.ex = ex};
    (void)MHD_get_connection_values_n(ex->mhd, MHD_HEADER_KIND, copy_field, &copy);
    TRY(copy.err);
    TRY(http_query_parse(ex->query_text, &ex->query));
    http_head_verdict verdict =
        http_head_judge(&ex->fields, version, server->config.body_bytes_max);
    if (copy.is_invalid) {
        verdict = (http_head_verdict){.status = 400, .message = "a header field is malformed"};
    }
    if (ex->conn->is_refused) {
        verdict = (http_head_verdict){.status = 503, .message = "too many connections"};
        atomic_fetch_add(&server->refused, 1);
    }
    if (verdict.status == 0) return ERR_OK;
    if (verdict.status == 400) atomic_fetch_add(&server->bad_heads, 1);
    refuse(ex, verdict.status, verdict.message);
    return ERR_OK;
}

static enum MHD_Result on_head(http_exchange *ex, const char *method, const char *version)
{
    http_server *const server = ex->server;
    pthread_mutex_lock(&server->lock);
    ex->has_head = true;
    ex->is_counted = true;
    atomic_fetch_add(&server->n_active, 1);
    watch_phase_locked(ex->conn, CONN_BODY);
    const bool is_closing = server->is_closing;
    pthread_mutex_unlock(&server->lock);
    if (is_closing) return MHD_NO;
    snprintf(ex->method, sizeof ex->method, "%s", method);
    if (read_head(ex, version) != ERR_OK) return MHD_NO;
    return ex->is_refused ? go_on(ex) : MHD_YES;
}

static enum MHD_Result on_body(http_exchange *ex, const char *data, size_t *bytes)
{
    const size_t cap = ex->server->config.body_bytes_max, n = *bytes;
    *bytes = 0; /* all taken */
    if (!ex->body_too_large && n <= cap - ex->body_bytes) {
        return exchange_body_add(ex, data, n) == ERR_OK ? MHD_YES : MHD_NO;
    }
    ex->body_too_large = true;
    ex->body_bytes += n; /* counts only from here on; a refused body is never shown */
    const bool is_hopeless =
        ex->body_bytes > DISCARD_BYTES_MIN && ex->body_bytes / DISCARD_FACTOR > cap;
    return is_hopeless ? MHD_NO : MHD_YES;
}

/* The request is complete: the handler's turn, then its deferral is given to the watch thread. */
static enum MHD_Result on_complete(http_exchange *ex)
{
    http_server *const server = ex->server;
    pthread_mutex_lock(&server->lock);
    watch_phase_locked(ex->conn, CONN_WORKING);
    pthread_mutex_unlock(&server->lock);
    ex->is_handled = true;
    if (ex->body_too_large) {
        refuse(ex, 413, "the request body is larger than this server allows");
        return go_on(ex);
    }
    server->handler.handle(server->handler.ctx, ex);
    pthread_mutex_lock(&server->lock);
    assert(ex->is_deferred || ex->is_settled || ex->is_gone); /* a handler replies or defers */
    if (ex->is_deferred) {
        ex->is_armed = true;
        if (server->is_closing) ex->is_gone = true;
        watch_socket_locked(ex->conn);
        watch_queue_locked(ex); /* its first poll */
    }
    pthread_mutex_unlock(&server->lock);
    return go_on(ex);
}

static enum MHD_Result on_request(void *cls, struct MHD_Connection *connection, const char *url,
                                  const char *method, const char *version, const char *data,
                                  size_t *data_bytes, void **con_cls)
{
    (void)cls;
    (void)url; /* decoded already */
    (void)connection;
    http_exchange *const ex = *con_cls;
    if (ex == NULL || ex->conn == NULL) return MHD_NO; /* no memory when the request line came */
    if (!ex->has_head) return on_head(ex, method, version);
    if (*data_bytes > 0) return on_body(ex, data, data_bytes);
    if (!ex->is_handled) return on_complete(ex);
    return go_on(ex); /* resumed */
}

/* ---- beginnings and ends ---------------------------------------------------------------------- */

static http_connection *connection_of(struct MHD_Connection *connection)
{
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(connection, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
    return info != NULL ? info->socket_context : NULL;
}

/* The request line has been read; what is returned becomes *con_cls. */
static void *on_request_line(void *cls, const char *target, struct MHD_Connection *connection)
{
    http_server *const server = cls;
    http_connection *const conn = connection_of(connection);
    if (conn == NULL) return NULL;
    http_exchange *const ex = exchange_create(server, target);
    if (ex == NULL) return NULL;
    ex->mhd = connection;
    memcpy(ex->peer, conn->peer, sizeof ex->peer);
    pthread_mutex_lock(&server->lock);
    ex->conn = conn;
    conn->ex = ex;
    /* A kept connection begins its head now; a fresh one began when it was accepted. */
    if (conn->phase == CONN_IDLE) watch_phase_locked(conn, CONN_HEAD);
    pthread_mutex_unlock(&server->lock);
    return ex;
}

/* The library is through with a request. The reason code says little (a reply to a client that has
 * left counts as success), so it is not looked at. */
static void on_completed(void *cls, struct MHD_Connection *connection, void **con_cls,
                         enum MHD_RequestTerminationCode code)
{
    (void)connection;
    (void)code;
    http_server *const server = cls;
    http_exchange *const ex = *con_cls;
    *con_cls = NULL;
    if (ex == NULL) return;
    pthread_mutex_lock(&server->lock);
    assert(!ex->is_suspended);
    watch_forget_locked(ex->conn);
    watch_phase_locked(ex->conn, CONN_IDLE);
    ex->conn->ex = NULL;
    ex->conn = NULL;
    ex->is_over = true;
    const bool is_armed = ex->is_armed;
    if (is_armed) watch_queue_locked(ex);
    pthread_mutex_unlock(&server->lock);
    if (is_armed) return; /* now the watch thread's alone */
    if (!ex->has_head) atomic_fetch_add(&server->bad_heads, 1);
    const bool is_counted = ex->is_counted;
    exchange_free(ex);
    pthread_mutex_lock(&server->lock);
    if (is_counted) atomic_fetch_sub(&server->n_active, 1);
    pthread_cond_broadcast(&server->changed);
    pthread_mutex_unlock(&server->lock);
}

static uint32_t margin_of(uint32_t n_connections_max)
{
    return n_connections_max / 4 > MARGIN_MIN ? n_connections_max / 4 : MARGIN_MIN;
}

static void connection_begin(http_server *server, struct MHD_Connection *connection, void **context)
{
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD);
    const int fd = info->connect_fd;
    atomic_fetch_add(&server->accepted, 1);
    http_connection *const conn = calloc(1, sizeof *conn);
    *context = conn;
    if (conn == NULL) {
        (void)shutdown(fd, SHUT_RDWR);
        return;
    }
    conn->server = server;
    conn->fd = fd;
    info = MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CLIENT_ADDRESS);
    socket_peer_text(info != NULL ? info->client_addr : NULL, conn->peer);
    const uint32_t limit = server->config.n_connections_max;
    pthread_mutex_lock(&server->lock);
    conn->next = server->open;
    if (conn->next != NULL) conn->next->prev = conn;
    server->open = conn;
    server->n_open++;
    watch_phase_locked(conn, CONN_HEAD);
    conn->is_refused = server->n_open > limit;
    if (server->n_open > limit + margin_of(limit) / 2) {
        atomic_fetch_add(&server->refused, 1);
        watch_refuse_locked(conn, 503, "too many connections");
    }
    if (server->n_open == 1) watch_kick_locked(server); /* it sleeps without a tick when idle */
    pthread_mutex_unlock(&server->lock);
}

static void connection_end(http_server *server, http_connection *conn)
{
    pthread_mutex_lock(&server->lock);
    watch_forget_locked(conn);
    if (conn->next != NULL) conn->next->prev = conn->prev;
    if (conn->prev != NULL) conn->prev->next = conn->next;
    if (server->open == conn) server->open = conn->next;
    server->n_open--;
    conn->next = server->closed;
    server->closed = conn; /* freed by the watch thread */
    if (server->n_open == 0) watch_kick_locked(server);
    pthread_mutex_unlock(&server->lock);
}

/* Comes with CLOSED before the library closes the socket. */
static void on_connection(void *cls, struct MHD_Connection *connection, void **context,
                          enum MHD_ConnectionNotificationCode code)
{
    if (code == MHD_CONNECTION_NOTIFY_STARTED) {
        connection_begin(cls, connection, context);
    } else if (*context != NULL) {
        connection_end(cls, *context);
    }
}

/* The library's own words are for us, not for operators: mostly clients that went away. */
static void on_log(void *cls, const char *format, va_list arguments)
{
    (void)cls;
    if (!log_enabled(LOG_DEBUG)) return;
    char line[256];
    if (vsnprintf(line, sizeof line, format, arguments) < 0) return;
    line[strcspn(line, "\r\n")] = '\0';
    log_debug("web", "library says=%s", line);
}

/* ---- the server ------------------------------------------------------------------------------- */

static struct MHD_Daemon *start_daemon(http_server *server)
{
    const uint32_t limit = server->config.n_connections_max;
    unsigned flags = MHD_USE_EPOLL_INTERNAL_THREAD | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ERROR_LOG;
    if (server->listener.is_ipv6) flags |= MHD_USE_IPv6;
    return MHD_start_daemon(
        flags, 0, NULL, NULL, on_request, server,              /* port unused: see LISTEN_SOCKET */
        MHD_OPTION_EXTERNAL_LOGGER, on_log, NULL,              /* first, so that it sees the rest */
        MHD_OPTION_LISTEN_SOCKET, server->listener.fd,         /* bound by us, for clear messages */
        MHD_OPTION_CONNECTION_LIMIT, limit + margin_of(limit), /* never reached */
        MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)POOL_BYTES, MHD_OPTION_STRICT_FOR_CLIENT,
        1,                                                    /* a missing Host is 400 */
        MHD_OPTION_URI_LOG_CALLBACK, on_request_line, server, /* raw target */
        MHD_OPTION_NOTIFY_COMPLETED, on_completed, server,    /* each request's end */
        MHD_OPTION_NOTIFY_CONNECTION, on_connection, server,  /* each connection's */
        MHD_OPTION_END);
}

static void free_server(http_server *server)
{
    watch_stop(server);
    if (server->listener.fd >= 0) close(server->listener.fd);
    pthread_cond_destroy(&server->changed);
    pthread_mutex_destroy(&server->lock);
    free(server);
}

err_t http_server_open(const http_config *config, const http_handler *handler, http_server **out,
                       err_info *info)
{
    *out = NULL;
    assert(handler->handle != NULL);
    assert(config->n_connections_max > 0);
    http_server *const server = calloc(1, sizeof *server);
    if (server == NULL) return err_set(info, ERR_NO_MEMORY, "no memory for the HTTP server");
    server->config = *config;
    server->handler = *handler;
    server->listener.fd = server->epoll_fd = server->event_fd = -1;
    server->ready_tail = &server->ready_head;
    pthread_mutex_init(&server->lock, NULL);
    pthread_cond_init(&server->changed, NULL);
    err_t err = socket_listen(config->host, config->port, &server->listener, info);
    if (err != ERR_OK) goto fail;
    err = watch_start(server);
    if (err != ERR_OK) goto fail;
    server->daemon = start_daemon(server);
    if (server->daemon == NULL) {
        err = ERR_SYSTEM;
        goto fail;
    }
    log_debug("web", "listening name=%s host=%s port=%u",
              config->server_name != NULL ? config->server_name : "http", config->host,
              server->listener.port);
    *out = server;
    return ERR_OK;
fail:
    free_server(server);
    return err_set(info, err, "the HTTP server on %s cannot start: %s", config->host,
                   err_sentence(err));
}

uint16_t http_server_port(const http_server *server)
{
    return server->listener.port;
}

uint32_t http_server_n_active(const http_server *server)
{
    return atomic_load(&server->n_active);
}

/* The library may still look at its listening socket until it is stopped, so the socket stays open;
 * shut down, it refuses new connections at once instead of letting them wait in the backlog. */
void http_server_stop_accepting(http_server *server)
{
    if (atomic_exchange(&server->is_draining, true)) return;
    (void)MHD_quiesce_daemon(server->daemon);
    (void)shutdown(server->listener.fd, SHUT_RDWR);
}

/* 1. Nothing is deferred any more; sleepers are told that they are gone and resumed, sockets cut.
 * 2. When nobody is suspended the daemon may be stopped; it ends every connection that is left.
 * 3. The watch thread says `done` to the last ones. */
void http_server_close(http_server *server)
{
    if (server == NULL) return;
    http_server_stop_accepting(server);
    pthread_mutex_lock(&server->lock);
    server->is_closing = true;
    for (http_connection *conn = server->open; conn != NULL; conn = conn->next) {
        http_exchange *const ex = conn->ex;
        watch_drop_locked(conn);
        if (ex == NULL || !ex->is_armed) continue;
        ex->is_gone = true;
        watch_queue_locked(ex);
    }
    while (server->n_suspended > 0)
        pthread_cond_wait(&server->changed, &server->lock);
    pthread_mutex_unlock(&server->lock);
    MHD_stop_daemon(server->daemon);
    pthread_mutex_lock(&server->lock);
    while (atomic_load(&server->n_active) > 0) {
        pthread_cond_wait(&server->changed, &server->lock);
    }
    pthread_mutex_unlock(&server->lock);
    free_server(server);
}

void http_server_counters(const http_server *server, http_counters *out)
{
    *out = (http_counters){.connections_accepted = atomic_load(&server->accepted),
                           .connections_refused = atomic_load(&server->refused),
                           .clients_gone = atomic_load(&server->gone),
                           .streams_dropped = atomic_load(&server->dropped),
                           .bad_heads = atomic_load(&server->bad_heads)};
}
