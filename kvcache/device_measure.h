/* kvcache/device_measure.h - how much of a device the view (device_view.h) takes: for opening it, and for plans, which have
 * no pool. */
#ifndef KVCACHE_DEVICE_MEASURE_H
#define KVCACHE_DEVICE_MEASURE_H

#include "kvcache/compression/codec.h"
#include "kvcache/kv_cache.h"

typedef struct kv_view kv_view;

/* Of the pool, which is copied. */
typedef struct kv_view_pool {
    uint64_t bytes;
    size_t box_bytes; /* 0: there are no boxes */
    uint32_t n_pages;
    bool has_biases;
    size_t copy_bytes; /* the most that kv_view_copy_bytes says of its encoded pages */
} kv_view_pool;

/* What comes down of a page that the device encodes; 0: the host encodes these. */
size_t kv_view_copy_bytes(const kv_page_layout *layout, bool has_box);

/* Fills in what the view is sized by, its pool being there; device_bytes: of all but lists. Allocates nothing. */
err_t kv_view_measure(const kv_cache *cache, kv_view *view, size_t *device_bytes) MUST_CHECK;

/* Entries of a list that had so many and wants n_blocks. */
uint32_t kv_view_capacity(uint32_t had, uint32_t n_blocks);

/* Must the host attend to sequences of these methods, whatever the view has? */
bool kv_view_needs_host(const kv_cache *cache, const kv_methods *methods);

#endif
