/* tests/kernels/test_comm_tcp.c - what can happen to ranks that are processes: killed, stopped, late,
 * configured wrongly; and to a port that strangers can reach. Times are limits of the configuration;
 * nothing is asserted about how long anything took. */
#include "tests/kernels/comm_ranks.h"
#include "tests/test_main.h"

#include "base/clock.h"

#include <arpa/inet.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { N_RANKS = 4, VICTIM = 2, LOST = 3, OTHERWISE = 4, SILENCE_MS = 1500 };

static void sleep_ms(long ms)
{
    nanosleep(&(struct timespec){.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000}, NULL);
}

/* Runs until the group fails. Ranks below n_busy meet again and again, the others only look. Leaves
 * with LOST if the victim is named. */
static void survive(uint32_t rank, uint16_t port, atomic_uint *n_here, uint32_t n_busy)
{
    err_info info = {.code = ERR_OK};
    comm *c = NULL;
    comm_config config = tcp_config(rank, N_RANKS, port);
    config.peer_timeout_ms = SILENCE_MS;
    config.timeout_ms = 0; /* heartbeats alone */
    err_t err = comm_open(comm_find("tcp"), &config, &c, &info);
    if (err == ERR_OK) err = comm_barrier(c, &info);
    atomic_fetch_add(n_here, 1);
    while (err == ERR_OK && rank < n_busy)
        err = comm_barrier(c, &info);
    while (err == ERR_OK) {
        sleep_ms(5);
        err = comm_status(c, &info);
    }
    const bool is_named = err == ERR_PEER_LOST && strstr(info.message, "rank 2 is lost") != NULL;
    if (!is_named) fprintf(stderr, "rank %u: %s: %s\n", rank, err_name(err), info.message);
    comm_close(c);
    _exit(is_named ? LOST : OTHERWISE);
}

/* All survivors must leave, and name the one to which `signal_number` was sent. */
static void lose_the_victim(int signal_number, uint32_t n_busy)
{
    atomic_uint *n_here =
        mmap(NULL, sizeof *n_here, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    ck_assert_ptr_ne(n_here, MAP_FAILED);
    const uint16_t port = free_port();
    pid_t pids[N_RANKS];
    for (uint32_t r = 0; r < N_RANKS; r++) {
        pids[r] = fork();
        ck_assert_int_ge(pids[r], 0);
        if (pids[r] == 0) survive(r, port, n_here, n_busy);
    }
    while (atomic_load(n_here) < N_RANKS)
        sleep_ms(5);
    sleep_ms(100);
    ck_assert_int_eq(kill(pids[VICTIM], signal_number), 0);
    for (uint32_t r = 0; r < N_RANKS; r++) {
        int status = 0;
        if (r == VICTIM) continue;
        ck_assert_int_eq(waitpid(pids[r], &status, 0), pids[r]);
        ck_assert_msg(WIFEXITED(status) && WEXITSTATUS(status) == LOST, "rank %u: %d", r, status);
    }
    kill(pids[VICTIM], SIGKILL);
    ck_assert_int_eq(waitpid(pids[VICTIM], NULL, 0), pids[VICTIM]);
    munmap(n_here, sizeof *n_here);
}

START_TEST(a_killed_rank_is_named_by_all_who_call)
{
    lose_the_victim(SIGKILL, N_RANKS);
}
END_TEST

START_TEST(a_killed_rank_is_named_by_all_who_do_something_else)
{
    lose_the_victim(SIGKILL, 0);
}
END_TEST

START_TEST(a_stopped_rank_is_named_by_all_who_call)
{
    lose_the_victim(SIGSTOP, N_RANKS);
}
END_TEST

START_TEST(a_stopped_rank_is_named_by_all_who_do_something_else)
{
    lose_the_victim(SIGSTOP, 0);
}
END_TEST

/* One rank that opens, and what came of it. */
typedef struct opening {
    pthread_t thread;
    comm_config config;
    uint32_t delay_ms;
    comm *c;
    err_t err;
    err_info info;
} opening;

static void *open_one(void *ctx)
{
    opening *o = ctx;
    sleep_ms(o->delay_ms);
    o->err = comm_open(comm_find("tcp"), &o->config, &o->c, &o->info);
    return NULL;
}

static void *close_one(void *ctx)
{
    comm_close(((opening *)ctx)->c);
    return NULL;
}

static void on_threads(opening *openings, size_t n, void *(*run)(void *))
{
    for (size_t i = 0; i < n; i++)
        ck_assert_int_eq(pthread_create(&openings[i].thread, NULL, run, &openings[i]), 0);
    for (size_t i = 0; i < n; i++)
        pthread_join(openings[i].thread, NULL);
}

static void open_all(opening *openings, size_t n)
{
    on_threads(openings, n, open_one);
}

static void close_all(opening *openings, size_t n)
{
    on_threads(openings, n, close_one);
}

START_TEST(ranks_may_come_in_any_order)
{
    static const uint32_t delays_ms[2][3] = {{400, 0, 200}, {0, 300, 100}};
    for (int k = 0; k < 2; k++) {
        opening o[3] = {{0}};
        const uint16_t port = free_port();
        for (uint32_t r = 0; r < 3; r++)
            o[r] = (opening){.config = tcp_config(r, 3, port), .delay_ms = delays_ms[k][r]};
        open_all(o, 3);
        for (uint32_t r = 0; r < 3; r++)
            ck_assert_msg(o[r].err == ERR_OK, "%s", o[r].info.message);
        close_all(o, 3);
    }
}
END_TEST

START_TEST(who_does_not_come_is_named)
{
    const uint16_t port = free_port();
    opening o[2] = {{.config = tcp_config(0, 4, port)}, {.config = tcp_config(2, 4, port)}};
    o[0].config.open_timeout_ms = 500;
    o[1].config.open_timeout_ms = 20000;
    open_all(o, 2);
    ck_assert_int_eq(o[0].err, ERR_TIMEOUT);
    ck_assert_int_eq(o[1].err, ERR_TIMEOUT); /* told so, long before its own time is up */
    for (int k = 0; k < 2; k++)
        ck_assert_msg(strstr(o[k].info.message, "rank 1, 3 of 4") != NULL, "%s", o[k].info.message);
}
END_TEST

START_TEST(a_master_that_does_not_come_is_named)
{
    opening o = {.config = tcp_config(1, 2, free_port())};
    o.config.open_timeout_ms = 300;
    open_all(&o, 1);
    ck_assert_int_eq(o.err, ERR_TIMEOUT);
    ck_assert_msg(strstr(o.info.message, "rank 0 does not answer at \"127.0.0.1\"") != NULL, "%s",
                  o.info.message);
}
END_TEST

/* Both sides end at once, and say the same. */
static void refuse(comm_config first, comm_config second, const char *part)
{
    opening o[2] = {{.config = first}, {.config = second}};
    open_all(o, 2);
    for (int k = 0; k < 2; k++) {
        ck_assert_int_eq(o[k].err, ERR_BAD_CONFIG);
        ck_assert_msg(strstr(o[k].info.message, part) != NULL, "%s", o[k].info.message);
    }
}

START_TEST(ranks_that_differ_in_size_or_settings_end_at_once)
{
    const uint16_t port = free_port();
    refuse(tcp_config(0, 2, port), tcp_config(1, 3, port), "group of 3 ranks, rank 0 of 2");
    comm_config other = tcp_config(1, 2, port);
    other.fingerprint = 43;
    refuse(tcp_config(0, 2, port), other, "differ in version, settings or model");
}
END_TEST

START_TEST(two_processes_of_one_rank_end_at_once)
{
    const uint16_t port = free_port();
    opening o[3] = {{.config = tcp_config(0, 3, port)},
                    {.config = tcp_config(1, 3, port)},
                    {.config = tcp_config(1, 3, port)}};
    open_all(o, 3);
    for (int k = 0; k < 3; k++) {
        ck_assert_int_eq(o[k].err, ERR_BAD_CONFIG);
        ck_assert_msg(strstr(o[k].info.message, "two processes are rank 1") != NULL, "%s",
                      o[k].info.message);
    }
}
END_TEST

static int connect_to(uint16_t port)
{
    const struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    for (;;) {
        const int fd = socket(AF_INET, SOCK_STREAM, 0);
        ck_assert_int_ge(fd, 0);
        if (connect(fd, (const struct sockaddr *)&address, sizeof address) == 0) return fd;
        close(fd);
        sleep_ms(5);
    }
}

START_TEST(strangers_at_the_port_hold_up_nobody)
{
    enum { N_SILENT = 300 };
    static const char request[] = "GET /metrics HTTP/1.1\r\nHost: somewhere.example\r\n\r\n";
    const uint16_t port = free_port();
    opening o[2] = {{.config = tcp_config(0, 2, port)}, {.config = tcp_config(1, 2, port)}};
    ck_assert_int_eq(pthread_create(&o[0].thread, NULL, open_one, &o[0]), 0);
    int silent[N_SILENT];
    for (int i = 0; i < N_SILENT; i++) { /* more than are kept waiting at once */
        silent[i] = connect_to(port);
        if (i % 3 == 0) ck_assert_int_eq(send(silent[i], request, 20, MSG_NOSIGNAL), 20);
        if (i % 3 == 1) (void)!send(silent[i], request, sizeof request, MSG_NOSIGNAL);
    }
    open_all(&o[1], 1);
    pthread_join(o[0].thread, NULL);
    for (int i = 0; i < N_SILENT; i++)
        close(silent[i]);
    ck_assert_msg(o[0].err == ERR_OK, "%s", o[0].info.message);
    ck_assert_msg(o[1].err == ERR_OK, "%s", o[1].info.message);
    close_all(o, 2);
}
END_TEST

START_TEST(a_rank_that_died_waiting_may_come_again)
{
    const uint16_t port = free_port();
    const pid_t pid = fork();
    ck_assert_int_ge(pid, 0);
    if (pid == 0) {
        opening early = {.config = tcp_config(1, 3, port)};
        open_one(&early);
        _exit(0);
    }
    opening o[3] = {{.config = tcp_config(0, 3, port)},
                    {.config = tcp_config(1, 3, port)},
                    {.config = tcp_config(2, 3, port)}};
    ck_assert_int_eq(pthread_create(&o[0].thread, NULL, open_one, &o[0]), 0);
    sleep_ms(500);
    kill(pid, SIGKILL);
    ck_assert_int_eq(waitpid(pid, NULL, 0), pid);
    o[1].delay_ms = 500; /* the last one missing is there before the successor is */
    open_all(&o[1], 2);
    pthread_join(o[0].thread, NULL);
    for (int k = 0; k < 3; k++)
        ck_assert_msg(o[k].err == ERR_OK, "%s", o[k].info.message);
    close_all(o, 3);
}
END_TEST

const test_case test_cases[] = {
    TEST_CASE(a_killed_rank_is_named_by_all_who_call),
    TEST_CASE(a_killed_rank_is_named_by_all_who_do_something_else),
    TEST_CASE(a_stopped_rank_is_named_by_all_who_call),
    TEST_CASE(a_stopped_rank_is_named_by_all_who_do_something_else),
    TEST_CASE(ranks_may_come_in_any_order),
    TEST_CASE(who_does_not_come_is_named),
    TEST_CASE(a_master_that_does_not_come_is_named),
    TEST_CASE(ranks_that_differ_in_size_or_settings_end_at_once),
    TEST_CASE(two_processes_of_one_rank_end_at_once),
    TEST_CASE(strangers_at_the_port_hold_up_nobody),
    TEST_CASE(a_rank_that_died_waiting_may_come_again),
    TEST_CASES_END,
};
