/* All ways to mark calls, by the names that they have in vLLM. */
#include "service/tools/tool_reader.h"

#include <string.h>

#define TOOL_PARSER_LIST(X) \
    X(deepseek_v3)          \
    X(granite)              \
    X(hermes)               \
    X(mistral)
#define X(name) extern const tool_parser tool_parser_##name;
TOOL_PARSER_LIST(X)
#undef X
const tool_parser *const tool_parsers[] = {
#define X(name) &tool_parser_##name,
    TOOL_PARSER_LIST(X) NULL,
#undef X
};

const tool_parser *tool_find_parser(const char *name)
{
    for (size_t i = 0; tool_parsers[i] != NULL; i++)
        if (strcmp(tool_parsers[i]->name, name) == 0) return tool_parsers[i];
    return NULL;
}
