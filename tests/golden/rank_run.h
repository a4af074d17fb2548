/* tests/golden/rank_run.h - the whole model over several ranks, which are threads, and what they computed.
 *
 * Helpers fail the running test themselves. */
#ifndef TESTS_GOLDEN_RANK_RUN_H
#define TESTS_GOLDEN_RANK_RUN_H

#include "tests/golden/golden_run.h"

#include <pthread.h>

enum { N_FIXTURES = 8, RANKS_MAX = 8 };
extern const char *const fixtures[N_FIXTURES];

/* What a script computed: one sequence after the other, in the order of positions. */
typedef struct record {
    float *logits;    /* [n_rows][n_vocab]; NaN of rows that came from the prefix cache */
    uint32_t *tokens; /* [n_rows]: at the position, chosen ones too */
    size_t n_rows, n_vocab;
    size_t n_cached; /* rows */
} record;

typedef struct rank_run {
    golden_setup setup;
    bool is_short; /* leaves out prompts by themselves */
    record out;
    size_t weight_bytes; /* at the end */
    size_t expert_bytes; /* of one expert of all layers */
    uint32_t n_experts;
    expert_stats experts;
    uint64_t rank_choices[RANKS_MAX]; /* of `experts`, whose own pointer is NULL */
    pthread_t thread;
} rank_run;

/* Small pages, one thread, f32. */
golden_setup setup_of(int fixture, const char *const *settings);

/* All prompts at once, each in chunks of its own, and one of a single token; 64 tokens of each are chosen. Then
 * each prompt by itself. */
rank_run run_alone(const golden_setup *setup, bool is_short);
void run_ranks(const golden_setup *setup, bool is_short, uint32_t n, rank_run *runs);
void forget(rank_run *runs, uint32_t n);

void check_same_bits(const record *a, const record *b);
/* Tokens exactly, logits within `tolerance` of the row's largest, as far as b computed them. */
void check_close(const record *a, const record *b, float tolerance);

#endif
