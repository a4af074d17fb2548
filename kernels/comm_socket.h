/* kernels/comm_socket.h - TCP sockets with deadlines, for comm_tcp_*.c.
 *
 * Deadlines are on clock_mono_ns. Descriptors are closed on exec; what fails leaves none open. */
#ifndef KERNELS_COMM_SOCKET_H
#define KERNELS_COMM_SOCKET_H

#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

typedef struct socket_address {
    struct sockaddr_storage address;
    socklen_t address_bytes;
} socket_address;

/* The address of this end, or of the other one. */
err_t socket_own_address(int fd, socket_address *out) MUST_CHECK;
err_t socket_peer_address(int fd, socket_address *out) MUST_CHECK;
uint16_t socket_port(const socket_address *address);
void socket_set_port(socket_address *address, uint16_t port);

/* Listens at `address`; port 0 is any. */
err_t socket_listen_at(const socket_address *address, int *out, err_info *info) MUST_CHECK;

/* Listens at the first address of `host` that is this machine's, the same way. A name may be new, as that of a pod is,
 * whose record comes after its start or still is its predecessor's: that is waited for, a minute at most. ERR_BAD_CONFIG. */
err_t socket_listen_host(const char *host, uint16_t port, uint64_t deadline_ns, int *out,
                         err_info *info) MUST_CHECK;

/* -1 if nobody is there. */
int socket_accept(int listener);

/* One try, of two seconds at most. Returns false, and no descriptor, if it failed. */
bool socket_connect_at(const socket_address *address, uint64_t deadline_ns, int *out);

/* Tries every address of `host` until one answers; names that are not known yet, too. ERR_TIMEOUT. */
err_t socket_connect(const char *host, uint16_t port, uint64_t deadline_ns, int *out,
                     err_info *info) MUST_CHECK;

/* All bytes, or ERR_TIMEOUT, or ERR_PEER_GONE. */
err_t socket_send_all(int fd, const void *data, size_t bytes, uint64_t deadline_ns) MUST_CHECK;
err_t socket_receive_all(int fd, void *data, size_t bytes, uint64_t deadline_ns) MUST_CHECK;

/* Whether the other end has closed; nothing is read. */
bool socket_has_ended(int fd);

#endif
