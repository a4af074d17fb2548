/* kvcache/head_strip.c - see head_strip.h. */
#include "kvcache/head_strip.h"

#include "base/check.h"

/* n_slots rows, rounded up so that what follows begins on a cache line. */
static err_t rows_bytes(uint32_t n_slots, size_t row_bytes, size_t *out)
{
    size_t bytes;
    TRY(size_mul(n_slots, row_bytes, &bytes));
    TRY(size_add(bytes, KV_STRIP_ALIGN - 1, &bytes));
    *out = bytes / KV_STRIP_ALIGN * KV_STRIP_ALIGN;
    return ERR_OK;
}

err_t kv_strip_init(const kv_head_shape *shape, uint32_t n_slots, kv_strip *out)
{
    const size_t k_bytes = (size_t)shape->k_dim * dtype_bytes(shape->type);
    const size_t v_bytes = (size_t)shape->v_dim * dtype_bytes(shape->type);
    if (k_bytes > UINT32_MAX || v_bytes > UINT32_MAX) return ERR_OVERFLOW;
    *out = (kv_strip){.n_slots = n_slots,
                      .k_stride_bytes = (uint32_t)k_bytes,
                      .v_stride_bytes = (uint32_t)v_bytes,
                      .v_copy_bytes = (uint32_t)v_bytes};
    TRY(rows_bytes(n_slots, k_bytes, &out->strip_bytes));
    if (shape->v_in_k) {
        out->v_stride_bytes = out->k_stride_bytes;
        out->v_copy_bytes = 0;
        return ERR_OK;
    }
    size_t values_bytes;
    out->v_offset_bytes = out->strip_bytes;
    TRY(rows_bytes(n_slots, v_bytes, &values_bytes));
    return size_add(out->strip_bytes, values_bytes, &out->strip_bytes);
}

attn_span kv_strip_span(const kv_strip *strip, const uint8_t *base, uint32_t first_slot,
                        uint32_t n_slots)
{
    assert(n_slots >= 1);
    assert(n_slots <= ATTN_BLOCK_SLOTS_MAX);
    assert(first_slot + n_slots <= strip->n_slots);
    return (attn_span){
        .k = base + (size_t)first_slot * strip->k_stride_bytes,
        .v = base + strip->v_offset_bytes + (size_t)first_slot * strip->v_stride_bytes,
        .k_stride_bytes = strip->k_stride_bytes,
        .v_stride_bytes = strip->v_stride_bytes,
        .n_slots = n_slots,
        .live = UINT64_MAX >> (ATTN_BLOCK_SLOTS_MAX - n_slots),
    };
}

void kv_strip_write(const kv_strip *strip, uint8_t *base, uint32_t first_slot,
                    const attn_span *from)
{
    assert(from->k_stride_bytes == strip->k_stride_bytes);
    assert(from->v_stride_bytes == strip->v_stride_bytes);
    assert(first_slot + from->n_slots <= strip->n_slots);
    memcpy(base + (size_t)first_slot * strip->k_stride_bytes, from->k,
           (size_t)from->n_slots * strip->k_stride_bytes);
    if (strip->v_copy_bytes == 0) return;
    memcpy(base + strip->v_offset_bytes + (size_t)first_slot * strip->v_stride_bytes, from->v,
           (size_t)from->n_slots * strip->v_stride_bytes);
}

/* The largest finite number of a type. */
static float type_max(dtype type)
{
    return type == DTYPE_F32 ? 0x1.fffffep127f : 0x1.fep127f;
}

static void put_row(uint8_t *out, dtype type, const float *x, uint32_t n)
{
    const float most = type_max(type);
    for (uint32_t i = 0; i < n; i++) {
        const float cut = x[i] < -most ? -most : x[i] > most ? most : x[i];
        const uint16_t half = bf16_from_f32(cut);
        if (type == DTYPE_F32) {
            memcpy(out + 4 * (size_t)i, &cut, sizeof cut);
        } else {
            memcpy(out + 2 * (size_t)i, &half, sizeof half);
        }
    }
}

void kv_strip_put_k(const kv_strip *strip, uint8_t *base, uint32_t slot, const kv_head_shape *shape,
                    const float *k)
{
    assert(slot < strip->n_slots);
    put_row(base + (size_t)slot * strip->k_stride_bytes, shape->type, k, shape->k_dim);
}

void kv_strip_put_v(const kv_strip *strip, uint8_t *base, uint32_t slot, const kv_head_shape *shape,
                    const float *v)
{
    assert(slot < strip->n_slots);
    assert(!shape->v_in_k);
    put_row(base + strip->v_offset_bytes + (size_t)slot * strip->v_stride_bytes, shape->type, v,
            shape->v_dim);
}

attn_span kv_span_cut(const attn_span *span, uint32_t first, uint32_t n)
{
    assert(n >= 1);
    assert(first + n <= span->n_slots);
    attn_span cut = *span;
    cut.k = (const uint8_t *)span->k + (size_t)first * span->k_stride_bytes;
    cut.v = (const uint8_t *)span->v + (size_t)first * span->v_stride_bytes;
    if (span->coding != ATTN_PLAIN)
        cut.v_grid = (const uint8_t *)span->v_grid + (size_t)first * span->v_grid_stride_bytes;
    cut.n_slots = n;
    cut.first_position += first;
    if (cut.positions != NULL) cut.positions += first;
    if (cut.bias != NULL) cut.bias += first;
    cut.live = span->live >> first & UINT64_MAX >> (ATTN_BLOCK_SLOTS_MAX - n);
    return cut;
}

err_t kv_strips_init(arena *a, const kv_head_shape *heads, const uint32_t *n_kv_heads,
                     uint32_t n_layers, uint32_t n_slots, kv_strips *out)
{
    *out = (kv_strips){.n_layers = n_layers};
    out->strip = arena_take(a, n_layers, sizeof *out->strip);
    out->layer_bytes = arena_take(a, n_layers, sizeof *out->layer_bytes);
    for (uint32_t l = 0; l < n_layers; l++) {
        kv_strip strip;
        size_t layer_bytes;
        TRY(kv_strip_init(&heads[l], n_slots, &strip));
        TRY(size_mul(n_kv_heads[l], strip.strip_bytes, &layer_bytes));
        if (out->strip != NULL && out->layer_bytes != NULL) {
            out->strip[l] = strip;
            out->layer_bytes[l] = out->total_bytes;
        }
        TRY(size_add(out->total_bytes, layer_bytes, &out->total_bytes));
    }
    return ERR_OK;
}
