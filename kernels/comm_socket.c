/* kernels/comm_socket.c - see comm_socket.h.
 *
 * Two traps of connecting again and again. A try is limited, since an address that swallows packets
 * would otherwise hold it for minutes. And on one machine, while nobody listens at a port from which
 * the kernel also deals, a socket can connect to itself: such a connection is none. */
#include "kernels/comm_socket.h"

#include "base/clock.h"
#include "base/log.h"
#include "kernels/comm_impl.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { TRY_MS = 2000, PAUSE_MS = 100, NAME_MS = 60000, BACKLOG = 4096 };

err_t socket_own_address(int fd, socket_address *out)
{
    out->address_bytes = sizeof out->address;
    const int failed = getsockname(fd, (struct sockaddr *)&out->address, &out->address_bytes);
    return failed ? ERR_SYSTEM : ERR_OK;
}

err_t socket_peer_address(int fd, socket_address *out)
{
    out->address_bytes = sizeof out->address;
    const int failed = getpeername(fd, (struct sockaddr *)&out->address, &out->address_bytes);
    return failed ? ERR_SYSTEM : ERR_OK;
}

static in_port_t *port_of(socket_address *address)
{
    if (address->address.ss_family == AF_INET6)
        return &((struct sockaddr_in6 *)&address->address)->sin6_port;
    return &((struct sockaddr_in *)&address->address)->sin_port;
}

uint16_t socket_port(const socket_address *address)
{
    socket_address copy = *address;
    return ntohs(*port_of(&copy));
}

void socket_set_port(socket_address *address, uint16_t port)
{
    *port_of(address) = htons(port);
}

err_t socket_listen_at(const socket_address *address, int *out, err_info *info)
{
    const int one = 1;
    const int fd =
        socket(address->address.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd >= 0 && setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) == 0 &&
        bind(fd, (const struct sockaddr *)&address->address, address->address_bytes) == 0 &&
        listen(fd, BACKLOG) == 0) {
        *out = fd;
        return ERR_OK;
    }
    const int cause = errno;
    if (fd >= 0) close(fd);
    return err_set(info, cause == EADDRNOTAVAIL ? ERR_NOT_FOUND : ERR_SYSTEM,
                   "tcp: cannot listen at port %u: %s", socket_port(address), strerror(cause));
}

/* NULL if the name is not known. Freed with freeaddrinfo. */
static struct addrinfo *resolve(const char *host, uint16_t port, int *cause)
{
    char service[8];
    snprintf(service, sizeof service, "%u", port);
    const struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV};
    struct addrinfo *found = NULL;
    *cause = getaddrinfo(host, service, &hints, &found);
    return *cause == 0 ? found : NULL;
}

static socket_address address_of(const struct addrinfo *info)
{
    socket_address address = {.address_bytes = info->ai_addrlen};
    memcpy(&address.address, info->ai_addr, info->ai_addrlen);
    return address;
}

/* ERR_NOT_FOUND: the name is not known, or none of its addresses is of this machine. */
static err_t listen_by_name(const char *host, uint16_t port, int *out, err_info *info)
{
    int cause = 0;
    struct addrinfo *found = resolve(host, port, &cause);
    if (found == NULL) {
        return err_set(info, ERR_NOT_FOUND, "tcp: master address \"%s\": %s", host,
                       gai_strerror(cause));
    }
    err_info last = {.code = ERR_OK};
    err_t err = ERR_NOT_FOUND;
    for (const struct addrinfo *at = found; at != NULL && err != ERR_OK; at = at->ai_next) {
        const socket_address address = address_of(at);
        last = (err_info){.code = ERR_OK};
        err = socket_listen_at(&address, out, &last);
    }
    freeaddrinfo(found);
    if (err == ERR_OK) return ERR_OK;
    return err_set(info, err, "%s, of master address \"%s\", which must be rank 0's own",
                   last.message, host);
}

static bool is_numeric(const char *host)
{
    const struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICHOST};
    struct addrinfo *found = NULL;
    if (getaddrinfo(host, NULL, &hints, &found) != 0) return false;
    freeaddrinfo(found);
    return true;
}

err_t socket_listen_host(const char *host, uint16_t port, uint64_t deadline_ns, int *out,
                         err_info *info)
{
    const uint64_t name_ns = comm_deadline_ns(NAME_MS);
    const bool may_change = !is_numeric(host);
    if (name_ns < deadline_ns) deadline_ns = name_ns;
    for (bool is_first = true;; is_first = false) {
        err_info last = {.code = ERR_OK};
        const err_t err = listen_by_name(host, port, out, &last);
        if (err == ERR_OK) return ERR_OK;
        if (err != ERR_NOT_FOUND || !may_change || clock_mono_ns() >= deadline_ns)
            return err_set(info, ERR_BAD_CONFIG, "%s", last.message);
        if (is_first) log_warn("comm", "waiting cause=\"%s\"", last.message);
        nanosleep(&(struct timespec){.tv_nsec = PAUSE_MS * 1000000L}, NULL);
    }
}

static void set_no_delay(int fd)
{
    const int one = 1;
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
}

int socket_accept(int listener)
{
    const int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd >= 0) set_no_delay(fd);
    return fd;
}

static bool is_own(int fd)
{
    socket_address own, peer;
    if (socket_own_address(fd, &own) != ERR_OK || socket_peer_address(fd, &peer) != ERR_OK)
        return true; /* ended already */
    return own.address_bytes == peer.address_bytes &&
           memcmp(&own.address, &peer.address, own.address_bytes) == 0;
}

bool socket_connect_at(const socket_address *address, uint64_t deadline_ns, int *out)
{
    const int fd =
        socket(address->address.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) return false;
    bool is_connected =
        connect(fd, (const struct sockaddr *)&address->address, address->address_bytes) == 0;
    if (!is_connected && errno == EINPROGRESS) {
        const uint64_t try_ns = comm_deadline_ns(TRY_MS);
        struct pollfd polled = {.fd = fd, .events = POLLOUT};
        int cause = 0;
        socklen_t cause_bytes = sizeof cause;
        is_connected =
            poll(&polled, 1, comm_poll_ms(try_ns < deadline_ns ? try_ns : deadline_ns)) == 1 &&
            getsockopt(fd, SOL_SOCKET, SO_ERROR, &cause, &cause_bytes) == 0 && cause == 0;
    }
    if (!is_connected || is_own(fd)) {
        close(fd);
        return false;
    }
    set_no_delay(fd);
    *out = fd;
    return true;
}

err_t socket_connect(const char *host, uint16_t port, uint64_t deadline_ns, int *out,
                     err_info *info)
{
    int cause = 0;
    do {
        struct addrinfo *found = resolve(host, port, &cause);
        bool is_connected = false;
        for (const struct addrinfo *at = found; at != NULL && !is_connected; at = at->ai_next) {
            const socket_address address = address_of(at);
            is_connected = socket_connect_at(&address, deadline_ns, out);
        }
        if (found != NULL) freeaddrinfo(found);
        if (is_connected) return ERR_OK;
        nanosleep(&(struct timespec){.tv_nsec = PAUSE_MS * 1000000L}, NULL);
    } while (clock_mono_ns() < deadline_ns);
    return err_set(info, ERR_TIMEOUT, "tcp: rank 0 does not answer at \"%s\" port %u: %s", host,
                   port, cause != 0 ? gai_strerror(cause) : "nobody listens there");
}

/* Waits until `events`; false if the deadline has passed. */
static bool wait_for(int fd, short events, uint64_t deadline_ns)
{
    struct pollfd polled = {.fd = fd, .events = events};
    int n_ready;
    do {
        n_ready = poll(&polled, 1, comm_poll_ms(deadline_ns));
    } while (n_ready < 0 && errno == EINTR);
    return n_ready > 0;
}

static bool is_not_ready(ssize_t n)
{
    return n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR);
}

err_t socket_send_all(int fd, const void *data, size_t bytes, uint64_t deadline_ns)
{
    for (size_t n_done = 0; n_done < bytes;) {
        const ssize_t n = send(fd, (const uint8_t *)data + n_done, bytes - n_done, MSG_NOSIGNAL);
        if (n > 0) n_done += (size_t)n;
        if (n < 0 && !is_not_ready(n)) return ERR_PEER_GONE;
        if (n < 0 && !wait_for(fd, POLLOUT, deadline_ns)) return ERR_TIMEOUT;
    }
    return ERR_OK;
}

err_t socket_receive_all(int fd, void *data, size_t bytes, uint64_t deadline_ns)
{
    for (size_t n_done = 0; n_done < bytes;) {
        const ssize_t n = recv(fd, (uint8_t *)data + n_done, bytes - n_done, 0);
        if (n > 0) n_done += (size_t)n;
        if (n == 0 || (n < 0 && !is_not_ready(n))) return ERR_PEER_GONE;
        if (n < 0 && !wait_for(fd, POLLIN, deadline_ns)) return ERR_TIMEOUT;
    }
    return ERR_OK;
}

bool socket_has_ended(int fd)
{
    uint8_t byte;
    const ssize_t n = recv(fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
    return n == 0 || (n < 0 && !is_not_ready(n));
}
