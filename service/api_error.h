/* service/api_error.h - what a client is told when it cannot have what it asked for.
 *
 * OpenAI's error object: {"error":{"message","type","param","code"}}, all four keys always there. The first
 * failure wins. An error is bounded: the input that a message echoes (200 characters), the message
 * (500 bytes) and so the whole reply (4 KiB), whatever was sent. */
#ifndef SERVICE_API_ERROR_H
#define SERVICE_API_ERROR_H

#include <stdbool.h>
#include <stddef.h>

enum {
    API_MESSAGE_BYTES = 500,
    API_ECHO_BYTES = 200, /* of a refused value within a message */
    API_PARAM_BYTES = 80, /* of the path of a field, with the NUL */
    API_ERROR_BODY_BYTES = 4096
};

typedef struct api_error {
    unsigned status;        /* 0: nothing has failed */
    const char *type;       /* "invalid_request_error" ...; static */
    const char *param;      /* the field at fault, or NULL; param_bytes */
    const char *code;       /* or NULL; static */
    unsigned retry_after_s; /* 0: no Retry-After */
    char message[API_MESSAGE_BYTES + 1];
    char param_bytes[API_PARAM_BYTES]; /* which is why an error is never copied */
} api_error;

/* What an error is, apart from its words. */
typedef enum api_fault {
    API_FAULT_REQUEST,        /* 400 */
    API_FAULT_UNSUPPORTED,    /* 400: a known option that this server does not have */
    API_FAULT_CONTEXT_LENGTH, /* 400 context_length_exceeded */
    API_FAULT_KEY,            /* 401 invalid_api_key */
    API_FAULT_MODEL,          /* 404 model_not_found */
    API_FAULT_PATH,           /* 404 */
    API_FAULT_METHOD,         /* 405 */
    API_FAULT_QUEUE_FULL,     /* 429 */
    API_FAULT_ENGINE,         /* 500 */
    API_FAULT_MEMORY,         /* 500 */
    API_FAULT_LOADING,        /* 503 */
    API_FAULT_DRAINING,       /* 503 */
    API_FAULT_FAILED,         /* 503: the engine has stopped for good */
    API_FAULT_DEADLINE,       /* 504 */
    API_FAULT_COUNT
} api_fault;

/* Notes the first failure, with a copy of `param` ("n", "messages[1].content"). Returns false, so that readers write `return api_refuse(...)`. Bytes that are
 * not UTF-8 and control characters are replaced; long messages are cut between characters. */
bool api_refuse(api_error *error, api_fault fault, const char *param, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

/* The JSON document, with its length; always NUL-terminated. */
size_t api_error_write(const api_error *error, char out[API_ERROR_BODY_BYTES]);

#endif
