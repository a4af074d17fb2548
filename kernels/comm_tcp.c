/* kernels/comm_tcp.c - messages over the sockets that comm_tcp_mesh.c connected.
 *
 * An exchange sends and receives with every peer at once, without blocking, and sleeps in poll() only
 * when no socket takes or gives anything; so no order of peers can lock two ranks against each other,
 * however long the messages. Payloads are read straight to where they belong: a message is never
 * longer than what this rank expects, since reading stops there, and its header, read with it, says
 * whether both ranks meant the same.
 *
 * A deadline is on the exchange, from its begin. A peer whose connection ends mid-message is lost;
 * its last words may still be on their way on the other connection, so they are waited for briefly:
 * "rank 2 gave up: out of memory" says more than "its connection ended". */
#include "kernels/comm_tcp.h"

#include "base/check.h"
#include "base/clock.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

enum { LAST_WORDS_MS = 200 };

static tcp_comm *tcp_of(comm *c)
{
    return (tcp_comm *)c;
}

static err_t failure_of(tcp_comm *c)
{
    return comm_status(&c->mesh.base, NULL);
}

/* For failures that the calling thread found: the watch thread tells the others. */
static err_t fail_and_tell(tcp_comm *c, err_t err)
{
    tcp_event_set(c->failed_event);
    tcp_event_set(c->watch_event);
    return err;
}

static err_t lose(tcp_comm *c, uint32_t rank)
{
    struct pollfd polled = {.fd = c->failed_event, .events = POLLIN};
    (void)poll(&polled, 1, LAST_WORDS_MS);
    return fail_and_tell(
        c, comm_fail(&c->mesh.base, ERR_PEER_LOST, "rank %u is lost: its connection ended", rank));
}

/* What is left of a message, behind the first n_done bytes of header and payload. */
static int rest_of(tcp_header *header, void *payload, size_t payload_bytes, size_t n_done,
                   struct iovec rest[2])
{
    int n = 0;
    if (n_done < sizeof *header) {
        rest[n++] = (struct iovec){(uint8_t *)header + n_done, sizeof *header - n_done};
        if (payload_bytes > 0) rest[n++] = (struct iovec){payload, payload_bytes};
    } else {
        n_done -= sizeof *header;
        rest[n++] = (struct iovec){(uint8_t *)payload + n_done, payload_bytes - n_done};
    }
    return n;
}

static bool is_not_ready(ssize_t n)
{
    return n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR);
}

/* Sends what the socket takes. */
static err_t send_some(tcp_comm *c, uint32_t rank)
{
    tcp_peer *peer = &c->peers[rank];
    const comm_parcel *p = &c->mesh.parcels[rank];
    while (peer->n_sent < sizeof peer->header_out + p->send_bytes) {
        struct iovec rest[2];
        /* sendmsg does not write what an iovec points to; its type cannot say so. */
        const int n_rest = rest_of(&peer->header_out, (void *)(uintptr_t)p->send, p->send_bytes,
                                   peer->n_sent, rest);
        const struct msghdr message = {.msg_iov = rest, .msg_iovlen = (size_t)n_rest};
        const ssize_t n = sendmsg(peer->fd[TCP_DATA], &message, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (is_not_ready(n)) return ERR_OK;
        if (n < 0) return lose(c, rank);
        peer->n_sent += (size_t)n;
    }
    return ERR_OK;
}

static err_t check_header(tcp_comm *c, uint32_t rank)
{
    const comm *own = &c->mesh.base;
    const tcp_header *theirs = &c->peers[rank].header_in;
    const size_t bytes = c->mesh.parcels[rank].receive_bytes;
    if (theirs->number == own->call.number && theirs->kind == (uint32_t)own->call.kind &&
        theirs->bytes == bytes) {
        return ERR_OK;
    }
    return fail_and_tell(
        c, comm_fail(&c->mesh.base, ERR_BAD_ARGUMENT,
                     "rank %u sent %llu bytes of %s %u, rank %u expects %zu of %s %u", rank,
                     (unsigned long long)theirs->bytes, comm_kind_name((comm_kind)theirs->kind),
                     theirs->number, own->rank, bytes, comm_kind_name(own->call.kind),
                     own->call.number));
}

/* Receives what is there. */
static err_t receive_some(tcp_comm *c, uint32_t rank)
{
    tcp_peer *peer = &c->peers[rank];
    const comm_parcel *p = &c->mesh.parcels[rank];
    const size_t header_bytes = sizeof peer->header_in;
    while (peer->n_received < header_bytes + p->receive_bytes) {
        struct iovec rest[2];
        const int n_rest =
            rest_of(&peer->header_in, p->receive, p->receive_bytes, peer->n_received, rest);
        struct msghdr message = {.msg_iov = rest, .msg_iovlen = (size_t)n_rest};
        const ssize_t n = recvmsg(peer->fd[TCP_DATA], &message, MSG_DONTWAIT);
        if (is_not_ready(n)) return ERR_OK;
        if (n <= 0) return lose(c, rank);
        const bool had_header = peer->n_received >= header_bytes;
        peer->n_received += (size_t)n;
        if (!had_header && peer->n_received >= header_bytes) TRY(check_header(c, rank));
    }
    return ERR_OK;
}

static bool is_sending(const tcp_comm *c, uint32_t rank)
{
    const comm_parcel *p = &c->mesh.parcels[rank];
    return p->has_send && c->peers[rank].n_sent < sizeof(tcp_header) + p->send_bytes;
}

static bool is_receiving(const tcp_comm *c, uint32_t rank)
{
    const comm_parcel *p = &c->mesh.parcels[rank];
    return p->has_receive && c->peers[rank].n_received < sizeof(tcp_header) + p->receive_bytes;
}

/* Lists the sockets that are waited for in c->polls, whose they are in c->polled. Returns how many. */
static uint32_t list_waits(tcp_comm *c)
{
    uint32_t n = 0;
    for (uint32_t r = 0; r < c->mesh.base.n_ranks; r++) {
        const int events = (is_sending(c, r) ? POLLOUT : 0) | (is_receiving(c, r) ? POLLIN : 0);
        if (events == 0) continue;
        c->polls[n] = (struct pollfd){.fd = c->peers[r].fd[TCP_DATA], .events = (short)events};
        c->polled[n++] = r;
    }
    c->polls[n] = (struct pollfd){.fd = c->failed_event, .events = POLLIN};
    return n;
}

static err_t fail_late(tcp_comm *c, uint32_t rank)
{
    return fail_and_tell(c, comm_fail(&c->mesh.base, ERR_PEER_LOST,
                                      "rank %u is lost: it did not come to %s within %u ms", rank,
                                      comm_kind_name(c->mesh.base.call.kind),
                                      atomic_load(&c->mesh.base.timeout_ms)));
}

static void begin_exchange(tcp_comm *c)
{
    for (uint32_t r = 0; r < c->mesh.base.n_ranks; r++) {
        tcp_peer *peer = &c->peers[r];
        peer->n_sent = peer->n_received = 0;
        peer->header_out = (tcp_header){.number = c->mesh.base.call.number,
                                        .kind = (uint32_t)c->mesh.base.call.kind,
                                        .bytes = c->mesh.parcels[r].send_bytes};
    }
}

static err_t tcp_exchange(comm_mesh *m)
{
    tcp_comm *c = (tcp_comm *)m;
    const uint64_t deadline_ns = comm_deadline_ns(atomic_load(&m->base.timeout_ms));
    begin_exchange(c);
    for (uint32_t r = 0; r < m->base.n_ranks;
         r++) { /* what is asked for first is on its way first */
        if (is_sending(c, r)) TRY(send_some(c, r));
    }
    for (uint32_t r = 0; r < m->base.n_ranks; r++) {
        if (is_receiving(c, r)) TRY(receive_some(c, r));
    }
    for (uint32_t n; (n = list_waits(c)) > 0;) {
        if (atomic_load_explicit(&m->base.has_failed, memory_order_acquire)) return failure_of(c);
        const int n_ready = poll(c->polls, n + 1, comm_poll_ms(deadline_ns));
        if (n_ready == 0) return fail_late(c, c->polled[0]);
        for (uint32_t i = 0; i < n && n_ready > 0; i++) {
            if (c->polls[i].revents == 0) continue;
            if (is_sending(c, c->polled[i])) TRY(send_some(c, c->polled[i]));
            if (is_receiving(c, c->polled[i])) TRY(receive_some(c, c->polled[i]));
        }
    }
    return ERR_OK;
}

static void tcp_abort(comm *base)
{
    tcp_comm *c = tcp_of(base);
    tcp_event_set(c->failed_event);
    tcp_event_set(c->watch_event);
}

static void tcp_close(comm *base)
{
    tcp_comm *c = tcp_of(base);
    tcp_watch_end(c);
    for (uint32_t r = 0; c->peers != NULL && r < base->n_ranks; r++) {
        for (int channel = 0; channel < TCP_CHANNEL_COUNT; channel++) {
            if (c->peers[r].fd[channel] >= 0) close(c->peers[r].fd[channel]);
        }
    }
    if (c->failed_event >= 0) close(c->failed_event);
    if (c->watch_event >= 0) close(c->watch_event);
    free(c->peers);
    free(c->polls);
    free(c->polled);
    free(c->watch_polls);
    comm_mesh_deinit(&c->mesh);
    free(c);
}

static err_t allocate(tcp_comm *c, err_info *info)
{
    const size_t n_ranks = c->mesh.base.n_ranks;
    c->peers = calloc(n_ranks, sizeof *c->peers);
    c->polls = calloc(n_ranks + 1, sizeof *c->polls);
    c->polled = calloc(n_ranks + 1, sizeof *c->polled);
    c->watch_polls = calloc(n_ranks + 1, sizeof *c->watch_polls);
    for (uint32_t r = 0; c->peers != NULL && r < n_ranks; r++)
        c->peers[r].fd[TCP_DATA] = c->peers[r].fd[TCP_CONTROL] = -1;
    if (c->peers == NULL || c->polls == NULL || c->polled == NULL || c->watch_polls == NULL)
        return err_set(info, ERR_NO_MEMORY, "tcp: no memory for %zu ranks", n_ranks);
    c->failed_event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    c->watch_event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (c->failed_event < 0 || c->watch_event < 0)
        return err_set(info, ERR_SYSTEM, "tcp: no descriptor left for an event");
    return ERR_OK;
}

static err_t tcp_open(const comm_config *config, comm **out, err_info *info)
{
    enum { PEER_TIMEOUT_MS_MIN = 50 };
    const uint32_t peer_timeout_ms =
        config->peer_timeout_ms != 0 ? config->peer_timeout_ms : COMM_PEER_TIMEOUT_MS;
    if (peer_timeout_ms < PEER_TIMEOUT_MS_MIN) {
        return err_set(info, ERR_BAD_CONFIG, "tcp: a peer timeout of %u ms is less than %d",
                       peer_timeout_ms, PEER_TIMEOUT_MS_MIN);
    }
    if (config->n_ranks > 1 && (config->master_host == NULL || config->master_port == 0))
        return err_set(info, ERR_BAD_CONFIG, "tcp: the master's address and port are missing");
    tcp_comm *c = calloc(1, sizeof *c);
    if (c == NULL) return err_set(info, ERR_NO_MEMORY, "tcp: out of memory");
    c->failed_event = c->watch_event = -1;
    c->peer_timeout_ms = peer_timeout_ms;
    c->mesh.exchange = tcp_exchange;
    err_t err = comm_mesh_init(&c->mesh, &comm_ops_tcp, config, info);
    if (err == ERR_OK) err = allocate(c, info);
    if (err == ERR_OK) err = tcp_mesh_connect(c, config, info);
    if (err == ERR_OK) err = tcp_watch_begin(c, info);
    if (err != ERR_OK) {
        tcp_close(&c->mesh.base);
        return err;
    }
    *out = &c->mesh.base;
    return ERR_OK;
}

const comm_ops comm_ops_tcp = {.name = "tcp",
                               .open = tcp_open,
                               .all_reduce = comm_mesh_all_reduce,
                               .all_gather = comm_mesh_all_gather,
                               .all_to_all = comm_mesh_all_to_all,
                               .broadcast = comm_mesh_broadcast,
                               .barrier = comm_mesh_barrier,
                               .abort = tcp_abort,
                               .close = tcp_close};
