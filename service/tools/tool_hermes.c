/* <tool_call>{"name": ..., "arguments": {...}}</tool_call>, one for each call: Hermes, Qwen2.5, Qwen3, Granite 4. */
#include "service/tools/tool_parts.h"

enum { AT_OBJECT, AT_END };

static tool_step step(tool_reader *r, const char *text, size_t n_bytes)
{
    if (r->phase == AT_END) return tool_expect(r, text, n_bytes, "</tool_call>");
    const tool_step read = tool_object_read(r, text, n_bytes);
    if (read != TOOL_DONE) return read;
    r->phase = AT_END;
    return TOOL_GOES_ON;
}

/* Some models stop before the mark. */
static bool may_end(const tool_reader *r)
{
    return r->phase == AT_END;
}

static const char *const markers[] = {"<tool_call>", NULL};
const tool_parser tool_parser_hermes = {
    .name = "hermes", .markers = markers, .step = step, .may_end = may_end};
