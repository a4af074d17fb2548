/* kernels/encode_pages.h - pages made of entries that lie in the same memory.
 *
 * A page holds the keys and values of one head for up to 64 slots, written as attention_coding.h says: plain rows,
 * fp8 or integers. Its box (key_box.h) is of what attention will read, rounded to the cache type.
 *
 * The codecs of the cache call these functions for pages of their own, so a page has the same bytes whoever makes
 * it: a device that has the entries makes it there, and what comes down is the host's page. CUDA's twin is equal bit
 * for bit: maxima and minima are taken in the order of slots and channels (which of two zeros stays depends on it),
 * quotients are rounded once, and no product is joined with a sum.
 *
 * Slots are moved as they are: of the entries of a step, those that stay raw in a ring. */
#ifndef KERNELS_ENCODE_PAGES_H
#define KERNELS_ENCODE_PAGES_H

#include "kernels/attention_pages.h"

enum { ENCODE_ALIGN = 64 }; /* of pages, of what is moved, and of where copies begin */

/* What a page is to be. */
typedef struct encode_kind {
    attn_layout layout; /* not ATTN_KEPT */
    uint32_t
        page_bytes; /* a multiple of ENCODE_ALIGN; all are written, but of plain pages only rows */
    uint32_t k_dim, v_dim; /* at most ATTN_CODED_DIM_MAX unless plain */
    bool has_values;       /* false: they are the first channels of its keys */
    dtype type;            /* of the entries: f32 or bf16 */
} encode_kind;

/* Entries after each other. */
typedef struct encode_run {
    const uint8_t *k, *v; /* rows of `type`, aligned to their elements */
    uint32_t k_stride_bytes, v_stride_bytes;
    uint32_t n_slots;
} encode_run;

typedef struct encode_task {
    encode_run run[2]; /* either may be empty; together at most ATTN_BLOCK_SLOTS_MAX slots */
    uint8_t *page;
    uint8_t *box;        /* NULL: none */
    uint8_t *copy;       /* the page once more and, behind it, its box; or NULL */
    uint32_t n_left_out; /* of the first slots, of the box */
    uint32_t kind;
} encode_task;

typedef struct encode_pages_args {
    const encode_kind *kinds;
    const encode_task *tasks;
    uint32_t n_tasks;
} encode_pages_args;
void encode_pages_cpu(const encode_pages_args *args);

/* One page of any number of runs. */
void encode_page_cpu(const encode_kind *kind, const encode_run *runs, uint32_t n_runs,
                     uint8_t *page);

typedef struct move_task {
    const uint8_t *from;
    uint8_t *to;
} move_task;

typedef struct move_slots_args {
    const move_task *tasks;
    uint32_t n_tasks;
    size_t bytes; /* of each: a multiple of ENCODE_ALIGN */
} move_slots_args;
void move_slots_cpu(const move_slots_args *args);

static inline size_t encode_box_bytes(const encode_kind *kind)
{
    return 2 * (size_t)kind->k_dim * dtype_bytes(kind->type);
}

#endif
