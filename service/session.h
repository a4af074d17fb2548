/* service/session.h - the life of one sequence: one choice of one prompt of one request.
 *
 * A session is made by an HTTP thread (or the command line), completely validated, then submitted to
 * the engine, which alone advances it. Its output is an append-only log with one writer (the engine)
 * and one reader (the HTTP side): arrays of fixed capacity, reserved when it is made, and counters that are
 * published with release stores. Nothing is locked and nothing is allocated per token.
 *
 *   NEW -> WAITING (queue) -> RUNNING <-> PREEMPTED -> FINISHED
 *
 * Text rules, applied by the engine as tokens arrive: bytes are decoded by a tok_stream, so a
 * character is never broken; the longest suffix that is a proper prefix of a stop string is held back;
 * on a stop string the text is cut before it (after it with include_stop); what is held
 * comes out when the session ends in any other way.
 *
 * Ownership: counted references; the engine and the maker hold one each. */
#ifndef SERVICE_SESSION_H
#define SERVICE_SESSION_H

#include "base/error.h"
#include "kvcache/kv_methods.h"
#include "kvcache/kv_stats.h"
#include "model/sampler.h"
#include "model/tokenizer.h"

#include <stdatomic.h>

enum { SESSION_STOPS_MAX = 16, SESSION_STOP_BYTES_MAX = 1024, SESSION_STOP_IDS_MAX = 64 };

typedef enum session_finish {
    FINISH_NONE,   /* still going */
    FINISH_STOP,   /* EOS, stop string or stop id */
    FINISH_LENGTH, /* max_tokens or the end of the context */
    FINISH_ABORT,  /* cancelled: client gone, deadline, shutdown */
    FINISH_ERROR,  /* logits not finite, out of memory */
    FINISH_COUNT
} session_finish;
const char *
session_finish_name(session_finish finish); /* "stop", "length", "abort", "error"; "" for none */

/* What is wanted. Copied deeply by session_open. */
typedef struct session_spec {
    const uint32_t *prompt; /* [n_prompt], n_prompt >= 1 */
    uint32_t n_prompt;
    uint32_t max_tokens; /* 0 only with score_prompt */
    uint32_t min_tokens;
    sampler_params sampling;  /* bias and allowed are copied too */
    size_t n_allowed_words;   /* words of sampling.allowed, a bit per token; 0 without it */
    const char *const *stops; /* [n_stops], valid UTF-8, not empty */
    const size_t *stop_bytes;
    uint32_t n_stops;
    const uint32_t *stop_ids; /* stop_token_ids of the request */
    uint32_t n_stop_ids;
    const uint32_t *eos; /* of the model; ignored with ignore_eos */
    uint32_t n_eos;
    bool ignore_eos;
    bool include_stop; /* include_stop_str_in_output */
    bool skip_special; /* special tokens give no text */
    bool hide_eos;     /* nor does the end token, whatever the others do */
    bool score_prompt; /* echo with logprobs: raw log-probabilities of the prompt's tokens */
    const char *salt;  /* cache_salt, "" if none */
    size_t salt_bytes;
    const kv_methods *methods;      /* that the cache has accepted; NULL: the cache's own */
    bool reports_kv;                /* session_get_kv_usage will be asked */
    uint64_t arrival_ns;            /* clock_mono_ns when the request came */
    uint64_t deadline_ns;           /* 0: none; cancelled when it has passed */
    uint64_t group;                 /* sessions of one request share it: siblings with one prompt */
    void (*on_progress)(void *ctx); /* engine thread, after output was published; must not block */
    void (*on_release)(void *ctx);  /* when the last reference goes */
    void *progress_ctx;
} session_spec;

typedef struct session session;

err_t session_open(const tokenizer *t, const session_spec *spec,
                   session **out) MUST_CHECK; /* one reference */
session *session_retain(session *s);
void session_release(session *s); /* NULL is fine */
void session_cancel(
    session *s); /* any thread; the engine frees its pages within one step. Idempotent */
bool session_is_cancelled(const session *s);

/* ---- output, read side: any one thread ------------------------------------------------------------- */

typedef struct session_progress {
    uint32_t
        n_tokens; /* output tokens, EOS and tokens behind a stop string included: usage counts these */
    uint32_t
        n_prompt_scored; /* prompt positions [0, n) are scored (0 has no value); n_prompt in the end */
    size_t n_text_bytes; /* text ready to be sent: whole characters, never taken back */
    uint32_t
        n_tokens_text; /* tokens whose text lies wholly within n_text_bytes, or that give none */
    session_finish finish; /* when set, everything else is final */
} session_progress;
session_progress session_read(const session *s);

const char *session_text(const session *s);       /* [n_text_bytes] so far */
const uint32_t *session_tokens(const session *s); /* [n_tokens] */
/* End of token i's text in the session's text, in bytes (cut to the final text when a stop string cut it). */
size_t session_token_text_end(const session *s, uint32_t i);
/* Log-probabilities; only with sampling.n_logprobs >= 0. `position` counts output tokens. */
typedef struct session_logprob {
    uint32_t token;
    float logprob;
    const sampler_entry *top; /* [n_top] */
    uint32_t n_top;
} session_logprob;
session_logprob session_output_logprob(const session *s, uint32_t position);
session_logprob session_prompt_logprob(const session *s,
                                       uint32_t position); /* position >= 1, score_prompt */

typedef struct session_stop_reason { /* valid once finished with FINISH_STOP */
    bool is_string, is_token;        /* neither: EOS */
    uint32_t stop;                   /* index into stops */
    uint32_t token;
} session_stop_reason;
session_stop_reason session_get_stop_reason(const session *s);

typedef struct session_times { /* clock_mono_ns; 0 where it did not happen */
    uint64_t arrival_ns, scheduled_ns, first_token_ns, last_token_ns, finish_ns;
} session_times;
session_times session_get_times(const session *s); /* valid once finished */
kv_usage session_get_kv_usage(const session *s);   /* valid once finished, with reports_kv */
uint32_t session_cached_tokens(
    const session *s); /* prompt tokens taken from the prefix cache at first schedule */
const session_spec *session_get_spec(const session *s); /* the copy */

#endif
