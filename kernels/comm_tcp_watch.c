/* kernels/comm_tcp_watch.c - who is still there.
 *
 * One thread per rank. It says "alive" to every peer BEATS times in a peer_timeout_ms and listens for
 * the same. A killed peer closes its connections and is seen at once; a stopped or unreachable one
 * is silent and is seen after peer_timeout_ms. TCP's own keepalive would not do: the kernel of a
 * stopped process answers it.
 *
 * The first failure, found here or by the calling thread, is told to every peer, in words, so that
 * all survivors report the same cause. A rank that leaves in good order says goodbye first; whether
 * anybody still needs it is for the calling thread to find out, since its last messages may still be
 * on their way there.
 *
 * Who was stopped itself knows nothing of the others: after a gap between two rounds all clocks start
 * again. */
#include "kernels/comm_tcp.h"

#include "base/check.h"
#include "base/clock.h"

#include <errno.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    BEATS = 5,                /* per peer_timeout_ms */
    GOODBYE_TIMEOUT_MS = 1000 /* for peers to say goodbye back */
};

void tcp_event_set(int event)
{
    const uint64_t one = 1;
    while (write(event, &one, sizeof one) < 0 && errno == EINTR)
        continue;
}

static void fail(tcp_comm *c, err_t code, const char *message)
{
    (void)comm_fail(&c->mesh.base, code, "%s", message);
    tcp_event_set(c->failed_event);
}

/* A note is far smaller than a socket's buffer, and a peer that lets hundreds of them lie is silent
 * long before it is full; so a note that does not fit is dropped, and its sender's clock decides. */
static void send_note(tcp_peer *peer, const tcp_note *note)
{
    if (peer->is_gone || peer->fd[TCP_CONTROL] < 0) return;
    (void)!send(peer->fd[TCP_CONTROL], note, sizeof *note, MSG_DONTWAIT | MSG_NOSIGNAL);
}

static void send_to_all(tcp_comm *c, tcp_note_kind kind)
{
    tcp_note note = {.kind = kind};
    if (kind == TCP_FAILED) {
        const err_info failure = comm_failure(&c->mesh.base);
        note.code = failure.code;
        memcpy(note.message, failure.message, sizeof note.message);
    }
    for (uint32_t r = 0; r < c->mesh.base.n_ranks; r++)
        send_note(&c->peers[r], &note);
}

static void take_note(tcp_comm *c, uint32_t rank)
{
    tcp_peer *peer = &c->peers[rank];
    tcp_note *note = &peer->note;
    peer->n_note_bytes = 0;
    note->message[sizeof note->message - 1] = '\0';
    if (note->kind == TCP_GOODBYE) {
        peer->is_gone = true;
        shutdown(peer->fd[TCP_CONTROL], SHUT_WR); /* lets the peer close without waiting */
    } else if (note->kind == TCP_FAILED) {
        const bool is_known = note->code > ERR_OK && note->code < ERR_COUNT;
        fail(c, is_known ? (err_t)note->code : ERR_PEER_LOST, note->message);
    }
}

static void lose(tcp_comm *c, uint32_t rank, const char *how)
{
    char message[ERR_MESSAGE_BYTES];
    snprintf(message, sizeof message, "rank %u is lost: %s", rank, how);
    c->peers[rank].is_gone = true;
    fail(c, ERR_PEER_LOST, message);
}

static void read_notes(tcp_comm *c, uint32_t rank)
{
    tcp_peer *peer = &c->peers[rank];
    while (!peer->is_gone) {
        uint8_t *at = (uint8_t *)&peer->note + peer->n_note_bytes;
        const ssize_t n =
            recv(peer->fd[TCP_CONTROL], at, sizeof peer->note - peer->n_note_bytes, MSG_DONTWAIT);
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return;
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) {
            lose(c, rank, "its connection ended");
            return;
        }
        peer->seen_ns = clock_mono_ns();
        peer->n_note_bytes += (size_t)n;
        if (peer->n_note_bytes == sizeof peer->note) take_note(c, rank);
    }
}

static void look_for_silent(tcp_comm *c, uint64_t now_ns)
{
    for (uint32_t r = 0; r < c->mesh.base.n_ranks; r++) {
        const tcp_peer *peer = &c->peers[r];
        if (r == c->mesh.base.rank || peer->is_gone) continue;
        if (now_ns - peer->seen_ns < (uint64_t)c->peer_timeout_ms * 1000000) continue;
        char how[64];
        snprintf(how, sizeof how, "no sign of life for %u ms", c->peer_timeout_ms);
        lose(c, r, how);
    }
}

static void wait_for_news(tcp_comm *c, int timeout_ms)
{
    const uint32_t n_ranks = c->mesh.base.n_ranks;
    for (uint32_t r = 0; r < n_ranks; r++) {
        const bool is_heard = r != c->mesh.base.rank && !c->peers[r].is_gone;
        c->watch_polls[r] =
            (struct pollfd){.fd = is_heard ? c->peers[r].fd[TCP_CONTROL] : -1, .events = POLLIN};
    }
    c->watch_polls[n_ranks] = (struct pollfd){.fd = c->watch_event, .events = POLLIN};
    if (poll(c->watch_polls, n_ranks + 1, timeout_ms) <= 0) return;
    for (uint32_t r = 0; r < n_ranks; r++) {
        if (c->watch_polls[r].revents != 0) read_notes(c, r);
    }
    uint64_t n_events;
    if (c->watch_polls[n_ranks].revents != 0)
        (void)!read(c->watch_event, &n_events, sizeof n_events);
}

static bool has_failed(const tcp_comm *c)
{
    return atomic_load_explicit(&c->mesh.base.has_failed, memory_order_acquire);
}

/* Until every peer has answered, so that no connection is closed with a note unread in it: that would
 * reset it, and could take this rank's goodbye with it. */
static void say_goodbye(tcp_comm *c)
{
    send_to_all(c, TCP_GOODBYE);
    const uint64_t deadline_ns = comm_deadline_ns(GOODBYE_TIMEOUT_MS);
    for (uint32_t r = 0; r < c->mesh.base.n_ranks; r++) {
        tcp_peer *peer = &c->peers[r];
        if (r == c->mesh.base.rank) continue;
        shutdown(peer->fd[TCP_CONTROL], SHUT_WR);
        for (;;) {
            struct pollfd polled = {.fd = peer->fd[TCP_CONTROL], .events = POLLIN};
            if (poll(&polled, 1, comm_poll_ms(deadline_ns)) <= 0) break;
            if (recv(polled.fd, &peer->note, sizeof peer->note, MSG_DONTWAIT) <= 0) break;
        }
    }
}

static void *watch(void *ctx)
{
    tcp_comm *c = ctx;
    const uint64_t beat_ns = (uint64_t)c->peer_timeout_ms * 1000000 / BEATS;
    uint64_t next_beat_ns = clock_mono_ns(), round_ns = next_beat_ns;
    for (uint32_t r = 0; r < c->mesh.base.n_ranks; r++)
        c->peers[r].seen_ns = next_beat_ns;
    while (!has_failed(c) && !atomic_load(&c->is_closing)) {
        wait_for_news(c, comm_poll_ms(next_beat_ns));
        const uint64_t now_ns = clock_mono_ns();
        for (uint32_t r = 0; r < c->mesh.base.n_ranks && now_ns - round_ns > 3 * beat_ns; r++)
            c->peers[r].seen_ns = now_ns; /* this process was stopped */
        round_ns = now_ns;
        look_for_silent(c, now_ns);
        if (now_ns < next_beat_ns) continue;
        send_to_all(c, TCP_ALIVE);
        next_beat_ns = now_ns + beat_ns;
    }
    if (has_failed(c)) {
        tcp_event_set(c->failed_event);
        send_to_all(c, TCP_FAILED);
    }
    while (!atomic_load(&c->is_closing)) /* the failure is told; only closing is left */
        wait_for_news(c, -1);
    if (!has_failed(c)) say_goodbye(c);
    return NULL;
}

err_t tcp_watch_begin(tcp_comm *c, err_info *info)
{
    if (pthread_create(&c->watch, NULL, watch, c) != 0) {
        return err_set(info, ERR_SYSTEM, "tcp: cannot start the watch thread");
    }
    c->is_watched = true;
    return ERR_OK;
}

void tcp_watch_end(tcp_comm *c)
{
    atomic_store(&c->is_closing, true);
    tcp_event_set(c->watch_event);
    if (c->is_watched) pthread_join(c->watch, NULL);
}
