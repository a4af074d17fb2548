/* kvcache/stats_board.c - see stats_board.h. */
#include "kvcache/stats_board.h"

#include <string.h>

void kv_stats_board_write(kv_stats_board *board, const kv_stats *stats)
{
    uint64_t words[KV_STATS_WORDS];
    memcpy(words, stats, sizeof words);
    const uint64_t version = atomic_load_explicit(&board->version, memory_order_relaxed);
    atomic_store_explicit(&board->version, version + 1, memory_order_relaxed);
    for (int i = 0; i < KV_STATS_WORDS; i++)
        atomic_store_explicit(&board->words[i], words[i], memory_order_release);
    atomic_store_explicit(&board->version, version + 2, memory_order_release);
}

void kv_stats_board_read(const kv_stats_board *board, kv_stats *out)
{
    uint64_t words[KV_STATS_WORDS], before, after;
    do {
        before = atomic_load_explicit(&board->version, memory_order_acquire);
        for (int i = 0; i < KV_STATS_WORDS; i++)
            words[i] = atomic_load_explicit(&board->words[i], memory_order_acquire);
        after = atomic_load_explicit(&board->version, memory_order_relaxed);
    } while (before != after || before % 2 != 0);
    memcpy(out, words, sizeof words);
}
