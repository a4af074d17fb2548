/* base/error.h - errors as values.
 *
 * Every fallible function returns an err_t and delivers its result through an out parameter.
 * Functions that read other people's data (files, flags, requests) also take an err_info *, which
 * keeps the first failure only: the first message is the cause, later ones are consequences.
 * Zero is success everywhere. A bug is not an error: see base/check.h. */
#ifndef BASE_ERROR_H
#define BASE_ERROR_H

#include <stddef.h>

/*        code               sentence                                                      */
#define ERR_MAP(X)                                       \
    X(ERR_OK, "success")                                 \
    X(ERR_NO_MEMORY, "out of memory")                    \
    X(ERR_OVERFLOW, "a size does not fit")               \
    X(ERR_IO, "input or output failed")                  \
    X(ERR_NOT_FOUND, "not found")                        \
    X(ERR_BAD_ARGUMENT, "a value is outside its limits") \
    X(ERR_BAD_CONFIG, "the configuration is invalid")    \
    X(ERR_BAD_MODEL, "the model files are invalid")      \
    X(ERR_BAD_REQUEST, "the request is invalid")         \
    X(ERR_UNSUPPORTED, "not supported")                  \
    X(ERR_KV_FULL, "the KV cache has no free page")      \
    X(ERR_QUEUE_FULL, "the queue is full")               \
    X(ERR_CLOSED, "closed")                              \
    X(ERR_PEER_GONE, "the peer has left")                \
    X(ERR_PEER_LOST, "a rank of the group is lost")      \
    X(ERR_TIMEOUT, "the deadline has passed")            \
    X(ERR_SYSTEM, "a system call failed")

typedef enum err_t {
#define X(code, sentence) code,
    ERR_MAP(X)
#undef X
        ERR_COUNT
} err_t;

#define MUST_CHECK __attribute__((warn_unused_result))

enum { ERR_MESSAGE_BYTES = 256 };

typedef struct err_info {
    err_t code;                      /* ERR_OK while nothing has failed */
    char message[ERR_MESSAGE_BYTES]; /* NUL-terminated, one line, valid only when code != ERR_OK */
} err_info;

#ifdef __cplusplus
extern "C" {
#endif

/* The sentence of a code; never NULL. */
const char *err_sentence(err_t code);

/* The code's own name, "ERR_IO"; never NULL. */
const char *err_name(err_t code);

/* Notes the first failure in `info` (NULL allowed) and returns `code`, so that callers write
 * `return err_set(info, ERR_BAD_MODEL, "...", ...)`. Long messages are cut; control characters are
 * replaced by '?', since parts of a message may come from a file or a client. */
err_t err_set(err_info *info, err_t code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Returns early when an expression fails and nothing is owned yet. */
#define TRY(expression)                          \
    do {                                         \
        const err_t try_err_ = (expression);     \
        if (try_err_ != ERR_OK) return try_err_; \
    } while (0)

#ifdef __cplusplus
}
#endif

#endif
