/* kernels/comm_tcp.h - the parts of comm_tcp*.c: ranks as processes with sockets of their own.
 *
 * Every two ranks share two connections. Data carries the messages of collectives and belongs to the
 * thread that calls; control carries signs of life, goodbyes and failures and belongs to the watch
 * thread. So a rank that computes for a minute is alive, one that is stopped is not, and bad news
 * never waits behind a long message.
 *
 * A full mesh, and not a star around rank 0: a message takes one hop instead of two, no rank's link
 * carries the others' bytes, and each rank sees by itself when a peer goes. It costs n_ranks - 1
 * connections a rank, of each kind. */
#ifndef KERNELS_COMM_TCP_H
#define KERNELS_COMM_TCP_H

#include "base/check.h"
#include "kernels/comm_mesh.h"

#include <poll.h>

typedef enum tcp_channel { TCP_DATA, TCP_CONTROL, TCP_CHANNEL_COUNT } tcp_channel;

/* Before every message. Says what the sender called, so that ranks that differ notice. */
typedef struct tcp_header {
    uint32_t number; /* of the call */
    uint32_t kind;
    uint64_t bytes;
} tcp_header;

typedef enum tcp_note_kind { TCP_ALIVE = 1, TCP_GOODBYE, TCP_FAILED } tcp_note_kind;

/* What travels on control. */
typedef struct tcp_note {
    uint32_t kind; /* tcp_note_kind */
    uint32_t code; /* err_t; of TCP_FAILED, as `message` */
    char message[ERR_MESSAGE_BYTES];
} tcp_note;

static_assert(sizeof(tcp_header) == 16, "on the wire");
static_assert(sizeof(tcp_note) == 8 + ERR_MESSAGE_BYTES, "on the wire");

typedef struct tcp_peer {
    int fd[TCP_CHANNEL_COUNT]; /* -1: none */
    /* Of the calling thread, in one exchange: bytes done, the header's included. */
    size_t n_sent, n_received;
    tcp_header header_out, header_in;
    /* Of the watch thread. */
    tcp_note note;       /* being received */
    size_t n_note_bytes; /* of it, so far */
    uint64_t seen_ns;    /* when anything last came */
    bool is_gone;        /* said goodbye, or its connection ended */
} tcp_peer;

typedef struct tcp_comm {
    comm_mesh mesh;
    tcp_peer *peers;            /* [n_ranks]; the own one is empty */
    struct pollfd *polls;       /* [n_ranks + 1]; of the calling thread */
    uint32_t *polled;           /* [n_ranks + 1]; whose polls[i] is */
    struct pollfd *watch_polls; /* [n_ranks + 1]; of the watch thread, by rank, last its event */
    int failed_event;           /* eventfd: set, for good, when the group has failed */
    int watch_event;            /* eventfd: the watch thread has something to do */
    uint32_t peer_timeout_ms;
    pthread_t watch;
    bool is_watched; /* the thread exists */
    atomic_bool is_closing;
} tcp_comm;

/* Connects all ranks with all: fills peers[].fd. What is open is the caller's to close, also after a
 * failure. */
err_t tcp_mesh_connect(tcp_comm *c, const comm_config *config, err_info *info) MUST_CHECK;

/* The watch thread. tcp_watch_end says goodbye, or what has failed, before it returns. */
err_t tcp_watch_begin(tcp_comm *c, err_info *info) MUST_CHECK;
void tcp_watch_end(tcp_comm *c);
void tcp_event_set(int event); /* an eventfd */

#endif
