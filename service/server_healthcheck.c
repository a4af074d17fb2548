/* service/server_healthcheck.c - `pikv healthcheck`: is the server of this configuration ready?
 *
 * For containers, whose images have no curl and whose ports are set by the same variables as the
 * server's. One plain request over one socket, with a deadline for each step. */
#include "service/server.h"

#include <errno.h>
#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

enum { STEP_SECONDS = 4, PORT_BYTES = 12, REPLY_BYTES = 32 };

/* Where a server that listens everywhere can be reached. */
static const char *reachable(const char *host)
{
    if (strcmp(host, "0.0.0.0") == 0) return "127.0.0.1";
    if (strcmp(host, "::") == 0) return "::1";
    return host;
}

static int connect_to(const struct addrinfo *address)
{
    const struct timeval timeout = {.tv_sec = STEP_SECONDS};
    const int fd = socket(address->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) return -1;
    /* A send timeout bounds connect too. */
    const bool is_bounded =
        setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout) == 0 &&
        setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof timeout) == 0;
    if (is_bounded && connect(fd, address->ai_addr, address->ai_addrlen) == 0) return fd;
    close(fd);
    return -1;
}

static int open_socket(const char *host, uint32_t port)
{
    char service[PORT_BYTES];
    struct addrinfo *addresses = NULL;
    const struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV};
    snprintf(service, sizeof service, "%u", port);
    if (getaddrinfo(host, service, &hints, &addresses) != 0) return -1;
    int fd = -1;
    for (const struct addrinfo *a = addresses; a != NULL && fd < 0; a = a->ai_next)
        fd = connect_to(a);
    freeaddrinfo(addresses);
    return fd;
}

/* The status of GET /ready; 0 if there is no sensible answer. */
static unsigned ask(int fd)
{
    static const char request[] =
        "GET /ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    char reply[REPLY_BYTES] = "";
    size_t n_read = 0;
    unsigned status;
    if (send(fd, request, sizeof request - 1, MSG_NOSIGNAL) != (ssize_t)(sizeof request - 1))
        return 0;
    while (n_read < sizeof reply - 1) {
        const ssize_t n = recv(fd, reply + n_read, sizeof reply - 1 - n_read, 0);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) break;
        n_read += (size_t)n;
    }
    return sscanf(reply, "HTTP/1.%*1[01] %3u", &status) == 1 ? status : 0;
}

enum { NO_CONNECTION = 1000 }; /* beyond every status */

static unsigned ask_port(const char *host, uint32_t port)
{
    const int fd = open_socket(host, port);
    if (fd < 0) return NO_CONNECTION;
    const unsigned status = ask(fd);
    close(fd);
    return status;
}

/* A full main listener refuses probes too: then the word of the monitor counts. Only where the main one is there at all,
 * since an automatic port of the monitor may have been somebody else's: see open_monitor in server.c. */
static unsigned ask_server(const serve_config *serve)
{
    const char *host = reachable(serve->host);
    const unsigned status = serve->port > 0 ? ask_port(host, serve->port) : 0;
    if (status == 200 || status == NO_CONNECTION) return status;
    if (!serve->monitor || serve->monitor_port == 0) return status;
    if (serve->monitor_host != NULL) host = reachable(serve->monitor_host);
    return ask_port(host, serve->monitor_port) == 200 ? 200 : status;
}

int server_healthcheck(const server_settings *settings)
{
    const serve_config *serve = &settings->serve;
    if (settings->place.rank > 0) {
        printf("rank %u has no HTTP: rank 0 answers for the group\n", settings->place.rank);
        return 0;
    }
    if (serve->port == 0 && (!serve->monitor || serve->monitor_port == 0)) {
        fprintf(stderr, "pikv: healthcheck: the port is 0, any: it cannot be known here\n");
        return 1;
    }
    const unsigned status = ask_server(serve);
    if (status == 200) return 0;
    fprintf(stderr, "pikv: healthcheck: %s port %u: %s", reachable(serve->host), serve->port,
            status == NO_CONNECTION ? "no connection\n" : "not ready");
    if (status != NO_CONNECTION) fprintf(stderr, " (status %u)\n", status);
    return 1;
}
