/* Content and markers; what is behind a marker is a parser's. See tool_reader.h. */
#include "service/tools/tool_parts.h"

#include "base/check.h"

#include <stdlib.h>
#include <string.h>

/* Behind a marker without a call: so much of a text is looked at again and again, at most. */
enum { UNCALLED_BYTES_MAX = 1 << 16 };

void tool_reader_init(tool_reader *r, const tool_parser *parser)
{
    *r = (tool_reader){.parser = parser};
}

void tool_reader_deinit(tool_reader *r)
{
    for (size_t i = 0; i < r->n_calls; i++) {
        free(r->calls[i].name);
        free(r->calls[i].own);
    }
    free(r->calls);
    free(r->content.bytes);
    tool_object_deinit(&r->object);
    *r = (tool_reader){0};
}

text_view tool_arguments(const tool_call *call, const char *text)
{
    if (call->own != NULL) return (text_view){call->own, call->own_bytes};
    return (text_view){text + call->begin, call->end - call->begin};
}

/* ---- content */

/* The first place of a marker, or of what may become one; n_bytes: there is none. *marker is NULL of the latter. */
static size_t find_marker(const tool_reader *r, const char *text, size_t n_bytes, bool is_end,
                          const char **marker)
{
    *marker = NULL;
    for (size_t at = r->at; at < n_bytes; at++) {
        for (const char *const *m = r->parser->markers; *m != NULL; m++) {
            if (text[at] != **m) continue;
            const tool_step step = tool_match(text, n_bytes, at, *m);
            if (step == TOOL_DONE) *marker = *m;
            if (step == TOOL_DONE || (step == TOOL_MORE && !is_end)) return at;
        }
    }
    return n_bytes;
}

/* White space before a marker, behind a call, and where more may come is not said yet. */
static err_t put_content(tool_reader *r, const char *text, size_t end, bool is_last)
{
    size_t to = end;
    while (to > r->at && tool_is_space(text[to - 1]))
        to--;
    const bool is_beside_call = to == r->at && r->n_calls > 0 && r->at == r->kept;
    if (is_last && !is_beside_call) to = end;
    TRY(text_buffer_append(&r->content, text + r->at, to - r->at));
    r->at = to;
    return ERR_OK;
}

static err_t read_content(tool_reader *r, const char *text, size_t n_bytes, bool is_end)
{
    const char *marker;
    const size_t end = find_marker(r, text, n_bytes, is_end, &marker);
    TRY(put_content(r, text, end, is_end && marker == NULL));
    if (marker == NULL) return ERR_OK;
    r->is_inside = true;
    r->phase = r->parser->first_phase;
    r->begin = r->at;
    r->n_before = r->n_calls;
    r->first = r->at = end + strlen(marker);
    tool_object_init(&r->object);
    return ERR_OK;
}

/* ---- calls */

/* What no call has is content: all from the marker on, or what lies behind the last call. */
static err_t give_back(tool_reader *r, const char *text)
{
    tool_object_deinit(&r->object);
    r->is_inside = false;
    if (r->n_calls > r->n_before) {
        r->at = r->kept;
        return ERR_OK;
    }
    r->at = r->first;
    return text_buffer_append(&r->content, text + r->begin, r->first - r->begin);
}

static tool_step step_inside(tool_reader *r, const char *text, size_t n_bytes, bool is_end)
{
    const bool is_called = r->n_calls > r->n_before;
    const size_t n_most = is_called ? n_bytes : min_size(n_bytes, r->first + UNCALLED_BYTES_MAX);
    const tool_step step = r->parser->step(r, text, n_most);
    if (step == TOOL_DONE && r->n_calls == r->n_before) return TOOL_BROKEN; /* an empty list */
    if (step != TOOL_MORE) return step;
    if (r->n_calls > r->n_before && n_most < n_bytes) return TOOL_GOES_ON; /* now there is one */
    if (n_most < n_bytes) return TOOL_BROKEN;
    if (!is_end) return TOOL_MORE;
    if (r->n_calls == r->n_before || !r->parser->may_end(r)) return TOOL_BROKEN;
    r->at = n_bytes;
    return TOOL_DONE;
}

err_t tool_reader_read(tool_reader *r, const char *text, size_t n_bytes, bool is_end)
{
    assert(n_bytes >= r->at);
    for (;;) {
        if (!r->is_inside) TRY(read_content(r, text, n_bytes, is_end));
        if (!r->is_inside) return ERR_OK;
        const tool_step step = step_inside(r, text, n_bytes, is_end);
        if (step == TOOL_NO_MEMORY) return ERR_NO_MEMORY;
        if (step == TOOL_MORE) return ERR_OK;
        if (step == TOOL_BROKEN) TRY(give_back(r, text));
        if (step != TOOL_DONE) continue;
        tool_object_deinit(&r->object);
        r->is_inside = false;
        r->kept = r->at;
    }
}
