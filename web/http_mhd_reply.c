/* Replies and streams, handed to libmicrohttpd.
 *
 * A response object is private until it is queued, so it is built on whatever thread the handler or
 * the poll runs; only the library's own thread queues it (http_mhd.c). Measured on 0.9.75: a content
 * reader that returns 0 without suspending is called again at once, 1.5 million times a second, so
 * ours always suspends; suspending and resuming happen under the server's lock. */
#include "web/http_internal.h"

#include "base/check.h"
#include "base/log.h"

#include <microhttpd.h>
#include <stdlib.h>
#include <string.h>

enum { STREAM_BLOCK_BYTES = 16384 };

void exchange_resume_locked(http_exchange *ex)
{
    if (!ex->is_suspended) return;
    ex->is_suspended = false;
    ex->server->n_suspended--;
    MHD_resume_connection(ex->mhd);
    pthread_cond_broadcast(&ex->server->changed);
}

static void suspend_locked(http_exchange *ex)
{
    assert(!ex->is_suspended);
    ex->is_suspended = true;
    ex->server->n_suspended++;
    MHD_suspend_connection(ex->mhd);
}

bool exchange_sleep_locked(http_exchange *ex)
{
    if (ex->is_gone || !ex->is_armed) return false;
    suspend_locked(ex);
    return true;
}

void exchange_discard_response(http_exchange *ex)
{
    if (ex->response == NULL) return;
    MHD_destroy_response(ex->response);
    ex->response = NULL;
}

/* A value that the library refuses (a line feed, say, from an echoed request id) costs its line only. */
static void add_field(struct MHD_Response *response, const char *name, const char *value)
{
    if (MHD_add_response_header(response, name, value) == MHD_YES) return;
    log_warn("web", "header-refused name=%s", name);
}

static void add_fields(const http_exchange *ex, struct MHD_Response *response,
                       const http_response *r)
{
    if (r->content_type != NULL) {
        add_field(response, MHD_HTTP_HEADER_CONTENT_TYPE, r->content_type);
    }
    for (size_t i = 0; i < r->n_fields; i++) {
        add_field(response, r->fields[i].name, r->fields[i].value);
    }
    if (ex->is_refused || atomic_load(&ex->server->is_draining)) {
        add_field(response, MHD_HTTP_HEADER_CONNECTION, "close");
    }
}

/* Hands a built response over; NULL (out of memory) ends the exchange instead. */
static err_t give(http_exchange *ex, struct MHD_Response *response, const http_response *r,
                  bool is_stream)
{
    err_t err = ERR_OK;
    pthread_mutex_lock(&ex->server->lock);
    assert(!ex->is_settled);
    assert(ex->response == NULL);
    assert(!ex->is_streaming);
    if (ex->is_gone || ex->is_over) {
        err = ERR_PEER_GONE;
    } else if (response == NULL) {
        err = ERR_NO_MEMORY;
        ex->is_gone = true;
    } else {
        ex->response = response;
        ex->status = r->status;
        ex->is_streaming = is_stream;
        ex->is_settled = !is_stream;
    }
    pthread_mutex_unlock(&ex->server->lock);
    if (err != ERR_OK && response != NULL) MHD_destroy_response(response);
    return err;
}

err_t http_reply(http_exchange *ex, const http_response *r)
{
    /* The library takes a plain pointer, but only reads and copies. */
    void *body = r->body_bytes > 0 ? malloc(r->body_bytes) : NULL;
    struct MHD_Response *response = NULL;
    if (r->body_bytes == 0) {
        response = MHD_create_response_from_buffer(0, NULL, MHD_RESPMEM_PERSISTENT);
    } else if (body != NULL) {
        memcpy(body, r->body, r->body_bytes);
        response = MHD_create_response_from_buffer(r->body_bytes, body, MHD_RESPMEM_MUST_FREE);
        if (response == NULL) free(body);
    }
    if (response != NULL) add_fields(ex, response, r);
    return give(ex, response, r, false);
}

/* The library wants bytes of a stream (on its thread). */
static ssize_t read_stream(void *cls, uint64_t position, char *out, size_t bytes_max)
{
    (void)position;
    http_exchange *const ex = cls;
    ssize_t result = 0;
    pthread_mutex_lock(&ex->server->lock);
    if (ex->is_gone) {
        result = MHD_CONTENT_READER_END_WITH_ERROR;
    } else if (ex->out_end > ex->out_begin) {
        result = (ssize_t)exchange_out_take(ex, out, bytes_max);
    } else if (ex->is_settled) {
        result = MHD_CONTENT_READER_END_OF_STREAM;
    } else if (!exchange_sleep_locked(ex)) {
        result = MHD_CONTENT_READER_END_WITH_ERROR;
    }
    pthread_mutex_unlock(&ex->server->lock);
    return result;
}

err_t http_stream_begin(http_exchange *ex, const http_response *r)
{
    struct MHD_Response *response = MHD_create_response_from_callback(
        MHD_SIZE_UNKNOWN, STREAM_BLOCK_BYTES, read_stream, ex, NULL);
    if (response != NULL) add_fields(ex, response, r);
    return give(ex, response, r, true);
}
