/* web/ when memory runs out: allocation N fails, for N = 0, 1, 2 ... until all succeed. The linker
 * sends the allocations of web/ through the functions below (--wrap); those inside the C library and
 * the HTTP library are not reached. */
#include "tests/web/web_fixture.h"

#include <stdlib.h>
#include <string.h>

static atomic_int n_until_failure = -1; /* < 0: never */

static bool fails(void)
{
    return atomic_load(&n_until_failure) >= 0 && atomic_fetch_sub(&n_until_failure, 1) == 0;
}

void *__real_malloc(size_t bytes);
void *__real_calloc(size_t n, size_t bytes);
void *__real_realloc(void *block, size_t bytes);
char *__real_strdup(const char *text);
void *__wrap_malloc(size_t bytes);
void *__wrap_calloc(size_t n, size_t bytes);
void *__wrap_realloc(void *block, size_t bytes);
char *__wrap_strdup(const char *text);

void *__wrap_malloc(size_t bytes)
{
    return fails() ? NULL : __real_malloc(bytes);
}

void *__wrap_calloc(size_t n, size_t bytes)
{
    return fails() ? NULL : __real_calloc(n, bytes);
}

void *__wrap_realloc(void *block, size_t bytes)
{
    return fails() ? NULL : __real_realloc(block, bytes);
}

char *__wrap_strdup(const char *text)
{
    return fails() ? NULL : __real_strdup(text);
}

static web_fixture f;
static web_reply reply;

static void ignore(void *ctx, http_exchange *ex)
{
    (void)ctx;
    (void)ex;
}

START_TEST(opening_fails_cleanly_at_every_allocation)
{
    const http_config config = web_config();
    const http_handler handler = {.handle = ignore};
    err_t err = ERR_NO_MEMORY;
    for (int n = 0; err != ERR_OK; n++) {
        http_server *server;
        err_info info = {0};
        ck_assert_int_lt(n, 100);
        atomic_store(&n_until_failure, n);
        err = http_server_open(&config, &handler, &server, &info);
        atomic_store(&n_until_failure, -1);
        ck_assert_int_eq(err, info.code);
        http_server_close(server);
    }
}
END_TEST

/* The reply is right or there is none, and the server goes on. */
static void survive(const char *text, const char *body)
{
    bool succeeded = false;
    for (int n = 0; !succeeded; n++) {
        ck_assert_int_lt(n, 100);
        const int fd = web_connect(&f);
        usleep(10000); /* its connection may be made before or after: both are tried */
        atomic_store(&n_until_failure, n);
        (void)web_try_send(fd, text, strlen(text));
        web_read(fd, &reply);
        succeeded = atomic_exchange(&n_until_failure, -1) >= 0;
        if (succeeded || reply.status != 0) ck_assert_str_eq(reply.body, body);
        close(fd);
    }
    WAIT_FOR(http_server_n_active(f.server) == 0);
}

START_TEST(requests_fail_alone_at_every_allocation)
{
    const http_config config = web_config();
    atomic_store(&n_until_failure, -1);
    web_open(&f, &config);
    survive("POST /echo?q=1 HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
            "POST /echo q=1 n=5");
    web_close(&f);
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE(opening_fails_cleanly_at_every_allocation),
    TEST_CASE(requests_fail_alone_at_every_allocation),
    TEST_CASES_END,
};
