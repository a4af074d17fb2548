/* tests/test_main.h - one test binary per module.
 *
 * A test file defines `const test_case test_cases[]`, ended by {NULL, NULL, 0}; test_main.c runs them
 * all with Check, each in its own process, or only those whose names are given as arguments. Names are
 * promises. */
#ifndef TESTS_TEST_MAIN_H
#define TESTS_TEST_MAIN_H

#include <check.h>
#include <stdbool.h>

typedef struct test_case {
    const char *name;       /* "a_pinned_page_is_never_evicted" */
    const TTest *test;      /* from START_TEST */
    double timeout_seconds; /* 0: 240 */
} test_case;

extern const test_case test_cases[];

/* A file whose tests need what a machine may lack defines it; if false, the binary is skipped (77), and
 * has printed why. */
bool test_can_run(void);

/* Check makes a test's name a variable that points to its TTest, and C takes no variable in a static
 * table; so here the table holds the address of the TTest itself. */
#undef START_TEST
#define START_TEST(name)                                                         \
    static void name##_fn(int _i);                                               \
    static const TTest name##_ttest = {"" #name, name##_fn, __FILE__, __LINE__}; \
    static void name##_fn(int _i CK_ATTRIBUTE_UNUSED)

/* Check writes down every assertion that holds, and reads that file in quadratic time: millions of them would take longer
 * than what they look at. So each place is written down once; what a crash is told to come after is the last new one. */
#define _mark_point(file, line)                                   \
    ({                                                            \
        static bool is_marked;                                    \
        if (!__atomic_load_n(&is_marked, __ATOMIC_RELAXED)) {     \
            __atomic_store_n(&is_marked, true, __ATOMIC_RELAXED); \
            (_mark_point)((file), (line));                        \
        }                                                         \
    })

/* clang-format off */
#define TEST_CASE(name)                  {#name, &name##_ttest, 0}
#define TEST_CASE_SECONDS(name, seconds) {#name, &name##_ttest, (seconds)}
#define TEST_CASES_END                   {NULL, NULL, 0}
/* clang-format on */

#endif
