/* service/api_prompt_json.c - see api_prompt_json.h. */
#include "service/api_prompt_json.h"

#include "base/check.h"

#include <stdlib.h>
#include <string.h>

static bool refuse_memory(api_error *error)
{
    return api_refuse(error, API_FAULT_MEMORY, NULL, "out of memory");
}

bool api_ids_read(const json_t *list, const char *name, uint32_t n_vocab, api_prompt *out,
                  api_error *error)
{
    const api_int_range range = {0, (int64_t)n_vocab - 1};
    const size_t n_ids = json_array_size(list);
    if (n_ids == 0) {
        return api_refuse(error, API_FAULT_REQUEST, name, "%s: a list of token ids is empty", name);
    }
    out->ids = malloc(n_ids * sizeof *out->ids); /* fewer than the body has bytes */
    if (out->ids == NULL) return refuse_memory(error);
    for (size_t i = 0; i < n_ids; i++) {
        int64_t id;
        if (!api_value_int(json_array_get(list, i), name, range, &id, error)) return false;
        out->ids[i] = (uint32_t)id;
    }
    out->n_ids = n_ids;
    return true;
}

static bool read_text(const json_t *value, api_prompt *out, api_error *error)
{
    const size_t n_bytes = json_string_length(value);
    out->text = malloc(n_bytes + 1);
    if (out->text == NULL) return refuse_memory(error);
    memcpy(out->text, json_string_value(value), n_bytes);
    out->text[n_bytes] = '\0';
    out->text_bytes = n_bytes;
    return true;
}

/* One element of a list of prompts; `is_text` is what the first element was. */
static bool read_prompt(const json_t *value, bool is_text, uint32_t n_vocab, api_prompt *out,
                        api_error *error)
{
    if (is_text && json_is_string(value)) return read_text(value, out, error);
    if (!is_text && json_is_array(value)) {
        return api_ids_read(value, "prompt", n_vocab, out, error);
    }
    return api_refuse_value(error, "prompt", value, "is not a %s, as the first element is",
                            is_text ? "string" : "list of token ids");
}

bool api_prompts_read(const json_t *body, const api_limits *limits, completion_request *out,
                      api_error *error)
{
    const json_t *prompt = api_field(body, "prompt");
    if (prompt == NULL) {
        return api_refuse(error, API_FAULT_REQUEST, "prompt", "prompt: the field is required");
    }
    if (!json_is_string(prompt) && !json_is_array(prompt)) {
        return api_refuse_value(error, "prompt", prompt, "is neither a string nor a list");
    }
    const json_t *first = json_array_get(prompt, 0); /* NULL for a string and for an empty list */
    if (json_is_array(prompt) && first == NULL) {
        return api_refuse(error, API_FAULT_REQUEST, "prompt", "prompt: the list is empty");
    }
    const bool is_list = json_is_string(first) || json_is_array(first);
    const size_t n_prompts = is_list ? json_array_size(prompt) : 1;
    if (n_prompts > limits->n_choices_max) {
        return api_refuse(error, API_FAULT_REQUEST, "prompt",
                          "prompt: %zu prompts are more than %u", n_prompts, limits->n_choices_max);
    }
    out->prompts = calloc(n_prompts, sizeof *out->prompts);
    if (out->prompts == NULL) return refuse_memory(error);
    out->n_prompts = n_prompts;
    if (json_is_string(prompt)) return read_text(prompt, &out->prompts[0], error);
    if (!is_list) return api_ids_read(prompt, "prompt", limits->n_vocab, &out->prompts[0], error);
    for (size_t i = 0; i < n_prompts; i++) {
        const json_t *value = json_array_get(prompt, i);
        if (!read_prompt(value, json_is_string(first), limits->n_vocab, &out->prompts[i], error)) {
            return false;
        }
    }
    return true;
}
