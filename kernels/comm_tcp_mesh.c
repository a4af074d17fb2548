/* kernels/comm_tcp_mesh.c - how the ranks of a `tcp` group find each other.
 *
 *   1. Rank 0 listens at the master address. Every other rank connects to it, again and again until
 *      open_timeout_ms, twice (data, control), and says hello: who it is, how many ranks it expects,
 *      and the port at which it listens itself.
 *   2. When all are there, rank 0 sends each of them a welcome: the addresses of all - as rank 0 sees
 *      them, with the ports they named - and a random number, the group's.
 *   3. Rank r connects, twice, to ranks 1 .. r - 1, with the group's number as its password, and
 *      accepts ranks r + 1 .. from its own listener.
 *
 * A connection that does not say hello properly - a scanner, a health check - is dropped and holds up
 * nobody. One that does, and expects another group size or comes as a rank that is there already, is
 * a mistake in the configuration: both sides end at once and say so. A rank that died while it waited
 * and came back is let in. */
#include "kernels/comm_tcp.h"

#include "base/clock.h"
#include "base/hash.h"
#include "kernels/comm_socket.h"

#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum {
    PENDING_MAX = 256,      /* connections that have not said hello */
    HELLO_TIMEOUT_MS = 5000 /* for one to do so */
};

static const char MAGIC[8] = {'p', 'i', 'k', 'v', 't', 'c', 'p', '1'};

typedef struct tcp_hello {
    char magic[8];
    uint32_t n_ranks, rank;
    uint32_t channel; /* tcp_channel */
    uint32_t port;    /* where the rank listens; to rank 0 */
    uint64_t number;  /* to rank 0: the process's, one for both channels; to others: the group's */
} tcp_hello;

typedef struct tcp_welcome {
    uint64_t number; /* the group's */
    uint32_t code;   /* err_t; ERR_OK: n_ranks tcp_address follow */
    char message[ERR_MESSAGE_BYTES];
    uint32_t unused;
} tcp_welcome;

typedef struct tcp_address {
    uint16_t family; /* 4 or 6; 0: nobody needs it */
    uint16_t port;
    uint32_t scope; /* of a link-local address; valid on machines that name their links alike */
    uint8_t address[16];
} tcp_address;

static_assert(sizeof(tcp_hello) == 32, "on the wire");
static_assert(sizeof(tcp_welcome) == 16 + ERR_MESSAGE_BYTES, "on the wire");
static_assert(sizeof(tcp_address) == 24, "on the wire");

typedef struct pending {
    int fd;
    size_t n_bytes; /* of its hello, so far */
    tcp_hello hello;
    uint64_t deadline_ns;
} pending;

/* What accepts hellos, until all expected ranks have said two. */
typedef struct gate {
    tcp_comm *c;
    int listener;
    uint64_t number;        /* the group's; 0 at rank 0, where it does not exist yet */
    uint32_t first;         /* ranks [first, n_ranks) are expected */
    uint64_t *processes;    /* [n_ranks], rank 0: tcp_hello.number of who is there */
    tcp_address *addresses; /* [n_ranks], rank 0 */
    uint32_t n_pending;
    pending pending[PENDING_MAX];
    struct pollfd polls[PENDING_MAX + 1];
} gate;

static void close_fd(int *fd)
{
    if (*fd >= 0) close(*fd);
    *fd = -1;
}

static void close_peer(tcp_peer *peer)
{
    close_fd(&peer->fd[TCP_DATA]);
    close_fd(&peer->fd[TCP_CONTROL]);
}

static tcp_address pack_address(const socket_address *from, uint16_t port)
{
    tcp_address to = {.port = port};
    if (from->address.ss_family == AF_INET6) {
        const struct sockaddr_in6 *six = (const struct sockaddr_in6 *)&from->address;
        to.family = 6;
        to.scope = six->sin6_scope_id;
        memcpy(to.address, &six->sin6_addr, sizeof six->sin6_addr);
    } else {
        const struct sockaddr_in *four = (const struct sockaddr_in *)&from->address;
        to.family = 4;
        memcpy(to.address, &four->sin_addr, sizeof four->sin_addr);
    }
    return to;
}

static socket_address unpack_address(const tcp_address *from)
{
    socket_address to = {.address_bytes = sizeof(struct sockaddr_in)};
    if (from->family == 6) {
        struct sockaddr_in6 *six = (struct sockaddr_in6 *)&to.address;
        to.address_bytes = sizeof *six;
        six->sin6_family = AF_INET6;
        six->sin6_scope_id = from->scope;
        memcpy(&six->sin6_addr, from->address, sizeof six->sin6_addr);
    } else {
        struct sockaddr_in *four = (struct sockaddr_in *)&to.address;
        four->sin_family = AF_INET;
        memcpy(&four->sin_addr, from->address, sizeof four->sin_addr);
    }
    socket_set_port(&to, from->port);
    return to;
}

/* Tells one connection why this group does not come about. */
static void refuse(int fd, err_t code, const char *message)
{
    tcp_welcome welcome = {.code = code};
    memccpy(welcome.message, message, '\0', sizeof welcome.message - 1);
    (void)!send(fd, &welcome, sizeof welcome, MSG_DONTWAIT | MSG_NOSIGNAL);
}

typedef enum verdict { ADMITTED, STRANGER, LATER, WRONG } verdict;

/* At rank 0. Sets `info` if WRONG. */
static verdict admit_first(gate *g, const pending *p, err_info *info)
{
    const tcp_hello *hello = &p->hello;
    tcp_peer *peer = &g->c->peers[hello->rank];
    if (hello->channel == TCP_CONTROL) { /* may overtake its data hello */
        if (peer->fd[TCP_DATA] < 0 || g->processes[hello->rank] != hello->number) return LATER;
        if (peer->fd[TCP_CONTROL] >= 0) return STRANGER;
        peer->fd[TCP_CONTROL] = p->fd;
        return ADMITTED;
    }
    if (peer->fd[TCP_DATA] >= 0 && !socket_has_ended(peer->fd[TCP_DATA])) {
        err_set(info, ERR_BAD_CONFIG, "two processes are rank %u", hello->rank);
        return WRONG;
    }
    socket_address from;
    if (socket_peer_address(p->fd, &from) != ERR_OK) return STRANGER;
    close_peer(peer); /* it died while it waited, and this is its successor */
    peer->fd[TCP_DATA] = p->fd;
    g->processes[hello->rank] = hello->number;
    g->addresses[hello->rank] = pack_address(&from, (uint16_t)hello->port);
    return ADMITTED;
}

static verdict admit(gate *g, const pending *p, err_info *info)
{
    const tcp_hello *hello = &p->hello;
    const comm *own = &g->c->mesh.base;
    if (memcmp(hello->magic, MAGIC, sizeof MAGIC) != 0) return STRANGER;
    if (hello->channel >= TCP_CHANNEL_COUNT) return STRANGER;
    if (hello->n_ranks != own->n_ranks) {
        err_set(info, ERR_BAD_CONFIG, "rank %u is of a group of %u ranks, rank %u of %u",
                hello->rank, hello->n_ranks, own->rank, own->n_ranks);
        return WRONG;
    }
    if (hello->rank < g->first || hello->rank >= own->n_ranks) {
        err_set(info, ERR_BAD_CONFIG, "rank %u calls rank %u of %u", hello->rank, own->rank,
                own->n_ranks);
        return WRONG;
    }
    if (own->rank == 0) return admit_first(g, p, info);
    int *fd = &g->c->peers[hello->rank].fd[hello->channel];
    if (hello->number != g->number || *fd >= 0) return STRANGER;
    *fd = p->fd;
    return ADMITTED;
}

static void remove_pending(gate *g, uint32_t i)
{
    g->pending[i] = g->pending[--g->n_pending];
}

static void accept_new(gate *g)
{
    for (;;) {
        const int fd = socket_accept(g->listener);
        if (fd < 0) return;
        if (g->n_pending == PENDING_MAX) { /* the oldest gives way: it has said nothing for long */
            close(g->pending[0].fd);
            memmove(g->pending, g->pending + 1, (PENDING_MAX - 1) * sizeof *g->pending);
            g->n_pending--;
        }
        g->pending[g->n_pending++] =
            (pending){.fd = fd, .deadline_ns = comm_deadline_ns(HELLO_TIMEOUT_MS)};
    }
}

/* Reads what is there of pending i; *is_pending: it stays one. Fails if it is WRONG. */
static err_t hear(gate *g, uint32_t i, bool *is_pending, err_info *info)
{
    pending *p = &g->pending[i];
    const size_t n_missing = sizeof p->hello - p->n_bytes;
    const ssize_t n = n_missing == 0
                          ? 0
                          : recv(p->fd, (uint8_t *)&p->hello + p->n_bytes, n_missing, MSG_DONTWAIT);
    if (n > 0) p->n_bytes += (size_t)n;
    const bool is_late = clock_mono_ns() >= p->deadline_ns;
    const bool has_ended = n_missing > 0 && socket_has_ended(p->fd);
    verdict said = is_late || has_ended ? STRANGER : LATER;
    err_info wrong = {.code = ERR_OK};
    if (p->n_bytes == sizeof p->hello) {
        said = admit(g, p, &wrong);
        if (said == LATER && is_late) said = STRANGER;
    }
    *is_pending = said == LATER;
    if (said == LATER) return ERR_OK;
    if (said == WRONG) refuse(p->fd, wrong.code, wrong.message);
    if (said != ADMITTED) close(p->fd);
    remove_pending(g, i);
    return said == WRONG ? err_set(info, wrong.code, "%s", wrong.message) : ERR_OK;
}

/* Writes "1, 3, 4" of those that are not here, as far as it fits; false if all are. */
static bool name_missing(const gate *g, char *text, size_t text_bytes)
{
    size_t n = 0;
    text[0] = '\0';
    for (uint32_t r = g->first; r < g->c->mesh.base.n_ranks; r++) {
        const int *fd = g->c->peers[r].fd;
        if (fd[TCP_DATA] >= 0 && fd[TCP_CONTROL] >= 0) continue;
        if (n >= text_bytes) return true;
        n += (size_t)snprintf(text + n, text_bytes - n, n == 0 ? "%u" : ", %u", r);
    }
    return n > 0;
}

/* At rank 0: whoever died while it waited is missing again, or the group would begin with a dead rank
 * although a successor may be on its way. */
static void drop_dead(gate *g)
{
    for (uint32_t r = g->first; r < g->c->mesh.base.n_ranks; r++) {
        tcp_peer *peer = &g->c->peers[r];
        if (peer->fd[TCP_DATA] >= 0 && socket_has_ended(peer->fd[TCP_DATA])) close_peer(peer);
    }
}

static err_t collect(gate *g, uint64_t deadline_ns, err_info *info)
{
    char missing[64];
    for (;;) {
        if (g->c->mesh.base.rank == 0) drop_dead(g);
        if (!name_missing(g, missing, sizeof missing)) return ERR_OK;
        if (clock_mono_ns() >= deadline_ns) {
            return err_set(info, ERR_TIMEOUT, "tcp: not here in time: rank %s of %u", missing,
                           g->c->mesh.base.n_ranks);
        }
        enum { LOOK_MS = 100 }; /* at those whose time is up */
        const uint64_t look_ns = comm_deadline_ns(LOOK_MS);
        g->polls[0] = (struct pollfd){.fd = g->listener, .events = POLLIN};
        for (uint32_t i = 0; i < g->n_pending; i++) {
            const bool is_heard = g->pending[i].n_bytes == sizeof(tcp_hello);
            g->polls[i + 1] =
                (struct pollfd){.fd = is_heard ? -1 : g->pending[i].fd, .events = POLLIN};
        }
        (void)poll(g->polls, g->n_pending + 1,
                   comm_poll_ms(look_ns < deadline_ns ? look_ns : deadline_ns));
        accept_new(g);
        for (uint32_t i = 0; i < g->n_pending;) {
            bool is_pending = true;
            TRY(hear(g, i, &is_pending, info));
            if (is_pending) i++;
        }
    }
}

static gate *open_gate(tcp_comm *c, int listener, uint32_t first, uint64_t number)
{
    const size_t n_ranks = c->mesh.base.n_ranks;
    gate *g = calloc(1, sizeof *g);
    if (g == NULL) return NULL;
    g->c = c;
    g->listener = listener;
    g->first = first;
    g->number = number;
    g->processes = calloc(n_ranks, sizeof *g->processes);
    g->addresses = calloc(n_ranks, sizeof *g->addresses);
    if (g->processes != NULL && g->addresses != NULL) return g;
    free(g->processes);
    free(g->addresses);
    free(g);
    return NULL;
}

static void close_gate(gate *g)
{
    if (g == NULL) return;
    for (uint32_t i = 0; i < g->n_pending; i++)
        close(g->pending[i].fd);
    free(g->processes);
    free(g->addresses);
    free(g);
}

/* Rank 0, to all: the addresses, or why there is no group. */
static err_t welcome_all(const gate *g, const err_info *failure, uint64_t deadline_ns,
                         err_info *info)
{
    const comm *own = &g->c->mesh.base;
    tcp_welcome welcome = {.code = failure->code};
    hash_random_bytes(&welcome.number, sizeof welcome.number);
    if (failure->code != ERR_OK) memcpy(welcome.message, failure->message, sizeof welcome.message);
    for (uint32_t r = 1; r < own->n_ranks; r++) {
        const int fd = g->c->peers[r].fd[TCP_DATA];
        if (fd < 0) continue;
        err_t err = socket_send_all(fd, &welcome, sizeof welcome, deadline_ns);
        if (err == ERR_OK && failure->code == ERR_OK) {
            err =
                socket_send_all(fd, g->addresses, own->n_ranks * sizeof *g->addresses, deadline_ns);
        }
        if (err != ERR_OK && failure->code == ERR_OK)
            return err_set(info, ERR_PEER_LOST, "rank %u is lost: it left the handshake", r);
    }
    return ERR_OK;
}

static err_t connect_first(tcp_comm *c, const comm_config *config, uint64_t deadline_ns,
                           err_info *info)
{
    int listener = -1;
    TRY(socket_listen_host(config->master_host, config->master_port, deadline_ns, &listener, info));
    err_info failure = {.code = ERR_OK};
    gate *g = open_gate(c, listener, 1, 0);
    if (g == NULL) {
        err_set(&failure, ERR_NO_MEMORY, "tcp: out of memory");
    } else {
        (void)!collect(g, deadline_ns, &failure);
        err_info sent = {.code = ERR_OK};
        (void)!welcome_all(g, &failure, deadline_ns, &sent);
        if (sent.code != ERR_OK) err_set(&failure, sent.code, "%s", sent.message);
    }
    close_gate(g);
    close(listener);
    return failure.code == ERR_OK ? ERR_OK : err_set(info, failure.code, "%s", failure.message);
}

/* Both channels to one rank. */
static err_t say_hello(tcp_comm *c, uint32_t rank, const socket_address *to, tcp_hello hello,
                       uint64_t deadline_ns)
{
    for (uint32_t channel = 0; channel < TCP_CHANNEL_COUNT; channel++) {
        int *fd = &c->peers[rank].fd[channel];
        if (*fd < 0 && !socket_connect_at(to, deadline_ns, fd)) return ERR_PEER_GONE;
        hello.channel = channel;
        TRY(socket_send_all(*fd, &hello, sizeof hello, deadline_ns));
    }
    return ERR_OK;
}

/* Joins rank 0 once: returns its welcome. ERR_PEER_GONE: it went; another try may help. */
static err_t join(tcp_comm *c, const comm_config *config, uint64_t deadline_ns, int *listener,
                  tcp_welcome *welcome, err_info *info)
{
    const comm *own = &c->mesh.base;
    int *fd = &c->peers[0].fd[TCP_DATA];
    TRY(socket_connect(config->master_host, config->master_port, deadline_ns, fd, info));
    socket_address address, master;
    if (socket_own_address(*fd, &address) != ERR_OK) return ERR_PEER_GONE;
    if (socket_peer_address(*fd, &master) != ERR_OK) return ERR_PEER_GONE;
    socket_set_port(&address, 0);
    if (*listener < 0) TRY(socket_listen_at(&address, listener, info));
    socket_address listening;
    if (socket_own_address(*listener, &listening) != ERR_OK)
        return err_set(info, ERR_SYSTEM, "tcp: a listener has no address");
    tcp_hello hello = {.n_ranks = own->n_ranks, .rank = own->rank, .port = socket_port(&listening)};
    memcpy(hello.magic, MAGIC, sizeof MAGIC);
    hash_random_bytes(&hello.number, sizeof hello.number);
    if (say_hello(c, 0, &master, hello, deadline_ns) != ERR_OK) {
        /* Perhaps refused already, and then the reason is there to be read. */
        enum { REFUSAL_MS = 200 };
        const uint64_t refusal_ns = comm_deadline_ns(REFUSAL_MS);
        if (socket_receive_all(*fd, welcome, sizeof *welcome, refusal_ns) != ERR_OK)
            return ERR_PEER_GONE;
    } else {
        TRY(socket_receive_all(*fd, welcome, sizeof *welcome, deadline_ns));
    }
    if (welcome->code == ERR_OK) return ERR_OK;
    welcome->message[sizeof welcome->message - 1] = '\0';
    return err_set(info, welcome->code < ERR_COUNT ? (err_t)welcome->code : ERR_PEER_LOST, "%s",
                   welcome->message);
}

static err_t join_until(tcp_comm *c, const comm_config *config, uint64_t deadline_ns, int *listener,
                        tcp_welcome *welcome, err_info *info)
{
    for (;;) {
        err_info last = {.code = ERR_OK};
        const err_t err = join(c, config, deadline_ns, listener, welcome, &last);
        if (err == ERR_OK) return ERR_OK;
        if (err == ERR_TIMEOUT && last.code == ERR_OK) {
            return err_set(info, ERR_TIMEOUT,
                           "tcp: rank 0 answers, but the group of %u ranks is "
                           "not complete in time",
                           c->mesh.base.n_ranks);
        }
        if (err != ERR_PEER_GONE) return err_set(info, err, "%s", last.message);
        close_peer(&c->peers[0]); /* a rank 0 that is going, or not yet up */
        enum { PAUSE_US = 100000 };
        usleep(PAUSE_US);
    }
}

static err_t connect_rest(tcp_comm *c, const tcp_welcome *welcome, const tcp_address *addresses,
                          int listener, uint64_t deadline_ns, err_info *info)
{
    const comm *own = &c->mesh.base;
    /* All are there, and rank 0 already counts their silence: what takes longer is not going to come. */
    const uint64_t silence_ns = comm_deadline_ns(c->peer_timeout_ms);
    if (silence_ns < deadline_ns) deadline_ns = silence_ns;
    tcp_hello hello = {.n_ranks = own->n_ranks, .rank = own->rank, .number = welcome->number};
    memcpy(hello.magic, MAGIC, sizeof MAGIC);
    for (uint32_t r = 1; r < own->rank; r++) {
        const socket_address to = unpack_address(&addresses[r]);
        if (say_hello(c, r, &to, hello, deadline_ns) != ERR_OK) {
            return err_set(info, ERR_PEER_LOST, "rank %u is lost: rank %u cannot connect to it", r,
                           own->rank);
        }
    }
    gate *g = open_gate(c, listener, own->rank + 1, welcome->number);
    if (g == NULL) return err_set(info, ERR_NO_MEMORY, "tcp: out of memory");
    const err_t err = collect(g, deadline_ns, info);
    close_gate(g);
    return err;
}

static err_t connect_other(tcp_comm *c, const comm_config *config, uint64_t deadline_ns,
                           err_info *info)
{
    tcp_welcome welcome;
    int listener = -1;
    tcp_address *addresses = calloc(c->mesh.base.n_ranks, sizeof *addresses);
    err_t err = addresses == NULL ? err_set(info, ERR_NO_MEMORY, "tcp: out of memory") : ERR_OK;
    if (err == ERR_OK) err = join_until(c, config, deadline_ns, &listener, &welcome, info);
    if (err == ERR_OK) {
        err = socket_receive_all(c->peers[0].fd[TCP_DATA], addresses,
                                 c->mesh.base.n_ranks * sizeof *addresses, deadline_ns);
        if (err != ERR_OK) err_set(info, err, "rank 0 is lost: it left the handshake");
    }
    if (err == ERR_OK) err = connect_rest(c, &welcome, addresses, listener, deadline_ns, info);
    close_fd(&listener);
    free(addresses);
    return err;
}

err_t tcp_mesh_connect(tcp_comm *c, const comm_config *config, err_info *info)
{
    const uint32_t timeout_ms =
        config->open_timeout_ms != 0 ? config->open_timeout_ms : COMM_OPEN_TIMEOUT_MS;
    const uint64_t deadline_ns = comm_deadline_ns(timeout_ms);
    if (c->mesh.base.n_ranks == 1) return ERR_OK;
    if (hash_init() != ERR_OK) return err_set(info, ERR_SYSTEM, "tcp: no random numbers");
    if (c->mesh.base.rank == 0) return connect_first(c, config, deadline_ns, info);
    return connect_other(c, config, deadline_ns, info);
}
