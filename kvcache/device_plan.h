/* kvcache/device_plan.h - what a device with memory of its own will hold of a cache, before either is there.
 *
 * Sizes are those that the view (device_view.h) takes when it is opened, from the same code; lists are as long as
 * sequences of n_seq_tokens_max positions make them. */
#ifndef KVCACHE_DEVICE_PLAN_H
#define KVCACHE_DEVICE_PLAN_H

#include "kvcache/kv_methods.h"

typedef struct kv_device_plan_input {
    const kv_config *config;
    const kv_methods *methods; /* what config resolves to */
    const kv_shape *shape;
    kv_limits limits;
    dtype type; /* of raw entries, after `auto` */
    uint32_t n_shards, n_ranks;
    uint32_t n_classes; /* of pages */
    uint32_t n_pages;   /* that the pool numbers */
    uint64_t pool_bytes;
    size_t box_bytes;  /* of a page; 0: there are none */
    size_t copy_bytes; /* the most that kv_view_copy_bytes says of encoded pages */
    bool has_scattered, has_biases;
} kv_device_plan_input;

typedef struct kv_device_plan {
    bool attends; /* else the device has nothing of the cache, and all attention is the host's */
    bool hosts_attend; /* the settings' methods have rows attended on the host all the same */
    uint64_t pool_bytes, ring_bytes, staging_bytes, list_bytes, box_bytes;
    uint64_t work_bytes; /* of steps: partial results, choices, tasks */
    uint64_t total_bytes;
} kv_device_plan;

/* ERR_NO_MEMORY; ERR_OVERFLOW. */
err_t kv_device_plan_of(const kv_device_plan_input *in, kv_device_plan *out) MUST_CHECK;

#endif
