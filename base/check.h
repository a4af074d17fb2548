/* base/check.h - assertions and checked arithmetic.
 *
 * assert() stays on in every build: it states what must be true of our own code, and a false one is
 * a bug. Nothing a file, a peer or a client sends may reach one. paranoid_assert() is for checks
 * that walk a structure; it runs in the dev, asan and tsan presets and is compiled in all. */
#ifndef BASE_CHECK_H
#define BASE_CHECK_H

#include "base/error.h"

#include <assert.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef NDEBUG
#error "assertions stay on: do not define NDEBUG"
#endif

#ifdef PIKV_PARANOID
#define paranoid_assert(condition) assert(condition)
#else
#define paranoid_assert(condition) ((void)(0 && (condition)))
#endif

/* out = a * b; ERR_OVERFLOW if it does not fit in a size_t (out is then unchanged). */
static inline MUST_CHECK err_t size_mul(size_t a, size_t b, size_t *out)
{
    size_t product;
    if (__builtin_mul_overflow(a, b, &product)) return ERR_OVERFLOW;
    *out = product;
    return ERR_OK;
}

/* out = a + b; ERR_OVERFLOW if it does not fit in a size_t (out is then unchanged). */
static inline MUST_CHECK err_t size_add(size_t a, size_t b, size_t *out)
{
    size_t sum;
    if (__builtin_add_overflow(a, b, &sum)) return ERR_OVERFLOW;
    *out = sum;
    return ERR_OK;
}

/* a rounded up to a multiple of unit (unit > 0). The caller has made sure that it fits. */
static inline size_t round_up(size_t a, size_t unit)
{
    return (a + unit - 1) / unit * unit;
}

static inline size_t min_size(size_t a, size_t b)
{
    return a < b ? a : b;
}

static inline size_t max_size(size_t a, size_t b)
{
    return a > b ? a : b;
}

#endif
