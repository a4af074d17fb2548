/* The readers of POST /v1/completions and /v1/chat/completions under any bytes: never a crash, and always either a
 * request within the limits or an error that is small and complete. */
#include "base/check.h"
#include "service/api_request.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

typedef bool (*reader)(const api_limits *limits, const char *body, size_t body_bytes,
                       completion_request *out, api_error *error);

static void check(reader parse, const api_limits *limits, const char *body, size_t bytes)
{
    completion_request request;
    api_error error = {0};
    if (parse(limits, body, bytes, &request, &error)) {
        assert(error.status == 0);
        assert(request.n_prompts >= 1);
        assert(request.n * request.n_prompts <= limits->n_choices_max);
        for (size_t i = 0; i < request.n_prompts; i++) {
            for (size_t t = 0; t < request.prompts[i].n_ids; t++)
                assert(request.prompts[i].ids[t] < limits->n_vocab);
        }
        assert(request.sampling.n_logprobs <= (int32_t)limits->n_logprobs_max);
        assert(request.sampling.top_p > 0.0f);
        assert(!request.has_kv || request.kv.routing != NULL);
        assert((request.chat.variables != NULL) == (parse == api_chat_parse));
        assert(request.chat.variables == NULL || request.chat.role != NULL);
        assert(request.chat.tools == NULL || request.hide_eos);
        assert(!request.chat.continues || request.chat.last != NULL);
        api_completion_deinit(&request);
        return;
    }
    char out[API_ERROR_BODY_BYTES];
    assert(error.status == 400 || error.status == 404 || error.status == 500);
    assert(api_error_write(&error, out) == strlen(out));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    static const char *const names[] = {"model"};
    const kv_config kv = {.request_methods = true,
                          .routing = (char *)(uintptr_t) "full",
                          .scheduling = (char *)(uintptr_t) "none",
                          .compression = (char *)(uintptr_t) "none",
                          .rewrite = (char *)(uintptr_t) "none"};
    const api_limits limits = {.n_vocab = 1000,
                               .n_logprobs_max = 20,
                               .n_choices_max = 64,
                               .model_names = names,
                               .n_model_names = 1,
                               .tools = tool_parsers[bytes % 5],
                               .kv = &kv};
    check(api_completion_parse, &limits, (const char *)data, bytes);
    check(api_chat_parse, &limits, (const char *)data, bytes);
    return 0;
}
