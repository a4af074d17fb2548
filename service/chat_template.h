/* service/chat_template.h - the template that makes a model's prompt of a chat's messages.
 *
 * It comes from --chat-template, else from the model's folder: chat_template.jinja, or `chat_template` of
 * tokenizer_config.json, which is a text or a list of named ones of which "default" is taken. Nothing of it comes
 * from a request. bos_token, eos_token and the like are variables of the template, by the model's files.
 *
 * A model without a template, or with one that service/jinja cannot compile, still serves completions; then
 * chat_template_fault says why it does not chat.
 *
 * Threads: after open all is const. */
#ifndef SERVICE_CHAT_TEMPLATE_H
#define SERVICE_CHAT_TEMPLATE_H

#include "base/error.h"
#include "model/tokenizer.h"
#include "service/chat_content.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct chat_template chat_template;

/* `file` is NULL for the model's own. Errors: ERR_IO, ERR_BAD_MODEL and ERR_UNSUPPORTED for a `file`, for files of
 * the model only what makes them unreadable; ERR_NO_MEMORY. */
err_t chat_template_open(const char *model_dir, const char *file, const tokenizer *t,
                         chat_template **out, err_info *info) MUST_CHECK;
void chat_template_close(chat_template *c); /* NULL is fine */

/* A sentence; NULL: it can render. */
const char *chat_template_fault(const chat_template *c);

/* The token that ends a turn by tokenizer_config.json (eos_token); -1: it names none. */
int64_t chat_template_eos(const chat_template *c);

/* The form in which it wants contents: by `format`, or as it reads them. Of one that reads parts and never asks
 * whether a content is a text, texts become a part each. */
chat_content chat_template_content(const chat_template *c, chat_content_format format);

/* Whether `tools` can make a difference to what is rendered. */
bool chat_template_shows_tools(const chat_template *c);

/* Renders with the members of `variables`, an object that holds `messages` and is only read; they come before
 * the model's tokens of the same name. At most output_bytes_max bytes; *text is a fresh heap string.
 * ERR_BAD_REQUEST with the template's own message, or with the limit that was reached; ERR_NO_MEMORY. Only without
 * a fault. */
struct json_t;
err_t chat_template_render(const chat_template *c, const struct json_t *variables,
                           size_t output_bytes_max, char **text, size_t *n_bytes,
                           err_info *info) MUST_CHECK;

#endif
