/* service/session_output.c - see session_write.h: how the output of a session grows.
 *
 * A token's bytes go through the tok_stream (whole characters only) into the text buffer, then through
 * the stop matchers, which say how much of the end must be held back or where the text is cut. */
#include "service/session_internal.h"

#include "base/check.h"

#include <string.h>

void session_begin(session *s, uint64_t now_ns, uint32_t n_cached)
{
    s->times.scheduled_ns = now_ns;
    atomic_store_explicit(&s->n_cached, n_cached, memory_order_relaxed);
    if (s->spec.score_prompt) s->n_scored = 1; /* nothing comes before the first token */
}

void session_set_kv_usage(session *s, const kv_usage *usage)
{
    s->kv = *usage;
}

static void store_row(session *s, size_t row, const sampler_result *result)
{
    const size_t n_logprobs = (size_t)s->spec.sampling.n_logprobs;
    const size_t n_top = min_size(result->n_top, n_logprobs);
    s->rows.logprob[row] = result->logprob;
    s->rows.n_top[row] = (uint8_t)n_top;
    memcpy(s->rows.top + row * n_logprobs, result->top, n_top * sizeof *result->top);
}

void session_push_score(session *s, uint32_t position, const sampler_result *result)
{
    assert(s->spec.score_prompt);
    assert(position >= 1);
    assert(position < s->spec.n_prompt);
    assert(position == s->n_scored);
    store_row(s, position, result);
    s->n_scored = position + 1;
}

/* Takes in `n_new` bytes that lie behind the text so far; true when a stop string ends it. */
static bool take_text(session *s, size_t n_new, bool may_match)
{
    const stop_scan scan =
        stop_matchers_feed(s->matchers, s->spec.n_stops, s->text + s->n_text, n_new, may_match);
    s->n_text += scan.n_scanned;
    s->n_held = s->spec.include_stop ? 0 : scan.n_held;
    if (!scan.is_found) return false;
    if (!s->spec.include_stop) s->n_text -= s->spec.stop_bytes[scan.stop];
    s->stop_reason = (session_stop_reason){.is_string = true, .stop = scan.stop};
    return true;
}

static bool contains(const uint32_t *ids, size_t n_ids, uint32_t id)
{
    for (size_t i = 0; i < n_ids; i++) {
        if (ids[i] == id) return true;
    }
    return false;
}

/* Leading tokens whose text lies before what is held back. */
static void advance_shown(session *s)
{
    while (s->n_shown < s->n_output && s->text_end[s->n_shown] <= s->n_text - s->n_held)
        s->n_shown++;
}

static void append_token(session *s, const sampler_result *result, uint64_t now_ns)
{
    const uint32_t i = s->n_output++;
    s->history[s->spec.n_prompt + i] = result->token;
    if (s->spec.sampling.n_logprobs >= 0) {
        store_row(s, (s->spec.score_prompt ? s->spec.n_prompt : 0) + (size_t)i, result);
    }
    sampler_note_output(s->sampling, result->token);
    if (i == 0) s->times.first_token_ns = now_ns;
    s->times.last_token_ns = now_ns;
}

session_finish session_push(session *s, const sampler_result *result, uint64_t now_ns)
{
    assert(s->n_output < s->spec.max_tokens);
    const uint32_t token = result->token;
    append_token(s, result, now_ns);
    const bool may_stop = s->n_output > s->spec.min_tokens;
    const bool is_eos = !s->spec.ignore_eos && contains(s->spec.eos, s->spec.n_eos, token);

    size_t n_new = 0;
    if (!(is_eos && (s->spec.skip_special || s->spec.hide_eos))) {
        n_new = tok_stream_push(&s->stream, token, s->text + s->n_text);
    }
    s->text_end[s->n_output - 1] = s->n_text + n_new;
    const bool is_cut = take_text(s, n_new, may_stop);
    advance_shown(s);
    if (is_cut) return FINISH_STOP;
    if (is_eos) return FINISH_STOP;
    if (contains(s->spec.stop_ids, s->spec.n_stop_ids, token)) {
        s->stop_reason = (session_stop_reason){.is_token = true, .token = token};
        return FINISH_STOP;
    }
    return s->n_output == s->spec.max_tokens ? FINISH_LENGTH : FINISH_NONE;
}

/* Counters that rest on others come later; session_read loads them in the opposite order. */
static void publish_counters(session *s)
{
    atomic_store_explicit(&s->n_tokens_out, s->n_output, memory_order_release);
    atomic_store_explicit(&s->n_scored_out, s->n_scored, memory_order_release);
    atomic_store_explicit(&s->n_text_bytes_out, s->n_text - s->n_held, memory_order_release);
    atomic_store_explicit(&s->n_tokens_text_out, s->n_shown, memory_order_release);
}

static void notify(const session *s)
{
    if (s->spec.on_progress != NULL) s->spec.on_progress(s->spec.progress_ctx);
}

void session_publish(session *s)
{
    const uint32_t n_seen = atomic_load_explicit(&s->n_tokens_out, memory_order_relaxed);
    const uint32_t n_scored = atomic_load_explicit(&s->n_scored_out, memory_order_relaxed);
    if (s->n_output == n_seen && s->n_scored == n_scored) return; /* a chunk of a prompt */
    publish_counters(s);
    notify(s);
}

/* What the stream and the matchers still hold. The flushed bytes (a broken character as U+FFFD) may
 * themselves complete a stop string. */
static session_finish flush_text(session *s, session_finish finish)
{
    const size_t n_new = tok_stream_end(&s->stream, s->text + s->n_text);
    const bool is_natural = finish == FINISH_STOP || finish == FINISH_LENGTH;
    const bool is_cut = take_text(s, n_new, is_natural && s->n_output > s->spec.min_tokens);
    s->n_held = 0;
    return is_cut ? FINISH_STOP : finish;
}

void session_end(session *s, session_finish finish, uint64_t now_ns)
{
    assert(finish != FINISH_NONE);
    assert(atomic_load_explicit(&s->finish_out, memory_order_relaxed) == FINISH_NONE);
    if (!s->stop_reason.is_string) finish = flush_text(s, finish);
    s->n_shown = s->n_output;
    s->times.finish_ns = now_ns;
    publish_counters(s);
    atomic_store_explicit(&s->finish_out, (uint32_t)finish, memory_order_release);
    notify(s);
}

const uint32_t *session_history(const session *s)
{
    return s->history;
}

uint32_t session_n_output(const session *s)
{
    return s->n_output;
}

uint32_t session_n_scored(const session *s)
{
    return s->n_scored;
}

const uint32_t *session_banned(const session *s, uint32_t *n_banned)
{
    *n_banned = s->n_output < s->spec.min_tokens ? s->n_banned : 0;
    return s->banned;
}

const sampler_state *session_sampling(const session *s)
{
    return s->sampling;
}
