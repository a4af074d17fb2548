/* kvcache/basis.h - what pages of coefficients are coefficients of.
 *
 * Bases of a model are made offline, per layer and head (compression/low_rank.h). Bases of a sequence's own
 * (compression/svd.h) are pages of the pool, of size classes of their own, and pages of coefficients lean
 * on them: a basis lives as long as somebody sees a page that needs it, shared prefixes included. They
 * are never demoted.
 *
 * A list of pages - every shard's of a head has its own - gets its first basis when its first blocks are
 * encoded, from those, and a new one when the entries have doubled since, from what the old one saw and
 * from the blocks that are encoded then. The others lean on the basis of the encoded block before them.
 * Over ranks every rank makes those of its lists.
 * So which basis a page has follows from positions alone, and there are at most 1 + log2 of the blocks.
 * A sequence that takes a prefix goes on with the bases of its pages. */
#ifndef KVCACHE_BASIS_H
#define KVCACHE_BASIS_H

#include "kvcache/compression/svd.h"
#include "kvcache/encode.h"

/* Run over a measuring and then a real arena, once classes are known. */
void kv_own_bases_place(arena *a, const kv_cache *cache, kv_own_bases *out);

/* What readers need for tiles of n_rows rows; zeros if no codec of the cache has coefficients. */
kv_low_sizes kv_low_sizes_of(const kv_cache *cache, size_t n_rows);

/* The size class of bases of a layer's heads. */
static inline uint32_t kv_basis_class(const kv_cache *cache, uint32_t layer)
{
    return cache->own_bases.first_class + cache->layer_class[layer];
}

/* The bases of a page that is sealed or leans on one; expanded into `floats`
 * [cache->own_bases.n_floats] if they must be. None for codecs without. */
kv_head_bases kv_page_bases(const kv_cache *cache, const kv_page_place *at, float *floats);

/* Adds the bases of n_blocks blocks of one layer at most. */
void kv_basis_need_blocks(const kv_cache *cache, uint32_t layer, uint64_t n_blocks, uint64_t *need);

/* Adds to cache->need those that encoding up to block `end` may make. */
void kv_basis_need(const kv_seq *seq, uint32_t end);

/* Before blocks are encoded, as far as they are raw: chooses or makes a basis for every list,
 * cache->own_bases.page; kv_bases_end when the pages lean on them. */
void kv_bases_begin(kv_seq *seq, const kv_encoded *blocks);
void kv_bases_end(kv_seq *seq);

#endif
