/* tests/kvcache/rank_group.h - one cache over several ranks, which are threads here.
 *
 * Every rank has a fake model of its own and runs the same body; what they have in the end is looked at by the
 * test, from its own thread, before close_ranks. */
#ifndef TESTS_KVCACHE_RANK_GROUP_H
#define TESTS_KVCACHE_RANK_GROUP_H

#include "tests/kvcache/fake_model.h"

#include "kernels/comm.h"

#include <pthread.h>

enum { RANKS_MAX = 8, RANK_SEQS = 8, RANKS_TIMEOUT_MS = 60000 };

typedef struct rank_test {
    fake_options options; /* of this rank: others may have less memory */
    fake *f;
    comm *comm;
    uint32_t rank, n_ranks;
    const void *ctx;
    fake_seq seqs[RANK_SEQS]; /* seq == NULL: closed */
    /* After the body: of pages; entries since start; entries that sequences see in pages. */
    uint64_t bytes, evicted, live;
    void (*body)(struct rank_test *t);
    pthread_t thread;
} rank_test;

/* Opens the fake and runs the body, on the thread of the caller. */
void run_rank(rank_test *t);

/* What makes the ranks unlike each other; NULL: nothing. */
typedef void rank_change(rank_test *t);

/* Runs `body` on all ranks of a group, with ctx; their fakes stay open. */
typedef struct rank_run {
    uint32_t n;
    fake_options options;
    void (*body)(rank_test *t);
    rank_change *change;
    const void *ctx;
} rank_run;
void run_group(rank_test *ranks, const rank_run *run);
void run_ranks(rank_test *ranks, uint32_t n, const fake_options *options,
               void (*body)(rank_test *t));

/* Closes sequences and fakes, all ranks together. */
void close_ranks(rank_test *ranks, uint32_t n);

/* Three layers or so, placed as named on n_shards shards. */
fake_options rank_options(const char *placement, uint32_t n_shards, const kv_layer_shape *layers,
                          uint32_t n_layers, kv_config config);

#endif
