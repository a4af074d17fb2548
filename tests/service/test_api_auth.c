/* API keys: where they come from and which headers show one. */
#include "service/api.h"
#include "tests/test_main.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static api_keys open_keys(char *const *given, size_t n_given, const char *file)
{
    api_keys keys;
    err_info info = {0};
    char path[] = "/tmp/pikv-keys-XXXXXX";
    serve_config config = {.api_keys = {(char **)given, n_given}};
    ck_assert_int_eq(hash_init(), ERR_OK);
    if (file != NULL) {
        const int fd = mkstemp(path);
        ck_assert_int_ge(fd, 0);
        ck_assert_int_eq(write(fd, file, strlen(file)), (ssize_t)strlen(file));
        close(fd);
        config.api_key_file = path;
    }
    const err_t err = api_keys_open(&config, &keys, &info);
    if (file != NULL) unlink(path);
    if (err != ERR_OK) ck_abort_msg("%s", info.message);
    return keys;
}

START_TEST(without_keys_everybody_is_welcome)
{
    api_keys keys = open_keys(NULL, 0, NULL);
    ck_assert(api_keys_accept(&keys, NULL, NULL));
    ck_assert(api_keys_accept(&keys, "Bearer anything", NULL));
    api_keys_deinit(&keys);
}
END_TEST

START_TEST(any_of_the_keys_opens_in_either_header)
{
    char a[] = "alpha", b[] = "beta";
    char *given[] = {a, b};
    api_keys keys = open_keys(given, 2, NULL);
    ck_assert(api_keys_accept(&keys, "Bearer alpha", NULL));
    ck_assert(api_keys_accept(&keys, "bearer beta", NULL));
    ck_assert(api_keys_accept(&keys, "BEARER   beta  ", NULL));
    ck_assert(api_keys_accept(&keys, NULL, "alpha"));
    ck_assert(api_keys_accept(&keys, "Basic xyz", "beta"));
    ck_assert(!api_keys_accept(&keys, NULL, NULL));
    ck_assert(!api_keys_accept(&keys, "Bearer ", NULL));
    ck_assert(!api_keys_accept(&keys, "Bearer", NULL));
    ck_assert(!api_keys_accept(&keys, "", ""));
    ck_assert(!api_keys_accept(&keys, "Bearer alph", NULL));
    ck_assert(!api_keys_accept(&keys, "Bearer alphaa", NULL));
    ck_assert(!api_keys_accept(&keys, "Bearer Alpha", NULL));
    ck_assert(!api_keys_accept(&keys, "alpha", NULL));
    ck_assert(!api_keys_accept(&keys, "Basic alpha", NULL));
    api_keys_deinit(&keys);
}
END_TEST

START_TEST(a_file_holds_one_key_a_line)
{
    char a[] = "alpha";
    char *given[] = {a};
    api_keys keys = open_keys(given, 1, "# team keys\n\n  one\t\r\ntwo words\nlast");
    ck_assert_uint_eq(keys.n_keys, 4);
    ck_assert(api_keys_accept(&keys, NULL, "one"));
    ck_assert(api_keys_accept(&keys, NULL, "two words"));
    ck_assert(api_keys_accept(&keys, "Bearer last", NULL));
    ck_assert(api_keys_accept(&keys, NULL, "alpha"));
    ck_assert(!api_keys_accept(&keys, NULL, "# team keys"));
    api_keys_deinit(&keys);
}
END_TEST

static err_t open_file(const char *path, err_info *info)
{
    api_keys keys;
    char *copy = strdup(path);
    const serve_config config = {.api_key_file = copy};
    const err_t err = api_keys_open(&config, &keys, info);
    free(copy);
    return err;
}

START_TEST(a_file_without_a_key_does_not_open_the_door)
{
    err_info info = {0};
    ck_assert_int_eq(open_file("/dev/null", &info), ERR_BAD_CONFIG);
    ck_assert_str_eq(info.message, "api-key-file: /dev/null holds no key");
    info = (err_info){0};
    ck_assert_int_eq(open_file("/no/such/file", &info), ERR_IO);
    ck_assert_str_eq(info.message, "api-key-file: /no/such/file: No such file or directory");
}
END_TEST

START_TEST(an_empty_key_is_refused)
{
    char empty[] = "";
    char *given[] = {empty};
    api_keys keys;
    err_info info = {0};
    const serve_config config = {.api_keys = {given, 1}};
    ck_assert_int_eq(api_keys_open(&config, &keys, &info), ERR_BAD_CONFIG);
}
END_TEST

const test_case test_cases[] = {TEST_CASE(without_keys_everybody_is_welcome),
                                TEST_CASE(any_of_the_keys_opens_in_either_header),
                                TEST_CASE(a_file_holds_one_key_a_line),
                                TEST_CASE(a_file_without_a_key_does_not_open_the_door),
                                TEST_CASE(an_empty_key_is_refused),
                                TEST_CASES_END};
