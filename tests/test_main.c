/* Runs the test_cases of the file that it is linked with, each as a Check test of its own. */
#include "tests/test_main.h"

#include <stdlib.h>
#include <string.h>

/* A test that hangs ends; one that is merely slow - instrumented, on a busy machine - does not. */
enum { DEFAULT_SECONDS = 240 };

enum { SKIPPED = 77 };

/* Weak: for all binaries that need nothing. */
__attribute__((weak)) bool test_can_run(void)
{
    return true;
}

static bool is_wanted(const char *name, int argc, char **argv)
{
    if (argc < 2) return true;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], name) == 0) return true;
    }
    return false;
}

int main(int argc, char **argv)
{
    if (!test_can_run()) return SKIPPED;
    Suite *suite = suite_create(argv[0]);
    for (const test_case *c = test_cases; c->name != NULL; c++) {
        if (!is_wanted(c->name, argc, argv)) continue;
        TCase *tcase = tcase_create(c->name);
        tcase_set_timeout(tcase, c->timeout_seconds > 0 ? c->timeout_seconds : DEFAULT_SECONDS);
        tcase_add_test(tcase, c->test);
        suite_add_tcase(suite, tcase);
    }
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    const int n_run = srunner_ntests_run(runner);
    const int n_failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return n_run > 0 && n_failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
