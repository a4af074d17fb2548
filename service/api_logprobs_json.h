/* service/api_logprobs_json.h - the legacy logprobs object. See api_reply.h. */
#ifndef SERVICE_API_LOGPROBS_JSON_H
#define SERVICE_API_LOGPROBS_JSON_H

#include "service/api_reply.h"

#include <jansson.h>

/* {tokens, token_logprobs, top_logprobs, text_offset}; NULL without memory. */
json_t *api_logprobs_new(const api_envelope *envelope, const api_token_score *scores,
                         size_t n_scores);

#endif
