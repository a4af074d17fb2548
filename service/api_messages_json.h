/* service/api_messages_json.h - the messages of a chat, and what else its template is told.
 *
 * What a template sees is built anew from what was understood: roles and texts, never the client's own
 * object. A content of parts becomes one text, the parts joined by line ends, as vLLM does for templates that
 * take texts; a template that walks over parts gets texts here, too. */
#ifndef SERVICE_API_MESSAGES_JSON_H
#define SERVICE_API_MESSAGES_JSON_H

#include "service/api_fields_json.h"
#include "service/api_request.h"

/* Reads messages, add_generation_prompt, continue_final_message, documents, chat_template_kwargs and
 * reasoning_effort; refuses chat_template and tools. What is half filled is the caller's to free. */
bool api_messages_read(const json_t *body, api_chat *out, api_error *error);

#endif
