/* kernels/dev_comm.c - see dev_comm.h. */
#include "kernels/dev_comm.h"

#include "base/check.h"
#include "base/log.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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

/* ---- a comm of devices --------------------------------------------------------------------------- */

/* What ranks must know of each other before they come together. */
typedef struct introduction {
    uint8_t gpu[16];
    uint32_t has_gpu, has_nccl;
} introduction;

/* Why the ranks cannot; "": they can. The same on all of them. */
static void find_obstacle(const introduction *all, uint32_t n_ranks, char *out, size_t out_bytes)
{
    out[0] = '\0';
    for (uint32_t r = 0; r < n_ranks && out[0] == '\0'; r++) {
        if (!all[r].has_gpu) (void)snprintf(out, out_bytes, "rank %u has no GPU", r);
        if (!all[r].has_nccl) (void)snprintf(out, out_bytes, "rank %u has no NCCL", r);
        for (uint32_t s = 0; s < r && out[0] == '\0'; s++) {
            if (memcmp(all[r].gpu, all[s].gpu, sizeof all[r].gpu) == 0)
                (void)snprintf(out, out_bytes, "ranks %u and %u have the same GPU", s, r);
        }
    }
}

static err_t introduce(const introduction *own, comm *group, char *obstacle, size_t obstacle_bytes,
                       err_info *info)
{
    introduction *const all = calloc(comm_n_ranks(group), sizeof *all);
    if (all == NULL) return err_set(info, ERR_NO_MEMORY, "ranks: out of memory");
    const err_t err = comm_all_gather(group, own, all, sizeof *own, info);
    if (err == ERR_OK) find_obstacle(all, comm_n_ranks(group), obstacle, obstacle_bytes);
    free(all);
    return err;
}

/* Each of a layer's exchanges waits for the host then, so a step cannot be recorded. */
static void tell_hosted(const comm *group, const char *cause)
{
    if (comm_rank(group) == 0)
        log_info("ranks", "collectives go through the host, and steps are no graphs cause=\"%s\"",
                 cause);
}

err_t dev_comm_join(dev *d, comm *group, const dev_comm_options *options, err_info *info)
{
    dev_stream stream = {0};
    err_info cause = {0};
    char obstacle[64];
    comm *joined;
    const comm_ops *const nccl = comm_find("nccl");
    if (comm_n_ranks(group) == 1) return ERR_OK;
    if (options->way != DEV_COMM_NCCL && d->memory == NULL) return ERR_OK;
    if (options->way == DEV_COMM_HOST) {
        tell_hosted(group, "rank-collectives");
        return comm_barrier(group, info);
    }
    introduction own = {.has_gpu = dev_find_stream(d, &stream)};
    memcpy(own.gpu, stream.gpu, sizeof own.gpu);
    const comm_config config = {.timeout_ms = options->timeout_ms,
                                .bootstrap = group,
                                .nccl_library = options->nccl_library,
                                .stream = stream.stream,
                                .query = stream.query,
                                .stream_ctx = stream.ctx};
    own.has_nccl = comm_probe(nccl, &config, &cause) == ERR_OK;
    TRY(introduce(&own, group, obstacle, sizeof obstacle, info));
    if (obstacle[0] != '\0' && options->way == DEV_COMM_NCCL)
        return err_set(info, ERR_UNSUPPORTED, "nccl: %s%s%s", obstacle, own.has_nccl ? "" : ": ",
                       cause.message);
    if (obstacle[0] != '\0') {
        tell_hosted(group, obstacle);
        return ERR_OK;
    }
    const err_t err = comm_open(nccl, &config, &joined, &cause);
    if (err != ERR_OK)
        return err_set(info, err, "%s; --rank-collectives host does without", cause.message);
    comm_take_device(group, joined);
    return ERR_OK;
}

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
