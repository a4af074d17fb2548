/* kvcache/scoring/window_attention.h - how the latest queries attend to the entries of a head.
 *
 * p(row, entry) is the softmax over all entries that the query sees, a row being one query head of one
 * of the latest positions. The w * group rows are never held: a first pass over the keys finds what
 * normalises each, later ones compute shares again, chunk by chunk. Cost of a pass: w * group * n * k_dim
 * products. */
#ifndef KVCACHE_SCORING_WINDOW_ATTENTION_H
#define KVCACHE_SCORING_WINDOW_ATTENTION_H

#include "kvcache/scoring/scorer.h"

typedef struct kv_window {
    const kv_score_args *args;
    uint32_t n_rows; /* queries * group */
    uint32_t n_open; /* entries before the first query's position; 0 without queries */
    float *keys,
        *columns;      /* [KV_SCORE_CHUNK][k_dim] and turned over: the chunk that was read last */
    float *most, *sum; /* [n_rows]: largest score, and sum of exp(score - most); or lse, and 1 */
} kv_window;

size_t kv_window_floats(const kv_score_shape *shape);

/* kv_scorer.lse of scorers that go by these shares: of every row. */
void kv_window_lse(const kv_score_args *args, float *out);

/* The first pass, unless args->lse has what it would find. Takes its floats from args->work. */
void kv_window_init(kv_window *w, const kv_score_args *args);

/* Reads the keys from `first` on into the chunk; returns how many. */
uint32_t kv_window_read(kv_window *w, uint32_t first);

/* p of the chunk that begins at `first`; 0 for entries that the row does not see. */
void kv_window_shares(const kv_window *w, uint32_t row, uint32_t first, float p[KV_SCORE_CHUNK]);

/* Writes the mean over the rows of p, for all entries; 0 without rows. */
void kv_window_mean(kv_window *w, float *out);

#endif
