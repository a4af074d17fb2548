/* Calls as objects {"name": ..., "arguments": {...}}, and lists of them: what most families write. */
#include "service/tools/tool_parts.h"

#include "base/check.h"

#include <stdlib.h>
#include <string.h>

enum { OBJECT_BEGIN, OBJECT_KEY, OBJECT_VALUE, OBJECT_NEXT };
enum { KEY_OTHER, KEY_NAME, KEY_ARGUMENTS };

void tool_object_init(tool_object *o)
{
    *o = (tool_object){.phase = OBJECT_BEGIN};
}

void tool_object_deinit(tool_object *o)
{
    free(o->name);
    free(o->own);
    tool_object_init(o);
}

static bool is_key(const char *text, size_t begin, size_t end, const char *key)
{
    return end - begin == strlen(key) && memcmp(text + begin, key, end - begin) == 0;
}

/* "key" : and the first byte of its value. */
static tool_step read_key(tool_reader *r, const char *text, size_t n_bytes)
{
    tool_object *o = &r->object;
    size_t at = tool_skip_space(text, n_bytes, r->at);
    if (at == n_bytes) return TOOL_MORE;
    if (text[at] == '}' && o->is_first) {
        o->phase = OBJECT_NEXT;
        return TOOL_GOES_ON;
    }
    if (text[at] != '"') return TOOL_BROKEN;
    const size_t begin = at + 1;
    tool_span span = {0};
    const size_t n_most = min_size(n_bytes, at + TOOL_NAME_BYTES_MAX);
    tool_step step = tool_span_read(&span, text, n_most, &at);
    if (step != TOOL_DONE)
        return n_most < n_bytes || at - begin >= TOOL_NAME_BYTES_MAX - 1 ? TOOL_BROKEN : TOOL_MORE;
    const size_t end = at - 1;
    at = tool_skip_space(text, n_bytes, at);
    if (at == n_bytes) return TOOL_MORE;
    if (text[at] != ':') return TOOL_BROKEN;
    at = tool_skip_space(text, n_bytes, at + 1);
    if (at == n_bytes) return TOOL_MORE;
    const bool is_args =
        is_key(text, begin, end, "arguments") || is_key(text, begin, end, "parameters");
    o->key = is_key(text, begin, end, "name") ? KEY_NAME : is_args ? KEY_ARGUMENTS : KEY_OTHER;
    if (o->key == KEY_NAME && (o->name != NULL || o->is_called)) return TOOL_BROKEN;
    if (o->key == KEY_ARGUMENTS && o->has_arguments) return TOOL_BROKEN;
    o->begin = at;
    o->span = (tool_span){0};
    o->phase = OBJECT_VALUE;
    o->is_first = false;
    r->at = at;
    return TOOL_GOES_ON;
}

/* The call counts from here on. */
static tool_step open_call(tool_reader *r, size_t at)
{
    tool_object *o = &r->object;
    char *name = o->name;
    o->name = NULL;
    o->is_called = true;
    return tool_call_open(r, name, o->name_bytes, at) != NULL ? TOOL_GOES_ON : TOOL_NO_MEMORY;
}

static tool_step close_call(tool_reader *r)
{
    tool_object *o = &r->object;
    const tool_step step = open_call(r, o->args_begin);
    if (step != TOOL_GOES_ON) return step;
    tool_call *call = &r->calls[r->n_calls - 1];
    call->end = o->args_end;
    call->own = o->own;
    call->own_bytes = o->own_bytes;
    o->own = NULL;
    r->kept = r->at;
    return TOOL_GOES_ON;
}

static tool_step take_name(tool_reader *r, const char *text)
{
    tool_object *o = &r->object;
    if (text[o->begin] != '"') return TOOL_BROKEN;
    const tool_step step =
        tool_string_decode(text + o->begin, o->end - o->begin, &o->name, &o->name_bytes);
    if (step != TOOL_DONE) return step;
    return o->name_bytes > 0 ? TOOL_GOES_ON : TOOL_BROKEN;
}

static tool_step take_arguments(tool_reader *r, const char *text)
{
    tool_object *o = &r->object;
    o->has_arguments = true;
    o->args_begin = o->begin;
    o->args_end = o->end;
    if (text[o->begin] == '{') return TOOL_GOES_ON;
    if (is_key(text, o->begin, o->end, "null")) {
        o->has_arguments = false;
        return TOOL_GOES_ON;
    }
    if (text[o->begin] != '"') return TOOL_BROKEN;
    const tool_step step =
        tool_string_decode(text + o->begin, o->end - o->begin, &o->own, &o->own_bytes);
    return step == TOOL_DONE ? TOOL_GOES_ON : step;
}

static tool_step read_value(tool_reader *r, const char *text, size_t n_bytes)
{
    tool_object *o = &r->object;
    const bool is_streamed =
        o->key == KEY_ARGUMENTS && text[o->begin] == '{' && (o->name != NULL || o->is_called);
    if (is_streamed && !o->is_called && open_call(r, o->begin) != TOOL_GOES_ON)
        return TOOL_NO_MEMORY;
    tool_step step = is_streamed ? tool_call_read(r, text, n_bytes)
                                 : tool_span_read(&o->span, text, n_bytes, &r->at);
    if (step != TOOL_DONE) return step;
    o->end = r->at;
    o->phase = OBJECT_NEXT;
    step = TOOL_GOES_ON;
    if (o->key == KEY_NAME) step = take_name(r, text);
    if (o->key == KEY_ARGUMENTS && !is_streamed) step = take_arguments(r, text);
    if (is_streamed) o->has_arguments = true;
    if (step != TOOL_GOES_ON || o->is_called || o->name == NULL || !o->has_arguments) return step;
    return close_call(r);
}

/* Of a call without arguments. */
static tool_step give_none(tool_reader *r)
{
    tool_object *o = &r->object;
    if (o->name == NULL) return TOOL_BROKEN;
    o->own = tool_copy("{}", 2);
    o->own_bytes = 2;
    return o->own != NULL ? close_call(r) : TOOL_NO_MEMORY;
}

static tool_step read_next(tool_reader *r, const char *text, size_t n_bytes)
{
    tool_object *o = &r->object;
    const size_t at = tool_skip_space(text, n_bytes, r->at);
    if (at == n_bytes) return TOOL_MORE;
    if (text[at] != ',' && text[at] != '}') return TOOL_BROKEN;
    if (text[at] == '}' && !o->is_called) {
        const tool_step step = give_none(r);
        if (step != TOOL_GOES_ON) return step;
    }
    r->at = at + 1;
    if (text[at] == '}') {
        r->kept = r->at;
        tool_object_deinit(o);
        return TOOL_DONE;
    }
    o->phase = OBJECT_KEY;
    return TOOL_GOES_ON;
}

tool_step tool_object_read(tool_reader *r, const char *text, size_t n_bytes)
{
    tool_object *o = &r->object;
    tool_step step = TOOL_GOES_ON;
    while (step == TOOL_GOES_ON) {
        switch (o->phase) {
        case OBJECT_BEGIN:
            step = tool_expect(r, text, n_bytes, "{");
            if (step != TOOL_DONE) break;
            step = TOOL_GOES_ON;
            o->phase = OBJECT_KEY;
            o->is_first = true;
            break;
        case OBJECT_KEY: step = read_key(r, text, n_bytes); break;
        case OBJECT_VALUE: step = read_value(r, text, n_bytes); break;
        default: step = read_next(r, text, n_bytes); break;
        }
    }
    return step;
}

tool_step tool_list_read(tool_reader *r, const char *text, size_t n_bytes)
{
    tool_step step;
    switch (r->phase) {
    case TOOL_LIST_BEGIN:
        step = tool_expect(r, text, n_bytes, "[");
        if (step != TOOL_DONE) return step;
        r->phase = TOOL_LIST_OBJECT; /* an empty list calls nothing, and is content */
        return TOOL_GOES_ON;
    case TOOL_LIST_OBJECT:
        step = tool_object_read(r, text, n_bytes);
        if (step != TOOL_DONE) return step;
        r->phase = TOOL_LIST_NEXT;
        return TOOL_GOES_ON;
    default:
        step = tool_expect(r, text, n_bytes, ",");
        if (step == TOOL_DONE) r->phase = TOOL_LIST_OBJECT;
        if (step == TOOL_DONE) return TOOL_GOES_ON;
        return step == TOOL_MORE ? TOOL_MORE : tool_expect(r, text, n_bytes, "]");
    }
}
