/* tests/model/fail_alloc_json.c - see fail_alloc.h. */
#include "tests/model/fail_alloc.h"

#include <cjson/cJSON.h>
#include <stdatomic.h>
#include <stdlib.h>

static atomic_bool
    is_counting; /* the tests' own state: a wrapped malloc has no other place for it */
static atomic_long n_left;
static atomic_bool has_failed;
static atomic_bool spares_new;

void fail_alloc_start(long n_good)
{
    atomic_store(&n_left, n_good);
    atomic_store(&has_failed, false);
    atomic_store(&is_counting, true);
}

bool fail_alloc_stop(void)
{
    atomic_store(&is_counting, false);
    return atomic_load(&has_failed);
}

bool fail_alloc_now(void)
{
    if (!atomic_load(&is_counting) || atomic_fetch_sub(&n_left, 1) > 0) return false;
    atomic_store(&has_failed, true);
    return true;
}

void fail_alloc_spare_new(bool spare)
{
    atomic_store(&spares_new, spare);
}

bool fail_alloc_now_new(void)
{
    return !atomic_load(&spares_new) && fail_alloc_now();
}

void *__real_malloc(size_t bytes);
void *__real_calloc(size_t n, size_t bytes);
void *__real_realloc(void *old, size_t bytes);
void *__real_aligned_alloc(size_t align, size_t bytes);
void *__wrap_malloc(size_t bytes);
void *__wrap_calloc(size_t n, size_t bytes);
void *__wrap_realloc(void *old, size_t bytes);
void *__wrap_aligned_alloc(size_t align, size_t bytes);

void *__wrap_malloc(size_t bytes)
{
    return fail_alloc_now() ? NULL : __real_malloc(bytes);
}

void *__wrap_calloc(size_t n, size_t bytes)
{
    return fail_alloc_now() ? NULL : __real_calloc(n, bytes);
}

void *__wrap_realloc(void *old, size_t bytes)
{
    return fail_alloc_now() ? NULL : __real_realloc(old, bytes);
}

void *__wrap_aligned_alloc(size_t align, size_t bytes)
{
    return fail_alloc_now() ? NULL : __real_aligned_alloc(align, bytes);
}

void fail_alloc_hook_json(void)
{
    cJSON_InitHooks(
        &(cJSON_Hooks){.malloc_fn = malloc, .free_fn = free}); /* this malloc is wrapped */
}
