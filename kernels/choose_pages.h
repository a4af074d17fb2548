/* kernels/choose_pages.h - which pages decode rows read, decided where boxes and queries are.
 *
 * What kvcache/routing/topk.c does for one query and KV head, for all of a layer in one call: of a row's entries
 * those that the layer's window does not exclude, that lie below `n_candidates` and that have a live slot are
 * candidates; the k whose keys may score highest in any query head of the group (key_bounds.h) are chosen, of equal
 * ones those that come first. Entries from n_candidates on are read in any case, and so are sinks, ring and staging,
 * which are no entries. It writes attn_row.chosen, which attend_pages reads, and log_unread, of what may have been
 * missed: with the mass that attention has found (attn_mass) that makes the certificate of kvcache/routing/routing.h,
 * which the host adds up.
 *
 * On a device its memory has all that pointers lead to but `attend`. The definition computes bounds in double precision
 * and rounds them; others may differ by roundings, and then choose by their own bounds. */
#ifndef KERNELS_CHOOSE_PAGES_H
#define KERNELS_CHOOSE_PAGES_H

#include "kernels/attention_pages.h"

/* Of one row, which has one token. */
typedef struct attn_choice {
    uint32_t row;
    uint32_t n_candidates; /* at most n_blocks of the row */
    double k;              /* in (0, 1]: share of the candidates; above 1: their number */
} attn_choice;

/* What was chosen for one KV head. */
typedef struct attn_choice_note {
    uint32_t n_open, n_chosen; /* candidates, and those of them that are read */
    uint32_t n_read;           /* entries with a live slot, others than candidates included */
    uint64_t read_bytes;       /* of these */
} attn_choice_note;

typedef struct choose_pages_args {
    const attend_pages_args *attend; /* queries, shapes, window, lists and rows */
    const uint8_t *boxes;            /* box b at boxes + b * box_stride_bytes: see key_bounds.h */
    size_t box_stride_bytes;
    const float *bias_most; /* [boxes]: what the scores of its slots are raised by at most, so it
                             * belongs to the bound; -inf: by nothing; or NULL */
    const attn_choice *choices;
    uint32_t n_choices;
    uint32_t n_blocks_max; /* of a row */
    float
        *bounds; /* [n_choices][n_kv_heads][group + 1][n_blocks_max]: by entry; the last row is the
                    * largest of the others, -inf of what is no candidate or was chosen */
    float *log_unread; /* [n_choices][n_kv_heads * group]: log of sum n exp(bound); -inf: nothing */
    attn_choice_note *notes; /* [n_choices][n_kv_heads] */
} choose_pages_args;

/* The definition, over the host's memory. */
void choose_pages_cpu(const choose_pages_args *args);

/* How many of n_open candidates are read. */
static inline uint32_t attn_n_chosen(double k, uint32_t n_open)
{
    const double n = k <= 1 ? __builtin_ceil(k * n_open) : k;
    return n < n_open ? (uint32_t)n : n_open;
}

/* The first entry that a decode query at `position` may read in a layer. */
static inline uint32_t attn_first_block(uint32_t position, uint32_t window, uint32_t block_tokens)
{
    return window != 0 && position >= window ? (position - window + 1) / block_tokens : 0;
}

#endif
