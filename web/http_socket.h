/* web/http_socket.h - the few things the server does to sockets itself.
 *
 * Reads and writes belong to the HTTP library. Ours are: the listening socket (so that an address in
 * use gives a clear message), refusals to clients whose request never became one, and looking at how
 * far a peer has read. */
#ifndef WEB_HTTP_SOCKET_H
#define WEB_HTTP_SOCKET_H

#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

enum { PEER_BYTES = 48 }; /* the longest IPv6 address and its NUL */

typedef struct listener {
    int fd;        /* non-blocking, closed on exec; -1: none */
    uint16_t port; /* the real one, also when 0 was asked */
    bool is_ipv6;
} listener;

err_t socket_listen(const char *host, uint16_t port, listener *out, err_info *info) MUST_CHECK;

void socket_peer_text(const struct sockaddr *address, char out[PEER_BYTES]); /* "127.0.0.1" */

/* What the kernel still holds for the peer, and how much the peer has acknowledged so far. */
typedef struct socket_sent {
    uint64_t waiting_bytes;
    uint64_t acked_bytes; /* only ever compared for change */
} socket_sent;
socket_sent socket_look(int fd);

/* Writes a whole reply at once, as far as the socket takes it, without ever blocking or raising
 * SIGPIPE; for connections on which the library has nothing to send. */
typedef struct socket_refusal {
    unsigned status;
    const char *reason; /* "Request Timeout" */
    const char *content_type;
    const char *body;
    size_t body_bytes;
} socket_refusal;
void socket_refuse(int fd, const socket_refusal *refusal);

#endif
