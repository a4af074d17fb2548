/* kvcache/blocks.h - which blocks the window of a layer has passed: their pages are freed, and nothing asks
 * for them any more. */
#ifndef KVCACHE_BLOCKS_H
#define KVCACHE_BLOCKS_H

#include "kvcache/cache_state.h"

/* No query at `length` or later sees this block in this layer. */
static inline bool kv_block_passed(const kv_cache *cache, uint32_t layer, uint32_t block,
                                   uint32_t length)
{
    const uint64_t window = cache->layer[layer].window;
    const uint64_t end = ((uint64_t)block + 1) * cache->page_tokens;
    return window != 0 && end + window <= (uint64_t)length + 1;
}

#endif
