/* service/plan_device.h - what a GPU of one rank will hold, and what its memory would refuse.
 *
 * Weights, scratch and the view of the cache are sized by the code that places them (model/weights_device.h,
 * model_gpu.h, kvcache/device_plan.h), so the sum is what the allocator counts, byte for byte, where a server is opened
 * with a plan's numbers: kv-cache-memory-bytes, max-num-seqs, max-model-len, max-num-batched-tokens
 * (tests/service/test_plan_device.c). The program's own use, CUDA's context and its graphs, is not in it. */
#ifndef SERVICE_PLAN_DEVICE_H
#define SERVICE_PLAN_DEVICE_H

#include "kvcache/device_plan.h"
#include "service/plan_cache.h"
#include "service/plan_model.h"

typedef struct plan_device_input {
    const model_config *model;
    const kv_config *kv;
    const kv_shape *shape;
    const plan_weights *weights;
    const plan_cache *cache;
    uint32_t n_tokens, n_seqs, n_step_tokens, n_ranks, n_redundant; /* as in plan_input */
    uint64_t memory_bytes; /* of the GPU; 0: unknown, nothing is refused */
    double memory_share;   /* --gpu-memory-utilization */
} plan_device_input;

typedef struct plan_device {
    bool is_there; /* else nothing of this was asked for */
    uint64_t weight_bytes, scratch_bytes;
    kv_device_plan kv;
    uint64_t total_bytes;
    uint64_t host_mirror_bytes; /* of the host: scratch that mirrors the GPU's */
    uint64_t allowed_bytes;     /* 0: unknown */
    err_info refusal;           /* what the server would say; ERR_OK: nothing */
} plan_device;

err_t plan_device_of(const plan_device_input *in, plan_device *out, err_info *info) MUST_CHECK;

#endif
