/* kvcache/key_box.c - see key_box.h. */
#include "kvcache/key_box.h"

#include "kernels/key_box.h"

size_t kv_box_bytes(const kv_head_shape *shape)
{
    return 2 * (size_t)shape->k_dim * dtype_bytes(shape->type);
}

void kv_box_write(const kv_head_shape *shape, const kv_box_keys *keys, uint8_t *box)
{
    key_box_write(&(key_box_args){.spans = keys->spans,
                                  .n_spans = keys->n_spans,
                                  .n_left_out = keys->n_left_out,
                                  .k_dim = shape->k_dim,
                                  .type = shape->type,
                                  .is_widened = keys->is_rounded},
                  box);
}

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

static const uint8_t *key_at(const attn_span *span, uint32_t i)
{
    return (const uint8_t *)span->k + (size_t)i * span->k_stride_bytes;
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
