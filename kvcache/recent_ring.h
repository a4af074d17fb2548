/* kvcache/recent_ring.h - the newest entries of a sequence, and its first.
 *
 * One ring serves all layers and heads of one sequence. It has room for `window` tokens and the
 * unfinished block, rounded up to whole blocks, so that a block of positions is contiguous in it:
 *
 *   strip of a head | block 6 | block 7 | block 5 | sinks |
 *                     position p at slot p mod n_recent      position p < n_sinks at n_recent + p
 *
 * Appending is O(1): a slot's old entry has been committed to a page when it is overwritten (the
 * cache sees to that; the ring knows no lengths). Slots also remember the expert of their token in
 * every layer, since placement asks when the token leaves the ring.
 *
 * Rings are allocated when a sequence opens, and kept for reuse when it closes. */
#ifndef KVCACHE_RECENT_RING_H
#define KVCACHE_RECENT_RING_H

#include "kvcache/head_strip.h"

#include <stdatomic.h>

#define KV_EXPERT_NONE     UINT16_MAX /* the layer has no router, or the entry came from a page */
#define KV_EXPERT_OF_SHARD 0xf000     /* + s: the entry came from a page of shard s */

typedef struct kv_ring {
    uint8_t *bytes;   /* strips of all heads: recent slots, then sinks */
    uint16_t *expert; /* [n_layers][n_recent]: the token's top-1 expert */
    atomic_bool *
        changed; /* [n_recent + n_sinks]: slots written since somebody cleared this; NULL if not noted */
    struct kv_ring *next; /* valid only while in the free list */
} kv_ring;

typedef struct kv_rings {
    kv_strips strips;  /* n_recent + n_sinks slots each */
    uint32_t n_recent; /* a multiple of page_tokens */
    uint32_t n_sinks;
    bool notes_changes;
    kv_ring *free;
    size_t ring_bytes;  /* of one ring, all parts */
    size_t total_bytes; /* of all rings, in use or free */
} kv_rings;

typedef struct kv_rings_config {
    const kv_head_shape *heads; /* [n_layers] */
    const uint32_t *n_kv_heads; /* [n_layers] */
    uint32_t n_layers;
    uint32_t page_tokens, window_tokens, sink_tokens;
    bool notes_changes; /* for whoever has a copy */
} kv_rings_config;

err_t kv_rings_init(arena *a, const kv_rings_config *config, kv_rings *out) MUST_CHECK;
void kv_rings_deinit(kv_rings *rings); /* frees the free list; a zeroed struct is fine */

/* Take may allocate; NULL if there is no memory. */
kv_ring *kv_ring_take(kv_rings *rings);
void kv_ring_give(kv_rings *rings, kv_ring *ring);

typedef struct kv_ring_place {
    uint32_t layer, head, position;
} kv_ring_place;

/* Copies entries of one block to positions at->position and up. */
void kv_ring_write(const kv_rings *rings, kv_ring *ring, const kv_ring_place *at,
                   const attn_span *from);
void kv_ring_write_sinks(const kv_rings *rings, kv_ring *ring, const kv_ring_place *at,
                         const attn_span *from); /* positions below n_sinks */

/* Entries [at->position, + n_slots) of one block. */
attn_span kv_ring_span(const kv_rings *rings, const kv_ring *ring, const kv_ring_place *at,
                       uint32_t n_slots);

/* The sinks at positions [0, n_slots). */
attn_span kv_ring_sink_span(const kv_rings *rings, const kv_ring *ring, uint32_t layer,
                            uint32_t head, uint32_t n_slots);

static inline uint16_t *kv_ring_expert(const kv_rings *rings, const kv_ring *ring, uint32_t layer,
                                       uint32_t position)
{
    return &ring->expert[(size_t)layer * rings->n_recent + position % rings->n_recent];
}

#endif
