/* tests/base/promise.h - START_TEST and TEST_CASE as constants.
 *
 * Check's START_TEST makes the test's name a variable that points to its TTest. C does not accept a
 * variable in a static table, so here the name stays a name and the table holds the address. */
#ifndef TESTS_BASE_PROMISE_H
#define TESTS_BASE_PROMISE_H

#include "tests/test_main.h"

#undef START_TEST
#define START_TEST(name)                                                         \
    static void name##_fn(int _i);                                               \
    static const TTest name##_ttest = {"" #name, name##_fn, __FILE__, __LINE__}; \
    static void name##_fn(int _i CK_ATTRIBUTE_UNUSED)

#undef TEST_CASE
#define TEST_CASE(name)         \
    {                           \
#name, &name##_ttest, 0 \
    }

#endif
