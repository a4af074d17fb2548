/* The watch thread: sleeping exchanges, clients that leave, deadlines. Knows sockets, not the library.
 *
 * Measured on libmicrohttpd 0.9.75: a suspended connection never reports that its client left, its
 * own timer lets a client live that sends one byte per second, and its content reader is not called
 * while a socket is full. So sockets of deferred exchanges stand in an epoll set of ours for
 * EPOLLRDHUP, every phase of a connection has a deadline here, and exchanges are polled here, whether
 * their socket takes bytes or not.
 *
 * A client is cut with shutdown(), never close(): the descriptor is the library's, which then sees
 * the end of the stream and closes it as usual. A connection leaves our list, under the lock, before
 * the library closes its socket, so no other socket can be hit. Its memory stays until the events
 * already fetched have been looked at.
 *
 * A client that shuts down only its sending side after the request (nc -N) looks like one that left,
 * and is treated so. Every common HTTP client keeps both sides open. */
#include "web/http_internal.h"

#include "base/check.h"
#include "base/clock.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

enum {
    EVENTS_MAX = 256,
    TICK_MS_MIN = 10,
    TICK_MS_MAX = 100,
    PROGRESS_CHECKS = 8, /* per write timeout */
    REFUSAL_BODY_BYTES = 1024
};
static const uint64_t NS_PER_MS = 1000000;

/* ---- called by both threads, locked ----------------------------------------------------------- */

void watch_kick_locked(http_server *server)
{
    if (server->is_kicked) return;
    server->is_kicked = true;
    (void)!write(server->event_fd, &(uint64_t){1}, sizeof(uint64_t));
}

void watch_queue_locked(http_exchange *ex)
{
    http_server *const server = ex->server;
    if (ex->is_queued) return;
    ex->is_queued = true;
    ex->next_ready = NULL;
    *server->ready_tail = ex;
    server->ready_tail = &ex->next_ready;
    watch_kick_locked(server);
}

void watch_socket_locked(http_connection *conn)
{
    /* One shot: a socket whose peer left stays readable, and is of no more interest. */
    struct epoll_event event = {.events = EPOLLRDHUP | EPOLLONESHOT, .data.ptr = conn};
    conn->is_watched = epoll_ctl(conn->server->epoll_fd, EPOLL_CTL_ADD, conn->fd, &event) == 0;
}

void watch_forget_locked(http_connection *conn)
{
    if (!conn->is_watched) return;
    conn->is_watched = false;
    (void)epoll_ctl(conn->server->epoll_fd, EPOLL_CTL_DEL, conn->fd, &(struct epoll_event){0});
}

static uint64_t after_ms(uint64_t now_ns, uint32_t ms)
{
    return ms > 0 ? now_ns + ms * NS_PER_MS : UINT64_MAX;
}

/* Small enough that a check is never late by more than an eighth of the timeout. */
static uint32_t progress_check_ms(const http_server *server)
{
    const uint32_t timeout_ms = server->config.write_timeout_ms;
    return timeout_ms > 0 && timeout_ms < PROGRESS_CHECKS ? 1 : timeout_ms / PROGRESS_CHECKS;
}

void watch_phase_locked(http_connection *conn, conn_phase phase)
{
    const http_config *const config = &conn->server->config;
    const uint64_t now = clock_mono_ns();
    conn->phase = phase;
    conn->progress_ns = now;
    switch (phase) {
    case CONN_HEAD: conn->deadline_ns = after_ms(now, config->head_timeout_ms); break;
    case CONN_BODY: conn->deadline_ns = after_ms(now, config->body_timeout_ms); break;
    case CONN_WORKING: conn->deadline_ns = UINT64_MAX; break;
    case CONN_SENDING: conn->deadline_ns = after_ms(now, progress_check_ms(conn->server)); break;
    case CONN_IDLE: conn->deadline_ns = after_ms(now, config->idle_timeout_ms); break;
    }
}

void watch_drop_locked(http_connection *conn)
{
    conn->deadline_ns = UINT64_MAX;
    (void)shutdown(conn->fd, SHUT_RDWR);
}

void watch_refuse_locked(http_connection *conn, unsigned status, const char *message)
{
    const http_handler *const handler = &conn->server->handler;
    char body[REFUSAL_BODY_BYTES];
    socket_refusal refusal = {.status = status,
                              .reason = status == 408 ? "Request Timeout" : "Service Unavailable",
                              .content_type = "text/plain",
                              .body = message,
                              .body_bytes = strlen(message)};
    if (handler->error_body != NULL) {
        refusal.content_type = "application/json";
        refusal.body = body;
        refusal.body_bytes = handler->error_body(handler->ctx, status, message, body, sizeof body);
    }
    socket_refuse(conn->fd, &refusal);
    watch_drop_locked(conn);
}

/* ---- exchanges -------------------------------------------------------------------------------- */

/* Calls `gone` unless nothing is asked of the handler any more. Unlocks meanwhile. */
static void tell_gone(http_exchange *ex)
{
    if (ex->is_told || ex->is_settled) return;
    ex->is_told = true;
    if (!ex->server->is_closing) atomic_fetch_add(&ex->server->gone, 1);
    if (ex->deferral.gone == NULL) return;
    pthread_mutex_unlock(&ex->server->lock);
    ex->deferral.gone(ex->deferral.user);
    pthread_mutex_lock(&ex->server->lock);
}

/* The library has let go of it, so this thread is its only owner. A wake between `done` and the last
 * line of defence, exchange_free, may put it on the ready list again: it is then freed from there. */
static void finish(http_exchange *ex)
{
    http_server *const server = ex->server;
    tell_gone(ex);
    ex->is_finished = true;
    ex->is_armed = false; /* later wakes do nothing */
    const bool is_queued = ex->is_queued;
    pthread_mutex_unlock(&server->lock);
    if (ex->deferral.done != NULL) ex->deferral.done(ex->deferral.user);
    if (!is_queued) exchange_free(ex);
    pthread_mutex_lock(&server->lock);
    atomic_fetch_sub(&server->n_active, 1);
    pthread_cond_broadcast(&server->changed);
}

static void serve(http_exchange *ex)
{
    http_server *const server = ex->server;
    ex->is_queued = false;
    if (ex->is_finished) {
        pthread_mutex_unlock(&server->lock);
        exchange_free(ex);
        pthread_mutex_lock(&server->lock);
        return;
    }
    if (!ex->is_over && !ex->is_gone && !ex->is_settled) {
        pthread_mutex_unlock(&server->lock);
        ex->deferral.poll(ex->deferral.user, ex);
        pthread_mutex_lock(&server->lock);
    }
    if (ex->is_over) {
        finish(ex);
        return;
    }
    if (ex->is_gone) tell_gone(ex);
    const bool has_news = ex->response != NULL || ex->out_end > ex->out_begin || ex->is_settled;
    if (has_news || ex->is_gone) exchange_resume_locked(ex);
}

/* One round over what is ready now; what becomes ready meanwhile waits for the next round, so that a
 * flood of wakes does not keep sockets and deadlines waiting. */
static void serve_ready(http_server *server)
{
    pthread_mutex_lock(&server->lock);
    http_exchange *ex = server->ready_head;
    server->ready_head = NULL;
    server->ready_tail = &server->ready_head;
    while (ex != NULL) {
        http_exchange *const next = ex->next_ready; /* serving may queue it again */
        serve(ex);
        ex = next;
    }
    pthread_mutex_unlock(&server->lock);
}

/* ---- sockets and deadlines -------------------------------------------------------------------- */

static void peer_left(http_connection *conn)
{
    http_server *const server = conn->server;
    pthread_mutex_lock(&server->lock);
    http_exchange *const ex = conn->ex; /* NULL: it ended while the event was under way */
    if (ex != NULL && ex->is_armed && !ex->is_settled && !ex->is_gone) {
        ex->is_gone = true;
        watch_drop_locked(conn);
        watch_queue_locked(ex);
    }
    pthread_mutex_unlock(&server->lock);
}

static void check_progress(http_connection *conn, uint64_t now)
{
    const http_server *const server = conn->server;
    http_exchange *const ex = conn->ex;
    const socket_sent sent = socket_look(conn->fd);
    const bool waits = sent.waiting_bytes > 0 || (ex != NULL && ex->out_end > ex->out_begin);
    if (!waits || sent.acked_bytes != conn->acked_bytes) conn->progress_ns = now;
    conn->acked_bytes = sent.acked_bytes;
    conn->deadline_ns = after_ms(now, progress_check_ms(server));
    if (now - conn->progress_ns < server->config.write_timeout_ms * NS_PER_MS) return;
    if (ex != NULL && ex->is_streaming) atomic_fetch_add(&conn->server->dropped, 1);
    watch_drop_locked(conn);
    if (ex == NULL || !ex->is_armed) return;
    ex->is_gone = true;
    watch_queue_locked(ex);
}

static void deadline_passed(http_connection *conn, uint64_t now)
{
    /* A request that has begun is owed an answer; a silent connection is just closed. */
    if (conn->phase == CONN_SENDING) {
        check_progress(conn, now);
    } else if (conn->phase == CONN_BODY) {
        watch_refuse_locked(conn, 408, "the request body did not arrive in time");
    } else if (conn->phase == CONN_HEAD && conn->ex != NULL) {
        atomic_fetch_add(&conn->server->bad_heads, 1);
        watch_refuse_locked(conn, 408, "the request head did not arrive in time");
    } else {
        watch_drop_locked(conn);
    }
}

static void check_deadlines(http_server *server)
{
    const uint64_t now = clock_mono_ns();
    pthread_mutex_lock(&server->lock);
    for (http_connection *conn = server->open; conn != NULL; conn = conn->next) {
        if (now >= conn->deadline_ns) deadline_passed(conn, now);
    }
    pthread_mutex_unlock(&server->lock);
}

/* Called when no fetched event can name them any more. */
static void free_closed(http_connection *closed)
{
    while (closed != NULL) {
        http_connection *const next = closed->next;
        free(closed);
        closed = next;
    }
}

/* ---- the thread ------------------------------------------------------------------------------- */

static uint32_t shorter(uint32_t a, uint32_t b)
{
    return b > 0 && b < a ? b : a;
}

static int tick_ms(const http_config *config)
{
    uint32_t ms = TICK_MS_MAX * 4;
    ms = shorter(ms, config->head_timeout_ms);
    ms = shorter(ms, config->body_timeout_ms);
    ms = shorter(ms, config->write_timeout_ms);
    ms = shorter(ms, config->idle_timeout_ms) / 4;
    return (int)(ms > TICK_MS_MIN ? ms : TICK_MS_MIN);
}

static void read_kick(http_server *server)
{
    uint64_t n;
    pthread_mutex_lock(&server->lock);
    (void)!read(server->event_fd, &n, sizeof n);
    server->is_kicked = false;
    pthread_mutex_unlock(&server->lock);
}

static void *watch_main(void *arg)
{
    http_server *const server = arg;
    const int tick = tick_ms(&server->config);
    struct epoll_event events[EVENTS_MAX];
    uint64_t next_check_ns = 0;
    for (;;) {
        pthread_mutex_lock(&server->lock);
        const bool stop = server->stop_watch && server->ready_head == NULL;
        const bool is_idle = server->open == NULL;
        pthread_mutex_unlock(&server->lock);
        if (stop) break;
        const int n = epoll_wait(server->epoll_fd, events, EVENTS_MAX, is_idle ? -1 : tick);
        pthread_mutex_lock(&server->lock);
        http_connection *const closed = server->closed;
        server->closed = NULL;
        pthread_mutex_unlock(&server->lock);
        for (int i = 0; i < n; i++) {
            if (events[i].data.ptr == NULL) {
                read_kick(server);
            } else {
                peer_left(events[i].data.ptr);
            }
        }
        serve_ready(server);
        free_closed(closed);
        if (clock_mono_ns() < next_check_ns) continue;
        check_deadlines(server);
        next_check_ns = clock_mono_ns() + (uint64_t)tick * NS_PER_MS;
    }
    free_closed(server->closed);
    server->closed = NULL;
    return NULL;
}

err_t watch_start(http_server *server)
{
    server->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    server->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (server->epoll_fd < 0 || server->event_fd < 0) return ERR_SYSTEM;
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    if (epoll_ctl(server->epoll_fd, EPOLL_CTL_ADD, server->event_fd, &event) != 0) {
        return ERR_SYSTEM;
    }
    if (pthread_create(&server->watch_thread, NULL, watch_main, server) != 0) return ERR_SYSTEM;
    server->has_watch_thread = true;
    return ERR_OK;
}

void watch_stop(http_server *server)
{
    if (server->has_watch_thread) {
        pthread_mutex_lock(&server->lock);
        server->stop_watch = true;
        watch_kick_locked(server);
        pthread_mutex_unlock(&server->lock);
        pthread_join(server->watch_thread, NULL);
    }
    if (server->epoll_fd >= 0) close(server->epoll_fd);
    if (server->event_fd >= 0) close(server->event_fd);
}
