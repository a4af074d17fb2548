/* tests/kernels/dev_cuda_stand_in.c - kernels/dev_cuda.h without CUDA: a CPU's ops behind the table of a GPU.
 *
 * What the program does around a GPU is then tested at a CPU's speed: all of kernels/dev_gpu.c, the view of the cache,
 * the engine and the server. The kernels are tested over the emulator, and what addresses they are given by
 * dev_apart.c. Graphs run what is called, so a key that says too little goes unseen here; the emulator sees it. */
#include "kernels/dev_cuda.h"

#include "base/check.h"
#include "kernels/cuda_sizes.h"
#include "kernels/dev.h"
#include "kernels/dev_cuda_impl.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { PAGE_BYTES = 4096 };
static const size_t MEMORY_BYTES = (size_t)4 << 30;

struct dev_cuda {
    cuda_queue queue; /* first: as in dev_cuda.c */
    dev *cpu;
    dev_cuda_about about;
    size_t used_bytes; /* as dev_cuda.c counts them */
};

static void embed(dev_cuda *d, const embed_args *args)
{
    d->cpu->ops->embed(d->cpu, args);
}

static void rms_norm(dev_cuda *d, const rms_norm_args *args)
{
    d->cpu->ops->rms_norm(d->cpu, args);
}

static void layer_norm(dev_cuda *d, const layer_norm_args *args)
{
    d->cpu->ops->layer_norm(d->cpu, args);
}

static void adjust(dev_cuda *d, const adjust_args *args)
{
    d->cpu->ops->adjust(d->cpu, args);
}

static void rope(dev_cuda *d, const rope_args *args)
{
    d->cpu->ops->rope(d->cpu, args);
}

static void add(dev_cuda *d, const add_args *args)
{
    d->cpu->ops->add(d->cpu, args);
}

static void matmul(dev_cuda *d, const matmul_args *args)
{
    d->cpu->ops->matmul(d->cpu, args);
}

static void matmul_heads(dev_cuda *d, const matmul_heads_args *args)
{
    d->cpu->ops->matmul_heads(d->cpu, args);
}

static void router(dev_cuda *d, const router_args *args)
{
    d->cpu->ops->router(d->cpu, args);
}

/* The CPU lays its scratch out in another way. */
static void moe(dev_cuda *d, const moe_args *args)
{
    moe_args own = *args;
    own.scratch = malloc(d->cpu->ops->moe_scratch_bytes(args->n_tokens, args->dim, args->ffn,
                                                        args->n_experts, args->top_k));
    if (own.scratch == NULL) abort();
    d->cpu->ops->moe(d->cpu, &own);
    free(own.scratch);
}

static void deal_choices(dev_cuda *d, const deal_choices_args *args)
{
    d->cpu->ops->deal_choices(d->cpu, args);
}

static void attend_pages(dev_cuda *d, const attend_pages_args *args)
{
    (void)d;
    attend_pages_cpu(args);
}

static void choose_pages(dev_cuda *d, const choose_pages_args *args)
{
    (void)d;
    choose_pages_cpu(args);
}

static void put_rows(dev_cuda *d, const put_rows_args *args)
{
    (void)d;
    put_rows_cpu(args);
}

static void encode_pages(dev_cuda *d, const encode_pages_args *args)
{
    (void)d;
    encode_pages_cpu(args);
}

static void move_slots(dev_cuda *d, const move_slots_args *args)
{
    (void)d;
    move_slots_cpu(args);
}

static void merge_parts(dev_cuda *d, const merge_parts_args *args)
{
    (void)d;
    merge_parts_cpu(args);
}

static void sample(dev_cuda *d, const sample_args *args)
{
    (void)d;
    void *scratch = malloc(sample_scratch_bytes(args->n_vocab));
    if (scratch == NULL) abort();
    sample_cpu(args, scratch);
    free(scratch);
}

static const cuda_ops stand_in_ops = {.embed = embed,
                                      .rms_norm = rms_norm,
                                      .layer_norm = layer_norm,
                                      .adjust = adjust,
                                      .rope = rope,
                                      .add = add,
                                      .matmul = matmul,
                                      .matmul_heads = matmul_heads,
                                      .router = router,
                                      .moe = moe,
                                      .deal_choices = deal_choices,
                                      .attend_pages = attend_pages,
                                      .choose_pages = choose_pages,
                                      .put_rows = put_rows,
                                      .encode_pages = encode_pages,
                                      .move_slots = move_slots,
                                      .merge_parts = merge_parts,
                                      .sample = sample};

uint32_t dev_cuda_count(void)
{
    return 2; /* for ranks to be dealt to */
}

err_t dev_cuda_open(const dev_cuda_config *config, dev_cuda **out, err_info *info)
{
    const dev_config cpu = {.isa = "auto"};
    dev_cuda *d = calloc(1, sizeof *d);
    *out = NULL;
    if (d == NULL) return err_set(info, ERR_NO_MEMORY, "cuda: out of memory");
    const err_t err = dev_open_cpu(&cpu, &d->cpu, info);
    if (err != ERR_OK) {
        free(d);
        return err;
    }
    (void)snprintf(d->about.name, sizeof d->about.name, "stand-in %u", config->index);
    d->about.uuid[0] = (uint8_t)(1 + config->index);
    d->about.compute_major = 9;
    d->about.n_multiprocessors = 1;
    d->about.memory_total = d->about.memory_free = MEMORY_BYTES;
    d->about.memory_parts = config->memory_parts;
    d->about.memory_limit =
        dev_cuda_limit(MEMORY_BYTES, 0, (double)config->memory_share) / config->memory_parts;
    *out = d;
    return ERR_OK;
}

void dev_cuda_close(dev_cuda *d)
{
    if (d == NULL) return;
    dev_close(d->cpu);
    free(d);
}

const dev_cuda_about *dev_cuda_get_about(const dev_cuda *d)
{
    return &d->about;
}

const cuda_ops *dev_cuda_get_ops(const dev_cuda *d)
{
    (void)d;
    return &stand_in_ops;
}

/* Memory comes from the system when it is touched, as most of a pool never is; its size lies in a page before it. */
err_t dev_cuda_alloc(dev_cuda *d, size_t bytes, void **out, err_info *info)
{
    *out = NULL;
    TRY(dev_cuda_check_room(bytes, d->used_bytes, d->about.memory_limit, d->about.memory_parts,
                            info));
    size_t *base = mmap(NULL, PAGE_BYTES + bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) return err_set(info, ERR_NO_MEMORY, "cuda: out of memory");
    *base = PAGE_BYTES + bytes;
    d->used_bytes += bytes;
    *out = (char *)base + PAGE_BYTES;
    return ERR_OK;
}

void dev_cuda_free(dev_cuda *d, void *data)
{
    size_t *base = (size_t *)(void *)((char *)data - PAGE_BYTES);
    if (data == NULL) return;
    d->used_bytes -= *base - PAGE_BYTES;
    munmap(base, *base);
}

size_t dev_cuda_room(const dev_cuda *d)
{
    return d->about.memory_limit - d->used_bytes;
}

err_t dev_cuda_upload(dev_cuda *d, void *to, const void *from, size_t bytes, err_info *info)
{
    memcpy(to, from, bytes);
    return dev_cuda_wait(d, info);
}

err_t dev_cuda_download(dev_cuda *d, void *to, const void *from, size_t bytes, err_info *info)
{
    memcpy(to, from, bytes);
    return dev_cuda_wait(d, info);
}

err_t dev_cuda_zero(dev_cuda *d, void *data, size_t bytes, err_info *info)
{
    if (bytes < PAGE_BYTES || (uintptr_t)data % PAGE_BYTES != 0)
        memset(data, 0, bytes);
    else if (madvise(data, bytes, MADV_DONTNEED) != 0)
        abort();
    return dev_cuda_wait(d, info);
}

void dev_cuda_begin_graph(dev_cuda *d, uint64_t key)
{
    (void)d;
    (void)key;
}

void dev_cuda_end_graph(dev_cuda *d)
{
    (void)d;
}

bool dev_cuda_is_replaying(const dev_cuda *d)
{
    (void)d;
    return false;
}

void *dev_cuda_stream(const dev_cuda *d)
{
    (void)d;
    return NULL;
}

int dev_cuda_query(dev_cuda *d)
{
    (void)d;
    return 0;
}

err_t dev_cuda_wait(dev_cuda *d, err_info *info)
{
    (void)d;
    (void)info;
    return ERR_OK;
}
