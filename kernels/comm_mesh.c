/* kernels/comm_mesh.c - see comm_mesh.h.
 *
 * A sum of few bytes is one exchange: everybody sends all it has to everybody, and adds. A step of
 * decode waits for messages, not for bytes, and one exchange is the least there is. A longer sum is
 * two: each rank gets and adds its slice of all inputs, then the slices are gathered; 2 (G - 1) / G of
 * the bytes instead of G - 1 times. Longer still, it is cut into pieces that fit the scratch. The
 * order of additions is the same in all three. */
#include "kernels/comm_mesh.h"

#include "base/check.h"

#include <stdlib.h>

enum {
    ONE_EXCHANGE_BYTES = 16 << 10, /* longer sums are shared out; not tuned */
    SCRATCH_BYTES = 4 << 20        /* of all slices together */
};

err_t comm_mesh_init(comm_mesh *m, const comm_ops *ops, const comm_config *config, err_info *info)
{
    TRY(comm_init(&m->base, ops, config, info));
    const size_t n_ranks = m->base.n_ranks;
    /* A multiple of 4 bytes, and wide enough for sums of one exchange whatever the number of ranks. */
    m->slice_bytes = max_size(SCRATCH_BYTES / n_ranks / 64 * 64, ONE_EXCHANGE_BYTES);
    m->parcels = calloc(n_ranks, sizeof *m->parcels);
    m->parts = calloc(n_ranks, sizeof *m->parts);
    m->scratch = calloc(n_ranks, m->slice_bytes);
    if (m->parcels == NULL || m->parts == NULL || m->scratch == NULL) {
        return err_set(info, ERR_NO_MEMORY, "%s: no memory for %zu ranks", ops->name, n_ranks);
    }
    return ERR_OK;
}

void comm_mesh_deinit(comm_mesh *m)
{
    comm_deinit(&m->base);
    free(m->parcels);
    free(m->parts);
    free(m->scratch);
}

static comm_mesh *mesh_of(comm *c)
{
    return (comm_mesh *)c;
}

static void empty_parcels(comm_mesh *m)
{
    memset(m->parcels, 0, m->base.n_ranks * sizeof *m->parcels);
}

static void send_to(comm_mesh *m, uint32_t rank, const void *data, size_t bytes)
{
    if (rank == m->base.rank) return;
    comm_parcel *p = &m->parcels[rank];
    p->has_send = true;
    p->send = data;
    p->send_bytes = bytes;
}

static void receive_from(comm_mesh *m, uint32_t rank, void *data, size_t bytes)
{
    if (rank == m->base.rank) return;
    comm_parcel *p = &m->parcels[rank];
    p->has_receive = true;
    p->receive = data;
    p->receive_bytes = bytes;
}

static err_t exchange(comm_mesh *m)
{
    TRY(m->exchange(m));
    size_t bytes = 0;
    for (uint32_t r = 0; r < m->base.n_ranks; r++)
        bytes += m->parcels[r].receive_bytes;
    comm_count(&m->base, bytes);
    return ERR_OK;
}

static const void *at(const void *base, size_t offset)
{
    return base == NULL ? NULL : (const uint8_t *)base + offset;
}

static void *at_mutable(void *base, size_t offset)
{
    return base == NULL ? NULL : (uint8_t *)base + offset;
}

/* All of every rank to every rank. */
static err_t sum_at_once(comm_mesh *m, const void *in, void *out, size_t n, dtype type)
{
    const size_t bytes = n * dtype_bytes(type);
    empty_parcels(m);
    for (uint32_t r = 0; r < m->base.n_ranks; r++) {
        m->parts[r] = r == m->base.rank ? in : m->scratch + r * m->slice_bytes;
        send_to(m, r, in, bytes);
        receive_from(m, r, m->scratch + r * m->slice_bytes, bytes);
    }
    TRY(exchange(m));
    comm_sum(m->parts, m->base.n_ranks, n, type, out);
    return ERR_OK;
}

/* n such that a slice fits slice_bytes. */
static err_t sum_in_slices(comm_mesh *m, const void *in, void *out, size_t n, dtype type)
{
    const uint32_t own = m->base.rank, n_ranks = m->base.n_ranks;
    const size_t each = dtype_bytes(type);
    const size_t begin = comm_slice_begin(n, own, n_ranks);
    const size_t n_own = comm_slice_begin(n, own + 1, n_ranks) - begin;
    empty_parcels(m);
    for (uint32_t r = 0; r < n_ranks; r++) {
        const size_t from = comm_slice_begin(n, r, n_ranks);
        const size_t to = comm_slice_begin(n, r + 1, n_ranks);
        uint8_t *theirs = m->scratch + r * m->slice_bytes;
        m->parts[r] = r == own ? at(in, begin * each) : theirs;
        send_to(m, r, at(in, from * each), (to - from) * each);
        receive_from(m, r, theirs, n_own * each);
    }
    TRY(exchange(m));
    comm_sum(m->parts, n_ranks, n_own, type, at_mutable(out, begin * each));
    empty_parcels(m);
    for (uint32_t r = 0; r < n_ranks; r++) {
        const size_t from = comm_slice_begin(n, r, n_ranks);
        const size_t to = comm_slice_begin(n, r + 1, n_ranks);
        send_to(m, r, at(out, begin * each), n_own * each);
        receive_from(m, r, at_mutable(out, from * each), (to - from) * each);
    }
    return exchange(m);
}

err_t comm_mesh_all_reduce(comm *c, const void *in, void *out, size_t n, dtype type)
{
    comm_mesh *m = mesh_of(c);
    const size_t each = dtype_bytes(type);
    if (n * each <= ONE_EXCHANGE_BYTES) return sum_at_once(m, in, out, n, type);
    /* Slices differ by one element; so one less than what fits is what surely fits. */
    const size_t n_piece_max = (m->slice_bytes / each - 1) * c->n_ranks;
    for (size_t begin = 0; begin < n; begin += n_piece_max) {
        const size_t n_piece = min_size(n_piece_max, n - begin);
        TRY(sum_in_slices(m, at(in, begin * each), at_mutable(out, begin * each), n_piece, type));
    }
    return ERR_OK;
}

err_t comm_mesh_all_gather(comm *c, const void *in, void *out, size_t bytes)
{
    comm_mesh *m = mesh_of(c);
    empty_parcels(m);
    for (uint32_t r = 0; r < c->n_ranks; r++) {
        send_to(m, r, in, bytes);
        receive_from(m, r, at_mutable(out, r * bytes), bytes);
    }
    void *own = at_mutable(out, c->rank * bytes);
    if (bytes > 0 && own != in) memcpy(own, in, bytes);
    return exchange(m);
}

err_t comm_mesh_all_to_all(comm *c, const void *in, void *out, size_t bytes)
{
    comm_mesh *m = mesh_of(c);
    empty_parcels(m);
    for (uint32_t r = 0; r < c->n_ranks; r++) {
        send_to(m, r, at(in, r * bytes), bytes);
        receive_from(m, r, at_mutable(out, r * bytes), bytes);
    }
    if (bytes > 0) memcpy(at_mutable(out, c->rank * bytes), at(in, c->rank * bytes), bytes);
    return exchange(m);
}

err_t comm_mesh_broadcast(comm *c, void *data, size_t bytes, uint32_t root)
{
    comm_mesh *m = mesh_of(c);
    empty_parcels(m);
    for (uint32_t r = 0; c->rank == root && r < c->n_ranks; r++)
        send_to(m, r, data, bytes);
    if (c->rank != root) receive_from(m, root, data, bytes);
    return exchange(m);
}

err_t comm_mesh_barrier(comm *c)
{
    comm_mesh *m = mesh_of(c);
    empty_parcels(m);
    for (uint32_t r = 0; r < c->n_ranks; r++) {
        send_to(m, r, NULL, 0);
        receive_from(m, r, NULL, 0);
    }
    return exchange(m);
}
