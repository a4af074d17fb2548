/* Chunks double, so that a large rendering makes few of them, and a small one pays for little. */
#include "service/jinja/jinja_heap.h"

#include "base/check.h"

#include <stdlib.h>
#include <string.h>

enum { CHUNK_BYTES_MIN = 4096, CHUNK_BYTES_MAX = 1 << 20, PIECE_ALIGN = 16 };

struct jinja_chunk {
    jinja_chunk *older;
    size_t n_bytes; /* behind this header */
};

void jinja_heap_init(jinja_heap *heap, size_t limit_bytes)
{
    *heap = (jinja_heap){.limit_bytes = limit_bytes};
}

void jinja_heap_deinit(jinja_heap *heap)
{
    for (jinja_chunk *chunk = heap->chunks; chunk != NULL;) {
        jinja_chunk *older = chunk->older;
        free(chunk);
        chunk = older;
    }
    *heap = (jinja_heap){0};
}

static bool grow(jinja_heap *heap, size_t n_bytes)
{
    size_t chunk_bytes = heap->chunks == NULL ? CHUNK_BYTES_MIN : heap->chunks->n_bytes * 2;
    chunk_bytes = max_size(min_size(chunk_bytes, CHUNK_BYTES_MAX), n_bytes);
    const size_t left_bytes = heap->limit_bytes - heap->used_bytes;
    heap->is_over_limit = n_bytes > left_bytes;
    if (heap->is_over_limit) return false;
    chunk_bytes = min_size(chunk_bytes, left_bytes);
    jinja_chunk *chunk = malloc(sizeof(jinja_chunk) + chunk_bytes);
    if (chunk == NULL) return false;
    *chunk = (jinja_chunk){.older = heap->chunks, .n_bytes = chunk_bytes};
    heap->chunks = chunk;
    heap->next = (char *)(chunk + 1);
    heap->end = heap->next + chunk_bytes;
    heap->used_bytes += chunk_bytes;
    return true;
}

char *jinja_heap_take_text(jinja_heap *heap, size_t n_bytes)
{
    if (heap->next == NULL || n_bytes > (size_t)(heap->end - heap->next)) {
        if (!grow(heap, n_bytes)) return NULL;
    }
    char *piece = heap->next;
    heap->next += n_bytes;
    return piece;
}

void *jinja_heap_take(jinja_heap *heap, size_t n, size_t each_bytes)
{
    size_t n_bytes, padded_bytes;
    if (size_mul(n, each_bytes, &n_bytes) != ERR_OK ||
        size_add(n_bytes, PIECE_ALIGN, &padded_bytes) != ERR_OK) {
        heap->is_over_limit = true;
        return NULL;
    }
    char *piece = jinja_heap_take_text(heap, padded_bytes);
    if (piece == NULL) return NULL;
    piece = (char *)round_up((size_t)piece, PIECE_ALIGN);
    memset(piece, 0, n_bytes);
    return piece;
}

bool jinja_heap_extend(jinja_heap *heap, const char *text, size_t n_bytes, size_t n_more)
{
    if (heap->next == NULL || text + n_bytes != heap->next) return false;
    if (n_more > (size_t)(heap->end - heap->next)) return false;
    heap->next += n_more;
    return true;
}
