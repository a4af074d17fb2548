/* service/api_kv_json.h - `kv`, the methods of the KV cache, in requests and in replies.
 *
 * A request names them as the server's flags do: routing_k is --kv-routing-k. What it leaves out is as
 * the server has it. Nothing is ignored here: an unknown key is refused, and so is a number that the
 * chosen routing does not look at. */
#ifndef SERVICE_API_KV_JSON_H
#define SERVICE_API_KV_JSON_H

#include "kvcache/kv_stats.h"
#include "service/api_fields_json.h"
#include "service/api_request.h"

/* Sets has_kv and kv if the body has the field. Whether a cache keeps what the methods need is asked
 * later: kv_cache_check_methods. */
bool api_kv_read(const json_t *body, const kv_config *server, completion_request *out,
                 api_error *error);

/* The object that a request would have to bring for the same methods. NULL without memory. */
json_t *api_kv_methods_new(const kv_methods *methods);

/* `kv` of a reply's usage: with a mean certificate where queries may have left something unread. */
json_t *api_kv_usage_new(const kv_methods *methods, const kv_usage *usage);

#endif
