/* A chat template and a context under any bytes: never a crash, and always either a text within the limits
 * or an error in words. The input is a template and, behind a line "----", the JSON of its context. */
#include "base/check.h"
#include "base/utf8.h"
#include "service/jinja/jinja.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static const char DEFAULT_CONTEXT[] = "{\"messages\": [{\"role\": \"system\", \"content\": \" a "
                                      "b\\n\"}, {\"role\": \"user\", \"content\":"
                                      " \"\\u00e9\\ud83d\\ude42\"}, {\"role\": \"assistant\", "
                                      "\"content\": null, \"tool_calls\": [{\"id\":"
                                      " 1.5}]}], \"tools\": [{\"a\": [[1, 2], {}]}], \"x\": -7, "
                                      "\"s\": \"a,b,c\", \"add_generation_prompt\":"
                                      " true}";

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    const jinja_limits limits = {
        .output_bytes = 1 << 16, .memory_bytes = 1 << 20, .steps = 50000, .now = 1795342272};
    const char *source = (const char *)data;
    const char *cut = bytes > 0 ? memmem(source, bytes, "\n----\n", 6) : NULL;
    const size_t n_source = cut != NULL ? (size_t)(cut - source) : bytes;
    jinja *template;
    err_info info = {0};
    const err_t compiled = jinja_compile(source, n_source, &template, &info);
    assert((template != NULL) == (compiled == ERR_OK));
    if (compiled != ERR_OK) {
        assert(compiled == ERR_UNSUPPORTED || compiled == ERR_BAD_MODEL);
        assert(info.code == compiled && info.message[0] != '\0');
        return 0;
    }
    json_t *context = NULL;
    if (cut != NULL) context = json_loadb(cut + 6, bytes - n_source - 6, JSON_ALLOW_NUL, NULL);
    if (!json_is_object(context)) {
        json_decref(context);
        context = json_loadb(DEFAULT_CONTEXT, sizeof DEFAULT_CONTEXT - 1, 0, NULL);
    }
    char *text;
    size_t n_bytes;
    const err_t rendered = jinja_render(template, context, &limits, &text, &n_bytes, &info);
    if (rendered == ERR_OK) {
        assert(n_bytes <= limits.output_bytes);
        assert(text[n_bytes] == '\0');
        assert(utf8_valid(text, n_bytes));
    } else {
        assert(rendered == ERR_BAD_REQUEST && text == NULL);
        assert(info.code == rendered);
    }
    free(text);
    json_decref(context);
    jinja_free(template);
    return 0;
}
