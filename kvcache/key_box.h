/* kvcache/key_box.h - the box of a page's keys: what bounds of scores are made from.
 *
 * Smallest and largest value of every channel over the entries of a head-page, in the cache type
 * (kernels/key_bounds.h): one key's worth of bytes twice, 1 / page_tokens of what the page holds. A
 * box is written once, when its page is sealed, and stays true when slots die: it only gets looser.
 *
 * The sinks are left out of the box of block 0: every query reads them from the ring, and their keys
 * are so far from all others that with them the block would look important to everybody. */
#ifndef KVCACHE_KEY_BOX_H
#define KVCACHE_KEY_BOX_H

#include "kvcache/head_strip.h"

size_t kv_box_bytes(const kv_head_shape *shape);

/* The entries of one page, [n_spans] in slot order, in the cache type. */
typedef struct kv_box_keys {
    const attn_span *spans;
    uint32_t n_spans;
    uint32_t n_left_out; /* of the first slots */
    bool is_rounded; /* attention reads codes, which the cache type may not hold exactly: widen */
} kv_box_keys;

/* All zero if no slot is left. Of rounded keys the box is one step of the type larger on every side. */
void kv_box_write(const kv_head_shape *shape, const kv_box_keys *keys, uint8_t *box);

/* Does every key lie in the box? For checks. */
bool kv_box_holds(const kv_head_shape *shape, const kv_box_keys *keys, const uint8_t *box);

#endif
