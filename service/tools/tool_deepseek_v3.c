/* <｜tool▁calls▁begin｜> and for each call
 *
 *   <｜tool▁call▁begin｜>function<｜tool▁sep｜>NAME
 *   ```json
 *   {...}
 *   ```<｜tool▁call▁end｜>
 *
 * then <｜tool▁calls▁end｜>: DeepSeek-V3 and R1. */
#include "service/tools/tool_parts.h"

#include "base/check.h"

#include <string.h>

#define BAR "\xef\xbd\x9c" /* U+FF5C */
#define LOW "\xe2\x96\x81" /* U+2581 */

enum { AT_CALL, AT_NAME, AT_ARGUMENTS, AT_FENCE, AT_END };

static const char calls_begin[] = "<" BAR "tool" LOW "calls" LOW "begin" BAR ">";
static const char calls_end[] = "<" BAR "tool" LOW "calls" LOW "end" BAR ">";
static const char call_begin[] =
    "<" BAR "tool" LOW "call" LOW "begin" BAR ">function<" BAR "tool" LOW "sep" BAR ">";
static const char call_end[] = "<" BAR "tool" LOW "call" LOW "end" BAR ">";

static tool_step read_call(tool_reader *r, const char *text, size_t n_bytes)
{
    tool_step step = tool_expect(r, text, n_bytes, call_begin);
    if (step == TOOL_DONE) {
        r->phase = AT_NAME;
        return TOOL_GOES_ON;
    }
    return step == TOOL_MORE ? TOOL_MORE : tool_expect(r, text, n_bytes, calls_end);
}

/* The rest of a line, then ```json and a brace. */
static tool_step read_name(tool_reader *r, const char *text, size_t n_bytes)
{
    const size_t begin = r->at, n_most = min_size(n_bytes, begin + TOOL_NAME_BYTES_MAX + 1);
    const char *line_end = memchr(text + begin, '\n', n_most - begin);
    if (line_end == NULL) return n_most - begin > TOOL_NAME_BYTES_MAX ? TOOL_BROKEN : TOOL_MORE;
    const size_t n_name = (size_t)(line_end - text) - begin;
    r->at = begin + n_name;
    tool_step step = n_name > 0 ? tool_expect(r, text, n_bytes, "```json") : TOOL_BROKEN;
    const size_t at = tool_skip_space(text, n_bytes, r->at);
    r->at = begin;
    if (step != TOOL_DONE) return step;
    if (at == n_bytes) return TOOL_MORE;
    if (text[at] != '{') return TOOL_BROKEN;
    char *name = tool_copy(text + begin, n_name);
    if (tool_call_open(r, name, n_name, at) == NULL) return TOOL_NO_MEMORY;
    r->at = at;
    r->object.span = (tool_span){0};
    r->phase = AT_ARGUMENTS;
    return TOOL_GOES_ON;
}

/* From one phase to the next, if all goes well. */
static tool_step go_on(tool_reader *r, tool_step step, uint8_t phase)
{
    if (step != TOOL_DONE) return step;
    r->kept = r->at;
    r->phase = phase;
    return TOOL_GOES_ON;
}

static tool_step step(tool_reader *r, const char *text, size_t n_bytes)
{
    switch (r->phase) {
    case AT_CALL: return read_call(r, text, n_bytes);
    case AT_NAME: return read_name(r, text, n_bytes);
    case AT_ARGUMENTS: return go_on(r, tool_call_read(r, text, n_bytes), AT_FENCE);
    case AT_FENCE: return go_on(r, tool_expect(r, text, n_bytes, "```"), AT_END);
    default: return go_on(r, tool_expect(r, text, n_bytes, call_end), AT_CALL);
    }
}

static bool may_end(const tool_reader *r)
{
    return r->phase == AT_FENCE || r->phase == AT_END || r->phase == AT_CALL;
}

static const char *const markers[] = {calls_begin, NULL};
const tool_parser tool_parser_deepseek_v3 = {.name = "deepseek_v3",
                                             .markers = markers,
                                             .shows_special = true,
                                             .step = step,
                                             .may_end = may_end};
