/* service/session.c - see session.h: making, sharing and reading a session. Its output grows in
 * session_output.c.
 *
 * Room for the longest possible output is reserved at once, so that nothing is allocated per token. The large
 * arrays come from malloc and are not cleared: what a short answer never touches costs no memory. */
#include "service/session_internal.h"

#include "base/check.h"

#include <stdlib.h>
#include <string.h>

static const char *const FINISH_NAMES[FINISH_COUNT] = {"", "stop", "length", "abort", "error"};

const char *session_finish_name(session_finish finish)
{
    assert((unsigned)finish < FINISH_COUNT);
    return FINISH_NAMES[finish];
}

/* A copy of n elements in the arena; NULL while it only measures. */
static void *copy_into(arena *a, const void *from, size_t n, size_t each_bytes)
{
    void *to = arena_take(a, n, each_bytes);
    if (to != NULL && n > 0) memcpy(to, from, n * each_bytes);
    return to;
}

static void place_stops(session *s, const session_spec *from, arena *a)
{
    const char **stops = arena_take(a, from->n_stops, sizeof *stops);
    size_t *stop_bytes = copy_into(a, from->stop_bytes, from->n_stops, sizeof *stop_bytes);
    stop_matcher *matchers = arena_take(a, from->n_stops, sizeof *matchers);
    for (uint32_t i = 0; i < from->n_stops; i++) {
        const size_t n_bytes = from->stop_bytes[i];
        const char *stop = copy_into(a, from->stops[i], n_bytes, 1);
        uint16_t *border = arena_take(a, n_bytes + 1, sizeof *border);
        if (border == NULL) continue;
        stop_border_fill(stop, n_bytes, border);
        stops[i] = stop;
        matchers[i] = (stop_matcher){.stop = stop, .border = border, .n_bytes = (uint16_t)n_bytes};
    }
    s->spec.stops = stops;
    s->spec.stop_bytes = stop_bytes;
    s->matchers = matchers;
}

/* Everything that the caller's spec points to. Runs twice: measuring, then placing. */
static void place_copies(session *s, const session_spec *from, arena *a)
{
    const uint32_t n_eos = from->ignore_eos ? 0 : from->n_eos;
    s->n_banned = n_eos + from->n_stop_ids;
    uint32_t *banned = arena_take(a, s->n_banned, sizeof *banned);
    if (banned != NULL) {
        if (n_eos > 0) memcpy(banned, from->eos, n_eos * sizeof *banned);
        if (from->n_stop_ids > 0) {
            memcpy(banned + n_eos, from->stop_ids, from->n_stop_ids * sizeof *banned);
        }
        s->spec.stop_ids = banned + n_eos;
    }
    s->banned = banned;
    s->spec.eos = copy_into(a, from->eos, from->n_eos, sizeof *from->eos);
    s->spec.salt = copy_into(a, from->salt, from->salt_bytes, 1);
    const kv_methods *methods =
        copy_into(a, from->methods, from->methods != NULL ? 1 : 0, sizeof *methods);
    s->spec.methods = from->methods != NULL ? methods : NULL;
    s->spec.sampling.bias =
        copy_into(a, from->sampling.bias, from->sampling.n_bias, sizeof *from->sampling.bias);
    const uint64_t *allowed =
        copy_into(a, from->sampling.allowed, from->n_allowed_words, sizeof *from->sampling.allowed);
    s->spec.sampling.allowed = from->n_allowed_words > 0 ? allowed : NULL;
    place_stops(s, from, a);
}

static err_t copy_spec(session *s, const session_spec *from)
{
    arena measure;
    arena_init_measure(&measure);
    place_copies(s, from, &measure);
    TRY(measure.err);
    TRY(arena_init(&s->copies, measure.used_bytes));
    place_copies(s, from, &s->copies);
    return s->copies.err;
}

/* n x each bytes, not cleared; at least one byte, so that NULL means failure. */
static err_t reserve(size_t n, size_t each_bytes, void **out)
{
    size_t bytes;
    TRY(size_mul(n, each_bytes, &bytes));
    *out = malloc(max_size(bytes, 1));
    return *out == NULL ? ERR_NO_MEMORY : ERR_OK;
}

static err_t reserve_rows(session *s)
{
    if (s->spec.sampling.n_logprobs < 0) return ERR_OK;
    size_t n_rows = s->spec.max_tokens;
    if (s->spec.score_prompt) TRY(size_add(n_rows, s->spec.n_prompt, &n_rows));
    size_t n_entries;
    TRY(size_mul(n_rows, (size_t)s->spec.sampling.n_logprobs, &n_entries));
    TRY(reserve(n_rows, sizeof *s->rows.logprob, (void **)&s->rows.logprob));
    TRY(reserve(n_rows, sizeof *s->rows.n_top, (void **)&s->rows.n_top));
    return reserve(n_entries, sizeof *s->rows.top, (void **)&s->rows.top);
}

static err_t reserve_output(session *s, const tokenizer *t)
{
    size_t n_history, n_text_max;
    TRY(size_add(s->spec.n_prompt, s->spec.max_tokens, &n_history));
    TRY(reserve(n_history, sizeof *s->history, (void **)&s->history));
    TRY(reserve(s->spec.max_tokens, sizeof *s->text_end, (void **)&s->text_end));
    /* One push per token, and one more for what the stream lets out at the end. */
    TRY(size_add(s->spec.max_tokens, 1, &n_text_max));
    TRY(size_mul(n_text_max, tok_stream_bytes_max(t), &n_text_max));
    TRY(reserve(n_text_max, 1, (void **)&s->text));
    return reserve_rows(s);
}

static void assert_spec(const session_spec *spec)
{
    assert(spec->n_prompt >= 1);
    assert(spec->max_tokens >= 1 || spec->score_prompt);
    assert(spec->n_stops <= SESSION_STOPS_MAX);
    assert(spec->n_stop_ids <= SESSION_STOP_IDS_MAX);
    assert(spec->sampling.n_logprobs <= SAMPLER_LOGPROBS_MAX);
    assert(!spec->score_prompt || spec->sampling.n_logprobs >= 0);
    assert((spec->sampling.allowed == NULL) == (spec->n_allowed_words == 0));
    for (uint32_t i = 0; i < spec->n_stops; i++) {
        assert(spec->stop_bytes[i] >= 1);
        assert(spec->stop_bytes[i] <= SESSION_STOP_BYTES_MAX);
    }
}

static void session_free(session *s)
{
    if (s == NULL) return;
    sampler_state_close(s->sampling);
    arena_deinit(&s->copies);
    free(s->history);
    free(s->text_end);
    free(s->text);
    free(s->rows.logprob);
    free(s->rows.n_top);
    free(s->rows.top);
    free(s);
}

static err_t session_fill(session *s, const tokenizer *t, const session_spec *spec)
{
    s->spec = *spec;
    uint32_t n_seen; /* the sampler's table and positions count in 32 bits */
    if (__builtin_add_overflow(spec->n_prompt, spec->max_tokens, &n_seen)) return ERR_OVERFLOW;
    TRY(copy_spec(s, spec));
    TRY(reserve_output(s, t));
    memcpy(s->history, spec->prompt, spec->n_prompt * sizeof *spec->prompt);
    s->spec.prompt = s->history;
    TRY(sampler_state_open(&s->spec.sampling, n_seen, &s->sampling));
    sampler_note_prompt(s->sampling, s->history, spec->n_prompt);
    /* A completion goes on where its prompt ends, so its first word keeps its space. */
    tok_stream_init(&s->stream, t, !spec->skip_special, false);
    s->times.arrival_ns = spec->arrival_ns;
    return ERR_OK;
}

err_t session_open(const tokenizer *t, const session_spec *spec, session **out)
{
    *out = NULL;
    assert_spec(spec);
    session *s = aligned_alloc(_Alignof(session), sizeof *s);
    if (s == NULL) return ERR_NO_MEMORY;
    memset(s, 0, sizeof *s);
    atomic_init(&s->n_references, 1);
    const err_t err = session_fill(s, t, spec);
    if (err != ERR_OK) {
        session_free(s);
        return err;
    }
    *out = s;
    return ERR_OK;
}

session *session_retain(session *s)
{
    atomic_fetch_add_explicit(&s->n_references, 1, memory_order_relaxed);
    return s;
}

void session_release(session *s)
{
    if (s == NULL) return;
    const uint32_t before = atomic_fetch_sub_explicit(&s->n_references, 1, memory_order_acq_rel);
    assert(before >= 1);
    if (before > 1) return;
    void (*on_release)(void *ctx) = s->spec.on_release;
    void *ctx = s->spec.progress_ctx;
    session_free(s);
    if (on_release != NULL) on_release(ctx);
}

void session_cancel(session *s)
{
    atomic_store_explicit(&s->is_cancelled, true, memory_order_release);
}

bool session_is_cancelled(const session *s)
{
    return atomic_load_explicit(&s->is_cancelled, memory_order_acquire);
}

/* ---- read side ---------------------------------------------------------------------------------- */

/* The opposite order of the writer's stores: a counter that is seen implies those it rests on. */
session_progress session_read(const session *s)
{
    session_progress p;
    p.finish = (session_finish)atomic_load_explicit(&s->finish_out, memory_order_acquire);
    p.n_tokens_text = atomic_load_explicit(&s->n_tokens_text_out, memory_order_acquire);
    p.n_text_bytes = atomic_load_explicit(&s->n_text_bytes_out, memory_order_acquire);
    p.n_prompt_scored = atomic_load_explicit(&s->n_scored_out, memory_order_acquire);
    p.n_tokens = atomic_load_explicit(&s->n_tokens_out, memory_order_acquire);
    return p;
}

const char *session_text(const session *s)
{
    return s->text;
}

const uint32_t *session_tokens(const session *s)
{
    return s->history + s->spec.n_prompt;
}

size_t session_token_text_end(const session *s, uint32_t i)
{
    const session_progress p = session_read(s);
    assert(i < p.n_tokens);
    /* The flush at the end belongs to the last token, and a stop string may have cut its text. */
    if (p.finish != FINISH_NONE && i == p.n_tokens - 1) return p.n_text_bytes;
    return min_size(s->text_end[i], p.n_text_bytes);
}

static session_logprob row_logprob(const session *s, size_t row, uint32_t token)
{
    const size_t n_logprobs = (size_t)s->spec.sampling.n_logprobs;
    return (session_logprob){.token = token,
                             .logprob = s->rows.logprob[row],
                             .top = s->rows.top + row * n_logprobs,
                             .n_top = s->rows.n_top[row]};
}

session_logprob session_output_logprob(const session *s, uint32_t position)
{
    assert(s->spec.sampling.n_logprobs >= 0);
    assert(position < atomic_load_explicit(&s->n_tokens_out, memory_order_acquire));
    const size_t first = s->spec.score_prompt ? s->spec.n_prompt : 0;
    return row_logprob(s, first + position, session_tokens(s)[position]);
}

session_logprob session_prompt_logprob(const session *s, uint32_t position)
{
    assert(s->spec.score_prompt);
    assert(position >= 1);
    assert(position < atomic_load_explicit(&s->n_scored_out, memory_order_acquire));
    return row_logprob(s, position, s->history[position]);
}

session_stop_reason session_get_stop_reason(const session *s)
{
    return s->stop_reason;
}

session_times session_get_times(const session *s)
{
    return s->times;
}

kv_usage session_get_kv_usage(const session *s)
{
    assert(s->spec.reports_kv);
    return s->kv;
}

uint32_t session_cached_tokens(const session *s)
{
    return atomic_load_explicit(&s->n_cached, memory_order_relaxed);
}

const session_spec *session_get_spec(const session *s)
{
    return &s->spec;
}
