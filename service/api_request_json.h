/* service/api_request_json.h - what the requests of both endpoints have in common.
 *
 * A reader of an endpoint calls api_request_init, reads what is its own - the prompts before all, since n
 * is counted times their number - and leaves the rest to api_request_read_common. */
#ifndef SERVICE_API_REQUEST_JSON_H
#define SERVICE_API_REQUEST_JSON_H

#include "service/api_fields_json.h"
#include "service/api_request.h"

/* The defaults of a completion, with the sampling of limits->generation. */
void api_request_init(const api_limits *limits, completion_request *out);

bool api_request_read_model(const json_t *body, const api_limits *limits, api_error *error);
bool api_request_refuse_unsupported(const json_t *body, api_error *error);

/* Counts, sampling, stops, streams, names, `kv`. out->prompts and out->max_tokens_field are set. */
bool api_request_read_common(const json_t *body, const api_limits *limits, completion_request *out,
                             api_error *error);

#endif
