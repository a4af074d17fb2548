/* tests/kvcache/match_problem.h - inputs for attention matching, and how wrong what comes out is.
 *
 * Inputs are those of golden_layer.h, for as many tokens as are asked for. */
#ifndef TESTS_KVCACHE_MATCH_PROBLEM_H
#define TESTS_KVCACHE_MATCH_PROBLEM_H

#include "kvcache/compression/matching.h"

enum { D = 8, GROUP = 2, N_MAX = 512, ROWS_MAX = 256 };

typedef struct block {
    uint32_t n;
    float k[N_MAX][D], v[N_MAX][D];
    float bias[N_MAX];
    uint8_t is_fixed[N_MAX];
    uint32_t positions[N_MAX];
} block;

typedef struct queries {
    uint32_t n;
    float q[ROWS_MAX][D];
} queries;

void match_make_block(uint32_t head, uint32_t n, block *b);

/* Both query heads of a KV head: hidden states [state, state + n) at positions from `position` on. */
void match_make_queries(uint32_t head, uint32_t state, uint32_t n, uint32_t position, queries *out);

typedef struct matched {
    uint32_t n, kept[N_MAX];
    float beta[N_MAX], values[N_MAX][D];
} matched;

typedef enum selection { HAK, OMP, GIVEN } selection; /* GIVEN: out->kept */

/* All of it, in memory for `spare` more of everything than is needed. */
void match_run(const block *b, const queries *q, uint32_t n_keep, selection how,
               const kv_match_options *options, uint32_t spare, matched *out);

typedef struct errors {
    double output; /* ||o - o'|| / ||o|| over all queries */
    double lse;    /* mean |difference| */
} errors;

errors match_measure(const block *b, const matched *kept, const queries *q);

/* The same entries, simply kept. */
errors match_measure_eviction(const block *b, const matched *kept, const queries *q);

#endif
