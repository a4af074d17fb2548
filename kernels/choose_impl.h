/* kernels/choose_impl.h - what the parts of the definition of choose_pages.h share. */
#ifndef KERNELS_CHOOSE_IMPL_H
#define KERNELS_CHOOSE_IMPL_H

#include "kernels/choose_pages.h"

/* One KV head of a choice. */
typedef struct head_choice {
    const choose_pages_args *args;
    const attn_choice *choice;
    const attn_row *row;
    uint32_t kv_head;
    uint32_t first, end; /* entries that may be candidates */
    uint32_t n_open;     /* that are */
    uint32_t *chosen;    /* of this head; free until the list is written */
    float *bounds,
        *most; /* [group][n_blocks_max]; [n_blocks_max]: what comes first; -inf of no candidate */
    uint64_t *order;
    double *rest; /* [group][attn_n_rest] */
} head_choice;

static inline const attn_page *choice_page(const head_choice *c, uint32_t block)
{
    const attend_pages_args *attend = c->args->attend;
    return &c->row->pages[(size_t)block * attend->n_lists + attend->first_list + c->kv_head];
}

static inline float choice_bound(const head_choice *c, uint32_t g, uint32_t block)
{
    return c->bounds[(size_t)g * c->args->n_blocks_max + block];
}

/* NUCLEUS and CERTIFIED: how many are read, the largest of `most` first, which becomes the order's. */
uint32_t choose_by_mass(const head_choice *c);

#endif
