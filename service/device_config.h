/* service/device_config.h - which device computes: rows that the tables of `serve` and of the other commands share. */
#ifndef SERVICE_DEVICE_CONFIG_H
#define SERVICE_DEVICE_CONFIG_H

#include "base/config.h"
#include "kernels/dev.h"

typedef struct device_config {
    uint32_t kind;           /* dev_kind */
    double gpu_memory_share; /* --gpu-memory-utilization */
    bool gpu_graphs;
    char *isa;          /* auto, ref, avx2, avx512 */
    uint32_t n_threads; /* 0: all */
} device_config;

extern const char *const device_kinds[]; /* of dev_kind */

/* Of a struct S whose device_config is its member `device`. */
#define DEVICE_CONFIG_FIELDS(S)                                                               \
    CFG_PICK(S, device.kind, "device", device_kinds, "cpu",                                   \
             "what computes: cpu, cuda, or auto: a GPU where there is one"),                  \
        CFG_REAL(S, device.gpu_memory_share, "gpu-memory-utilization", 0.01, 1, "0.9",        \
                 "cuda: share of the GPU's memory that may be in use, others' use included"), \
        CFG_FLAG(S, device.gpu_graphs, "gpu-graphs", "true",                                  \
                 "cuda: decode steps that come again are queued as one CUDA graph"),          \
        CFG_TEXT(S, device.isa, "isa", "auto", "NAME",                                        \
                 "instruction set: auto, ref, avx2, avx512"),                                 \
        CFG_NUM32(S, device.n_threads, "threads", 0, 1024, "0",                               \
                  "threads of the forward pass; 0: all processors")

/* Which of the ranks of this machine opens it. */
typedef struct device_user {
    uint32_t rank, n_here; /* 0 of 1: alone */
    uint32_t n_threads;    /* instead of the config's */
} device_user;

/* Errors as of dev_open. */
err_t device_open(const device_config *config, const device_user *user, dev **out,
                  err_info *info) MUST_CHECK;

#endif
