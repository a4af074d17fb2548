/* model/text_buffer.c - see text_buffer.h. */
#include "model/text_buffer.h"

#include "base/check.h"

#include <stdlib.h>
#include <string.h>

enum { LEAST_ROOM = 64 };

err_t text_buffer_reserve(text_buffer *b, size_t n_bytes)
{
    size_t needed;
    TRY(size_add(b->n_bytes, n_bytes, &needed));
    if (needed <= b->room && b->bytes != NULL) return ERR_OK;
    const size_t room = max_size(max_size(needed, b->room * 2), LEAST_ROOM);
    char *const bytes = realloc(b->bytes, room);
    if (bytes == NULL) return ERR_NO_MEMORY;
    b->bytes = bytes;
    b->room = room;
    return ERR_OK;
}

err_t text_buffer_append(text_buffer *b, const char *bytes, size_t n_bytes)
{
    TRY(text_buffer_reserve(b, n_bytes));
    if (n_bytes > 0) memcpy(b->bytes + b->n_bytes, bytes, n_bytes);
    b->n_bytes += n_bytes;
    return ERR_OK;
}

err_t id_list_push(id_list *l, uint32_t id)
{
    if (l->n == l->room) {
        const size_t room = max_size(l->room * 2, LEAST_ROOM);
        uint32_t *const ids = realloc(l->id, room * sizeof *ids);
        if (ids == NULL) return ERR_NO_MEMORY;
        l->id = ids;
        l->room = room;
    }
    l->id[l->n++] = id;
    return ERR_OK;
}
