/* kvcache/evict.h - scheduling and selections at work: entries are chosen, the others go, what is left is
 * packed.
 *
 * A sequence under methods that evict is settled at the lengths at which lossy codecs encode (encode.h):
 * when its prompt ends, at multiples of 2048 positions within it, and behind it whenever a block has left
 * the ring. No step crosses such a length (kv_seq_step_tokens_max), so that what stays depends neither on
 * how the sequence was cut nor on its neighbours. It is done when the next step begins:
 *
 *   score    every head of a layer, all entries that it still has on all shards (score_view.h)
 *   evict    sinks and the newest entries (those that belong in the ring) always stay; of the others as
 *            many as allocators grant. The budget is kv_policy_n_keep of the length; heads whose ring and
 *            sinks are more than that keep these. Evicted entries are gone for good.
 *            A selection of --kv-compression chooses up to the end of the prompt, a policy of
 *            --kv-scheduling behind it, and in both if there is no selection; a selection alone lets
 *            everything that is decoded stay, and the sequence grows by it.
 *   rewrite  what stays of a head, before the others go: distill.h, rewrite.h
 *   compact  compact.h
 *   encode   encode.h
 *
 * A head has one budget over all of its shards, in decode too, and its entries compete wherever they lie. So
 * what stays is the same for every number of shards and every placement, as far as scores are, whose sums
 * may be rounded differently; but for scorers that keep whole pages, since placement says what is on one.
 *
 * A prompt that is read again before its entries are chosen (kv_replay.h) is settled at its end alone.
 *
 * Over ranks each scores, chooses and packs what it holds (ranks.h).
 *
 * That it waits for the next step has a use: between the two kv_seq_share_prompt can share the prompt.
 *
 * Evicting needs no room, but for copies of shared pages whose entries are written; the rest may. If there is
 * none, the sequence is consistent, and settling it again goes on where it stopped. Once thinned it cannot be cut any more: kv_seq_truncate returns 0. */
#ifndef KVCACHE_EVICT_H
#define KVCACHE_EVICT_H

#include "kvcache/cache_state.h"

static inline void kv_count_evicted(kv_seq *seq, uint64_t n_pages)
{
    seq->n_pages_evicted += n_pages;
    seq->cache->stats.pages_evicted += n_pages;
}

/* Run over a measuring and then a real arena, for the methods that sequences may have. */
void kv_evict_place(arena *a, const kv_cache *cache, kv_evict *evict);

/* Has the cache what scorers and allocators ask for? ERR_UNSUPPORTED says what it lacks. */
err_t kv_evict_check(const kv_cache *cache, const kv_methods *methods, err_info *info) MUST_CHECK;

/* Chooses what stays, if that is due at the present length. Over ranks collective, and fails on all or on none:
 * of all rows of a step before any of them is settled, which one rank may have no room for. ERR_KV_FULL: nothing has
 * gone. */
err_t kv_seq_choose(kv_seq *seq) MUST_CHECK;

/* Does what is due at the present length; nothing if all has been done. ERR_KV_FULL: see above. */
err_t kv_seq_settle(kv_seq *seq) MUST_CHECK;

#endif
