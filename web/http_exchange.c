/* One request and what its handler does with it: views, the body, the out buffer of a stream, wakers.
 * The state machine is described in http_internal.h. */
#include "web/http_internal.h"

#include "base/check.h"
#include "base/clock.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { BODY_BYTES_FIRST = 4096, OUT_BYTES_FIRST = 4096 };

static http_waker *waker_create(http_exchange *ex)
{
    http_waker *waker = calloc(1, sizeof *waker);
    if (waker == NULL) return NULL;
    atomic_init(&waker->n_refs, 1);
    pthread_mutex_init(&waker->lock, NULL);
    waker->ex = ex;
    return waker;
}

/* The waker is made with the exchange, so that http_waker_of cannot fail. */
http_exchange *exchange_create(http_server *server, const char *target)
{
    http_exchange *ex = calloc(1, sizeof *ex);
    if (ex == NULL) return NULL;
    ex->server = server;
    ex->arrival_ns = clock_mono_ns();
    ex->target = strdup(target);
    ex->waker = waker_create(ex);
    if (ex->target == NULL || ex->waker == NULL) {
        exchange_free(ex);
        return NULL;
    }
    ex->path = http_target_split(ex->target, &ex->query_text);
    return ex;
}

static void waker_detach(http_waker *waker)
{
    pthread_mutex_lock(&waker->lock);
    waker->ex = NULL;
    pthread_mutex_unlock(&waker->lock);
    http_waker_release(waker);
}

void exchange_free(http_exchange *ex)
{
    if (ex->waker != NULL) waker_detach(ex->waker);
    exchange_discard_response(ex);
    http_pairs_deinit(&ex->fields);
    http_pairs_deinit(&ex->query);
    free(ex->target);
    free(ex->body);
    free(ex->out);
    free(ex);
}

/* Makes room for `more` bytes behind `used`; doubles, so that a long body is not copied each time. */
static err_t grow(char **block, size_t *capacity, size_t used, size_t more)
{
    size_t need;
    TRY(size_add(used, more, &need));
    if (need <= *capacity) return ERR_OK;
    size_t doubled;
    TRY(size_add(*capacity, *capacity, &doubled));
    need = max_size(need, doubled);
    char *larger = realloc(*block, need);
    if (larger == NULL) return ERR_NO_MEMORY;
    *block = larger;
    *capacity = need;
    return ERR_OK;
}

err_t exchange_body_add(http_exchange *ex, const char *data, size_t bytes)
{
    size_t more;
    TRY(size_add(bytes, ex->body == NULL ? BODY_BYTES_FIRST : 1, &more));
    TRY(grow(&ex->body, &ex->body_capacity, ex->body_bytes, more));
    memcpy(ex->body + ex->body_bytes, data, bytes);
    ex->body_bytes += bytes;
    ex->body[ex->body_bytes] = '\0';
    return ERR_OK;
}

size_t exchange_out_take(http_exchange *ex, char *out, size_t bytes_max)
{
    const size_t n = min_size(ex->out_end - ex->out_begin, bytes_max);
    if (n == 0) return 0;
    memcpy(out, ex->out + ex->out_begin, n);
    ex->out_begin += n;
    if (ex->out_begin == ex->out_end) ex->out_begin = ex->out_end = 0;
    return n;
}

/* ---- the request ------------------------------------------------------------------------------ */

const char *http_method(const http_exchange *ex)
{
    return ex->method;
}

const char *http_path(const http_exchange *ex)
{
    return ex->path;
}

const char *http_query(const http_exchange *ex, const char *name)
{
    return http_pairs_find(&ex->query, name);
}

const char *http_header(const http_exchange *ex, const char *name)
{
    return http_pairs_find_caseless(&ex->fields, name, NULL);
}

const char *http_body(const http_exchange *ex, size_t *n_bytes)
{
    if (n_bytes != NULL) *n_bytes = ex->body_bytes;
    return ex->body != NULL ? ex->body : "";
}

const char *http_peer(const http_exchange *ex)
{
    return ex->peer;
}

uint64_t http_arrival_ns(const http_exchange *ex)
{
    return ex->arrival_ns;
}

/* ---- deferral and streams --------------------------------------------------------------------- */

/* Takes effect when the handler has returned: only then may the watch thread touch the exchange. */
void http_defer(http_exchange *ex, const http_deferral *deferral)
{
    assert(!ex->is_deferred);
    assert(!ex->is_settled);
    assert(deferral->poll != NULL);
    ex->deferral = *deferral;
    ex->is_deferred = true;
}

static err_t out_append_locked(http_exchange *ex, const void *data, size_t bytes)
{
    const size_t unsent = ex->out_end - ex->out_begin;
    assert(unsent <= ex->server->config.stream_bytes_max);
    if (bytes > ex->server->config.stream_bytes_max - unsent) {
        atomic_fetch_add(&ex->server->dropped, 1);
        return ERR_PEER_GONE;
    }
    if (ex->out_begin > 0 && ex->out_end + bytes > ex->out_capacity) {
        memmove(ex->out, ex->out + ex->out_begin, unsent);
        ex->out_begin = 0;
        ex->out_end = unsent;
    }
    const size_t first = ex->out == NULL ? OUT_BYTES_FIRST : 0;
    TRY(grow(&ex->out, &ex->out_capacity, ex->out_end, max_size(bytes, first)));
    memcpy(ex->out + ex->out_end, data, bytes);
    ex->out_end += bytes;
    return ERR_OK;
}

err_t http_stream_write(http_exchange *ex, const void *data, size_t bytes)
{
    assert(ex->is_streaming);
    http_server *const server = ex->server;
    pthread_mutex_lock(&server->lock);
    assert(!ex->is_settled);
    err_t err = ERR_OK;
    if (ex->is_gone || ex->is_over) {
        err = ERR_PEER_GONE;
    } else if (bytes > 0) {
        err = out_append_locked(ex, data, bytes);
        if (err != ERR_OK) { /* a stream with a hole is worse than one that is cut */
            ex->is_gone = true;
            watch_drop_locked(ex->conn);
        }
    }
    pthread_mutex_unlock(&server->lock);
    return err;
}

void http_stream_end(http_exchange *ex)
{
    assert(ex->is_streaming);
    pthread_mutex_lock(&ex->server->lock);
    ex->is_settled = true;
    pthread_mutex_unlock(&ex->server->lock);
}

/* ---- wakers ----------------------------------------------------------------------------------- */

http_waker *http_waker_of(http_exchange *ex)
{
    atomic_fetch_add_explicit(&ex->waker->n_refs, 1, memory_order_relaxed);
    return ex->waker;
}

/* Before the exchange is armed there is nothing to do: its first poll is still to come. */
void http_wake(http_waker *waker)
{
    pthread_mutex_lock(&waker->lock); /* holds the exchange alive: exchange_free takes it first */
    http_exchange *const ex = waker->ex;
    if (ex != NULL) {
        pthread_mutex_lock(&ex->server->lock);
        if (ex->is_armed) watch_queue_locked(ex);
        pthread_mutex_unlock(&ex->server->lock);
    }
    pthread_mutex_unlock(&waker->lock);
}

void http_waker_release(http_waker *waker)
{
    if (waker == NULL) return;
    if (atomic_fetch_sub_explicit(&waker->n_refs, 1, memory_order_acq_rel) > 1) return;
    pthread_mutex_destroy(&waker->lock);
    free(waker);
}
