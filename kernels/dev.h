/* kernels/dev.h - a device: its threads, its table of ops, its memory.
 *
 * The model and the cache call d->ops->NAME(d, &args) and know nothing of the device behind it. The
 * table is chosen once, at open. On the CPU there are three: `ref` (plain C, the definition of
 * correct), `avx2` (AVX2, FMA and F16C) and `avx512` (F and BW); `auto` takes the best that the
 * processor has. Contracts are in each op's header.
 *
 * Threads: one caller at a time; ops run on the device's pool, except those marked serial, which
 * are pure functions that any worker may call, and work on the host's memory on every device.
 *
 * Memory: of ops that are not serial all pointers lead into the device's memory, arrays of descriptors
 * (moe_args.expert) included, and what they give is there once a dev_download has returned. The CPU's is the
 * host's: there an upload of a thing to itself is nothing. */
#ifndef KERNELS_DEV_H
#define KERNELS_DEV_H

#include "base/error.h"
#include "base/threads.h"
#include "kernels/choose_pages.h"
#include "kernels/elementwise.h"
#include "kernels/encode_pages.h"
#include "kernels/key_bounds.h"
#include "kernels/matmul.h"
#include "kernels/moe.h"
#include "kernels/rank_ops.h"
#include "kernels/sample.h"

typedef struct dev dev;

typedef struct dev_ops {
    const char *name; /* "ref", "avx2", "avx512" */
    void (*embed)(dev *d, const embed_args *args);
    void (*rms_norm)(dev *d, const rms_norm_args *args);
    void (*layer_norm)(dev *d, const layer_norm_args *args);
    void (*adjust)(dev *d, const adjust_args *args);
    void (*rope)(dev *d, const rope_args *args);
    void (*matmul)(dev *d, const matmul_args *args);
    void (*matmul_heads)(dev *d, const matmul_heads_args *args);
    void (*router)(dev *d, const router_args *args);
    void (*moe)(dev *d, const moe_args *args);
    size_t (*moe_scratch_bytes)(
        uint32_t n_tokens, uint32_t dim, uint32_t ffn, uint32_t n_experts,
        uint32_t top_k); /* of moe_args.scratch; 0 when the size overflows */
    void (*add)(dev *d, const add_args *args);
    void (*deal_choices)(dev *d, const deal_choices_args *args);
    /* All six, of a device that attends by itself; NULL: the cache does on the host. */
    void (*attend_pages)(dev *d, const attend_pages_args *args);
    void (*choose_pages)(dev *d, const choose_pages_args *args);
    void (*put_rows)(dev *d, const put_rows_args *args);
    void (*encode_pages)(dev *d, const encode_pages_args *args);
    void (*move_slots)(dev *d, const move_slots_args *args);
    void (*merge_parts)(dev *d, const merge_parts_args *args);
    /* Of a device that draws where its logits are; NULL: they come to the host. */
    void (*sample)(dev *d, const sample_args *args);
    /* Serial: folds `blocks` into `state`. */
    void (*attend)(const attn_query *query, const attn_blocks *blocks, attn_state *state);
    /* Serial. */
    void (*attend_mass)(const attn_mass_args *args);
    /* Serial. */
    void (*attend_max)(const attn_max_args *args);
    /* Serial. */
    void (*key_bounds)(const key_bounds_args *args);
    /* Serial: n floats to `type` (f32 or bf16), rounding to nearest even. */
    void (*store)(const float *x, size_t n, dtype type, void *out);
} dev_ops;

/* Where a GPU queues its ops, for a library that queues there, too. */
typedef struct dev_stream {
    void *stream;            /* cudaStream_t */
    int (*query)(void *ctx); /* 0 all done, 1 running (or being recorded), -1 failed; any thread */
    void *ctx;
    uint8_t gpu[16]; /* which one, the same in all processes */
} dev_stream;

/* How a device whose memory is not the host's does what the functions below promise. */
typedef struct dev_memory {
    err_t (*alloc)(dev *d, size_t bytes, void **out, err_info *info);
    void (*free)(dev *d, void *data);
    size_t (*room)(dev *d);
    void (*upload)(dev *d, void *to, const void *from, size_t bytes);
    void (*download)(dev *d, void *to, const void *from, size_t bytes);
    void (*zero)(dev *d, void *data, size_t bytes);
    void (*begin_graph)(dev *d, uint64_t key); /* all three, or NULL: ops run one by one */
    void (*end_graph)(dev *d);
    bool (*is_replaying)(dev *d);
    bool (*find_stream)(dev *d, dev_stream *out); /* or NULL: it has none */
    err_t (*status)(dev *d, err_info *info);
    void (*close)(dev *d);
} dev_memory;

struct dev {
    const dev_ops *ops;
    thread_pool *pool;
    const dev_memory *memory; /* NULL: the host's */
};

typedef enum dev_kind { DEV_CPU, DEV_CUDA, DEV_AUTO } dev_kind;

typedef struct dev_config {
    const char *isa;    /* "auto", "ref", "avx2", "avx512": of the host */
    uint32_t n_threads; /* 0: threads_available() */
    dev_kind
        kind; /* of dev_open; auto: a GPU if there is one, else the CPU, and a line in the log says why */
    uint32_t gpu; /* which one, modulo how many there are */
    float
        gpu_memory_share; /* (0, 1]: of its memory, what this process and all others may use together */
    uint32_t
        n_gpu_users; /* this machine's ranks take its GPUs in turn, and divide that share; 0: one */
    bool gpu_graphs; /* see dev_begin_graph */
} dev_config;

/* ERR_UNSUPPORTED names an instruction set that this processor lacks, or says what stands between this program and a
 * GPU; ERR_BAD_CONFIG: an instruction set that nobody knows, or the share. */
err_t dev_open(const dev_config *config, dev **out, err_info *info) MUST_CHECK;
err_t dev_open_cpu(const dev_config *config, dev **out, err_info *info) MUST_CHECK;
void dev_close(dev *d); /* NULL is fine */

/* Zeroed, aligned to 64 bytes. ERR_NO_MEMORY names the bytes. */
err_t dev_alloc(dev *d, size_t bytes, void **out, err_info *info) MUST_CHECK;
void dev_free(dev *d, void *data); /* NULL is fine */
size_t dev_room(dev *d);           /* bytes that it may still give; SIZE_MAX: the host decides */

/* In the order of the ops around them; when they return `from` may be reused, and `to` of a download is filled. The
 * first failure of a device is kept:
 * what is downloaded behind it is zeros, so that indices stay in their range, and dev_status tells, without
 * waiting, any thread that comes after the owner's last call. */
void dev_upload(dev *d, void *to, const void *from, size_t bytes);
void dev_download(dev *d, void *to, const void *from, size_t bytes);
void dev_zero(dev *d, void *data, size_t bytes);
err_t dev_status(dev *d, err_info *info) MUST_CHECK;

/* Between the two, ops that are queued at once, if the device can: when a key comes again they are those of the first
 * time with the same arguments, and only what the arguments lead to may have changed. No memory is moved in between. */
void dev_begin_graph(dev *d, uint64_t key);
void dev_end_graph(dev *d);
bool dev_is_replaying(dev *d); /* between the two, of a key that came before: nothing is queued */

/* False: the device is no GPU. */
bool dev_find_stream(dev *d, dev_stream *out);

/* The tables of this build that this processor can run, best last, ending with NULL: tests compare
 * each of them with the first, the reference. */
const dev_ops *const *dev_cpu_tables(void);

#endif
