/* kvcache/compression/matching.h - t entries that stand for n: attention matching (Zweiger et al.,
 * "Fast KV Compaction via Attention Matching", arXiv 2602.16284).
 *
 * A head keeps the keys of t of its n entries as they are, and gets a bias for each, which
 * attention adds to its score, and a new value, such that for reference queries q_i the block of t
 * has about the mass and the output that the block of n had:
 *     E_ij = exp(scale q_i . k_j - max_j),  y_i = sum_j E_ij,  Y_i = sum_j E_ij v_j / y_i
 *     w    = argmin ||E_S w - y||^2 + mu ||w - 1||^2,  in [e^beta_min, e^beta_max];  beta = ln w
 *     C    = argmin ||X C - Y||^2 + lambda ||C - V_S||^2, X_i = softmax_S(scale q_i . k_j + beta_j)
 * With the bias the kept keys weigh as much as all did, against entries outside this block, too.
 * Both problems are solved as changes from eviction (w = 1, C = V_S): with large mu and lambda that
 * is the result, and with t = n nothing changes, bit for bit. As published there is no mu, lambda
 * is 0, and the smallest solution is taken; but a cache often has fewer reference queries (a window
 * of 64 positions times the group) than kept entries, and would fit noise with what is left open.
 *
 * kv_match_defaults were chosen by ||o - o'|| / ||o|| over queries that come after those of the
 * fit. mu and lambda are given as shares of ||E_S||^2 and ||X||^2, the sums of squares (none: 1e-9
 * at most). Random: states, projections and RoPE as in the test, the block alone, 4 seeds. Model:
 * models/storyteller on two texts of its own, all layers and heads, a window of 64 of 1024
 * positions, whole attention with 4 sinks and the newest 128 exact; there the defaults beat
 * eviction in each of the 16 heads.
 *                n     t  rows  dim  eviction   none, none  1e-2, 1e-4  1e-2, 1e-3  1e-2, 1e-2
 *     random    48    24    96    8      0.51        0.33        0.33        0.32        0.34
 *     random   512   128   128    8      0.57        2.3         0.39        0.35        0.42
 *     random   512   256   128    8      0.25        0.51        0.19        0.17        0.20
 *     random  1024   256   256   64      1.19        4.0         0.89        0.84        1.01
 *     random  1024   512   256   64      0.65        0.73        0.57        0.56        0.61
 *     model    892   223   128   64     0.056       0.068       0.041       0.042       0.043
 *     model    892   446   128   64     0.030       0.023       0.024       0.024       0.025
 * Biases are of use with their values alone: with the old ones (model: 0.061, 0.031) they are worse
 * than none.
 *
 * Every query sees every entry: queries come after the block. Scores are cut to +-1e30. Entries may have
 * biases already, having been matched before: they are part of the scores, w is what they get in addition.
 * Kept entries that can no longer be written are fixed; the others are fitted around them.
 *
 * Memory (kv_match_place): the matrices E and X are made again in each pass, 64 entries at a time.
 * With n = 131072, t = n / 2, 128 rows and 128 channels it is 1.9 MiB; 9 n + 4 t bytes grow with
 * the context, 8 rows^2 with the window. Time, in products, rows being m:
 *     m (k_dim (2 n + 7 t) + v_dim (n + 2 t) + m t) + m^3 / 3
 * and for each round of OMP m (k_dim (n + 2 t) + m t / 2) + m^3 / 6 more.
 *
 * Threads: a kv_match is used by one at a time. Pure: the same arguments give the same bits. */
#ifndef KVCACHE_COMPRESSION_MATCHING_H
#define KVCACHE_COMPRESSION_MATCHING_H

#include "kvcache/compression/least_squares.h"
#include "kvcache/scoring/scorer.h"

typedef struct kv_match_shape {
    uint32_t n_max; /* entries */
    uint32_t t_max; /* entries that are kept */
    uint32_t n_queries_max, k_dim, v_dim;
} kv_match_shape;

typedef struct kv_match_args {
    const kv_score_view *view; /* n >= 1 entries, finite; borrowed until the last call */
    const uint8_t *is_fixed;   /* [n]: bias and value stay as they are if it is kept; NULL: none */
    const float *q;            /* [n_queries][k_dim], after RoPE, finite; borrowed likewise */
    uint32_t n_queries;        /* of all heads of the group together, >= 1 */
    float scale;               /* of attention scores */
} kv_match_args;

typedef struct kv_match_options {
    double ridge_bias, ridge_value; /* mu and lambda by the sums of squares; at least 1e-9 */
    double beta_min, beta_max;
    uint32_t n_steps; /* of projected gradient after beta was cut to its limits */
} kv_match_options;

extern const kv_match_options kv_match_defaults;

/* Entries of the view. */
typedef struct kv_match_set {
    const uint32_t *index; /* [n], rising; NULL: all */
    uint32_t n;
} kv_match_set;

/* State; the caller looks at none of it. m = args.n_queries. */
typedef struct kv_match {
    kv_match_shape shape;
    kv_match_args args;
    /* the entries that were read last */
    float *keys, *values; /* [KV_SCORE_CHUNK][k_dim], [KV_SCORE_CHUNK][v_dim] */
    float *columns;       /* [k_dim][KV_SCORE_CHUNK]: keys turned over */
    double *tile;         /* [KV_SCORE_CHUNK][m]: their scores, then E or X: a row an entry */
    /* of the whole block */
    double *most, *mass; /* [m]: largest score; y */
    double *target;      /* [m][v_dim]: Y */
    float *score;        /* [n]: sum of the squares of the shares of attention */
    /* of the fit at hand */
    kv_ridge ridge;         /* of E_S, then of X */
    double *kept_most;      /* [m]: largest score of the kept */
    double *sum, *residual; /* [m]: E_S w, then what normalises X */
    double *norm_work;      /* [2][m] */
    double *rest;           /* [m][v_dim]: what eviction gets wrong of Y */
    double *row;            /* [v_dim] */
    float *value;           /* [v_dim] */
    /* of OMP */
    float *gain;    /* [n] */
    float *weights; /* [t_max] */
    uint8_t *state; /* [n] */
} kv_match;

/* Cuts all memory; shape is what later calls may bring at most. */
void kv_match_place(arena *a, const kv_match_shape *shape, kv_match *match);

/* Reads the block twice. Before the calls below, which may then be made in any order and number. */
void kv_match_begin(kv_match *match, const kv_match_args *args);

/* The n_keep entries with the largest mean square share of attention ("highest attention keys"), of
 * equals the earlier; rising. 1 <= n_keep <= n. */
void kv_match_choose(kv_match *match, uint32_t n_keep, uint32_t *kept);

/* By orthogonal matching pursuit: the entry whose column of E explains most of the mass that is
 * still missing, then a new fit, and so on; four entries a fit from the 300th on, eight from the
 * 1500th, and those that end with hardly any weight are replaced up to three times. Time: n_keep
 * passes over the block. `options` are those of the fits. */
void kv_match_choose_omp(kv_match *match, uint32_t n_keep, const kv_match_options *options,
                         uint32_t *kept);

/* Where a fit goes. */
typedef struct kv_match_out {
    float *beta; /* [n]: biases of the kept entries, those included that they had */
    /* The value [v_dim] of the i-th kept entry, unless it is fixed: finite, and in this order. The view will
     * not be asked for entries up to this one again. */
    void (*put)(void *ctx, uint32_t i, const float *value);
    void *ctx;
} kv_match_out;

/* Any choice will do. Ends what kv_match_begin began if the view shows what is put. */
void kv_match_fit(kv_match *match, kv_match_set kept, const kv_match_options *options,
                  const kv_match_out *out);

#endif
