/* kvcache/blocks.h - which list a page is in, which blocks of a length are where, and which the window of a
 * layer has passed: their pages are freed, and nothing asks for them any more. */
#ifndef KVCACHE_BLOCKS_H
#define KVCACHE_BLOCKS_H

#include "kvcache/cache_state.h"

static inline uint32_t kv_list(const kv_cache *cache, uint32_t layer, uint32_t head, uint32_t shard)
{
    return cache->first_list[layer] + head * cache->n_shards + shard;
}

/* Where a block's page is in a layer that is placed by blocks. */
static inline uint32_t kv_home_list(const kv_cache *cache, uint32_t layer, uint32_t head,
                                    uint32_t block)
{
    return kv_list(cache, layer, head, kv_block_shard(cache->n_shards, block));
}

/* Does this rank keep what the shard owns? Alone it keeps all. */
static inline bool kv_is_own_shard(const kv_cache *cache, uint32_t shard)
{
    return shard % cache->ranks.n == cache->ranks.rank;
}

static inline uint32_t kv_n_own_shards(const kv_cache *cache)
{
    return (cache->n_shards - cache->ranks.rank + cache->ranks.n - 1) / cache->ranks.n;
}

/* The same of a block, in a layer that is placed by blocks. */
static inline bool kv_is_own_block(const kv_cache *cache, uint32_t block)
{
    return kv_is_own_shard(cache, kv_block_shard(cache->n_shards, block));
}

/* No query at `length` or later sees this block in this layer. */
static inline bool kv_block_passed(const kv_cache *cache, uint32_t layer, uint32_t block,
                                   uint32_t length)
{
    const uint64_t window = cache->layer[layer].window;
    const uint64_t end = ((uint64_t)block + 1) * cache->page_tokens;
    return window != 0 && end + window <= (uint64_t)length + 1;
}

/* Blocks that have left the window of the ring when `length` tokens are held. */
static inline uint32_t kv_blocks_left(const kv_cache *cache, uint32_t length)
{
    return length < cache->window_tokens ? 0 : (length - cache->window_tokens) / cache->page_tokens;
}

/* Blocks in pages of a sequence that is cut to n_tokens, or takes as many. What has been in pages may
 * stay there; but which entries share a page shows in the roundings of scattered layers, so there it is
 * what any sequence of this length has. */
static inline uint32_t kv_blocks_kept(const kv_cache *cache, uint32_t n_tokens)
{
    return cache->has_scattered ? kv_blocks_left(cache, n_tokens) : n_tokens / cache->page_tokens;
}

/* Blocks of a section, at most: it begins and ends within one, and one more has the sinks. */
static inline uint32_t kv_section_blocks(const kv_cache *cache)
{
    return cache->section_tokens / cache->page_tokens + 3;
}

#endif
