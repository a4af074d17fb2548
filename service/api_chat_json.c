/* service/api_chat_json.c - the fields of POST /v1/chat/completions that are its own. See api_request.h. */
#include "service/api_messages_json.h"
#include "service/api_request_json.h"

#include <stdlib.h>
#include <string.h>

/* Known options of this route that would change the answer. */
static bool refuse_unsupported(const json_t *body, api_error *error)
{
    static const char *const names[] = {"audio", "web_search_options"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        if (api_field(body, names[i]) == NULL) continue;
        return api_refuse(error, API_FAULT_UNSUPPORTED, names[i], "%s is not supported", names[i]);
    }
    const json_t *modalities = api_field(body, "modalities");
    size_t i;
    json_t *modality;
    if (modalities == NULL) return true;
    if (!json_is_array(modalities))
        return api_refuse_value(error, "modalities", modalities, "is not a list");
    json_array_foreach(modalities, i, modality)
    {
        if (json_is_string(modality) && strcmp(json_string_value(modality), "text") == 0) continue;
        return api_refuse(error, API_FAULT_UNSUPPORTED, "modalities",
                          "modalities: only \"text\" is supported");
    }
    return true;
}

/* `logprobs` says whether, `top_logprobs` how many beside the token itself. */
static bool read_logprobs(const json_t *body, const api_limits *limits, completion_request *out,
                          api_error *error)
{
    static const char name[] = "top_logprobs";
    bool wants = false;
    int64_t n_top = 0;
    const api_int_range range = {0, limits->n_logprobs_max};
    if (!api_field_bool(body, "logprobs", &wants, error) ||
        !api_field_int(body, name, range, &n_top, error)) {
        return false;
    }
    if (!wants && n_top > 0) {
        return api_refuse(error, API_FAULT_REQUEST, name, "%s needs logprobs to be true", name);
    }
    if (wants) out->sampling.n_logprobs = (int32_t)n_top;
    return true;
}

/* One prompt, whose text the template will make. */
static bool put_prompt(completion_request *out, api_error *error)
{
    out->prompts = calloc(1, sizeof *out->prompts);
    if (out->prompts == NULL) return api_refuse(error, API_FAULT_MEMORY, NULL, "out of memory");
    out->n_prompts = 1;
    return true;
}

bool api_chat_parse(const api_limits *limits, const char *body, size_t body_bytes,
                    completion_request *out, api_error *error)
{
    static const char newer[] = "max_completion_tokens";
    api_request_init(limits, out);
    out->max_tokens = API_TOKENS_MAX; /* as many as fit */
    out->add_special = false;
    json_t *document = api_body_read(body, body_bytes, error);
    if (api_field(document, newer) != NULL) out->max_tokens_field = newer;
    const bool is_read = document != NULL && api_request_read_model(document, limits, error) &&
                         api_request_refuse_unsupported(document, error) &&
                         refuse_unsupported(document, error) &&
                         api_messages_read(document, limits, &out->chat, error) &&
                         put_prompt(out, error) && read_logprobs(document, limits, out, error) &&
                         api_request_read_common(document, limits, out, error);
    if (out->chat.tools != NULL) {
        out->hide_eos = true;
        if (out->chat.tools->shows_special) out->skip_special = false;
    }
    json_decref(document);
    if (!is_read) api_completion_deinit(out);
    return is_read;
}
