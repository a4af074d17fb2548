/* web/http.h: exchanges that sleep, and everything that may happen to them at the same time. */
#include "base/random.h"
#include "tests/web/web_fixture.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>

#define HOST "Host: test\r\n"

static web_fixture f;
static web_reply reply;

static int begin(const char *path)
{
    char text[128];
    snprintf(text, sizeof text, "GET %s HTTP/1.1\r\n" HOST "\r\n", path);
    const int n = atomic_load(&f.n_jobs);
    const int fd = web_request(&f, text);
    WAIT_FOR(atomic_load(&f.n_jobs) == n + 1);
    return fd;
}

static uint64_t n_clients_gone(void)
{
    http_counters c;
    http_server_counters(f.server, &c);
    return c.clients_gone;
}

START_TEST(a_deferred_exchange_is_polled_once_and_after_wakes)
{
    const http_config config = web_config();
    web_open(&f, &config);
    const int fd = begin("/late");
    web_job *const job = f.jobs[0];
    WAIT_FOR(atomic_load(&job->n_polls) == 1);
    http_wake(job->waker);
    WAIT_FOR(atomic_load(&job->n_polls) == 2);
    ck_assert_uint_eq(http_server_n_active(f.server), 1);
    web_job_finish(job);
    web_read(fd, &reply);
    ck_assert_str_eq(reply.body, "late");
    WAIT_FOR(atomic_load(&job->n_done) == 1);
    WAIT_FOR(http_server_n_active(f.server) == 0);
    ck_assert_int_eq(atomic_load(&job->n_gone), 0);
    http_wake(job->waker); /* finished: does nothing */
    close(fd);
    web_close(&f);
}
END_TEST

START_TEST(a_stream_delivers_what_was_written_when_it_was_written)
{
    const http_config config = web_config();
    web_open(&f, &config);
    const int fd = begin("/stream");
    web_job *const job = f.jobs[0];
    web_read_head_only(fd, &reply); /* comes before any body */
    ck_assert_uint_eq(reply.status, 200);
    char block[512];
    for (int i = 0; i < 50; i++) {
        web_job_write(job, 10);
        size_t n = 0;
        while (n < 15) { /* "A\r\n", ten bytes, "\r\n" */
            const ssize_t k = recv(fd, block + n, 15 - n, 0);
            ck_assert_int_gt(k, 0);
            n += (size_t)k;
        }
        ck_assert_mem_eq(block, "A\r\n", 3);
    }
    web_job_finish(job);
    WAIT_FOR(atomic_load(&job->n_done) == 1);
    ck_assert_int_eq(atomic_load(&job->n_gone), 0);
    close(fd);
    web_close(&f);
}
END_TEST

START_TEST(a_client_that_leaves_is_noticed_in_every_state)
{
    const http_config config = web_config();
    web_open(&f, &config);
    const struct {
        const char *path;
        bool has_written, is_reset;
    } cases[] = {{"/late", false, false},
                 {"/late", false, true},
                 {"/stream", false, false},
                 {"/stream", true, false},
                 {"/stream", true, true}};
    for (int i = 0; i < (int)(sizeof cases / sizeof *cases); i++) {
        const int fd = begin(cases[i].path);
        web_job *const job = f.jobs[i];
        WAIT_FOR(atomic_load(&job->n_polls) >= 1);
        if (cases[i].has_written) web_job_write(job, 100);
        const struct linger linger = {.l_onoff = 1, .l_linger = 0};
        if (cases[i].is_reset) setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
        close(fd);
        WAIT_FOR(atomic_load(&job->n_done) == 1);
        ck_assert_int_eq(atomic_load(&job->n_gone), 1);
    }
    ck_assert_uint_eq(n_clients_gone(), sizeof cases / sizeof *cases);
    web_close(&f);
}
END_TEST

START_TEST(a_half_closed_client_counts_as_gone)
{
    const http_config config = web_config();
    web_open(&f, &config);
    const int fd = begin("/late");
    shutdown(fd, SHUT_WR);
    WAIT_FOR(atomic_load(&f.jobs[0]->n_done) == 1);
    ck_assert_int_eq(atomic_load(&f.jobs[0]->n_gone), 1);
    ck_assert(web_is_closed(fd));
    close(fd);
    web_close(&f);
}
END_TEST

START_TEST(a_stream_asked_for_with_head_ends_at_once)
{
    const http_config config = web_config();
    web_open(&f, &config);
    const int fd = web_request(&f, "HEAD /stream HTTP/1.1\r\n" HOST "\r\n");
    web_read_head_only(fd, &reply);
    ck_assert_uint_eq(reply.status, 200);
    WAIT_FOR(atomic_load(&f.n_jobs) == 1 && atomic_load(&f.jobs[0]->n_done) == 1);
    ck_assert_int_eq(atomic_load(&f.jobs[0]->n_gone), 1); /* nobody will read what it makes */
    close(fd);
    web_close(&f);
}
END_TEST

START_TEST(closing_ends_exchanges_that_sleep)
{
    const http_config config = web_config();
    web_open(&f, &config);
    int fds[20];
    for (int i = 0; i < 20; i++)
        fds[i] = begin(i % 2 == 0 ? "/late" : "/stream");
    web_job_write(f.jobs[1], 100);
    web_close(&f); /* checks that each was told once */
    for (int i = 0; i < 20; i++) {
        ck_assert(web_is_closed(fds[i]));
        close(fds[i]);
    }
}
END_TEST

START_TEST(draining_refuses_connections_and_lets_the_others_end)
{
    const http_config config = web_config();
    web_open(&f, &config);
    const int fd = begin("/stream");
    web_job_write(f.jobs[0], 5);
    http_server_stop_accepting(f.server);
    http_server_stop_accepting(f.server);
    const int other = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_storage address;
    socklen_t address_bytes = sizeof address;
    ck_assert_int_eq(getpeername(fd, (struct sockaddr *)&address, &address_bytes), 0);
    ck_assert_int_ne(connect(other, (struct sockaddr *)&address, address_bytes), 0);
    close(other);
    web_job_finish(f.jobs[0]);
    web_read(fd, &reply);
    ck_assert_uint_eq(reply.body_bytes, 5);
    ck_assert(!reply.is_cut);
    WAIT_FOR(http_server_n_active(f.server) == 0);
    close(fd);
    web_close(&f);
}
END_TEST

/* A sleeping exchange must not cost processor time (a busy reader took a whole core). */
START_TEST(sleeping_exchanges_do_not_spin)
{
    const http_config config = web_config();
    web_open(&f, &config);
    int fds[10];
    for (int i = 0; i < 10; i++)
        fds[i] = begin(i % 2 == 0 ? "/late" : "/stream");
    struct rusage before, after;
    getrusage(RUSAGE_SELF, &before);
    sleep(2);
    getrusage(RUSAGE_SELF, &after);
    /* Context switches, not seconds: ten ticks a second are expected, a million turns are not. */
    ck_assert_int_lt(after.ru_nvcsw + after.ru_nivcsw - before.ru_nvcsw - before.ru_nivcsw, 2000);
    ck_assert_int_le(after.ru_utime.tv_sec - before.ru_utime.tv_sec, 1);
    for (int i = 0; i < 10; i++)
        close(fds[i]);
    web_close(&f);
}
END_TEST

/* ---- storms ----------------------------------------------------------------------------------- */

enum { STORM_CLIENTS = 4, STORM_WAKERS = 2, STORM_REQUESTS = 100 };

static atomic_bool storm_over;

/* Wakes, feeds and finishes whatever jobs there are, in no order. */
static void *storm_waker(void *arg)
{
    const uint64_t seed = *(const uint64_t *)arg;
    for (uint64_t i = 0; !atomic_load(&storm_over); i++) {
        const int n = atomic_load(&f.n_jobs);
        const random_block r = random_at(seed, 0, i);
        if (n == 0) continue;
        const uint32_t newest = n > 50 ? 50 : (uint32_t)n;
        web_job *const job = f.jobs[(uint32_t)n - 1 - r.word[0] % newest];
        switch (r.word[1] % 4) {
        case 0: http_wake(job->waker); break;
        case 1: web_job_write(job, r.word[2] % 5000); break;
        case 2: web_job_finish(job); break;
        default: usleep(r.word[2] % 300); break;
        }
    }
    return NULL;
}

static void *storm_client(void *arg)
{
    const uint64_t seed = *(const uint64_t *)arg;
    for (uint64_t i = 0; i < STORM_REQUESTS; i++) {
        const random_block r = random_at(seed, 1, i);
        const int fd = socket(AF_INET, SOCK_STREAM, 0);
        const struct timeval limit = {.tv_sec = 0, .tv_usec = 1000 + (long)(r.word[3] % 20000)};
        setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
        const struct sockaddr_in address = {.sin_family = AF_INET,
                                            .sin_port = htons(f.port),
                                            .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        if (connect(fd, (const struct sockaddr *)&address, sizeof address) == 0) {
            const char *const text = r.word[0] % 2 == 0 ? "GET /late HTTP/1.1\r\n" HOST "\r\n"
                                                        : "GET /stream HTTP/1.1\r\n" HOST "\r\n";
            (void)web_try_send(fd, text, strlen(text));
            char block[1024];
            for (uint32_t k = r.word[1] % 4; k > 0 && recv(fd, block, sizeof block, 0) > 0; k--) {
            }
            if (r.word[2] % 3 == 0) shutdown(fd, SHUT_WR);
            if (r.word[2] % 3 == 1) usleep(r.word[3] % 2000);
        }
        close(fd);
    }
    return NULL;
}

static void storm(bool close_meanwhile)
{
    const http_config config = web_config();
    web_open(&f, &config);
    pthread_t clients[STORM_CLIENTS], wakers[STORM_WAKERS];
    uint64_t client_seeds[STORM_CLIENTS], waker_seeds[STORM_WAKERS];
    for (int i = 0; i < STORM_CLIENTS; i++) {
        client_seeds[i] = (uint64_t)i;
        ck_assert_int_eq(pthread_create(&clients[i], NULL, storm_client, &client_seeds[i]), 0);
    }
    for (int i = 0; i < STORM_WAKERS; i++) {
        waker_seeds[i] = 100 + (uint64_t)i;
        ck_assert_int_eq(pthread_create(&wakers[i], NULL, storm_waker, &waker_seeds[i]), 0);
    }
    if (close_meanwhile) {
        WAIT_FOR(atomic_load(&f.n_jobs) > STORM_REQUESTS);
        http_server_close(f.server);
        f.server = NULL;
    }
    for (int i = 0; i < STORM_CLIENTS; i++)
        pthread_join(clients[i], NULL);
    if (!close_meanwhile) {
        WAIT_FOR(http_server_n_active(f.server) == 0);
        WAIT_FOR(web_jobs_done(&f) == atomic_load(&f.n_jobs));
    }
    atomic_store(&storm_over, true);
    for (int i = 0; i < STORM_WAKERS; i++)
        pthread_join(wakers[i], NULL);
    web_close(&f);
}

START_TEST(a_storm_of_wakes_and_departures_ends_every_exchange_once)
{
    storm(false);
}
END_TEST

START_TEST(closing_in_a_storm_ends_every_exchange_once)
{
    storm(true);
}
END_TEST

START_TEST(two_hundred_exchanges_sleep_and_wake_together)
{
    enum { N = 200 };
    const http_config config = web_config();
    web_open(&f, &config);
    int fds[N];
    for (int i = 0; i < N; i++)
        fds[i] = begin("/stream");
    for (int round = 0; round < 20; round++) {
        for (int i = 0; i < N; i++)
            web_job_write(f.jobs[i], 7);
    }
    for (int i = 0; i < N; i++)
        web_job_finish(f.jobs[i]);
    for (int i = 0; i < N; i++) {
        web_read(fds[i], &reply);
        ck_assert_uint_eq(reply.body_bytes, 140);
        close(fds[i]);
    }
    WAIT_FOR(web_jobs_done(&f) == N);
    ck_assert_uint_eq(n_clients_gone(), 0);
    web_close(&f);
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE(a_deferred_exchange_is_polled_once_and_after_wakes),
    TEST_CASE(a_stream_delivers_what_was_written_when_it_was_written),
    TEST_CASE(a_client_that_leaves_is_noticed_in_every_state),
    TEST_CASE(a_half_closed_client_counts_as_gone),
    TEST_CASE(a_stream_asked_for_with_head_ends_at_once),
    TEST_CASE(closing_ends_exchanges_that_sleep),
    TEST_CASE(draining_refuses_connections_and_lets_the_others_end),
    TEST_CASE(sleeping_exchanges_do_not_spin),
    TEST_CASE(a_storm_of_wakes_and_departures_ends_every_exchange_once),
    TEST_CASE(closing_in_a_storm_ends_every_exchange_once),
    TEST_CASE(two_hundred_exchanges_sleep_and_wake_together),
    TEST_CASES_END,
};
