/* kernels/dev_comm.c - see dev_comm.h. */
#include "kernels/dev_comm.h"

#include "base/check.h"

struct dev_comm_ops {
    err_t (*sum)(const dev_comm *c, float *x, size_t n);
    err_t (*gather)(const dev_comm *c, float *parts, size_t n);
    bool is_queued;
};

/* ---- here ---------------------------------------------------------------------------------------- */

static err_t sum_here(const dev_comm *c, float *x, size_t n)
{
    return comm_all_reduce(c->group, x, x, n, DTYPE_F32, NULL);
}

static err_t gather_here(const dev_comm *c, float *parts, size_t n)
{
    return comm_all_gather(c->group, parts + comm_rank(c->group) * n, parts, n * sizeof *parts,
                           NULL);
}

static const dev_comm_ops here = {.sum = sum_here, .gather = gather_here};

/* ---- hosted -------------------------------------------------------------------------------------- */

static err_t sum_hosted(const dev_comm *c, float *x, size_t n)
{
    dev_download(c->d, c->host, x, n * sizeof *x);
    TRY(comm_all_reduce(c->group, c->host, c->host, n, DTYPE_F32, NULL));
    dev_upload(c->d, x, c->host, n * sizeof *x);
    return ERR_OK;
}

static err_t gather_hosted(const dev_comm *c, float *parts, size_t n)
{
    const size_t own = comm_rank(c->group) * n;
    dev_download(c->d, c->host + own, parts + own, n * sizeof *parts);
    TRY(comm_all_gather(c->group, c->host + own, c->host, n * sizeof *parts, NULL));
    dev_upload(c->d, parts, c->host, comm_n_ranks(c->group) * n * sizeof *parts);
    return ERR_OK;
}

static const dev_comm_ops hosted = {.sum = sum_hosted, .gather = gather_hosted};

/* ---- queued -------------------------------------------------------------------------------------- */

/* A graph that runs again has its calls in it: they are only to be watched. */
static err_t sum_queued(const dev_comm *c, float *x, size_t n)
{
    comm *const queue = comm_on_device(c->group);
    return dev_is_replaying(c->d) ? comm_note_queued(queue, COMM_ALL_REDUCE, n * sizeof *x)
                                  : comm_all_reduce(queue, x, x, n, DTYPE_F32, NULL);
}

static err_t gather_queued(const dev_comm *c, float *parts, size_t n)
{
    comm *const queue = comm_on_device(c->group);
    const size_t bytes = n * sizeof *parts;
    return dev_is_replaying(c->d)
               ? comm_note_queued(queue, COMM_ALL_GATHER, bytes)
               : comm_all_gather(queue, parts + comm_rank(queue) * n, parts, bytes, NULL);
}

static const dev_comm_ops queued = {.sum = sum_queued, .gather = gather_queued, .is_queued = true};

/* ---- which way ----------------------------------------------------------------------------------- */

dev_comm dev_comm_make(dev *d, comm *group, float *host)
{
    const dev_comm_ops *const ops = d->memory == NULL               ? &here
                                    : comm_on_device(group) != NULL ? &queued
                                                                    : &hosted;
    assert(ops != &hosted || host != NULL);
    return (dev_comm){.ops = ops, .d = d, .group = group, .host = host};
}

err_t dev_comm_sum(const dev_comm *c, float *x, size_t n)
{
    return c->ops->sum(c, x, n);
}

err_t dev_comm_gather(const dev_comm *c, float *parts, size_t n)
{
    return c->ops->gather(c, parts, n);
}

bool dev_comm_is_queued(const dev_comm *c)
{
    return c->ops->is_queued;
}
