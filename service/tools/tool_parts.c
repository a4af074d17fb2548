/* Words, values of JSON and calls, as parsers put them together. See tool_parts.h. */
#include "service/tools/tool_parts.h"

#include "base/check.h"
#include "base/hash.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bool tool_is_space(char c)
{
    return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

size_t tool_skip_space(const char *text, size_t n_bytes, size_t at)
{
    while (at < n_bytes && tool_is_space(text[at]))
        at++;
    return at;
}

tool_step tool_match(const char *text, size_t n_bytes, size_t at, const char *literal)
{
    const size_t n_literal = strlen(literal), n = min_size(n_literal, n_bytes - at);
    if (n > 0 && memcmp(text + at, literal, n) != 0) return TOOL_BROKEN;
    return n == n_literal ? TOOL_DONE : TOOL_MORE;
}

tool_step tool_expect(tool_reader *reader, const char *text, size_t n_bytes, const char *literal)
{
    const size_t at = tool_skip_space(text, n_bytes, reader->at);
    const tool_step step = tool_match(text, n_bytes, at, literal);
    if (step == TOOL_DONE) reader->at = at + strlen(literal);
    return step;
}

char *tool_copy(const char *bytes, size_t n_bytes)
{
    char *copy = malloc(n_bytes + 1);
    if (copy == NULL) return NULL;
    memcpy(copy, bytes, n_bytes);
    copy[n_bytes] = '\0';
    return copy;
}

/* ---- values */

/* What may stand in JSON outside of strings, but for brackets and quotes. */
static bool is_plain(char c)
{
    return tool_is_space(c) || (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || c == 'E' ||
           c == '+' || c == '-' || c == '.' || c == ',' || c == ':';
}

/* True behind the closing quote. */
static bool read_in_string(tool_span *s, char c)
{
    if (s->is_escaped) {
        s->is_escaped = false;
    } else if (c == '\\') {
        s->is_escaped = true;
    } else if (c == '"') {
        s->in_string = false;
    }
    return !s->in_string;
}

static tool_step read_bracket(tool_span *s, char c)
{
    const bool is_brace = c == '{' || c == '}';
    if (c == '{' || c == '[') {
        if (s->depth == TOOL_DEPTH_MAX) return TOOL_BROKEN;
        s->braces = s->braces << 1 | is_brace;
        s->depth++;
        return TOOL_GOES_ON;
    }
    if (s->depth == 0 || (s->braces & 1) != is_brace) return TOOL_BROKEN;
    s->braces >>= 1;
    return --s->depth == 0 ? TOOL_DONE : TOOL_GOES_ON;
}

tool_step tool_span_read(tool_span *s, const char *text, size_t n_bytes, size_t *at)
{
    for (; *at < n_bytes; ++*at) {
        const char c = text[*at];
        if (s->in_string) {
            if (!read_in_string(s, c) || s->depth > 0) continue;
            ++*at;
            return TOOL_DONE;
        }
        if (s->is_scalar && (c == ',' || c == '}' || c == ']' || tool_is_space(c)))
            return TOOL_DONE;
        if (c == '"' && !s->is_scalar) {
            s->in_string = true;
        } else if (c == '{' || c == '[' || c == '}' || c == ']') {
            const tool_step step = s->is_scalar ? TOOL_BROKEN : read_bracket(s, c);
            if (step == TOOL_DONE) ++*at;
            if (step != TOOL_GOES_ON) return step;
        } else if (!is_plain(c) || (s->depth == 0 && (c == ',' || c == ':'))) {
            return TOOL_BROKEN;
        } else if (s->depth == 0) {
            s->is_scalar = true;
        }
    }
    return TOOL_MORE;
}

/* ---- calls */

static void make_id(const tool_parser *parser, char id[TOOL_ID_BYTES])
{
    static const char digits[] = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    enum { N_SHORT = 9, N_LONG = 24 };
    uint8_t random[N_LONG];
    const size_t n = parser->short_ids ? N_SHORT : N_LONG;
    char *out = id;
    hash_random_bytes(random, sizeof random);
    if (!parser->short_ids) out += snprintf(id, TOOL_ID_BYTES, "call_");
    for (size_t i = 0; i < n; i++)
        *out++ = digits[random[i] % (sizeof digits - 1)];
    *out = '\0';
}

tool_call *tool_call_open(tool_reader *reader, char *name, size_t name_bytes, size_t at)
{
    assert(name_bytes > 0);
    if (name == NULL) return NULL;
    if (reader->n_calls == reader->room) {
        const size_t room = reader->room * 2 + 4;
        tool_call *grown = realloc(reader->calls, room * sizeof *grown);
        if (grown == NULL) {
            free(name);
            return NULL;
        }
        reader->calls = grown;
        reader->room = room;
    }
    tool_call *call = &reader->calls[reader->n_calls++];
    *call = (tool_call){.name = name, .name_bytes = name_bytes, .begin = at, .end = at};
    make_id(reader->parser, call->id);
    reader->kept = at;
    return call;
}

tool_step tool_call_read(tool_reader *reader, const char *text, size_t n_bytes)
{
    assert(reader->n_calls > 0);
    tool_call *call = &reader->calls[reader->n_calls - 1];
    const tool_step step = tool_span_read(&reader->object.span, text, n_bytes, &reader->at);
    call->end = reader->at;
    reader->kept = reader->at;
    return step;
}
