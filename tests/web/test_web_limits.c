/* web/http.h under clients that are too big, too slow or too many. */
#include "tests/web/web_fixture.h"

#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define HOST "Host: test\r\n"

static web_fixture f;
static web_reply reply;

static http_counters counters(void)
{
    http_counters c;
    http_server_counters(f.server, &c);
    return c;
}

/* Sends one byte every 20 ms until the server has had enough. */
static void trickle(int fd)
{
    for (int i = 0; i < 1000; i++) {
        if (!web_try_send(fd, "a", 1)) return;
        usleep(20000);
    }
    ck_abort_msg("a client of one byte at a time was never cut");
}

START_TEST(an_announced_length_over_the_cap_is_refused_before_the_body)
{
    const http_config config = web_config();
    web_open(&f, &config);
    const int fd = web_request(&f, "POST /echo HTTP/1.1\r\n" HOST "Content-Length: 100001\r\n\r\n");
    web_read(fd, &reply);
    ck_assert_uint_eq(reply.status, 413);
    ck_assert(web_is_closed(fd));
    close(fd);
    ck_assert_int_eq(atomic_load(&f.n_handled), 0);
    web_close(&f);
}
END_TEST

START_TEST(a_body_as_long_as_the_cap_is_taken)
{
    const http_config config = web_config();
    static char body[100000];
    web_open(&f, &config);
    const int fd = web_request(&f, "POST /echo HTTP/1.1\r\n" HOST "Content-Length: 100000\r\n\r\n");
    ck_assert(web_try_send(fd, body, sizeof body));
    web_read(fd, &reply);
    ck_assert_str_eq(reply.body, "POST /echo q=- n=100000");
    close(fd);
    web_close(&f);
}
END_TEST

START_TEST(a_chunked_body_over_the_cap_is_refused_at_its_end)
{
    const http_config config = web_config();
    static char chunk[100001];
    web_open(&f, &config);
    const int fd = web_request(&f, "POST /echo HTTP/1.1\r\n" HOST
                                   "Transfer-Encoding: chunked\r\n\r\n186a1\r\n");
    ck_assert(web_try_send(fd, chunk, sizeof chunk));
    web_send(fd, "\r\n0\r\n\r\n");
    web_read(fd, &reply);
    ck_assert_uint_eq(reply.status, 413);
    close(fd);
    ck_assert_int_eq(atomic_load(&f.n_handled), 0);
    web_close(&f);
}
END_TEST

START_TEST(an_endless_chunked_body_is_cut)
{
    const http_config config = web_config();
    static char chunk[65536];
    web_open(&f, &config);
    const int fd =
        web_request(&f, "POST /echo HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\n\r\n");
    bool is_open = true;
    for (int i = 0; i < 1000 && is_open; i++) {
        is_open = web_try_send(fd, "10000\r\n", 7) && web_try_send(fd, chunk, sizeof chunk) &&
                  web_try_send(fd, "\r\n", 2);
    }
    ck_assert(!is_open);
    close(fd);
    ck_assert_int_eq(atomic_load(&f.n_handled), 0);
    web_close(&f);
}
END_TEST

START_TEST(a_head_of_one_byte_at_a_time_is_cut)
{
    http_config config = web_config();
    config.head_timeout_ms = 300;
    web_open(&f, &config);
    int fd = web_request(&f, "GET /"); /* inside the request line */
    trickle(fd);
    close(fd);
    fd = web_request(&f, "GET / HTTP/1.1\r\n" HOST "X: "); /* inside a header */
    trickle(fd);
    close(fd);
    fd = web_connect(&f); /* silent */
    ck_assert(web_is_closed(fd));
    close(fd);
    ck_assert_int_eq(atomic_load(&f.n_handled), 0);
    web_close(&f);
}
END_TEST

START_TEST(a_slow_head_or_body_is_told_why)
{
    http_config config = web_config();
    config.head_timeout_ms = config.body_timeout_ms = 300;
    web_open(&f, &config);
    web_ask(&f, "GET / HTTP/1.1\r\n" HOST "X: ", &reply);
    ck_assert_uint_eq(reply.status, 408);
    web_ask(&f, "POST / HTTP/1.1\r\n" HOST "Content-Length: 10\r\n\r\nabc", &reply);
    ck_assert_uint_eq(reply.status, 408);
    ck_assert_ptr_nonnull(strstr(reply.body, "{\"status\":408"));
    web_close(&f);
}
END_TEST

START_TEST(a_body_of_one_byte_at_a_time_is_cut)
{
    http_config config = web_config();
    config.body_timeout_ms = 300;
    web_open(&f, &config);
    const int fd = web_request(&f, "POST / HTTP/1.1\r\n" HOST "Content-Length: 90000\r\n\r\n");
    trickle(fd);
    close(fd);
    ck_assert_int_eq(atomic_load(&f.n_handled), 0);
    web_close(&f);
}
END_TEST

START_TEST(an_idle_connection_is_closed_and_a_sleeping_exchange_is_not)
{
    http_config config = web_config();
    config.head_timeout_ms = config.body_timeout_ms = config.idle_timeout_ms = 200;
    config.write_timeout_ms = 200;
    web_open(&f, &config);
    const int idle = web_request(&f, "GET /echo HTTP/1.1\r\n" HOST "\r\n");
    web_read(idle, &reply);
    ck_assert_uint_eq(reply.status, 200);
    const int late = web_request(&f, "GET /late HTTP/1.1\r\n" HOST "\r\n");
    const int stream = web_request(&f, "GET /stream HTTP/1.1\r\n" HOST "\r\n");
    ck_assert(web_is_closed(idle));
    usleep(600000); /* three times every timeout */
    WAIT_FOR(atomic_load(&f.n_jobs) == 2);
    web_job_finish(f.jobs[0]);
    web_job_finish(f.jobs[1]);
    web_read(late, &reply);
    ck_assert_str_eq(reply.body, "late");
    web_read(stream, &reply);
    ck_assert_uint_eq(reply.status, 200);
    ck_assert(!reply.is_cut);
    close(idle);
    close(late);
    close(stream);
    web_close(&f);
}
END_TEST

START_TEST(connections_over_the_limit_get_a_503_not_a_hang)
{
    enum { N = 4, MORE = 60 };
    http_config config = web_config();
    config.n_connections_max = N;
    web_open(&f, &config);
    int fds[N];
    for (int i = 0; i < N; i++) {
        fds[i] = web_request(&f, "GET /late HTTP/1.1\r\n" HOST "\r\n");
        WAIT_FOR(atomic_load(&f.n_jobs) == i + 1);
    }
    for (int i = 0; i < MORE; i++) { /* one after the other */
        web_ask(&f, "GET /echo HTTP/1.1\r\n" HOST "\r\n", &reply);
        ck_assert_uint_eq(reply.status, 503);
        ck_assert_ptr_nonnull(strstr(reply.head, "Retry-After: 1"));
        ck_assert_ptr_nonnull(strcasestr(reply.head, "Connection: close"));
    }
    ck_assert_uint_eq(counters().connections_refused, MORE);
    int more[MORE];
    for (int i = 0; i < MORE; i++)
        more[i] = web_connect(&f); /* many at once, and silent */
    for (int i = 0; i < MORE; i++) {
        (void)web_try_send(more[i], "GET / HTTP/1.1\r\nHost: a\r\n\r\n", 27);
        ck_assert(web_is_closed(more[i]));
        close(more[i]);
    }
    for (int i = 0; i < N; i++) {
        web_job_finish(f.jobs[i]);
        web_read(fds[i], &reply);
        ck_assert_str_eq(reply.body, "late");
        close(fds[i]);
    }
    for (int i = 0; i < 2000 && reply.status != 200; i++) {
        web_ask(&f, "GET /echo HTTP/1.1\r\n" HOST "\r\n", &reply); /* until the closes are seen */
    }
    ck_assert_uint_eq(reply.status, 200);
    web_close(&f);
}
END_TEST

/* The server's buffer grows while the socket is full; the stream then has to go. */
START_TEST(a_slow_reader_is_dropped)
{
    http_config config = web_config();
    config.stream_bytes_max = 100000;
    web_open(&f, &config);
    const int fd = web_request(&f, "GET /stream HTTP/1.1\r\n" HOST "\r\n");
    WAIT_FOR(atomic_load(&f.n_jobs) == 1);
    web_job *const job = f.jobs[0];
    for (int i = 0; i < 10000 && atomic_load(&job->n_gone) == 0; i++) {
        const int n = atomic_load(&job->n_polls);
        web_job_write(job, 50000);
        WAIT_FOR(atomic_load(&job->n_polls) > n || atomic_load(&job->n_gone) > 0);
    }
    WAIT_FOR(atomic_load(&job->n_done) == 1);
    ck_assert_int_eq(atomic_load(&job->n_gone), 1);
    ck_assert_uint_eq(counters().streams_dropped, 1);
    close(fd);
    web_close(&f);
}
END_TEST

START_TEST(a_reader_that_stops_is_dropped_after_the_write_timeout)
{
    http_config config = web_config();
    config.write_timeout_ms = 400;
    config.stream_bytes_max = (size_t)1 << 30;
    web_open(&f, &config);
    const int fd = web_request(&f, "GET /stream HTTP/1.1\r\n" HOST "\r\n");
    WAIT_FOR(atomic_load(&f.n_jobs) == 1);
    web_job_write(f.jobs[0], (size_t)32 << 20); /* more than any socket buffer here */
    WAIT_FOR(atomic_load(&f.jobs[0]->n_done) == 1);
    ck_assert_int_eq(atomic_load(&f.jobs[0]->n_gone), 1);
    ck_assert_uint_eq(counters().streams_dropped, 1);
    close(fd);
    web_close(&f);
}
END_TEST

START_TEST(a_slow_but_steady_reader_is_served)
{
    http_config config = web_config();
    config.write_timeout_ms = 1000;
    config.stream_bytes_max = (size_t)1 << 30;
    web_open(&f, &config);
    const int fd = web_request(&f, "GET /stream HTTP/1.1\r\n" HOST "\r\n");
    WAIT_FOR(atomic_load(&f.n_jobs) == 1);
    web_job_write(f.jobs[0], (size_t)16 << 20);
    web_job_finish(f.jobs[0]);
    static char block[1 << 18];
    size_t n_read = 0;
    ssize_t n;
    while ((n = recv(fd, block, sizeof block, 0)) > 0) {
        n_read += (size_t)n;
        usleep(10000);
        if (n >= 5 && memcmp(block + n - 5, "0\r\n\r\n", 5) == 0) break;
    }
    ck_assert_uint_gt(n_read, (size_t)16 << 20);
    WAIT_FOR(atomic_load(&f.jobs[0]->n_done) == 1);
    ck_assert_int_eq(atomic_load(&f.jobs[0]->n_gone), 0);
    close(fd);
    web_close(&f);
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE(an_announced_length_over_the_cap_is_refused_before_the_body),
    TEST_CASE(a_body_as_long_as_the_cap_is_taken),
    TEST_CASE(a_chunked_body_over_the_cap_is_refused_at_its_end),
    TEST_CASE(an_endless_chunked_body_is_cut),
    TEST_CASE(a_head_of_one_byte_at_a_time_is_cut),
    TEST_CASE(a_slow_head_or_body_is_told_why),
    TEST_CASE(a_body_of_one_byte_at_a_time_is_cut),
    TEST_CASE(an_idle_connection_is_closed_and_a_sleeping_exchange_is_not),
    TEST_CASE(connections_over_the_limit_get_a_503_not_a_hang),
    TEST_CASE(a_slow_reader_is_dropped),
    TEST_CASE(a_reader_that_stops_is_dropped_after_the_write_timeout),
    TEST_CASE(a_slow_but_steady_reader_is_served),
    TEST_CASES_END,
};
