/* kvcache/key_box.c - see key_box.h. Called once a page, so plain loops will do. */
#include "kvcache/key_box.h"

#include <math.h>

static float element(const void *at, dtype type, size_t i)
{
    float x;
    uint16_t half;
    if (type == DTYPE_F32) {
        memcpy(&x, (const uint8_t *)at + 4 * i, sizeof x);
        return x;
    }
    memcpy(&half, (const uint8_t *)at + 2 * i, sizeof half);
    return f32_from_bf16(half);
}

/* Exact: the values come from keys of the same type. */
static void put(void *at, dtype type, size_t i, float x)
{
    const uint16_t half = bf16_from_f32(x);
    if (type == DTYPE_F32) {
        memcpy((uint8_t *)at + 4 * i, &x, sizeof x);
    } else {
        memcpy((uint8_t *)at + 2 * i, &half, sizeof half);
    }
}

size_t kv_box_bytes(const kv_head_shape *shape)
{
    return 2 * (size_t)shape->k_dim * dtype_bytes(shape->type);
}

static const uint8_t *key_at(const attn_span *span, uint32_t i)
{
    return (const uint8_t *)span->k + (size_t)i * span->k_stride_bytes;
}

static void widen(const kv_head_shape *shape, const uint8_t *key, uint8_t *box)
{
    for (uint32_t c = 0; c < shape->k_dim; c++) {
        const float x = element(key, shape->type, c);
        if (x < element(box, shape->type, c)) put(box, shape->type, c, x);
        if (x > element(box, shape->type, shape->k_dim + c))
            put(box, shape->type, shape->k_dim + c, x);
    }
}

/* The next number of the type, up or down; a finite one stays finite. */
static float next_number(float x, dtype type, bool is_up)
{
    const float end = is_up ? INFINITY : -INFINITY;
    if (type == DTYPE_F32) {
        const float next = nextafterf(x, end);
        return isfinite(next) ? next : x;
    }
    uint16_t half = bf16_from_f32(x);
    if ((half & 0x7fff) == 0) return f32_from_bf16(is_up ? 1 : 0x8001);
    const uint16_t next = (uint16_t)((x > 0) == is_up ? half + 1 : half - 1);
    return (next & 0x7f80) == 0x7f80 ? x : f32_from_bf16(next);
}

static void widen_all(const kv_head_shape *shape, uint8_t *box)
{
    for (uint32_t c = 0; c < 2 * shape->k_dim; c++)
        put(box, shape->type, c,
            next_number(element(box, shape->type, c), shape->type, c >= shape->k_dim));
}

void kv_box_write(const kv_head_shape *shape, const kv_box_keys *keys, uint8_t *box)
{
    const size_t key_bytes = kv_box_bytes(shape) / 2;
    uint32_t slot = 0;
    bool is_empty = true;
    memset(box, 0, 2 * key_bytes);
    for (uint32_t s = 0; s < keys->n_spans; s++) {
        for (uint32_t i = 0; i < keys->spans[s].n_slots; i++, slot++) {
            const uint8_t *key = key_at(&keys->spans[s], i);
            if (slot < keys->n_left_out) continue;
            if (is_empty) {
                memcpy(box, key, key_bytes);
                memcpy(box + key_bytes, key, key_bytes);
                is_empty = false;
            }
            widen(shape, key, box);
        }
    }
    if (keys->is_rounded && !is_empty) widen_all(shape, box);
}

bool kv_box_holds(const kv_head_shape *shape, const kv_box_keys *keys, const uint8_t *box)
{
    uint32_t slot = 0;
    for (uint32_t s = 0; s < keys->n_spans; s++) {
        for (uint32_t i = 0; i < keys->spans[s].n_slots; i++, slot++) {
            const uint8_t *key = key_at(&keys->spans[s], i);
            for (uint32_t c = 0; c < shape->k_dim && slot >= keys->n_left_out; c++) {
                const float x = element(key, shape->type, c);
                if (x < element(box, shape->type, c)) return false;
                if (x > element(box, shape->type, shape->k_dim + c)) return false;
            }
        }
    }
    return true;
}
