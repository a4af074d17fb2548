/* kvcache/away.h - pages of sequences that have left the pool: read where they lie.
 *
 * A page of the file that cannot be read is read as zeros, and its sequence is lost from then on: what
 * it computes is worthless, nothing of it is shared, and it is to be closed and computed again
 * (kv_seq_is_lost). So a failing disk costs time, and everything below goes on as if it were well. */
#ifndef KVCACHE_AWAY_H
#define KVCACHE_AWAY_H

#include "kvcache/encode.h"
#include "kvcache/kv_lost.h"

/* The bytes of a page that the sequence sees: in place, or at `landing` (of cache->landing_bytes). Any
 * worker. */
const uint8_t *kv_seq_read_page(kv_seq *seq, uint32_t page, uint8_t *landing);

/* What it holds is worthless: as if a page could not be read. Any worker. */
void kv_seq_lose(kv_seq *seq);

/* Slots [0, n_slots) of a sealed page in the cache type, in place or in a worker's scratch. */
attn_span kv_seq_load_page(kv_seq *seq, const kv_page_place *at, uint32_t n_slots, uint32_t worker);

/* Where worker w lets a page land that is not in memory. */
static inline uint8_t *kv_landing(const kv_cache *cache, uint32_t worker)
{
    return cache->decoded + (worker + 1) * cache->decoded_bytes - cache->landing_bytes;
}

/* Can everything that a prefix of n_tokens needs still be read, as far as is known? */
bool kv_source_is_sound(const kv_cache *cache, const kv_prefix_source *source, uint32_t n_tokens);

/* Starts reading what the step's rows will read of this layer from the file: everything, or under a
 * routing that chooses, what was chosen in the last step. Inside a step this is a system call for each row
 * of neighbours in the file: without it, every page would be waited for when attention comes to it, and
 * the layer before would be computed beside an idle disk. */
void kv_hint_layer(const kv_cache *cache, uint32_t layer);

#endif
