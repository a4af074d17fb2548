#include "tests/web/web_fixture.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>

/* ---- jobs ------------------------------------------------------------------------------------- */

static void enter(web_job *job)
{
    if (atomic_fetch_add(&job->n_inside, 1) != 0) atomic_fetch_add(&job->fixture->n_violations, 1);
    if (atomic_load(&job->n_done) != 0) atomic_fetch_add(&job->fixture->n_violations, 1);
}

static void leave(web_job *job)
{
    atomic_fetch_sub(&job->n_inside, 1);
}

static bool stream_step(web_job *job, http_exchange *ex)
{
    static const char zeros[4096] = {0};
    const http_response head = {.status = 200, .content_type = "text/plain"};
    if (!job->has_begun) {
        if (http_stream_begin(ex, &head) != ERR_OK) return false;
        job->has_begun = true;
    }
    for (size_t left = atomic_exchange(&job->to_write, 0); left > 0;) {
        const size_t n = left < sizeof zeros ? left : sizeof zeros;
        if (http_stream_write(ex, zeros, n) != ERR_OK) return false;
        left -= n;
    }
    return true;
}

static void job_poll(void *user, http_exchange *ex)
{
    web_job *const job = user;
    enter(job);
    atomic_fetch_add(&job->n_polls, 1);
    const bool finish = atomic_load(&job->finish);
    if (job->is_stream) {
        if (stream_step(job, ex) && finish) http_stream_end(ex);
    } else if (finish) {
        const http_response response = {
            .status = 200, .content_type = "text/plain", .body = "late", .body_bytes = 4};
        (void)http_reply(ex, &response);
    }
    leave(job);
}

static void job_gone(void *user)
{
    web_job *const job = user;
    enter(job);
    if (atomic_fetch_add(&job->n_gone, 1) != 0) atomic_fetch_add(&job->fixture->n_violations, 1);
    leave(job);
}

static void job_done(void *user)
{
    web_job *const job = user;
    enter(job);
    leave(job);
    atomic_fetch_add(&job->n_done, 1);
}

static void defer(web_fixture *f, http_exchange *ex)
{
    web_job *const job = calloc(1, sizeof *job);
    if (job == NULL) abort();
    job->fixture = f;
    job->waker = http_waker_of(ex);
    job->is_stream = strcmp(http_path(ex), "/stream") == 0;
    atomic_init(&job->finish, f->finish_at_once);
    const http_deferral deferral = {job_poll, job_gone, job_done, job};
    http_defer(ex, &deferral);
    /* Handlers run on one thread, so the count may follow the entry. */
    const int at = atomic_load(&f->n_jobs);
    if (at >= JOBS_MAX) abort();
    f->jobs[at] = job;
    atomic_store(&f->n_jobs, at + 1);
}

static void handle(void *ctx, http_exchange *ex)
{
    web_fixture *const f = ctx;
    atomic_fetch_add(&f->n_handled, 1);
    if (strcmp(http_path(ex), "/late") == 0 || strcmp(http_path(ex), "/stream") == 0) {
        defer(f, ex);
        return;
    }
    size_t n;
    (void)http_body(ex, &n);
    const char *q = http_query(ex, "q");
    char text[512];
    snprintf(text, sizeof text, "%s %s q=%s n=%zu", http_method(ex), http_path(ex),
             q != NULL ? q : "-", n);
    const http_field field = {"X-Peer", http_peer(ex)};
    const http_response response = {.status = 200,
                                    .content_type = "text/plain",
                                    .fields = &field,
                                    .n_fields = 1,
                                    .body = text,
                                    .body_bytes = strlen(text)};
    (void)http_reply(ex, &response);
}

static size_t error_body(void *ctx, unsigned status, const char *message, char *out,
                         size_t out_bytes)
{
    (void)ctx;
    const int n = snprintf(out, out_bytes, "{\"status\":%u,\"message\":\"%s\"}", status, message);
    return n > 0 ? (size_t)n : 0;
}

/* ---- the server ------------------------------------------------------------------------------- */

http_config web_config(void)
{
    return (http_config){.host = "127.0.0.1",
                         .n_connections_max = 1000,
                         .body_bytes_max = 100000,
                         .head_timeout_ms = 20000,
                         .body_timeout_ms = 20000,
                         .write_timeout_ms = 20000,
                         .idle_timeout_ms = 20000,
                         .stream_bytes_max = 1 << 20,
                         .server_name = "test"};
}

void web_open(web_fixture *f, const http_config *config)
{
    memset(f, 0, sizeof *f);
    const http_handler handler = {handle, f, error_body};
    err_info info = {0};
    const err_t err = http_server_open(config, &handler, &f->server, &info);
    ck_assert_msg(err == ERR_OK, "%s", info.message);
    f->port = http_server_port(f->server);
    ck_assert_uint_ne(f->port, 0);
}

void web_close(web_fixture *f)
{
    http_server_close(f->server);
    for (int i = 0; i < atomic_load(&f->n_jobs); i++) {
        web_job *const job = f->jobs[i];
        ck_assert_int_eq(atomic_load(&job->n_done), 1);
        http_wake(job->waker); /* after the server's end: does nothing */
        http_waker_release(job->waker);
        free(job);
    }
    ck_assert_int_eq(atomic_load(&f->n_violations), 0);
}

void web_job_finish(web_job *job)
{
    atomic_store(&job->finish, true);
    http_wake(job->waker);
}

void web_job_write(web_job *job, size_t bytes)
{
    atomic_fetch_add(&job->to_write, bytes);
    http_wake(job->waker);
}

int web_jobs_done(const web_fixture *f)
{
    int n = 0;
    for (int i = 0; i < atomic_load(&f->n_jobs); i++)
        n += atomic_load(&f->jobs[i]->n_done);
    return n;
}

/* ---- clients ---------------------------------------------------------------------------------- */

int web_connect(const web_fixture *f)
{
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    ck_assert_int_ge(fd, 0);
    const struct timeval limit = {.tv_sec = 20};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    const struct sockaddr_in address = {.sin_family = AF_INET,
                                        .sin_port = htons(f->port),
                                        .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    const int status = connect(fd, (const struct sockaddr *)&address, sizeof address);
    ck_assert_msg(status == 0, "connect: %s", strerror(errno));
    return fd;
}

bool web_try_send(int fd, const void *data, size_t bytes)
{
    for (size_t at = 0; at < bytes;) {
        const ssize_t n = send(fd, (const char *)data + at, bytes - at, MSG_NOSIGNAL);
        if (n <= 0) return false;
        at += (size_t)n;
    }
    return true;
}

void web_send(int fd, const char *text)
{
    ck_assert(web_try_send(fd, text, strlen(text)));
}

int web_request(const web_fixture *f, const char *text)
{
    const int fd = web_connect(f);
    web_send(fd, text);
    return fd;
}

bool web_is_closed(int fd)
{
    char block[4096];
    for (;;) {
        const ssize_t n = recv(fd, block, sizeof block, 0);
        if (n == 0) return true;
        if (n < 0) return errno == ECONNRESET || errno == EPIPE;
    }
}

static bool read_byte(int fd, char *out)
{
    return recv(fd, out, 1, 0) == 1;
}

void web_read_head_only(int fd, web_reply *reply)
{
    memset(reply, 0, sizeof *reply);
    size_t n = 0;
    while (n + 1 < sizeof reply->head && read_byte(fd, reply->head + n)) {
        n++;
        if (n >= 4 && memcmp(reply->head + n - 4, "\r\n\r\n", 4) == 0) break;
    }
    if (n > 12) reply->status = (unsigned)strtoul(reply->head + 9, NULL, 10);
}

static void read_bytes(int fd, web_reply *reply, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++) {
        char c;
        if (!read_byte(fd, &c)) {
            reply->is_cut = true;
            return;
        }
        if (reply->body_bytes + 1 < sizeof reply->body) reply->body[reply->body_bytes++] = c;
    }
}

static void read_chunks(int fd, web_reply *reply)
{
    for (;;) {
        char line[32];
        size_t n = 0;
        while (n + 1 < sizeof line && read_byte(fd, line + n)) {
            if (line[n++] == '\n') break;
        }
        line[n] = '\0';
        const size_t bytes = strtoul(line, NULL, 16);
        web_reply end = {0};
        if (n == 0) reply->is_cut = true;
        read_bytes(fd, bytes > 0 ? reply : &end, bytes);
        read_bytes(fd, &end, 2);
        if (end.is_cut) reply->is_cut = true;
        if (bytes == 0 || reply->is_cut) return;
    }
}

void web_read(int fd, web_reply *reply)
{
    web_read_head_only(fd, reply);
    if (reply->status == 100) web_read_head_only(fd, reply);
    const char *length = strcasestr(reply->head, "\r\nContent-Length:");
    if (reply->status == 0) return;
    if (length != NULL) {
        read_bytes(fd, reply, strtoul(length + 17, NULL, 10));
    } else if (strcasestr(reply->head, "chunked") != NULL) {
        read_chunks(fd, reply);
    } else {
        read_bytes(fd, reply, SIZE_MAX);
        reply->is_cut = false;
    }
}

void web_ask(const web_fixture *f, const char *text, web_reply *reply)
{
    const int fd = web_request(f, text);
    web_read(fd, reply);
    close(fd);
}
