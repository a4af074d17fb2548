/* service/api_request_json.c - the fields of POST /v1/completions, most of which a chat has too. See
 * api_request.h and api_request_json.h. */
#include "service/api_request_json.h"

#include "base/check.h"
#include "base/hash.h"
#include "service/api_kv_json.h"
#include "service/api_prompt_json.h"

#include <stdlib.h>
#include <string.h>

enum {
    MAX_TOKENS_DEFAULT = 16, /* as OpenAI has it for this route */
    TOP_K_OFF_MIN = -1,
    MODEL_NAME_BYTES_MAX = 4096,
};

static char *copy_text(api_text text)
{
    char *copy = malloc(text.n_bytes + 1);
    if (copy == NULL) return NULL;
    memcpy(copy, text.bytes, text.n_bytes);
    copy[text.n_bytes] = '\0';
    return copy;
}

static bool refuse_memory(api_error *error)
{
    return api_refuse(error, API_FAULT_MEMORY, NULL, "out of memory");
}

bool api_request_read_model(const json_t *body, const api_limits *limits, api_error *error)
{
    api_text name = {NULL, 0};
    if (!api_field_text(body, "model", MODEL_NAME_BYTES_MAX, &name, error)) return false;
    if (name.bytes == NULL) return true;
    for (size_t i = 0; i < limits->n_model_names; i++) {
        const char *known = limits->model_names[i];
        if (strlen(known) == name.n_bytes && memcmp(known, name.bytes, name.n_bytes) == 0) {
            return true;
        }
    }
    return api_refuse(error, API_FAULT_MODEL, "model", "The model `%.*s` does not exist.",
                      (int)min_size(name.n_bytes, API_ECHO_BYTES), name.bytes);
}

static bool is_empty(const json_t *value)
{
    return json_is_false(value) || (json_is_array(value) && json_array_size(value) == 0) ||
           (json_is_object(value) && json_object_size(value) == 0);
}

/* Known options that this server lacks. An answer that ignored them would look right and be wrong. */
bool api_request_refuse_unsupported(const json_t *body, api_error *error)
{
    static const char *const names[] = {
        "suffix",           "prompt_embeds",     "prompt_logprobs",    "logprob_token_ids",
        "bad_words",        "allowed_token_ids", "structured_outputs", "guided_json",
        "guided_regex",     "guided_choice",     "guided_grammar",     "use_beam_search",
        "logits_processors"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        const json_t *value = api_field(body, names[i]);
        if (value == NULL || is_empty(value)) continue;
        return api_refuse(error, API_FAULT_UNSUPPORTED, names[i], "%s is not supported", names[i]);
    }
    const json_t *format = api_field(body, "response_format");
    if (format == NULL) return true;
    const json_t *type = json_object_get(format, "type");
    if (json_is_string(type) && strcmp(json_string_value(type), "text") == 0) return true;
    return api_refuse(error, API_FAULT_UNSUPPORTED, "response_format",
                      "response_format: only {\"type\":\"text\"} is supported");
}

static bool read_counts(const json_t *body, const api_limits *limits, completion_request *out,
                        api_error *error)
{
    const api_int_range tokens = {0, API_TOKENS_MAX};
    const char *field = out->max_tokens_field;
    if (!api_field_u32(body, "n", (api_int_range){1, API_N_MAX}, &out->n, error) ||
        !api_field_u32(body, field, tokens, &out->max_tokens, error) ||
        !api_field_u32(body, "min_tokens", tokens, &out->min_tokens, error)) {
        return false;
    }
    out->has_max_tokens = api_field(body, field) != NULL;
    if (limits->generation != NULL)
        out->max_tokens = (uint32_t)min_size(out->max_tokens, limits->generation->n_output_max);
    if (out->min_tokens > out->max_tokens) {
        return api_refuse(error, API_FAULT_REQUEST, "min_tokens",
                          "min_tokens: %u is more than %s (%u)", out->min_tokens, field,
                          out->max_tokens);
    }
    if ((uint64_t)out->n * out->n_prompts > limits->n_choices_max) {
        return api_refuse(error, API_FAULT_REQUEST, out->n_prompts > 1 ? "prompt" : "n",
                          "n (%u) times the number of prompts (%zu) is more than %u", out->n,
                          out->n_prompts, limits->n_choices_max);
    }
    const json_t *best_of = api_field(body, "best_of");
    int64_t best = 1;
    if (!api_field_int(body, "best_of", (api_int_range){0, INT32_MAX}, &best, error)) return false;
    if (best_of != NULL && best != 1 && best != out->n) {
        return api_refuse_value(error, "best_of", best_of, "is neither 1 nor n (%u)", out->n);
    }
    return true;
}

static bool read_seed(const json_t *body, completion_request *out, api_error *error)
{
    int64_t seed = -1; /* as elsewhere, -1 asks for a random one */
    if (!api_field_int(body, "seed", (api_int_range){INT64_MIN, INT64_MAX}, &seed, error)) {
        return false;
    }
    out->has_seed = seed != -1;
    if (out->has_seed) {
        out->sampling.seed = (uint64_t)seed;
    } else {
        hash_random_bytes(&out->sampling.seed, sizeof out->sampling.seed);
    }
    return true;
}

static bool read_sampling(const json_t *body, completion_request *out, api_error *error)
{
    sampler_params *s = &out->sampling;
    const api_real_range share = {0, 1, false}, penalty = {-2, 2, false};
    int64_t top_k = s->top_k;
    const bool is_read =
        api_field_real(body, "temperature", (api_real_range){0, 2, false}, &s->temperature,
                       error) &&
        api_field_real(body, "top_p", share, &s->top_p, error) &&
        api_field_real(body, "min_p", share, &s->min_p, error) &&
        api_field_int(body, "top_k", (api_int_range){TOP_K_OFF_MIN, INT32_MAX}, &top_k, error) &&
        api_field_real(body, "presence_penalty", penalty, &s->presence_penalty, error) &&
        api_field_real(body, "frequency_penalty", penalty, &s->frequency_penalty, error) &&
        api_field_real(body, "repetition_penalty", (api_real_range){0, 100, true},
                       &s->repetition_penalty, error);
    if (!is_read) return false;
    s->top_k = top_k > 0 ? (uint32_t)top_k : 0;
    if (s->top_p <= 0.0f) { /* the smallest set that reaches a share of 0: the likeliest token */
        s->top_p = 1.0f;
        s->top_k = 1;
    }
    return read_seed(body, out, error);
}

/* A token id as the key of logit_bias: digits only, as JavaScript and Python print it. */
static bool read_bias_token(const char *key, uint32_t n_vocab, uint32_t *token)
{
    const size_t n_digits = strspn(key, "0123456789");
    if (n_digits == 0 || n_digits > 10 || key[n_digits] != '\0') return false;
    const unsigned long long id = strtoull(key, NULL, 10);
    if (id >= n_vocab || (n_digits > 1 && key[0] == '0')) return false;
    *token = (uint32_t)id;
    return true;
}

static bool read_bias(const json_t *body, const api_limits *limits, completion_request *out,
                      api_error *error)
{
    static const char name[] = "logit_bias";
    const char *key;
    json_t *value;
    json_t *map = json_object_get(body, name);
    if (map == NULL || json_is_null(map)) return true;
    if (!json_is_object(map)) return api_refuse_value(error, name, map, "is not an object");
    if (json_object_size(map) == 0) return true;
    if (json_object_size(map) > API_BIAS_MAX) {
        return api_refuse(error, API_FAULT_REQUEST, name, "%s: %zu entries are more than %d", name,
                          json_object_size(map), API_BIAS_MAX);
    }
    sampler_bias *bias = calloc(json_object_size(map), sizeof *bias);
    if (bias == NULL) return refuse_memory(error);
    out->sampling.bias = bias;
    json_object_foreach(map, key, value)
    {
        sampler_bias *entry = &bias[out->sampling.n_bias];
        if (!read_bias_token(key, limits->n_vocab, &entry->token)) {
            return api_refuse(error, API_FAULT_REQUEST, name,
                              "%s: \"%.*s\" is not a token id below %u", name, API_ECHO_BYTES, key,
                              limits->n_vocab);
        }
        if (!json_is_number(value)) return api_refuse_value(error, name, value, "is not a number");
        const double x = json_number_value(value);
        if (!(x >= -100 && x <= 100)) {
            return api_refuse_value(error, name, value, "is outside [-100, 100]");
        }
        entry->bias = (float)x;
        out->sampling.n_bias++;
    }
    return true;
}

static bool read_stop(const json_t *value, completion_request *out, api_error *error)
{
    if (!json_is_string(value)) return api_refuse_value(error, "stop", value, "is not a string");
    const api_text text = {json_string_value(value), json_string_length(value)};
    if (text.n_bytes == 0) {
        return api_refuse(error, API_FAULT_REQUEST, "stop", "stop: a stop string is empty");
    }
    if (text.n_bytes > SESSION_STOP_BYTES_MAX) {
        return api_refuse_value(error, "stop", value, "is longer than %d bytes",
                                SESSION_STOP_BYTES_MAX);
    }
    out->stops[out->n_stops] = copy_text(text);
    if (out->stops[out->n_stops] == NULL) return refuse_memory(error);
    out->stop_bytes[out->n_stops++] = text.n_bytes;
    return true;
}

static bool read_stops(const json_t *body, completion_request *out, api_error *error)
{
    const json_t *stop = api_field(body, "stop");
    size_t i;
    json_t *value;
    if (stop == NULL) return true;
    if (!json_is_array(stop)) {
        if (json_is_string(stop)) return read_stop(stop, out, error);
        return api_refuse_value(error, "stop", stop, "is neither a string nor a list of strings");
    }
    if (json_array_size(stop) > SESSION_STOPS_MAX) {
        return api_refuse(error, API_FAULT_REQUEST, "stop", "stop: %zu strings are more than %d",
                          json_array_size(stop), SESSION_STOPS_MAX);
    }
    json_array_foreach(stop, i, value)
    {
        if (!read_stop(value, out, error)) return false;
    }
    return true;
}

static bool read_stop_ids(const json_t *body, const api_limits *limits, completion_request *out,
                          api_error *error)
{
    static const char name[] = "stop_token_ids";
    const json_t *ids = api_field(body, name);
    size_t i;
    json_t *value;
    if (ids == NULL) return true;
    if (!json_is_array(ids)) return api_refuse_value(error, name, ids, "is not a list");
    if (json_array_size(ids) > SESSION_STOP_IDS_MAX) {
        return api_refuse(error, API_FAULT_REQUEST, name, "%s: %zu ids are more than %d", name,
                          json_array_size(ids), SESSION_STOP_IDS_MAX);
    }
    json_array_foreach(ids, i, value)
    {
        int64_t id;
        const api_int_range range = {0, (int64_t)limits->n_vocab - 1};
        if (!api_value_int(value, name, range, &id, error)) return false;
        out->stop_ids[out->n_stop_ids++] = (uint32_t)id;
    }
    return true;
}

static bool read_stream(const json_t *body, completion_request *out, api_error *error)
{
    static const char name[] = "stream_options";
    if (!api_field_bool(body, "stream", &out->stream, error)) return false;
    const json_t *options = api_field(body, name);
    if (options == NULL) return true;
    if (!json_is_object(options)) return api_refuse_value(error, name, options, "is not an object");
    if (!out->stream) {
        return api_refuse(error, API_FAULT_REQUEST, name,
                          "stream_options is only allowed when stream is true");
    }
    const json_t *include = api_field(options, "include_usage");
    if (include == NULL) return true;
    if (!json_is_boolean(include)) {
        return api_refuse_value(error, name, include, "(include_usage) is not a boolean");
    }
    out->include_usage = json_is_true(include);
    return true;
}

static bool read_flags(const json_t *body, completion_request *out, api_error *error)
{
    return api_field_bool(body, "include_stop_str_in_output", &out->include_stop, error) &&
           api_field_bool(body, "ignore_eos", &out->ignore_eos, error) &&
           api_field_bool(body, "skip_special_tokens", &out->skip_special, error) &&
           api_field_bool(body, "add_special_tokens", &out->add_special, error) &&
           api_field_bool(body, "return_token_ids", &out->return_ids, error) &&
           api_field_bool(body, "return_tokens_as_token_ids", &out->tokens_as_ids, error);
}

static bool read_truncation(const json_t *body, completion_request *out, api_error *error)
{
    static const char name[] = "truncate_prompt_tokens";
    int64_t n = 0;
    const json_t *value = api_field(body, name);
    if (value == NULL) return true;
    if (!api_field_int(body, name, (api_int_range){-1, INT32_MAX}, &n, error)) return false;
    if (n == 0) return api_refuse_value(error, name, value, "is neither -1 nor positive");
    out->truncates = true;
    out->n_truncated = n > 0 ? (uint32_t)n : 0;
    return true;
}

/* An id that would not be safe in a header line is dropped, not refused: it is only an echo. */
static bool read_names(const json_t *body, completion_request *out, api_error *error)
{
    static const char safe[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.:";
    api_text salt = {NULL, 0};
    if (!api_field_text(body, "cache_salt", API_SALT_BYTES_MAX, &salt, error)) return false;
    if (salt.bytes != NULL && salt.n_bytes == 0) {
        return api_refuse(error, API_FAULT_REQUEST, "cache_salt", "cache_salt: the text is empty");
    }
    if (salt.bytes != NULL) {
        out->salt = copy_text(salt);
        if (out->salt == NULL) return refuse_memory(error);
        out->salt_bytes = salt.n_bytes;
    }
    const json_t *id = api_field(body, "request_id");
    if (id == NULL || !json_is_string(id)) return true;
    const size_t n = json_string_length(id);
    if (n >= API_REQUEST_ID_BYTES || strspn(json_string_value(id), safe) != n) return true;
    memcpy(out->request_id, json_string_value(id), n);
    return true;
}

void api_request_init(const api_limits *limits, completion_request *out)
{
    generation_config generation;
    generation_config_default(&generation);
    if (limits->generation != NULL) generation = *limits->generation;
    *out = (completion_request){.n = 1,
                                .max_tokens = MAX_TOKENS_DEFAULT,
                                .max_tokens_field = "max_tokens",
                                .skip_special = true,
                                .add_special = true,
                                .sampling = {.temperature = generation.temperature,
                                             .top_p = generation.top_p,
                                             .min_p = generation.min_p,
                                             .top_k = generation.top_k,
                                             .repetition_penalty = generation.repetition_penalty,
                                             .n_logprobs = -1}};
}

bool api_request_read_common(const json_t *body, const api_limits *limits, completion_request *out,
                             api_error *error)
{
    return read_counts(body, limits, out, error) && read_sampling(body, out, error) &&
           read_bias(body, limits, out, error) && read_stops(body, out, error) &&
           read_stop_ids(body, limits, out, error) && read_stream(body, out, error) &&
           read_flags(body, out, error) && read_truncation(body, out, error) &&
           read_names(body, out, error) && api_kv_read(body, limits->kv, out, error);
}

static bool read_logprobs(const json_t *body, const api_limits *limits, completion_request *out,
                          api_error *error)
{
    int64_t n_logprobs = -1;
    if (!api_field_int(body, "logprobs", (api_int_range){0, limits->n_logprobs_max}, &n_logprobs,
                       error)) {
        return false;
    }
    out->sampling.n_logprobs = (int32_t)n_logprobs;
    return true;
}

bool api_completion_parse(const api_limits *limits, const char *body, size_t body_bytes,
                          completion_request *out, api_error *error)
{
    api_request_init(limits, out);
    json_t *document = api_body_read(body, body_bytes, error);
    const bool is_read = document != NULL && api_request_read_model(document, limits, error) &&
                         api_request_refuse_unsupported(document, error) &&
                         api_prompts_read(document, limits, out, error) &&
                         read_logprobs(document, limits, out, error) &&
                         api_field_bool(document, "echo", &out->echo, error) &&
                         api_request_read_common(document, limits, out, error);
    json_decref(document);
    if (!is_read) api_completion_deinit(out);
    return is_read;
}

void api_chat_deinit(api_chat *chat)
{
    json_decref(chat->variables);
    free(chat->last);
    *chat = (api_chat){0};
}

void api_completion_deinit(completion_request *request)
{
    api_chat_deinit(&request->chat);
    for (size_t i = 0; i < request->n_prompts; i++) {
        free(request->prompts[i].text);
        free(request->prompts[i].ids);
    }
    free(request->prompts);
    for (uint32_t i = 0; i < request->n_stops; i++)
        free(request->stops[i]);
    free((void *)(uintptr_t)request->sampling.bias);
    free(request->salt);
    *request = (completion_request){0};
}
