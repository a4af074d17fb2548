/* kvcache/key_box.c - see key_box.h. */
#include "kvcache/key_box.h"

#include "kernels/key_box.h"

size_t kv_box_bytes(const kv_head_shape *shape)
{
    return 2 * (size_t)shape->k_dim * dtype_bytes(shape->type);
}

static key_box_args args_of(const kv_head_shape *shape, const kv_box_keys *keys)
{
    return (key_box_args){.spans = keys->spans,
                          .n_spans = keys->n_spans,
                          .n_left_out = keys->n_left_out,
                          .k_dim = shape->k_dim,
                          .type = shape->type,
                          .is_widened = keys->is_rounded};
}

void kv_box_write(const kv_head_shape *shape, const kv_box_keys *keys, uint8_t *box)
{
    const key_box_args args = args_of(shape, keys);
    key_box_write(&args, box);
}

bool kv_box_holds(const kv_head_shape *shape, const kv_box_keys *keys, const uint8_t *box)
{
    const key_box_args args = args_of(shape, keys);
    return key_box_holds(&args, box);
}
