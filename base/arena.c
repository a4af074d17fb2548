/* base/arena.c - see arena.h.
 *
 * The block comes from calloc, so that the pages of a large arena stay untouched (and therefore
 * cost nothing) until they are used; it is one alignment unit longer than asked for, because calloc
 * aligns to 16 bytes only. */
#include "base/arena.h"

#include "base/check.h"

#include <stdlib.h>

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define ARENA_POISON
#endif
#endif
#if defined(__SANITIZE_ADDRESS__)
#define ARENA_POISON
#endif

#ifdef ARENA_POISON
#include <sanitizer/asan_interface.h>
enum { GAP_BYTES = ARENA_ALIGN };
static void poison(void *data, size_t bytes)
{
    ASAN_POISON_MEMORY_REGION(data, bytes);
}
static void unpoison(void *data, size_t bytes)
{
    ASAN_UNPOISON_MEMORY_REGION(data, bytes);
}
#else
enum { GAP_BYTES = 0 };
static void poison(void *data, size_t bytes)
{
    (void)data;
    (void)bytes;
}
static void unpoison(void *data, size_t bytes)
{
    (void)data;
    (void)bytes;
}
#endif

void arena_init_measure(arena *a)
{
    *a = (arena){.capacity_bytes = SIZE_MAX};
}

err_t arena_init(arena *a, size_t bytes)
{
    *a = (arena){0};
    size_t block_bytes;
    TRY(size_add(bytes, ARENA_ALIGN, &block_bytes));
    a->block = calloc(1, block_bytes);
    if (a->block == NULL) return ERR_NO_MEMORY;
    a->base = (uint8_t *)round_up((uintptr_t)a->block, ARENA_ALIGN);
    a->capacity_bytes = bytes;
    poison(a->base, bytes);
    return ERR_OK;
}

void arena_init_over(arena *a, void *base, size_t bytes)
{
    assert((uintptr_t)base % ARENA_ALIGN == 0);
    *a = (arena){.base = base, .capacity_bytes = bytes};
}

void arena_deinit(arena *a)
{
    if (a->block != NULL) unpoison(a->base, a->capacity_bytes);
    free(a->block);
    *a = (arena){0};
}

/* bytes of one piece, rounded so that the next one is aligned too; the gap included. */
static err_t piece_bytes(size_t n, size_t each_bytes, size_t *out)
{
    size_t bytes;
    TRY(size_mul(n, each_bytes, &bytes));
    TRY(size_add(bytes, ARENA_ALIGN - 1 + GAP_BYTES, &bytes));
    *out = bytes / ARENA_ALIGN * ARENA_ALIGN;
    return ERR_OK;
}

void *arena_take(arena *a, size_t n, size_t each_bytes)
{
    if (a->err != ERR_OK) return NULL;
    size_t bytes, used_bytes;
    a->err = piece_bytes(n, each_bytes, &bytes);
    if (a->err == ERR_OK) a->err = size_add(a->used_bytes, bytes, &used_bytes);
    if (a->err != ERR_OK) return NULL;
    if (used_bytes > a->capacity_bytes) {
        a->err = ERR_NO_MEMORY;
        return NULL;
    }
    if (a->base == NULL) { /* measuring */
        a->used_bytes = used_bytes;
        return NULL;
    }
    uint8_t *piece = a->base + a->used_bytes;
    a->used_bytes = used_bytes;
    if (a->block != NULL) unpoison(piece, n * each_bytes);
    return piece;
}

void arena_reset(arena *a)
{
    if (a->block != NULL) poison(a->base, a->capacity_bytes);
    a->used_bytes = 0;
    a->err = ERR_OK;
}
