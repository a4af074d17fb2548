#include "web/http_socket.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/sockios.h>
#include <linux/tcp.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

enum { REFUSAL_BYTES = 2048 };

static err_t bind_and_listen(int fd, const struct addrinfo *address)
{
    const int yes = 1;
    /* A restart must not wait for the old process's connections in TIME_WAIT. */
    if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes) != 0) return ERR_SYSTEM;
    if (bind(fd, address->ai_addr, address->ai_addrlen) != 0) return ERR_SYSTEM;
    if (listen(fd, SOMAXCONN) != 0) return ERR_SYSTEM;
    return ERR_OK;
}

static uint16_t port_of(int fd)
{
    struct sockaddr_storage name;
    socklen_t name_bytes = sizeof name;
    if (getsockname(fd, (struct sockaddr *)&name, &name_bytes) != 0) return 0;
    if (name.ss_family == AF_INET6) return ntohs(((struct sockaddr_in6 *)&name)->sin6_port);
    return ntohs(((struct sockaddr_in *)&name)->sin_port);
}

err_t socket_listen(const char *host, uint16_t port, listener *out, err_info *info)
{
    *out = (listener){.fd = -1};
    const struct addrinfo hints = {
        .ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE};
    char service[8];
    snprintf(service, sizeof service, "%u", port);
    struct addrinfo *addresses = NULL;
    const int lookup = getaddrinfo(host, service, &hints, &addresses);
    if (lookup != 0) {
        return err_set(info, ERR_BAD_CONFIG, "host %s: %s", host, gai_strerror(lookup));
    }
    const int fd = socket(addresses->ai_family,
                          addresses->ai_socktype | SOCK_NONBLOCK | SOCK_CLOEXEC, IPPROTO_TCP);
    err_t err = fd >= 0 ? bind_and_listen(fd, addresses) : ERR_SYSTEM;
    if (err != ERR_OK) {
        (void)err_set(info, err, "cannot listen on %s port %u: %s", host, port, strerror(errno));
        if (fd >= 0) close(fd);
    } else {
        *out =
            (listener){.fd = fd, .port = port_of(fd), .is_ipv6 = addresses->ai_family == AF_INET6};
    }
    freeaddrinfo(addresses);
    return err;
}

void socket_peer_text(const struct sockaddr *address, char out[PEER_BYTES])
{
    snprintf(out, PEER_BYTES, "unknown");
    if (address == NULL) return;
    const void *bytes = NULL;
    if (address->sa_family == AF_INET) {
        bytes = &((const struct sockaddr_in *)(const void *)address)->sin_addr;
    } else if (address->sa_family == AF_INET6) {
        bytes = &((const struct sockaddr_in6 *)(const void *)address)->sin6_addr;
    }
    if (bytes != NULL) (void)inet_ntop(address->sa_family, bytes, out, PEER_BYTES);
}

socket_sent socket_look(int fd)
{
    socket_sent sent = {0};
    int waiting = 0;
    if (ioctl(fd, SIOCOUTQ, &waiting) == 0 && waiting > 0) sent.waiting_bytes = (uint64_t)waiting;
    struct tcp_info tcp = {0}; /* zero where the kernel is too old to know */
    socklen_t tcp_bytes = sizeof tcp;
    if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &tcp, &tcp_bytes) == 0) {
        sent.acked_bytes = tcp.tcpi_bytes_acked;
    }
    return sent;
}

void socket_refuse(int fd, const socket_refusal *refusal)
{
    char text[REFUSAL_BYTES];
    const int head =
        snprintf(text, sizeof text,
                 "HTTP/1.1 %u %s\r\nContent-Type: %s\r\nContent-Length: %zu\r\n"
                 "%sConnection: close\r\n\r\n",
                 refusal->status, refusal->reason, refusal->content_type, refusal->body_bytes,
                 refusal->status == 503 ? "Retry-After: 1\r\n" : "");
    if (head <= 0 || (size_t)head + refusal->body_bytes > sizeof text) return;
    memcpy(text + head, refusal->body, refusal->body_bytes);
    (void)!send(fd, text, (size_t)head + refusal->body_bytes, MSG_DONTWAIT | MSG_NOSIGNAL);
}
