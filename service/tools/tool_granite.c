/* <|tool_call|>[{"name": ..., "arguments": {...}}, ...]: Granite 3, whose first version marks with a special token. */
#include "service/tools/tool_parts.h"

static bool may_end(const tool_reader *r)
{
    return r->phase == TOOL_LIST_NEXT;
}

static const char *const markers[] = {"<|tool_call|>", "<tool_call>", NULL};
const tool_parser tool_parser_granite = {.name = "granite",
                                         .markers = markers,
                                         .shows_special = true,
                                         .step = tool_list_read,
                                         .may_end = may_end};
