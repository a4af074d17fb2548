/* service/api_messages_json.c - see api_messages_json.h. */
#include "service/api_messages_json.h"

#include "base/check.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    FIELD_BYTES = 40, /* "tool_calls[18446744073709551615]" */
    PATH_BYTES = FIELD_BYTES + sizeof "messages[18446744073709551615].",
    EFFORT_BYTES_MAX = 32,
};

typedef struct path {
    char text[PATH_BYTES]; /* "messages[3].content" */
} path;

static bool refuse_memory(api_error *error)
{
    return api_refuse(error, API_FAULT_MEMORY, NULL, "out of memory");
}

static path path_of(size_t message, const char *field)
{
    path p;
    (void)snprintf(p.text, sizeof p.text, "messages[%zu]%s%s", message, *field != '\0' ? "." : "",
                   field);
    return p;
}

/* ---- one message ----------------------------------------------------------------------------------------- */

typedef struct message {
    const json_t *from; /* the client's */
    json_t *out;        /* what the template sees */
    size_t index;
    const char *role; /* static */
} message;

static bool read_role(message *m, api_error *error)
{
    static const char *const roles[] = {"system", "developer", "user", "assistant", "tool"};
    const path at = path_of(m->index, "role");
    const json_t *role = api_field(m->from, "role");
    if (role == NULL) {
        return api_refuse(error, API_FAULT_REQUEST, at.text, "%s: the field is required", at.text);
    }
    for (size_t i = 0; json_is_string(role) && i < sizeof roles / sizeof roles[0]; i++) {
        if (strcmp(json_string_value(role), roles[i]) == 0) m->role = roles[i];
    }
    if (m->role == NULL) {
        return api_refuse_value(error, at.text, role,
                                "is none of system, developer, user, assistant, tool");
    }
    return api_put(m->out, "role", json_string(m->role)) || refuse_memory(error);
}

/* The text of content[i], or NULL. */
static const json_t *part_text(const message *m, const json_t *part, size_t i, api_error *error)
{
    char field[FIELD_BYTES];
    (void)snprintf(field, sizeof field, "content[%zu]", i);
    const path at = path_of(m->index, field);
    const json_t *type = json_object_get(part, "type");
    const json_t *text = json_object_get(part, "text");
    if (!json_is_object(part) || !json_is_string(type)) {
        api_refuse_value(error, at.text, part, "is not a part {\"type\": \"text\", \"text\": ...}");
    } else if (strcmp(json_string_value(type), "text") != 0) {
        api_refuse(error, API_FAULT_UNSUPPORTED, at.text,
                   "%s: parts of type \"%.40s\" are not supported; only text is", at.text,
                   json_string_value(type));
    } else if (!json_is_string(text)) {
        api_refuse_value(error, at.text, part, "has no text");
    } else {
        return text;
    }
    return NULL;
}

/* What a template is given of one: its text, and nothing that the client has beside it. */
static json_t *part_new(const json_t *text)
{
    return json_pack("{s:s,s:O}", "type", "text", "text", text);
}

/* All parts as they were understood; NULL after a refusal. */
static json_t *read_parts(const message *m, const json_t *parts, api_error *error)
{
    size_t i;
    json_t *part, *list = json_array();
    json_array_foreach(parts, i, part)
    {
        const json_t *text = part_text(m, part, i, error);
        if (text != NULL && json_array_append_new(list, part_new(text)) == 0) continue;
        if (text != NULL) refuse_memory(error);
        json_decref(list);
        return NULL;
    }
    if (list == NULL) refuse_memory(error);
    return list;
}

/* The text of a content: its own, or that of all its parts, a line end between two. */
typedef struct content_text {
    char *bytes;                  /* [n_bytes], owned; NULL without memory */
    size_t n_bytes, n_tail_bytes; /* the tail: what the last part has of it */
} content_text;

static void put_text(content_text *to, const json_t *text)
{
    to->n_tail_bytes = json_string_length(text);
    memcpy(to->bytes + to->n_bytes, json_string_value(text), to->n_tail_bytes);
    to->n_bytes += to->n_tail_bytes;
}

static content_text text_of(const json_t *content)
{
    content_text joined = {0};
    size_t i, n_bytes = json_string_length(content); /* 0 of a list */
    json_t *part;
    json_array_foreach(content, i, part) n_bytes +=
        json_string_length(json_object_get(part, "text")) + 1; /* both came in one body */
    joined.bytes = malloc(n_bytes + 1);
    if (joined.bytes == NULL) return joined;
    if (json_is_string(content)) put_text(&joined, content);
    json_array_foreach(content, i, part)
    {
        if (i > 0) joined.bytes[joined.n_bytes++] = '\n';
        put_text(&joined, json_object_get(part, "text"));
    }
    joined.bytes[joined.n_bytes] = '\0';
    return joined;
}

/* What was sent, in the form that the template wants. Both references are the caller's. */
static json_t *formed(json_t *content, chat_content form)
{
    if (json_is_array(content) && form == CHAT_CONTENT_TEXTS) {
        const content_text joined = text_of(content);
        json_t *text = NULL;
        if (joined.bytes != NULL) text = json_stringn_nocheck(joined.bytes, joined.n_bytes);
        free(joined.bytes);
        return text;
    }
    if (json_is_string(content) && form == CHAT_CONTENT_PARTS) {
        json_t *list = json_array();
        if (json_array_append_new(list, part_new(content)) == 0) return list;
        json_decref(list);
        return NULL;
    }
    return json_incref(content);
}

static bool read_content(message *m, chat_content form, api_error *error)
{
    const path at = path_of(m->index, "content");
    const json_t *content = api_field(m->from, "content");
    const bool is_call = strcmp(m->role, "assistant") == 0 &&
                         json_array_size(json_object_get(m->from, "tool_calls")) > 0;
    json_t *sent = NULL;
    if (json_is_string(content)) {
        sent = json_incref((json_t *)(uintptr_t)content);
    } else if (json_is_array(content)) {
        sent = read_parts(m, content, error);
    } else if (content == NULL && is_call) {
        sent = form == CHAT_CONTENT_PARTS ? json_array() : json_string("");
    } else if (content == NULL) {
        return api_refuse(error, API_FAULT_REQUEST, at.text, "%s: the field is required", at.text);
    } else {
        return api_refuse_value(error, at.text, content, "is neither a string nor a list of parts");
    }
    if (error->status != 0) return false;
    const bool is_put = sent != NULL && api_put(m->out, "content", formed(sent, form));
    json_decref(sent);
    return is_put || refuse_memory(error);
}

/* Fields that a message may have beside its content, where its role has them. */
static bool read_texts(message *m, api_error *error)
{
    static const struct {
        const char *name, *role; /* NULL: of any role */
    } fields[] = {{"name", NULL},
                  {"tool_call_id", "tool"},
                  {"reasoning_content", "assistant"},
                  {"thinking", "assistant"},
                  {"reasoning", "assistant"}};
    for (size_t i = 0; i < sizeof fields / sizeof fields[0]; i++) {
        const path at = path_of(m->index, fields[i].name);
        json_t *value = json_object_get(m->from, fields[i].name);
        if (value == NULL || json_is_null(value)) continue;
        if (fields[i].role != NULL && strcmp(fields[i].role, m->role) != 0) continue;
        if (!json_is_string(value))
            return api_refuse_value(error, at.text, value, "is not a string");
        if (json_object_set(m->out, fields[i].name, value) != 0) return refuse_memory(error);
    }
    return true;
}

/* What an assistant thought has a name by client and another by template: as in transformers it gets the two that templates
 * read, `reasoning_content` and, of gpt-oss, `thinking`. */
static bool name_reasoning(message *m, api_error *error)
{
    static const char *const names[] = {"reasoning_content", "thinking", "reasoning"};
    json_t *said = NULL; /* borrowed */
    for (size_t i = 0; said == NULL && i < sizeof names / sizeof names[0]; i++)
        said = json_object_get(m->out, names[i]);
    if (said == NULL) return true;
    if (json_object_set(m->out, "reasoning_content", said) != 0) return refuse_memory(error);
    if (json_object_get(m->out, "thinking") != NULL) return true;
    return json_object_set(m->out, "thinking", said) == 0 || refuse_memory(error);
}

/* Templates write arguments as JSON by themselves, so they get what the text says, as in vLLM. */
static json_t *arguments_of(const path *at, json_t *from, api_error *error)
{
    if (from == NULL || json_is_null(from)) return json_object();
    if (json_is_object(from)) return json_incref(from);
    if (json_is_string(from) && json_string_length(from) == 0) return json_object();
    json_t *parsed = NULL;
    json_error_t reason = {.text = "no JSON"};
    if (json_is_string(from)) {
        parsed = json_loadb(json_string_value(from), json_string_length(from),
                            JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &reason);
    }
    if (json_is_object(parsed)) return parsed;
    if (parsed == NULL && api_json_lacked_memory(&reason)) {
        refuse_memory(error);
        return NULL;
    }
    json_decref(parsed);
    api_refuse_value(error, at->text, from, "(arguments) is not the text of a JSON object");
    return NULL;
}

static json_t *call_new(const message *m, const json_t *call, size_t i, api_error *error)
{
    char field[FIELD_BYTES];
    (void)snprintf(field, sizeof field, "tool_calls[%zu]", i);
    const path at = path_of(m->index, field);
    const json_t *function = json_object_get(call, "function");
    json_t *name = json_object_get(function, "name");
    json_t *id = json_object_get(call, "id");
    if (!json_is_string(name)) {
        api_refuse_value(error, at.text, call, "has no function with a name");
        return NULL;
    }
    if (id != NULL && !json_is_null(id) && !json_is_string(id)) {
        api_refuse_value(error, at.text, call, "has an id that is not a string");
        return NULL;
    }
    json_t *arguments = arguments_of(&at, json_object_get(function, "arguments"), error);
    if (arguments == NULL) return NULL;
    json_t *out = json_pack("{s:s,s:{s:O,s:o}}", "type", "function", "function", "name", name,
                            "arguments", arguments);
    if (out != NULL && json_is_string(id) && json_object_set(out, "id", id) != 0) {
        json_decref(out);
        out = NULL;
    }
    if (out == NULL) refuse_memory(error);
    return out;
}

/* What a model called in an earlier turn. */
static bool read_calls(message *m, api_error *error)
{
    const path at = path_of(m->index, "tool_calls");
    const json_t *calls = api_field(m->from, "tool_calls");
    size_t i;
    json_t *call;
    if (calls == NULL || strcmp(m->role, "assistant") != 0) return true;
    if (!json_is_array(calls)) return api_refuse_value(error, at.text, calls, "is not a list");
    if (json_array_size(calls) == 0) return true;
    json_t *list = json_array();
    if (!api_put(m->out, "tool_calls", list)) return refuse_memory(error);
    json_array_foreach(calls, i, call)
    {
        json_t *out = call_new(m, call, i, error);
        if (out == NULL) return false;
        if (json_array_append_new(list, out) != 0) return refuse_memory(error);
    }
    return true;
}

static bool read_message(message *m, chat_content form, api_error *error)
{
    const path at = path_of(m->index, "");
    if (!json_is_object(m->from))
        return api_refuse_value(error, at.text, m->from, "is not an object");
    return read_role(m, error) && read_content(m, form, error) && read_texts(m, error) &&
           name_reasoning(m, error) && read_calls(m, error);
}

/* ---- all of them ------------------------------------------------------------------------------------------- */

static bool read_messages(const json_t *body, chat_content form, api_chat *out, api_error *error)
{
    const json_t *messages = api_field(body, "messages");
    json_t *list = json_array();
    size_t i;
    json_t *from;
    if (!api_put(out->variables, "messages", list)) return refuse_memory(error);
    if (messages == NULL) {
        return api_refuse(error, API_FAULT_REQUEST, "messages", "messages: the field is required");
    }
    if (!json_is_array(messages))
        return api_refuse_value(error, "messages", messages, "is not a list");
    if (json_array_size(messages) == 0)
        return api_refuse(error, API_FAULT_REQUEST, "messages", "messages: the list is empty");
    json_array_foreach(messages, i, from)
    {
        message m = {.from = from, .out = json_object(), .index = i};
        if (json_array_append_new(list, m.out) != 0) return refuse_memory(error);
        if (!read_message(&m, form, error)) return false;
        out->role = m.role;
    }
    return true;
}

/* Who speaks next, and whether that goes on with what is there. */
static bool read_turn(const json_t *body, api_chat *out, api_error *error)
{
    static const char adds[] = "add_generation_prompt";
    if (!api_field_bool(body, "continue_final_message", &out->continues, error)) return false;
    bool adds_prompt = !out->continues;
    if (!api_field_bool(body, adds, &adds_prompt, error) ||
        !api_field_bool(body, "echo", &out->echo, error)) {
        return false;
    }
    if (adds_prompt && out->continues) {
        return api_refuse(error, API_FAULT_REQUEST, adds,
                          "%s and continue_final_message cannot both be true", adds);
    }
    const json_t *messages = json_object_get(out->variables, "messages");
    const json_t *last = json_array_get(messages, json_array_size(messages) - 1);
    const char *last_role = out->role;
    if (adds_prompt) out->role = "assistant";
    out->echo = out->echo && strcmp(out->role, last_role) == 0;
    if (out->echo || out->continues) {
        const content_text text = text_of(json_object_get(last, "content"));
        if (text.bytes == NULL) return refuse_memory(error);
        out->last = text.bytes;
        out->last_bytes = text.n_bytes;
        out->tail_bytes = text.n_tail_bytes;
    }
    return api_put(out->variables, adds, json_boolean(adds_prompt)) || refuse_memory(error);
}

static bool read_documents(const json_t *body, api_chat *out, api_error *error)
{
    const json_t *documents = api_field(body, "documents");
    size_t i;
    json_t *document;
    if (documents == NULL) return true;
    if (!json_is_array(documents))
        return api_refuse_value(error, "documents", documents, "is not a list");
    json_array_foreach(documents, i, document)
    {
        if (!json_is_object(document))
            return api_refuse_value(error, "documents", document, "is not an object");
    }
    return json_object_set(out->variables, "documents", (json_t *)(uintptr_t)documents) == 0 ||
           refuse_memory(error);
}

/* Variables of the template's own; not those that have a field. */
static bool read_kwargs(const json_t *body, api_chat *out, api_error *error)
{
    static const char name[] = "chat_template_kwargs";
    static const char *const taken[] = {"messages",      "tools",
                                        "documents",     "add_generation_prompt",
                                        "chat_template", "continue_final_message",
                                        "tokenize",      "return_dict"};
    json_t *kwargs = json_object_get(body, name);
    if (kwargs == NULL || json_is_null(kwargs)) return true;
    if (!json_is_object(kwargs)) return api_refuse_value(error, name, kwargs, "is not an object");
    for (size_t i = 0; i < sizeof taken / sizeof taken[0]; i++) {
        if (json_object_get(kwargs, taken[i]) == NULL) continue;
        return api_refuse(error, API_FAULT_REQUEST, name, "%s: %s cannot be set here", name,
                          taken[i]);
    }
    return json_object_update(out->variables, kwargs) == 0 || refuse_memory(error);
}

static bool read_effort(const json_t *body, api_chat *out, api_error *error)
{
    static const char name[] = "reasoning_effort";
    api_text effort = {NULL, 0};
    if (!api_field_text(body, name, EFFORT_BYTES_MAX, &effort, error)) return false;
    if (effort.bytes == NULL) return true;
    return api_put(out->variables, name, json_stringn(effort.bytes, effort.n_bytes)) ||
           refuse_memory(error);
}

static bool refuse_template(const json_t *body, api_error *error)
{
    if (api_field(body, "chat_template") == NULL) return true;
    return api_refuse(
        error, API_FAULT_UNSUPPORTED, "chat_template",
        "chat_template: templates of requests are not trusted; --chat-template sets the "
        "server's");
}

bool api_messages_read(const json_t *body, const api_limits *limits, api_chat *out,
                       api_error *error)
{
    /* As transformers has it, both are defined, and none. */
    out->variables = json_pack("{s:n,s:n}", "tools", "documents");
    if (out->variables == NULL) return refuse_memory(error);
    return refuse_template(body, error) && api_tools_read(body, limits->tools, out, error) &&
           read_messages(body, limits->content, out, error) && read_turn(body, out, error) &&
           read_documents(body, out, error) && read_effort(body, out, error) &&
           read_kwargs(body, out, error);
}
