/* web/http.h over real sockets: the protocol, and the library's traps that concern it. */
#include "tests/web/web_fixture.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define HOST "Host: test\r\n"

static web_fixture f;
static web_reply reply;

START_TEST(a_request_is_seen_whole_and_answered)
{
    const http_config config = web_config();
    web_open(&f, &config);
    web_ask(&f, "POST /echo?q=a%20b+c HTTP/1.1\r\n" HOST "Content-Length: 5\r\n\r\nhello", &reply);
    ck_assert_uint_eq(reply.status, 200);
    ck_assert_str_eq(reply.body, "POST /echo q=a b c n=5");
    ck_assert_ptr_nonnull(strstr(reply.head, "X-Peer: 127.0.0.1"));
    ck_assert_ptr_nonnull(strstr(reply.head, "Date: "));
    web_close(&f);
}
END_TEST

START_TEST(a_path_is_not_decoded)
{
    const http_config config = web_config();
    web_open(&f, &config);
    web_ask(&f, "GET /echo%00%2f?q=%41 HTTP/1.1\r\n" HOST "\r\n", &reply);
    ck_assert_str_eq(reply.body, "GET /echo%00%2f q=A n=0");
    web_ask(&f, "GET http://test/abs?q=1 HTTP/1.1\r\n" HOST "\r\n", &reply);
    ck_assert_str_eq(reply.body, "GET /abs q=1 n=0");
    web_close(&f);
}
END_TEST

START_TEST(a_head_request_gets_the_head_of_a_get)
{
    const http_config config = web_config();
    web_open(&f, &config);
    const int fd = web_request(&f, "HEAD /echo HTTP/1.1\r\n" HOST "\r\n");
    web_read_head_only(fd, &reply);
    ck_assert_uint_eq(reply.status, 200);
    ck_assert_ptr_nonnull(strstr(reply.head, "Content-Length: 18"));
    web_send(fd, "GET /next HTTP/1.1\r\n" HOST "\r\n"); /* nothing of a body lies in between */
    web_read(fd, &reply);
    ck_assert_str_eq(reply.body, "GET /next q=- n=0");
    close(fd);
    web_close(&f);
}
END_TEST

START_TEST(a_connection_serves_many_requests)
{
    const http_config config = web_config();
    web_open(&f, &config);
    const int fd = web_connect(&f);
    for (int i = 0; i < 20; i++) {
        web_send(fd, "POST /echo HTTP/1.1\r\n" HOST "Content-Length: 2\r\n\r\nhi");
        web_read(fd, &reply);
        ck_assert_str_eq(reply.body, "POST /echo q=- n=2");
    }
    http_counters counters;
    http_server_counters(f.server, &counters);
    ck_assert_uint_eq(counters.connections_accepted, 1);
    close(fd);
    web_close(&f);
}
END_TEST

START_TEST(pipelined_requests_are_answered_in_order)
{
    const http_config config = web_config();
    web_open(&f, &config);
    f.finish_at_once = true;
    const int fd = web_request(&f, "GET /one HTTP/1.1\r\n" HOST "\r\n"
                                   "GET /late HTTP/1.1\r\n" HOST "\r\n"
                                   "POST /two HTTP/1.1\r\n" HOST "Content-Length: 3\r\n\r\nabc"
                                   "GET /three HTTP/1.1\r\n" HOST "Connection: close\r\n\r\n");
    const char *const bodies[] = {"GET /one q=- n=0", "late", "POST /two q=- n=3",
                                  "GET /three q=- n=0"};
    for (size_t i = 0; i < 4; i++) {
        web_read(fd, &reply);
        ck_assert_str_eq(reply.body, bodies[i]);
    }
    ck_assert(web_is_closed(fd));
    close(fd);
    web_close(&f);
}
END_TEST

START_TEST(a_client_that_expects_it_is_told_to_continue)
{
    const http_config config = web_config();
    web_open(&f, &config);
    const int fd = web_request(&f, "POST /echo HTTP/1.1\r\n" HOST
                                   "Content-Length: 5\r\nExpect: 100-continue\r\n\r\n");
    web_read_head_only(fd, &reply);
    ck_assert_uint_eq(reply.status, 100);
    web_send(fd, "hello");
    web_read(fd, &reply);
    ck_assert_str_eq(reply.body, "POST /echo q=- n=5");
    close(fd);
    web_close(&f);
}
END_TEST

START_TEST(a_client_that_expects_it_is_refused_before_it_sends_too_much)
{
    const http_config config = web_config();
    web_open(&f, &config);
    const int fd = web_request(&f, "POST /echo HTTP/1.1\r\n" HOST
                                   "Content-Length: 100001\r\nExpect: 100-continue\r\n\r\n");
    web_read_head_only(fd, &reply);
    ck_assert_uint_eq(reply.status, 413);
    close(fd);
    web_close(&f);
}
END_TEST

START_TEST(an_old_client_gets_its_stream_without_chunks)
{
    const http_config config = web_config();
    web_open(&f, &config);
    const int fd = web_request(&f, "GET /stream HTTP/1.0\r\n\r\n");
    WAIT_FOR(atomic_load(&f.n_jobs) == 1);
    web_job_write(f.jobs[0], 10);
    web_job_finish(f.jobs[0]);
    web_read(fd, &reply);
    ck_assert_uint_eq(reply.status, 200);
    ck_assert_ptr_null(strcasestr(reply.head, "chunked"));
    ck_assert_uint_eq(reply.body_bytes, 10);
    close(fd);
    web_close(&f);
}
END_TEST

START_TEST(contradictory_lengths_are_refused)
{
    const http_config config = web_config();
    web_open(&f, &config);
    const char *const heads[] = {
        "Host: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "Host: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        "Host: a\r\nHost: b\r\nContent-Length: 5\r\n\r\nhello",
        "Host: a\r\nTransfer-Encoding: gzip\r\n\r\nhello",
        "Host: a\r\nContent-Length: -5\r\n\r\n",
        "Content-Length: 5\r\n\r\nhello",
    };
    for (size_t i = 0; i < sizeof heads / sizeof *heads; i++) {
        const int fd = web_request(&f, "POST /echo HTTP/1.1\r\n");
        web_send(fd, heads[i]);
        web_read(fd, &reply);
        ck_assert_msg(reply.status == 400, "case %zu: %u", i, reply.status);
        ck_assert(web_is_closed(fd)); /* what follows would be read differently by each reader */
        close(fd);
    }
    ck_assert_int_eq(atomic_load(&f.n_handled), 0);
    http_counters counters;
    http_server_counters(f.server, &counters);
    ck_assert_uint_ge(counters.bad_heads, 4);
    web_close(&f);
}
END_TEST

START_TEST(refusals_carry_the_handlers_error_body)
{
    const http_config config = web_config();
    web_open(&f, &config);
    web_ask(&f, "POST / HTTP/1.1\r\n" HOST "Content-Length: 100001\r\n\r\n", &reply);
    ck_assert_uint_eq(reply.status, 413);
    ck_assert_ptr_nonnull(strstr(reply.body, "{\"status\":413,"));
    ck_assert_ptr_nonnull(strstr(reply.head, "application/json"));
    web_close(&f);
}
END_TEST

START_TEST(garbage_is_refused_and_the_server_lives)
{
    http_config config = web_config();
    /* An end of stream that comes with the last bytes may escape the library: the deadline cuts. */
    config.head_timeout_ms = 500;
    web_open(&f, &config);
    static char huge[50000];
    memset(huge, 'a', sizeof huge - 1);
    const char *const texts[] = {
        "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", /* a TLS hello */
        "GET\r\n\r\n",
        "GET / HTTP/9.9\r\n\r\n",
        "GET / HTTP/1.1\r\nno colon\r\n\r\n",
        "GET / HTTP/1.1\r\n: empty\r\n\r\n",
        "GET / HTTP/1.1\r\nHost : a\r\n\r\n",
        "\r\n\r\n\r\n\r\n",
    };
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        const int fd = web_request(&f, texts[i]);
        shutdown(fd, SHUT_WR);
        ck_assert(web_is_closed(fd));
        close(fd);
    }
    const int fd = web_request(&f, "GET /");
    (void)web_try_send(fd, huge, sizeof huge - 1);
    (void)web_try_send(fd, " HTTP/1.1\r\n\r\n", 13);
    web_read(fd, &reply);
    ck_assert_uint_eq(reply.status, 414);
    close(fd);
    const int other = web_request(&f, "GET / HTTP/1.1\r\n" HOST "X: ");
    (void)web_try_send(other, huge, sizeof huge - 1);
    (void)web_try_send(other, "\r\n\r\n", 4);
    web_read(other, &reply);
    ck_assert_uint_eq(reply.status, 431);
    close(other);
    web_ask(&f, "GET /echo HTTP/1.1\r\n" HOST "\r\n", &reply);
    ck_assert_uint_eq(reply.status, 200);
    web_close(&f);
}
END_TEST

START_TEST(a_chunked_body_is_put_together)
{
    const http_config config = web_config();
    web_open(&f, &config);
    web_ask(&f,
            "POST /echo HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\n\r\n"
            "5\r\nhello\r\n7;x=y\r\n, world\r\n0\r\n\r\n",
            &reply);
    ck_assert_str_eq(reply.body, "POST /echo q=- n=12");
    web_close(&f);
}
END_TEST

static void never(void *ctx, http_exchange *ex)
{
    (void)ctx;
    (void)ex;
    abort();
}

START_TEST(an_address_in_use_is_named_in_the_error)
{
    http_config config = web_config();
    web_open(&f, &config);
    config.port = f.port;
    const http_handler handler = {.handle = never};
    http_server *second;
    err_info info = {0};
    ck_assert_int_eq(http_server_open(&config, &handler, &second, &info), ERR_SYSTEM);
    ck_assert_ptr_null(second);
    ck_assert_ptr_nonnull(strstr(info.message, strerror(EADDRINUSE)));
    config.host = "no such host.invalid";
    info = (err_info){0};
    ck_assert_int_eq(http_server_open(&config, &handler, &second, &info), ERR_BAD_CONFIG);
    http_server_close(NULL);
    web_close(&f);
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE(a_request_is_seen_whole_and_answered),
    TEST_CASE(a_path_is_not_decoded),
    TEST_CASE(a_head_request_gets_the_head_of_a_get),
    TEST_CASE(a_connection_serves_many_requests),
    TEST_CASE(pipelined_requests_are_answered_in_order),
    TEST_CASE(a_client_that_expects_it_is_told_to_continue),
    TEST_CASE(a_client_that_expects_it_is_refused_before_it_sends_too_much),
    TEST_CASE(an_old_client_gets_its_stream_without_chunks),
    TEST_CASE(contradictory_lengths_are_refused),
    TEST_CASE(refusals_carry_the_handlers_error_body),
    TEST_CASE(garbage_is_refused_and_the_server_lives),
    TEST_CASE(a_chunked_body_is_put_together),
    TEST_CASE(an_address_in_use_is_named_in_the_error),
    TEST_CASES_END,
};
