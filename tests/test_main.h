/* tests/test_main.h - one test binary per module.
 *
 * A test file defines `const test_case test_cases[]`, ended by {NULL, NULL, 0}; test_main.c runs them all with Check, each in
 * its own process, or only those whose names are given as arguments. Names are promises. */
#ifndef TESTS_TEST_MAIN_H
#define TESTS_TEST_MAIN_H

#include <check.h>

typedef struct test_case {
    const char *name;    /* "a_pinned_page_is_never_evicted" */
    const TTest *test;   /* from START_TEST */
    double timeout_seconds; /* 0: 60 */
} test_case;

extern const test_case test_cases[];

#define TEST_CASE(name) {#name, name, 0}
#define TEST_CASES_END  {NULL, NULL, 0}

#endif
