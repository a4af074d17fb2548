/* kvcache/scoring/methods.h - scorers whose numbers are parameters; private to this folder and its
 * tests, which compare them with golden numbers that were made under other parameters. What the table
 * uses stands in the comments.
 *
 * Cost of scoring the n entries of one head, in products; G = group, d = channels, w = window of
 * queries. State is what the cache keeps for it (scorer.h) beside keys and values.
 *
 *   snapkv, finch, tova  2 w G n d              the last w queries: w G d floats (tova: w = 1)
 *   distill              as snapkv, and the fit of compression/matching.h
 *   dropkv               3 w G n d + 2 w G n d  as snapkv
 *   criticalkv           as snapkv + n d G d_model       as snapkv, and the output projection
 *   criticalkv_l2        as snapkv + (n + d_model) G d^2 / 2
 *   expected_attention   n G d^2 / 2 + 2 G d^2  sums of queries and of their products: G (d + d^2) floats
 *   cap                  n G (k_dim + v_dim^2) + G v_dim^3 / 6, in double       as expected_attention
 *   knorm, keydiff, cur, lagkv   1 to 6 n d     none
 *   h2o, observed_attention      n              one float an entry, and a second pass over the keys
 *                                               of every query, to know the attention it got
 *   non_causal           n d; for every 256 positions 2 * 256 * 256 G d in the step that completes them, and
 *                        up to that for the newest ones.   one float an entry, and 256 queries
 *   kvzip                n at a prompt's end, where the cost is the replay: a second prompt, and two passes
 *                        over the keys of a chunk; behind it as snapkv.    one float an entry of the
 *                                                                          prompt, and 32 queries
 *   kvzip_plus           as kvzip, and (n + d_model) G d^2 / 2; G floats an entry of the prompt instead
 *   lru, lru_plus, paper_lru_plus    n          two counters a page
 *   random, streaming_llm            n          none
 *
 * The allocator simlayer: 2 G n d a head, and the last query. Whatever has queries has them twice, so that a step
 * may be aborted. Work is O(n) floats at most, and some chunks and matrices of one head; see each work_floats. */
#ifndef KVCACHE_SCORING_METHODS_H
#define KVCACHE_SCORING_METHODS_H

#include "kvcache/scoring/scorer.h"

/* The window is args->queries.n. */
enum {
    KV_SNAPKV_WINDOW = 64,
    KV_SNAPKV_KERNEL = 5 /* neighbours that scores are averaged over; odd */
};

size_t kv_snapkv_floats(const kv_score_shape *shape);
void kv_snapkv_score(const kv_score_args *args, uint32_t kernel, float *out);

typedef struct kv_expected_settings {
    uint32_t n_future; /* 512: positions of the queries to come */
    float eps; /* 0.01: added to the attention before it is weighted by the value's length */
} kv_expected_settings;

void kv_expected_score(const kv_score_args *args, const kv_expected_settings *settings, float *out);

typedef struct kv_cap_settings {
    uint32_t n_future; /* 512: positions of the queries to come */
    double tau;        /* 5: how sharply entries are told apart by where the queries point */
} kv_cap_settings;

void kv_cap_score(const kv_score_args *args, const kv_cap_settings *settings, float *out);

/* n_first: positions below get more than all others; 4. */
void kv_kvzip_plus_score(const kv_score_args *args, uint32_t n_first, float *out);

enum { KV_LAGKV_LAG = 128 };
void kv_lagkv_score(const kv_score_args *args, uint32_t lag, float *out);

/* First positions that methods treat as sinks. The cache protects its own in any case. */
enum { KV_SCORE_SINKS = 4 };

#endif
