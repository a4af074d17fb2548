/* tests/kvcache/evict_oracle.h - what a sequence that evicts must still have, by a slow reference.
 *
 * It knows lengths, positions and scorers, and nothing of pages, rings or workers. */
#ifndef TESTS_KVCACHE_EVICT_ORACLE_H
#define TESTS_KVCACHE_EVICT_ORACLE_H

#include "tests/kvcache/fake_model.h"

enum { ORACLE_TOKENS_MAX = 256, ORACLE_HEADS_MAX = 2, ORACLE_KEPT = UINT32_MAX };

/* Every entry of a sequence: when it went, and what is known of it. */
typedef struct oracle {
    const fake *f;
    const fake_seq *s;
    uint32_t n_prompt, section;
    /* length at which it went, or ORACLE_KEPT */
    uint32_t gone[FAKE_LAYERS_MAX][ORACLE_HEADS_MAX][ORACLE_TOKENS_MAX];
    double mass[FAKE_LAYERS_MAX][ORACLE_HEADS_MAX][ORACLE_TOKENS_MAX];
    uint32_t n_massed; /* queries that have been added */
    double local[FAKE_LAYERS_MAX][ORACLE_HEADS_MAX][ORACLE_TOKENS_MAX];
    uint32_t n_local; /* positions in parts that are complete, and summed */
    uint32_t n_lazy;  /* layers that were above the threshold, over all lengths */
} oracle;

/* Of a sequence that begins; a cache with its sections. Free it. */
oracle *oracle_new(const fake *f, const fake_seq *s, uint32_t n_prompt);

/* A fake_keeps. */
bool oracle_keeps(const void *ctx, fake_key key, uint32_t position);

/* The next step begins at this length: does what is due. */
void oracle_settle(oracle *o, uint32_t length);

/* Fails the test unless the table's live entries are those that are kept. */
void oracle_compare(const oracle *o);

#endif
