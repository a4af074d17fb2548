/* tests/kernels/comm_ranks.c - see comm_ranks.h. */
#include "tests/kernels/comm_ranks.h"

#include <arpa/inet.h>
#include <check.h>
#include <pthread.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

uint16_t free_port(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t address_bytes = sizeof address;
    const int fd = socket(AF_INET, SOCK_STREAM, 0);
    ck_assert_int_eq(bind(fd, (struct sockaddr *)&address, sizeof address), 0);
    ck_assert_int_eq(getsockname(fd, (struct sockaddr *)&address, &address_bytes), 0);
    close(fd);
    return ntohs(address.sin_port);
}

comm_config tcp_config(uint32_t rank, uint32_t n_ranks, uint16_t port)
{
    return (comm_config){.rank = rank,
                         .n_ranks = n_ranks,
                         .timeout_ms = 120000,
                         .open_timeout_ms = 60000,
                         .peer_timeout_ms = 30000,
                         .fingerprint = 42,
                         .master_host = "127.0.0.1",
                         .master_port = port};
}

size_t count_promises(const comm_promise *promises)
{
    size_t n = 0;
    while (promises[n].name != NULL)
        n++;
    return n;
}

static bool keep_all(comm *c, const comm_promise *promises, size_t n_promises)
{
    for (size_t i = 0; i < n_promises; i++) {
        if (promises[i].is_kept(c)) continue;
        fprintf(stderr, "%s, rank %u of %u: not kept: %s\n", comm_name(c), comm_rank(c),
                comm_n_ranks(c), promises[i].name);
        comm_abort(c, "a promise was not kept");
        return false;
    }
    return true;
}

typedef struct rank_thread {
    pthread_t thread;
    comm *c; /* NULL: opens itself, over tcp */
    comm_config config;
    const comm_promise *promises;
    size_t n_promises;
    bool has_kept;
} rank_thread;

static void *run_thread(void *ctx)
{
    rank_thread *t = ctx;
    err_info info = {.code = ERR_OK};
    if (t->c == NULL && comm_open(comm_find("tcp"), &t->config, &t->c, &info) != ERR_OK) {
        fprintf(stderr, "rank %u: %s\n", t->config.rank, info.message);
        return NULL;
    }
    t->has_kept = keep_all(t->c, t->promises, t->n_promises);
    comm_close(t->c);
    return NULL;
}

void keep_on_threads(const char *transport, uint32_t n_ranks, const comm_promise *promises,
                     size_t n_promises, uint32_t timeout_ms)
{
    enum { N_RANKS_MAX = 16 };
    rank_thread threads[N_RANKS_MAX];
    comm *local[N_RANKS_MAX] = {NULL};
    const uint16_t port = free_port();
    if (strcmp(transport, "local") == 0)
        ck_assert_int_eq(comm_open_local(n_ranks, timeout_ms, local, NULL), ERR_OK);
    for (uint32_t r = 0; r < n_ranks; r++) {
        threads[r] = (rank_thread){.c = local[r],
                                   .config = tcp_config(r, n_ranks, port),
                                   .promises = promises,
                                   .n_promises = n_promises};
        threads[r].config.timeout_ms = timeout_ms;
        ck_assert_int_eq(pthread_create(&threads[r].thread, NULL, run_thread, &threads[r]), 0);
    }
    for (uint32_t r = 0; r < n_ranks; r++)
        pthread_join(threads[r].thread, NULL);
    for (uint32_t r = 0; r < n_ranks; r++)
        ck_assert_msg(threads[r].has_kept, "%s: rank %u of %u", transport, r, n_ranks);
}

void keep_on_processes(uint32_t n_ranks, const comm_promise *promises, size_t n_promises)
{
    const uint16_t port = free_port();
    for (uint32_t r = 0; r < n_ranks; r++) {
        const pid_t pid = fork();
        ck_assert_int_ge(pid, 0);
        if (pid != 0) continue;
        rank_thread t = {
            .config = tcp_config(r, n_ranks, port), .promises = promises, .n_promises = n_promises};
        run_thread(&t);
        _exit(t.has_kept ? 0 : 1);
    }
    for (uint32_t r = 0; r < n_ranks; r++) {
        int status = 0;
        ck_assert_int_gt(wait(&status), 0);
        ck_assert(WIFEXITED(status));
        ck_assert_int_eq(WEXITSTATUS(status), 0);
    }
}
