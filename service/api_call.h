/* service/api_call.h - one completion or chat from its validation to its last byte.
 *
 *   api_completions    parses, tokenises, checks lengths, opens one session per choice, submits, defers;
 *                      so does api_chat_completions, with a template in front
 *   api_call_poll      writes what the sessions have: nothing yet, a chunk per choice, or the whole document
 *   api_call_gone      the client left: cancels every session
 *   api_call_done      the exchange is over: writes the line in the log and frees everything
 *
 * Threads: poll runs on an HTTP thread; gone may run beside it and touches only what is constant after
 * the call was deferred, and one atomic flag. The engine knows the sessions, never the call: it wakes
 * the exchange through a waker that each session owns a reference of. */
#ifndef SERVICE_API_CALL_H
#define SERVICE_API_CALL_H

#include "service/api.h"
#include "service/api_reply.h"
#include "service/api_request.h"

enum { API_ID_BYTES = 40 };

/* One choice and how much of it has been sent. */
typedef struct api_choice {
    session *session;     /* NULL: nothing to run (max_tokens 0 and no log-probabilities) */
    uint32_t prompt;      /* index into the request's prompts */
    tool_reader tools;    /* of a chat with tools: what the text means */
    size_t content_bytes; /* of its content that were sent */
    bool has_started;     /* a piece was sent: prompt and echo are out */
    bool has_finished;    /* the piece with finish_reason was sent */
    size_t text_bytes;    /* of the session's text that were sent */
    uint32_t n_tokens;    /* of the session's tokens whose scores or ids were sent */
    size_t mark_bytes;    /* a place in the session's text ... */
    size_t
        mark_chars; /* ... and its distance from the beginning of the choice's text (with echo), in characters */
} api_choice;

/* In what the two routes differ. */
typedef struct api_endpoint {
    const char *route;        /* for the log */
    const char *id_prefix;    /* "cmpl-" */
    const char *prompt_field; /* that errors about the prompt name */
    bool (*parse)(const api_limits *limits, const char *body, size_t body_bytes,
                  completion_request *out, api_error *error);
    const api_shape *shape;
} api_endpoint;

typedef struct api_call {
    api_context *api;
    const api_endpoint *endpoint;
    completion_request request;
    api_choice *choices; /* [n_choices], prompt-major: index = prompt * n + k */
    size_t n_choices;
    char id[API_ID_BYTES];
    char request_id[API_REQUEST_ID_BYTES]; /* X-Request-Id of the reply */
    int64_t created;
    uint64_t arrival_ns;
    uint64_t deadline_ns; /* 0: none */
    bool has_begun;       /* stream: the head is out */
    bool is_over;         /* the reply is complete; later polls do nothing */
    unsigned status;      /* what was answered, for the log */
    const char *outcome;
    char peer[64];
    _Atomic(bool) is_gone;
} api_call;

/* ---- pieces (api_choice.c) ------------------------------------------------------------------------- */

/* Fills *piece with what is new since the last piece and notes it as sent. The piece borrows from the
 * session and the request, but for `scores`, which the caller frees with api_piece_deinit.
 * False without memory. */
bool api_choice_take_piece(api_call *call, size_t choice, const session_progress *progress,
                           api_piece *piece) MUST_CHECK;
void api_piece_deinit(api_piece *piece);

/* What the session has published; a choice without a session is finished. */
session_progress api_choice_read(const api_choice *choice);
/* True if a chunk is due: text, or tokens whose scores or ids were asked for, or the end. */
bool api_choice_has_news(const api_call *call, const api_choice *choice,
                         const session_progress *progress);

/* ---- a chat's prompt (api_chat.c) ------------------------------------------------------------------------ */

/* The text that the server's template makes of a chat, in a heap string. False, with the reason, also where
 * the model has no template. */
bool api_chat_render(const api_context *api, const api_chat *chat, api_prompt *out,
                     api_error *error) MUST_CHECK;

/* ---- the call -------------------------------------------------------------------------------------- */

/* Builds a call from a complete request; NULL leaves the reason in `error`. Nothing runs yet. */
api_call *api_call_open(api_context *api, const api_endpoint *endpoint, http_exchange *ex,
                        api_error *error);
/* Hands all sessions to the engine. */
bool api_call_submit(api_call *call, api_error *error);
void api_call_close(api_call *call); /* cancels what still runs; NULL is fine */

/* http_deferral */
void api_call_poll(void *user, http_exchange *ex);
void api_call_gone(void *user);
void api_call_done(void *user);

#endif
