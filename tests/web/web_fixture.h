/* tests/web/web_fixture.h - a real server on 127.0.0.1 and blunt clients for the tests of web/.
 *
 * Routes: /echo answers at once with "METHOD path q=<q> n=<body bytes>"; /late and /stream are
 * deferred: each makes a job that the test steers. Jobs count what is called and note every breach of
 * the promises in web/http.h as a violation. */
#ifndef TESTS_WEB_FIXTURE_H
#define TESTS_WEB_FIXTURE_H

#include "tests/test_main.h"
#include "web/http.h"

#include <pthread.h>
#include <stdatomic.h>
#include <unistd.h>

enum { JOBS_MAX = 4096, HEAD_BYTES_MAX = 8192 };

typedef struct web_fixture web_fixture;

typedef struct web_job {
    web_fixture *fixture;
    http_waker *waker; /* the test's reference */
    bool is_stream;
    bool has_begun;
    atomic_bool finish;     /* reply, or end the stream, in the next poll */
    atomic_size_t to_write; /* bytes for the next poll of a stream */
    atomic_int n_polls, n_gone, n_done, n_inside;
} web_job;

struct web_fixture {
    http_server *server;
    uint16_t port;
    bool finish_at_once;  /* jobs finish in their first poll */
    atomic_int n_handled; /* calls of the handler */
    atomic_int n_violations;
    atomic_int n_jobs;
    web_job *jobs[JOBS_MAX];
};

http_config web_config(void); /* generous defaults; port 0 */
void web_open(web_fixture *f, const http_config *config);
void web_close(web_fixture *f);    /* the server, then checks that every job ended once */
void web_job_finish(web_job *job); /* and wakes */
void web_job_write(web_job *job, size_t bytes); /* and wakes */
int web_jobs_done(const web_fixture *f);

int web_connect(const web_fixture *f); /* receives time out after 20 s */
void web_send(int fd, const char *text);
/* Like web_send, but a server that has closed is no failure. */
bool web_try_send(int fd, const void *data, size_t bytes);
int web_request(const web_fixture *f, const char *text); /* connect and send */
bool web_is_closed(int fd); /* reads until the end or a reset; false on timeout */

typedef struct web_reply {
    unsigned status; /* 0: closed without a reply */
    char head[HEAD_BYTES_MAX];
    char body[65536];
    size_t body_bytes;
    bool is_cut; /* closed inside the body */
} web_reply;
void web_read(int fd, web_reply *reply);           /* one reply; leaves what follows it */
void web_read_head_only(int fd, web_reply *reply); /* for HEAD, and for streams */
void web_ask(const web_fixture *f, const char *text,
             web_reply *reply); /* on a connection of its own */

/* Waits up to 20 s for something to happen at all. */
#define WAIT_FOR(condition)                                           \
    do {                                                              \
        for (int wait_ = 0; wait_ < 20000 && !(condition); wait_++) { \
            usleep(1000);                                             \
        }                                                             \
        ck_assert_msg((condition), "did not happen: %s", #condition); \
    } while (0)

#endif
