/* Strings of JSON as texts. */
#include "service/api_fields_json.h"
#include "service/tools/tool_parts.h"

#include <stdlib.h>
#include <string.h>

tool_step tool_string_decode(const char *quoted, size_t n_bytes, char **out, size_t *out_bytes)
{
    json_error_t reason;
    json_t *string = json_loadb(quoted, n_bytes, JSON_DECODE_ANY | JSON_ALLOW_NUL, &reason);
    if (string == NULL) return api_json_lacked_memory(&reason) ? TOOL_NO_MEMORY : TOOL_BROKEN;
    const size_t n = json_string_length(string);
    const bool is_string = json_is_string(string);
    *out = is_string ? malloc(n + 1) : NULL;
    if (*out != NULL) memcpy(*out, json_string_value(string), n);
    *out_bytes = n;
    json_decref(string);
    if (!is_string) return TOOL_BROKEN;
    return *out != NULL ? TOOL_DONE : TOOL_NO_MEMORY;
}
