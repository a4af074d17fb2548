/* service/session_internal.h - the struct behind session.h, shared by session.c and session_output.c.
 *
 *   history  [ prompt .............. | output tokens ................. ]
 *   text     [ shown ........ | held back | room ...................... ]
 *                              ^n_text_bytes (published)   ^n_text
 *
 * Everything the reader may look at lies below a published counter and is never written again. */
#ifndef SERVICE_SESSION_INTERNAL_H
#define SERVICE_SESSION_INTERNAL_H

#include "base/arena.h"
#include "service/session_text.h"
#include "service/session_write.h"

/* Log-probabilities, one row per scored position: those of the prompt first, if wanted. */
typedef struct session_rows {
    float *logprob;     /* [n_rows] */
    uint8_t *n_top;     /* [n_rows] */
    sampler_entry *top; /* [n_rows][n_logprobs] */
} session_rows;

struct session {
    _Atomic uint32_t n_references;
    atomic_bool is_cancelled;

    /* constant after open */
    session_spec spec; /* pointers lead into `copies`, the prompt's into `history` */
    arena copies;
    sampler_state *sampling;
    const uint32_t *banned; /* [n_banned]: EOS, then stop ids */
    uint32_t n_banned;

    /* output; the engine writes, see the picture */
    uint32_t *history; /* [n_prompt + max_tokens] */
    size_t *text_end;  /* [max_tokens]; end of each token's text, held bytes included */
    char *text;        /* [n_text_max] */
    session_rows rows; /* NULL members without log-probabilities */
    session_times times;
    session_stop_reason stop_reason;
    kv_usage kv;
    _Atomic uint32_t n_cached;

    /* the engine's own */
    tok_stream stream;
    stop_matcher *matchers; /* [spec.n_stops] */
    uint32_t n_output, n_scored;
    size_t n_text; /* bytes written, held ones included */
    size_t n_held;
    uint32_t n_shown; /* leading tokens whose text is not held back */

    /* published, in this order; read in the opposite one */
    _Alignas(64) _Atomic uint32_t n_tokens_out;
    _Atomic uint32_t n_scored_out;
    _Atomic size_t n_text_bytes_out;
    _Atomic uint32_t n_tokens_text_out;
    _Atomic uint32_t finish_out;
};

#endif
