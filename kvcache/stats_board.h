/* kvcache/stats_board.h - counters that one thread publishes and any thread copies.
 *
 * A sequence lock over atomic words: the writer makes `version` odd, stores the words, makes it even
 * again; a reader copies the words and tries again if the version was odd or has changed. The writer
 * never waits. Words are stored with release and loaded with acquire order: a reader that has seen
 * a new word also sees the odd version, and no fence is needed (ThreadSanitizer knows none). */
#ifndef KVCACHE_STATS_BOARD_H
#define KVCACHE_STATS_BOARD_H

#include "kvcache/kv_stats.h"

#include <assert.h>
#include <stdatomic.h>

enum { KV_STATS_WORDS = sizeof(kv_stats) / sizeof(uint64_t) };
static_assert(sizeof(kv_stats) % sizeof(uint64_t) == 0, "kv_stats is copied as whole words");

typedef struct kv_stats_board {
    _Atomic uint64_t version; /* odd while the words are being written */
    _Atomic uint64_t words[KV_STATS_WORDS];
} kv_stats_board;

void kv_stats_board_write(kv_stats_board *board, const kv_stats *stats); /* the owner only */
void kv_stats_board_read(const kv_stats_board *board, kv_stats *out);    /* any thread */

#endif
