/* kvcache/ranks.h - one cache over several ranks.
 *
 * Each rank opens a cache of its own over the same model, with the same settings and a comm of one group
 * (kv_config), and makes the same calls in the same order with the same tokens. Shard s belongs to rank s
 * mod n. What differs between ranks is what lies in their pages:
 *
 *   on every rank     lengths, ring, sinks, staging, the owners of entries, what observers keep
 *   on its owner      an entry that has left the ring; in the tables of the others its page is missing, as
 *                     if a window had passed it
 *
 * Attention: the home rank of a sequence reads sinks, ring and staging, every rank its own pages. Each has
 * one partial (o, lse) per token and head, empty ones with lse = -inf; one all_gather brings them together,
 * and every rank merges them in rank order, so all have the same bits, the same for every run of a number
 * of ranks. Another number rounds differently. A layer's sink logit is the home rank's.
 *
 * Codecs, tiers, routing and eviction work on what the rank holds. What comes out differently must not show:
 *
 *   routing    chooses among own pages; what it leaves out is bounded and goes with the part, so that all
 *              know the certificate of the whole (routing.h: why a promise of each is one of all)
 *   losses     a page that the file does not give back loses its sequence on all ranks: that goes with the
 *              parts, too, of the step in which it was read
 *   prefixes   prefix_ranks.h
 *   budgets    are dealt by what ranks have: of the entries that a head may keep beside sinks and ring, each rank
 *              keeps the best of its own, as large a part of them as the others. Allocators deal a rank's part
 *              to its heads; layers' shares are the same on all
 *   scores     are of what a rank has, sinks and ring among it, but measured by what all have: a softmax has
 *              the normaliser of all ranks (kv_scorer.lse; of attention that has been paid, that of the
 *              merge), scores of other layers are added up, and so is how lazy a layer is. By the rank's own
 *              entries go neighbours (`snapkv`, `non_causal`), means of keys and products of values
 *              (`keydiff`, `cap`, `lagkv`, `cur`), outputs (`dropkv`), and whole pages
 *   rewriting  `distill` and `merge` make a rank's kept entries stand for what goes there: attention adds up
 *              over ranks, so what each preserves is preserved. `rerotate` counts what goes on all
 *   bases      of `svd` are of lists, which are of one rank
 *   replays    at whose end the ring gets back what is in the pages of all, as it does with a prefix
 *
 * A step begins on all ranks or on none, and a sequence opens on all or on none. Collective are kv_cache_open,
 * kv_seq_open, kv_seq_end_replay, kv_step_begin (kv_seq_choose), kv_attend and kv_map_take, and with prefix
 * caching kv_seq_take_prefix, _share_prompt and _close. A rank whose comm has failed has left the others: kv_attend is void, what it
 * returns is zeros from then on, nothing is taken or left, the next kv_step_begin says so, and comm_status at
 * any time. */
#ifndef KVCACHE_RANKS_H
#define KVCACHE_RANKS_H

#include "kvcache/blocks.h"

/* Sets the cache's ranks and, unless the setting is larger, one shard for each. */
err_t kv_ranks_init(kv_cache *cache, const kv_config *config, err_info *info) MUST_CHECK;

/* Run over a measuring and then a real arena. ERR_OVERFLOW: a step's parts are more than a comm carries. */
err_t kv_ranks_place(arena *a, kv_cache *cache) MUST_CHECK;

/* What every rank returns when this one would return `err`: the first failure in rank order, or the comm's. */
err_t kv_ranks_agree(const kv_cache *cache, err_t err, err_info *info) MUST_CHECK;

/* Small exchanges between steps, which all ranks come to in the same order; a rank alone asks nobody.
 * out[n][bytes]; false: the comm has failed. */
bool kv_ranks_gather(const kv_cache *cache, const void *in, void *out, size_t bytes) MUST_CHECK;

/* n_rows rows of n logs of sums, one row `stride` floats behind the other: each becomes that of all ranks' sums
 * together. Between the attention of layers, or between steps; a failed comm leaves them as they are. */
typedef struct kv_lse_rows {
    float *lse; /* [n_rows][stride] */
    size_t stride, n_rows, n;
} kv_lse_rows;
void kv_ranks_merge_lse(const kv_cache *cache, const kv_lse_rows *rows);

/* x[n] becomes the sum over all ranks, in rank order. The same. */
void kv_ranks_sum(const kv_cache *cache, double *x, size_t n);

/* Where this rank writes its part of a layer's attention in the present step. */
typedef struct kv_part {
    float *o;   /* [n_tokens][n_heads][v_dim] */
    float *lse; /* [n_kv_heads][n_tokens][group] */
    float *
        unread; /* the same, of decode rows: log of the mass that was left out; NULL without boxes */
    float *lost; /* [n_rows], if there is a file: not 0: the row's sequence; written by the merge */
} kv_part;
kv_part kv_ranks_part(const kv_cache *cache, uint32_t layer);

/* Brings the parts together and merges them: out [n_tokens][n_heads][v_dim]. False: the comm has failed, and
 * out is zeros. */
bool kv_ranks_merge(const kv_cache *cache, uint32_t layer, float *out) MUST_CHECK;

/* After that: what the query of a decode row has missed of all ranks' pages in one KV head. */
kv_misses kv_ranks_misses(const kv_cache *cache, uint32_t layer, const kv_row *row, uint32_t head);

/* Reads it ring and staging of the sequence? */
static inline bool kv_is_home(const kv_seq *seq)
{
    return seq->id % seq->cache->ranks.n == seq->cache->ranks.rank;
}

/* Of n_blocks of a sequence, those that lie on one rank at most: where entries are placed one by one, all. */
static inline uint64_t kv_own_blocks_max(const kv_cache *cache, uint32_t layer, uint64_t n_blocks)
{
    const uint64_t n_of_shard = (n_blocks + cache->n_shards - 1) / cache->n_shards;
    const uint64_t n_shards = (cache->n_shards + cache->ranks.n - 1) / cache->ranks.n;
    const uint64_t n = n_of_shard * n_shards;
    return cache->scatters[layer] || n > n_blocks ? n_blocks : n;
}

#endif
