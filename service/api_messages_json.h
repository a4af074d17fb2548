/* service/api_messages_json.h - the messages of a chat, and what else its template is told.
 *
 * What a template sees is built anew from what was understood: roles and texts, never the client's own
 * object. A content is a text or a list of parts, in the form that the template wants (chat_content.h): where it
 * takes texts, parts become one, joined by line ends, as in vLLM. */
#ifndef SERVICE_API_MESSAGES_JSON_H
#define SERVICE_API_MESSAGES_JSON_H

#include "service/api_fields_json.h"
#include "service/api_request.h"

/* By limits->content and limits->tools. Reads messages, add_generation_prompt, continue_final_message, documents, chat_template_kwargs and
 * reasoning_effort, and what is about tools; refuses chat_template. What is half filled is the caller's to free. */
bool api_messages_read(const json_t *body, const api_limits *limits, api_chat *out,
                       api_error *error);

/* The part of it about tools, tool_choice and parallel_tool_calls (api_tools_json.c). */
bool api_tools_read(const json_t *body, const tool_parser *parser, api_chat *out, api_error *error);

#endif
