/* base/arena.h - many allocations, one free.
 *
 * An arena is one block, allocated once, from which aligned pieces are cut; it is reset or closed as
 * a whole. To size one, run the same cuts over a measuring arena first (arena_init_measure), which
 * returns no memory and only counts: the two passes share one function, so they cannot disagree.
 * Under AddressSanitizer a poisoned gap follows every piece.
 *
 * Threads: none; one owner at a time. */
#ifndef BASE_ARENA_H
#define BASE_ARENA_H

#include "base/error.h"

#include <stddef.h>
#include <stdint.h>

enum { ARENA_ALIGN = 64 }; /* bytes: a cache line, and the widest vector load */

typedef struct arena {
    void *block;           /* what is freed; NULL while measuring, and over borrowed memory */
    uint8_t *base;         /* first aligned byte of block; NULL while measuring */
    size_t capacity_bytes; /* SIZE_MAX while measuring */
    size_t used_bytes;     /* of both kinds; what arena_open needs after a measuring pass */
    err_t err; /* first failure: ERR_OVERFLOW or ERR_NO_MEMORY; later cuts return NULL */
} arena;

/* An arena that only counts. */
void arena_init_measure(arena *a);

/* An arena over one fresh zeroed block of `bytes`. Close with arena_deinit. */
err_t arena_init(arena *a, size_t bytes) MUST_CHECK;

/* An arena over memory that is borrowed, which the host may not be able to reach: it is neither read nor
 * written. `base` is aligned to ARENA_ALIGN. */
void arena_init_over(arena *a, void *base, size_t bytes);

/* Frees the block. A zeroed arena is fine. */
void arena_deinit(arena *a);

/* n * each bytes, aligned to ARENA_ALIGN. Zeroed on first use of the block. NULL while measuring or
 * after a failure, which a->err remembers; callers check a->err once at the end of a placing pass. */
void *arena_take(arena *a, size_t n, size_t each_bytes);

/* Forgets all pieces; the block stays. */
void arena_reset(arena *a);

#endif
