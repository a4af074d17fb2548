/* kernels/dev.h - a device: its threads and its table of ops.
 *
 * The model and the cache call d->ops->NAME(d, &args) and know nothing of the device behind it. The
 * table is chosen once, at open. On the CPU there are three: `ref` (plain C, the definition of
 * correct), `avx2` (AVX2, FMA and F16C) and `avx512` (F and BW); `auto` takes the best that the
 * processor has. Contracts are in each op's header.
 *
 * Threads: one caller at a time; ops run on the device's pool, except those marked serial, which
 * are pure functions that any worker may call. */
#ifndef KERNELS_DEV_H
#define KERNELS_DEV_H

#include "base/error.h"
#include "base/threads.h"
#include "kernels/attention.h"
#include "kernels/elementwise.h"
#include "kernels/key_bounds.h"
#include "kernels/matmul.h"
#include "kernels/moe.h"

typedef struct dev dev;

typedef struct dev_ops {
    const char *name; /* "ref", "avx2", "avx512" */
    void (*embed)(dev *d, const embed_args *args);
    void (*rms_norm)(dev *d, const rms_norm_args *args);
    void (*rope)(dev *d, const rope_args *args);
    void (*matmul)(dev *d, const matmul_args *args);
    void (*router)(dev *d, const router_args *args);
    void (*moe)(dev *d, const moe_args *args);
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

struct dev {
    const dev_ops *ops;
    thread_pool *pool;
};

typedef struct dev_config {
    const char *isa;    /* "auto", "ref", "avx2", "avx512" */
    uint32_t n_threads; /* 0: threads_available() */
} dev_config;

/* ERR_UNSUPPORTED names an instruction set that this processor lacks, ERR_BAD_CONFIG one that nobody knows. */
err_t dev_open_cpu(const dev_config *config, dev **out, err_info *info) MUST_CHECK;
void dev_close(dev *d); /* NULL is fine */

/* The tables of this build that this processor can run, best last, ending with NULL: tests compare
 * each of them with the first, the reference. */
const dev_ops *const *dev_cpu_tables(void);

#endif
