/* service/api_error_json.c - see api_error.h.
 *
 * One table maps a fault to what OpenAI's clients look at: status, type and code. A 5xx is only ever
 * sent for what may succeed later, because the SDKs repeat such requests by themselves. */
#include "service/api_error.h"

#include "base/check.h"
#include "base/utf8.h"

#include <jansson.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static const struct {
    unsigned status;
    const char *type;
    const char *code;
    unsigned retry_after_s;
} faults[API_FAULT_COUNT] = {
    [API_FAULT_REQUEST] = {400, "invalid_request_error", NULL, 0},
    [API_FAULT_UNSUPPORTED] = {400, "invalid_request_error", "unsupported_parameter", 0},
    [API_FAULT_CONTEXT_LENGTH] = {400, "invalid_request_error", "context_length_exceeded", 0},
    [API_FAULT_KEY] = {401, "invalid_request_error", "invalid_api_key", 0},
    [API_FAULT_MODEL] = {404, "invalid_request_error", "model_not_found", 0},
    [API_FAULT_PATH] = {404, "invalid_request_error", "not_found", 0},
    [API_FAULT_METHOD] = {405, "invalid_request_error", "method_not_allowed", 0},
    [API_FAULT_QUEUE_FULL] = {429, "rate_limit_error", "queue_full", 1},
    [API_FAULT_ENGINE] = {500, "server_error", NULL, 0},
    [API_FAULT_MEMORY] = {500, "server_error", "out_of_memory", 0},
    [API_FAULT_LOADING] = {503, "service_unavailable_error", "loading", 2},
    [API_FAULT_DRAINING] = {503, "service_unavailable_error", "draining", 5},
    [API_FAULT_FAILED] = {503, "service_unavailable_error", "engine_failed", 10},
    [API_FAULT_DEADLINE] = {504, "timeout_error", "request_timeout", 0},
};

/* Replaces what is not UTF-8 and what a terminal would obey, in place: only ASCII '?' is written. */
static void clean(char *text)
{
    for (size_t rest = strlen(text); rest > 0;) {
        const utf8_step step = utf8_next(text, rest);
        const unsigned char first = (unsigned char)text[0];
        if (step.status == UTF8_INCOMPLETE) { /* cut by the size of the buffer */
            *text = '\0';
            return;
        }
        if (step.status == UTF8_INVALID || first < 0x20 || first == 0x7f) {
            memset(text, '?', step.bytes);
        }
        text += step.bytes;
        rest -= step.bytes;
    }
}

bool api_refuse(api_error *error, api_fault fault, const char *param, const char *format, ...)
{
    if (error->status != 0) return false;
    *error = (api_error){.status = faults[fault].status,
                         .type = faults[fault].type,
                         .code = faults[fault].code,
                         .retry_after_s = faults[fault].retry_after_s};
    if (param != NULL) {
        snprintf(error->param_bytes, sizeof error->param_bytes, "%s", param);
        error->param = error->param_bytes;
    }
    va_list values;
    va_start(values, format);
    const int n = vsnprintf(error->message, sizeof error->message, format, values);
    va_end(values);
    if (n < 0) error->message[0] = '\0';
    clean(error->message);
    return false;
}

size_t api_error_write(const api_error *error, char out[API_ERROR_BODY_BYTES])
{
    static const char fallback[] = "{\"error\":{\"message\":\"out of memory\",\"type\":"
                                   "\"server_error\",\"param\":null,\"code\":\"out_of_memory\"}}";
    json_t *document = json_pack("{s:{s:s,s:s,s:s?,s:s?}}", "error", "message", error->message,
                                 "type", error->type, "param", error->param, "code", error->code);
    const size_t n =
        document != NULL ? json_dumpb(document, out, API_ERROR_BODY_BYTES - 1, JSON_COMPACT) : 0;
    json_decref(document);
    if (n == 0 || n > API_ERROR_BODY_BYTES - 1) {
        memcpy(out, fallback, sizeof fallback);
        return sizeof fallback - 1;
    }
    out[n] = '\0';
    return n;
}
