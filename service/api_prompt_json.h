/* service/api_prompt_json.h - the four forms of a prompt: text, texts, token ids, lists of token ids. */
#ifndef SERVICE_API_PROMPT_JSON_H
#define SERVICE_API_PROMPT_JSON_H

#include "service/api_fields_json.h"
#include "service/api_request.h"

/* Fills out->prompts and out->n_prompts from the field `prompt`; what is half filled is the caller's to
 * free. At most limits->n_choices_max prompts; ids are below limits->n_vocab. */
bool api_prompts_read(const json_t *body, const api_limits *limits, completion_request *out,
                      api_error *error);

/* A list of token ids into a heap array; not empty. */
bool api_ids_read(const json_t *list, const char *name, uint32_t n_vocab, api_prompt *out,
                  api_error *error);

#endif
