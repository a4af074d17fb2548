/* service/api_tools_json.c - the tools that a chat brings. See api_messages_json.h.
 *
 * A template gets them as they are, as in transformers. Which of them the model calls is its own choice: nothing here
 * constrains what it writes, so `required` and a named function are refused, not promised. */
#include "service/api_messages_json.h"

#include <stdio.h>
#include <string.h>

enum { PATH_BYTES = sizeof "tools[18446744073709551615]" };

static bool check_tool(const json_t *tool, size_t i, api_error *error)
{
    char path[PATH_BYTES];
    (void)snprintf(path, sizeof path, "tools[%zu]", i);
    const json_t *type = json_object_get(tool, "type");
    const json_t *function = json_object_get(tool, "function");
    const json_t *name = json_object_get(function, "name");
    const json_t *parameters = api_field(function, "parameters");
    const json_t *description = api_field(function, "description");
    if (!json_is_string(type) || strcmp(json_string_value(type), "function") != 0)
        return api_refuse_value(error, path, tool, "is not of type \"function\"");
    if (!json_is_string(name) || json_string_length(name) == 0)
        return api_refuse_value(error, path, tool, "has no function with a name");
    if (parameters != NULL && !json_is_object(parameters))
        return api_refuse_value(error, path, parameters, "(parameters) is not an object");
    if (description != NULL && !json_is_string(description))
        return api_refuse_value(error, path, description, "(description) is not a string");
    return true;
}

static bool is_word(const json_t *value, const char *word)
{
    return json_is_string(value) && strcmp(json_string_value(value), word) == 0;
}

/* *is_none: no call is wanted. */
static bool read_choice(const json_t *body, bool *is_none, api_error *error)
{
    static const char name[] = "tool_choice";
    const json_t *choice = api_field(body, name);
    *is_none = is_word(choice, "none");
    if (choice == NULL || *is_none || is_word(choice, "auto")) return true;
    if (is_word(choice, "required") || json_is_object(choice)) {
        return api_refuse(error, API_FAULT_UNSUPPORTED, name,
                          "%s: %s is not supported, for nothing makes the model call; \"auto\" and "
                          "\"none\" are",
                          name, json_is_object(choice) ? "a named function" : "\"required\"");
    }
    return api_refuse_value(error, name, choice, "is neither \"none\" nor \"auto\"");
}

/* What became tools and tool_choice. */
static bool refuse_functions(const json_t *body, api_error *error)
{
    const json_t *functions = api_field(body, "functions");
    const json_t *choice = api_field(body, "function_call");
    if (functions != NULL && !json_is_array(functions))
        return api_refuse_value(error, "functions", functions, "is not a list");
    if (choice != NULL && !is_word(choice, "none") && !is_word(choice, "auto")) {
        return api_refuse(error, API_FAULT_UNSUPPORTED, "function_call",
                          "function_call is not supported; tool_choice is what became of it");
    }
    if (json_array_size(functions) == 0 || is_word(choice, "none")) return true;
    return api_refuse(error, API_FAULT_UNSUPPORTED, "functions",
                      "functions are not supported; tools are what became of them");
}

static bool check_tools(const json_t *tools, const tool_parser *parser, api_error *error)
{
    size_t i;
    json_t *tool;
    if (parser == NULL) {
        return api_refuse(error, API_FAULT_UNSUPPORTED, "tools",
                          "tools are not supported unless tool_choice is \"none\": the server was "
                          "started without --enable-auto-tool-choice and --tool-call-parser");
    }
    json_array_foreach(tools, i, tool)
    {
        if (!check_tool(tool, i, error)) return false;
    }
    return true;
}

bool api_tools_read(const json_t *body, const tool_parser *parser, api_chat *out, api_error *error)
{
    static const char name[] = "tools";
    const json_t *tools = api_field(body, name);
    bool is_none = false, is_parallel = true;
    if (tools != NULL && !json_is_array(tools))
        return api_refuse_value(error, name, tools, "is not a list");
    if (!refuse_functions(body, error) || !read_choice(body, &is_none, error) ||
        !api_field_bool(body, "parallel_tool_calls", &is_parallel, error)) {
        return false;
    }
    if (json_array_size(tools) == 0 || is_none) return true;
    if (!check_tools(tools, parser, error)) return false;
    out->tools = parser;
    out->one_call = !is_parallel;
    return json_object_set(out->variables, name, (json_t *)(uintptr_t)tools) == 0 ||
           api_refuse(error, API_FAULT_MEMORY, NULL, "out of memory");
}
