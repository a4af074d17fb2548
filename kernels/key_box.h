/* kernels/key_box.h - the smallest and the largest of every channel of some keys.
 *
 * A box is lo[k_dim], then hi[k_dim], in the type of the keys; key_bounds.h makes bounds of scores from it. A channel
 * starts with the first key's element, and changes where a later one is smaller or larger: which of two zeros stays,
 * and what is no number, follows from the order. */
#ifndef KERNELS_KEY_BOX_H
#define KERNELS_KEY_BOX_H

#include "kernels/attention.h"

typedef struct key_box_args {
    const attn_span *spans; /* plain */
    uint32_t n_spans;
    uint32_t n_left_out; /* of the first slots */
    uint32_t k_dim;
    dtype type;      /* f32 or bf16 */
    bool is_widened; /* by one step of the type on every side */
} key_box_args;

/* All zero if no slot is left. */
void key_box_write(const key_box_args *args, uint8_t *box);

/* Does every key lie in the box? For checks. */
bool key_box_holds(const key_box_args *args, const uint8_t *box);

#endif
