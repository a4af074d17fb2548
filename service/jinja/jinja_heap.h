/* service/jinja/jinja_heap.h - memory of one template or of one rendering: many pieces, one free.
 *
 * Unlike base/arena.h it grows, in chunks, up to a limit: what a template will need is not known before
 * it has run. The last piece may be extended where it lies, so that a text put together piece by piece
 * is not copied each time.
 *
 * Threads: none; one owner at a time. */
#ifndef SERVICE_JINJA_JINJA_HEAP_H
#define SERVICE_JINJA_JINJA_HEAP_H

#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>

typedef struct jinja_chunk jinja_chunk;

typedef struct jinja_heap {
    jinja_chunk *chunks; /* newest first */
    char *next, *end;    /* the free part of the newest */
    size_t limit_bytes;  /* of all chunks */
    size_t used_bytes;   /* of all chunks */
    bool is_over_limit;  /* why the last piece was refused: the limit, or else the system */
} jinja_heap;

void jinja_heap_init(jinja_heap *heap, size_t limit_bytes);
void jinja_heap_deinit(jinja_heap *heap); /* a zeroed one is fine */

/* Zeroed and aligned for any type; NULL over the limit or without memory. */
void *jinja_heap_take(jinja_heap *heap, size_t n, size_t each_bytes) MUST_CHECK;
/* Bytes without alignment, not zeroed. */
char *jinja_heap_take_text(jinja_heap *heap, size_t n_bytes) MUST_CHECK;
/* More bytes behind text[0, n_bytes), if it is the last piece and they fit in its chunk. */
bool jinja_heap_extend(jinja_heap *heap, const char *text, size_t n_bytes, size_t n_more);

#endif
