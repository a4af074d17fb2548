/* service/api_call_poll.c - writing what the sessions of a call have. See api_call.h.
 *
 * A stream's head goes out with its first chunk, not before: a request that fails while it waits or in
 * its prompt still gets a status. From then on an error is a chunk of its own, followed by [DONE].
 * No chunk is sent that says nothing: naive clients index choices[0] of every line. */
#include "service/api_call.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "web/sse.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

static api_envelope envelope_of(const api_call *call)
{
    return (api_envelope){.id = call->id,
                          .created = call->created,
                          .model = call->api->model_names[0],
                          .fingerprint = call->api->fingerprint,
                          .tokenizer = call->api->t,
                          .tokens_as_ids = call->request.tokens_as_ids,
                          .role = call->request.chat.role,
                          .shape = call->endpoint->shape};
}

/* Bytes that choices share, as their prompt, count for each. */
static void add_kv_usage(const session *s, kv_usage *usage)
{
    const kv_usage one = session_get_kv_usage(s);
    usage->resident_bytes += one.resident_bytes;
    usage->uncompressed_bytes += one.uncompressed_bytes;
    usage->pages_evicted += one.pages_evicted;
    usage->pages_demoted += one.pages_demoted;
    usage->certificates += one.certificates;
    usage->certificate_sum += one.certificate_sum;
}

/* Prompts count once, however many choices they have; outputs count all, with what a stop string cut. */
static api_usage usage_of(const api_call *call)
{
    api_usage usage = {.methods = call->request.has_kv ? &call->request.kv : NULL};
    for (size_t i = 0; i < call->request.n_prompts; i++) {
        const api_choice *first = &call->choices[i * call->request.n];
        usage.n_prompt += call->request.prompts[i].n_ids;
        if (first->session != NULL) usage.n_cached += session_cached_tokens(first->session);
    }
    for (size_t i = 0; i < call->n_choices; i++) {
        const session *s = call->choices[i].session;
        const session_progress progress = api_choice_read(&call->choices[i]);
        usage.n_output += progress.n_tokens;
        if (s != NULL && usage.methods != NULL && progress.finish != FINISH_NONE)
            add_kv_usage(s, &usage.kv);
    }
    return usage;
}

static void cancel_all(api_call *call)
{
    for (size_t i = 0; i < call->n_choices; i++) {
        if (call->choices[i].session != NULL) session_cancel(call->choices[i].session);
    }
    engine_poke(call->api->engine);
}

/* ---- failures ---------------------------------------------------------------------------------------- */

/* Why a session was aborted although its client is there: a deadline, or the server's end. */
static void explain_failure(const api_call *call, session_finish finish, api_error *error)
{
    const int phase = atomic_load_explicit(&call->api->phase, memory_order_acquire);
    if (finish == FINISH_ERROR) {
        api_refuse(error, API_FAULT_ENGINE, NULL, "The engine could not finish this request.");
    } else if (phase == API_FAILED) {
        api_refuse(error, API_FAULT_FAILED, NULL, "The engine has stopped after a fatal error.");
    } else if (phase == API_DRAINING) {
        api_refuse(error, API_FAULT_DRAINING, NULL, "The server is shutting down.");
    } else {
        api_refuse(error, API_FAULT_DEADLINE, NULL, "The request took longer than %" PRIu32 " s.",
                   call->api->config->request_timeout_s);
    }
}

static void fail_stream(http_exchange *ex, const api_error *error)
{
    char body[API_ERROR_BODY_BYTES];
    const size_t n = api_error_write(error, body);
    if (sse_write(ex, body, n) != ERR_OK) return;
    if (sse_write_done(ex) != ERR_OK) return;
    http_stream_end(ex);
}

static void fail(api_call *call, http_exchange *ex, const api_error *error)
{
    call->is_over = true;
    call->outcome = error->code != NULL ? error->code : "error";
    cancel_all(call);
    if (call->has_begun) {
        fail_stream(ex, error);
        return;
    }
    call->status = error->status;
    api_reply_error(call->api, ex, error);
}

static void fail_memory(api_call *call, http_exchange *ex)
{
    api_error error = {0};
    api_refuse(&error, API_FAULT_MEMORY, NULL, "out of memory");
    fail(call, ex, &error);
}

/* True if a session ended in a way that fails the whole request; then it has been answered. */
static bool fails(api_call *call, http_exchange *ex, const session_progress *progress)
{
    api_error error = {0};
    if (progress->finish != FINISH_ERROR && progress->finish != FINISH_ABORT) return false;
    explain_failure(call, progress->finish, &error);
    fail(call, ex, &error);
    return true;
}

/* ---- one document ------------------------------------------------------------------------------------ */

static void reply_document(api_call *call, http_exchange *ex, char *text, size_t n_bytes)
{
    const http_field field = {"X-Request-Id", call->request_id};
    call->is_over = true;
    call->status = 200;
    call->outcome = api_choice_read(&call->choices[0]).finish == FINISH_STOP ? "stop" : "length";
    http_reply(ex, &(http_response){.status = 200,
                                    .content_type = "application/json",
                                    .fields = &field,
                                    .n_fields = 1,
                                    .body = text,
                                    .body_bytes = n_bytes});
}

/* All choices are finished. */
static void write_document(api_call *call, http_exchange *ex)
{
    const api_envelope envelope = envelope_of(call);
    const api_usage usage = usage_of(call);
    size_t n_taken = 0, n_bytes = 0;
    api_piece *pieces = calloc(call->n_choices, sizeof *pieces);
    bool is_ok = pieces != NULL;
    while (is_ok && n_taken < call->n_choices) {
        const session_progress progress = api_choice_read(&call->choices[n_taken]);
        is_ok = api_choice_take_piece(call, n_taken, &progress, &pieces[n_taken]);
        n_taken += is_ok;
    }
    char *text = is_ok ? api_reply_document(&envelope, pieces, n_taken, &usage, &n_bytes) : NULL;
    for (size_t i = 0; i < n_taken; i++)
        api_piece_deinit(&pieces[i]);
    free(pieces);
    if (text != NULL) {
        reply_document(call, ex, text, n_bytes);
    } else {
        fail_memory(call, ex);
    }
    free(text);
}

static void poll_document(api_call *call, http_exchange *ex)
{
    for (size_t i = 0; i < call->n_choices; i++) {
        const session_progress progress = api_choice_read(&call->choices[i]);
        if (progress.finish == FINISH_NONE) return;
        if (fails(call, ex, &progress)) return;
    }
    write_document(call, ex);
}

/* ---- a stream ---------------------------------------------------------------------------------------- */

/* Writes one event, the head before the first. A failed write means that the client is gone: the exchange
 * ends by itself. Frees `text`, which is NULL without memory. */
static bool write_event_take(api_call *call, http_exchange *ex, char *text, size_t n_bytes)
{
    if (text == NULL) {
        fail_memory(call, ex);
        return false;
    }
    err_t err = ERR_OK;
    if (!call->has_begun) {
        const http_field field = {"X-Request-Id", call->request_id};
        call->has_begun = true;
        call->status = 200;
        err = sse_begin(ex, &field, 1);
    }
    if (err == ERR_OK) err = sse_write(ex, text, n_bytes);
    free(text);
    if (err != ERR_OK) call->is_over = true;
    return err == ERR_OK;
}

static bool write_chunk(api_call *call, http_exchange *ex, size_t choice,
                        const session_progress *progress)
{
    const api_envelope envelope = envelope_of(call);
    api_piece piece, parts[API_PARTS_MAX];
    if (!api_choice_take_piece(call, choice, progress, &piece)) {
        fail_memory(call, ex);
        return false;
    }
    bool is_ok = true;
    const size_t n_parts = api_reply_split(&envelope, &piece, parts);
    for (size_t i = 0; is_ok && i < n_parts; i++) {
        size_t n_bytes = 0;
        char *text = api_reply_chunk(&envelope, &parts[i], call->request.include_usage, &n_bytes);
        is_ok = write_event_take(call, ex, text, n_bytes);
    }
    api_piece_deinit(&piece);
    return is_ok;
}

static void end_stream(api_call *call, http_exchange *ex)
{
    if (call->request.include_usage) {
        const api_envelope envelope = envelope_of(call);
        const api_usage usage = usage_of(call);
        size_t n_bytes = 0;
        char *text = api_reply_usage_chunk(&envelope, &usage, &n_bytes);
        if (!write_event_take(call, ex, text, n_bytes)) return;
    }
    call->is_over = true;
    call->outcome = api_choice_read(&call->choices[0]).finish == FINISH_STOP ? "stop" : "length";
    if (sse_write_done(ex) == ERR_OK) http_stream_end(ex);
}

static void poll_stream(api_call *call, http_exchange *ex)
{
    size_t n_finished = 0;
    for (size_t i = 0; i < call->n_choices; i++) {
        api_choice *choice = &call->choices[i];
        const session_progress progress = api_choice_read(choice);
        if (fails(call, ex, &progress)) return;
        if (api_choice_has_news(call, choice, &progress) && !write_chunk(call, ex, i, &progress)) {
            return;
        }
        n_finished += choice->has_finished;
    }
    if (n_finished == call->n_choices) end_stream(call, ex);
}

/* ---- http_deferral ----------------------------------------------------------------------------------- */

void api_call_poll(void *user, http_exchange *ex)
{
    api_call *call = user;
    const bool is_gone = atomic_load_explicit(&call->is_gone, memory_order_relaxed);
    if (call->is_over || is_gone) return;
    if (call->request.stream) {
        poll_stream(call, ex);
    } else {
        poll_document(call, ex);
    }
}

void api_call_gone(void *user)
{
    api_call *call = user;
    atomic_store_explicit(&call->is_gone, true, memory_order_relaxed);
    cancel_all(call);
    metrics_add(call->api->metrics, METRIC_CLIENT_DISCONNECTS, 1);
}

static double ms_between(uint64_t from_ns, uint64_t to_ns)
{
    return to_ns > from_ns ? (double)(to_ns - from_ns) * 1e-6 : 0.0;
}

/* The one line that says what became of a request; never what it said. 499: the client left. */
static void log_call(const api_call *call)
{
    const api_usage usage = usage_of(call);
    session_times times = {0};
    const session *first = call->choices[0].session;
    if (first != NULL && session_read(first).finish != FINISH_NONE)
        times = session_get_times(first);
    const bool is_gone = atomic_load_explicit(&call->is_gone, memory_order_relaxed);
    log_info("api",
             "request id=%s route=%s status=%u outcome=%s prompt_tokens=%" PRIu64
             " cached_tokens=%" PRIu64 " output_tokens=%" PRIu64
             " queue_ms=%.1f ttft_ms=%.1f total_ms=%.1f choices=%zu stream=%s client=%s",
             call->request_id, call->endpoint->route, is_gone ? 499 : call->status,
             is_gone ? "abort" : call->outcome, usage.n_prompt, usage.n_cached, usage.n_output,
             ms_between(call->arrival_ns, times.scheduled_ns),
             ms_between(call->arrival_ns, times.first_token_ns),
             clock_seconds_since(call->arrival_ns) * 1e3, call->n_choices,
             call->request.stream ? "true" : "false", call->peer);
}

void api_call_done(void *user)
{
    api_call *call = user;
    log_call(call);
    api_call_close(call);
}
