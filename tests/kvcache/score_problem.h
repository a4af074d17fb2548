/* tests/kvcache/score_problem.h - one head with everything that a scorer may ask for. */
#ifndef TESTS_KVCACHE_SCORE_PROBLEM_H
#define TESTS_KVCACHE_SCORE_PROBLEM_H

#include "kvcache/scoring/scorer.h"

/* Arrays are owned by the problem; `queries` has n_queries rows, the newest positions'. */
typedef struct score_problem {
    uint32_t n, group, k_dim, v_dim, n_queries, d_model, n_kv_heads;
    uint32_t *positions;         /* [n] */
    float *k, *v;                /* [n][k_dim], [n][v_dim] */
    float *q;                    /* [n_queries][group][k_dim] */
    uint32_t *q_positions;       /* [n_queries] */
    float *mean, *cov;           /* [group][k_dim], [group][k_dim][k_dim] */
    float *freq;                 /* [k_dim / 2] */
    float *input_norm;           /* [n_queries] */
    float *mass, *local;         /* [n] */
    float *replay;               /* [group][n] */
    uint32_t *last_use, *n_uses; /* [n] */
    float *out_proj;             /* [d_model][n_kv_heads * group * v_dim] */
    kv_score_view view;
    kv_rope rope;
    matrix projection;
    kv_score_args args; /* everything is set, asked for or not */
} score_problem;

typedef struct score_shape {
    uint32_t n, group, k_dim, v_dim, n_queries, d_model;
} score_shape;

/* Zeros, at positions 0, 1, ...; head 0 of 2. The problem must not move. */
void score_problem_init(score_problem *p, const score_shape *shape);

/* Random entries, queries and statistics; every second position behind the sinks and before the queries
 * is missing, as if it had been evicted. */
void score_problem_random(score_problem *p, const score_shape *shape, uint64_t seed);

/* The golden layer (tests/kernels/golden_layer.h); mass is that of its dense attention. */
void score_problem_golden(score_problem *p, uint32_t kv_head, uint32_t n_queries);

void score_problem_deinit(score_problem *p);

/* Runs `score` with work memory of the scorer's size for the problem, behind which nothing may be
 * written; what is in it before is `dirt`. Arguments that the scorer does not ask for are poisoned. */
void score_problem_run(const score_problem *p, const kv_scorer *scorer, float dirt, float *out);

#endif
