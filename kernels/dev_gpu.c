/* kernels/dev_gpu.c - a GPU behind the table of dev.h, and the choice of a device.
 *
 * What is serial stays the CPU's, for the cache's own work on the host. The rest is queued on the GPU, in whose memory
 * weights and activations lie, and a copy of what attention reads (kvcache/device_view.h). */
#include "kernels/dev.h"

#include "base/check.h"
#include "base/log.h"
#include "kernels/dev_cuda.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct dev_gpu {
    dev base; /* first: what others see */
    dev *cpu;
    dev_cuda *cuda;
    dev_ops ops;
    char name[48]; /* "cuda+avx512": results depend on both */
    err_info failure;
    atomic_bool has_failed; /* `failure` says how */
} dev_gpu;

static dev_gpu *gpu_of(dev *d)
{
    return (dev_gpu *)(void *)d;
}

static const cuda_ops *ops_of(dev *d)
{
    return dev_cuda_get_ops(gpu_of(d)->cuda);
}

/* The first one stays. */
static void keep_failure(dev_gpu *g, err_t err, const err_info *info)
{
    if (err == ERR_OK || atomic_load(&g->has_failed)) return;
    g->failure = *info;
    atomic_store(&g->has_failed, true);
}

/* ---- ops ----------------------------------------------------------------------------------------- */

static void embed_gpu(dev *d, const embed_args *args)
{
    ops_of(d)->embed(gpu_of(d)->cuda, args);
}

static void rms_norm_gpu(dev *d, const rms_norm_args *args)
{
    ops_of(d)->rms_norm(gpu_of(d)->cuda, args);
}

static void layer_norm_gpu(dev *d, const layer_norm_args *args)
{
    ops_of(d)->layer_norm(gpu_of(d)->cuda, args);
}

static void adjust_gpu(dev *d, const adjust_args *args)
{
    ops_of(d)->adjust(gpu_of(d)->cuda, args);
}

static void rope_gpu(dev *d, const rope_args *args)
{
    ops_of(d)->rope(gpu_of(d)->cuda, args);
}

static void matmul_gpu(dev *d, const matmul_args *args)
{
    ops_of(d)->matmul(gpu_of(d)->cuda, args);
}

static void matmul_heads_gpu(dev *d, const matmul_heads_args *args)
{
    ops_of(d)->matmul_heads(gpu_of(d)->cuda, args);
}

static void router_gpu(dev *d, const router_args *args)
{
    ops_of(d)->router(gpu_of(d)->cuda, args);
}

static void moe_gpu(dev *d, const moe_args *args)
{
    ops_of(d)->moe(gpu_of(d)->cuda, args);
}

static void add_gpu(dev *d, const add_args *args)
{
    ops_of(d)->add(gpu_of(d)->cuda, args);
}

static void deal_choices_gpu(dev *d, const deal_choices_args *args)
{
    ops_of(d)->deal_choices(gpu_of(d)->cuda, args);
}

static void attend_pages_gpu(dev *d, const attend_pages_args *args)
{
    ops_of(d)->attend_pages(gpu_of(d)->cuda, args);
}

static void choose_pages_gpu(dev *d, const choose_pages_args *args)
{
    ops_of(d)->choose_pages(gpu_of(d)->cuda, args);
}

static void put_rows_gpu(dev *d, const put_rows_args *args)
{
    ops_of(d)->put_rows(gpu_of(d)->cuda, args);
}

static void encode_pages_gpu(dev *d, const encode_pages_args *args)
{
    ops_of(d)->encode_pages(gpu_of(d)->cuda, args);
}

static void move_slots_gpu(dev *d, const move_slots_args *args)
{
    ops_of(d)->move_slots(gpu_of(d)->cuda, args);
}

static void merge_parts_gpu(dev *d, const merge_parts_args *args)
{
    ops_of(d)->merge_parts(gpu_of(d)->cuda, args);
}

static void sample_gpu(dev *d, const sample_args *args)
{
    ops_of(d)->sample(gpu_of(d)->cuda, args);
}

/* ---- memory -------------------------------------------------------------------------------------- */

static err_t alloc_gpu(dev *d, size_t bytes, void **out, err_info *info)
{
    TRY(dev_cuda_alloc(gpu_of(d)->cuda, bytes, out, info));
    return dev_cuda_zero(gpu_of(d)->cuda, *out, bytes, info);
}

static void free_gpu(dev *d, void *data)
{
    dev_cuda_free(gpu_of(d)->cuda, data);
}

static size_t room_gpu(dev *d)
{
    return dev_cuda_room(gpu_of(d)->cuda);
}

static void upload_gpu(dev *d, void *to, const void *from, size_t bytes)
{
    err_info info = {0};
    const err_t err = dev_cuda_upload(gpu_of(d)->cuda, to, from, bytes, &info);
    keep_failure(gpu_of(d), err, &info);
}

static void download_gpu(dev *d, void *to, const void *from, size_t bytes)
{
    err_info info = {0};
    const err_t err = dev_cuda_download(gpu_of(d)->cuda, to, from, bytes, &info);
    keep_failure(gpu_of(d), err, &info);
    if (atomic_load(&gpu_of(d)->has_failed)) memset(to, 0, bytes);
}

static void zero_gpu(dev *d, void *data, size_t bytes)
{
    err_info info = {0};
    const err_t err = dev_cuda_zero(gpu_of(d)->cuda, data, bytes, &info);
    keep_failure(gpu_of(d), err, &info);
}

static void begin_graph_gpu(dev *d, uint64_t key)
{
    dev_cuda_begin_graph(gpu_of(d)->cuda, key);
}

static void end_graph_gpu(dev *d)
{
    dev_cuda_end_graph(gpu_of(d)->cuda);
}

static bool is_replaying_gpu(dev *d)
{
    return dev_cuda_is_replaying(gpu_of(d)->cuda);
}

static int query_gpu(void *ctx)
{
    return dev_cuda_query(ctx);
}

static bool find_stream_gpu(dev *d, dev_stream *out)
{
    dev_cuda *const cuda = gpu_of(d)->cuda;
    *out = (dev_stream){.stream = dev_cuda_stream(cuda), .query = query_gpu, .ctx = cuda};
    memcpy(out->gpu, dev_cuda_get_about(cuda)->uuid, sizeof out->gpu);
    return true;
}

static err_t status_gpu(dev *d, err_info *info)
{
    const dev_gpu *g = gpu_of(d);
    if (!atomic_load(&g->has_failed)) return ERR_OK;
    return err_set(info, g->failure.code, "%s", g->failure.message);
}

static void close_gpu(dev *d)
{
    dev_gpu *g = gpu_of(d);
    dev_cuda_close(g->cuda);
    dev_close(g->cpu);
    d->pool = NULL; /* the CPU's, which is gone */
}

static const dev_memory memory_gpu = {.alloc = alloc_gpu,
                                      .free = free_gpu,
                                      .room = room_gpu,
                                      .upload = upload_gpu,
                                      .download = download_gpu,
                                      .zero = zero_gpu,
                                      .begin_graph = begin_graph_gpu,
                                      .end_graph = end_graph_gpu,
                                      .is_replaying = is_replaying_gpu,
                                      .find_stream = find_stream_gpu,
                                      .status = status_gpu,
                                      .close = close_gpu};

/* ---- opening ------------------------------------------------------------------------------------- */

static void fill_ops(dev_gpu *g)
{
    (void)snprintf(g->name, sizeof g->name, "cuda+%s", g->cpu->ops->name);
    g->ops = *g->cpu->ops;
    g->ops.name = g->name;
    g->ops.embed = embed_gpu;
    g->ops.rms_norm = rms_norm_gpu;
    g->ops.layer_norm = layer_norm_gpu;
    g->ops.adjust = adjust_gpu;
    g->ops.rope = rope_gpu;
    g->ops.matmul = matmul_gpu;
    g->ops.matmul_heads = matmul_heads_gpu;
    g->ops.router = router_gpu;
    g->ops.moe = moe_gpu;
    g->ops.moe_scratch_bytes = cuda_moe_scratch_bytes;
    g->ops.add = add_gpu;
    g->ops.deal_choices = deal_choices_gpu;
    g->ops.attend_pages = attend_pages_gpu;
    g->ops.choose_pages = choose_pages_gpu;
    g->ops.put_rows = put_rows_gpu;
    g->ops.encode_pages = encode_pages_gpu;
    g->ops.move_slots = move_slots_gpu;
    g->ops.merge_parts = merge_parts_gpu;
    g->ops.sample = sample_gpu;
    g->base = (dev){.ops = &g->ops, .pool = g->cpu->pool, .memory = &memory_gpu};
}

/* How many of the machine's ranks have the same GPU. */
static uint32_t memory_parts(const dev_config *config, uint32_t n_gpus)
{
    const uint32_t n = config->n_gpu_users;
    if (n_gpus == 0 || n <= 1) return 1;
    return n / n_gpus + (config->gpu % n_gpus < n % n_gpus);
}

static err_t open_gpu(const dev_config *config, dev **out, err_info *info)
{
    const uint32_t n_gpus = dev_cuda_count();
    const dev_cuda_config wanted = {.index = n_gpus > 0 ? config->gpu % n_gpus : 0,
                                    .memory_share = config->gpu_memory_share,
                                    .memory_parts = memory_parts(config, n_gpus),
                                    .has_graphs = config->gpu_graphs};
    dev_gpu *g = calloc(1, sizeof *g);
    if (g == NULL) return err_set(info, ERR_NO_MEMORY, "cuda device: out of memory");
    err_t err = dev_open_cpu(config, &g->cpu, info);
    if (err == ERR_OK) err = dev_cuda_open(&wanted, &g->cuda, info);
    if (err != ERR_OK) {
        dev_close(g->cpu);
        free(g);
        return err;
    }
    fill_ops(g);
    const dev_cuda_about *about = dev_cuda_get_about(g->cuda);
    log_info("device",
             "opened gpu=%u name=\"%s\" compute=%u.%u total_gib=%.1f free_gib=%.1f limit_gib=%.1f",
             wanted.index, about->name, about->compute_major, about->compute_minor,
             (double)about->memory_total / (1 << 30), (double)about->memory_free / (1 << 30),
             (double)about->memory_limit / (1 << 30));
    *out = &g->base;
    return ERR_OK;
}

err_t dev_open(const dev_config *config, dev **out, err_info *info)
{
    err_info cause = {0};
    *out = NULL;
    if (config->kind == DEV_CPU) return dev_open_cpu(config, out, info);
    if (config->kind == DEV_CUDA) return open_gpu(config, out, info);
    const err_t err = open_gpu(config, out, &cause);
    if (err == ERR_OK) return ERR_OK;
    if (err != ERR_UNSUPPORTED) return err_set(info, err, "%s", cause.message);
    log_info("device", "the CPU is used cause=\"%s\"", cause.message);
    return dev_open_cpu(config, out, info);
}
