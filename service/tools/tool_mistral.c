/* [TOOL_CALLS][{"name": ..., "arguments": {...}}, ...], and since version 11 of Mistral's tokenizers
 * [TOOL_CALLS]NAME{...} for each call, in between [CALL_ID]ID and [ARGS] of some: Mistral, Mixtral. */
#include "service/tools/tool_parts.h"

enum { AT_BEGIN = TOOL_LIST_PHASES, AT_ARGUMENTS };

static bool is_name(char c)
{
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' ||
           c == '-' || c == '.';
}

static size_t skip_name(const char *text, size_t n_bytes, size_t at)
{
    while (at < n_bytes && is_name(text[at]))
        at++;
    return at;
}

/* [CALL_ID]ID[ARGS], [ARGS], or nothing, then the brace, to which *at moves. */
static tool_step find_brace(const char *text, size_t n_bytes, size_t *at)
{
    static const char call_id[] = "[CALL_ID]", args[] = "[ARGS]";
    tool_step step = tool_match(text, n_bytes, *at, call_id);
    if (step == TOOL_DONE) *at = skip_name(text, n_bytes, *at + sizeof call_id - 1);
    if (*at == n_bytes) return TOOL_MORE;
    if (text[*at] == '[') {
        const tool_step other = tool_match(text, n_bytes, *at, args);
        if (other == TOOL_BROKEN && step == TOOL_MORE) return TOOL_MORE;
        if (other != TOOL_DONE) return other;
        *at += sizeof args - 1;
    }
    *at = tool_skip_space(text, n_bytes, *at);
    if (*at == n_bytes) return TOOL_MORE;
    return text[*at] == '{' ? TOOL_DONE : TOOL_BROKEN;
}

static tool_step read_name(tool_reader *r, const char *text, size_t n_bytes)
{
    const size_t begin = tool_skip_space(text, n_bytes, r->at);
    if (begin == n_bytes) return TOOL_MORE;
    if (text[begin] == '[') {
        r->phase = TOOL_LIST_BEGIN;
        return TOOL_GOES_ON;
    }
    const size_t end = skip_name(text, n_bytes, begin);
    if (end - begin > TOOL_NAME_BYTES_MAX) return TOOL_BROKEN;
    if (end == n_bytes) return TOOL_MORE;
    if (end == begin) return TOOL_BROKEN;
    size_t at = end;
    const tool_step step = find_brace(text, n_bytes, &at);
    if (step != TOOL_DONE) return step;
    char *name = tool_copy(text + begin, end - begin);
    if (tool_call_open(r, name, end - begin, at) == NULL) return TOOL_NO_MEMORY;
    r->at = at;
    r->phase = AT_ARGUMENTS;
    return TOOL_GOES_ON;
}

static tool_step step(tool_reader *r, const char *text, size_t n_bytes)
{
    if (r->phase == AT_ARGUMENTS) return tool_call_read(r, text, n_bytes);
    if (r->phase == AT_BEGIN) return read_name(r, text, n_bytes);
    return tool_list_read(r, text, n_bytes);
}

static bool may_end(const tool_reader *r)
{
    return r->phase == TOOL_LIST_NEXT;
}

static const char *const markers[] = {"[TOOL_CALLS]", NULL};
const tool_parser tool_parser_mistral = {.name = "mistral",
                                         .markers = markers,
                                         .first_phase = AT_BEGIN,
                                         .shows_special = true,
                                         .short_ids = true,
                                         .step = step,
                                         .may_end = may_end};
