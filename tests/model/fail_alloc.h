/* tests/model/fail_alloc.h - the Nth allocation from now on fails, and all after it.
 *
 * C code is linked with --wrap for malloc, calloc, realloc, aligned_alloc and strdup; cJSON gets hooks;
 * C++ has its operator new replaced (fail_new.cc). Before the countdown starts nothing fails. */
#ifndef TESTS_MODEL_FAIL_ALLOC_H
#define TESTS_MODEL_FAIL_ALLOC_H

#include <stdbool.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

void fail_alloc_start(long n_good);    /* so many succeed first */
bool fail_alloc_stop(void);            /* true if any has failed */
bool fail_alloc_now(void);             /* for allocators: counts one; true: fail it */
void fail_alloc_spare_new(bool spare); /* C++ allocations neither count nor fail */
bool fail_alloc_now_new(void);         /* for operator new */
void fail_alloc_hook_json(void);       /* cJSON's allocations count too */
/* jansson's, too; its reader, which takes what it could not copy for bad JSON, fails as a whole or not */
void fail_alloc_hook_jansson(void);

#ifdef __cplusplus
}
#endif

#endif
