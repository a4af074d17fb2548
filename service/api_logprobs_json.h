/* service/api_logprobs_json.h - the logprobs objects of completions and of chats. See api_reply.h. */
#ifndef SERVICE_API_LOGPROBS_JSON_H
#define SERVICE_API_LOGPROBS_JSON_H

#include "service/api_reply.h"

#include <jansson.h>

/* {tokens, token_logprobs, top_logprobs, text_offset}; NULL without memory. */
json_t *api_logprobs_new(const api_envelope *envelope, const api_token_score *scores,
                         size_t n_scores);

/* {content: [{token, logprob, bytes, top_logprobs: [{token, logprob, bytes}]}], refusal: null}. The bytes of
 * tokens are those that they add to a text: joined, they are the message. NULL without memory. */
json_t *api_chat_logprobs_new(const api_envelope *envelope, const api_token_score *scores,
                              size_t n_scores);

#endif
