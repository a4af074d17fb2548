/* kernels/comm_local.c - ranks as threads of one process: the reference.
 *
 * A rank shows the others what it called with (its slot), meets them, reads from their buffers, and
 * meets them again before any buffer changes hands. Nothing is sent, staged or allocated. A sum is
 * shared: rank r adds slice r of all inputs into its own output - in place too, since nobody else
 * reads that slice there - and takes the other slices from the others' outputs after a meeting.
 *
 * Meeting: a count under a mutex; who comes last wakes the others, who sleep on a futex at once, so that
 * none of them needs the mutex to go on. To look for a while before sleeping was measured and is worse:
 * two ranks on a busy machine of two processors took 140 us for a small sum instead of 30, since who
 * looks holds up who is waited for (docs/performance.md).
 *
 * A failure is kept in every member at once, under the group's mutex, and wakes all. A member that
 * closes while the group goes on is lost to those that wait for it. */
#include "kernels/comm_impl.h"

#include "base/check.h"
#include "base/clock.h"

#include <limits.h>
#include <linux/futex.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

typedef struct slot {
    const void *in;
    void *out;
    comm_kind kind;
    size_t bytes;
    uint32_t root;
    dtype type;
} slot; /* of the running call; written before a meeting, read behind it */

typedef struct group group;

typedef struct local_comm {
    comm base;
    group *group;
    slot slots[2];      /* of this call and the one before, which a slower rank may still look at */
    const void **parts; /* [n_ranks], of comm_sum */
    uint64_t n_meetings; /* that this rank has come to; under the group's mutex */
    bool has_left;       /* the same */
} local_comm;

struct group {
    pthread_mutex_t mutex;
    uint32_t n_ranks, n_open, n_here;
    _Atomic uint64_t n_met;     /* meetings at which all were; grows under mutex */
    _Atomic uint32_t n_news;    /* changes of n_met and has_failed; the futex of those that sleep */
    _Atomic uint32_t n_reading; /* members that read buffers of others */
    atomic_bool has_failed;
    local_comm *members; /* [n_ranks] */
    const void **parts;  /* [n_ranks][n_ranks] */
};

/* Wakes all that sleep until n_met or has_failed changes; it has. */
static void wake_all(group *g)
{
    atomic_fetch_add(&g->n_news, 1);
    syscall(SYS_futex, &g->n_news, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

static local_comm *local_of(comm *c)
{
    return (local_comm *)c;
}

/* With the mutex. The first failure of the group is that of every member. */
static void fail_all(group *g, const err_info *failure)
{
    for (uint32_t r = 0; r < g->n_ranks; r++)
        (void)comm_fail(&g->members[r].base, failure->code, "%s", failure->message);
    atomic_store(&g->has_failed, true);
    wake_all(g);
}

/* What a call returns that has failed: its caller may change or free buffers then, so nobody reads any more. */
static err_t failure_of(local_comm *c)
{
    while (atomic_load(&c->group->n_reading) > 0)
        sched_yield(); /* for as long as a copy takes */
    return comm_status(&c->base, NULL);
}

/* With the mutex: the first rank that has not come, of which there is one. */
static const local_comm *first_missing(const group *g)
{
    const uint64_t n_met = atomic_load_explicit(&g->n_met, memory_order_relaxed);
    uint32_t r = 0;
    while (g->members[r].n_meetings > n_met)
        r++;
    return &g->members[r];
}

/* With the mutex. Ends the group if `waiting` waits for a rank that has left. */
static void look_for_left(group *g, const local_comm *waiting)
{
    for (uint32_t r = 0; r < g->n_ranks; r++) {
        if (!g->members[r].has_left) continue;
        err_info failure = {.code = ERR_OK};
        err_set(&failure, ERR_PEER_LOST, "rank %u has left; rank %u waits for it in %s", r,
                waiting->base.rank, comm_kind_name(waiting->base.call.kind));
        fail_all(g, &failure);
        return;
    }
}

/* With the mutex. */
static void fail_late(local_comm *c)
{
    err_info failure = {.code = ERR_OK};
    err_set(&failure, ERR_PEER_LOST, "rank %u is lost: it did not come to %s within %u ms",
            first_missing(c->group)->base.rank, comm_kind_name(c->base.call.kind),
            atomic_load(&c->base.timeout_ms));
    fail_all(c->group, &failure);
}

static bool is_over(const group *g, uint64_t n_met)
{
    return atomic_load(&g->n_met) != n_met || atomic_load(&g->has_failed);
}

/* Sleeps until meeting number n_met is over, the group has failed, or the deadline has passed. */
static void sleep_until_met(local_comm *c, uint64_t n_met)
{
    group *g = c->group;
    const uint64_t deadline_ns = comm_deadline_ns(atomic_load(&c->base.timeout_ms));
    const struct timespec until = {.tv_sec = (time_t)(deadline_ns / 1000000000),
                                   .tv_nsec = (long)(deadline_ns % 1000000000)};
    while (clock_mono_ns() < deadline_ns) {
        const uint32_t n_news = atomic_load(&g->n_news);
        if (is_over(g, n_met)) return;
        /* Of the futex calls this one takes a point in time, of the monotonic clock. */
        syscall(SYS_futex, &g->n_news, FUTEX_WAIT_BITSET_PRIVATE, n_news,
                deadline_ns == UINT64_MAX ? NULL : &until, NULL, FUTEX_BITSET_MATCH_ANY);
    }
    pthread_mutex_lock(&g->mutex);
    if (!is_over(g, n_met)) fail_late(c);
    pthread_mutex_unlock(&g->mutex);
}

/* Returns when every rank has come here as often as this one. */
static err_t meet(local_comm *c)
{
    group *g = c->group;
    pthread_mutex_lock(&g->mutex);
    const uint64_t n_met = atomic_load(&g->n_met);
    c->n_meetings++;
    if (atomic_load(&g->has_failed)) {
        pthread_mutex_unlock(&g->mutex);
        return failure_of(c);
    }
    if (++g->n_here == g->n_ranks) {
        g->n_here = 0;
        atomic_store_explicit(&g->n_met, n_met + 1, memory_order_release);
        pthread_mutex_unlock(&g->mutex);
        wake_all(g);
        return ERR_OK;
    }
    look_for_left(g, c);
    pthread_mutex_unlock(&g->mutex);
    sleep_until_met(c, n_met);
    /* Whoever was at the meeting goes on from it, even if the group has failed since: see begin_reading. */
    return atomic_load_explicit(&g->n_met, memory_order_acquire) != n_met ? ERR_OK : failure_of(c);
}

/* What rank `rank` shows in the running call. */
static slot *slot_of(const local_comm *c, uint32_t rank)
{
    return &c->group->members[rank].slots[c->base.call.number % 2];
}

/* Behind the meeting: everybody looks at everybody, so all see that one differs. */
static err_t check_same(local_comm *c)
{
    group *g = c->group;
    for (uint32_t r = 0; r < g->n_ranks; r++) {
        const slot *other = slot_of(c, r);
        const slot *own = slot_of(c, c->base.rank);
        if (other->kind == own->kind && other->bytes == own->bytes && other->root == own->root &&
            other->type == own->type) {
            continue;
        }
        err_info failure = {.code = ERR_OK};
        err_set(&failure, ERR_BAD_ARGUMENT,
                "rank %u called %s of %zu bytes, rank %u called %s of %zu bytes", r,
                comm_kind_name(other->kind), other->bytes, c->base.rank, comm_kind_name(own->kind),
                own->bytes);
        pthread_mutex_lock(&g->mutex);
        fail_all(g, &failure);
        pthread_mutex_unlock(&g->mutex);
        return failure_of(c);
    }
    return ERR_OK;
}

static err_t show_and_meet(local_comm *c, slot shown)
{
    shown.kind = c->base.call.kind;
    shown.bytes = c->base.call.bytes;
    *slot_of(c, c->base.rank) = shown;
    TRY(meet(c));
    return check_same(c);
}

/* Others' buffers stay as they are until end_reading. False: the group has failed, and they may not. */
static bool begin_reading(local_comm *c)
{
    atomic_fetch_add(&c->group->n_reading, 1);
    if (!atomic_load(&c->group->has_failed)) return true;
    atomic_fetch_sub(&c->group->n_reading, 1);
    return false;
}

static void end_reading(local_comm *c)
{
    atomic_fetch_sub(&c->group->n_reading, 1);
}

static void copy(local_comm *c, uint32_t from, void *out, const void *in, size_t bytes)
{
    if (bytes == 0 || out == in) return;
    memcpy(out, in, bytes);
    if (from != c->base.rank) comm_count(&c->base, bytes);
}

static err_t local_all_reduce(comm *base, const void *in, void *out, size_t n, dtype type)
{
    local_comm *c = local_of(base);
    const group *g = c->group;
    const size_t each = dtype_bytes(type);
    TRY(show_and_meet(c, (slot){.in = in, .out = out, .type = type}));
    const size_t begin = comm_slice_begin(n, base->rank, g->n_ranks);
    const size_t n_own = comm_slice_begin(n, base->rank + 1, g->n_ranks) - begin;
    if (!begin_reading(c)) return failure_of(c);
    if (n_own > 0) {
        for (uint32_t r = 0; r < g->n_ranks; r++)
            c->parts[r] = (const uint8_t *)slot_of(c, r)->in + begin * each;
        comm_sum(c->parts, g->n_ranks, n_own, type, (uint8_t *)out + begin * each);
        comm_count(base, n_own * each * (g->n_ranks - 1));
    }
    end_reading(c);
    TRY(meet(c));
    if (!begin_reading(c)) return failure_of(c);
    for (uint32_t r = 0; r < g->n_ranks; r++) {
        const size_t from = comm_slice_begin(n, r, g->n_ranks) * each;
        const size_t to = comm_slice_begin(n, r + 1, g->n_ranks) * each;
        if (r == base->rank || from == to) continue;
        copy(c, r, (uint8_t *)out + from, (const uint8_t *)slot_of(c, r)->out + from, to - from);
    }
    end_reading(c);
    return meet(c);
}

static err_t local_all_gather(comm *base, const void *in, void *out, size_t bytes)
{
    local_comm *c = local_of(base);
    TRY(show_and_meet(c, (slot){.in = in}));
    if (!begin_reading(c)) return failure_of(c);
    for (uint32_t r = 0; r < base->n_ranks && bytes > 0; r++)
        copy(c, r, (uint8_t *)out + r * bytes, slot_of(c, r)->in, bytes);
    end_reading(c);
    return meet(c);
}

static err_t local_all_to_all(comm *base, const void *in, void *out, size_t bytes)
{
    local_comm *c = local_of(base);
    TRY(show_and_meet(c, (slot){.in = in}));
    if (!begin_reading(c)) return failure_of(c);
    for (uint32_t r = 0; r < base->n_ranks && bytes > 0; r++) {
        const uint8_t *theirs = slot_of(c, r)->in;
        copy(c, r, (uint8_t *)out + r * bytes, theirs + base->rank * bytes, bytes);
    }
    end_reading(c);
    return meet(c);
}

static err_t local_broadcast(comm *base, void *data, size_t bytes, uint32_t root)
{
    local_comm *c = local_of(base);
    TRY(show_and_meet(c, (slot){.in = data, .root = root}));
    if (!begin_reading(c)) return failure_of(c);
    if (base->rank != root) copy(c, root, data, slot_of(c, root)->in, bytes);
    end_reading(c);
    return meet(c);
}

static err_t local_barrier(comm *base)
{
    return show_and_meet(local_of(base), (slot){.in = NULL});
}

static void local_abort(comm *base)
{
    group *g = local_of(base)->group;
    const err_info failure = comm_failure(base);
    pthread_mutex_lock(&g->mutex);
    fail_all(g, &failure);
    pthread_mutex_unlock(&g->mutex);
}

static void close_group(group *g)
{
    for (uint32_t r = 0; r < g->n_ranks; r++)
        comm_deinit(&g->members[r].base);
    pthread_mutex_destroy(&g->mutex);
    free(g->members);
    free(g->parts);
    free(g);
}

static void local_close(comm *base)
{
    local_comm *c = local_of(base);
    group *g = c->group;
    pthread_mutex_lock(&g->mutex);
    c->has_left = true;
    const bool is_last = --g->n_open == 0;
    for (uint32_t r = 0; r < g->n_ranks && !atomic_load(&g->has_failed); r++) {
        if (g->members[r].n_meetings > atomic_load(&g->n_met)) look_for_left(g, &g->members[r]);
    }
    pthread_mutex_unlock(&g->mutex);
    if (is_last) close_group(g);
}

static err_t open_group(uint32_t n_ranks, uint32_t timeout_ms, group **out, err_info *info)
{
    size_t n_parts = 0;
    err_t err = size_mul(n_ranks, n_ranks, &n_parts);
    group *g = calloc(1, sizeof *g);
    if (err != ERR_OK || g == NULL) goto fail;
    g->members = calloc(n_ranks, sizeof *g->members);
    g->parts = calloc(n_parts, sizeof *g->parts);
    if (g->members == NULL || g->parts == NULL) goto fail;
    g->n_ranks = g->n_open = n_ranks;
    for (uint32_t r = 0; r < n_ranks; r++) {
        local_comm *c = &g->members[r];
        const comm_config config = {.rank = r, .n_ranks = n_ranks, .timeout_ms = timeout_ms};
        err = comm_init(&c->base, &comm_ops_local, &config, info);
        if (err != ERR_OK) goto fail;
        c->group = g;
        c->parts = g->parts + (size_t)r * n_ranks;
    }
    pthread_mutex_init(&g->mutex, NULL);
    *out = g;
    return ERR_OK;
fail:
    for (uint32_t r = 0; g != NULL && g->members != NULL && r < n_ranks; r++)
        comm_deinit(&g->members[r].base);
    if (g != NULL) free(g->members);
    if (g != NULL) free(g->parts);
    free(g);
    return err_set(info, err != ERR_OK ? err : ERR_NO_MEMORY, "local: out of memory");
}

err_t comm_open_local(uint32_t n_ranks, uint32_t timeout_ms, comm **out, err_info *info)
{
    if (n_ranks < 1 || n_ranks > COMM_RANKS_MAX) {
        return err_set(info, ERR_BAD_CONFIG, "local: %u ranks are outside [1, %d]", n_ranks,
                       COMM_RANKS_MAX);
    }
    group *g = NULL;
    TRY(open_group(n_ranks, timeout_ms, &g, info));
    for (uint32_t r = 0; r < n_ranks; r++)
        out[r] = &g->members[r].base;
    return ERR_OK;
}

static err_t local_open(const comm_config *config, comm **out, err_info *info)
{
    if (config->n_ranks != 1 || config->rank != 0) {
        return err_set(info, ERR_BAD_CONFIG,
                       "local: rank %u of %u: ranks of one process are opened together",
                       config->rank, config->n_ranks);
    }
    return comm_open_local(1, config->timeout_ms, out, info);
}

const comm_ops comm_ops_local = {.name = "local",
                                 .open = local_open,
                                 .all_reduce = local_all_reduce,
                                 .all_gather = local_all_gather,
                                 .all_to_all = local_all_to_all,
                                 .broadcast = local_broadcast,
                                 .barrier = local_barrier,
                                 .abort = local_abort,
                                 .close = local_close};
