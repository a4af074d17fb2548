/* model/text_buffer.h - a growing text and a growing list of ids, for the tokenizer.
 *
 * Both start zeroed, double when they are full, and are freed by their owner with free(). */
#ifndef MODEL_TEXT_BUFFER_H
#define MODEL_TEXT_BUFFER_H

#include "base/error.h"

#include <stddef.h>
#include <stdint.h>

/* A piece of somebody else's text; it need not end with a NUL. */
typedef struct text_view {
    const char *bytes;
    size_t n_bytes;
} text_view;

typedef struct text_buffer {
    char *bytes; /* NULL until something was reserved */
    size_t n_bytes;
    size_t room;
} text_buffer;

/* Room for n_bytes more. ERR_NO_MEMORY. */
err_t text_buffer_reserve(text_buffer *b, size_t n_bytes) MUST_CHECK;
err_t text_buffer_append(text_buffer *b, const char *bytes, size_t n_bytes) MUST_CHECK;

typedef struct id_list {
    uint32_t *id; /* [n] of [room] */
    size_t n;
    size_t room;
} id_list;

err_t id_list_push(id_list *l, uint32_t id) MUST_CHECK;

#endif
