/* Promises of session_open when memory runs out. The linker wraps the allocator, so that one allocation
 * after the other can be made to fail; leaks are the address sanitizer's to find. */
#include "service/session.h"
#include "tests/test_main.h"

#include <stdlib.h>

static const uint32_t PROMPT[] = {1, 5, 9};
static const char *const STOPS[] = {"END", "\n\n"};
static const size_t STOP_BYTES[] = {3, 2};

static tokenizer *open_tokenizer(void)
{
    tokenizer *t;
    ck_assert_int_eq(tokenizer_open("models/storyteller", &t, NULL), ERR_OK);
    return t;
}

static session_spec scoring_spec(void)
{
    return (session_spec){.prompt = PROMPT,
                          .n_prompt = 3,
                          .max_tokens = 64,
                          .sampling = {.top_p = 1, .repetition_penalty = 1.1f, .n_logprobs = 3},
                          .stops = STOPS,
                          .stop_bytes = STOP_BYTES,
                          .n_stops = 2,
                          .score_prompt = true,
                          .salt = ""};
}

static int n_until_failure = -1; /* allocations that still succeed; -1: all */

static bool fails_now(void)
{
    if (n_until_failure < 0) return false;
    return n_until_failure-- == 0;
}

void *__real_malloc(size_t bytes);
void *__wrap_malloc(size_t bytes);
void *__wrap_malloc(size_t bytes)
{
    return fails_now() ? NULL : __real_malloc(bytes);
}

void *__real_calloc(size_t n, size_t bytes);
void *__wrap_calloc(size_t n, size_t bytes);
void *__wrap_calloc(size_t n, size_t bytes)
{
    return fails_now() ? NULL : __real_calloc(n, bytes);
}

void *__real_aligned_alloc(size_t alignment, size_t bytes);
void *__wrap_aligned_alloc(size_t alignment, size_t bytes);
void *__wrap_aligned_alloc(size_t alignment, size_t bytes)
{
    return fails_now() ? NULL : __real_aligned_alloc(alignment, bytes);
}

START_TEST(every_failed_allocation_is_an_error_and_no_leak)
{
    tokenizer *t = open_tokenizer();
    const session_spec spec = scoring_spec();
    session *s = NULL;
    int n_failures = 0;
    for (err_t err = ERR_NO_MEMORY; err != ERR_OK; n_failures++) {
        n_until_failure = n_failures;
        err = session_open(t, &spec, &s);
        n_until_failure = -1;
        if (err == ERR_OK) break;
        ck_assert_int_eq(err, ERR_NO_MEMORY);
        ck_assert_ptr_null(s);
    }
    ck_assert_int_ge(n_failures, 8);
    session_release(s);
    tokenizer_close(t);
}
END_TEST

START_TEST(a_size_that_overflows_is_an_error)
{
    tokenizer *t = open_tokenizer();
    session_spec spec = scoring_spec();
    session *s;
    spec.max_tokens = UINT32_MAX;
    ck_assert_int_eq(session_open(t, &spec, &s), ERR_OVERFLOW);
    ck_assert_ptr_null(s);
    tokenizer_close(t);
}
END_TEST
const test_case test_cases[] = {TEST_CASE(every_failed_allocation_is_an_error_and_no_leak),
                                TEST_CASE(a_size_that_overflows_is_an_error), TEST_CASES_END};
