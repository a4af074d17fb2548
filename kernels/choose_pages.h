/* kernels/choose_pages.h - which pages decode rows read, decided where boxes and queries are.
 *
 * What kvcache/routing does for one query and KV head, for all of a layer in one call: of a row's entries those that
 * the layer's window does not exclude, that lie below `n_candidates` and that have a live slot are candidates; of
 * these some are chosen by what their keys may score, bound_g (key_bounds.h) in query head g of the group, of equal
 * ones those that come first:
 *
 *   BEST              the k with the largest max_g bound_g
 *   SHARDS            all of the k best shards, entry b being shard b mod n_shards: a shard has the largest bound of
 *                     its candidates
 *   SHARDS_BALANCED   the same, of which (its live slots / the mean of shards with candidates) - 1 is taken
 *   NUCLEUS           the fewest, by falling max_g (log n + bound_g - log Z_g), until for all g
 *                     R_g <= (1 - tau) (Z_g + all n exp(bound_g))
 *   CERTIFIED         in that order, until for all g  R_g <= eps (Z_g + X_g + R_g)
 *
 * n being live slots, Z_g = sum exp(score) over what is read in any case (log Z_g the largest log n + bound_g where
 * that is nothing), X_g over the candidates that have been chosen, and R_g = sum n exp(bound_g) over the others: what
 * is read is asked for its keys, as kvcache/routing/certified.c does. Entries from n_candidates on are read in any
 * case, and so are sinks, ring and staging, which are no entries. It writes attn_row.chosen, which attend_pages reads,
 * and log_unread, of what may have been missed: with the mass that attention has found (attn_mass) that makes the
 * certificate of kvcache/routing/routing.h, which the host adds up.
 *
 * On a device its memory has all that pointers lead to but `attend`. The definition computes bounds in double precision
 * and rounds them; others may differ by roundings, and then choose by their own bounds. */
#ifndef KERNELS_CHOOSE_PAGES_H
#define KERNELS_CHOOSE_PAGES_H

#include "kernels/attention_pages.h"

#include <stdbool.h>

typedef enum attn_rule {
    ATTN_RULE_NONE, /* of who chooses elsewhere */
    ATTN_RULE_BEST,
    ATTN_RULE_SHARDS,
    ATTN_RULE_SHARDS_BALANCED,
    ATTN_RULE_NUCLEUS,
    ATTN_RULE_CERTIFIED
} attn_rule;

enum {
    ATTN_SHARDS_MAX = 64,
    ATTN_GROUP_MAX = 256, /* of the rules that read by mass */
    ATTN_RANKS_AT_ONCE = 8
};

/* Of one row, which has one token. */
typedef struct attn_choice {
    uint32_t row;
    uint32_t n_candidates; /* at most n_blocks of the row */
    attn_rule rule;
    uint32_t n_shards; /* in [1, ATTN_SHARDS_MAX] */
    double
        amount; /* k, in (0, 1]: share of candidates or shards, above 1: their number; or tau; or eps */
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
    float *
        bounds; /* [n_choices][n_kv_heads][group + 1][n_blocks_max]: by entry; in the last row -inf says
                            * what is no candidate or was chosen */
    /* Of the rules that read by mass; both NULL: no choice has one. */
    uint64_t *order; /* [n_choices][n_kv_heads][attn_n_order(n_blocks_max)] */
    double *rest;    /* [n_choices][n_kv_heads][group][attn_n_rest(n_blocks_max)] */
    double
        *log_unread; /* [n_choices][n_kv_heads * group]: log of sum n exp(bound); -inf: nothing */
    attn_choice_note *notes; /* [n_choices][n_kv_heads] */
} choose_pages_args;

/* The definition, over the host's memory. */
void choose_pages_cpu(const choose_pages_args *args);

/* Does a rule ask for the masses of what is read? */
static inline bool attn_reads_by_mass(attn_rule rule)
{
    return rule == ATTN_RULE_NUCLEUS || rule == ATTN_RULE_CERTIFIED;
}

/* Places of an order: a power of two, which networks sort. */
static inline size_t attn_n_order(uint32_t n_blocks)
{
    size_t n = 1;
    while (n < n_blocks)
        n *= 2;
    return n;
}

/* Sums over the candidates from some rank on: of every ATTN_RANKS_AT_ONCE-th, and of none. */
static inline size_t attn_n_rest(uint32_t n_blocks)
{
    return ((size_t)n_blocks + ATTN_RANKS_AT_ONCE - 1) / ATTN_RANKS_AT_ONCE + 1;
}

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
