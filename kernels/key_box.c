/* kernels/key_box.c - see key_box.h. Called once a page, so plain loops will do. */
#include "kernels/key_box.h"

#include "kernels/ops_cpu.h"

#include <math.h>

/* Exact: the values come from keys of the same type. */
static void put(uint8_t *at, dtype type, size_t i, float x)
{
    store_cpu(&x, 1, type, at + i * dtype_bytes(type));
}

static const uint8_t *key_at(const attn_span *span, uint32_t i)
{
    return (const uint8_t *)span->k + (size_t)i * span->k_stride_bytes;
}

static void widen(const key_box_args *args, const uint8_t *key, uint8_t *box)
{
    for (uint32_t c = 0; c < args->k_dim; c++) {
        const float x = load_element(key, args->type, c);
        if (x < load_element(box, args->type, c)) put(box, args->type, c, x);
        if (x > load_element(box, args->type, args->k_dim + c))
            put(box, args->type, args->k_dim + c, x);
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

static void widen_all(const key_box_args *args, uint8_t *box)
{
    for (uint32_t c = 0; c < 2 * args->k_dim; c++)
        put(box, args->type, c,
            next_number(load_element(box, args->type, c), args->type, c >= args->k_dim));
}

void key_box_write(const key_box_args *args, uint8_t *box)
{
    const size_t key_bytes = (size_t)args->k_dim * dtype_bytes(args->type);
    uint32_t slot = 0;
    bool is_empty = true;
    memset(box, 0, 2 * key_bytes);
    for (uint32_t s = 0; s < args->n_spans; s++) {
        for (uint32_t i = 0; i < args->spans[s].n_slots; i++, slot++) {
            const uint8_t *key = key_at(&args->spans[s], i);
            if (slot < args->n_left_out) continue;
            if (is_empty) {
                memcpy(box, key, key_bytes);
                memcpy(box + key_bytes, key, key_bytes);
                is_empty = false;
            }
            widen(args, key, box);
        }
    }
    if (args->is_widened && !is_empty) widen_all(args, box);
}

bool key_box_holds(const key_box_args *args, const uint8_t *box)
{
    uint32_t slot = 0;
    for (uint32_t s = 0; s < args->n_spans; s++) {
        for (uint32_t i = 0; i < args->spans[s].n_slots; i++, slot++) {
            const uint8_t *key = key_at(&args->spans[s], i);
            for (uint32_t c = 0; c < args->k_dim && slot >= args->n_left_out; c++) {
                const float x = load_element(key, args->type, c);
                if (x < load_element(box, args->type, c)) return false;
                if (x > load_element(box, args->type, args->k_dim + c)) return false;
            }
        }
    }
    return true;
}
