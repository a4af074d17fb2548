/* service/api_call.c - opening, submitting and closing a call. See api_call.h.
 *
 * Lengths are checked here, before anything is queued: a prompt must leave room for one token, and
 * an explicit max_tokens must fit; only a defaulted one is clamped. What the sessions of one request
 * reserve for their output is capped too, since it is their product that a client controls. */
#include "service/api_call.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    ID_RANDOM_BYTES = 12,
    TOKEN_BYTES = 32, /* reserved by a session per token, about: id, text, end of text */
};
static const uint64_t RESERVED_BYTES_MAX = UINT64_C(256) << 20; /* output of one request */

static bool refuse_memory(api_error *error)
{
    return api_refuse(error, API_FAULT_MEMORY, NULL, "out of memory");
}

static const char *prompt_field(const api_call *call)
{
    return call->endpoint->prompt_field;
}

/* ---- prompts ----------------------------------------------------------------------------------------- */

/* So long a text cannot become few enough tokens; not even tokenised, for that would take a while. */
static bool is_hopeless(const api_call *call, size_t text_bytes)
{
    const size_t piece_bytes = max_size(tokenizer_piece_bytes_max(call->api->t), 1);
    return !call->request.truncates && text_bytes / piece_bytes > call->api->n_context_max;
}

static bool tokenise(api_call *call, api_prompt *prompt, api_error *error)
{
    if (prompt->ids != NULL) return true; /* ids are taken as they are: no BOS is added */
    if (is_hopeless(call, prompt->text_bytes)) {
        return api_refuse(
            error, API_FAULT_CONTEXT_LENGTH, prompt_field(call),
            "This model's maximum context length is %" PRIu32
            " tokens, but the prompt has %zu bytes, which is more than so many tokens.",
            call->api->n_context_max, prompt->text_bytes);
    }
    const tok_text text = {.bytes = prompt->text,
                           .n_bytes = prompt->text_bytes,
                           .add_bos = call->request.add_special && tokenizer_adds_bos(call->api->t),
                           .parse_special = call->request.chat.variables != NULL};
    const err_t err = tokenizer_encode(call->api->t, &text, &prompt->ids, &prompt->n_ids);
    if (err == ERR_NO_MEMORY) return refuse_memory(error);
    if (err != ERR_OK) {
        return api_refuse(error, API_FAULT_REQUEST, prompt_field(call), "%s: %s",
                          prompt_field(call), err_sentence(err));
    }
    if (prompt->n_ids > 0) return true;
    return api_refuse(error, API_FAULT_REQUEST, prompt_field(call), "%s: the text gives no token",
                      prompt_field(call));
}

/* truncate_prompt_tokens: keeps the tail, and in front of it the BOS that we have added. */
static void truncate_prompt(const api_call *call, api_prompt *prompt)
{
    const completion_request *r = &call->request;
    if (!r->truncates) return;
    const uint32_t context = call->api->n_context_max;
    uint32_t room = context > r->max_tokens ? context - r->max_tokens : 1;
    if (r->max_tokens == API_TOKENS_MAX) room = context - 1; /* none was asked for: one must fit */
    const size_t n_kept = r->n_truncated > 0 ? r->n_truncated : max_size(room, 1);
    if (prompt->n_ids <= n_kept) return;
    const bool has_bos = prompt->text != NULL && n_kept > 1 &&
                         (int64_t)prompt->ids[0] == tokenizer_bos(call->api->t);
    const size_t n_head = has_bos ? 1 : 0, n_tail = n_kept - n_head;
    memmove(prompt->ids + n_head, prompt->ids + prompt->n_ids - n_tail,
            n_tail * sizeof *prompt->ids);
    prompt->n_ids = n_kept;
    free(prompt->text); /* what an echo shows is decoded from what is left */
    prompt->text = NULL;
    prompt->text_bytes = 0;
}

/* The text that an echo shows of a prompt of ids. */
static bool decode_prompt(const api_call *call, api_prompt *prompt, api_error *error)
{
    if (!call->request.echo || prompt->text != NULL) return true;
    const bool shows_special = !call->request.skip_special;
    const err_t err = tokenizer_decode(call->api->t, prompt->ids, prompt->n_ids, shows_special,
                                       &prompt->text, &prompt->text_bytes);
    return err == ERR_OK || refuse_memory(error);
}

/* What a request gets that says no max_tokens: the context, or less where the KV cache holds less. */
static uint32_t default_room(const api_call *call, const api_prompt *prompt, uint32_t room)
{
    const completion_request *r = &call->request;
    const kv_methods *methods = r->has_kv ? &r->kv : NULL;
    const uint32_t n_wanted = (uint32_t)min_size(r->max_tokens, room);
    if (kv_cache_could_fit(call->api->cache, methods, (uint32_t)prompt->n_ids + n_wanted))
        return room;
    const uint64_t capacity = kv_cache_capacity_tokens(call->api->cache, methods);
    if (capacity <= prompt->n_ids) return room; /* which the engine will refuse */
    return (uint32_t)min_size(capacity - prompt->n_ids, room);
}

/* max_tokens of one prompt's choices. */
static bool fit_length(const api_call *call, const api_prompt *prompt, uint32_t *max_tokens,
                       api_error *error)
{
    const completion_request *r = &call->request;
    const uint32_t context = call->api->n_context_max;
    if (prompt->n_ids >= context) {
        return api_refuse(error, API_FAULT_CONTEXT_LENGTH, prompt_field(call),
                          "This model's maximum context length is %" PRIu32
                          " tokens, but the prompt has %zu tokens.",
                          context, prompt->n_ids);
    }
    const uint32_t room = context - (uint32_t)prompt->n_ids;
    *max_tokens = r->max_tokens;
    if (!r->has_max_tokens) {
        *max_tokens = (uint32_t)min_size(*max_tokens, default_room(call, prompt, room));
        return true;
    }
    if (*max_tokens <= room) return true;
    return api_refuse(error, API_FAULT_CONTEXT_LENGTH, r->max_tokens_field,
                      "This model's maximum context length is %" PRIu32
                      " tokens, but %zu were requested: %zu in the prompt and %" PRIu32 " in %s.",
                      context, prompt->n_ids + r->max_tokens, prompt->n_ids, r->max_tokens,
                      r->max_tokens_field);
}

/* ---- sessions ---------------------------------------------------------------------------------------- */

static void wake(void *waker)
{
    http_wake(waker);
}

static void release_waker(void *waker)
{
    http_waker_release(waker);
}

static bool scores_prompt(const completion_request *r)
{
    return r->echo && r->sampling.n_logprobs >= 0;
}

static bool open_session(api_call *call, http_exchange *ex, const session_spec *spec,
                         api_choice *choice, api_error *error)
{
    session_spec own = *spec;
    own.progress_ctx = http_waker_of(ex);
    if (own.progress_ctx == NULL) return refuse_memory(error);
    own.on_progress = wake;
    own.on_release = release_waker;
    const err_t err = session_open(call->api->t, &own, &choice->session);
    if (err == ERR_OK) return true;
    release_waker(own.progress_ctx); /* a session that was not opened releases nothing */
    return refuse_memory(error);
}

static void spec_init(const api_call *call, const api_prompt *prompt, session_spec *spec)
{
    const completion_request *r = &call->request;
    *spec = (session_spec){.prompt = prompt->ids,
                           .n_prompt = (uint32_t)prompt->n_ids,
                           .min_tokens = r->min_tokens,
                           .sampling = r->sampling,
                           .stops = (const char *const *)r->stops,
                           .stop_bytes = r->stop_bytes,
                           .n_stops = r->n_stops,
                           .stop_ids = r->stop_ids,
                           .n_stop_ids = r->n_stop_ids,
                           .eos = call->api->eos,
                           .n_eos = call->api->n_eos,
                           .ignore_eos = r->ignore_eos,
                           .include_stop = r->include_stop,
                           .skip_special = r->skip_special,
                           .hide_eos = r->hide_eos,
                           .score_prompt = scores_prompt(r),
                           .salt = r->salt != NULL ? r->salt : "",
                           .salt_bytes = r->salt_bytes,
                           .methods = r->has_kv ? &r->kv : NULL,
                           .reports_kv = r->has_kv,
                           .arrival_ns = call->arrival_ns,
                           .deadline_ns = call->deadline_ns};
}

/* The choices of one prompt: they share a group, and with it the work on the prompt. */
static bool open_prompt(api_call *call, http_exchange *ex, uint32_t prompt, api_error *error)
{
    session_spec spec;
    spec_init(call, &call->request.prompts[prompt], &spec);
    if (!fit_length(call, &call->request.prompts[prompt], &spec.max_tokens, error)) return false;
    if (spec.min_tokens > spec.max_tokens) spec.min_tokens = spec.max_tokens;
    spec.group = atomic_fetch_add_explicit(&call->api->n_requests, 1, memory_order_relaxed) + 1;
    for (uint32_t k = 0; k < call->request.n; k++) {
        api_choice *choice = &call->choices[(size_t)prompt * call->request.n + k];
        choice->prompt = prompt;
        if (call->request.chat.tools != NULL)
            tool_reader_init(&choice->tools, call->request.chat.tools);
        spec.sampling.choice = k;
        if (spec.max_tokens == 0 && !spec.score_prompt) continue; /* nothing to run */
        if (!open_session(call, ex, &spec, choice, error)) return false;
    }
    return true;
}

static bool check_reserve(const api_call *call, api_error *error)
{
    const completion_request *r = &call->request;
    const uint64_t n_tops = r->sampling.n_logprobs >= 0 ? (uint64_t)r->sampling.n_logprobs + 1 : 0;
    const uint64_t token_bytes = TOKEN_BYTES + n_tops * sizeof(sampler_entry);
    uint64_t n_tokens = 0; /* at most 2^16 choices of 2^32 tokens */
    for (size_t i = 0; i < r->n_prompts; i++) {
        const uint64_t n_scored = scores_prompt(r) ? r->prompts[i].n_ids : 0;
        const uint64_t n_output = min_size(r->max_tokens, call->api->n_context_max);
        n_tokens += (n_scored + n_output) * r->n;
    }
    if (n_tokens <= RESERVED_BYTES_MAX / token_bytes) return true;
    return api_refuse(error, API_FAULT_REQUEST, r->n > 1 ? "n" : "prompt",
                      "all choices together could hold %" PRIu64
                      " tokens with log-probabilities; %" PRIu64 " are allowed",
                      n_tokens, RESERVED_BYTES_MAX / token_bytes);
}

/* Texts are tokenised here, on the thread that serves everybody. */
static bool check_text(const api_call *call, api_error *error)
{
    size_t n_bytes = 0; /* of texts that came in one body */
    for (size_t i = 0; i < call->request.n_prompts; i++)
        n_bytes += call->request.prompts[i].text_bytes;
    if (n_bytes <= call->api->text_bytes_max) return true;
    return api_refuse(error, API_FAULT_CONTEXT_LENGTH, prompt_field(call),
                      "The prompts have %zu bytes of text; %zu are allowed in one request, and the"
                      " context length is %" PRIu32 " tokens.",
                      n_bytes, call->api->text_bytes_max, call->api->n_context_max);
}

static bool open_choices(api_call *call, http_exchange *ex, api_error *error)
{
    completion_request *r = &call->request;
    if (!check_text(call, error)) return false;
    for (size_t i = 0; i < r->n_prompts; i++) {
        if (!tokenise(call, &r->prompts[i], error)) return false;
        truncate_prompt(call, &r->prompts[i]);
        if (!decode_prompt(call, &r->prompts[i], error)) return false;
        uint32_t max_tokens;
        if (!fit_length(call, &r->prompts[i], &max_tokens, error)) return false;
    }
    if (!check_reserve(call, error)) return false;
    call->n_choices = r->n_prompts * r->n;
    call->choices = calloc(call->n_choices, sizeof *call->choices);
    if (call->choices == NULL) {
        call->n_choices = 0;
        return refuse_memory(error);
    }
    for (uint32_t i = 0; i < r->n_prompts; i++) {
        if (!open_prompt(call, ex, i, error)) return false;
    }
    return true;
}

/* Does the cache keep what the methods need? */
static bool check_methods(const api_call *call, api_error *error)
{
    err_info info = {0};
    if (!call->request.has_kv) return true;
    const err_t err = kv_cache_check_methods(call->api->cache, &call->request.kv, &info);
    return err == ERR_OK || api_kv_refuse(error, &info);
}

/* ---- the call ---------------------------------------------------------------------------------------- */

static void make_ids(api_call *call)
{
    uint8_t random[ID_RANDOM_BYTES];
    hash_random_bytes(random, sizeof random);
    int n = snprintf(call->id, sizeof call->id, "%s", call->endpoint->id_prefix);
    for (size_t i = 0; i < sizeof random; i++)
        n += snprintf(call->id + n, sizeof call->id - (size_t)n, "%02x", random[i]);
    const char *wanted = call->request.request_id[0] != '\0' ? call->request.request_id : call->id;
    snprintf(call->request_id, sizeof call->request_id, "%s", wanted);
}

/* Everything between the body and the sessions that may refuse. */
static bool read_request(api_call *call, http_exchange *ex, api_error *error)
{
    api_context *api = call->api;
    size_t n_bytes;
    const char *body = http_body(ex, &n_bytes);
    const api_limits limits = {.n_vocab = model_get_config(api->m)->n_vocab,
                               .n_logprobs_max = api->config->n_logprobs_max,
                               .n_choices_max = api->n_choices_max,
                               .model_names = api->model_names,
                               .n_model_names = api->n_model_names,
                               .kv = api->kv_config,
                               .content = api->content,
                               .tools = api->tools,
                               .generation = api->generation};
    completion_request *r = &call->request;
    if (!call->endpoint->parse(&limits, body, n_bytes, r, error)) return false;
    if (!check_methods(call, error)) return false;
    return r->chat.variables == NULL || api_chat_render(api, &r->chat, &r->prompts[0], error);
}

api_call *api_call_open(api_context *api, const api_endpoint *endpoint, http_exchange *ex,
                        api_error *error)
{
    api_call *call = calloc(1, sizeof *call);
    if (call == NULL) {
        refuse_memory(error);
        return NULL;
    }
    const uint64_t timeout_ns = (uint64_t)api->config->request_timeout_s * 1000000000u;
    call->api = api;
    call->endpoint = endpoint;
    call->created = clock_unix_seconds();
    call->arrival_ns = http_arrival_ns(ex);
    call->deadline_ns = timeout_ns > 0 ? call->arrival_ns + timeout_ns : 0;
    call->outcome = "abort";
    snprintf(call->peer, sizeof call->peer, "%s", http_peer(ex));
    if (read_request(call, ex, error)) {
        make_ids(call);
        if (open_choices(call, ex, error)) return call;
    }
    api_call_close(call);
    return NULL;
}

static bool refuse_submit(const api_call *call, api_error *error, err_t err, const err_info *info)
{
    switch (err) {
    case ERR_QUEUE_FULL:
        return api_refuse(error, API_FAULT_QUEUE_FULL, NULL,
                          "Too many requests are waiting; try again later.");
    case ERR_CLOSED:
        return api_refuse(error, API_FAULT_DRAINING, NULL, "The server is shutting down.");
    case ERR_BAD_REQUEST:
        return api_refuse(error, API_FAULT_CONTEXT_LENGTH, prompt_field(call), "%s", info->message);
    case ERR_NO_MEMORY: return refuse_memory(error);
    default: break;
    }
    return api_refuse(error, API_FAULT_ENGINE, NULL, "%s", err_sentence(err));
}

bool api_call_submit(api_call *call, api_error *error)
{
    err_info info = {0};
    size_t n_sessions = 0;
    session **sessions = calloc(call->n_choices, sizeof *sessions);
    if (sessions == NULL) return refuse_memory(error);
    for (size_t i = 0; i < call->n_choices; i++) {
        if (call->choices[i].session != NULL) sessions[n_sessions++] = call->choices[i].session;
    }
    const err_t err =
        n_sessions > 0 ? engine_submit(call->api->engine, sessions, n_sessions, &info) : ERR_OK;
    free(sessions);
    if (err != ERR_OK) return refuse_submit(call, error, err, &info);
    for (size_t i = 0; i < call->request.n_prompts; i++)
        metrics_observe(call->api->metrics, METRIC_CHOICES, call->request.n);
    return true;
}

void api_call_close(api_call *call)
{
    if (call == NULL) return;
    for (size_t i = 0; i < call->n_choices; i++) {
        tool_reader_deinit(&call->choices[i].tools);
        if (call->choices[i].session == NULL) continue;
        session_cancel(call->choices[i].session); /* does nothing to a finished one */
        session_release(call->choices[i].session);
    }
    free(call->choices);
    api_completion_deinit(&call->request);
    free(call);
}
