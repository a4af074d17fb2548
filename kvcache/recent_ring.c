/* kvcache/recent_ring.c - see recent_ring.h. */
#include "kvcache/recent_ring.h"

#include "base/check.h"

#include <stdlib.h>
#include <string.h>

err_t kv_rings_init(arena *a, const kv_rings_config *config, kv_rings *out)
{
    const uint32_t n_blocks =
        (config->window_tokens + config->page_tokens - 1) / config->page_tokens;
    *out = (kv_rings){.n_recent = (n_blocks + 1) * config->page_tokens,
                      .n_sinks = config->sink_tokens,
                      .notes_changes = config->notes_changes};
    TRY(kv_strips_init(a, config->heads, config->n_kv_heads, config->n_layers,
                       out->n_recent + out->n_sinks, &out->strips));
    size_t expert_bytes;
    TRY(size_mul(config->n_layers, out->n_recent * sizeof(uint16_t), &expert_bytes));
    TRY(size_add(out->strips.total_bytes, expert_bytes, &out->ring_bytes));
    if (config->notes_changes)
        TRY(size_add(out->ring_bytes, (size_t)out->n_recent + out->n_sinks, &out->ring_bytes));
    return size_add(out->ring_bytes, sizeof(kv_ring), &out->ring_bytes);
}

static void free_ring(kv_ring *ring)
{
    if (ring == NULL) return;
    free(ring->bytes);
    free(ring->expert);
    free(ring->changed);
    free(ring);
}

void kv_rings_deinit(kv_rings *rings)
{
    while (rings->free != NULL) {
        kv_ring *ring = rings->free;
        rings->free = ring->next;
        rings->total_bytes -= rings->ring_bytes;
        free_ring(ring);
    }
    assert(rings->total_bytes == 0);
}

static uint32_t n_slots_of(const kv_rings *rings)
{
    return rings->n_recent + rings->n_sinks;
}

static void clear_changes(const kv_rings *rings, kv_ring *ring)
{
    for (uint32_t s = 0; s < n_slots_of(rings) && ring->changed != NULL; s++)
        atomic_init(&ring->changed[s], false);
}

/* Several layers of a slot may be written at the same time. */
static void note_changes(const kv_ring *ring, uint32_t slot, uint32_t n_slots)
{
    for (uint32_t s = slot; s < slot + n_slots && ring->changed != NULL; s++)
        atomic_store_explicit(&ring->changed[s], true, memory_order_relaxed);
}

kv_ring *kv_ring_take(kv_rings *rings)
{
    kv_ring *ring = rings->free;
    if (ring != NULL) {
        rings->free = ring->next;
        ring->next = NULL;
        clear_changes(rings, ring); /* what its last owner wrote is nobody's */
        return ring;
    }
    const size_t n_experts = (size_t)rings->strips.n_layers * rings->n_recent;
    ring = calloc(1, sizeof *ring);
    if (ring == NULL) return NULL;
    ring->bytes = aligned_alloc(KV_STRIP_ALIGN, rings->strips.total_bytes);
    ring->expert = malloc(n_experts * sizeof *ring->expert);
    if (rings->notes_changes) ring->changed = calloc(n_slots_of(rings), sizeof *ring->changed);
    if (ring->bytes == NULL || ring->expert == NULL ||
        (rings->notes_changes && ring->changed == NULL)) {
        free_ring(ring);
        return NULL;
    }
    /* Written now, so that no page fault waits inside a step. */
    memset(ring->bytes, 0, rings->strips.total_bytes);
    memset(ring->expert, 0xff, n_experts * sizeof *ring->expert); /* KV_EXPERT_NONE */
    rings->total_bytes += rings->ring_bytes;
    return ring;
}

void kv_ring_give(kv_rings *rings, kv_ring *ring)
{
    ring->next = rings->free;
    rings->free = ring;
}

static uint8_t *strip_base(const kv_rings *rings, const kv_ring *ring, uint32_t layer,
                           uint32_t head)
{
    return kv_strips_at(&rings->strips, ring->bytes, layer, head);
}

void kv_ring_write(const kv_rings *rings, kv_ring *ring, const kv_ring_place *at,
                   const attn_span *from)
{
    const uint32_t slot = at->position % rings->n_recent;
    assert(slot + from->n_slots <= rings->n_recent);
    kv_strip_write(&rings->strips.strip[at->layer], strip_base(rings, ring, at->layer, at->head),
                   slot, from);
    note_changes(ring, slot, from->n_slots);
}

void kv_ring_write_sinks(const kv_rings *rings, kv_ring *ring, const kv_ring_place *at,
                         const attn_span *from)
{
    assert(at->position + from->n_slots <= rings->n_sinks);
    kv_strip_write(&rings->strips.strip[at->layer], strip_base(rings, ring, at->layer, at->head),
                   rings->n_recent + at->position, from);
    note_changes(ring, rings->n_recent + at->position, from->n_slots);
}

attn_span kv_ring_span(const kv_rings *rings, const kv_ring *ring, const kv_ring_place *at,
                       uint32_t n_slots)
{
    attn_span span =
        kv_strip_span(&rings->strips.strip[at->layer], strip_base(rings, ring, at->layer, at->head),
                      at->position % rings->n_recent, n_slots);
    span.first_position = at->position;
    return span;
}

attn_span kv_ring_sink_span(const kv_rings *rings, const kv_ring *ring, uint32_t layer,
                            uint32_t head, uint32_t n_slots)
{
    assert(n_slots <= rings->n_sinks);
    return kv_strip_span(&rings->strips.strip[layer], strip_base(rings, ring, layer, head),
                         rings->n_recent, n_slots);
}
