/* service/api_choice.c - from a session's output to pieces of a reply. See api_call.h.
 *
 * text_offset counts characters from the beginning of the choice's text, so each choice carries a
 * mark: a byte position in the session's text and the characters before it. Marks only move forward,
 * which makes a stream's offsets cost the same in all as those of one document. */
#include "service/api_call.h"

#include "base/check.h"
#include "base/utf8.h"

#include <stdlib.h>
#include <string.h>

session_progress api_choice_read(const api_choice *choice)
{
    if (choice->session == NULL) return (session_progress){.finish = FINISH_LENGTH};
    return session_read(choice->session);
}

static bool wants_tokens(const completion_request *request)
{
    return request->sampling.n_logprobs >= 0 || request->return_ids;
}

bool api_choice_has_news(const api_call *call, const api_choice *choice,
                         const session_progress *progress)
{
    if (choice->has_finished) return false;
    if (progress->finish != FINISH_NONE) return true;
    if (progress->n_text_bytes > choice->text_bytes) return true;
    return wants_tokens(&call->request) && progress->n_tokens_text > choice->n_tokens;
}

/* Scores of the prompt's tokens, and where each begins in the text that they decode to. */
static bool score_prompt(const api_call *call, const api_choice *choice,
                         const session_progress *progress, api_token_score *scores)
{
    const api_prompt *prompt = &call->request.prompts[choice->prompt];
    const tokenizer *t = call->api->t;
    char *bytes = malloc(tok_stream_bytes_max(t));
    if (bytes == NULL) return false;
    tok_stream stream;
    tok_stream_init(&stream, t, !call->request.skip_special, true);
    size_t n_chars = 0, n_bytes = 0;
    for (uint32_t i = 0; i < prompt->n_ids; i++) {
        api_token_score *score = &scores[i];
        *score =
            (api_token_score){.token = prompt->ids[i], .is_unscored = true, .text_offset = n_chars};
        if (i > 0 && i < progress->n_prompt_scored) {
            const session_logprob known = session_prompt_logprob(choice->session, i);
            score->is_unscored = false;
            score->logprob = known.logprob;
            score->top = known.top;
            score->n_top = known.n_top;
        }
        const size_t n_new = tok_stream_push(&stream, prompt->ids[i], bytes);
        const tok_piece piece = tokenizer_piece(t, prompt->ids[i], true);
        score->drops_space = n_bytes == 0 && !piece.is_special && n_new + 1 == piece.n_bytes;
        n_bytes += n_new;
        n_chars += utf8_count(bytes, n_new);
    }
    free(bytes);
    return true;
}

/* Scores of output tokens [choice->n_tokens, n_tokens). */
static void score_output(api_choice *choice, uint32_t n_tokens, api_token_score *scores)
{
    const session *s = choice->session;
    const char *text = session_text(s);
    for (uint32_t i = choice->n_tokens; i < n_tokens; i++) {
        const session_logprob known = session_output_logprob(s, i);
        const size_t begin = i > 0 ? session_token_text_end(s, i - 1) : 0;
        if (begin > choice->mark_bytes) {
            choice->mark_chars += utf8_count(text + choice->mark_bytes, begin - choice->mark_bytes);
            choice->mark_bytes = begin;
        }
        *scores++ = (api_token_score){.token = known.token,
                                      .logprob = known.logprob,
                                      .top = known.top,
                                      .n_top = known.n_top,
                                      .text_offset = choice->mark_chars};
    }
}

static bool put_scores(const api_call *call, api_choice *choice, const session_progress *progress,
                       uint32_t n_tokens, api_piece *piece)
{
    const bool has_prompt = call->request.echo && !choice->has_started;
    const size_t n_prompt = has_prompt ? call->request.prompts[choice->prompt].n_ids : 0;
    piece->n_scores = n_prompt + (n_tokens - choice->n_tokens);
    api_token_score *scores = calloc(piece->n_scores + 1, sizeof *scores);
    if (scores == NULL) return false;
    piece->scores = scores;
    if (has_prompt && !score_prompt(call, choice, progress, scores)) return false;
    if (n_tokens > choice->n_tokens) score_output(choice, n_tokens, scores + n_prompt);
    return true;
}

static void put_finish(const api_choice *choice, session_finish finish, api_piece *piece)
{
    piece->stop_token = -1;
    if (finish == FINISH_NONE) return;
    piece->finish = session_finish_name(finish);
    if (finish != FINISH_STOP) return;
    const session_stop_reason reason = session_get_stop_reason(choice->session);
    const session_spec *spec = session_get_spec(choice->session);
    if (reason.is_token) piece->stop_token = reason.token;
    if (!reason.is_string) return;
    piece->stop_text = spec->stops[reason.stop];
    piece->stop_text_bytes = spec->stop_bytes[reason.stop];
}

static void put_prompt(const api_call *call, api_choice *choice, api_piece *piece)
{
    const api_prompt *prompt = &call->request.prompts[choice->prompt];
    if (call->request.chat.echo) {
        piece->echo = call->request.chat.last;
        piece->echo_bytes = call->request.chat.last_bytes;
    } else if (call->request.echo) {
        piece->echo = prompt->text;
        piece->echo_bytes = prompt->text_bytes;
        choice->mark_chars = utf8_count(prompt->text, prompt->text_bytes);
    }
    if (call->request.return_ids) {
        piece->prompt_ids = prompt->ids;
        piece->n_prompt_ids = prompt->n_ids;
    }
}

/* What is new of the calls, as api_call_delta; the first one only if there may be no others. */
static bool put_calls(const api_call *call, api_choice *choice, const char *text, api_piece *piece)
{
    tool_reader *tools = &choice->tools;
    const size_t n_calls =
        call->request.chat.one_call ? min_size(tools->n_calls, 1) : tools->n_calls;
    api_call_delta *deltas = calloc(n_calls + 1, sizeof *deltas);
    if (deltas == NULL) return false;
    piece->calls = deltas;
    for (size_t i = 0; i < n_calls; i++) {
        tool_call *of = &tools->calls[i];
        const text_view arguments = tool_arguments(of, text);
        if (of->is_told && arguments.n_bytes == of->n_told) continue;
        deltas[piece->n_calls++] =
            (api_call_delta){.index = i,
                             .id = of->is_told ? NULL : of->id,
                             .name = of->name,
                             .name_bytes = of->name_bytes,
                             .arguments = arguments.bytes + of->n_told,
                             .arguments_bytes = arguments.n_bytes - of->n_told};
        of->is_told = true;
        of->n_told = arguments.n_bytes;
    }
    return true;
}

/* Of a chat with tools the text is content and calls. */
static bool read_tools(const api_call *call, api_choice *choice, const session_progress *progress,
                       api_piece *piece)
{
    tool_reader *tools = &choice->tools;
    const bool is_end = progress->finish != FINISH_NONE;
    const char *text = choice->session != NULL ? session_text(choice->session) : "";
    if (tool_reader_read(tools, text, progress->n_text_bytes, is_end) != ERR_OK ||
        !put_calls(call, choice, text, piece)) {
        return false;
    }
    piece->text = "";
    piece->text_bytes = tools->content.n_bytes - choice->content_bytes;
    if (piece->text_bytes > 0) piece->text = tools->content.bytes + choice->content_bytes;
    choice->content_bytes = tools->content.n_bytes;
    return true;
}

bool api_choice_take_piece(api_call *call, size_t index, const session_progress *progress,
                           api_piece *piece)
{
    api_choice *choice = &call->choices[index];
    const bool is_end = progress->finish != FINISH_NONE;
    const uint32_t n_tokens = is_end ? progress->n_tokens : progress->n_tokens_text;
    assert(n_tokens >= choice->n_tokens);
    assert(progress->n_text_bytes >= choice->text_bytes);
    *piece = (api_piece){.index = (uint32_t)index,
                         .is_first = !choice->has_started,
                         .text = "",
                         .shows_ids = call->request.return_ids};
    if (!choice->has_started) put_prompt(call, choice, piece);
    if (progress->n_text_bytes > choice->text_bytes) {
        piece->text = session_text(choice->session) + choice->text_bytes;
        piece->text_bytes = progress->n_text_bytes - choice->text_bytes;
    }
    if (call->request.chat.tools != NULL && !read_tools(call, choice, progress, piece)) {
        api_piece_deinit(piece);
        return false;
    }
    if (call->request.sampling.n_logprobs >= 0 &&
        !put_scores(call, choice, progress, n_tokens, piece)) {
        api_piece_deinit(piece);
        return false;
    }
    if (call->request.return_ids && n_tokens > choice->n_tokens) {
        piece->token_ids = session_tokens(choice->session) + choice->n_tokens;
        piece->n_token_ids = n_tokens - choice->n_tokens;
    }
    put_finish(choice, progress->finish, piece);
    if (progress->finish == FINISH_STOP && choice->tools.n_calls > 0) piece->finish = "tool_calls";
    choice->has_started = true;
    choice->has_finished = is_end;
    choice->text_bytes = progress->n_text_bytes;
    choice->n_tokens = n_tokens;
    return true;
}

void api_piece_deinit(api_piece *piece)
{
    free((void *)(uintptr_t)piece->scores);
    free((void *)(uintptr_t)piece->calls);
    *piece = (api_piece){0};
}
