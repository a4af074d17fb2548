/* service/session_write.h - the engine's side of a session: how its output grows.
 *
 * Calls come from the engine's thread alone (or a test's), one session at a time:
 *
 *   session_begin, { session_push_score }, { session_push, session_publish }, session_end
 *
 * Pushing changes nothing that the reader sees; session_publish and session_end make it visible with
 * release stores, so that a last token, its text and the finish arrive together. */
#ifndef SERVICE_SESSION_WRITE_H
#define SERVICE_SESSION_WRITE_H

#include "service/session.h"

/* First schedule: `n_cached` tokens of the prompt came from the prefix cache. */
void session_begin(session *s, uint64_t now_ns, uint32_t n_cached);

/* The raw log-probability of the prompt's token at `position` >= 1; positions come in order. */
void session_push_score(session *s, uint32_t position, const sampler_result *result);

/* Appends one output token (result->token) by the text rules. FINISH_NONE: goes on; otherwise the
 * session is over and session_end wants this value. */
session_finish session_push(session *s, const sampler_result *result, uint64_t now_ns);

/* Makes everything pushed visible and, if there is anything new, calls on_progress. */
void session_publish(session *s);

/* What its sequence used, just before it is closed. */
void session_set_kv_usage(session *s, const kv_usage *usage);

/* The last call: lets out the text that was held back, unless a stop string cut it, publishes all with
 * `finish` and calls on_progress. Only the reference is left. */
void session_end(session *s, session_finish finish, uint64_t now_ns);

/* Prompt, then output: what must be in the KV cache, in order. [n_prompt + session_n_output] */
const uint32_t *session_history(const session *s);
uint32_t session_n_output(const session *s);
uint32_t session_n_scored(const session *s); /* prompt positions pushed, the first one included */

/* Tokens that may not be drawn now: EOS and stop ids until min_tokens is reached. */
const uint32_t *session_banned(const session *s, uint32_t *n_banned);

/* Penalties' memory of prompt and output; kept up to date by session_push. */
const sampler_state *session_sampling(const session *s);

#endif
